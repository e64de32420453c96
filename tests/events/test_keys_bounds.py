"""The bounds of what waits: writers are slowed down before anything is lost, and INFO shows it."""

import hashlib
import threading
import time
from pathlib import Path

import pytest
from firing import counters, large_results, listed, settled, wait_list
from registrations import MODES, register
from replies import executions_of, wait_until
from wire import Simple, Wire, encode

# `EVENTS_SLOW` in the table of bounds.
SLOW = 100_000
MORE = 2_000
# Events whose records have megabytes.
EVENTS = 300


def numbers(wire):
    lines = wire.ok("INFO", "rg").decode().split("\r\n")
    return {name: int(value) for name, _, value in (line.partition(":") for line in lines) if value.isdecimal()}


def test_keys_that_expire_while_a_sync_handler_runs(wire):
    """Reading the record of the handler finds that the time of the key is over."""
    register(wire, "GB().foreach(lambda x: None).register('k*', mode='sync', eventTypes=['set'])")
    for mode in ("sync", "async_local"):
        note = f"foreach(lambda x: execute('rpush', 'seen:{mode}', x['key']))"
        register(wire, f"GB().{note}.register('k*', mode='{mode}', eventTypes=['expired'])")
    for number in range(20):
        wire.ok("SET", f"k{number:02}", "v", "PXAT", "1")
    for mode in ("sync", "async_local"):
        wait_list(wire, [f"k{number:02}" for number in range(20)], f"seen:{mode}")
    settled(wire)


@pytest.mark.parametrize("reader", ["GB()", "GB('StreamReader')"])
@pytest.mark.parametrize("mode", MODES)
def test_large_results_are_not_kept_by_number_only(wire, reader, mode):
    """Sixty-four megabytes of them for each registration, and the newest in any case."""
    register(wire, f"{reader}.foreach(lambda x: None).register('k*', mode={mode!r})")
    size = 9_000_000
    command = ("SET", "k") if reader == "GB()" else ("XADD", "k", "*", "f")
    for _ in range(9):
        wire.ok(*command, b"v" * size)
        settled(wire)

    wait_until(lambda: large_results(wire, size) == 7, "the oldest ones leaving")


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
def test_huge_values(wire, mode):
    """Where nobody's command waits, they are read in slices; what comes behind waits for them."""
    size = 60_000
    for start in range(0, size, 1000):
        numbers = range(start, start + 1000)
        wire.ok("RPUSH", "k:list", *numbers)
        wire.ok("HSET", "k:hash", *(word for n in numbers for word in (n, n)))
        wire.ok("ZADD", "k:zset", *(word for n in numbers for word in (n, n)))
    register(
        wire,
        "GB().foreach(lambda x: execute('rpush', 'seen', '%s:%s' % (x['key'], x['value'] and len(x['value']))))"
        f".register('k:*', mode={mode!r}, readAllTypes=True, inorder=True)",
    )
    wire.send("RPUSH", "k:list", "more")
    wire.send("SET", "k:small", "v")
    wire.send("HSET", "k:hash", "more", "1")
    wire.send("ZADD", "k:zset", "1", "more")
    wire.send("DEL", "k:small")
    for _ in range(5):
        wire.read()
    more = size + 1
    wait_until(lambda: len(listed(wire)) == 5, "all events being handled")
    found = listed(wire)
    # What became of the small one meanwhile is not said.
    small = {"k:small:1", "k:small:None"}
    assert found[0] == f"k:list:{more}" and set(found[1:]) <= {*small, f"k:hash:{more}", f"k:zset:{more}"}
    settled(wire)
    assert counters(wire) == (5, 5, 0, 0)


FILL = "for i = 1, ARGV[1] do redis.call('HSET', KEYS[1], i, i) end"
SHAPES = "GB().foreach(lambda x: execute('rpush', 'seen', '%s:%s' % (x['type'], len(x['value'] or ''))))"


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["async_local", "async"])
def test_a_huge_value_that_another_takes_the_place_of(wire, mode):
    """The key is there at every moment, so its record has a value."""
    size = 300_000
    wire.ok("EVAL", FILL, 1, "source", size)
    register(wire, f"{SHAPES}.register('k*', mode={mode!r}, eventTypes=['hset'])")
    for delay in (0.005, 0.01, 0.02, 0.04):
        wire.ok("COPY", "source", "k", "REPLACE")
        wire.ok("HSET", "k", "more", "1")
        time.sleep(delay)
        wire.ok("SET", "k", "text")
        settled(wire)
    found = listed(wire)
    assert len(found) == 4 and set(found) <= {"string:4", f"hash:{size + 1}"}


