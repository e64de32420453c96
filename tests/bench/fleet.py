"""The servers under test: three shards or a single one, fresh for each case and size, with their data."""

import contextlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "deploy"))

import localcluster  # noqa: E402  (found through the line above)

# A Lua script blocks its shard for seconds at 1 M keys. The neighbours must not take it for dead meanwhile.
NODE_TIMEOUT_MS = 60_000
CALL_TIMEOUT_S = 600


class Fleet:
    """The shards, a persistent connection and a thread for each, and who owns which slot."""

    def __init__(self, servers, settle):
        self.servers = servers
        self.settle = settle
        self.clients = [server.client(socket_timeout=CALL_TIMEOUT_S) for server in servers]
        self.pool = ThreadPoolExecutor(len(servers))
        self.owners = self._owners()

    def _owners(self):
        if len(self.servers) == 1:
            return [0] * datasets.SLOTS
        index = {server.port: i for i, server in enumerate(self.servers)}
        owners = [None] * datasets.SLOTS
        for row in self.servers[0].command("CLUSTER", "SLOTS"):
            first, last, (_, port, *_) = row[:3]
            owners[first : last + 1] = [index[port]] * (last - first + 1)
        if None in owners:
            raise RuntimeError("the cluster does not cover every slot")
        return owners

    @property
    def ports(self):
        return [server.port for server in self.servers]

    def on_all(self, function):
        """Runs function(client) for every shard at once, each in its own thread."""
        return list(self.pool.map(function, self.clients))

    def load(self, dataset, n):
        start = time.perf_counter()
        datasets.load(dataset, n, self.ports, self.owners)
        loaded = sum(self.on_all(lambda client: client.dbsize()))
        if loaded != n:
            raise RuntimeError(f"{loaded} keys were loaded instead of {n}")
        return time.perf_counter() - start

    def close(self):
        self.pool.shutdown()
        for client in self.clients:
            client.close()


@contextlib.contextmanager
def running(shards, with_module):
    """A fresh fleet of one or three shards. Without the module the two rival ways can still be run."""
    module = localcluster.DEFAULT_MODULE if with_module else None
    if shards == 1:
        server = localcluster.start_server(module=module)
        try:
            fleet = Fleet([server], settle=lambda: None)
            yield fleet
            fleet.close()
        finally:
            server.stop()
        return
    args = ("--cluster-node-timeout", str(NODE_TIMEOUT_MS))
    with localcluster.LocalCluster(masters=shards, module=module, server_args=args) as cluster:
        cluster.wait_cluster_ok()
        if with_module:
            cluster.wait_mesh(30)
        fleet = Fleet(cluster.masters(), settle=cluster.wait_cluster_ok)
        yield fleet
        fleet.close()
