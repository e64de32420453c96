"""RG.TRIGGER and RG.TRIGGERONKEY in odd places: transactions, Lua, functions, any bytes, clients that leave."""

import pytest
from registrations import MODES, NO_BLOCKING, NOT_FOUND, by_trigger, register, simple_trigger, trigger
from replies import Gate, executions_of, pair, wait_until
from wire import Error, Simple, Wire

MODE = pytest.mark.parametrize("mode", MODES)
ASYNC = pytest.mark.parametrize("mode", ["async", "async_local"])
B = "GB('CommandReader')"


@pytest.mark.parametrize("command", ["RG.TRIGGER", "RG.TRIGGERONKEY"])
def test_arity(wire, command):
    assert wire.error(command).lower() == f"err wrong number of arguments for '{command.lower()}' command"


@pytest.mark.parametrize("args", [["RG.TRIGGER", "t"], ["RG.TRIGGERONKEY", "t", "k"], ["RG.TRIGGER", b"\x00\xff"]])
def test_unknown_trigger(wire, args):
    assert wire.call(*args) == Error(NOT_FOUND)


def test_keys_of_both_commands(wire):
    assert wire.ok("COMMAND", "GETKEYS", "RG.TRIGGERONKEY", "t", "k", "a", "b") == [b"k"]
    wire.error("COMMAND", "GETKEYS", "RG.TRIGGER", "t", "k", "a")


@MODE
def test_triggeronkey_gives_the_key_as_first_argument(wire, mode):
    register(wire, f"{B}.register(trigger='t', convertToStr=False, mode={mode!r})")
    assert wire.call("RG.TRIGGERONKEY", "t", "the key", "a") == [[b"t", b"the key", b"a"]]


@MODE
def test_the_key_may_have_registrations(wire, mode):
    """The trigger's command has a key that matches, but is no change of it."""
    register(wire, f"{B}.map(lambda x: x[1]).register(trigger='t', mode={mode!r})")
    for other in MODES:
        register(wire, f"GB().register('k*', mode={other!r})")
    for _ in range(3):
        assert wire.ok("RG.TRIGGERONKEY", "t", "k1") == [b"k1"]
    if mode == "sync":
        assert in_multi(wire, "RG.TRIGGERONKEY", "t", "k1") == [b"k1"]
        assert wire.ok("EVAL", "return redis.call('RG.TRIGGERONKEY', 't', KEYS[1])", "1", "k1") == [b"k1"]


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
COMMANDS = pytest.mark.parametrize("words", [["RG.TRIGGER", "t"], ["RG.TRIGGERONKEY", "t", "k"]])


@CONTEXTS
@COMMANDS
def test_sync_runs_everywhere(wire, within, words):
    register(wire, f"{B}.map(lambda x: execute('incr', 'n')).register(trigger='t', mode='sync', convertToStr=False)")
    assert within(wire, *words, "a") == [1]
    assert wire.ok("GET", "n") == b"1"


@CONTEXTS
@COMMANDS
@ASYNC
def test_other_modes_are_refused_where_nobody_may_wait(wire, within, words, mode):
    register(wire, f"{B}.map(lambda x: execute('incr', 'n')).register(trigger='t', mode={mode!r})")
    reply = within(wire, *words, "a")
    assert isinstance(reply, Error) and NO_BLOCKING in reply.text
    assert wire.ok("EXISTS", "n") == 0 and executions_of(wire) == {}
    assert not wire.has_reply()
    assert by_trigger(wire, "t").counters[1:] in ((0, 0, 0), (0, 0, 1))


@CONTEXTS
def test_an_unknown_trigger_everywhere(wire, within):
    reply = within(wire, "RG.TRIGGER", "none")
    assert isinstance(reply, Error) and NOT_FOUND in reply.text


