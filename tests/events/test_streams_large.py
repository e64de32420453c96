"""Much at once: long batches of a shared group, batches of many streams that do not fit into memory, many streams."""

import pytest
from replies import executions_of, wait_until
from streams import (
    SHARED_GROUP,
    add,
    fill,
    looks,
    only_group,
    register,
    script,
    seen,
    wait_counters,
    wait_length,
    wait_seen,
)
from wire import Simple

ENTRIES = 100_000
# Waits for the key `go`, or `go:` with the name of the stream, and keeps no thread busy meanwhile.
HELD = """import asyncio
async def held(x):
    execute('rpush', 'begun', x)
    while not execute('exists', 'go', 'go:%s' % x):
        await asyncio.sleep(0.005)
    execute('rpush', 'seen', x)
    return x
"""


@pytest.fixture(autouse=True)
def nothing_held(wire):
    """Also when a test fails, nothing waits behind it."""
    yield
    wire.ok("SET", "go", "1")


@pytest.mark.matrix
def test_a_long_batch_of_a_shared_group_is_taken_and_acknowledged_in_slices(wire, other_wire):
    fill(wire, "s1", 1, ENTRIES)
    wire.ok("XGROUP", "CREATE", "s1", SHARED_GROUP, "0")
    register(wire, HELD + script("count().map(held)", "s1", mode="async_local", batch=ENTRIES, sharedGroup=True))

    def pending():
        return other_wire.ok("XPENDING", "s1", SHARED_GROUP)[0]

    taken = looks(pending, ENTRIES)
    wait_seen(wire, [str(ENTRIES)], "begun")
    assert taken == sorted(taken) and any(0 < count < ENTRIES for count in taken)
    wire.ok("SET", "go", "1")
    left = looks(pending, 0)
    assert left == sorted(left, reverse=True) and any(0 < count < ENTRIES for count in left)
    wait_seen(wire, [str(ENTRIES)])
    wait_length(wire, "s1", 0)
    wait_counters(wire, (2, 2, 0, 0))
    group = only_group(wire, "s1")
    assert (group["last-delivered-id"], group["pending"]) == (b"1-%d" % ENTRIES, 0)
    assert (group["entries-read"], group["lag"]) == (ENTRIES, 0)


# --- memory ------------------------------------------------------------------------------------------------------

# All of them are a little more than 256 MiB.
BYTES = 68_000_000
BIG = ["s1", "s2", "s3", "s4"]
LATER = ["s5", "s6", "s7"]


def test_batches_for_which_there_is_no_room_wait_and_all_run(wire):
    register(wire, HELD + script("map(lambda x: x['key']).map(held)", "s*", mode="async_local"))
    add(wire, "s0", "1-1")
    value = b"x" * BYTES
    for key in BIG:
        wire.ok("XADD", key, "1-1", "f", value)
    wire.ok("MSET", *(word for key in LATER for word in (f"go:{key}", "1")))
    for key in LATER:
        add(wire, key, "1-1")
    # It is over behind the looks at all others, and leaves no room.
    wire.ok("SET", "go:s0", "1")
    wait_length(wire, "s0", 0)
    assert len(executions_of(wire)) == 5, "those that run, and the one that is over"
    wait_until(lambda: sorted(seen(wire, "begun")) == ["s0", *BIG], "those that run")
    wire.ok("SET", "go:s3", "1")
    for key in ("s3", *LATER):
        wait_length(wire, key, 0)
    assert sorted(seen(wire)) == ["s0", "s3", *LATER]
    wire.ok("SET", "go", "1")
    for key in BIG:
        wait_length(wire, key, 0)
    assert sorted(seen(wire)) == ["s0", *BIG, *LATER]
    wait_counters(wire, (16, 16, 0, 0))


def test_all_that_waited_run_when_there_is_room_for_them(wire):
    """One of them that takes its time does not keep back the others."""
    register(wire, HELD + script("map(lambda x: x['key']).map(held)", "s*", mode="async_local"))
    value = b"x" * BYTES
    for key in BIG:
        wire.ok("XADD", key, "1-1", "f", value)
    for key in LATER:
        add(wire, key, "1-1")
    wait_until(lambda: sorted(seen(wire, "begun")) == BIG, "those that run")
    wire.ok("SET", "go:s3", "1")
    wait_until(lambda: sorted(seen(wire, "begun")) == [*BIG, *LATER], "those for which there is room")


# --- many streams ------------------------------------------------------------------------------------------------

STREAMS = 200
# Keeps its thread until there is the key `go`.
BUSY = """import time
def busy(x):
    while not execute('exists', 'go'):
        time.sleep(0.005)
    execute('rpush', 'seen', x['key'])
"""


@pytest.mark.matrix
def test_a_backlog_of_many_streams_leaves_their_turn_to_others(wire):
    """Few of its batches wait for a thread, and other registrations do not wait for all of its streams."""
    for number in range(STREAMS):
        add(wire, f"s{number:03}", "1-1")
    for number in range(3):
        add(wire, f"t{number}", "1-1")
    register(wire, BUSY + script("foreach(busy)", "s*", mode="async_local"))
    register(wire, BUSY + script("foreach(busy)", "t*", mode="async_local"))
    wait_until(lambda: len(executions_of(wire)) >= 11, "those that run, and those that wait for a thread")
    assert len(executions_of(wire)) < 15
    wire.ok("SET", "go", "1")
    wait_until(lambda: len(seen(wire)) == STREAMS + 3, "all of them")
    names = seen(wire)
    assert len(set(names)) == len(names)
    assert max(names.index(f"t{number}") for number in range(3)) < 40
    for name in names:
        wait_length(wire, name, 0)


FAILING = """import time
def failing(x):
    execute('incr', 'tries:' + x[0]['key'])
    time.sleep(0.05)
    if not execute('exists', 'go'):
        raise Exception('down')
"""


@pytest.mark.matrix
def test_streams_that_are_replaced_while_they_wait_are_tried_again(wire):
    """Who waited for the one that was there before does not look at the one that came."""
    names = [f"s{number:02}" for number in range(40)]
    for name in names:
        for key in (name, f"new:{name}"):
            add(wire, key, "1-1", "1-2", "1-3")
    steps = "aggregate([], lambda a, x: a + [x], lambda a, x: a + x).foreach(failing)"
    retry = {"onFailedPolicy": "retry", "onFailedRetryInterval": 1}
    register(wire, FAILING + script(steps, "s*", mode="async_local", batch=100, duration=100, **retry))
    wait_until(lambda: wire.ok("EXISTS", *(f"tries:{name}" for name in names)), "the first tries")
    for name in names[20:]:
        wire.send("RENAME", f"new:{name}", name)
    for _ in names[20:]:
        assert wire.read() == Simple("OK")
    wait_until(lambda: all(wire.ok("EXISTS", f"tries:{name}") for name in names), "a try of each")
    wire.ok("SET", "go", "1")
    for name in names:
        wait_length(wire, name, 0)
