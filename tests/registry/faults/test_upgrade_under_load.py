"""UPGRADE while clients trigger on every shard: each shard switches at one moment, and nobody gets an error."""

import contextlib

import pytest
from breaking import HEAL_S
from registrations import register, trigger, wait_equal, wait_group
from repeating import Repeating
from replies import wait_until
from wire import Error, Simple, Wire

UPGRADES = 40
B = "GB('CommandReader')"


def version(number, mode):
    """Two triggers of one session: they are of the same version at any moment."""
    return f"""
mine = {number}
{B}.map(lambda x: mine).register(trigger='first', mode={mode!r}, convertToStr=False)
{B}.map(lambda x: mine).register(trigger='second', mode={mode!r}, convertToStr=False)
"""


class Caller(Repeating):
    """A client that triggers without pause and checks what it gets."""

    def __init__(self, server, ask):
        super().__init__(server)
        self.ask, self.newest = ask, 0

    def step(self, wire):
        found = self.ask(wire)
        assert found >= self.newest, f"version {found} after version {self.newest}"
        self.newest = found
        self.count += 1


def one_by_one(wire):
    """Two commands: the second may be of a newer version, never of an older one."""
    (first,), (second,) = trigger(wire, "first"), trigger(wire, "second")
    assert first <= second
    return second


def started(wire, name):
    """An upgrade aborts executions that have not begun, and says so; whoever asks again gets an answer."""
    while True:
        reply = trigger(wire, name)
        if not (isinstance(reply, Error) and "abort" in reply.text.lower()):
            return reply


def one_by_one_in_the_background(wire):
    (first,), (second,) = started(wire, "first"), started(wire, "second")
    assert first <= second
    return second


def in_a_transaction(wire):
    """Both triggers at one moment; a client that is told that the interpreter is busy asks again."""
    while (version := one_transaction(wire)) is None:
        pass
    return version


def one_transaction(wire):
    for words in (["MULTI"], ["RG.TRIGGER", "first"], ["RG.TRIGGER", "second"]):
        wire.send(*words)
    wire.send("EXEC")
    for _ in range(3):
        assert isinstance(wire.read(), Simple)
    replies = wire.read()
    if any(isinstance(reply, Error) and "interpreter is busy" in reply.text for reply in replies):
        return None
    assert not any(isinstance(reply, Error) for reply in replies), replies
    (first,), (second,) = replies
    assert first == second, f"versions {first} and {second} answer at the same moment"
    return first


def by_all_shards(wire):
    """An execution on all shards may begin before and end after the switch, and has one version on each."""
    found = started(wire, "first")
    assert isinstance(found, list) and len(found) == 3, found
    assert len(set(found)) == 1, f"shards ran different versions of one execution: {found}"
    return found[0]


@pytest.mark.parametrize(
    ("mode", "ask"),
    [
        ("sync", one_by_one),
        ("sync", in_a_transaction),
        ("async_local", one_by_one_in_the_background),
        ("async", by_all_shards),
    ],
)
def test_upgrades_under_load(trio, mode, ask):
    with Wire(trio.servers[0].port) as wire:
        register(wire, version(1, mode), "ID", "s")
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Caller(server, ask)) for server in trio.servers for _ in range(3)]
        for number in range(2, UPGRADES + 2):
            counts = [caller.count for caller in callers]
            wait_until(
                lambda counts=counts: all(c.count > n or c.broken for c, n in zip(callers, counts, strict=True)),
                "every client getting an answer",
                HEAL_S,
            )
            with Wire(trio.servers[number % 3].port) as wire:
                register(wire, version(number, mode), "ID", "s", "UPGRADE")
            # OK means: from now on the new one answers everywhere.
            for server in trio.servers:
                with Wire(server.port) as wire:
                    assert ask(wire) == number
    wait_group(trio.servers)
    assert len(wait_equal(trio.servers)[0]) == 2


def test_replacing_back_and_forth_under_load(trio):
    """Two session names take turns for the same triggers."""
    with Wire(trio.servers[0].port) as wire:
        register(wire, version(1, "sync"), "ID", "s1")
    with contextlib.ExitStack() as stack:
        for server in trio.servers:
            stack.enter_context(Caller(server, in_a_transaction))
        for number in range(2, 22):
            with Wire(trio.servers[number % 3].port) as wire:
                register(wire, version(number, "sync"), "ID", f"s{number}", "REPLACE_WITH", f"s{number - 1}")
    registrations, sessions = wait_equal(trio.servers)
    assert len(registrations) == 2 and [row[0] for row in sessions] == [b"s21"]