def test_a_sync_trigger_is_part_of_the_transaction(wire, other_wire):
    script = f"""
def f(x):
    execute('set', 'a', x[1])
    return execute('get', 'b')
{B}.map(f).register(trigger='t', mode='sync')
"""
    register(wire, script)
    wire.ok("WATCH", "a")
    wire.ok("MULTI")
    wire.ok("SET", "b", "1")
    trigger(wire, "t", "x")
    wire.ok("GET", "a")
    assert wire.ok("EXEC") == [Simple("OK"), [b"1"], b"x"]
    # A write of the function touches watched keys.
    wire.ok("WATCH", "a")
    assert trigger(other_wire, "t", "y") == [b"1"]
    wire.ok("MULTI")
    wire.ok("GET", "a")
    assert wire.ok("EXEC") is None


def test_sync_triggers_answer_in_the_order_of_a_pipeline(wire):
    register(wire, simple_trigger("t", "x") + f"\n{B}.map(lambda x: x[1]).register(trigger='l', mode='async_local')")
    for i in range(200):
        wire.send("SET", "k", i)
        wire.send("RG.TRIGGER", "t")
        wire.send("GET", "k")
        if i % 10 == 0:
            wire.send("RG.TRIGGER", "l", i)
    for i in range(200):
        assert wire.read() == Simple("OK")
        assert wire.read() == [b"x"]
        assert wire.read() == b"%d" % i
        if i % 10 == 0:
            assert wire.read() == [b"%d" % i]


# --- bytes -------------------------------------------------------------------------------------------------------

NASTY = [b"", b"\x00", b"a\x00b", b"\xff\xfe", b"\r\n", "é\N{SNOWMAN}".encode(), b"'quoted\"", b"-ERR", b"x" * 100_000]


@MODE
def test_arguments_may_hold_any_bytes(wire, mode):
    script = f"{B}.map(lambda x: [bytes(a) if isinstance(a, bytearray) else a.encode() for a in x[1:]])"
    register(wire, f"{script}.register(trigger='t', convertToStr=False, mode={mode!r})")
    assert trigger(wire, "t", *NASTY) == [NASTY]


@MODE
def test_what_is_not_utf8_is_a_bytearray(wire, mode):
    steps = f"{B}.map(lambda x: [type(a).__name__ for a in x])"
    register(wire, f"{steps}.register(trigger='t', convertToStr=False, mode={mode!r})")
    assert trigger(wire, "t", b"\xff", "é", b"\x00") == [[b"str", b"bytearray", b"str", b"str"]]


@pytest.mark.parametrize("name", ["a\0b", "é\N{SNOWMAN}", " ", "with space\r\n", "n" * 5000, "a'b\"c\\d"])
def test_names_of_triggers_may_hold_any_text(wire, name):
    register(wire, f"{B}.map(lambda x: x[0] == {name!r}).register(trigger={name!r}, mode='sync', convertToStr=False)")
    assert trigger(wire, name) == [1]
    assert trigger(wire, name + "x") == Error(NOT_FOUND)
    assert by_trigger(wire, name).trigger == name.encode()
    assert trigger(wire, name[:-1]) == Error(NOT_FOUND)


def test_a_name_that_is_not_utf8(wire):
    register(wire, f"{B}.map(lambda x: type(x[0]).__name__).register(trigger=b'\\xff\\x00', mode='sync')")
    assert trigger(wire, b"\xff\x00") == [b"bytearray"]
    assert by_trigger(wire, b"\xff\x00").counters == (1, 1, 0, 0)


@MODE
def test_many_and_large_arguments(wire, mode):
    script = f"{B}.map(lambda x: [len(x), sum(map(len, x))]).register(trigger='t', convertToStr=False, mode={mode!r})"
    register(wire, script)
    assert trigger(wire, "t", *["ab"] * 5000) == [[5001, 10001]]
    assert trigger(wire, "t", "x" * 10_000_000) == [[2, 10_000_001]]


