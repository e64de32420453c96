"""KeysReader registrations: which events fire them, what they see, in which order."""

from dataclasses import dataclass

import pytest
from firing import NOTE, counters, data, listed, settled, wait_list
from registrations import MODES, register
from replies import executions_of, pair, wait_until
from wire import Error, Simple

pytestmark = pytest.mark.matrix

MODE = pytest.mark.parametrize("mode", MODES)
OK = Simple("OK")


def note(wire, prefix="k*", mode="sync", handler=NOTE, **options):
    more = "".join(f", {name}={value!r}" for name, value in options.items())
    register(wire, f"GB().foreach({handler}).register({prefix!r}, mode={mode!r}{more})")


@MODE
def test_k1_between_the_commands_of_a_transaction(wire, mode):
    note(wire, mode=mode, handler="lambda x: execute('rpush', 'ev', x['key'])", eventTypes=["set"])
    wire.ok("MULTI")
    for command in (("SET", "k1", "1"), ("LRANGE", "ev", "0", "-1"), ("SET", "k2", "1")):
        assert wire.ok(*command) == Simple("QUEUED")
    assert wire.ok("EXEC") == [OK, [b"k1"] if mode == "sync" else [], OK]
    settled(wire)
    assert sorted(listed(wire, "ev")) == ["k1", "k2"]
    script = "redis.call('set', 'k3', '1'); return redis.call('llen', 'ev')"
    assert wire.ok("EVAL", script, "1", "k3") == (3 if mode == "sync" else 2)
    settled(wire)
    assert wire.ok("RG.PYEXECUTE", "execute('set', 'k4', execute('llen', 'ev'))") == OK
    settled(wire)
    assert (wire.ok("GET", "k4"), wire.ok("LLEN", "ev")) == (b"3", 4)


def test_sync_handlers_run_before_the_reply_and_the_next_command(wire):
    """Also where many commands come at once."""
    note(wire, "*", handler="lambda x: execute('incr', 'n:' + x['value'])", eventTypes=["set"])
    for number in range(200):
        wire.send("SET", f"k{number}", "v")
        wire.send("GET", "n:v")
    assert [wire.read() for _ in range(400)][1::2] == [b"%d" % (i + 1) for i in range(200)]


# Steps, and the value of the key: the kept result is `str` of what comes out, as it was then.
RESULTS = [
    ("", "x"),
    ("", ""),
    ("", "it's"),
    ("", "back\\slash\n\x7f"),
    ("", "é😀"),
    ("", b"\xff"),
    ("", "x" * 5000),
    (".map(lambda x: dict(x))", "x"),
    (".map(lambda x: x.update(more=[1]) or x)", "x"),
    (".map(lambda x: x.pop('event') and x)", "x"),
    (".map(lambda x: x.update(value='y') or x)", "x"),
    (".map(lambda x: x['key'])", "x"),
    (".flatmap(lambda x: [x, x])", "x"),
    (".flatmap(lambda x: [x['key'], x])", "x"),
    (".filter(lambda x: False)", "x"),
    (".foreach(lambda x: kept.append(x))", "x"),
]


@pytest.mark.parametrize("mode", ["sync", "async_local"])
@pytest.mark.parametrize(("steps", "value"), RESULTS)
def test_results_are_texts_of_what_comes_out(wire, steps, value, mode):
    found, record = [], {"event": "set", "key": "k1", "type": "string", "value": value}
    if isinstance(value, bytes):
        record["value"] = bytearray(value)
    match eval(f"Steps(){steps}", {"Steps": lambda: Steps([record]), "kept": found}):
        case Steps(records):
            wanted = [str(one).encode() for one in records]
    register(wire, f"kept = []\nGB(){steps}.register('k*', mode={mode!r}, eventTypes=['set'])")
    wire.ok("SET", "k1", value)
    settled(wire)
    # What becomes of the record later changes nothing.
    wire.ok("RG.PYEXECUTE", "for record in globals().get('kept', []): record.clear()")
    (execution,) = executions_of(wire)
    for command in "RG.GETRESULTS", "RG.GETRESULTSBLOCKING":
        assert pair(wire.ok(command, execution)) == (wanted, [])


