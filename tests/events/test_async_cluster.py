"""Coroutines in executions of a cluster: before and behind shuffles, aborted while they wait, with the idle limit."""

import time

import pytest
from registrations import register
from replies import FINISHED, executions, pair, wait_until
from wire import Error, Simple, Wire

HEAD = """import asyncio
def later(f, delay=0.01):
    async def step(*args):
        await asyncio.sleep(delay)
        return f(*args)
    return step
"""


def run(wire, program):
    results, errors = wire.ok("RG.PYEXECUTE", HEAD + program)
    assert errors == []
    return results


@pytest.fixture
def keys(cluster, wires):
    for n in range(30):
        with cluster.owner(f"k{n}").client() as client:
            client.set(f"k{n}", n)
    return wires


@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        ("map(later(lambda r: int(r['value']))).sort()", [b"%d" % n for n in range(30)]),
        ("map(lambda r: int(r['value'])).repartition(lambda x: str(x)).map(later(lambda x: x)).sort()", None),
        (
            "map(later(lambda r: int(r['value']))).repartition(lambda x: str(x)).filter(later(lambda x: x % 2))"
            ".map(later(lambda x: x)).collect().map(later(lambda x: x))"
            ".accumulate(later(lambda a, x: (a or 0) + x, 0))",
            [b"225"],
        ),
        (
            "groupby(lambda r: int(r['value']) % 3, later(lambda k, a, r: (a or 0) + int(r['value']), 0.001))"
            ".map(lambda r: (r['key'], r['value'])).sort()",
            [b"('0', 135)", b"('1', 145)", b"('2', 155)"],
        ),
        (
            "map(later(lambda r: int(r['value']))).aggregate(0, later(lambda a, x: a + x, 0), lambda a, b: a + b)",
            [b"435"],
        ),
        ("flatmap(later(lambda r: [r['key'], r['key']])).count()", [b"60"]),
    ],
    ids=["before", "behind", "everywhere", "groupby", "aggregate", "flatmap"],
)
def test_steps_wait_wherever_they_are(keys, program, wanted):
    assert run(keys[1], f"GB().{program}.run('k*')") == (wanted or [b"%d" % n for n in range(30)])


def test_errors_of_all_shards_come_bare(keys):
    program = f"{HEAD}async def f(x): raise ValueError('no ' + x)\nGB('ShardsIDReader').map(f).run()"
    results, errors = keys[0].ok("RG.PYEXECUTE", program)
    assert results == [] and len(errors) == 3
    assert all(error.startswith(b"no ") for error in errors)


def test_runs_over_the_cluster_are_awaited(keys):
    program = """async def f(x):
    pair = await GB().count().run('k*', convertToStr=False)
    return pair
GB('ShardsIDReader').map(f).run()"""
    assert run(keys[2], program) == [b"[[30], []]"] * 3


def test_the_idle_limit_does_not_count(keys):
    """On no shard: neither where records wait nor where the others wait for that shard."""
    (before,) = keys[0].ok("RG.CONFIGGET", "ExecutionMaxIdleTime")
    for wire in keys:
        assert wire.ok("RG.CONFIGSET", "ExecutionMaxIdleTime", 300) == [Simple("OK")]
    try:
        wait = "lambda x: later(lambda x: x, 1.5)(x) if hashtag() == HERE else x"
        program = f"HERE = hashtag()\nGB('ShardsIDReader').map({wait})"
        for steps in ("", ".repartition(lambda x: x).map(later(lambda x: x, 1.5))"):
            assert len(run(keys[0], f"{program}{steps}.run()")) == 3
    finally:
        for wire in keys:
            wire.ok("RG.CONFIGSET", "ExecutionMaxIdleTime", before)


@pytest.mark.parametrize("everywhere", [False, True])
def test_an_abort_cancels_on_all_shards(keys, cluster, everywhere):
    condition = "True" if everywhere else "hashtag() == HERE"
    program = f"""{HEAD}HERE = hashtag()
async def f(x):
    execute('incr', 'begun{{%s}}' % hashtag())
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        execute('incr', 'cancelled{{%s}}' % hashtag())
        raise
GB('ShardsIDReader').map(lambda x: f(x) if {condition} else x).run()"""
    execution = keys[0].ok("RG.PYEXECUTE", program, "UNBLOCKING")

    def count(what):
        total = 0
        for wire in keys:
            names = [name for name in wire.ok("KEYS", what + "*")]
            total += sum(int(wire.ok("GET", name)) for name in names)
        return total

    wanted = 3 if everywhere else 1
    wait_until(lambda: count("begun") == wanted, "the coroutines")
    start = time.monotonic()
    keys[0].ok("RG.ABORTEXECUTION", execution)
    wait_until(lambda: count("cancelled") == wanted, "their end")
    assert time.monotonic() - start < 60
    keys[0].ok("RG.DROPEXECUTION", execution)


