"""`commands=` of KeysReader: executions that answer for the command whose events fired them."""

import threading

import pytest
from firing import counters, data
from registrations import register
from replies import is_error, wait_until
from wire import Error, Simple, Wire

pytestmark = pytest.mark.matrix

OK = Simple("OK")
MODES = pytest.mark.parametrize("mode", ["sync", "async_local", "async"])
LATER = pytest.mark.parametrize("mode", ["async_local", "async"])
MISS = "eventTypes=['keymiss'], commands=['get']"


def in_multi(wire, *args):
    assert wire.ok("MULTI") == OK
    assert wire.ok(*args) == Simple("QUEUED")
    (reply,) = wire.ok("EXEC")
    return reply


def in_lua(wire, *args):
    return wire.call("EVAL", "return redis.pcall(unpack(ARGV))", 0, *args)


@MODES
def test_m1_a_miss_is_answered(wire, mode):
    register(wire, f"GB().foreach(lambda x: override_reply('+HELLO')).register({MISS}, mode={mode!r})")
    assert wire.call("GET", "x") == Simple("HELLO")
    wire.ok("SET", "x", "value")
    assert wire.call("GET", "x") == b"value"
    assert wire.call("MGET", "y") == [None]
    for within in (in_multi, in_lua):
        # Lua has a table for a simple string, which comes back as one.
        assert within(wire, "GET", "z") == (Simple("HELLO") if mode == "sync" else None)


def test_m2_any_reply(wire):
    register(
        wire,
        "GB().foreach(lambda x: override_reply(['a', 1, [2]]))"
        ".register(eventTypes=['keymiss'], commands=['get', 'mget'], mode='sync')",
    )
    assert wire.call("GET", "x") == [b"a", 1, [2]]
    assert wire.call("MGET", "x", "y") == [b"a", 1, [2]]
    assert in_multi(wire, "GET", "x") == [b"a", 1, [2]]


@MODES
def test_m3_prefixes_and_errors(wire, mode):
    register(wire, f"GB().foreach(lambda x: override_reply('-ERR no')).register('p*', {MISS}, mode={mode!r})")
    assert wire.call("GET", "px") == Error("ERR no")
    assert wire.call("GET", "x") is None


@MODES
def test_m4_the_command(wire, mode):
    register(
        wire, f"GB().foreach(lambda x: override_reply(repr(get_command()))).register(commands=['set'], mode={mode!r})"
    )
    assert wire.call("SET", "x", "y", "ex", "100") == b"['SET', 'x', 'y', 'ex', '100']"
    assert wire.call("GET", "x") == b"y"


@LATER
def test_m5_the_reply_comes_after_the_execution(wire, other_wire, mode):
    script = (
        "import time\ndef hold(x):\n    limit = time.monotonic() + 30\n"
        "    while execute('exists', 'gate') == 0 and time.monotonic() < limit:\n        time.sleep(0.005)\n"
        f"GB().foreach(hold).register('x', commands=['set'], mode={mode!r})"
    )
    register(wire, script)
    wire.send("SET", "x", "y")
    wait_until(lambda: other_wire.ok("GET", "x") == b"y", "the command having run")
    assert not wire.has_reply(0.1)
    other_wire.ok("SET", "gate", "1")
    assert wire.read() == OK


@MODES
def test_m6_only_once(wire, mode):
    register(
        wire,
        "GB().foreach(lambda x: override_reply('first')).foreach(lambda x: override_reply('second'))"
        f".register({MISS}, mode={mode!r})",
    )
    assert wire.call("GET", "x") == b"first"
    wait_until(lambda: counters(wire) == (1, 0, 1, 0), "the failure being counted")
    assert b"Can only override reply once" in data(wire)["lastError"]


@MODES
def test_m7_reading_through(wire, mode):
    register(
        wire,
        "GB().foreach(lambda x: execute('set', x['key'], 'loaded')).foreach(lambda x: override_reply('loaded'))"
        f".register({MISS}, mode={mode!r})",
    )
    assert wire.call("GET", "nokey") == b"loaded"
    assert wire.call("GET", "nokey") == b"loaded"
    assert counters(wire)[0] == 1


def test_m8_none(wire):
    register(wire, f"GB().foreach(lambda x: override_reply(None)).register({MISS}, mode='sync')")
    assert wire.call("GET", "x") == b"PY RECORD"


def test_only_the_listed_commands(wire):
    register(wire, "GB().foreach(lambda x: override_reply('mine')).register(commands=['set'], mode='sync')")
    assert wire.call("SET", "k", "1") == b"mine"
    assert wire.call("INCR", "k") == 2
    assert counters(wire)[0] == 1


@MODES
def test_a_failed_execution_leaves_the_reply(wire, mode):
    register(wire, f"GB().foreach(lambda x: nope).register({MISS}, mode={mode!r})")
    assert wire.call("GET", "x") is None
    wait_until(lambda: counters(wire) == (1, 0, 1, 0), "the failure being counted")


@MODES
def test_no_event_no_execution(wire, mode):
    register(wire, f"GB().foreach(lambda x: override_reply('x')).register({MISS}, mode={mode!r})")
    wire.ok("SET", "k", "v")
    assert wire.call("GET", "k") == b"v"
    assert wire.error("GET") == "ERR wrong number of arguments for 'get' command"
    wire.ok("LPUSH", "l", "a")
    assert wire.error("GET", "l").startswith("WRONGTYPE")
    assert counters(wire)[0] == 0