@dataclass
class Steps:
    """The steps, on records that are here."""

    records: list

    def map(self, function):
        return Steps([function(one) for one in self.records])

    def flatmap(self, function):
        return Steps([part for one in self.records for part in function(one)])

    def filter(self, function):
        return Steps([one for one in self.records if function(one)])

    def foreach(self, function):
        for one in self.records:
            function(one)
        return self


def test_results_of_other_records_of_events(wire):
    for mode in "sync", "async_local":
        register(wire, f"GB().register('k*', mode={mode!r}, readValue=False)")
        register(wire, f"GB().register('k*', mode={mode!r})")
    wire.ok("SADD", "k1", "a")
    wire.ok("DEL", "k1")
    settled(wire)
    kept = sorted(pair(wire.ok("RG.GETRESULTS", one))[0][0] for one in executions_of(wire))
    names = [b"{'event': '%s', 'key': 'k1'}" % event for event in (b"sadd", b"del")]
    gone = b"{'event': '%s', 'key': 'k1', 'type': '%s', 'value': None}"
    sync = [gone % (b"sadd", b"set"), gone % (b"del", b"empty")]
    assert [one for one in kept if one in names] == sorted(names * 2)
    assert [one for one in sync if one not in kept] == []
    assert len(kept) == 8


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_handlers_that_are_coroutines(wire, mode):
    register(
        wire,
        f"""
import asyncio
async def later(x):
    await asyncio.sleep(0.02)
    execute('rpush', 'seen', x['key'])
    return x['key']
GB().map(later).register('k*', mode={mode!r}, eventTypes=['set'])
""",
    )
    for number in range(5):
        wire.ok("SET", f"k{number}", "1")
    settled(wire)
    assert sorted(listed(wire)) == [f"k{number}" for number in range(5)]
    assert counters(wire) == (5, 5, 0, 0)
    kept = sorted(pair(wire.ok("RG.GETRESULTS", one))[0][0] for one in executions_of(wire))
    assert kept == [b"k%d" % number for number in range(5)]
    if mode == "sync":
        wire.ok("MULTI")
        wire.ok("SET", "k9", "1")
        assert wire.ok("EXEC") == [OK]
        settled(wire)
        assert counters(wire) == (6, 5, 1, 0)
        assert data(wire)["lastError"] == b"Creating async record is not allowed"


@MODE
def test_k2_prefixes(wire, mode):
    for prefix in ("pre", "p?e*", ""):
        note(wire, prefix, mode=mode, handler=f"lambda x: execute('rpush', 'seen', {prefix!r} + '>' + x['key'])")
    for key in ("pre", "prefix", "p?ex", "p?e", "pxe", "Pre"):
        wire.ok("SET", key, "1")
    settled(wire)
    assert sorted(listed(wire)) == ["p?e*>p?e", "p?e*>p?ex", "pre>pre"]


def test_prefixes_of_one_byte_and_of_none(wire):
    """Whatever comes behind it, at the ends of the range too."""
    keys = [b"k", *(b"k%c" % byte for byte in (0, 63, 64, 255)), b"j\xff", b"l", b"\x00", b"\xff\xff"]
    note(wire, "k*", handler="lambda x: 0", eventTypes=["set"])
    for key in keys:
        wire.ok("SET", key, "1")
    assert counters(wire) == (5, 5, 0, 0)
    note(wire, "*", handler="lambda x: 0", eventTypes=["set"])
    note(wire, "l", handler="lambda x: 0", eventTypes=["set"])
    for key in keys:
        wire.ok("SET", key, "2")
    assert [counters(wire, which) for which in range(3)] == [(10, 10, 0, 0), (9, 9, 0, 0), (1, 1, 0, 0)]