@pytest.mark.parametrize("message", ["a\\r\\nb", "a\\n+OK", "\\r", "a\\n\\n"])
@MODE
def test_line_breaks_in_errors_do_not_break_the_protocol(wire, mode, message):
    register(wire, f"{B}.map(lambda x: flat_error('x{message}')).register(trigger='t', mode={mode!r})")
    text = wire.error("RG.TRIGGER", "t")
    assert text.startswith("x") and "\n" not in text and "\r" not in text
    register(wire, f"{B}.map(lambda x: '+y{message}').register(trigger='u', mode={mode!r})")
    (reply,) = trigger(wire, "u")
    assert isinstance(reply, Simple) and reply.text.startswith("y")
    assert wire.call("PING") == Simple("PONG")


ODD = [
    "import sys\ndef f(x):\n    sys.exit(3)",
    "def f(x):\n    raise KeyboardInterrupt()",
    "class E(Exception):\n    def __str__(self):\n        raise ValueError('x')\ndef f(x):\n    raise E()",
    "def f(x):\n    return f(x)",
    "def f(x):\n    raise Exception('m' * 10_000_000)",
    "def f(x):\n    raise Exception('\\udcff')",
]


@MODE
@pytest.mark.parametrize("head", ODD)
def test_odd_exceptions_are_errors(wire, mode, head):
    register(wire, f"{head}\n{B}.map(f).register(trigger='t', mode={mode!r})")
    for _ in range(2):
        assert len(wire.error("RG.TRIGGER", "t")) < 1_000_000
    assert by_trigger(wire, "t").counters == (2, 0, 2, 0)
    assert wire.call("PING") == Simple("PONG")


# --- in order ----------------------------------------------------------------------------------------------------

NOTE = f"""
running = 0
def note(x):
    global running
    running += 1
    execute('rpush', 'order', x[1])
    hold(x)
    execute('set', 'together', max(running, int(execute('get', 'together') or 0)))
    running -= 1
    return x[1]
{B}.map(note).register(trigger='t', mode=%r, inorder=%s)
"""


def send_in_turn(server, wire, count):
    """Clients whose triggers arrive one after the other."""
    clients = [Wire(server.port) for _ in range(count)]
    for i, client in enumerate(clients):
        client.send("RG.TRIGGER", "t", i)
        wait_until(lambda i=i: by_trigger(wire, "t").counters[0] == i + 1, f"trigger {i} arriving")
    return clients


@ASYNC
def test_inorder(server, wire, mode):
    gate = Gate([server])
    register(wire, gate.code + NOTE % (mode, True))
    assert by_trigger(wire, "t").args["inorder"] == 1
    clients = send_in_turn(server, wire, 12)
    gate.wait_reached()
    gate.open()
    for i, client in enumerate(clients):
        assert client.read() == [b"%d" % i]
        client.close()
    assert wire.ok("LRANGE", "order", 0, -1) == [b"%d" % i for i in range(12)]
    assert wire.ok("GET", "together") == b"1"


@ASYNC
def test_without_inorder_they_run_together(server, wire, mode):
    gate = Gate([server])
    register(wire, gate.code + NOTE % (mode, False))
    assert by_trigger(wire, "t").args["inorder"] == 0
    clients = send_in_turn(server, wire, 4)
    gate.wait_reached(times=2)
    gate.open()
    for i, client in enumerate(clients):
        assert client.read() == [b"%d" % i]
        client.close()
    assert int(wire.ok("GET", "together")) >= 2


def test_inorder_goes_on_after_errors_and_aborts(server, wire):
    gate = Gate([server])
    script = f"{gate.code}\n{B}.map(lambda x: int(hold(x)[1])).register(trigger='t', mode='async_local', inorder=True)"
    register(wire, script)
    with Wire(server.port) as first:
        first.send("RG.TRIGGER", "t", "0")
        gate.wait_reached()
        clients = [Wire(server.port) for _ in range(4)]
        for i, client in enumerate(clients):
            client.send("RG.TRIGGER", "t", "z" if i == 1 else i)
            wait_until(lambda i=i: by_trigger(wire, "t").counters[0] == i + 2, "the trigger arriving")
        queued = [name for name, (status, _) in executions_of(wire).items() if status == b"created"]
        assert len(queued) == 4
        gate.open()
        assert first.read() == [b"0"]
        for i, client in enumerate(clients):
            reply = client.read()
            assert isinstance(reply, Error) if i == 1 else reply == [b"%d" % i]
            client.close()