WAIT = """async def wait(x):
    execute('incr', 'begun{%s}' % hashtag())
    await asyncio.sleep(1000)
"""


def triggered(wire):
    return [row[1] for row in wire.ok("RG.DUMPEXECUTIONS")]


def begun(wires):
    return [sum(int(wire.ok("GET", name)) for name in wire.ok("KEYS", "begun*")) for wire in wires]


@pytest.mark.matrix
@pytest.mark.parametrize("asked", [0, 1])
def test_an_abort_of_a_trigger_that_waits(cluster, wires, asked):
    """Each shard drops its part as it ends, and has known the execution all the same."""
    register(wires[0], f"{HEAD}{WAIT}GB('CommandReader').map(wait).register(trigger='wait', mode='async')")
    with Wire(cluster.masters()[0].port) as client:
        for turn in range(1, 13):
            client.send("RG.TRIGGER", "wait")
            wait_until(lambda turn=turn: begun(wires) == [turn] * 3, "it waiting everywhere")
            (execution,) = triggered(wires[0])
            assert wires[asked].call("RG.ABORTEXECUTION", execution) == Simple("OK")
            assert isinstance(client.read(), Error)
            wait_until(lambda: not any(triggered(wire) for wire in wires), "its end everywhere")


@pytest.mark.matrix
def test_an_abort_of_a_trigger_that_has_not_begun(cluster, wires):
    """No other shard has heard of it."""
    step = "GB('CommandReader').map(wait).register(trigger='wait', mode='async', inorder=True)"
    register(wires[0], f"{HEAD}{WAIT}{step}")
    with Wire(cluster.masters()[0].port) as first, Wire(cluster.masters()[0].port) as second:
        first.send("RG.TRIGGER", "wait")
        wait_until(lambda: begun(wires) == [1] * 3, "the first one waiting")
        (running,) = triggered(wires[0])
        second.send("RG.TRIGGER", "wait")
        wait_until(lambda: len(triggered(wires[0])) == 2, "the second one")
        (queued,) = set(triggered(wires[0])) - {running}
        assert wires[0].call("RG.ABORTEXECUTION", queued) == Simple("OK")
        assert second.read() == Error("ERR the execution was aborted")
        assert wires[0].call("RG.ABORTEXECUTION", running) == Simple("OK")
        assert first.read() == Error("ERR the execution was aborted")
    assert begun(wires) == [1] * 3


def test_a_lost_shard_ends_what_waits(keys, cluster):
    """The initiator is told of a shard that is gone while records of others wait. Last: it takes the shard's data."""
    wait = "lambda x: later(lambda x: x, 1000)(x) if hashtag() != HERE else x"
    # Nobody waits for it: a client that does is let go by the server itself if that sees the loss first.
    program = f"{HEAD}HERE = hashtag()\nGB('ShardsIDReader').map({wait}).run()"
    execution = keys[0].ok("RG.PYEXECUTE", program, "UNBLOCKING")
    time.sleep(0.5)
    assert executions(keys[0])[execution] not in FINISHED
    # A broken link, without harm to the fixture: the peer's process stands still for longer than its silence may last.
    cluster.servers[1].pause()
    try:
        wait_until(lambda: executions(keys[0])[execution] in FINISHED, "the end of the execution")
        results, errors = pair(keys[0].ok("RG.GETRESULTS", execution))
        assert len(results) <= 3
        assert any("was lost" in error for error in errors), errors
    finally:
        cluster.servers[1].resume()
        for wire in keys:
            wait_until(lambda wire=wire: b"cluster_state:ok" in wire.ok("CLUSTER", "INFO"), "the cluster being whole")
        cluster.wait_mesh()


def test_triggers_of_mode_async(keys):
    register(
        keys[0],
        HEAD + "GB('CommandReader').map(later(lambda x: x[1] + hashtag())).count().map(later(lambda x: x, 0.05))"
        ".register(trigger='count', mode='async')",
    )
    for wire in keys:
        wait_until(
            lambda wire=wire: not isinstance(wire.call("RG.TRIGGER", "count", "x"), Error), "the trigger everywhere"
        )
        assert wire.ok("RG.TRIGGER", "count", "x") == [b"3"]