def test_k3_the_argument_of_the_constructor_is_ignored(wire):
    register(wire, f"GB('KeysReader', 'pre*').foreach({NOTE}).register(mode='sync', eventTypes=['set'])")
    wire.ok("SET", "other", "1")
    wait_list(wire, ["set:other:string"])


@pytest.mark.parametrize(("mode", "generated"), [("sync", 1), ("async_local", 6), ("async", 6)])
def test_k4_recursion(wire, mode, generated):
    register(
        wire,
        "GB().foreach(lambda x: execute('set', 'n:' + x['key'], '1') if len(x['key']) < 12 else None)"
        f".register(mode={mode!r}, eventTypes=['set'])",
    )
    wire.ok("SET", "a", "1")
    wait_until(lambda: wire.ok("DBSIZE") == generated + 1, f"{generated} generated keys")
    settled(wire)
    assert wire.ok("DBSIZE") == generated + 1
    assert counters(wire)[0] == (1 if mode == "sync" else 7)


@MODE
def test_k5_order_of_registration(wire, mode):
    for number in ("1", "2", "3"):
        note(wire, mode=mode, handler=f"lambda x: execute('rpush', 'order', {number!r})", eventTypes=["set"])
    wire.ok("SET", "k", "1")
    settled(wire)
    order = listed(wire, "order")
    assert order == ["1", "2", "3"] if mode == "sync" else sorted(order) == ["1", "2", "3"]


@MODE
def test_k6_key_types(wire, mode):
    note(wire, mode=mode, keyTypes=["hash"])
    note(wire, mode=mode, keyTypes=["empty", "stream"], handler="lambda x: execute('rpush', 'others', x['key'])")
    wire.ok("SET", "k1", "a")
    wire.ok("HSET", "k2", "a", "b")
    wire.ok("XADD", "k3", "*", "a", "b")
    wire.ok("DEL", "k1")
    settled(wire)
    wait_list(wire, ["hset:k2:hash"])
    wait_list(wire, ["k3", "k1"], "others")
    shown = dict(zip(*[iter(data(wire, 1)["args"])] * 2, strict=True))
    assert shown[b"keyTypes"] == [b"empty", b"stream"]
    assert shown[b"eventTypes"] is None and shown[b"hookCommands"] is None and shown[b"regex"] == b"k*"


@MODE
def test_k7_misses_of_scripts(wire, mode):
    note(wire, "none", mode=mode)
    wire.ok("RG.PYEXECUTE", "execute('get', 'none')")
    wait_list(wire, ["keymiss:none:empty"])
    wire.ok("GET", "none")
    wait_list(wire, ["keymiss:none:empty"] * 2)


def misses(wire):
    """How many the server has counted."""
    lines = wire.ok("INFO", "stats").decode().splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(found["keyspace_misses"])


@MODE
def test_records_are_read_without_a_trace(wire, other_wire, mode):
    note(wire, mode=mode, handler="lambda x: None", eventTypes=["keymiss", "del", "set"])
    channel = "__keyevent@0__:keymiss"
    wire.ok("CONFIG", "SET", "notify-keyspace-events", "KEAm")
    try:
        other_wire.ok("SUBSCRIBE", channel)
        before = misses(wire)
        wire.ok("SET", "k1", "v")
        wire.ok("WATCH", "k1")
        wire.ok("DEL", "k2")
        wire.ok("GET", "k2")
        assert len(wire.ok("RG.PYEXECUTE", "GB().run('k1', noScan=True)")[0]) == 1
        settled(wire)
        assert misses(wire) == before + 1
        wire.ok("MULTI")
        wire.ok("PING")
        assert wire.ok("EXEC") == [Simple("PONG")]
        wire.ok("SET", "k3", "v")
        wire.ok("DEL", "k3")
        settled(wire)
        assert misses(wire) == before + 1
        # Strings that are gone again when their records are read.
        for command in (("MULTI",), ("SET", "k4", "v"), ("DEL", "k4"), ("SET", "k5", "v"), ("RENAME", "k5", "other")):
            wire.ok(*command)
        assert wire.ok("EXEC") == [OK, 1, OK, OK]
        settled(wire)
        assert misses(wire) == before + 1
        wire.ok("PUBLISH", channel, "end")
        assert [other_wire.read()[2] for _ in range(2)] == [b"k2", b"end"]
    finally:
        wire.ok("CONFIG", "SET", "notify-keyspace-events", "")


