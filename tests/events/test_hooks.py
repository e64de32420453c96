"""Command hooks: functions that take the place of a client's command."""

import time

import pytest
from firing import counters, data
from registrations import NO_BLOCKING, only, register
from replies import is_error, pair, start, wait_until
from wire import Error, Simple, Wire

B = "GB('CommandReader')"
NEXT = f"{B}.map(lambda x: call_next(*x[1:]))"


def too_deep(wire):
    return int(wire.ok("INFO", "rg").split(b"rg_events_too_deep:")[1].split(b"\r\n")[0])


def in_multi(wire, *args):
    assert wire.ok("MULTI") == Simple("OK")
    assert wire.ok(*args) == Simple("QUEUED")
    (reply,) = wire.ok("EXEC")
    return reply


def in_lua(wire, *args):
    return wire.call("EVAL", "return redis.pcall(unpack(ARGV))", 0, *args)


def nested(wire, *args):
    script = f"GB('ShardsIDReader').map(lambda x: execute(*{args!r})).run(convertToStr=False)"
    results, errors = pair(wire.ok("RG.PYEXECUTE", script))
    return Error(errors[0]) if errors else results[0]


CONTEXTS = pytest.mark.parametrize("within", [in_multi, in_lua, nested])


@pytest.mark.matrix
def test_a_hook_calls_its_command(wire):
    register(wire, f"{NEXT}.register(hook='hset', mode='sync')")
    assert wire.call("HSET", "h", "a", "b") == b"1"
    assert wire.ok("HGETALL", "h") == [b"a", b"b"]
    assert only(wire).counters == (1, 1, 0, 0)
    assert only(wire).args == {"trigger": b"hset", "inorder": 0}


@pytest.mark.matrix
def test_replies_without_conversion(wire):
    register(wire, f"{NEXT}.register(hook='hset', mode='sync', convertToStr=False)")
    register(wire, f"{NEXT}.register(hook='get', mode='sync', convertToStr=False)")
    register(wire, f"{NEXT}.register(hook='lrange', mode='sync', convertToStr=False)")
    assert wire.call("hset", "h", "a", "b") == 1
    assert wire.call("get", "none") is None
    wire.ok("RPUSH", "l", "a", "b")
    assert wire.call("lrange", "l", 0, -1) == [b"a", b"b"]


@pytest.mark.matrix
def test_a_renamed_command_has_its_new_name(fresh):
    with Wire(fresh(server_args=("--rename-command", "SET", "PUT")).port) as wire:
        for name in "set", "config|get":
            script = f"{NEXT}.register(hook={name!r}, mode='sync')"
            is_error(wire.call("RG.PYEXECUTE", script), "Can not override an unexisting command")
        register(wire, f"{B}.map(lambda x: call_next(x[1], x[2] + '!')).register(hook='PUT', mode='sync')")
        register(wire, "GB().foreach(lambda x: override_reply('new')).register('k*', commands=['put'], mode='sync')")
        assert (wire.ok("PUT", "a", "b"), wire.ok("GET", "a")) == (b"OK", b"b!")
        assert wire.ok("PUT", "k", "b") == b"new"


@pytest.mark.parametrize("more", ["", ", keyprefix='h'"])
def test_a_wrong_number_of_arguments_reaches_the_hook(wire, more):
    register(wire, f"{NEXT}.register(hook='hset', mode='sync'{more})")
    is_error(wire.call("HSET", "h"), "gears.error", "wrong number of arguments")


