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
            found.append(sum(begin + margin < moment < end - margin for moment in list(self.answered)))
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


# Of each transaction: calls in a handler, and streams. That takes less than the 5 ms after which the interpreter goes
# to a thread that wants it, whatever has the server lock.
CALLS = [("log('a') or print('b')", 5, 20), ("hashtag()", 300, 30), ("configGet('MaxExecutions')", 300, 30)]


@pytest.mark.parametrize(("call", "calls", "streams"), CALLS, ids=["log and print", "hashtag", "configGet"])
def test_who_calls_us_with_the_server_lock_does_not_wait_for_the_interpreter(server, wire, call, calls, streams):
    step = f"[{call} for _ in range({calls})]"
    register(wire, f"GB('StreamReader').foreach(lambda x: {step}).register('s*', mode='sync', trimStream=False)")
    # So that what is waited for on purpose does not count.
    wire.ok("RG.CONFIGSET", "InterpreterMaxWaitTime", 1)
    with Pings(server) as pings, Transactions(server, streams), Transactions(server, streams):
        keep(wire, 10, pulse_ms=100, gap_ms=40)
        found = pings.within(over(wire, 10))
    # At first nobody knows of it. Once the machine itself may have been busy.
    assert found[1:].count(0) < 2, f"answers in each pulse: {found}"


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