@MODE
def test_k8_executions_are_listed(wire, mode):
    register(wire, f"GB().map(lambda x: x['value']['f']).register('h*', mode={mode!r}, eventTypes=['hset'])")
    wire.ok("HSET", "h1", "f", "7")
    settled(wire)
    ((execution, (status, registered)),) = executions_of(wire).items()
    assert (status, registered) == (b"done", 1)
    assert pair(wire.ok("RG.GETRESULTS", execution)) == ([b"7"], [])
    assert pair(wire.ok("RG.GETRESULTSBLOCKING", execution)) == ([b"7"], [])
    ((_, _, _, plan),) = wire.ok("RG.GETEXECUTION", execution)
    assert plan[:2] == [b"status", b"done"] and plan[6:10] == [b"results", 1, b"errors", []]
    assert wire.ok("RG.DROPEXECUTION", execution) == OK
    assert executions_of(wire) == {}
    assert wire.error("RG.GETRESULTS", execution) == "execution plan does not exist"


@MODE
def test_failures_are_counted_and_listed(wire, mode):
    register(wire, f"GB().map(lambda x: flat_error('ERR no ' + x['key'])).register('k*', mode={mode!r})")
    wire.ok("SET", "k1", "1")
    settled(wire)
    assert counters(wire) == (1, 0, 1, 0)
    assert data(wire)["lastError"] == b"ERR no k1"
    (execution,) = executions_of(wire)
    assert pair(wire.ok("RG.GETRESULTS", execution)) == ([], ["ERR no k1"])


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_listed_executions_are_bounded_for_each_registration(wire, mode):
    wire.ok("RG.CONFIGSET", "MaxExecutionsPerRegistration", "3")
    register(wire, f"GB().map(lambda x: x['key']).register('a*', mode={mode!r}, eventTypes=['set'])")
    register(wire, f"GB().map(lambda x: x['key']).register('b*', mode={mode!r}, eventTypes=['set'])")
    for number in range(10):
        wire.ok("SET", f"a{number}", "1")
    wire.ok("SET", "b", "1")
    settled(wire)
    kept = [pair(wire.ok("RG.GETRESULTS", one))[0][0] for one in executions_of(wire)]
    assert sorted(kept) == [b"a7", b"a8", b"a9", b"b"]
    for row in wire.ok("RG.DUMPREGISTRATIONS"):
        wire.ok("RG.UNREGISTER", row[1])
    wait_until(lambda: executions_of(wire) == {}, "the executions going with their registrations")


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_all_executions_together_are_bounded(wire, mode):
    wire.ok("RG.CONFIGSET", "MaxExecutions", "5")
    register(wire, f"GB().map(lambda x: x['key']).register('a*', mode={mode!r}, eventTypes=['set'])")
    for number in range(20):
        wire.ok("SET", f"a{number}", "1")
    settled(wire)
    assert len(executions_of(wire)) == 5
    # The oldest one of all goes, also for one of a registration that has none yet.
    for letter in "bcd":
        register(wire, f"GB().map(lambda x: x['key']).register('{letter}', mode={mode!r}, eventTypes=['set'])")
        wire.ok("SET", letter, "1")
    settled(wire)
    kept = [pair(wire.ok("RG.GETRESULTS", one))[0][0] for one in executions_of(wire)]
    assert sorted(kept) == [b"a18", b"a19", b"b", b"c", b"d"]
    wire.ok("RG.CONFIGSET", "MaxExecutions", "2")
    wire.ok("SET", "a20", "1")
    settled(wire)
    kept = [pair(wire.ok("RG.GETRESULTS", one))[0][0] for one in executions_of(wire)]
    assert sorted(kept) == [b"a20", b"d"]