@pytest.mark.matrix
def test_what_a_hook_refuses_is_in_the_log_of_rights(wire, server):
    register(wire, f"{NEXT}.register(hook='set', mode='sync')")
    for hook in "config", "publish":
        register(wire, f"{NEXT}.register(hook={hook!r}, mode='async_local')")
    wire.ok("ACL", "SETUSER", "bob", "on", "nopass", "~b*", "+get", "+publish", "resetchannels")
    try:
        for tried, reason, what in (
            (("SET", "b", "1"), "command", b"set"),
            (("CONFIG", "GET", "x"), "command", b"config|get"),
            (("GET", "a"), "key", b"a"),
            (("PUBLISH", "c", "hello"), "channel", b"c"),
        ):
            wire.ok("ACL", "LOG", "RESET")
            with Wire(server.port) as bob:
                bob.ok("AUTH", "bob", "x")
                is_error(bob.call(*tried), "NOPERM", *([f"'{what.decode()}'"] if reason == "command" else []))
            (entry,) = wire.ok("ACL", "LOG")
            entry = dict(zip(entry[::2], entry[1::2], strict=True))
            assert (entry[b"reason"], entry[b"object"], entry[b"username"]) == (reason.encode(), what, b"bob")
        with Wire(server.port) as bob:
            bob.ok("AUTH", "bob", "x")
            is_error(bob.call("CONFIG", "GET"), "wrong number of arguments for 'config|get' command")
    finally:
        wire.ok("ACL", "DELUSER", "bob")


@pytest.mark.matrix
def test_what_is_allowed_is_not_in_the_log_of_rights(wire, server):
    """Whose rights count in a script is found out without asking for what its user may not do."""
    register(wire, f"{NEXT}.register(hook='set', mode='sync')")
    wire.ok("ACL", "SETUSER", "bob", "on", "nopass", "~b*", "+set", "+eval")
    wire.ok("ACL", "LOG", "RESET")
    try:
        with Wire(server.port) as bob:
            bob.ok("AUTH", "bob", "x")
            bob.ok("EVAL", "return redis.call('SET', KEYS[1], '1')", 1, "b")
        assert wire.ok("GET", "b") == b"1"
        assert wire.ok("ACL", "LOG") == []
    finally:
        wire.ok("ACL", "DELUSER", "bob")


@pytest.mark.matrix
def test_an_unknown_subcommand_reaches_the_hook(wire, server):
    register(wire, f"{NEXT}.register(hook='object', mode='sync')")
    is_error(wire.call("OBJECT", "nosuch", "k"), "gears.error", "OBJECT")
    assert only(wire).counters == (1, 0, 1, 0)
    # Not from those who may not do everything: it is not known what this one would need.
    wire.ok("ACL", "SETUSER", "bob", "on", "nopass", "~*", "+object")
    try:
        with Wire(server.port) as bob:
            bob.ok("AUTH", "bob", "x")
            assert bob.call("OBJECT", "nosuch", "k") == Error("ERR unknown subcommand 'nosuch'. Try OBJECT HELP.")
    finally:
        wire.ok("ACL", "DELUSER", "bob")
    assert only(wire).counters == (1, 0, 1, 0)


def test_not_one_result(wire):
    register(wire, f"{B}.flatmap(lambda x: x).register(hook='hset', mode='sync')")
    assert wire.call("HSET", "h", "a", "b") == Error("Command hook must return exactly one result")
    assert wire.ok("EXISTS", "h") == 0
    register(wire, f"{B}.filter(lambda x: False).register(hook='hdel', mode='async_local')")
    assert wire.call("HDEL", "h", "a") == Error("Command hook must return exactly one result")


@pytest.mark.matrix
def test_a_hook_elsewhere(wire):
    register(wire, f"{B}.map(lambda x: '+FINE').register(hook='set', mode='async_local')")
    assert wire.call("SET", "a", "b") == Simple("FINE")
    assert wire.ok("EXISTS", "a") == 0


@CONTEXTS
@pytest.mark.parametrize("mode", ["async_local", "async"])
def test_a_hook_elsewhere_where_nobody_may_wait(wire, within, mode):
    register(wire, f"{B}.map(lambda x: '+FINE').register(hook='set', mode={mode!r})")
    is_error(within(wire, "SET", "a", "b"), NO_BLOCKING)
    assert wire.ok("EXISTS", "a") == 0
    assert counters(wire) == (1, 0, 0, 1)


def test_arguments_are_binary_safe(wire):
    register(wire, f"{NEXT}.register(hook='set', mode='sync')")
    wire.ok("SET", b"k\x00\xff", b"v\x00\xfe\r\n")
    assert wire.ok("GET", b"k\x00\xff") == b"v\x00\xfe\r\n"


