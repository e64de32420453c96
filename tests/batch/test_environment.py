"""What a script finds: rows V6 to V9 of the interface, the names of its environment, and its isolation."""

import pytest
from replies import wait_until
from scripts import check, check_errors, evaluate, execute, refusal, result, results, run

pytestmark = pytest.mark.matrix

IN_STEP = [
    ("V6-hashtag", "hashtag()", "06S"),
    ("V6-name", "__name__", "not_main"),
    ("V6-atomic", "isInAtomicBlock()", False),
    ("V6-async", "isAsyncAllow()", True),
    ("V6-session", "str(getGearsSession())", "PyExecutionSession"),
    ("argv is one text", "(len(__import__('sys').argv), type(__import__('sys').argv[0]).__name__)", (1, "str")),
    ("GB is GearsBuilder", "GB is GearsBuilder", True),
    ("log gives None", "log('x')", None),
    ("both names of the module", "(redisgears.__name__, rg is redisgears)", ("redisgears", True)),
    ("unknown configuration", "configGet('nothing')", None),
    ("unknown with default", "gearsConfigGet('nothing', 5)", 5),
    ("unknown without default", "gearsConfigGet('nothing')", None),
    ("standard modules", "[sys.__name__, types.__name__, copy.__name__, pickle.__name__, io.__name__]",
     ["sys", "types", "copy", "pickle", "io"]),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "wanted"), [pytest.param(*row[1:], id=row[0]) for row in IN_STEP])
def test_in_a_step(client, expression, wanted):
    assert evaluate(client, expression) == wanted


GLOBALS = """GearsBuilder GB execute atomic isInAtomicBlock hashtag log configGet gearsConfigGet flat_error call_next
    get_command override_reply gearsFuture isAsyncAllow getGearsSession setGearsSession registerGearsThread
    Log ConfigGet GearsConfigGet redisgears rg""".split()
MEMBERS = """executeCommand callNext getCommand overrideReply atomicCtx gearsFutureCtx getMyHashTag log setGearsSession
    getGearsSession registerGearsThread isInAtomicBlock config_get isAsyncAllow flatError GearsError GearsFlatError
    GearsForceStopped PyExecutionSession PyAtomic PyFuture PyFlatExecution gearsCtx""".split()
ABSENT = ["callNext", "getCommand", "overrideReply", "flatError", "registerTimeEvent", "hashtag3", "executeRemote"]


def test_names_that_are_there(client):
    assert evaluate(client, f"[n for n in {GLOBALS!r} if n not in globals()]") == []
    assert evaluate(client, f"[n for n in {MEMBERS!r} if not hasattr(redisgears, n)]") == []


def test_names_that_are_not_there(client):
    assert evaluate(client, f"[n for n in {ABSENT!r} if n in globals()]") == []


def test_the_names_are_there_on_every_shard(shard):
    script = f"GB('ShardsIDReader').map(lambda x: [n for n in {GLOBALS!r} if n not in globals()]).run()"
    assert results(shard, script) == ["[]"] * 3


NATIVE = [
    ("redisgears.executeCommand('ping')", "PONG"),
    ("redisgears.getMyHashTag()", "06S"),
    ("redisgears.isInAtomicBlock()", False),
    ("redisgears.isAsyncAllow()", True),
    ("redisgears.config_get('nothing')", None),
    ("redisgears.log('from the native module')", None),
    ("type(redisgears.atomicCtx()).__name__ == type(atomic()).__name__", True),
    ("isinstance(getGearsSession(), redisgears.PyExecutionSession)", True),
    ("[str(e) for e in (redisgears.GearsError, redisgears.GearsFlatError, redisgears.GearsForceStopped)]",
     ["<class 'gears.error'>", "<class 'gears.flat_error'>", "<class 'gears.forcestopped'>"]),
    ("[e.__bases__ == (Exception,) for e in (redisgears.GearsError, redisgears.GearsFlatError)]", [True, True]),
    ("redisgears.GearsForceStopped.__bases__ == (Exception,)", True),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "wanted"), NATIVE)
def test_members_of_the_native_module(client, expression, wanted):
    assert evaluate(client, expression) == wanted


def test_flat_error_of_the_native_module(client):
    script = "GB('ShardsIDReader').map(lambda x: redisgears.flatError('native')).run()"
    assert run(client, script).errors == ["native"]


# --- V7: configuration -------------------------------------------------------------------------------------------


def test_v7_user_defined_configuration(client):
    client.execute_command("RG.CONFIGSET", "FooBar", "v1")
    found = evaluate(client, "(configGet('FooBar'), configGet('foobar'), gearsConfigGet('zz', 'd'))")
    assert found == ("v1", None, "d")
    assert evaluate(client, "(ConfigGet('FooBar'), GearsConfigGet('FooBar', 'd'))") == ("v1", "v1")
    assert evaluate(client, "gearsConfigGet('FooBar', 'd')") == "v1"


def test_configuration_at_top_level(client):
    client.execute_command("RG.CONFIGSET", "at-top", "v2")
    assert result(client, "v = configGet('at-top')\nGB('ShardsIDReader').map(lambda x: v).run()") == "v2"