@MODE
def test_records_have_their_fields_in_order(wire, mode):
    show = "lambda x: execute('rpush', 'seen', repr(list(x.items())))"
    note(wire, "k*", mode=mode, handler=show, eventTypes=["SET", "HSET"])
    note(wire, "k*", mode=mode, handler=show, eventTypes=["rpush"], readValue=False)
    wire.ok("SET", "k1", "v")
    wire.ok("HSET", "k2", "f", "v")
    wire.ok("RPUSH", "k3", "v")
    wire.ok("SET", b"k\xff", b"\xfe")
    settled(wire)
    assert sorted(listed(wire)) == sorted(
        [
            "[('event', 'set'), ('key', 'k1'), ('type', 'string'), ('value', 'v')]",
            "[('event', 'hset'), ('key', 'k2'), ('type', 'hash'), ('value', {'f': 'v'})]",
            "[('event', 'rpush'), ('key', 'k3')]",
            "[('event', 'set'), ('key', bytearray(b'k\\xff')), ('type', 'string'), ('value', bytearray(b'\\xfe'))]",
        ]
    )


def test_large_values_are_whole_in_sync_handlers(wire):
    note(wire, handler="lambda x: execute('rpush', 'seen', '%s %d' % (x['type'], len(x['value'])))")
    wire.ok("RPUSH", "k1", *range(20_000))
    wire.ok("HSET", "k2", *range(40_000))
    wait_list(wire, ["list 20000", "hash 20000"])


@MODE
def test_events_that_come_beside_others_must_be_named(wire, mode):
    note(wire, "k*", mode=mode)
    note(wire, "k*", mode=mode, eventTypes=["new"], handler="lambda x: execute('rpush', 'new', x['key'])")
    wire.ok("SET", "k1", "1")
    wire.ok("SET", "k1", "2")
    settled(wire)
    wait_list(wire, ["set:k1:string", "set:k1:string"])
    wait_list(wire, ["k1"], "new")


def test_unknown_event_names_never_match(wire):
    note(wire, eventTypes=["no-such-event"])
    wire.ok("SET", "k1", "1")
    assert counters(wire) == (0, 0, 0, 0)


@MODE
def test_other_databases_fire_but_values_come_from_database_0(wire, mode):
    note(wire, mode=mode, handler="lambda x: execute('rpush', 'seen', repr((x['key'], x['type'], x['value'])))")
    wire.ok("SELECT", "1")
    wire.ok("SET", "k1", "one")
    wire.ok("SELECT", "0")
    wait_list(wire, ["('k1', 'empty', None)"])
    wire.ok("SET", "k1", "zero")
    wait_list(wire, ["('k1', 'empty', None)", "('k1', 'string', 'zero')"])


def test_flushing_and_swapping_fire_nothing(wire):
    note(wire)
    wire.ok("SET", "k1", "1")
    wait_list(wire, ["set:k1:string"])
    for command in (("DEL", "nothing"), ("SWAPDB", "0", "1"), ("SWAPDB", "0", "1"), ("FLUSHDB",), ("FLUSHALL",)):
        wire.ok(*command)
    settled(wire)
    assert counters(wire) == (1, 1, 0, 0)


