"""register(): its arguments, what it must refuse, and the functions that hear of it."""

from pathlib import Path

import pytest
from registrations import MODES, NOT_FOUND, OK, by_trigger, dump, only, register, sessions, simple_trigger, trigger
from replies import own_tag, traceback_lines, wait_until
from wire import Error, Simple, Wire

MODE = pytest.mark.parametrize("mode", MODES)
B = "GB('CommandReader')"
LOCK = "import threading\nv = threading.Lock()\n"
NOT_SUPPORTED = "given reader does not exists or does not support register"

BAD_ARGUMENTS = [
    (f"{B}.register()", "no trigger or hook argument was given"),
    (f"{B}.register(mode='sync')", "no trigger or hook argument was given"),
    (f"{B}.register(trigger=5)", "trigger argument is not string"),
    (f"{B}.register(trigger=['t'])", "trigger argument is not string"),
    (f"{B}.register(trigger='t', inorder=1)", "inorder argument is be boolean"),
    (f"{B}.register(trigger='t', inorder='yes')", "inorder argument is be boolean"),
    (f"{B}.register(trigger='t', hook='get')", "trigger argument can not be given with keyprefix or hook"),
    (f"{B}.register(trigger='t', keyprefix='a')", "trigger argument can not be given with keyprefix or hook"),
    (f"{B}.register(trigger='t', mode='none')", "unknown execution mode"),
    (f"{B}.register(trigger='t', mode='SYNC')", "unknown execution mode"),
    (f"{B}.register(trigger='t', mode=1)", "execution mode must be a string"),
    (f"{B}.register(trigger='t', onRegistered=1)", "OnRegistered argument must be a function"),
    (f"{B}.register(trigger='t', onRegistered='f')", "OnRegistered argument must be a function"),
    (f"{B}.register(trigger='t', onUnregistered=1)", "OnUnregistered argument must be a function"),
    ("GB('KeysOnlyReader').register()", NOT_SUPPORTED),
    ("GB('PythonReader').register()", NOT_SUPPORTED),
    ("GB('ShardsIDReader').register()", NOT_SUPPORTED),
    ("GB('NoReader').register()", "The given reader does not exists"),
    (f"{B}.register(trigger='t')\n{B}.register(trigger='t')", "trigger already registered in this session"),
    (f"{LOCK}{B}.map(lambda x: v).register(trigger='t')", "callback=<lambda> error="),
    (f"{LOCK}def on():\n    v.acquire()\n{B}.register(trigger='t', onRegistered=on)", "callback=on error="),
]


@pytest.mark.parametrize(("script", "text"), BAD_ARGUMENTS)
def test_refused_arguments(wire, script, text):
    found = wire.error("RG.PYEXECUTE", script)
    assert "error: " in traceback_lines(found)[-1] and text in traceback_lines(found)[-1]
    assert dump(wire) == {} and sessions(wire) == {}
    assert trigger(wire, "t") == Error(NOT_FOUND)


@pytest.mark.parametrize(
    "arguments", ["mode='none'", "trigger=5", "trigger='t', mode='sync', inorder=0", "trigger='t', onRegistered=1"]
)
def test_a_refused_argument_leaves_the_builder_usable(wire, arguments):
    script = f"""
b = {B}.map(lambda x: x[0])
try:
    b.register({arguments})
except Exception as error:
    first = str(error)
b.register(trigger='t', mode='sync')
"""
    register(wire, script)
    assert len(dump(wire)) == 1 and trigger(wire, "t") == [b"t"]


def test_unknown_keywords_are_ignored(wire):
    register(wire, f"{B}.map(lambda x: 1).register(trigger='t', nosuch=5, mode='sync', convertToStr=False)")
    assert trigger(wire, "t") == [1]


def test_a_description_of_the_builder(wire):
    register(wire, "GB('CommandReader', desc='my \"desc\" é').register(trigger='t')")
    assert only(wire).desc == 'my "desc" é'.encode()


