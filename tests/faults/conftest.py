"""Fixtures of the tests of failures: a cluster that may be broken, and servers of a test's own."""

import localcluster
import pytest
from breaking import heal, no_crash, running_cluster
from wire import Wire

# Longer than it takes OxiGears to notice a loss. When the server itself finds its cluster down, it answers all waiting
# clients with CLUSTERDOWN, and nobody would see what OxiGears had to say.
NODE_TIMEOUT = ("--cluster-node-timeout", "6000")


@pytest.fixture(scope="session")
def breakable():
    """The cluster behind `trio`. Mending it costs less than starting another one."""
    with running_cluster(masters=3, server_args=NODE_TIMEOUT) as cluster:
        yield cluster


@pytest.fixture
def trio(breakable):
    """Three shards that a test may kill, stop and load; they are mended afterwards."""
    yield breakable
    try:
        heal(breakable, 3)
        no_crash(breakable.servers)
    except BaseException:
        # The next test gets a new one; this one has failed.
        breakable.stop()
        breakable.start()
        breakable.wait_mesh()
        raise


@pytest.fixture
def wires(trio):
    """A connection to each shard, in the order of `trio.servers`."""
    connections = [Wire(server.port) for server in trio.servers]
    yield connections
    for connection in connections:
        connection.close()


@pytest.fixture
def fresh():
    """Starts servers of the test's own: fresh(*module_args, server_args=()) gives a server."""
    started = []

    def start(*module_args, server_args=()):
        server = localcluster.start_server(
            module=localcluster.DEFAULT_MODULE, module_args=module_args, server_args=server_args
        )
        started.append(server)
        return server

    yield start
    for server in started:
        if server.paused():
            server.resume()
        text = server.log()
        server.stop()
        assert "BUG REPORT" not in text and "panicked at" not in text, text[-5000:]