@MODE
def test_unregistered_ones_do_not_fire(wire, mode):
    note(wire, mode=mode)
    wire.ok("SET", "k1", "1")
    settled(wire)
    (row,) = wire.ok("RG.DUMPREGISTRATIONS")
    assert wire.ok("RG.UNREGISTER", row[1]) == OK
    wire.ok("SET", "k2", "1")
    note(wire, mode=mode)
    wire.ok("SET", "k3", "1")
    settled(wire)
    wait_list(wire, ["set:k1:string", "set:k3:string"])


def test_waiting_events_are_aborted_with_their_registration(wire):
    note(wire, mode="async_local", handler="lambda x: execute('blpop', 'never', '0') or __import__('time').sleep(0.2)")
    for number in range(50):
        wire.ok("SET", f"k{number}", "1")
    (row,) = wire.ok("RG.DUMPREGISTRATIONS")
    assert wire.ok("RG.UNREGISTER", row[1], "ABORTPENDING") == OK
    wait_until(lambda: wire.ok("INFO", "rg").count(b"rg_events_waiting:0") == 1, "no event waiting")


def test_a_running_event_can_be_aborted(wire, other_wire):
    note(wire, mode="async_local", handler="lambda x: [0 for _ in iter(int, 1)]")
    wire.ok("SET", "k1", "1")
    ((execution, _),) = wait_until(
        lambda: [one for one in executions_of(wire).items() if one[1][0] == b"running"], "a running execution"
    )
    other_wire.send("RG.GETRESULTSBLOCKING", execution)
    assert wire.ok("RG.ABORTEXECUTION", execution, timeout=30) == OK
    results, (error,) = pair(other_wire.read(timeout=30))
    assert results == [] and "forcestopped" in error
    settled(wire)
    assert counters(wire) == (1, 0, 1, 0)
    assert executions_of(wire)[execution] == (b"done", 1)


def test_handlers_that_wait_do_not_hold_up_others(wire):
    """As many as there are worker threads run at a time."""
    note(wire, mode="async_local", handler="lambda x: __import__('time').sleep(0.5)")
    start = [wire.ok("TIME")]
    for number in range(6):
        wire.ok("SET", f"k{number}", "1")
    settled(wire)
    start.append(wire.ok("TIME"))
    (s0, us0), (s1, us1) = [[int(one) for one in pair] for pair in start]
    assert (s1 - s0) * 1000 + (us1 - us0) / 1000 < 2500


@pytest.mark.parametrize("mode", ["async_local", "async"])
def test_endless_chains_end(wire, mode):
    wire.ok("RG.CONFIGSET", "MaxEventDepth", "10")
    register(
        wire,
        f"GB().foreach(lambda x: execute('incr', x['key'])).register('loop', mode={mode!r}, eventTypes=['incrby'])",
    )
    wire.ok("INCR", "loop")
    settled(wire)
    assert wire.ok("GET", "loop") == b"11"
    assert counters(wire) == (11, 10, 0, 1)
    error = data(wire)["lastError"].decode()
    assert "chain of 10 events" in error and "MaxEventDepth" in error
    (line,) = [line for line in wire.ok("INFO", "rg").decode().splitlines() if line.startswith("rg_events_too_deep:")]
    assert int(line.partition(":")[2]) >= 1