@pytest.mark.matrix
def test_prefixes(wire):
    register(wire, f"{B}.map(lambda x: call_next(*x[1:]) + '!').register(hook='get', mode='sync', keyprefix='p')")
    wire.ok("MSET", "p1", "A", "q1", "B")
    assert wire.call("GET", "p1") == b"A!"
    assert wire.call("GET", "q1") == b"B"
    is_error(wire.call("GET", "pmissing"), "TypeError")


def test_any_key_of_the_command_counts(wire):
    register(wire, f"{B}.map(lambda x: '+HOOKED').register(hook='mget', mode='sync', keyprefix='p')")
    assert wire.call("MGET", "a", "b", "p") == Simple("HOOKED")
    assert wire.call("MGET", "a", "b") == [None, None]


@pytest.mark.matrix
def test_chains(wire):
    for name in ("hook1:", "hook2:"):
        register(wire, f"{B}.map(lambda x: {name!r} + call_next(*x[1:])).register(hook='get', mode='sync')")
    wire.ok("SET", "p1", "A")
    assert wire.call("GET", "p1") == b"hook2:hook1:A"
    for within in (in_multi, in_lua, nested):
        assert within(wire, "GET", "p1") == b"hook2:hook1:A"


def test_a_chain_under_a_hook_elsewhere(wire):
    wire.ok("SET", "k", "A")
    for name, mode in (("1:", "sync"), ("2:", "sync"), ("3:", "async_local")):
        register(wire, f"{B}.map(lambda x: {name!r} + call_next(*x[1:])).register(hook='get', mode={mode!r})")
    assert wire.call("GET", "k") == b"3:2:1:A"


def test_other_arguments(wire):
    register(wire, f"{B}.map(lambda x: call_next('real:' + x[1])).register(hook='get', mode='sync')")
    wire.ok("MSET", "real:k", "yes", "k", "no")
    assert wire.call("GET", "k") == b"yes"


@pytest.mark.matrix
def test_commands_of_a_hook_are_not_for_it(wire):
    register(wire, f"{B}.map(lambda x: execute('get', x[1])).register(hook='get', mode='sync')")
    register(wire, f"{B}.map(lambda x: execute('set', *x[1:])).register(hook='set', mode='async_local')")
    assert wire.call("SET", "k", "v") == b"OK"
    assert wire.call("GET", "k") == b"v"


def test_a_hook_is_no_way_around_the_switch_for_modules(wire):
    hook = "GB('CommandReader').map(lambda x: call_next(*x[1:])).register(hook='module', mode='sync')"
    assert "not allowed inside a script" in wire.error("RG.PYEXECUTE", hook)


def test_hooks_that_call_each_other_end(wire):
    register(wire, f"{B}.map(lambda x: execute('strlen', x[1])).register(hook='get', mode='sync', convertToStr=False)")
    register(wire, f"{B}.map(lambda x: execute('get', x[1])).register(hook='strlen', mode='sync')")
    wire.ok("SET", "k", "value")
    assert wire.call("GET", "k") == Simple("value") or wire.call("GET", "k") == b"value"


def test_a_hook_that_comes_back_by_an_execution_ends(wire):
    """What `run()` runs is not the hook's own code, but caused by it."""
    script = f"""
def again(shard):
    execute('incr', 'turns')
    try:
        execute('get', 'k')
    except Exception as e:
        execute('set', 'error', str(e))
def comes_back(x):
    GB('ShardsIDReader').foreach(again).run()
    return call_next(*x[1:])
{B}.map(comes_back).register(hook='get', mode='sync', convertToStr=False)
"""
    wire.ok("RG.CONFIGSET", "MaxEventDepth", "10")
    before = too_deep(wire)
    register(wire, script)
    wire.ok("SET", "k", "v")
    assert wire.call("GET", "k") == b"v"
    wait_until(lambda: wire.ok("EXISTS", "error"), "the last turn")
    assert wire.ok("INCRBY", "turns", 0) == 11
    error = wire.ok("GETRANGE", "error", 0, -1)
    assert b"chain of 10 events and hooks" in error and b"MaxEventDepth" in error
    # The one that did not run is counted as well.
    assert counters(wire)[3] == 1 and data(wire)["lastError"] in error
    assert too_deep(wire) > before