CHANGE = """
if redis.call('TYPE', KEYS[1]).ok == 'hash' then
    for i = 3000, 300000, 3000 do redis.call('HSET', KEYS[1], i, ARGV[1]) end
end
"""


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["async_local", "async"])
def test_a_string_whose_place_a_huge_value_has_taken(server, wire, mode):
    """It is read in slices like others: a client that gives a hundred fields the same number is served meanwhile."""
    size, over = 300_000, threading.Event()
    wire.ok("EVAL", FILL, 1, "source", size)
    register(
        wire,
        """
def note(x):
    execute('rpush', 'seen', '%s:%s' % (x['type'], len(x['value'])))
    execute('sadd', 'numbers', *{x['value'][str(i)] for i in range(3000, 300001, 3000)})
"""
        f"GB().foreach(note).register('k*', mode={mode!r}, eventTypes=['set'])",
    )

    def change():
        with Wire(server.port) as other:
            number = size
            while not over.is_set():
                number += 1
                other.ok("EVAL", CHANGE, 1, "k", number)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for command in ("MULTI",), ("SET", "k", "text"), ("RENAME", "source", "k"), ("EXEC",):
            wire.ok(*command)
        settled(wire)
    finally:
        over.set()
        thread.join()
    assert listed(wire) == [f"hash:{size}"]
    assert len(wire.ok("SMEMBERS", "numbers")) not in (1, 100)


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
def test_members_of_a_huge_sorted_set_are_in_order(wire, mode):
    """Zero is no more than minus zero."""
    size = 60_000
    fill = "for i = 1, ARGV[1] do redis.call('ZADD', KEYS[1], i % 2 == 0 and '0' or '-0', 'm' .. i) end"
    wire.ok("EVAL", fill, 1, "source", size)
    wire.ok("ZADD", "source", "-1", "first", "1", "last")
    register(
        wire,
        "GB().foreach(lambda x: execute('rpush', 'seen', *(member for member, _ in x['value'])))"
        f".register('k*', mode={mode!r}, eventTypes=['rename_to'], readAllTypes=True)",
    )
    wire.ok("RENAME", "source", "k")
    settled(wire)
    assert wire.ok("LRANGE", "seen", 0, -1) == wire.ok("ZRANGE", "k", 0, -1)


def writing(server):
    """(thread, replies so far) of a client that writes more than may wait."""
    replies = []

    def write():
        with Wire(server.port) as writer:
            for start in range(0, SLOW + MORE, 1000):
                writer.send_raw(b"".join(encode(("SET", f"k{start + i}", "1")) for i in range(1000)))
                replies.extend(writer.read() for _ in range(1000))

    thread = threading.Thread(target=write)
    thread.start()
    return thread, replies


def test_writers_wait_for_room(server, wire, other_wire):
    register(
        wire,
        """
import time
def hold(x):
    while execute('exists', 'gate') == 0:
        time.sleep(0.01)
GB().foreach(hold).register('k*', mode='async_local', eventTypes=['set'], readValue=False)
""",
    )
    refused = numbers(wire)["rg_events_refused"]
    thread, replies = writing(server)
    try:
        wait_until(lambda: numbers(other_wire)["rg_events_waiting"] >= SLOW, "the queue being full")
        # Everybody else is served, also by writes that fire nothing.
        assert other_wire.ok("SET", "other", "1") == Simple("OK")
        assert numbers(other_wire)["rg_events_waiting"] <= SLOW + 1000
        assert len(replies) < SLOW + MORE
    finally:
        other_wire.ok("SET", "gate", "1")
        thread.join()
    assert replies == [Simple("OK")] * (SLOW + MORE)
    settled(wire)
    assert counters(wire) == (SLOW + MORE, SLOW + MORE, 0, 0)
    after = numbers(wire)
    assert after["rg_events_waiting"] == 0 and after["rg_events_refused"] == refused
    assert SLOW <= after["rg_events_waiting_most"] <= SLOW + 1000


