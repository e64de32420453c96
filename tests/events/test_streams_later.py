"""Batches of mode `sync` that postpone a record: the rest goes on as an execution, and the stream waits for it."""

from contextlib import contextmanager

import pytest
from replies import Gate, executions_of, wait_until
from streams import (
    NOTE,
    add,
    counters,
    data,
    only_group,
    only_id,
    register,
    script,
    seen,
    status,
    wait_counters,
    wait_length,
    wait_seen,
    wait_status,
)
from wire import Simple, Wire

OK = Simple("OK")
IDS = [f"1-{i}" for i in range(1, 7)]

# Each postpones its record. The last one of a batch would be ready first.
COROUTINE = """import asyncio
naps = [0.02, 0.01, 0]
async def later(x):
    await asyncio.sleep(naps[int(x['id'].split('-')[1]) % 3])
    return x
"""
FUTURE = """
naps = [0.06, 0.04, 0.02]
def finish(future, x):
    time.sleep(naps[int(x['id'].split('-')[1]) % 3])
    while True:
        try:
            return future.continueRun(x)
        except Exception as e:
            # The thread may be here before its callback has returned.
            if 'untill it returned' not in str(e):
                raise
            time.sleep(0.001)
def later(x):
    future = gearsFuture()
    Thread(target=finish, args=(future, x)).start()
    return future
"""
# Waits until somebody sets the key `go`, or `go:` with the name of the stream.
HELD = """import asyncio
async def held(x):
    execute('rpush', 'begun', x['id'])
    while not execute('exists', 'go', 'go:' + x['key']):
        await asyncio.sleep(0.005)
    return x
"""
BOTH = pytest.mark.parametrize("step", (COROUTINE, FUTURE), ids=("coroutine", "future"))
GROUP = pytest.mark.parametrize("group", ({}, {"sharedGroup": True}), ids=("own", "shared"))


@pytest.fixture(autouse=True)
def nothing_held(wire):
    """Also when a test fails, nothing waits behind it."""
    yield
    wire.ok("SET", "go", "1")


def register_sync(wire, program, steps, **words):
    register(wire, program + script(steps, "s*", mode="sync", **words))


def begun(wire, key="begun"):
    return [one.decode() for one in wire.ok("LRANGE", key, 0, -1)]


def wait_begun(wire, wanted):
    wait_until(lambda: len(begun(wire)) >= len(wanted), f"{len(wanted)} records waiting")
    assert begun(wire) == wanted


def running(wire):
    return [row[1] for row in wire.ok("RG.DUMPEXECUTIONS") if row[3] == b"running"]


@pytest.mark.matrix
@BOTH
@GROUP
@pytest.mark.parametrize("batch", (1, 3))
def test_order_is_kept(wire, step, group, batch):
    add(wire, "s1", *IDS[:3])
    register_sync(wire, step, f"map(later).{NOTE}", batch=batch, **group)
    add(wire, "s1", *IDS[3:])
    wait_seen(wire, IDS)
    wait_length(wire, "s1", 0)
    # Finished ones stay listed.
    assert set(dict(executions_of(wire).values())) == {b"done"}
    fields = data(wire)
    assert fields["numFailures"] == fields["numAborted"] == 0
    assert fields["numTriggered"] == fields["numSuccess"] and status(wire) == "OK"


@pytest.mark.matrix
@BOTH
def test_a_batch_may_postpone_some_records_only(wire, step):
    steps = f"map(lambda x: later(x) if x['id'] in ('1-2', '1-3') else x).{NOTE}"
    register_sync(wire, step, steps, batch=2)
    add(wire, "s1", *IDS)
    wait_seen(wire, IDS)
    wait_length(wire, "s1", 0)


@pytest.mark.matrix
@GROUP
@pytest.mark.parametrize("trim", (True, False))
def test_entries_are_acknowledged_when_the_rest_is_over(wire, group, trim):
    add(wire, "s1", *IDS[:2])
    register_sync(wire, HELD, f"map(held).{NOTE}", batch=2, trimStream=trim, **group)
    wait_begun(wire, IDS[:2])
    before = counters(wire)
    # What comes meanwhile waits for it, though it would fill a batch.
    add(wire, "s1", *IDS[2:4])
    found = only_group(wire, "s1")
    if group:
        assert (found["pending"], found["last-delivered-id"]) == (2, b"1-2")
    else:
        assert (found["pending"], found["last-delivered-id"]) == (0, b"0-0")
    assert wire.ok("XLEN", "s1") == 4 and seen(wire) == [] and begun(wire) == IDS[:2]
    assert counters(wire) == before and before[0] == before[1] + 1
    wire.ok("SET", "go", "1")
    wait_seen(wire, IDS[:4])
    wait_until(lambda: only_group(wire, "s1")["last-delivered-id"] == b"1-4", "the acknowledgement")
    assert only_group(wire, "s1")["pending"] == 0
    wait_length(wire, "s1", 0 if trim else 4)