def test_register_in_a_python_thread_is_refused_or_works(wire):
    """It must neither hang nor crash, and the trigger is there or not there."""
    script = f"""
import threading
said = []
def late():
    try:
        {B}.register(trigger='late')
    except Exception as error:
        said.append(str(error))
t = threading.Thread(target=late)
t.start()
t.join()
execute('set', 'said', said[0] if said else 'nothing')
"""
    register(wire, script)
    made = wire.ok("GET", "said") == b"nothing"
    wait_until(lambda: (b"late" in [one.trigger for one in dump(wire).values()]) is made, "what the thread was told")
    assert wire.call("PING") == Simple("PONG")


@MODE
def test_steps_added_after_register_do_not_show(wire, mode):
    script = f"b = {B}.map(lambda x: 'first')\nb.register(trigger='t', mode={mode!r})\nb.map(lambda x: 'second')"
    register(wire, script)
    assert trigger(wire, "t") == [b"first"]


def test_globals_are_taken_when_register_is_called(wires):
    """On other shards a function finds what was there when it was registered."""
    register(wires[0], f"c = 1\nb = {B}.map(lambda x: c)\nc = 2\nb.register(trigger='t', mode='sync')")
    for wire in wires:
        assert trigger(wire, "t") == [b"2"]


# --- onRegistered, onUnregistered --------------------------------------------------------------------------------

HEARD = """
def on_%(name)s():
    execute('rpush', 'heard{%%s}' %% hashtag(), '+%(name)s')
def off_%(name)s():
    execute('rpush', 'heard{%%s}' %% hashtag(), '-%(name)s')
GB('CommandReader').map(lambda x: x[0]).register(
    trigger='%(name)s', mode='sync', onRegistered=on_%(name)s, onUnregistered=off_%(name)s)
"""


def heard(server):
    return [name.decode() for name in server.command("LRANGE", f"heard{{{own_tag(server)}}}", 0, -1)]


def test_functions_hear_of_it_on_every_shard(cluster, wires):
    register(wires[0], HEARD % {"name": "a"} + HEARD % {"name": "b"}, "ID", "s")
    for server in cluster.servers:
        assert heard(server) == ["+a", "+b"]
    first, second = dump(wires[0])
    assert wires[1].call("RG.UNREGISTER", first) == Simple("OK")
    for server in cluster.servers:
        assert heard(server) == ["+a", "+b", "-a"]
    register(wires[2], HEARD % {"name": "b"} + HEARD % {"name": "c"}, "ID", "s", "UPGRADE")
    for server in cluster.servers:
        assert heard(server) == ["+a", "+b", "-a", "-b", "+b", "+c"]
    register(wires[2], HEARD % {"name": "d"}, "ID", "r", "REPLACE_WITH", "s")
    for server in cluster.servers:
        assert heard(server)[6:] == ["-b", "-c", "+d"]


def test_functions_hear_of_it_on_a_single_server(server, wire):
    register(wire, HEARD % {"name": "a"} + HEARD % {"name": "b"}, "ID", "s")
    assert heard(server) == ["+a", "+b"]
    register(wire, HEARD % {"name": "b"} + HEARD % {"name": "c"}, "ID", "s", "UPGRADE")
    assert heard(server) == ["+a", "+b", "-a", "-b", "+b", "+c"]
    for one in dump(wire):
        assert wire.call("RG.UNREGISTER", one) == Simple("OK")
    assert heard(server)[6:] == ["-b", "-c"]


def test_nobody_hears_of_what_was_refused(server, wire):
    assert wire.error("RG.PYEXECUTE", HEARD % {"name": "a"} + "raise Exception('late')")
    assert heard(server) == []
    register(wire, simple_trigger("taken"))
    wire.error("RG.PYEXECUTE", HEARD % {"name": "a"} + simple_trigger("taken"))
    assert heard(server) == []


