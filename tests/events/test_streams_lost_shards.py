"""Batches of mode `async` that end because a shard is gone or slots have other owners: they are tried again."""

import contextlib

import pytest
from breaking import running_cluster
from cleaning import leave_nothing
from registrations import clear, wait_group
from replies import executions_of, own_tag, wait_until
from streams import add, counters, data, only_id, register, script, seen, status, wait_length, wait_status
from wire import Simple, Wire

OK = Simple("OK")
# Waits for the key `go`, on no thread. One that is not the last to have begun was given up: it does nothing any more.
HELD = """
import asyncio
async def held(x):
    number = execute('rpush', 'begun{%(tag)s}', x['id'])
    while execute('llen', 'begun{%(tag)s}') == number and not execute('exists', 'go{%(tag)s}'):
        await asyncio.sleep(0.005)
    if execute('llen', 'begun{%(tag)s}') == number:
        execute('rpush', 'seen{%(tag)s}', x['id'])
    return x
"""
POLICY = pytest.mark.parametrize("policy", ["retry", "continue", "abort"])
# Only if it never counts as a retry it does not go there.
WORDS = {"retry": {"maxRetries": 0, "deadLetter": "dead"}, "continue": {}, "abort": {}}
# Long enough for nobody to lose the cluster itself, which would answer with errors of its own.
NODE_TIMEOUT = ("--cluster-node-timeout", "15000")


class Held:
    """A registration for streams of one shard, whose batches wait in a step."""

    def __init__(self, server, wire, policy, **words):
        self.wire, self.tag = wire, own_tag(server)
        words = {"onFailedPolicy": policy, **WORDS[policy], **words}
        register(wire, HELD % {"tag": self.tag} + script("map(held)", f"s{{{self.tag}}}*", **words))

    def key(self, name):
        return f"{name}{{{self.tag}}}"

    def add(self, *ids, to=""):
        add(self.wire, self.key("s") + to, *ids)

    def begun(self):
        return seen(self.wire, self.key("begun"))

    def wait_begun(self, count):
        wait_until(lambda: len(self.begun()) >= count, f"{count} beginnings")

    def go(self):
        self.wire.ok("SET", self.key("go"), "1")

    def wait_over(self, wanted):
        """Returns when these have been handled, each at least once and in this order, and nothing is left."""
        wait_length(self.wire, self.key("s"), 0)
        assert list(dict.fromkeys(seen(self.wire, self.key("seen")))) == wanted
        wait_status(self.wire, "OK")
        assert data(self.wire)["lastError"] is None
        assert self.wire.ok("EXISTS", f"dead{self.key('s')}", self.key("dead")) == 0


def move(cluster, slot, source, target):
    """Returns when all shards have taken notice of the new owner."""
    cluster.move_slots([slot], source, target)
    cluster.wait_cluster_ok()
    for server in cluster.servers:
        assert server.command("RG.REFRESHCLUSTER") == b"OK"


@contextlib.contextmanager
def another_owner(cluster, source, target):
    """An empty slot of one shard is another's; in the end it is back."""
    rows = source.command("CLUSTER", "SLOTS")
    slot = next(first for first, _, owner, *_ in rows if owner[1] == source.port)
    assert source.command("CLUSTER", "COUNTKEYSINSLOT", slot) == 0
    move(cluster, slot, source, target)
    try:
        yield
    finally:
        move(cluster, slot, target, source)


@POLICY
def test_a_batch_that_lost_its_cluster_waits_as_one_that_failed_does(cluster, wires, policy):
    wire, (home, source, target) = wires[0], cluster.servers
    held = Held(home, wire, policy, onFailedRetryInterval=1000)
    held.add("1-1", "1-2")
    held.wait_begun(1)
    with another_owner(cluster, source, target):
        wait_status(wire, "WAITING_FOR_RETRY_ON_FAILURE")
        assert counters(wire)[2:] == (1, 0) and b"slots" in data(wire)["lastError"]
    # What comes does not wake it.
    held.add("1-3")
    assert held.begun() == ["1-1"] and wire.ok("XLEN", held.key("s")) == 3
    assert status(wire) == "WAITING_FOR_RETRY_ON_FAILURE"
    held.go()
    assert wire.call("RG.UNPAUSEREGISTRATIONS", only_id(wire)) == OK
    held.wait_over(["1-1", "1-2", "1-3"])
    assert held.begun() == ["1-1", "1-1", "1-2", "1-3"] and counters(wire)[2:] == (1, 0)


@POLICY
def test_it_is_tried_again_by_itself_and_one_that_a_user_ends_is_not(cluster, wires, policy):
    wire, (home, source, target) = wires[0], cluster.servers
    held = Held(home, wire, policy, onFailedRetryInterval=0)
    held.add("1-1")
    held.wait_begun(1)
    (execution,) = (one for one, row in executions_of(wire).items() if row == (b"running", 1))
    assert wire.call("RG.ABORTEXECUTION", execution) == OK
    wait_until(lambda: counters(wire)[2:] == (0, 1), "its being counted")
    # Other streams go on.
    held.add("2-1", to="2")
    held.wait_begun(2)
    with another_owner(cluster, source, target):
        held.wait_begun(3)
    assert set(held.begun()[1:]) == {"2-1"} and counters(wire)[2] >= 1 and status(wire) == "OK"
    held.go()
    wait_length(wire, held.key("s") + "2", 0)
    assert wire.ok("XLEN", held.key("s")) == 1
    held.add("1-2")
    held.wait_over(["2-1", "1-1", "1-2"])
    assert counters(wire)[3] == 1


@pytest.fixture(scope="module")
def other_cluster():
    with running_cluster(server_args=NODE_TIMEOUT) as found:
        yield found


@pytest.fixture
def breakable(other_cluster):
    """A cluster whose shards may be away; in the end they are back."""
    wait_group(other_cluster.servers)
    yield other_cluster
    for server in other_cluster.servers:
        if server.paused():
            server.resume()
        if not server.alive():
            server.start()
    other_cluster.wait_cluster_ok()
    other_cluster.wait_mesh()
    clear(other_cluster.servers)
    leave_nothing(other_cluster.servers)
    for server in other_cluster.servers:
        server.command("FLUSHALL")


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_it_is_tried_again_when_another_shard_is_back(breakable, how):
    home, lost, _ = breakable.servers
    with Wire(home.port) as wire:
        held = Held(home, wire, "continue", onFailedRetryInterval=1)
        held.add("1-1", "1-2")
        held.wait_begun(1)
        lost.kill() if how == "killed" else lost.pause()
        wait_until(lambda: counters(wire)[2] >= 1, "the loss")
        held.go()
        assert wire.ok("XLEN", held.key("s")) == 2
        lost.start() if how == "killed" else lost.resume()
        held.wait_over(["1-1", "1-2"])
        assert counters(wire)[3] == 0
