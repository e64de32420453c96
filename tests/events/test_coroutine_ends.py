"""Coroutines end with their execution, wherever they are and whatever they swallow, and let others run meanwhile."""

import pytest
from registrations import by_trigger, register
from replies import pair, wait_until
from streams import counters, data, wait_counters, wait_length
from wire import Error, Simple, Wire

pytestmark = pytest.mark.matrix

OK = Simple("OK")

# --- aborts ---------------------------------------------------------------------------------------------------------

ABORTS = 60
AT_ONCE = 900
MANY = f"""
import asyncio
async def endless(x):
    execute('incr', 'begun')
    while True:
        await asyncio.sleep(0.01)
        execute('incr', 'steps')
GB('PythonReader').map(endless).run(lambda: iter(range({AT_ONCE})))
"""
# Tasks of such coroutines, counted on the loop.
ON_THE_LOOP = """
import asyncio
async def f(x):
    await asyncio.sleep(0.03)
    return sum(task.get_coro().__name__ == 'endless' for task in asyncio.all_tasks())
GB('ShardsIDReader').map(f).run()
"""


def on_the_loop(wire):
    (found,), errors = pair(wire.ok("RG.PYEXECUTE", ON_THE_LOOP))
    assert errors == []
    return int(found)


def wait_nothing_left(wire, key):
    """No such coroutine is on the loop, and what they count stands still."""
    wait_until(lambda: on_the_loop(wire) == 0, "the tasks being gone")
    before = wire.ok("GET", key)
    for _ in range(5):
        assert on_the_loop(wire) == 0
    assert wire.ok("GET", key) == before


def test_an_abort_while_coroutines_are_being_started(wire):
    for number in range(ABORTS):
        wire.ok("SET", "begun", 0)
        execution = wire.ok("RG.PYEXECUTE", MANY, "UNBLOCKING")
        begun = AT_ONCE * number // ABORTS // 2
        wait_until(lambda begun=begun: int(wire.ok("GET", "begun")) >= begun, "some having begun")
        assert wire.ok("RG.ABORTEXECUTION", execution) == OK
        assert wire.ok("RG.DROPEXECUTION", execution) == OK
    wait_nothing_left(wire, "steps")


SWALLOWS = """
import asyncio
async def endless(x):
    while True:
        try:
            execute('incr', 'steps')
            await asyncio.sleep(0.01)
        except GeneratorExit:
            raise
        except {kind} as error:
            execute('rpush', 'caught', type(error).__name__)
"""
CANCELLED, STOPPED = b"CancelledError", b"forcestopped"
STOPPED_AT_MOST = 100
KINDS = pytest.mark.parametrize(
    ("kind", "stops"),
    [
        ("asyncio.CancelledError", 0),
        ("(asyncio.CancelledError, Exception)", STOPPED_AT_MOST),
        ("BaseException", STOPPED_AT_MOST),
    ],
)


def wait_stopped(wire, stops):
    wait_nothing_left(wire, "steps")
    # It is on the loop no more while it is being stopped.
    wait_until(lambda: wire.ok("LLEN", "caught") >= stops, "its being given up")
    wait_nothing_left(wire, "steps")
    caught = wire.ok("LRANGE", "caught", 0, -1)
    # A step of its own may come before the loop learns that it is to be cancelled.
    # One that runs just then is stopped once more, before that or after.
    if CANCELLED in caught[:2]:
        caught.remove(CANCELLED)
    assert set(caught) <= {STOPPED} and len(caught) - stops in ((0, 1) if stops else (0,)), caught


@KINDS
def test_who_swallows_the_end_of_a_run(wire, kind, stops):
    program = SWALLOWS.format(kind=kind) + "GB('ShardsIDReader').map(endless).run()"
    execution = wire.ok("RG.PYEXECUTE", program, "UNBLOCKING")
    wait_until(lambda: int(wire.ok("GET", "steps") or 0) > 5, "some steps")
    assert wire.ok("RG.ABORTEXECUTION", execution) == OK
    wait_stopped(wire, stops)


