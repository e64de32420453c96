"""A thread of a script keeps the interpreter in C code for long: the server goes on meanwhile."""

import time

import pytest
from registrations import register
from repeating import Repeating
from replies import wait_until
from wire import Error, Simple

pytestmark = pytest.mark.matrix

# In pulses. When each one began and ended is told behind the last one, by the clock of this machine.
KEEP = """
import ctypes, threading, time
def keep():
    libc, told = ctypes.PyDLL(None), []
    for _ in range(%(pulses)d):
        time.sleep(%(gap_ms)d / 1000)
        begin = time.monotonic()
        libc.usleep(%(pulse_ms)d * 1000)
        told += [begin, time.monotonic()]
    execute('rpush', 'told', *map(repr, told))
threading.Thread(target=keep).start()
"""


def keep(wire, pulses, pulse_ms, gap_ms):
    register(wire, KEEP % {"pulses": pulses, "pulse_ms": pulse_ms, "gap_ms": gap_ms})


def over(wire, pulses):
    """Begin and end of each pulse, when all are over."""
    wait_until(lambda: wire.ok("LLEN", "told") == 2 * pulses, "the last pulse")
    told = [float(moment) for moment in wire.ok("LRANGE", "told", 0, -1)]
    wire.ok("DEL", "told")
    return list(zip(told[::2], told[1::2], strict=True))


class Pings(Repeating):
    """Notes when each was answered."""

    def __init__(self, server):
        super().__init__(server)
        self.answered = []

    def step(self, wire):
        assert wire.call("PING") == Simple("PONG")
        self.answered.append(time.monotonic())
        time.sleep(0.001)

    def within(self, pulses):
        """How many answers came in the middle of each pulse."""
        found = []
        for begin, end in pulses:
            margin = (end - begin) / 8
            found.append(sum(begin + margin < moment < end - margin for moment in self.answered))
        return found


class Transactions(Repeating):
    """Each adds to many streams."""

    def __init__(self, server, streams):
        super().__init__(server)
        self.streams = streams

    def step(self, wire):
        wire.send("MULTI")
        for number in range(self.streams):
            wire.send("XADD", f"s{number}", "MAXLEN", "1", "*", "f", "v")
        wire.send("EXEC")
        for _ in range(self.streams + 2):
            wire.read()


def answers(server, wire, step, streams, pulses, **words):
    """How many clients are served in each pulse while a handler of mode `sync` is fired again and again."""
    # So that what waits as long as it may is not what is looked at.
    wire.ok("RG.CONFIGSET", "InterpreterMaxWaitTime", 1)
    register(wire, f"GB('StreamReader').foreach(lambda x: {step}).register('s*', mode='sync', trimStream=False)")
    with Pings(server) as pings, Transactions(server, streams), Transactions(server, streams):
        keep(wire, pulses, **words)
        found = over(wire, pulses)
    return pings.within(found)


@pytest.mark.parametrize("call", ["log('a') or print('b')", "hashtag()", "configGet('MaxExecutions')"])
def test_who_calls_us_with_the_server_lock_does_not_wait_for_the_interpreter(server, wire, call):
    found = answers(server, wire, f"[{call} for _ in range(20)]", 100, 6, pulse_ms=150, gap_ms=50)
    assert min(found[1:]) > 5, found


def test_who_has_the_server_lock_does_not_wait_for_the_interpreter(server, wire):
    """That it was there a moment ago does not mean that it is there now."""
    found = answers(server, wire, "None", 300, 20, pulse_ms=100, gap_ms=30)
    assert found[1:].count(0) < 2, found


EVAL = ("EVAL", "return redis.call('set', KEYS[1], 'v')", 1, "k1")


def scripts(wire):
    """Runs one after the other until the last pulse is over: when some were refused, and when the others were done."""
    refused, done = [], []
    while not wire.ok("LLEN", "told"):
        reply = wire.call(*EVAL)
        if isinstance(reply, Error):
            assert "interpreter is busy" in reply.text
        (refused if isinstance(reply, Error) else done).append(time.monotonic())
    return refused, done


def test_only_the_first_of_many_scripts_waits_for_who_keeps_the_interpreter(wire):
    register(wire, "GB().foreach(lambda x: None).register('k*', mode='sync', eventTypes=['set'])")
    wire.ok("RG.CONFIGSET", "InterpreterMaxWaitTime", 100)
    keep(wire, 2, pulse_ms=800, gap_ms=200)
    refused, done = scripts(wire)
    pulses = over(wire, 2)
    counts = [sum(begin < moment < end for moment in refused) for begin, end in pulses]
    assert min(counts) > 20, counts
    assert any(pulses[0][1] < moment < pulses[1][0] for moment in done), "it is to be had between the pulses"
    # Another time they wait as long as they may.
    wire.ok("RG.CONFIGSET", "InterpreterMaxWaitTime", 60_000)
    keep(wire, 1, pulse_ms=200, gap_ms=100)
    refused, done = scripts(wire)
    assert not refused and done
