"""Which commands run with their sync handlers, by the events that they can raise; values that are at hand for them."""

import pytest
from firing import listed, settled
from registrations import register
from wire import Error, Simple

pytestmark = pytest.mark.matrix

LOG = "lambda x: execute('rpush', 'log', x['event'])"
SEE = "lambda x: execute('hset', 'seen', x['key'], repr(x['value']))"

# Commands that make the key, the command, an event that it raises.
RAISING = [
    ([], "APPEND k v", "append"),
    ([], "DECR k", "incrby"),
    ([], "DECRBY k 2", "incrby"),
    (["SET k 1"], "DEL k", "del"),
    (["SET k 1"], "UNLINK k", "del"),
    (["SET k 1"], "GETDEL k", "del"),
    (["SET k 1"], "GETEX k EX 100", "expire"),
    (["SET k 1"], "EXPIRE k 100", "expire"),
    (["SET k 1"], "PEXPIRE k 100000", "expire"),
    (["SET k 1"], "EXPIREAT k 9999999999", "expire"),
    (["SET k 1"], "PEXPIREAT k 9999999999999", "expire"),
    # Servers differ in the name for it.
    (["SET k 1"], "EXPIRE k -1", "del expired"),
    (["SET k 1"], "EXPIREAT k 1", "del expired"),
    (["SET k 1"], "GETSET k 2", "set"),
    (["HSET k f 1"], "HDEL k f", "hdel"),
    (["HSET k f 1"], "HDEL k f", "del"),
    ([], "HINCRBY k f 1", "hincrby"),
    ([], "HINCRBYFLOAT k f 1.5", "hincrbyfloat"),
    ([], "HMSET k f 1", "hset"),
    ([], "HSET k f 1", "hset"),
    ([], "HSETNX k f 1", "hset"),
    ([], "INCR k", "incrby"),
    ([], "INCRBY k 2", "incrby"),
    ([], "INCRBYFLOAT k 1.5", "incrbyfloat"),
    (["RPUSH k 1"], "LINSERT k BEFORE 1 0", "linsert"),
    (["RPUSH k 1 2"], "LPOP k", "lpop"),
    (["RPUSH k 1"], "LPOP k", "del"),
    ([], "LPUSH k 1", "lpush"),
    (["RPUSH k 1"], "LPUSHX k 1", "lpush"),
    (["RPUSH k 1 2"], "LREM k 0 1", "lrem"),
    (["RPUSH k 1"], "LREM k 0 1", "del"),
    (["RPUSH k 1"], "LSET k 0 2", "lset"),
    (["RPUSH k 1 2"], "LTRIM k 0 0", "ltrim"),
    (["RPUSH k 1"], "LTRIM k 5 9", "del"),
    ([], "MSET k 1 k2 2", "set"),
    ([], "MSETNX k 1 k2 2", "set"),
    (["SET k 1 EX 100"], "PERSIST k", "persist"),
    ([], "PSETEX k 100000 1", "set"),
    ([], "PSETEX k 100000 1", "expire"),
    ([], "SETEX k 100 1", "set"),
    ([], "SETEX k 100 1", "expire"),
    (["RPUSH k 1 2"], "RPOP k", "rpop"),
    (["RPUSH k 1"], "RPOP k", "del"),
    ([], "RPUSH k 1", "rpush"),
    (["RPUSH k 1"], "RPUSHX k 1", "rpush"),
    ([], "SADD k 1", "sadd"),
    (["SADD k 1 2"], "SREM k 1", "srem"),
    (["SADD k 1"], "SREM k 1", "del"),
    (["SADD k 1"], "SPOP k", "spop"),
    (["SADD k 1"], "SPOP k", "del"),
    ([], "SET k 1", "set"),
    ([], "SET k 1 EX 100", "expire"),
    ([], "SETNX k 1", "set"),
    ([], "SETRANGE k 3 x", "setrange"),
    ([], "SETBIT k 3 1", "setbit"),
    ([], "XADD k 1-1 f v", "xadd"),
    (["XADD k 1-1 f v"], "XADD k MAXLEN 1 2-1 f v", "xtrim"),
    ([], "ZADD k 1 a", "zadd"),
    ([], "ZADD k INCR 1 a", "zincr"),
    ([], "ZINCRBY k 1 a", "zincr"),
    (["ZADD k 1 a 2 b"], "ZREM k a", "zrem"),
    (["ZADD k 1 a"], "ZREM k a", "del"),
    (["ZADD k 1 a"], "ZPOPMIN k", "zpopmin"),
    (["SET k 1"], "RENAME k k2", "rename_from"),
    (["SET k 1"], "RENAME k k2", "rename_to"),
    (["SET k 1"], "COPY k k2", "copy_to"),
    (["RPUSH k 1"], "SORT k STORE k2", "sortstore"),
]
# The same with other words, on servers that have them.
IN_ANY_CASE = [("set", "SeT k 1", "set"), ("HSET", "hset k f 1", "hset")]