@KINDS
@pytest.mark.parametrize("mode", ["sync", "async_local", "async"])
def test_who_swallows_the_end_of_a_triggered_execution(wire, other_wire, mode, kind, stops):
    register(
        wire, SWALLOWS.format(kind=kind) + f"GB('CommandReader').map(endless).register(trigger='t', mode={mode!r})"
    )
    other_wire.send("RG.TRIGGER", "t")
    wait_until(lambda: int(wire.ok("GET", "steps") or 0) > 5, "some steps")
    ((_, execution, *_),) = wire.ok("RG.DUMPEXECUTIONS")
    assert wire.ok("RG.ABORTEXECUTION", execution) == OK
    assert other_wire.read() == Error("ERR the execution was aborted")
    wait_stopped(wire, stops)
    assert by_trigger(wire, "t").counters == (1, 0, 0, 1)


def test_who_swallows_its_collection_too_keeps_nobody_from_running(fresh):
    program = """
import asyncio
async def endless(x):
    execute('incr', 'begun')
    while True:
        try:
            await asyncio.sleep(0.01)
        except BaseException as error:
            pass
GB('ShardsIDReader').map(endless).run()
"""
    with Wire(fresh().port) as wire:
        execution = wire.ok("RG.PYEXECUTE", program, "UNBLOCKING")
        wait_until(lambda: wire.ok("GET", "begun") == b"1", "it having begun")
        assert wire.ok("RG.ABORTEXECUTION", execution) == OK
        for _ in range(20):
            wire.ok("RG.PYEXECUTE", "import gc\ngc.collect()", timeout=10)
            assert pair(wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').count().run()", timeout=10)) == ([b"1"], [])
        assert on_the_loop(wire) == 0


# --- atomic batches -------------------------------------------------------------------------------------------------

REFUSED = "runCoroutine() can not be part of an atomic batch, nothing of it was done"


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_a_coroutine_can_not_be_started_in_an_atomic_batch(wire, mode):
    steps = "foreach(lambda x: execute('incr', 'queued')).foreach(lambda x: runCoroutine(note(x)))"
    text = f"async def note(x): execute('incr', 'noted')\nGB('StreamReader').{steps}"
    register(wire, f"{text}.register('s*', mode={mode!r}, atomicBatch=True)")
    wire.ok("XADD", "s1", "1-1", "f", "v")
    wait_counters(wire, (2, 1, 1, 0))
    assert f"ERR {REFUSED}" in data(wire)["lastError"].decode()
    wait_length(wire, "s1", 0)
    assert on_the_loop(wire) == 0
    assert wire.ok("MGET", "queued", "noted") == [None, None]


def test_a_batch_that_is_retried_starts_no_coroutine(wire):
    text = f"""
async def note(): execute('incr', 'noted')
def step(x):
    execute('incr', 'queued')
    try:
        runCoroutine(note())
    except Exception as error:
        assert str(error).endswith({REFUSED!r}), str(error)
        execute('rpush', 'told', 'refused')
    if not execute('exists', 'good'):
        raise ValueError('again')
GB('StreamReader').foreach(step).register(
    's*', mode='async_local', atomicBatch=True, onFailedPolicy='retry', onFailedRetryInterval=0)
"""
    register(wire, text)
    wire.ok("XADD", "s1", "1-1", "f", "v")
    wait_until(lambda: counters(wire)[2] >= 3, "some retries")
    wire.ok("SET", "good", "1")
    wait_length(wire, "s1", 0)
    assert on_the_loop(wire) == 0
    assert wire.ok("MGET", "queued", "noted") == [b"1", None]
    assert wire.ok("LRANGE", "told", 0, -1) == [b"refused"]


# --- results of runs ------------------------------------------------------------------------------------------------


def test_other_coroutines_run_while_results_are_decoded(wires):
    """Each record of another shard notes when it was decoded: in which turn of another coroutine."""
    program = """
import asyncio
turns = 0

def note(number):
    return number, turns

class Record:
    def __init__(self, number):
        self.number = number
    def __reduce__(self):
        return note, (self.number,)

async def count():
    global turns
    while True:
        turns += 1
        await asyncio.sleep(0)

async def f(x):
    counting = asyncio.create_task(count())
    found, errors = await GB('PythonReader').run(lambda: map(Record, range(20000)), convertToStr=False)
    counting.cancel()
    noted = [one for one in found if type(one) is tuple]
    numbers = sorted(number for number, _ in noted)
    return [len(found), numbers == [n // 2 for n in range(40000)], errors, len({turn for _, turn in noted})]
GB('CommandReader').map(f).register(trigger='t', mode='async_local')
"""
    register(wires[0], program)
    (text,) = wires[0].ok("RG.TRIGGER", "t")
    found, complete, errors, turns = eval(text)
    assert (found, complete, errors) == (60000, True, [])
    assert turns > 10
