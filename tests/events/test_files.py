"""Commands that write the server's files, called by functions.

What the server forks in the middle of a function would hold what that has written so far, though it is not told to the
append-only file and replicas yet: after a restart it would be there twice. So the server does it when the function is
over, as for clients that ask within MULTI.
"""

import pytest
from firing import data
from persisting import info, wait_idle
from registrations import register
from replies import is_error, wait_until
from wire import Error, Wire

pytestmark = pytest.mark.matrix

AOF = ("--appendonly", "yes", "--appendfsync", "always")
SCHEDULED = {
    "bgrewriteaof": b"Background append only file rewriting scheduled",
    "bgsave": b"Background saving scheduled",
}
# What a function does, and where it runs within one hold of the lock.
CODE = """
def work(x):
    execute('incr', 'n')
    execute('set', 'said', execute('%s'))
    execute('incr', 'n')
def within(x):
    with atomic():
        work(x)
GB('CommandReader').foreach(work).register(trigger='trigger', mode='sync')
GB('CommandReader').foreach(within).register(trigger='atomic', mode='async_local')
GB().foreach(work).register('handled', mode='sync', eventTypes=['incrby'])
"""
WHERE = {
    "trigger": [("RG.TRIGGER", "trigger")],
    "transaction": [("MULTI",), ("INCR", "n"), ("RG.TRIGGER", "trigger"), ("EXEC",)],
    "script": [("EVAL", "redis.call('INCR', 'n') return redis.call('RG.TRIGGER', 'trigger')", "0")],
    "handler": [("INCR", "handled")],
    "atomic": [("RG.TRIGGER", "atomic")],
}
KEYS = ("n", "handled")


DONE = {"bgrewriteaof": "aof_rewrites", "bgsave": "rdb_saves"}


def count(server, command):
    """How many files of that kind the server has begun to write."""
    return info(server, "persistence")[DONE[command]]


def wait_written(server, command, number):
    wait_until(lambda: count(server, command) == number, "a file being written")
    wait_idle(server)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("command", SCHEDULED)
def test_nothing_is_there_twice(fresh, command, where):
    server = fresh(server_args=AOF)
    with Wire(server.port) as wire:
        register(wire, CODE % command)
        before = count(server, command)
        for words in WHERE[where]:
            wire.ok(*words)
        assert wire.ok("GET", "said") == SCHEDULED[command]
        values = wire.ok("MGET", *KEYS)
        assert values[0] == (b"3" if where in ("transaction", "script") else b"2")
        wait_written(server, command, before + 1)
        wire.ok("SET", "last", "1")
    server.kill()
    server.start()
    with Wire(server.port) as wire:
        assert wire.ok("MGET", *KEYS, "last") == [*values, b"1"]


def test_a_dump_has_all_that_the_function_writes(fresh):
    """Nothing else is there after a restart, without an append-only file."""
    server = fresh()
    with Wire(server.port) as wire:
        register(wire, CODE % "bgsave")
        before = count(server, "bgsave")
        wire.ok("RG.TRIGGER", "trigger")
        wait_written(server, "bgsave", before + 1)
    server.kill()
    server.start()
    with Wire(server.port) as wire:
        assert wire.ok("MGET", "n", "said") == [b"2", SCHEDULED["bgsave"]]


@pytest.mark.parametrize("where", WHERE)
def test_no_dump_is_made_within_a_function(fresh, where):
    """It would be half of what the function writes."""
    server = fresh()
    with Wire(server.port) as wire:
        register(wire, CODE % "save")
        before = count(server, "bgsave")
        *_, reply = [wire.call(*words) for words in WHERE[where]]
        if where == "handler":
            assert reply == 1
            error = Error(data(wire, 2)["lastError"].decode())
        else:
            error = reply[-1] if isinstance(reply, list) else reply
        assert is_error(error, "functions can not call it here")
        assert count(server, "bgsave") == before
        assert wire.ok("GET", "said") is None


@pytest.mark.parametrize("command", SCHEDULED)
def test_users_need_the_right(fresh, command):
    server = fresh(server_args=AOF)
    with Wire(server.port) as wire, Wire(server.port) as other:
        wire.ok("ACL", "SETUSER", "bob", "on", "nopass", "~*", "&*", "+@all", f"-{command}")
        other.ok("AUTH", "bob", "x")
        register(other, CODE % command)
        before = count(server, command)
        for trigger in "trigger", "atomic":
            assert is_error(wire.call("RG.TRIGGER", trigger), "NOPERM user 'bob'", command)
        wire.ok("INCR", "handled")
        assert wire.ok("MGET", "n", "said") == [b"3", None]
        assert count(server, command) == before


@pytest.mark.parametrize("command", SCHEDULED)
def test_functions_that_do_not_hold_the_lock_may(fresh, command):
    server = fresh(server_args=AOF)
    with Wire(server.port) as wire:
        code = f"GB('CommandReader').map(lambda x: execute('{command}')).register(trigger='t', mode='async_local')"
        register(wire, code)
        before = count(server, command)
        assert wire.ok("RG.TRIGGER", "t")[0].endswith(b" started")
        wait_written(server, command, before + 1)