def run(wire, command):
    return wire.call(*command.split())


@pytest.mark.parametrize("made, command, event", RAISING, ids=[f"{c}-{e}" for _, c, e in RAISING])
def test_the_handler_of_an_event_runs_within_each_command_that_raises_it(wire, made, command, event):
    events = event.split()
    register(wire, f"GB().foreach({LOG}).register('k*', mode='sync', eventTypes={events!r})")
    for one in made:
        run(wire, one)
    settled(wire)
    wire.ok("DEL", "log")
    wire.ok("MULTI")
    run(wire, command)
    wire.ok("LRANGE", "log", "0", "-1")
    done, log = wire.ok("EXEC")
    assert not isinstance(done, Error)
    assert log and {one.decode() for one in log} <= set(events)


@pytest.mark.parametrize("types, command, event", IN_ANY_CASE)
def test_events_and_commands_in_any_case(wire, types, command, event):
    register(wire, f"GB().foreach({LOG}).register('k*', mode='sync', eventTypes=[{types!r}, {types!r}])")
    wire.ok("MULTI")
    run(wire, command)
    wire.ok("LRANGE", "log", "0", "-1")
    assert wire.ok("EXEC")[1] == [event.encode()]


def test_several_registrations_for_several_events(wire):
    for types in (["set"], ["hset", "del"], ["hset"], ["set", "expired"]):
        register(wire, f"GB().foreach({LOG}).register('k*', mode='sync', eventTypes={types!r})")
    for command, count in (("SET k 1", 2), ("DEL k", 1), ("HSET k f 1", 2), ("INCR k2", 0)):
        wire.ok("DEL", "log")
        wire.ok("MULTI")
        run(wire, command)
        wire.ok("LLEN", "log")
        assert wire.ok("EXEC")[1] == count, command


def commands_run(wire, name):
    """How often the server has run a command."""
    found = [
        line for line in wire.ok("INFO", "commandstats").decode().splitlines() if line.startswith(f"cmdstat_{name}:")
    ]
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in found)


def test_a_command_that_can_not_raise_the_event_is_not_taken_over(wire):
    register(wire, f"GB().foreach({LOG}).register('k*', mode='sync', eventTypes=['hset'])")
    wire.ok("CONFIG", "RESETSTAT")
    wire.ok("SET", "k1", "1")
    stats = wire.ok("INFO", "commandstats")
    assert commands_run(wire, "set") == 1 and b"innerhook" not in stats
    wire.ok("HSET", "k2", "f", "1")
    assert b"innerhook" in wire.ok("INFO", "commandstats")


VALUES = [
    b"",
    b"v",
    b"0",
    b"-17",
    b"007",
    b"9223372036854775808",
    "žluť".encode(),
    b"\xff\x00\xfe",
    b"x" * 44,
    b"x" * 45,
    b"y" * 5000,
]