def test_errors_of_the_command_reach_the_function(wire):
    script = f"""
def tried(x):
    try:
        return call_next(*x[1:])
    except Exception as e:
        return 'caught ' + str(e)
{B}.map(tried).register(hook='lpush', mode='sync')
"""
    register(wire, script)
    wire.ok("SET", "k", "v")
    assert wire.call("LPUSH", "k", "x").startswith(b"caught WRONGTYPE")


def test_call_next_elsewhere(wire):
    results, errors = pair(wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').map(lambda x: call_next('a')).run()"))
    assert results == [] and "Can not get CommandHook ctx" in errors[0]
    register(wire, f"{B}.map(lambda x: call_next('a')).register(trigger='t', mode='sync')")
    is_error(wire.call("RG.TRIGGER", "t"), "Can not get CommandHook ctx")


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["RG.INNERHOOK", "rg.innerhook.read", "rg.innerhook.free", "RG.INNERHOOK.FREE.GROW"])
def test_the_internal_command_is_refused(wire, name):
    for args in ([name], [name, "SET", "k", "v"], [name, "x"]):
        is_error(wire.call(*args), "RG.INNERHOOK is internal")
        is_error(in_multi(wire, *args), "RG.INNERHOOK is internal")
        is_error(in_lua(wire, *args), "RG.INNERHOOK is internal")
        is_error(nested(wire, *args), "RG.INNERHOOK is internal")
    wire.error("COMMAND", "GETKEYS", name, "SET", "k", "v")
    assert wire.ok("EXISTS", "k") == 0


def test_the_selected_database(wire):
    register(wire, f"{NEXT}.register(hook='set', mode='sync')")
    register(wire, f"{NEXT}.register(hook='get', mode='async_local')")
    wire.ok("SELECT", 3)
    wire.ok("SET", "k", "three")
    assert wire.ok("GET", "k") == b"three"
    wire.ok("SELECT", 0)
    assert wire.ok("EXISTS", "k") == 0


def test_the_last_registration_takes_the_filter_away(wire):
    register(wire, f"{B}.map(lambda x: '+HOOKED').register(hook='get', mode='sync')")
    assert wire.call("GET", "k") == Simple("HOOKED")
    wire.ok("RG.UNREGISTER", only(wire).id)
    assert wire.call("GET", "k") is None


def test_a_queued_command_whose_hook_is_gone(wire, other_wire):
    register(wire, f"{B}.map(lambda x: '+HOOKED').register(hook='set', mode='sync')")
    wire.ok("MULTI")
    assert wire.ok("SET", "k", "v") == Simple("QUEUED")
    other_wire.ok("RG.UNREGISTER", only(other_wire).id)
    assert wire.ok("EXEC") == [Simple("OK")]
    assert wire.ok("GET", "k") == b"v"


def test_a_busy_interpreter(wire, other_wire):
    wire.ok("SET", "k", "v")
    register(wire, f"{B}.map(lambda x: call_next(*x[1:]) + '!').register(hook='get', mode='sync')")
    hog = "import re\nGB('ShardsIDReader').map(lambda x: re.match('(a+)+$', 'a' * 24 + 'b')).run()"
    other_wire.send("RG.PYEXECUTE", hog)
    for _ in range(20):
        assert wire.call("GET", "k") == b"v!"
        assert wire.call("PING") == Simple("PONG")
        reply = in_multi(wire, "GET", "k")
        assert reply == b"v!" or "interpreter is busy" in reply.text
    other_wire.read()


@pytest.mark.parametrize(("most_ms", "may_be_busy"), [(1, True), (60_000, False)])
def test_how_long_commands_wait_for_the_interpreter(wire, other_wire, most_ms, may_be_busy):
    register(wire, f"{B}.map(lambda x: 'ran').register(trigger='t', mode='sync')")
    wire.ok("RG.CONFIGSET", "InterpreterMaxWaitTime", most_ms)
    try:
        other_wire.send("RG.PYEXECUTE", "GB('ShardsIDReader').map(lambda x: sum(range(4 * 10**7))).run()")
        found = set()
        while not other_wire.has_reply(0.0):
            reply = in_multi(wire, "RG.TRIGGER", "t")
            found.add(reply.text if isinstance(reply, Error) else reply[0])
        assert any("interpreter is busy" in str(text) for text in found) == may_be_busy, found
        assert b"ran" in found or may_be_busy, found
        other_wire.read()
    finally:
        wire.ok("RG.CONFIGSET", "InterpreterMaxWaitTime", 50)