AWAITING = """
waiting = []

async def hold(x):
    future = createFuture()
    waiting.append(future)
    await future

def wake(x):
    futures = [waiting.pop() for _ in range(len(waiting))]
    for future in futures:
        setFutureResults(future, True)
    return len(futures)

GB().foreach(hold).register('k*', mode=MODE, eventTypes=['set'], readValue=False)
GB('CommandReader').map(wake).register(trigger='wake', mode='sync')
"""


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_writers_wait_while_too_many_handlers_await_something(server, wire, other_wire, mode):
    """They begin at once, and what they await comes late: so many may wait, and nobody else is locked out."""
    register(wire, AWAITING.replace("MODE", repr(mode)))
    field = "rg_events_postponed" if mode == "sync" else "rg_events_waiting"
    refused = numbers(wire)["rg_events_refused"]
    thread, replies = writing(server)
    try:
        wait_until(lambda: numbers(other_wire)[field] >= SLOW, "as many waiting as may", 120)
        assert numbers(other_wire)[field] <= SLOW + 1000
        assert other_wire.ok("SET", "other", "1") == Simple("OK")
        assert other_wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').count().run()")[0] == [b"1"]
        assert len(replies) < SLOW + MORE
    finally:
        while thread.is_alive():
            other_wire.ok("RG.TRIGGER", "wake")
            thread.join(0.1)
    assert replies == [Simple("OK")] * (SLOW + MORE)

    def are_over():
        other_wire.ok("RG.TRIGGER", "wake")
        return numbers(other_wire)[field] == 0

    wait_until(are_over, "all being over")
    assert numbers(other_wire)["rg_events_refused"] == refused


def test_aborted_events_wait_no_more(wire):
    """Those that were taken out before them are counted off in groups."""
    hold = "import time\nGB().foreach(lambda x: time.sleep(1)).register('k*', mode='async_local', eventTypes=['set'])"
    register(wire, hold)
    for number in range(12):
        wire.ok("SET", f"k{number}", "v")
    # Then no thread takes another one.
    wait_until(lambda: sum(status == b"running" for status, _ in executions_of(wire).values()) > 1, "some running")
    for row in wire.ok("RG.DUMPEXECUTIONS"):
        if row[3] == b"created":
            assert wire.call("RG.ABORTEXECUTION", row[1]) == Simple("OK")
    wait_until(lambda: counters(wire)[0] == sum(counters(wire)[1:]), "all being over")
    assert counters(wire)[3] > 0
    assert numbers(wire)["rg_events_waiting"] == 0


def resident(server):
    """Bytes of memory that the process has."""
    (line,) = [line for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if "VmRSS" in line]
    return int(line.split()[1]) * 1024


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["async_local", "async"])
def test_records_that_wait_are_bounded_by_their_bytes(fresh, mode):
    """Each record has four megabytes; many more handlers wait than may have theirs already."""
    server = fresh()
    with Wire(server.port) as wire:
        wire.ok("HSET", "k", *(word for field in range(20) for word in (f"f{field}", b"v" * 200_000)))
        register(
            wire,
            f"""
import time
def hold(x):
    while execute('exists', 'gate') == 0:
        time.sleep(0.01)
    execute('incrby', 'bytes', sum(len(one) for one in x['value'].values()))
GB().filter(hold).register('k', mode={mode!r}, eventTypes=['hset'])
""",
        )
        before = resident(server)
        for number in range(EVENTS):
            wire.ok("HSET", "k", "n", number % 10)
        # One after the other they have come to the end of a turn, where records are read.
        assert numbers(wire)["rg_events_waiting"] >= EVENTS - 50
        assert resident(server) - before < 300_000_000
        wire.ok("SET", "gate", "1")
        settled(wire)
        assert counters(wire) == (EVENTS, EVENTS, 0, 0)
        assert wire.ok("GET", "bytes") == b"%d" % (EVENTS * 4_000_001)


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
def test_values_of_few_large_elements_are_whole(wire, mode):
    elements = [b"%02d" % number * 500_000 for number in range(40)]
    for element in elements:
        wire.ok("RPUSH", "k:list", element)
        wire.ok("HSET", "k:hash", element[:2], element)
    register(
        wire,
        """
import hashlib
def note(x):
    value = x['value']
    parts = value if x['type'] == 'list' else [value[field] for field in sorted(value) if field != 'more']
    execute('rpush', 'seen', x['type'] + ' ' + hashlib.md5(''.join(parts).encode()).hexdigest())
"""
        f"GB().filter(note).register('k:*', mode={mode!r}, readAllTypes=True, inorder=True)",
    )
    wire.ok("RPUSH", "k:list", "")
    wire.ok("HSET", "k:hash", "more", "1")
    whole = hashlib.md5(b"".join(elements)).hexdigest()
    wait_list(wire, [f"list {whole}", f"hash {whole}"])
    settled(wire)
    assert counters(wire) == (2, 2, 0, 0)


