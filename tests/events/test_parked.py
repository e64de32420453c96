"""Commands that find the interpreter busy: what they may do, and for whom, stays as it was when they came."""

import contextlib

import pytest
from moving import Move
from persisting import follow, wait_following
from registrations import register, status_of, wait_applied
from replies import is_error, own_tag, wait_until
from wire import Error, Simple, Wire

SPIN = "GB('ShardsIDReader').foreach(lambda x: [None for _ in iter(int, 1)]).run(mode='async_local')"
# C code that does not let others have it.
HOLD = """
import ctypes
hold = lambda x: (execute('set', 'held', '1'), ctypes.PyDLL(None).usleep(%d))
GB('ShardsIDReader').foreach(hold).run(mode='async_local')
"""


@contextlib.contextmanager
def computing(wire):
    """Python code that never ends, and lets others have the interpreter now and then."""
    execution = wire.ok("RG.PYEXECUTE", SPIN, "UNBLOCKING")
    try:
        yield
    finally:
        wire.ok("RG.ABORTEXECUTION", execution)


@pytest.mark.matrix
def test_a_server_that_has_become_a_replica_does_not_run_them(fresh):
    master, replica = fresh(), fresh()
    follow(replica, master)
    wait_following(replica, master)
    with Wire(master.port) as wire, Wire(replica.port) as other, Wire(master.port) as client, Wire(master.port) as hog:
        register(wire, "GB().foreach(lambda x: execute('incr', 'handled')).register('k*', mode='sync')")
        hog.send("RG.PYEXECUTE", HOLD % 2_500_000)
        wait_until(lambda: wire.ok("EXISTS", "held"), "the code holding the interpreter")
        # It has asked for the interpreter when the server takes the next command.
        client.send("SET", "k1", "v")
        wire.ok("PING")
        assert not client.has_reply(0.2)
        other.ok("REPLICAOF", "NO", "ONE")
        wire.ok("REPLICAOF", "127.0.0.1", replica.port)
        assert client.read().text.startswith("UNBLOCKED")
        wait_following(master, replica)
        hog.read()
        # What waited for the interpreter has had it by then.
        assert wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').run()")
        other.ok("SET", "later", "v")
        wait_until(lambda: wire.ok("EXISTS", "later"), "the link between the two")
        assert [one.ok("EXISTS", "k1", "handled") for one in (wire, other)] == [0, 0]


@pytest.mark.matrix
def test_clients_that_have_said_asking(cluster, wires):
    source, target = cluster.servers[:2]
    tag = own_tag(source)
    register(
        wires[0],
        f"""
GB().foreach(lambda x: None).register('k{{{tag}}}*', eventTypes=['set'], mode='sync')
GB('CommandReader').map(lambda x: call_next(*x[1:])).register(hook='append', keyprefix='k*', mode='sync')
GB('CommandReader').map(lambda x: execute('get', x[1])).register(trigger='t', mode='sync')
""",
    )
    wait_applied(cluster.servers, status_of(cluster.servers[0])["applied"])
    # On a slow machine it takes longer than usual until the interpreter is to be had.
    wires[1].ok("RG.CONFIGSET", "InterpreterMaxWaitTime", "900")
    with Move(cluster, source, target, tag), Wire(target.port) as wire, computing(wires[1]):
        for number in range(30):
            key = f"k{{{tag}}}{number}"
            for command, reply in (
                (("SET", key, "v"), Simple("OK")),
                (("APPEND", key, "w"), 2),
                (("RG.TRIGGERONKEY", "t", key), [b"vw"]),
            ):
                wire.ok("ASKING")
                assert wire.ok(*command) == reply
    for number in range(30):
        wires[0].ok("DEL", f"k{{{tag}}}{number}")


@pytest.mark.matrix
def test_clients_that_have_said_readonly(six):
    master = six.masters()[0]
    tag = own_tag(master)
    with Wire(master.port) as wire:
        register(
            wire,
            "GB('CommandReader').map(lambda x: call_next(*x[1:])).register(hook='get', keyprefix='k*', mode='sync')",
        )
        wait_applied(six.servers, status_of(master)["applied"])
        wire.ok("SET", f"k{{{tag}}}", "v")
        replica = next(one for one in six.replicas() if one.command("ROLE")[2] == master.port)
        with Wire(replica.port) as reader, Wire(replica.port) as other:
            reader.ok("READONLY")
            wait_until(lambda: reader.call("GET", f"k{{{tag}}}") == b"v", "the value")
            # On a slow machine it takes longer than usual until the interpreter is to be had.
            other.ok("RG.CONFIGSET", "InterpreterMaxWaitTime", "900")
            try:
                with computing(other):
                    assert [reader.call("GET", f"k{{{tag}}}") for _ in range(30)] == [b"v"] * 30
            finally:
                other.ok("RG.CONFIGSET", "InterpreterMaxWaitTime", "50")
        wire.ok("DEL", f"k{{{tag}}}")


