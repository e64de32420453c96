"""A slow consumer slows its producers down: memory is bounded, every record counts exactly once."""

import time

import pytest
from breaking import expect_free, outcome
from replies import Gate, executions, results_of, start, wait_until
from wire import HANG_GUARD_S

RECORDS = 40_000
RECORD_BYTES = 1000
# Far more than the windows of two senders, far less than what they would like to send.
BOUND_BYTES = 40_000_000

PRODUCE = """
def src():
    for n in range(%d):
        if n %% 500 == 0:
            execute('set', 'made{%%s}' %% hashtag(), n)
        yield 'x' * %d + str(n)
"""


# Waits at the first record only; asking for the gate at each one would be what is slow.
HOLD_FIRST = """
held = []
def hold_first(x):
    if not held:
        held.append(1)
        hold(x)
"""
SLOW = "GB('PythonReader').repartition(lambda x: 'one place').foreach(hold_first).count().run(src)"


def made(wire):
    (key,) = wire.ok("KEYS", "made*") or [None]
    return int(wire.ok("GET", key)) if key else 0


def wait_stalled(wires):
    """Returns the producers' counts when they have not moved for a while."""
    seen = {"counts": None, "since": time.monotonic()}

    def stalled():
        counts = [made(wire) for wire in wires]
        if counts != seen["counts"] or not all(counts):
            seen.update(counts=counts, since=time.monotonic())
        return time.monotonic() - seen["since"] > 1.5

    wait_until(stalled, "the producers standing still")
    return seen["counts"]


@pytest.fixture
def patient(wires):
    for wire in wires:
        wire.ok("RG.CONFIGSET", "ExecutionMaxIdleTime", 120_000)
    yield
    for wire in wires:
        wire.ok("RG.CONFIGSET", "ExecutionMaxIdleTime", 5000)


def test_a_slow_consumer_holds_its_producers_back(trio, wires, patient):
    owner = trio.owner("one place")
    consumer = trio.servers.index(owner)
    gate = Gate(trio.servers)
    before = owner.rss_bytes()
    initiator = wires[(consumer + 1) % 3]
    initiator.send("RG.PYEXECUTE", gate.code + HOLD_FIRST + PRODUCE % (RECORDS, RECORD_BYTES) + SLOW)
    gate.wait_reached(owner)
    senders = [wire for i, wire in enumerate(wires) if i != consumer and wire is not initiator]
    counts = wait_stalled(senders)
    assert all(count < RECORDS / 2 for count in counts), f"nothing has held the producers back: {counts}"
    assert owner.rss_bytes() - before < BOUND_BYTES
    gate.open()
    assert results_of(initiator.read()) == [b"%d" % (3 * RECORDS)]
    expect_free(trio.servers)


def test_an_abort_reaches_producers_that_are_held_back(trio, wires, patient):
    owner = trio.owner("one place")
    consumer = trio.servers.index(owner)
    gate = Gate(trio.servers)
    initiator, other = wires[(consumer + 1) % 3], wires[(consumer + 2) % 3]
    execution = start(initiator, gate.code + HOLD_FIRST + PRODUCE % (RECORDS, RECORD_BYTES) + SLOW)
    gate.wait_reached(owner)
    wait_stalled([other])
    initiator.call("RG.ABORTEXECUTION", execution)
    for wire in wires:
        wait_until(
            lambda wire=wire: executions(wire).get(execution, b"done") in (b"done", b"aborted"), "the abort arriving"
        )
    expect_free(trio.servers)


def test_each_record_counts_once(trio, wires):
    """Many records with numbers of their own, through two shuffles; none is lost, none comes twice."""
    script = """
def src():
    me = hashtag()
    for n in range(20_000):
        yield (me, n)
def seen(k, a, x):
    a = a or [0, 0]
    return [a[0] + 1, a[1] + x[1]]
(GB('PythonReader').repartition(lambda x: x[1]).repartition(lambda x: -x[1])
    .groupby(lambda x: x[0], seen).map(lambda r: r['value']).run(src))
"""
    for _ in range(3):
        total = [20_000, sum(range(20_000))]
        assert results_of(wires[0].ok("RG.PYEXECUTE", script)) == [str(total).encode()] * 3


def test_large_records(trio, wires):
    """Records that are larger than every window."""
    script = """
def src():
    for n in range(3):
        yield (n, 'x' * 20_000_000)
GB('PythonReader').repartition(lambda x: x[0]).map(lambda x: len(x[1])).run(src)
"""
    results, errors = outcome(wires[0].call("RG.PYEXECUTE", script, timeout=HANG_GUARD_S))
    assert (results, errors) == ([b"20000000"] * 9, [])


def test_a_crowd_in_one_group(trio, wires):
    script = """
def src():
    for n in range(50_000):
        yield n
(GB('PythonReader').groupby(lambda x: 'all', lambda k, a, x: (a or 0) + 1)
    .map(lambda r: (r['key'], r['value'])).run(src))
"""
    assert results_of(wires[0].ok("RG.PYEXECUTE", script)) == [b"('all', 150000)"]


# What is left behind the limit is more than the window of any sender. With steps behind the limit and without.
LIMITED = {
    "collect().limit(5)": 5,
    "collect().limit(5).foreach(lambda x: execute('ping')).accumulate(lambda a, x: 1)": 1,
    "repartition(lambda x: 'one place').limit(5)": 5,
    "repartition(lambda x: 'one place').limit(5).map(lambda x: len(x)).repartition(lambda x: 'another')": 5,
    "repartition(lambda x: 'one place').limit(5).collect().limit(2)": 2,
}


@pytest.mark.matrix
@pytest.mark.parametrize("steps", LIMITED)
def test_a_limit_holds_no_sender_up(trio, wires, steps):
    script = f"""
def src():
    for n in range(30):
        yield 'x' * 100_000 + str(n)
GB('PythonReader').{steps}.run(src)
"""
    assert len(results_of(wires[0].ok("RG.PYEXECUTE", script))) == LIMITED[steps]
