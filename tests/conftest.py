"""Servers that tests share: one single server and one cluster for all of them, empty and alive before and after each.

A server that died or hangs fails the test that it happened in, and is replaced for the next one.
"""

import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
for folder in ("deploy", "tests/kit"):
    if str(REPO / folder) not in sys.path:
        sys.path.insert(0, str(REPO / folder))

# Their assertions then show what they compared.
pytest.register_assert_rewrite(
    "breaking", "guarded", "ledger", "loops", "registrations", "replies", "scripts", "streams", "wire"
)

import localcluster
import redis

# Only guards against hanging.
ANSWER_S = 60.0
LOG_LINES = 60
SHARDS = 3
# DEBUG lets a test keep expired keys in place.
SERVER_ARGS = ("--enable-debug-command", "yes")


def pytest_configure(config):
    if not Path(localcluster.DEFAULT_MODULE).exists() and not config.option.collectonly:
        print(f"note: {localcluster.DEFAULT_MODULE} does not exist: `make build` makes it", file=sys.stderr)


def answers(server):
    try:
        return server.command("PING", timeout=ANSWER_S) == b"PONG"
    except (redis.RedisError, OSError):
        return False


def empty(server):
    assert server.command("FLUSHALL", timeout=ANSWER_S) == b"OK"


def check_unharmed(servers, pids):
    """Each server is still the same process and answers."""
    for server, pid in zip(servers, pids, strict=True):
        tail = "\n".join(f"{server.log()}\n{server.output()}".splitlines()[-LOG_LINES:])
        assert server.alive() and server.pid == pid, f"{server} ended during the test:\n{tail}"
        assert answers(server), f"{server} does not answer any more:\n{tail}"


class Shared:
    """Something started on first use, and again when the last test broke it."""

    def __init__(self, start, members, stop):
        self.start, self.members, self.stop = start, members, stop
        self.value = None

    def get(self):
        if self.value is not None and not all(s.alive() and answers(s) for s in self.members(self.value)):
            self.drop()
        if self.value is None:
            self.value = self.start()
        return self.value

    def drop(self):
        if self.value is not None:
            value, self.value = self.value, None
            self.stop(value)

    def lend(self):
        """Gives it to one test; the second step is what is checked afterwards."""
        value = self.get()
        servers = self.members(value)
        for server in servers:
            empty(server)
        pids = [server.pid for server in servers]
        yield value
        check_unharmed(servers, pids)


def start_cluster():
    cluster = localcluster.LocalCluster(masters=SHARDS, server_args=SERVER_ARGS)
    cluster.start()
    try:
        cluster.wait_mesh()
    except BaseException:
        cluster.stop()
        raise
    return cluster


@pytest.fixture(scope="session")
def shared_server():
    shared = Shared(
        start=lambda: localcluster.start_server(module=localcluster.DEFAULT_MODULE, server_args=SERVER_ARGS),
        members=lambda server: [server],
        stop=lambda server: server.stop(),
    )
    yield shared
    shared.drop()


@pytest.fixture(scope="session")
def shared_cluster():
    shared = Shared(start=start_cluster, members=lambda cluster: cluster.servers, stop=lambda cluster: cluster.stop())
    yield shared
    shared.drop()


@pytest.fixture
def server(shared_server):
    """A single server with the module. Tests must leave its configuration as it was."""
    yield from shared_server.lend()


@pytest.fixture
def cluster(shared_cluster):
    """Three shards. Tests must leave slots, roles and configuration as they were."""
    yield from shared_cluster.lend()


@pytest.fixture
def client(server):
    """A client of the single server."""
    with server.client(socket_timeout=ANSWER_S) as connection:
        yield connection


@pytest.fixture
def shards(cluster):
    """A client of each shard, in the order of `cluster.servers`."""
    connections = [server.client(socket_timeout=ANSWER_S) for server in cluster.servers]
    yield connections
    for connection in connections:
        connection.close()


@pytest.fixture
def shard(shards):
    """A client of the shard that tests contact: the initiator."""
    return shards[0]