# Handlers that would break a server that runs them inside the command: each deletes or overwrites what the command
# still uses.
DESTROY = "lambda x: [execute('del', x['key']), execute('set', 'other', 'x' * 100), execute('flushall')]"
RUDE = [
    ("SET", "k", "v"),
    ("SET", "k", "v" * 100, "GET"),
    ("SET", "k", "v", "PX", "100000"),
    ("GETSET", "k", "w"),
    ("GETDEL", "k"),
    ("GETEX", "k", "PX", "100000"),
    ("INCRBYFLOAT", "f", "1.5"),
    ("HINCRBYFLOAT", "h", "f", "1.5"),
    ("INCR", "n"),
    ("APPEND", "k", "tail"),
    ("SETRANGE", "k", "2", "tail"),
    ("SETBIT", "b", "7", "1"),
    ("BITOP", "NOT", "dest", "k"),
    ("MSET", "k", "1", "f", "2", "h2", "3"),
    ("RPUSH", "l", "1", "2"),
    ("LPOP", "l"),
    ("RPOPLPUSH", "l", "l2"),
    ("LMOVE", "l", "l2", "LEFT", "RIGHT"),
    ("BLPOP", "l", "0"),
    ("LINSERT", "l", "BEFORE", "b", "c"),
    ("LTRIM", "l", "1", "0"),
    ("HSET", "h", "f", "v"),
    ("HDEL", "h", "f"),
    ("SADD", "s", "c", "d"),
    ("SPOP", "s"),
    ("SPOP", "s", "5"),
    ("SMOVE", "s", "s2", "a"),
    ("SUNIONSTORE", "s3", "s", "s2"),
    ("ZADD", "z", "1", "b"),
    ("ZINCRBY", "z", "1", "a"),
    ("ZPOPMIN", "z"),
    ("ZRANGESTORE", "z2", "z", "0", "-1"),
    ("XADD", "x", "*", "a", "b"),
    ("XTRIM", "x", "MAXLEN", "0"),
    ("PFADD", "p", "a"),
    ("GEOADD", "g", "1", "1", "a"),
    ("SORT", "l", "ALPHA", "STORE", "sorted"),
    ("EXPIRE", "k", "100"),
    ("PERSIST", "k"),
    ("RENAME", "k", "k2"),
    ("COPY", "k", "k2"),
    ("MOVE", "k", "1"),
    ("RESTORE", "r", "0", "dump"),
    ("DEL", "k"),
    ("UNLINK", "k", "l", "h"),
    ("GET", "missing"),
    ("EVAL", "redis.call('set', 'k', 'v'); return redis.call('get', 'k')", "1", "k"),
]


@pytest.mark.parametrize("command", RUDE, ids=lambda command: " ".join(command)[:40])
def test_sync_handlers_may_destroy_what_fired_them(wire, command):
    def fill():
        wire.ok("FLUSHALL")
        wire.ok("SET", "k", "value", "EX", "1000")
        wire.ok("SET", "f", "1")
        wire.ok("SET", "n", "1")
        wire.ok("RPUSH", "l", "a", "b")
        wire.ok("HSET", "h", "f", "1")
        wire.ok("SADD", "s", "a", "b")
        wire.ok("ZADD", "z", "1", "a")
        wire.ok("XADD", "x", "1-1", "a", "b")

    fill()
    dump = wire.ok("DUMP", "k")
    command = [dump if word == "dump" else word for word in command]
    without = wire.call(*command)
    fill()
    register(wire, f"GB().foreach({DESTROY}).register('*', mode='sync')")
    with_handler = wire.call(*command)
    assert not isinstance(with_handler, Error) or with_handler == without
    if command[0] not in ("SPOP", "XADD", "EVAL"):
        assert with_handler == without
    wire.ok("PING")
    assert wire.ok("DBSIZE") == 0
    triggered, success, failed, aborted = counters(wire)
    assert triggered == success >= 1 and failed == aborted == 0


def test_hooks_do_not_take_over_the_reading_of_records(wire):
    register(
        wire,
        f"""
GB('CommandReader').map(lambda x: 'hooked').register(hook='get', mode='sync')
GB().foreach(lambda x: execute('rpush', 'seen', x['value'])).register('k*', mode='sync', eventTypes=['set', 'hset'])
GB().foreach({NOTE}).register('b*', mode='async_local', eventTypes=['set'])
""",
    )
    wire.ok("SET", "k1", "own")
    assert wire.ok("GET", "k1") == b"hooked"
    wait_list(wire, ["own"])
    assert wire.ok("RG.PYEXECUTE", "GB().map(lambda x: x['value']).run('k1')")[0] == [b"own"]