def test_other_streams_go_on_meanwhile(wire):
    register_sync(wire, HELD, f"map(held).{NOTE}")
    add(wire, "s1", "1-1", "1-2")
    add(wire, "s2", "2-1", "2-2")
    wait_until(lambda: sorted(begun(wire)) == ["1-1", "2-1"], "the first of each")
    wire.ok("SET", "go:s2", "1")
    wait_seen(wire, ["2-1", "2-2"])
    wire.ok("SET", "go:s1", "1")
    wait_seen(wire, ["2-1", "2-2", "1-1", "1-2"])


@pytest.mark.matrix
def test_an_error_behind_the_await_is_a_failure_of_the_batch(wire):
    program = """import asyncio
async def fails(x):
    await asyncio.sleep(0.001)
    if x['id'] in ('1-1', '1-4'): raise ValueError('not this one')
    return x
"""
    register_sync(wire, program, f"map(fails).{NOTE}", batch=2)
    add(wire, "s1", *IDS)
    wait_length(wire, "s1", 0)
    # Only `continue` goes with mode `sync`: what failed is acknowledged like the rest.
    assert seen(wire) == ["1-2", "1-3", "1-5", "1-6"]
    wait_counters(wire, (4, 2, 2, 0))
    assert status(wire) == "OK"
    add(wire, "s1", "1-7", "1-9")
    wait_length(wire, "s1", 0)
    wait_counters(wire, (5, 3, 2, 0))


@pytest.mark.matrix
def test_an_error_behind_the_await_is_tried_again_in_the_other_local_mode(wire):
    program = """import asyncio
async def fails(x):
    await asyncio.sleep(0.001)
    execute('rpush', 'begun', x['id'])
    if x['id'] == '1-2' and not execute('exists', 'good'): raise ValueError('not yet')
    return x
"""
    words = {"batch": 3, "onFailedPolicy": "retry", "onFailedRetryInterval": 0}
    register(wire, program + script(f"map(fails).{NOTE}", "s*", mode="async_local", **words))
    add(wire, "s1", *IDS)
    wait_until(lambda: counters(wire)[2] >= 3, "some failures")
    assert wire.ok("XLEN", "s1") == 6
    assert set(begun(wire)) <= set(IDS[:3]), "the next batch waits for this one"
    wire.ok("SET", "good", "1")
    wait_length(wire, "s1", 0)
    assert seen(wire)[-6:] == IDS
    assert begun(wire)[-6:] == IDS


def test_pausing_behind_the_await(wire):
    program = """import asyncio
async def pauses(x):
    await asyncio.sleep(0.001)
    if execute('exists', 'bad'): flat_error('PAUSE for now')
    return x
"""
    wire.ok("SET", "bad", "1")
    register_sync(wire, program, f"map(pauses).{NOTE}")
    add(wire, "s1", "1-1", "1-2")
    wait_status(wire, "PAUSED")
    assert seen(wire) == [] and wire.ok("XLEN", "s1") == 2
    wire.ok("DEL", "bad")
    assert wire.call("RG.UNPAUSEREGISTRATIONS", only_id(wire)) == OK
    wait_seen(wire, ["1-1", "1-2"])
    wait_length(wire, "s1", 0)


@pytest.mark.matrix
@GROUP
def test_the_rest_is_stopped(wire, group):
    register_sync(wire, HELD, f"map(held).{NOTE}", **group)
    add(wire, "s1", "1-1", "1-2")
    wait_begun(wire, ["1-1"])
    (execution,) = wait_until(lambda: running(wire), "the rest running")
    before = counters(wire)
    assert wire.call("RG.ABORTEXECUTION", execution) == OK
    wait_counters(wire, (before[0], before[1], 0, 1))
    # Its entry is not acknowledged: the stream waits for the next one.
    wire.ok("SET", "go", "1")
    assert wire.ok("XLEN", "s1") == 2 and status(wire) == "OK"
    add(wire, "s1", "1-3")
    wait_seen(wire, ["1-1", "1-2", "1-3"])
    wait_length(wire, "s1", 0)


def test_unregistering_lets_the_rest_end(wire):
    register_sync(wire, HELD, f"map(held).{NOTE}")
    add(wire, "s1", "1-1", "1-2")
    wait_begun(wire, ["1-1"])
    assert wire.call("RG.UNREGISTER", only_id(wire)) == OK
    wire.ok("SET", "go", "1")
    wait_seen(wire, ["1-1"])
    wait_until(lambda: not running(wire), "the end")
    assert begun(wire) == ["1-1"]