@pytest.mark.parametrize("helper", ["get_command()", "override_reply('x')"])
def test_elsewhere(wire, helper):
    reply = wire.ok("RG.PYEXECUTE", f"GB('ShardsIDReader').map(lambda x: {helper}).run()")
    assert reply[0] == [] and b"Can not get command ctx" in reply[1][0]
    register(wire, f"GB().foreach(lambda x: {helper}).register(commands=['get'], mode='async_local')")
    assert in_multi(wire, "GET", "x") is None
    wait_until(lambda: counters(wire) == (1, 0, 1, 0), "the failure being counted")
    assert b"Can not get command ctx" in data(wire)["lastError"]


def test_all_executions_are_awaited(wire):
    for number, mode in ((1, "async_local"), (2, "sync"), (3, "async")):
        register(
            wire,
            f"GB().foreach(lambda x: execute('rpush', 'l', {number})).register('k*', commands=['mset'], mode={mode!r})",
        )
    wire.ok("MSET", "k1", "a", "k2", "b", "other", "c")
    assert sorted(wire.ok("LRANGE", "l", 0, -1)) == [b"1", b"1", b"2", b"2", b"3", b"3"]


def test_registration_errors(wire):
    for commands, text in (
        ("['nosuch']", "bad reply on COMMAND command"),
        ("['multi']", "Can not hook a command which are not allowed inside a script"),
        ("['zunionstore']", "Can not hook a command with moveable keys by key prefix"),
        ("['ping']", "Can not hook a command by key prefix with none positive first key"),
        ("5", "given commands is not iterable"),
        ("[5]", "given command type is not string"),
    ):
        is_error(wire.call("RG.PYEXECUTE", f"GB().register(commands={commands})"), text)
    is_error(wire.call("RG.PYEXECUTE", "GB().register('', commands=['get'])"), "Empty perfix given to command hooker")


def test_resp3(wire):
    wire.ok("HELLO", 3)
    register(
        wire,
        "import time\nGB().foreach(lambda x: time.sleep(0.01))"
        ".register('h*', commands=['hset', 'zadd'], mode='async_local')",
    )
    assert wire.call("HSET", "h", "f", "v") == 1
    register(
        wire,
        "import time\nGB().foreach(lambda x: time.sleep(0.01))"
        ".register('h*', commands=['hgetall', 'zscore'], mode='async_local', eventTypes=['keymiss'])",
    )
    assert wire.call("HGETALL", "h") == {b"f": b"v"}
    assert wire.call("HGETALL", "h2") == {}
    assert wire.call("ZSCORE", "h2", "a") is None
    wire.ok("ZADD", "h3", "1.5", "a")
    assert wire.call("ZSCORE", "h3", "a") == 1.5


@LATER
def test_what_outlives_its_execution_does_not_answer(wire, mode):
    register(
        wire,
        "import asyncio\nasync def late():\n    await asyncio.sleep(0.05)\n    try:\n        override_reply('late')\n"
        "        told = 'nothing'\n    except Exception as e:\n        told = str(e)\n"
        "    execute('set', 'told', told)\n"
        f"GB().foreach(lambda x: runCoroutine(late())).register('k*', {MISS}, mode={mode!r})",
    )
    assert wire.ok("GET", "k") is None
    wait_until(lambda: wire.ok("GET", "told") == b"Can not get command ctx", "the coroutine's end")


@LATER
def test_many_clients_of_which_some_leave(server, wire, mode):
    """Concurrent misses of the same keys; every second client goes away while it waits."""
    register(
        wire,
        "import time\ndef load(x):\n    time.sleep(0.002)\n    execute('set', x['key'], 'v:' + x['key'])\n"
        f"    override_reply('v:' + x['key'])\nGB().foreach(load).register('k*', {MISS}, mode={mode!r})",
    )
    wrong = []

    def client(number):
        with Wire(server.port) as own:
            for turn in range(6):
                key = f"k{turn}"
                if number % 2 and turn == 3:
                    own.send("GET", key)
                    return
                reply = own.call("GET", key)
                if reply != f"v:{key}".encode():
                    wrong.append((number, key, reply))

    threads = [threading.Thread(target=client, args=(n,)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a client waits for ever"
    assert wrong == []
    wait_until(lambda: counters(wire)[0] == sum(counters(wire)[1:]), "all executions ending")
    assert counters(wire)[2:] == (0, 0)
    wait_until(lambda: b"blocked_clients:0" in wire.ok("INFO", "clients"), "no client being parked")


def test_hooks_links_and_handlers_on_one_command(wire):
    register(
        wire,
        "GB().foreach(lambda x: execute('rpush', 'order', 'handler')).register('k*', mode='sync', eventTypes=['set'])",
    )
    register(
        wire,
        "def linked(x):\n    execute('rpush', 'order', 'link')\n    override_reply('over:' + get_command()[2])\n"
        "GB().foreach(linked).register('k*', commands=['set'], mode='sync')",
    )
    assert wire.call("SET", "k", "v") == b"over:v"
    assert wire.ok("LRANGE", "order", 0, -1) == [b"handler", b"link"]
    register(
        wire,
        "def hook(x):\n    execute('rpush', 'order', 'hook')\n    return 'hook:' + call_next(*x[1:])\n"
        "GB('CommandReader').map(hook).register(hook='set', mode='sync')",
    )
    wire.ok("DEL", "order")
    assert wire.call("SET", "k", "v") == b"hook:over:v"
    assert wire.ok("LRANGE", "order", 0, -1) == [b"hook", b"handler", b"link"]