def test_events_keep_their_order_whoever_reads_their_records(server, wire):
    """The main thread reads ahead at the end of a turn; what is too much, or comes from a function, workers read."""
    register(
        wire,
        # No worker loses the interpreter inside of the function: another one would go on with the next event.
        """
import sys
sys.setswitchinterval(10)
log = []
GB().foreach(lambda x: log.append(x['key'] + '=' + x['value'])).register('k*', mode='async_local', eventTypes=['set'])
GB('CommandReader').flatmap(lambda x: log).register(trigger='log')
""",
    )
    done = 0
    for size in (1, 10, 1, 700, 5_000, 1, 12_000, 300):
        wire.send_raw(b"".join(encode(("SET", f"k{i}", f"v{i}")) for i in range(done, done + size)))
        assert [wire.read() for _ in range(size)] == [Simple("OK")] * size
        done += size
    from_function = f"for i in range({done}, {done + 2_000}): execute('set', f'k{{i}}', f'v{{i}}')"
    assert wire.ok("RG.PYEXECUTE", from_function) == Simple("OK")
    done += 2_000
    settled(wire)
    assert counters(wire) == (done, done, 0, 0)
    assert wire.ok("RG.PYEXECUTE", "import sys\nsys.setswitchinterval(0.002)") == Simple("OK")
    assert wire.ok("RG.TRIGGER", "log") == [f"k{i}=v{i}".encode() for i in range(done)]


def test_a_handler_that_waits_does_not_hold_up_events_that_come_later(server, wire):
    register(
        wire,
        """
import time
log = []
def note(x):
    log.append('begun ' + x['key'])
    while x['key'] == 'kslow' and execute('exists', 'gate') == 0:
        time.sleep(0.01)
    log.append(x['key'])
GB().foreach(note).register('k*', mode='async_local', eventTypes=['set'])
GB('CommandReader').flatmap(lambda x: log).register(trigger='log')
""",
    )

    def log():
        return wire.ok("RG.TRIGGER", "log")

    wire.ok("SET", "kslow", "1")
    wait_until(lambda: b"begun kslow" in log(), "the first handler being in its wait")
    for key in (b"k1", b"k2"):
        wire.ok("SET", key, "1")
        wait_until(lambda key=key: key in log(), "a later event being handled")
    assert b"kslow" not in log()
    wire.ok("SET", "gate", "1")
    wait_until(lambda: b"kslow" in log(), "the end of the first handler")
    settled(wire)
    assert counters(wire) == (3, 3, 0, 0)


def test_a_run_that_holds_the_interpreter_in_long_calls_does_not_starve_events(server, wire):
    """Between two such calls many events are handled, not one."""
    register(wire, "GB().foreach(lambda x: None).register('k*', mode='async_local', eventTypes=['set'])")
    calls, events = 12, 2000
    with Wire(server.port) as other:
        other.send(
            "RG.PYEXECUTE",
            "def hog(x):\n"
            "    execute('incr', 'hogs')\n"
            "    return sum(range(6_000_000))\n"
            f"GB('PythonReader').map(hog).count().run(lambda: iter(range({calls})))",
        )
        wait_until(lambda: int(wire.ok("GET", "hogs") or 0) >= 1, "the first call")
        for number in range(events):
            wire.send("SET", f"k{number}", "1")
        assert all(wire.read() == Simple("OK") for _ in range(events))
        other.read(timeout=60)
    assert counters(wire)[1] >= 20 * calls
    settled(wire)
    assert counters(wire) == (events, events, 0, 0)
