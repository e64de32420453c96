"""What tests of failures share: scripts that stay in one phase, outcomes, and repairing a cluster."""

import contextlib

import localcluster
from cleaning import leave_nothing
from replies import FINISHED, executions, pair, results_of, wait_until
from wire import Error, Wire

# The client has its error within 5 s of a loss. This bound is wider, since it only guards against hanging.
ERROR_S = 8.0
HEAL_S = 90.0

# Yields for ever. It tells once that it is well on its way, and then leaves the keyspace alone, because a cluster that
# has lost a node serves no keys.
FLOW = """
def src():
    n = 0
    while True:
        n += 1
        if n == 50000:
            execute('set', 'flowing{%s}' % hashtag(), '1')
        yield 'record-%d' % n
"""
# Phase -> a script that stays in it until something ends it.
PHASES = {
    "reading": FLOW + "GB('PythonReader').filter(lambda x: False).run(src)",
    "shuffle": FLOW + "GB('PythonReader').repartition(lambda x: x).count().run(src)",
    "collect": FLOW + "GB('PythonReader').collect().count().run(src)",
}
# What an error text may call the step or phase in which a shard was lost.
STEP_OR_PHASE = ("read", "filter", "shuffle", "repartition", "collect", "count", "map", "prepar", "plan", "start")

EVERYWHERE = "GB('ShardsIDReader').run()"
HERE = "GB('ShardsIDReader').run(mode='async_local')"


def outcome(reply):
    """Results and error texts, whether the whole command failed or the pair holds errors."""
    return ([], [reply.text]) if isinstance(reply, Error) else pair(reply)


def names_shard(errors, server):
    """Whether one of the errors says which shard was lost, and at what."""
    return any(
        (server.node_id in text or f":{server.port}" in text) and any(word in text.lower() for word in STEP_OR_PHASE)
        for text in errors
    )


def expect_loss(reply, server):
    """The reply of an execution that has lost a shard: an error that names it."""
    results, errors = outcome(reply)
    assert errors, f"a part looks like the whole: {results[:5]}"
    assert names_shard(errors, server), f"no error names the lost shard {server} {server.node_id}: {errors}"


def wait_flowing(servers):
    for server in servers:
        with Wire(server.port) as wire:
            wait_until(lambda wire=wire: wire.ok("KEYS", "flowing*"), f"records flowing on {server}")


def expect_free(servers):
    """The servers have ended everything, and their threads take new work."""
    for server in servers:
        with Wire(server.port) as wire:
            wait_until(
                lambda wire=wire: all(status in FINISHED for status in executions(wire).values()),
                f"the executions of {server} ending",
            )
            threads = wire.ok("RG.CONFIGGET", "ExecutionThreads")[0]
            ids = [wire.ok("RG.PYEXECUTE", HERE, "UNBLOCKING") for _ in range(threads + 1)]
            for execution in ids:
                assert len(results_of(wire.ok("RG.GETRESULTSBLOCKING", execution, timeout=30))) == 1
                wire.ok("RG.DROPEXECUTION", execution)


def works(server, shards):
    """Whether an execution started here reaches that many shards and ends without an error."""
    with Wire(server.port) as wire:
        results, errors = outcome(wire.call("RG.PYEXECUTE", EVERYWHERE))
        return not errors and len(results) == shards


def wait_works(servers, shards, timeout=HEAL_S):
    for server in servers:
        wait_until(lambda server=server: works(server, shards), f"executions from {server} working", timeout)


def heal(cluster, shards):
    """Brings back what was killed or stopped. Nobody tells the shards: they must find each other by themselves."""
    for server in cluster.servers:
        if server.paused():
            server.resume()
        if not server.alive():
            server.start()
    cluster.wait_cluster_ok(HEAL_S)
    cluster.wait_mesh(HEAL_S)
    masters = cluster.masters()
    wait_works(masters, shards)
    leave_nothing(masters)
    for server in masters:
        server.command("FLUSHALL")


def log_tails(servers, lines=60):
    return "\n".join("\n".join([repr(server), *server.log().splitlines()[-lines:]]) for server in servers)


def no_crash(servers):
    for server in servers:
        text = server.log() + server.output()
        for mark in ("REDIS BUG REPORT", "VALKEY BUG REPORT", "Fatal Python error", "panicked at"):
            assert mark not in text, f"{server} has crashed or panicked:\n{log_tails([server])}"


@contextlib.contextmanager
def running_cluster(**options):
    """A cluster whose mesh is up."""
    with localcluster.LocalCluster(**options) as cluster:
        cluster.wait_mesh(HEAL_S)
        yield cluster
        no_crash(cluster.servers)


def exit_code(server, timeout=30.0):
    """How the process ended, waiting for its end."""
    localcluster.wait_until(lambda: not server.alive(), timeout, f"{server} ending")
    return server._process.returncode
