"""The events that commands raise, as registrations without filters see them; expiry and eviction."""

import dataclasses

import pytest
from firing import NOTE, counters, listed, settled, wait_list
from registrations import MODES, register
from replies import wait_until
from wire import Error, Wire

pytestmark = pytest.mark.matrix


@dataclasses.dataclass(frozen=True)
class Row:
    """Commands that make data, commands that are looked at, and the events of those as `event:key:type`."""

    commands: tuple
    events: tuple
    before: tuple = ()

    @property
    def id(self):
        return " ; ".join(" ".join(command) for command in self.commands)


def one(*command):
    return (command,)


HAS_K = one("SET", "k", "1")
HAS_LIST = one("RPUSH", "k", "v")
ROWS = [
    Row(one("SET", "k", "v"), ("set:k:string",)),
    Row(one("GETSET", "k", "v"), ("set:k:string",), HAS_K),
    Row(one("MSET", "k1", "v", "k2", "v"), ("set:k1:string", "set:k2:string")),
    Row(one("SET", "k", "v", "PX", "100000"), ("set:k:string", "expire:k:string")),
    Row(one("SETEX", "k", "100", "v"), ("set:k:string", "expire:k:string")),
    Row(one("GETDEL", "k"), ("del:k:empty",), HAS_K),
    Row(one("DEL", "k"), ("del:k:empty",), HAS_K),
    Row(one("UNLINK", "k"), ("del:k:empty",), HAS_K),
    Row(one("INCR", "k"), ("incrby:k:string",)),
    Row(one("INCRBY", "k", "2"), ("incrby:k:string",)),
    Row(one("INCRBYFLOAT", "k", "1.5"), ("incrbyfloat:k:string",)),
    Row(one("APPEND", "k", "v"), ("append:k:string",)),
    Row(one("SETRANGE", "k", "0", "v"), ("setrange:k:string",)),
    Row(one("SETBIT", "k", "0", "1"), ("setbit:k:string",)),
    Row(one("EXPIRE", "k", "100"), ("expire:k:string",), HAS_K),
    Row(one("PERSIST", "k"), ("persist:k:string",), one("SET", "k", "v", "EX", "100")),
    Row(one("HSET", "k", "f", "v"), ("hset:k:hash",)),
    Row(one("HDEL", "k", "f"), ("hdel:k:empty", "del:k:empty"), one("HSET", "k", "f", "v")),
    Row(one("RPUSH", "k", "v"), ("rpush:k:list",)),
    Row(one("LPUSH", "k", "v"), ("lpush:k:list",)),
    Row(one("LPOP", "k"), ("lpop:k:empty", "del:k:empty"), HAS_LIST),
    Row(
        one("RPOPLPUSH", "k", "k2"),
        ("lpush:k2:list", "rpop:k:empty", "del:k:empty"),
        HAS_LIST,
    ),
    Row(one("SADD", "k", "v"), ("sadd:k:set",)),
    Row(one("SPOP", "k"), ("spop:k:set",), one("SADD", "k", "a", "b")),
    Row(one("ZADD", "k", "1", "v"), ("zadd:k:zset",)),
    Row(one("ZINCRBY", "k", "1", "v"), ("zincr:k:zset",)),
    Row(one("GEOADD", "k", "1", "1", "v"), ("zadd:k:zset",)),
    Row(one("PFADD", "k", "v"), ("pfadd:k:string",)),
    Row(one("XADD", "k", "*", "f", "v"), ("xadd:k:unknown",)),
    Row(one("XTRIM", "k", "MAXLEN", "0"), ("xtrim:k:unknown",), one("XADD", "k", "*", "f", "v")),
    Row(one("RENAME", "k", "k2"), ("rename_from:k:empty", "rename_to:k2:string"), HAS_K),
    Row(one("COPY", "k", "k2"), ("copy_to:k2:string",), HAS_K),
    Row(one("DEL", "nothing"), ()),
    Row(one("FLUSHALL"), (), HAS_K),
    *(
        Row((command,), (f"keymiss:{key}:empty",))
        for key, command in [
            ("k", ("GET", "k")),
            ("k", ("HGET", "k", "f")),
            ("k", ("EXISTS", "k")),
            ("k", ("TYPE", "k")),
            ("k", ("TTL", "k")),
            ("k", ("STRLEN", "k")),
            ("k", ("LRANGE", "k", "0", "-1")),
        ]
    ),
    Row(one("MGET", "k1", "k2"), ("keymiss:k1:empty", "keymiss:k2:empty")),
    Row(
        (("RPUSH", "k", "a"), ("LPOP", "k")),
        ("rpush:k:list", "lpop:k:empty", "del:k:empty"),
    ),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_events_of_commands(wire, row, mode):
    for command in row.before:
        wire.ok(*command)
    register(wire, f"GB().filter(lambda x: x['key'] != 'seen').foreach({NOTE}).register('*', mode={mode!r})")
    for command in row.commands:
        wire.ok(*command)
        if mode != "sync":
            settled(wire)
    wanted = list(row.events)
    settled(wire)
    assert sorted(listed(wire)) == sorted(wanted) if mode != "sync" else listed(wire) == wanted


@pytest.mark.parametrize("mode", MODES)
def test_background_executions_see_the_key_as_it_is_then(wire, mode):
    """Between the event and the execution the key may change; the name of the event stays."""
    register(
        wire,
        f"""
def hold(x):
    import time
    while execute('exists', 'gate') == 0:
        time.sleep(0.001)
GB().foreach(hold).register('hold', mode='async_local', eventTypes=['set'])
GB().foreach({NOTE}).register('l', mode={mode!r})
""",
    )
    wire.ok("MULTI")
    wire.ok("RPUSH", "l", "a")
    wire.ok("LPOP", "l")
    wire.ok("EXEC")
    wire.ok("SET", "gate", "1")
    settled(wire)
    seen = listed(wire)
    if mode == "sync":
        assert [one.split(":")[0] for one in seen] == ["rpush", "lpop", "del"]
    else:
        assert sorted(seen) == ["del:l:empty", "lpop:l:empty", "rpush:l:empty"]


@pytest.mark.parametrize("mode", MODES)
def test_expired_on_access_and_in_the_background(wire, mode):
    register(wire, f"GB().foreach({NOTE}).register('k*', mode={mode!r}, eventTypes=['expired'])")
    wire.ok("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    wire.ok("SET", "k1", "v", "PX", "1")
    wait_until(lambda: wire.ok("GET", "k1") is None, "k1 being gone")
    wait_list(wire, ["expired:k1:empty"])
    wire.ok("DEBUG", "SET-ACTIVE-EXPIRE", "1")
    wire.ok("SET", "k2", "v", "PX", "1")
    wait_list(wire, ["expired:k1:empty", "expired:k2:empty"])


@pytest.mark.parametrize("mode", MODES)
def test_evicted(fresh, mode):
    server = fresh()
    with Wire(server.port) as wire:
        register(
            wire,
            f"GB().foreach(lambda x: log('EVICTED %s %s %s' % (x['key'], x['type'], x['value'])))"
            f".register('k*', mode={mode!r}, eventTypes=['evicted'])",
        )
        for number in range(200):
            wire.ok("SET", f"k{number}", "x" * 10_000)
        used = int(
            [line for line in wire.ok("INFO", "memory").split(b"\r\n") if line.startswith(b"used_memory:")][0][12:]
        )
        wire.ok("CONFIG", "SET", "maxmemory", used - 500_000, "maxmemory-policy", "allkeys-random")
        wait_until(
            lambda: not isinstance(wire.call("SET", "other", "1"), Error) and wire.ok("DBSIZE") < 190, "evictions"
        )
        settled(wire)
        triggered, success, failed, aborted = counters(wire)
        assert triggered == success >= 10 and failed == aborted == 0
        wait_until(lambda: server.log().count("EVICTED k") >= 10, "the handlers' lines")
        assert " empty None" in server.log()


def test_events_of_modules_types(wire):
    """The module's own timers are keys of a module type."""
    register(wire, f"GB().foreach({NOTE}).register('te*', mode='sync', keyTypes=['module', 'empty'])")
    wire.ok("RG.PYEXECUTE", "registerTE(100, lambda: None, 'te1')")
    wire.ok("COPY", "te1", "te2")
    wire.ok("DEL", "te1")
    settled(wire)
    assert "del:te1:empty" in listed(wire)