def test_a_pause_lets_the_rest_end(wire):
    register_sync(wire, HELD, f"map(held).{NOTE}")
    add(wire, "s1", "1-1", "1-2")
    wait_begun(wire, ["1-1"])
    assert wire.call("RG.PAUSEREGISTRATIONS", only_id(wire)) == OK
    wire.ok("SET", "go", "1")
    wait_seen(wire, ["1-1"])
    wait_length(wire, "s1", 1)
    assert begun(wire) == ["1-1"] and status(wire) == "PAUSED"
    assert wire.call("RG.UNPAUSEREGISTRATIONS", only_id(wire)) == OK
    wait_seen(wire, ["1-1", "1-2"])
    wait_length(wire, "s1", 0)


@contextmanager
def all_threads_busy(server, wire):
    """What is to run in an execution waits for a thread."""
    threads, gate = wire.ok("RG.CONFIGGET", "ExecutionThreads")[0], Gate([server])
    busy = f"{gate.code}\nGB('ShardsIDReader').map(hold).run()"
    ids = [wire.ok("RG.PYEXECUTE", busy, "UNBLOCKING") for _ in range(threads)]
    gate.wait_reached(times=threads)
    try:
        yield
    finally:
        gate.open()
        for execution in ids:
            wire.ok("RG.GETRESULTSBLOCKING", execution)
            wire.ok("RG.DROPEXECUTION", execution)


@pytest.mark.parametrize(
    "command", (["RG.PAUSEREGISTRATIONS"], ["RG.PAUSEREGISTRATIONS", "ABORTPENDING"], ["RG.UNREGISTER"])
)
def test_the_rest_has_begun_even_if_it_waits_for_a_thread(server, wire, command):
    with all_threads_busy(server, wire):
        register_sync(wire, HELD, f"map(held).{NOTE}")
        add(wire, "s1", "1-1", "1-2")
        wait_begun(wire, ["1-1"])
        waits = wait_until(lambda: [k for k, row in executions_of(wire).items() if row == (b"created", 1)], "the rest")
        assert len(waits) == 1
        before, registration = counters(wire), only_id(wire)
        abort = ["ABORTPENDING"] if command == ["RG.UNREGISTER"] else []
        assert wire.call(*command, registration, *abort) == OK
        wire.ok("SET", "go", "1")
    wait_seen(wire, ["1-1"])
    wait_length(wire, "s1", 1)
    assert begun(wire) == ["1-1"]
    if not abort:
        wait_counters(wire, (before[0], before[1] + 1, 0, 0))


def add_at_once(wire, ids):
    """Adds the first two in a transaction and the others in a script; what each sees of `seen` before its end."""
    assert wire.call("MULTI") == OK
    for one in ids[:2]:
        wire.call("XADD", "s1", one, "f", "v")
    wire.call("LRANGE", "seen", 0, -1)
    transaction = wire.ok("EXEC")[-1]
    text = """
for i, id in ipairs(ARGV) do redis.call('XADD', KEYS[1], id, 'f', 'v') end
return redis.call('LRANGE', KEYS[2], 0, -1)
"""
    script = wire.ok("EVAL", text, 2, "s1", "seen", *ids[2:])
    return [one.decode() for one in transaction], [one.decode() for one in script]


@pytest.mark.matrix
def test_a_step_that_asks_postpones_nothing_in_a_transaction_or_a_script(wire):
    choose = "def choose(x):\n    return later(x) if isAsyncAllow() else x\n"
    register_sync(wire, COROUTINE + choose, f"map(choose).{NOTE}", batch=2)
    assert add_at_once(wire, IDS) == (IDS[:2], IDS)
    wait_length(wire, "s1", 0)
    assert counters(wire) == (4, 4, 0, 0)


@pytest.mark.matrix
@BOTH
def test_what_may_not_wait_in_a_transaction_or_a_script(wire, step):
    register_sync(wire, step, f"map(later).{NOTE}", batch=2)
    assert add_at_once(wire, IDS[:4]) == ([], [])
    wait_length(wire, "s1", 0)
    assert counters(wire) == (3, 1, 2, 0)
    assert b"is not allowed" in data(wire)["lastError"]
    add(wire, "s1", *IDS[4:])
    wait_seen(wire, IDS[4:])


@GROUP
def test_a_restart_repeats_what_was_not_over(fresh, group):
    server = fresh(server_args=("--appendonly", "yes", "--appendfsync", "always"))
    with Wire(server.port) as wire:
        register_sync(wire, HELD, f"map(held).{NOTE}", batch=2, **group)
        add(wire, "s1", *IDS)
        wait_begun(wire, IDS[:2])
    server.restart()
    with Wire(server.port) as wire:
        wire.ok("SET", "go", "1")
        wait_seen(wire, IDS)
        wait_length(wire, "s1", 0)


def test_what_may_not_wait_in_a_transaction_of_its_own(wire):
    register_sync(wire, HELD, f"{NOTE}.map(held)", atomicBatch=True)
    add(wire, "s1", "1-1")
    wait_counters(wire, (2, 1, 1, 0))
    assert seen(wire) == [] and begun(wire) == []
    wait_length(wire, "s1", 0)