def test_commands_of_a_transaction_wait_for_the_interpreter_together(wire, other_wire):
    register(wire, f"{B}.map(lambda x: 'ran').register(trigger='t', mode='sync')")
    other_wire.send("RG.PYEXECUTE", "GB('ShardsIDReader').map(lambda x: sum(range(6 * 10**7))).run()")
    try:
        wire.ok("RG.CONFIGSET", "InterpreterMaxWaitTime", 1)
        while not isinstance(in_multi(wire, "RG.TRIGGER", "t"), Error):
            assert not other_wire.has_reply()
        wire.ok("RG.CONFIGSET", "InterpreterMaxWaitTime", 200)
        wire.ok("MULTI")
        for _ in range(100):
            wire.ok("RG.TRIGGER", "t")
        # One after the other, 200 ms each, the later ones would come when the interpreter is free again.
        for reply in wire.ok("EXEC"):
            is_error(reply, "interpreter is busy")
        other_wire.read()
    finally:
        wire.ok("RG.CONFIGSET", "InterpreterMaxWaitTime", 50)


def test_each_transaction_has_its_own_wait_for_the_interpreter(wire, other_wire):
    """What earlier ones have waited beside a loop in the background is not held against later ones."""
    register(wire, f"{B}.map(lambda x: 'ran').register(trigger='t', mode='sync')")
    loop = (
        "GB('PythonReader').map(lambda x: [sum(range(500_000)) for _ in range(40)]).count().run(lambda: iter(int, 1))"
    )
    wire.ok("RG.CONFIGSET", "InterpreterMaxWaitTime", 900)
    execution = start(other_wire, loop)
    try:
        # They spend most of this time waiting.
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert in_multi(wire, "RG.TRIGGER", "t") == [b"ran"]
    finally:
        wire.ok("RG.CONFIGSET", "InterpreterMaxWaitTime", 50)
        assert other_wire.ok("RG.ABORTEXECUTION", execution) == Simple("OK")


def test_in_order(wire):
    register(
        wire,
        f"import time\n{B}.foreach(lambda x: time.sleep(float(x[3]))).map(lambda x: call_next(*x[1:3]))"
        ".register(hook='set', mode='async_local', inorder=True)",
    )
    for args in (("k", "1", "0.2"), ("k", "2", "0")):
        wire.send("SET", *args)
    assert [wire.read(), wire.read()] == [b"OK", b"OK"]
    assert wire.ok("GET", "k") == b"2"


OF_CONNECTION = "Can not override a command that only changes the connection on which it comes"


@pytest.mark.matrix
@pytest.mark.parametrize("more", ["", ", keyprefix='p'", ", mode='sync'"])
def test_commands_that_only_change_a_connection_are_not_hooked(wire, more):
    for name in "select", "SELECT", "asking", "readonly", "readwrite":
        is_error(wire.call("RG.PYEXECUTE", f"{NEXT}.register(hook={name!r}{more})"), OF_CONNECTION)
    assert wire.ok("RG.DUMPREGISTRATIONS") == []


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_a_hook_on_client_leaves_the_connection_to_the_server(wire, other_wire, mode):
    own = wire.ok("CLIENT", "ID")
    register(wire, f"{NEXT}.register(hook='client', mode={mode!r}, convertToStr=False)")
    assert (wire.ok("CLIENT", "SETNAME", "me"), wire.ok("client", "getname")) == (Simple("OK"), b"me")
    assert wire.ok("CLIENT", "ID") == own
    assert f"id={own} ".encode() in wire.ok("CLIENT", "INFO")
    assert wire.ok("CLIENT", "NO-EVICT", "ON") == Simple("OK")
    for what in (("ON", "OPTIN"), ("OFF",), ("ON", "REDIRECT", other_wire.ok("CLIENT", "ID"))):
        assert wire.ok("CLIENT", "TRACKING", *what) == Simple("OK")
        assert what[0].lower().encode() in wire.ok("CLIENT", "TRACKINGINFO")[1]
        if "OPTIN" in what:
            assert wire.ok("CLIENT", "CACHING", "YES") == Simple("OK")
    assert wire.ok("CLIENT", "GETREDIR") == other_wire.ok("CLIENT", "ID")
    wire.ok("CLIENT", "TRACKING", "OFF")
    for what in "OFF", "SKIP", "ON":
        wire.send("CLIENT", "REPLY", what)
        wire.send("ECHO", what)
    # Only the last two are answered.
    assert (wire.read(), wire.read()) == (Simple("OK"), b"ON")
    assert only(other_wire).counters == (0, 0, 0, 0)
    # Others, which ask about all of them, are taken over.
    assert b"name=me" in wire.ok("CLIENT", "LIST")
    assert only(wire).counters == (1, 1, 0, 0)


