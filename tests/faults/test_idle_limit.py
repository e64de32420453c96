"""ExecutionMaxIdleTime: how long an execution waits for another shard that lives but says nothing."""

import pytest
from breaking import expect_free, outcome
from replies import executions, own_plan, pair, results_of, wait_done, wait_until
from wire import HANG_GUARD_S, Wire

IDLE = "Execution max idle reached"
# Sleeps on one shard for longer than the limits of these tests. A sleep in C code cannot be interrupted.
SLEEP_ON = """
import time
def slow(x):
    if x == '%s':
        time.sleep(3)
    return x
GB('ShardsIDReader').map(slow).run()
"""
# As with a function that needs a large module.
SLOWLY_LOADED = """
class Big:
    def __reduce__(self):
        return (load, ())
def load():
    import time
    time.sleep(0.1)
    return 1
big = Big()
GB('ShardsIDReader').map(lambda x: big and x).count().run()
"""


def set_limit(wires, milliseconds):
    for wire in wires:
        wire.ok("RG.CONFIGSET", "ExecutionMaxIdleTime", milliseconds)


@pytest.fixture(autouse=True)
def usual_limit(wires):
    yield
    set_limit(wires, 5000)


def test_a_slow_worker(trio, wires):
    set_limit(wires, 500)
    _, errors = pair(wires[0].ok("RG.PYEXECUTE", SLEEP_ON % trio.servers[1].node_id))
    assert any(IDLE in text for text in errors), errors
    expect_free(trio.servers)


def test_status_and_log(trio, wires):
    set_limit(wires, 500)
    execution = wires[0].ok("RG.PYEXECUTE", SLEEP_ON % trio.servers[1].node_id, "UNBLOCKING")
    wait_done(wires[0], execution)
    assert executions(wires[0])[execution] == b"aborted"
    plan = own_plan(wires[0], execution)
    assert any(IDLE.encode() in text for text in plan["errors"])
    wait_until(
        lambda: f"{IDLE}, ep_id={execution.decode()}" in trio.servers[0].log(),
        "the log line that operators look for",
    )
    expect_free(trio.servers)


def test_the_initiators_own_slow_step_is_no_waiting_time(trio, wires):
    """The workers wait for the initiator: the limit is theirs, but the client must not get a part as the whole."""
    set_limit(wires, 500)
    results, errors = outcome(wires[0].call("RG.PYEXECUTE", SLEEP_ON % trio.servers[0].node_id))
    assert errors or len(results) == 3
    expect_free(trio.servers)


def test_below_the_limit(trio, wires):
    set_limit(wires, 20_000)
    assert len(results_of(wires[0].ok("RG.PYEXECUTE", SLEEP_ON % trio.servers[2].node_id))) == 3


def slow_reader(records, pause_s):
    return f"""
import time
def src():
    for i in range({records}):
        time.sleep({pause_s})
        yield i
GB('PythonReader').count().run(src)
"""


def test_a_slow_worker_that_goes_on_is_not_idle(trio, wires):
    """Each record takes less than the limit, all of them take longer."""
    set_limit(wires, 1000)
    assert results_of(wires[0].ok("RG.PYEXECUTE", slow_reader(12, 0.2))) == [b"36"]


def test_waiting_for_a_thread_is_not_idle(trio, wires):
    """More executions than threads: the last ones wait for longer than the limit on shards that are alive."""
    set_limit(wires, 1000)
    crowd = [Wire(trio.servers[n % 3].port) for n in range(6)]
    for wire in crowd:
        wire.send("RG.PYEXECUTE", slow_reader(6, 0.4))
    replies = [outcome(wire.read(timeout=HANG_GUARD_S)) for wire in crowd]
    for wire in crowd:
        wire.close()
    assert replies == [([b"18"], [])] * 6


def test_waiting_for_functions_to_be_loaded_is_not_idle(trio, wires):
    """Each shard gets them ready one after the other, for longer than the limit."""
    set_limit(wires, 1000)
    runs = [wires[0].ok("RG.PYEXECUTE", SLOWLY_LOADED, "UNBLOCKING") for _ in range(100)]
    for run in runs:
        assert pair(wires[0].ok("RG.GETRESULTSBLOCKING", run)) == ([b"3"], [])
        wires[0].ok("RG.DROPEXECUTION", run)
    expect_free(trio.servers)


def test_waiting_for_threads_that_are_stuck_is_idle(trio, wires):
    set_limit(wires, 500)
    stuck = "import time\nGB('ShardsIDReader').foreach(lambda x: time.sleep(4)).run(mode='async_local')"
    for _ in range(wires[1].ok("RG.CONFIGGET", "ExecutionThreads")[0]):
        wires[1].ok("RG.PYEXECUTE", stuck, "UNBLOCKING")
    _, errors = outcome(wires[0].call("RG.PYEXECUTE", "GB('ShardsIDReader').run()"))
    assert any(IDLE in text for text in errors), errors
    expect_free(trio.servers)


def test_a_local_execution_has_no_limit(trio, wires):
    set_limit(wires, 100)
    script = "import time\nGB('ShardsIDReader').foreach(lambda x: time.sleep(0.5)).run(mode='async_local')"
    assert len(results_of(wires[0].ok("RG.PYEXECUTE", script))) == 1


def test_a_single_server_has_no_limit(fresh):
    with Wire(fresh("ExecutionMaxIdleTime", 100).port) as wire:
        script = "import time\nGB('ShardsIDReader').foreach(lambda x: time.sleep(0.5)).run()"
        assert results_of(wire.ok("RG.PYEXECUTE", script)) == [b"1"]