def test_the_registration_is_active_when_its_function_is_called(cluster, wires):
    script = f"""
said = []
def on():
    said.append(execute('RG.TRIGGER', 'other', 'x'))
    said.append(isInAtomicBlock())
    execute('set', 'on{{%s}}' % hashtag(), 'v')
{B}.map(lambda x: x[1]).register(trigger='other', mode='sync')
{B}.map(lambda x: said).register(trigger='said', mode='sync', onRegistered=on)
"""
    register(wires[0], script)
    for server, wire in zip(cluster.servers, wires, strict=True):
        assert trigger(wire, "said") == [b"[['x'], False]"]
        assert wire.ok("GET", f"on{{{own_tag(server)}}}") == b"v"


def test_they_may_start_executions(cluster, wires):
    script = f"""
def on():
    GB('ShardsIDReader').foreach(lambda x: execute('incr', 'started{{%s}}' % hashtag())).run(mode='async_local')
{B}.register(trigger='t', onRegistered=on)
"""
    register(wires[0], script)
    for server, wire in zip(cluster.servers, wires, strict=True):
        key = f"started{{{own_tag(server)}}}"
        wait_until(lambda wire=wire, key=key: wire.ok("GET", key) == b"1", "the execution of onRegistered")


BROKEN = [
    ("def on():\n    raise Exception('broken on purpose')", "broken on purpose"),
    ("import sys\ndef on():\n    sys.exit(5)", "SystemExit"),
    ("def on(required):\n    pass", "required"),
    ("async def on():\n    pass", "coroutine"),
]


@pytest.mark.parametrize("keyword", ["onRegistered", "onUnregistered"])
@pytest.mark.parametrize(("head", "said"), BROKEN)
def test_their_errors_are_only_logged(server, wire, head, said, keyword):
    before = len(server.log())
    register(wire, f"{head}\n{B}.map(lambda x: 1).register(trigger='t', mode='sync', {keyword}=on)")
    assert trigger(wire, "t") == [b"1"]
    assert wire.call("RG.UNREGISTER", only(wire).id) == Simple("OK")
    assert trigger(wire, "t") == Error(NOT_FOUND)
    wait_until(lambda: said in server.log()[before:], f"the log saying {said!r}")


# --- register() in running functions -----------------------------------------------------------------------------

MAKER = f"""
c = 0
def inc(x):
    global c
    c += 1
    return c
def make(x):
    return {B}.map(inc).register(trigger=x[1], mode='sync', convertToStr=False)
{B}.map(make).register(trigger='make', mode=%r)
{B}.map(inc).register(trigger='own', mode='sync', convertToStr=False)
"""


@MODE
def test_what_a_function_registers_joins_its_session(wire, mode):
    register(wire, MAKER % mode, "ID", "s", "DESCRIPTION", "d")
    assert trigger(wire, "make", "new") == [by_trigger(wire, "new").id]
    session = sessions(wire)[b"s"]
    assert list(sessions(wire)) == [b"s"] and session["sessionDescription"] == b"d"
    assert session["registrations"] == list(dump(wire))
    assert by_trigger(wire, "new").pd["sessionName"] == "s"
    # Its functions find the globals of the session.
    assert [trigger(wire, name) for name in ("own", "new", "own", "new")] == [[1], [2], [3], [4]]
    register(wire, simple_trigger("other"), "ID", "s", "UPGRADE")
    assert trigger(wire, "new") == Error(NOT_FOUND)
    assert [one.trigger for one in dump(wire).values()] == [b"other"]


@MODE
def test_what_a_function_registers_may_be_refused(wire, mode):
    register(wire, MAKER % mode, "ID", "s")
    register(wire, simple_trigger("other"))
    for name in ("other", "own", "make"):
        assert "trigger already registered" in wire.error("RG.TRIGGER", "make", name)
    assert len(dump(wire)) == 3
    assert trigger(wire, "own") == [1]


