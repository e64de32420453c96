"""Batches of mode `async` that end because a shard is gone or slots have other owners: they are tried again."""

import contextlib

import pytest
from breaking import HEAL_S, heal, running_cluster
from registrations import clear, wait_group
from replies import executions_of, own_tag, wait_until
from streams import add, counters, data, only_id, register, script, seen, status, wait_length, wait_status
from wire import Simple, Wire

OK = Simple("OK")
# Waits for the key `go`. One that is not the last to have begun was given up meanwhile, and does nothing any more.
HELD = """
import time
def held(x):
    number = execute('rpush', 'begun{%(tag)s}', x['id'])
    while execute('llen', 'begun{%(tag)s}') == number and not execute('exists', 'go{%(tag)s}'):
        time.sleep(0.005)
    if execute('llen', 'begun{%(tag)s}') == number:
        execute('rpush', 'seen{%(tag)s}', x['id'])
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
        register(wire, HELD % {"tag": self.tag} + script("foreach(held)", f"s{{{self.tag}}}*", **words))

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


@contextlib.contextmanager
def another_owner(cluster, source, target):
    """An empty slot of one shard is another's; in the end it is back."""
    rows = source.command("CLUSTER", "SLOTS")
    slot = next(first for first, _, owner, *_ in rows if owner[1] == source.port)
    assert source.command("CLUSTER", "COUNTKEYSINSLOT", slot) == 0
    cluster.move_slots([slot], source, target)
    try:
        yield
    finally:
        cluster.move_slots([slot], target, source)
        cluster.wait_cluster_ok()


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
def test_it_is_tried_again_by_itself_and_one_that_a_user_ended_is_not(cluster, wires, policy):
    wire, (home, source, target) = wires[0], cluster.servers
    held = Held(home, wire, policy, onFailedRetryInterval=0)
    held.add("1-1")
    held.wait_begun(1)
    with another_owner(cluster, source, target):
        held.wait_begun(2)
    wait_until(lambda: len(held.begun()) == 1 + counters(wire)[2], "the last try")
    (execution,) = (one for one, row in executions_of(wire).items() if row == (b"running", 1))
    before = len(held.begun())
    assert wire.call("RG.ABORTEXECUTION", execution) == OK
    wait_until(lambda: counters(wire)[3] == 1, "its being counted")
    assert status(wire) == "OK"
    # Others go on.
    held.go()
    held.add("2-1", to="2")
    wait_length(wire, held.key("s") + "2", 0)
    assert held.begun()[before:] == ["2-1"] and wire.ok("XLEN", held.key("s")) == 1
    held.add("1-2")
    held.wait_over(["2-1", "1-1", "1-2"])
    assert set(held.begun()[:before]) == {"1-1"}


@pytest.fixture(scope="module")
def breakable():
    with running_cluster(server_args=NODE_TIMEOUT) as cluster:
        wait_group(cluster.servers)
        yield cluster


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_batch_is_tried_again_when_another_shard_is_back(breakable, how):
    home, lost, _ = breakable.servers
    with Wire(home.port) as wire:
        held = Held(home, wire, "continue", onFailedRetryInterval=1)
        held.add("1-1", "1-2")
        held.wait_begun(1)
        lost.pause() if how == "stopped" else lost.kill()
        wait_until(lambda: counters(wire)[2] >= 1, "the loss")
        held.go()
        lost.resume() if how == "stopped" else lost.start()
        held.wait_over(["1-1", "1-2"])
        assert counters(wire)[3] == 0