@pytest.mark.matrix
def test_effects_are_replicated_in_order(fresh):
    server = fresh(server_args=("--appendonly", "yes", "--enable-debug-command", "yes"))
    with Wire(server.port) as wire:
        register(
            wire,
            f"{B}.foreach(lambda x: execute('incr', 'n')).map(lambda x: call_next(*x[1:]))"
            ".register(hook='set', mode='sync')",
        )
        wire.ok("SET", "k", "v")
        wire.ok("DEBUG", "LOADAOF")
        wait_until(lambda: wire.call("GET", "n") == b"1", "the AOF being loaded")
        assert wire.ok("GET", "k") == b"v"


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_h8_a_coroutine(wire, mode):
    script = f"""
import asyncio
async def late(x):
    await asyncio.sleep(0.05)
    return 'late ' + call_next(*x[1:])
{B}.map(late).register(hook='get', mode={mode!r})
"""
    register(wire, script)
    wire.ok("SET", "k", "v")
    assert wire.call("GET", "k") == b"late v"
    for within in (in_multi, in_lua, nested):
        text = "Creating async record is not allowed" if mode == "sync" else NO_BLOCKING
        is_error(within(wire, "GET", "k"), text)


def test_commands_of_a_coroutine_are_not_for_its_hook(wire):
    script = f"""
import asyncio
async def late(x):
    await asyncio.sleep(0)
    return 'late ' + execute('get', x[1])
{B}.map(late).register(hook='get', mode='sync')
"""
    register(wire, script)
    wire.ok("SET", "k", "v")
    assert wire.call("GET", "k") == b"late v"


@pytest.mark.matrix
def test_commands_that_read_no_keys_are_not_sent_to_the_master(fresh):
    """Newer servers do so with what reads, for clients that say they can follow."""
    master = fresh()
    replica = fresh(server_args=("--replicaof", f"127.0.0.1 {master.port}"))
    with Wire(master.port) as wire, Wire(replica.port) as other:
        for hook in ("ping", "publish", "get"):
            register(wire, NEXT + f".register(hook='{hook}', mode='sync', convertToStr=False)")
        wire.ok("SET", "k", "v")
        wait_until(lambda: other.call("GET", "k") == b"v" and len(other.ok("RG.DUMPREGISTRATIONS")) == 3, "the replica")
        follows = not isinstance(other.call("CLIENT", "CAPA", "redirect"), Error)
        for _ in range(2):
            assert other.ok("PING") in (Simple("PONG"), b"PONG") and other.ok("PUBLISH", "channel", "x") == 0
        told = other.call("GET", "k")
        assert told.text.startswith("REDIRECT") if follows else told == b"v"


@pytest.mark.matrix
def test_commands_that_read_no_keys_on_a_replica_without_its_master(fresh):
    replica = fresh(server_args=("--replica-serve-stale-data", "no"))
    with Wire(replica.port) as wire:
        for hook in ("info", "config", "publish", "get"):
            register(wire, NEXT + f".register(hook='{hook}', mode='sync', convertToStr=False)")
        # Nobody listens there.
        wire.ok("REPLICAOF", "127.0.0.1", "1")
        assert b"role:slave" in wire.ok("INFO", "replication") and wire.ok("PUBLISH", "channel", "x") == 0
        assert wire.error("GET", "k").startswith("MASTERDOWN")
        assert wire.ok("CONFIG", "SET", "replica-serve-stale-data", "yes") in (Simple("OK"), b"OK")
        assert wire.ok("GET", "k") is None