def test_a_run_registers(wire):
    """Its session has no registration before; the name is that of the script."""
    script = f"GB('ShardsIDReader').map(lambda x: {B}.register(trigger='t', mode='sync')).run()"
    ((found,), errors) = wire.ok("RG.PYEXECUTE", script, "ID", "runner")
    assert errors == [] and found == only(wire).id
    assert list(sessions(wire)) == [b"runner"]
    assert trigger(wire, "t") == [b"['t']"]


def test_onregistered_registers(cluster, wires):
    """On every shard, for one name: one of them gets it."""
    script = f"""
def on():
    try:
        {B}.map(lambda x: 'by onRegistered').register(trigger='more', mode='sync')
    except Exception:
        pass
{B}.register(trigger='t', onRegistered=on)
"""
    register(wires[0], script)
    for wire in wires:
        wait_until(lambda wire=wire: trigger(wire, "more") == [b"by onRegistered"], "the second trigger everywhere")
    assert {tuple(one.trigger for one in dump(wire).values()) for wire in wires} == {(b"t", b"more")}


def test_a_function_registers_very_often(server, wire):
    script = f"""
def make(x):
    for i in range(int(x[1])):
        {B}.map(lambda y: x[1] + y[0]).register(trigger='made%d' % i, mode='sync')
{B}.foreach(make).register(trigger='make', mode='async_local')
"""
    register(wire, script, "ID", "s")
    with Wire(server.port) as client:
        client.send("RG.TRIGGER", "make", 300)
        assert wire.call("PING") == Simple("PONG")
        assert not isinstance(client.read(), Error)
    assert len(dump(wire)) == 301
    assert trigger(wire, "made299") == [b"300made299"]


def break_snapshots(server, wire):
    """The server can not write its dump, and then takes no writes."""
    (Path(server.dir) / "dump.rdb").mkdir()
    wire.ok("BGSAVE")


def mend_snapshots(server, wire):
    (Path(server.dir) / "dump.rdb").rmdir()
    wire.ok("BGSAVE")


def miss_replicas(server, wire):
    wire.ok("CONFIG", "SET", "min-replicas-to-write", 1)


def miss_none(server, wire):
    wire.ok("CONFIG", "SET", "min-replicas-to-write", 0)


HERE = """
def make(x):
    GB('CommandReader').map(str).register(trigger='here')
GB('CommandReader').foreach(make).register(trigger='make', mode=%r)
"""


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["sync", "async_local"])
@pytest.mark.parametrize(
    ("harm", "mend", "code"),
    [(break_snapshots, mend_snapshots, "MISCONF"), (miss_replicas, miss_none, "NOREPLICAS")],
)
def test_a_server_that_takes_no_writes_takes_no_changes(fresh, harm, mend, code, mode):
    """It would forget them, as it would forget the writes that it refuses."""
    server = fresh(server_args=("--save", "3600 1"))
    with Wire(server.port) as wire:
        register(wire, simple_trigger("before"))
        register(wire, HERE % mode)
        before = dump(wire)
        harm(server, wire)
        wait_until(lambda: isinstance(wire.call("SET", "k", "v"), Error), "writes being refused")
        refusal = wire.error("SET", "k", "v")
        assert refusal.startswith(f"{code} ")
        made = by_trigger(wire, "before").id
        assert wire.error("RG.PYEXECUTE", simple_trigger("after")) == refusal
        assert wire.error("RG.UNREGISTER", made) == refusal
        assert wire.error("RG.CLEARREGISTRATIONSSTATS") == refusal
        wire.ok("MULTI")
        wire.ok("RG.UNREGISTER", made)
        (reply,) = wire.ok("EXEC")
        assert reply.text == refusal
        assert refusal in wire.error("RG.TRIGGER", "make")
        assert refusal in wire.error("RG.PYEXECUTE", "registerTE(60, lambda: None, 'timer')")
        assert dump(wire).keys() == before.keys()
        mend(server, wire)
        wait_until(lambda: wire.call("SET", "k", "v") == OK, "writes being taken")
        register(wire, simple_trigger("after"))
        assert wire.call("RG.UNREGISTER", made) == OK