def in_multi(wire, command, registration):
    wire.ok("MULTI")
    wire.ok(command, registration)
    (reply,) = wire.ok("EXEC")
    return reply


def in_a_script_that_does_not_write(wire, command, registration):
    return wire.call("EVAL", "#!lua flags=no-writes\nreturn redis.pcall(unpack(ARGV))", 0, command, registration)


def in_a_hook(wire, command, registration):
    return wire.call("GET", registration)


@pytest.mark.parametrize("way", [in_multi, in_a_script_that_does_not_write, in_a_hook])
def test_what_is_registered_does_not_change_while_writes_are_paused(fresh, way):
    """A fail-over by hand would go to a server that has not heard of it."""
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as admin:
        steps = "map(lambda x: execute('RG.UNREGISTER', x[1]))"
        register(wire, f"GB('CommandReader').{steps}.register(hook='get', mode='sync')")
        register(wire, "GB('CommandReader').register(trigger='t', mode='sync')")
        rows = wire.ok("RG.DUMPREGISTRATIONS")
        admin.ok("CLIENT", "PAUSE", "600000", "WRITE")
        is_error(way(wire, "RG.UNREGISTER", rows[-1][1]), "writes are paused")
        assert len(admin.ok("RG.DUMPREGISTRATIONS")) == len(rows)
        admin.ok("CLIENT", "UNPAUSE")
        assert wire.ok("RG.UNREGISTER", rows[-1][1]) == Simple("OK")
        assert len(wire.ok("RG.DUMPREGISTRATIONS")) == len(rows) - 1


SUBSCRIBER = """
GB('CommandReader').map(lambda x: call_next(*x[1:])).register(hook='append', mode='async_local', convertToStr=False)
GB('CommandReader').map(lambda x: execute('incr', 'seen')).register(trigger='elsewhere', mode='async_local')
import asyncio
async def late(x):
    execute('incr', 'begun')
    await asyncio.sleep(0)
    return execute('incr', 'seen')
GB('CommandReader').map(late).register(trigger='late', mode='sync')
GB().foreach(lambda x: execute('incr', 'handled')).register('k*', mode='sync', eventTypes=['set'])
linked = GB().foreach(lambda x: execute('incr', 'linked'))
linked.register('l*', mode='async_local', commands=['setex'], eventTypes=['set'])
"""


@pytest.mark.matrix
def test_subscribers_are_served_or_refused_before_anything_runs(wire, other_wire):
    """Valkey lets nobody park them; to that they are as in a transaction."""
    register(wire, SUBSCRIBER)
    other_wire.ok("HELLO", "3")
    other_wire.ok("SUBSCRIBE", "channel")
    is_parked = b"valkey_version" not in wire.ok("INFO", "server")
    for command, key in (
        (("APPEND", "a", "x"), "a"),
        (("RG.TRIGGER", "elsewhere"), "seen"),
        (("RG.TRIGGER", "late"), "seen"),
        (("RG.PYEXECUTE", "execute('incr', 'script')"), "script"),
    ):
        before = wire.ok("GET", key)
        reply = other_wire.call(*command)
        assert isinstance(reply, Error) != is_parked, (command, reply)
        assert (wire.ok("GET", key) != before) == is_parked, command
    assert (other_wire.call("SET", "k", "x"), wire.ok("GET", "handled")) == (Simple("OK"), b"1")
    # What runs elsewhere for the event may end after the reply, where nobody can wait for it.
    assert other_wire.call("SETEX", "l", "100", "x") == Simple("OK")
    wait_until(lambda: wire.ok("GET", "linked") == b"1", "the event of the linked command")
    other_wire.ok("UNSUBSCRIBE", "channel")
    assert not isinstance(other_wire.call("RG.TRIGGER", "elsewhere"), Error)
