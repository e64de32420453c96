"""The server tells of events of strings, lists and sets only once a command comes that may raise one for a
registration: whichever way the first write comes, its event fires."""

import pytest
from firing import counters
from replies import wait_until
from wire import Simple, Wire

OK = Simple("OK")
QUEUED = Simple("QUEUED")

# The last command of each raises an event of a key that begins with `k:`, the first one since the registration.
WRITES = {
    "plain": [("SET", "other", "1"), ("SET", "k:1", "x")],
    "any case": [("sEt", "k:1", "x")],
    "not the first key": [("MSET", "a", "1", "k:1", "2")],
    "destination": [("RPUSH", "a", "1"), ("LMOVE", "a", "k:1", "LEFT", "RIGHT")],
    "movable keys": [("RPUSH", "a", "1"), ("SORT", "a", "STORE", "k:1")],
    "script": [("EVAL", "redis.call('set', 'other', 1) return redis.call('sadd', 'k:1', 'x')", "0")],
    "transaction": [("MULTI",), ("SET", "other", "1"), ("ZADD", "k:1", "1", "x"), ("EXEC",)],
    "function": [("RG.PYEXECUTE", "execute('SET', 'k:1', 'x')")],
    "hash": [("HSET", "k:1", "f", "x")],
}


EVENTS = "GB().foreach(lambda x: None).register('k:*', mode='{mode}', readValue=False)"


def register(wire, mode="async_local"):
    assert wire.ok("RG.PYEXECUTE", EVENTS.format(mode=mode)) == OK


def fires(wire):
    wait_until(lambda: counters(wire)[:2] == (1, 1), "the event of the first write")


@pytest.mark.parametrize("way", WRITES)
def test_the_first_write_fires_whichever_way_it_comes(fresh, way):
    first_write(fresh, way, "async_local")


@pytest.mark.matrix
@pytest.mark.parametrize("way", ("plain", "movable keys", "script"))
def test_a_sync_handler_runs_for_the_first_write(fresh, way):
    first_write(fresh, way, "sync")


def first_write(fresh, way, mode):
    with Wire(fresh().port) as wire:
        register(wire, mode)
        for command in WRITES[way]:
            wire.ok(*command)
        fires(wire)


def test_a_write_that_was_queued_before_fires(fresh):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as other:
        assert (other.ok("MULTI"), other.ok("SET", "k:1", "x")) == (OK, QUEUED)
        register(wire)
        assert other.ok("EXEC") == [OK]
        fires(wire)


def test_a_transaction_that_registers_fires(fresh):
    code = f"""
def f(x):
    {EVENTS.format(mode="async_local")}
GB('CommandReader').map(f).register(trigger='begin', mode='sync')
"""
    with Wire(fresh().port) as wire:
        assert wire.ok("RG.PYEXECUTE", code) == OK
        assert wire.ok("MULTI") == OK
        for command in ("RG.TRIGGER", "begin"), ("SET", "k:1", "x"):
            assert wire.ok(*command) == QUEUED
        wire.ok("EXEC")
        wait_until(lambda: counters(wire, 1)[:2] == (1, 1), "the event of the first write")


@pytest.mark.parametrize("when", ("before", "after"))
def test_a_client_that_waits_for_another_key_fires(fresh, when):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as other:
        if when == "after":
            register(wire)
        other.send("BLMOVE", "a", "k:1", "LEFT", "RIGHT", "0")
        wait_until(lambda: b"blocked_clients:1" in wire.ok("INFO", "clients"), "a client that waits")
        if when == "before":
            register(wire)
        assert wire.ok("RPUSH", "a", "x") == 1
        assert other.read() == b"x"
        fires(wire)


@pytest.mark.matrix
def test_a_client_that_waits_after_a_pause_fires(fresh):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as admin, Wire(server.port) as other:
        assert admin.ok("CLIENT", "PAUSE", "800", "WRITE") == OK
        other.send("BLMOVE", "a", "k:1", "LEFT", "RIGHT", "0")
        wait_until(lambda: b"cmd=blmove" in admin.ok("CLIENT", "LIST"), "a client that is held up")
        # It becomes active as the pause ends.
        register(wire)
        wait_until(lambda: b"blocked_clients:1" in admin.ok("INFO", "clients"), "a client that waits")
        assert admin.ok("RPUSH", "a", "x") == 1
        assert other.read() == b"x"
        fires(wire)


@pytest.mark.parametrize("hidden", ((), ("--rename-command", "COMMAND", ""), ("--rename-command", "MODULE", "")))
def test_a_command_under_another_name_fires(fresh, hidden):
    with Wire(fresh(server_args=("--rename-command", "SET", "PUT", *hidden)).port) as wire:
        register(wire)
        assert wire.ok("PUT", "k:1", "x") == OK
        fires(wire)


def test_what_a_hook_writes_instead_fires(fresh):
    with Wire(fresh().port) as wire:
        hook = "GB('CommandReader').map(lambda x: call_next('k:1', 'x')).register(hook='set', keyprefix='z')"
        assert wire.ok("RG.PYEXECUTE", hook) == OK
        register(wire)
        assert wire.ok("SET", "z", "x") == b"OK"
        wait_until(lambda: counters(wire, 1)[:2] == (1, 1), "the event of the first write")


def test_what_an_atomic_batch_writes_fires(fresh):
    with Wire(fresh().port) as wire:
        wire.ok("XADD", "s", "*", "f", "v")
        register(wire)
        step = "lambda x: execute('SET', 'k:1', 'x')"
        batch = f"GB('StreamReader').foreach({step}).register('s', atomicBatch=True, mode='async_local')"
        assert wire.ok("RG.PYEXECUTE", batch) == OK
        fires(wire)