@pytest.mark.parametrize("value", VALUES, ids=[repr(value[:20]) for value in VALUES])
def test_the_value_that_was_just_set_is_seen_as_it_is_read_later(wire, value):
    """Also its encoding stays what the server makes of it."""
    wire.ok("SET", "plain", value)
    register(wire, f"GB().foreach({SEE}).register('k*', mode='sync', eventTypes=['set'])")
    wire.ok("SET", "k", value)
    wire.ok("MSET", "k2", value)
    first, second = wire.ok("HMGET", "seen", "k", "k2")
    assert first == second and first is not None
    assert wire.ok("GET", "k") == value
    wire.ok("GETSET", "k3", value)
    wire.ok("SETEX", "k4", "100", value)
    encodings = {wire.ok("OBJECT", "ENCODING", key) for key in ("k", "k2", "k3", "k4")}
    assert encodings == {wire.ok("OBJECT", "ENCODING", "plain")}


def test_what_a_handler_changes_is_seen_by_the_next_one(wire):
    change = "lambda x: execute('set', x['key'], x['value'] + '!')"
    register(wire, f"GB().foreach({change}).register('k*', mode='sync', eventTypes=['set'])")
    register(wire, f"GB().foreach({SEE}).register('k*', mode='sync', eventTypes=['set'])")
    wire.ok("SET", "k", "v")
    assert (wire.ok("GET", "k"), wire.ok("HGET", "seen", "k")) == (b"v!", b"'v!'")
    gone = "lambda x: execute('del', x['key'])"
    register(wire, f"GB().foreach({gone}).register('l*', mode='sync', eventTypes=['set'])")
    register(wire, f"GB().foreach({SEE}).register('l*', mode='sync', eventTypes=['set'])")
    wire.ok("SET", "l", "v")
    assert wire.ok("HGET", "seen", "l") == b"None"


def test_only_a_set_that_was_done_counts(wire):
    register(wire, f"GB().foreach({SEE}).register('k*', mode='sync')")
    wire.ok("SET", "k", "old")
    # Not set at all, and set in a way that is read again.
    for command in (("SET", "k", "x", "NX"), ("SET", "k", "new", "GET"), ("SET", "k", "newer", "KEEPTTL")):
        wire.call(*command)
        settled(wire)
        assert wire.ok("HGET", "seen", "k").decode() == repr(wire.ok("GET", "k").decode())
    assert isinstance(wire.call("SET", "k"), Error)
    wire.ok("CONFIG", "SET", "maxmemory", "1")
    try:
        assert isinstance(wire.call("SET", "k", "refused"), Error)
    finally:
        wire.ok("CONFIG", "SET", "maxmemory", "0")
    settled(wire)
    assert wire.ok("HGET", "seen", "k") == b"'newer'"


def test_a_set_in_another_database_is_not_taken_for_one_here(wire):
    register(wire, f"GB().foreach({SEE}).register('k*', mode='sync')")
    wire.ok("SET", "k", "here")
    wire.ok("SELECT", "3")
    assert wire.ok("SET", "k", "there") == Simple("OK")
    wire.ok("SELECT", "0")
    settled(wire)
    assert wire.ok("HGET", "seen", "k") == b"'here'"
    assert wire.ok("GET", "k") == b"here"


@pytest.mark.parametrize("size", [3, 40_000, 70_000])
def test_many_waiting_events_read_values_of_all_kinds(wire, size):
    """Strings are asked for several at once; what is none of them, is large or is gone is read alone."""
    register(
        wire,
        "def see(x):\n"
        "    import time\n"
        "    if x['key'] == 'k0':\n"
        "        while not execute('exists', 'go'): time.sleep(0.005)\n"
        "    v = x['value']\n"
        "    execute('rpush', 'seen', '%s:%s:%s' % (x['key'], x['type'], len(v) if v is not None else None))\n"
        "GB().foreach(see).register('k*', mode='async_local', eventTypes=['set'])",
    )
    count = 60
    for number in range(count):
        wire.ok("SET", f"k{number}", "x" * (size * (1 + number % 2)))
    wire.ok("DEL", "k7", "k8")
    wire.ok("RPUSH", "k8", "a", "b")
    wire.ok("SET", "go", "1")
    settled(wire)
    seen = listed(wire)
    assert len(seen) == count
    # Those that were read before the first one waited may show what was there then.
    for number in range(9, count):
        assert f"k{number}:string:{size * (1 + number % 2)}" in seen