# --- clients that leave, executions that are aborted -------------------------------------------------------------


@ASYNC
def test_a_client_that_leaves(server, wire, mode):
    gate = Gate([server])
    register(wire, f"{gate.code}\n{B}.map(hold).register(trigger='t', mode={mode!r})")
    with Wire(server.port) as leaving:
        leaving.send("RG.TRIGGER", "t")
        gate.wait_reached()
    gate.open()
    wait_until(lambda: by_trigger(wire, "t").counters[1:] == (1, 0, 0), "the execution going on to its end")
    wait_until(lambda: executions_of(wire) == {}, "the execution being dropped")


@ASYNC
def test_a_running_one_is_listed_as_registered_and_can_be_aborted(server, wire, mode):
    gate = Gate([server])
    register(wire, f"{gate.code}\n{B}.map(hold).register(trigger='t', mode={mode!r})")
    with Wire(server.port) as client:
        client.send("RG.TRIGGER", "t")
        gate.wait_reached()
        ((execution, (status, registered)),) = executions_of(wire).items()
        assert (status, registered) == (b"running", 1)
        assert wire.call("RG.ABORTEXECUTION", execution) == Simple("OK")
        reply = client.read()
        assert isinstance(reply, Error), f"an aborted execution looks complete: {reply!r}"
    triggered, success, failures, aborted = by_trigger(wire, "t").counters
    assert (triggered, success, failures + aborted) == (1, 0, 1)
    wait_until(lambda: executions_of(wire) == {}, "the execution being dropped")
    gate.open()
    assert trigger(wire, "t") == [b"['t']"]


def test_a_busy_loop_can_be_aborted(server, wire):
    loop = "def f(x):\n    execute('incr', 'in')\n    while True:\n        pass\n"
    register(wire, f"{loop}{B}.map(f).register(trigger='t')")
    with Wire(server.port) as client:
        client.send("RG.TRIGGER", "t")
        wait_until(lambda: wire.ok("EXISTS", "in"), "the loop")
        (execution,) = executions_of(wire)
        assert wire.call("RG.ABORTEXECUTION", execution) == Simple("OK")
        assert "forcestopped" in client.read().text.lower()
    assert by_trigger(wire, "t").counters == (1, 0, 1, 0)


# --- rights ------------------------------------------------------------------------------------------------------


def test_key_patterns_count_for_triggeronkey(server, wire):
    register(wire, simple_trigger("t"))
    wire.ok("ACL", "SETUSER", "bob", "on", ">pw", "~a:*", "+rg.triggeronkey")
    try:
        with Wire(server.port) as bob:
            bob.ok("AUTH", "bob", "pw")
            assert bob.call("RG.TRIGGERONKEY", "t", "a:1") == [b"1"]
            assert bob.error("RG.TRIGGERONKEY", "t", "b:1").startswith("NOPERM")
            assert bob.error("RG.TRIGGER", "t").startswith("NOPERM")
    finally:
        wire.ok("ACL", "DELUSER", "bob")


@MODE
def test_a_function_has_the_rights_of_who_registered_it(server, wire, mode):
    wire.ok("ACL", "SETUSER", "bob", "on", ">pw", "~b:*", "+@all")
    try:
        with Wire(server.port) as bob:
            bob.ok("AUTH", "bob", "pw")
            register(bob, f"{B}.map(lambda x: execute('set', x[1], 'v')).register(trigger='t', mode={mode!r})")
        assert trigger(wire, "t", "b:1") == [b"OK"]
        assert "NOPERM" in wire.error("RG.TRIGGER", "t", "a:1")
        assert wire.ok("EXISTS", "a:1") == 0
    finally:
        wire.ok("ACL", "DELUSER", "bob")