REFUSED = [
    ("configGet()", "get_config function must get a single key input"),
    ("configGet('a', 'b')", "get_config function must get a single key input"),
    ("configGet(1)", "get_config key must be a string"),
    ("configGet(b'a')", "get_config key must be a string"),
    ("setGearsSession()", "Wrong number of args given to setGearsSession"),
    ("setGearsSession(5)", "Given object is not of type GearsSession"),
]


@pytest.mark.parametrize(("expression", "text"), REFUSED)
def test_refused_arguments(client, expression, text):
    assert f"gears.error: {text}" in refusal(client, expression)
    check_errors(run(client, f"GB('ShardsIDReader').map(lambda x: {expression}).run()").errors, [text])


# --- V8, V9: what scripts share ----------------------------------------------------------------------------------


def test_v8_globals_belong_to_one_script(client):
    assert result(client, "x = 5\nGB('ShardsIDReader').map(lambda _: x).run()") == "5"
    pair = run(client, "GB('ShardsIDReader').map(lambda _: x).run()")
    check_errors(pair.errors, ["NameError: name 'x' is not defined"])
    assert "NameError: name 'x' is not defined" in refusal(client, "x")


def test_v8_on_every_shard(shard):
    check(shard, "x = 5\nGB('ShardsIDReader').map(lambda _: x).run()", ["5"] * 3)
    script = "GB('ShardsIDReader').map(lambda _: 'x' in globals()).run()"
    check(shard, script, ["False"] * 3)


def test_shadowing_lasts_for_one_script(client):
    script = "execute = lambda *a: 'mine'\nGB('ShardsIDReader').map(lambda x: execute('ping')).run()"
    assert result(client, script) == "mine"
    assert evaluate(client, "execute('ping')") == "PONG"


def test_v9_modules_are_shared(client):
    assert execute(client, "import math; math.foo = 7") == "OK"
    try:
        assert result(client, "import math\nGB('ShardsIDReader').map(lambda x: math.foo).run()") == "7"
    finally:
        assert execute(client, "import math; del math.foo") == "OK"


def test_async_is_not_allowed_at_top_level(client):
    assert result(client, "a = isAsyncAllow()\nGB('ShardsIDReader').map(lambda x: a).run()") == "False"


def test_a_script_may_be_long(client):
    body = "\n".join(f"v{i} = {i}" for i in range(20000))
    assert result(client, f"{body}\nGB('ShardsIDReader').map(lambda x: v19999).run()") == "19999"


FORMS = [
    "# -*- coding: utf-8 -*-\nv = 'é'\n",
    "v = 'é'\r\n",
    "\n\n\nv = 'é'",
    "if True:\n\tv = 'é'\n",
    "from __future__ import annotations\nv: Undefined = 'é'\n",
    "'''A docstring.'''\nv = 'é'\n",
    "v = '''é'''.strip(); w = v\n",
]


@pytest.mark.parametrize("head", FORMS)
def test_forms_of_source_text(client, head):
    assert result(client, head + "\nGB('ShardsIDReader').map(lambda x: v).run()") == "é"


BROKEN = [b"x = '\xff'", b"x = 1\x00", b"\x00", b"\xff\xfe", b"x = '\xed\xa0\x80'"]


@pytest.mark.parametrize("script", BROKEN)
def test_source_that_python_cannot_read(client, script):
    assert refusal(client, script)
    assert evaluate(client, "1 + 1") == 2


INDENTED = [
    "  x = 1",
    "def f():\nreturn 1",
    "x = (",
    "x = 'open",
    "return 5",
    "await x",
    "yield 1",
    "a b",
    "((((" * 100,
]


@pytest.mark.parametrize("script", INDENTED)
def test_syntax_errors(client, script):
    assert refusal(client, script).startswith("Error type: <class '")
    assert evaluate(client, "1 + 1") == 2


# --- threads of a script -----------------------------------------------------------------------------------------

IN_THREAD = """
import threading
def in_thread(f):
    found = []
    def work():
        try:
            found.append(f())
        except BaseException as e:
            found.append('%s: %s' % (type(e), e))
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    return found
"""


def test_a_thread_may_execute(client):
    expression = "in_thread(lambda: (execute('incr', 'n'), hashtag(), isInAtomicBlock(), log('from a thread')))"
    assert evaluate(client, expression, IN_THREAD) == [(1, "06S", False, None)]


def test_a_thread_may_be_atomic(client):
    prelude = IN_THREAD + "def both():\n    with atomic():\n        return execute('incr', 'n'), isInAtomicBlock()\n"
    assert evaluate(client, "in_thread(both)", prelude) == [(1, True)]


def test_a_thread_may_not_build(client):
    (text,) = evaluate(client, "in_thread(lambda: GB('ShardsIDReader'))", IN_THREAD)
    assert text == "<class 'gears.error'>: Can not create a gearsCtx on a python created thread"


def test_a_thread_outlives_its_execution(client):
    script = """
import threading, time
def work():
    while execute('get', 'go') is None:
        time.sleep(0.005)
    execute('set', 'went', '1')
def f(x):
    threading.Thread(target=work, daemon=True).start()
    return 'started'
GB('ShardsIDReader').map(f).run()
"""
    assert result(client, script) == "started"
    client.set("go", "1")
    wait_until(lambda: client.get("went") == b"1", "the thread of the script going on")
