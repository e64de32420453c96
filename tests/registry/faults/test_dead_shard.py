"""What is fired while one shard has been dead for long: each of many has its error without waiting for the others."""

import contextlib

import pytest
from breaking import EVERYWHERE, expect_loss
from firing import counters, data
from registrations import register, status_of, trigger, wait_applied
from repeating import Repeating
from replies import own_tag, wait_until
from wire import Simple, Wire

FIRED = """
GB('CommandReader').register(trigger='t', mode='async')
GB().foreach(lambda x: None).register('k{%s}*', eventTypes=['set'], mode='async')
"""
TRIGGERS, EVENTS = 300, 500
# Executions that another shard ends meanwhile, one after the other. They are as hopeless as those that are looked at,
# and only a few if those wait at the same time: half as many as those, at least, if each waits for its turn.
FEW = 50


class OneByOne(Repeating):
    """Counts executions that a server ends, one after the other."""

    def __init__(self, server, victim):
        super().__init__(server)
        self.victim = victim

    def step(self, wire):
        expect_loss(wire.call("RG.PYEXECUTE", EVERYWHERE), self.victim)
        self.count += 1


@pytest.fixture
def lost(trio):
    """A shard that is alive, a tag of it, another one, and the dead one: the loss is old."""
    alive, other, victim = trio.servers
    tag = own_tag(alive)
    with Wire(alive.port) as wire:
        register(wire, FIRED % tag)
    wait_applied(trio.servers, status_of(alive)["applied"])
    victim.kill()
    for server in (alive, other) * 2:
        with Wire(server.port) as wire:
            expect_loss(wire.call("RG.PYEXECUTE", EVERYWHERE), victim)
    return alive, tag, other, victim


def test_many_triggers_at_once(lost):
    alive, _, other, victim = lost
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Wire(alive.port)) for _ in range(TRIGGERS)]
        with OneByOne(other, victim) as meanwhile:
            wait_until(lambda: meanwhile.count, "the first of the others")
            before = meanwhile.count
            for client in clients:
                client.send("RG.TRIGGER", "t", "x")
            replies = [client.read() for client in clients]
            passed = meanwhile.count - before
        for reply in replies:
            expect_loss(reply, victim)
        assert passed < FEW
        # The shard has not had enough of it.
        expect_loss(trigger(clients[0], "t", "x"), victim)


def test_many_events_at_once(lost):
    alive, tag, other, victim = lost
    with Wire(alive.port) as wire, OneByOne(other, victim) as meanwhile:
        wait_until(lambda: meanwhile.count, "the first of the others")
        before = meanwhile.count
        for number in range(EVENTS):
            wire.send("SET", f"k{{{tag}}}{number}", "v")
        assert [wire.read() for _ in range(EVENTS)] == [Simple("OK")] * EVENTS
        # It is behind all of them.
        expect_loss(wire.call("RG.PYEXECUTE", EVERYWHERE), victim)
        wait_until(lambda: counters(wire, 1) == (EVENTS, 0, EVENTS, 0), "the events being over")
        assert meanwhile.count - before < FEW
        assert victim.node_id.encode() in data(wire, 1)["lastError"]
        wire.ok("FLUSHALL")
