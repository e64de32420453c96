"""The examples of triggers: what a client gets for RG.TRIGGER, in each mode."""

import dataclasses

import pytest
from registrations import MODES, NOT_FOUND, by_trigger, register, trigger
from replies import executions_of, results_of, traceback_lines, wait_done, wait_until
from wire import Error, Simple

pytestmark = pytest.mark.matrix

MODE = pytest.mark.parametrize("mode", MODES)
B = "GB('CommandReader')"


@dataclasses.dataclass(frozen=True)
class Row:
    """A script, with MODE in the place of the mode, and what its triggers answer, in order."""

    id: str
    script: str
    calls: tuple


ROWS = [
    Row("T1", f"{B}.register(trigger='t1', mode=MODE)", ((("t1", "a", "b"), [b"['t1', 'a', 'b']"]),)),
    Row(
        "T2",
        f"{B}.map(lambda x: x).register(trigger='t2', convertToStr=False, mode=MODE)",
        ((("t2", "a"), [[b"t2", b"a"]]), (("t2",), [[b"t2"]])),
    ),
    # The elements of a list come in order.
    Row(
        "T3",
        f"{B}.flatmap(lambda x: x[1:]).register(trigger='t3', mode=MODE)",
        ((("t3", "a", "b", "c"), [b"a", b"b", b"c"]), (("t3",), [])),
    ),
    Row(
        "T5",
        f"{B}.map(lambda x: flat_error('ERR mine')).register(trigger='t5', mode=MODE)",
        ((("t5",), Error("ERR mine")),),
    ),
    Row(
        "T6",
        f"{B}.map(lambda x: int(x[1])).register(trigger='t6', mode=MODE, convertToStr=False)",
        ((("t6", "5"), [5]), (("t6", "-5"), [-5])),
    ),
    Row("T7", f"{B}.filter(lambda x: False).register(trigger='t7', mode=MODE)", ((("t7", "a"), []),)),
    Row(
        "T11",
        f"""
c = 0
def inc(x):
    global c
    c += 1
    return c
{B}.map(inc).register(trigger='d', convertToStr=False, mode=MODE)
{B}.map(inc).register(trigger='e', convertToStr=False, mode=MODE)
""",
        ((("d",), [1]), (("d",), [2]), (("e",), [3]), (("d",), [4])),
    ),
    Row(
        "T12",
        f"""
b = {B}.map(lambda x: x)
b.register(trigger='a1', convertToStr=False, mode=MODE)
b.map(lambda x: 'added')
b.register(trigger='a2', mode=MODE)
""",
        ((("a1", "x"), [[b"a1", b"x"]]), (("a2", "x"), [b"added"])),
    ),
    Row(
        "T13",
        f"""
value = None
def on():
    global value
    value = 'set by onRegistered'
{B}.map(lambda x: value).register(trigger='t13', onRegistered=on, mode=MODE)
""",
        ((("t13",), [b"set by onRegistered"]),),
    ),
    Row(
        "T14",
        f"""
def mk(n):
    return lambda x: n
{B}.map(mk(42)).register(trigger='t14', mode=MODE)
""",
        ((("t14",), [b"42"]),),
    ),
    Row(
        "T15",
        f"""
import json
class Own:
    def __init__(self, state):
        self.state = state
    def method(self, x):
        return json.dumps([self.state, x])
own = Own(7)
{B}.map(lambda x: own.method([x[0], x[1]])).register(trigger='cl', mode=MODE)
""",
        ((("cl", "q"), [b'[7, ["cl", "q"]]']),),
    ),
    Row("accumulate", f"{B}.flatmap(lambda x: x[1:]).accumulate(lambda a, x: (a or 0) + int(x))"
        ".register(trigger='sum', mode=MODE)", ((("sum", "1", "2", "3"), [b"6"]), (("sum",), []))),
    Row("limit", f"{B}.flatmap(lambda x: x[1:]).limit(1, 1).register(trigger='l', mode=MODE)",
        ((("l", "1", "2", "3"), [b"2"]), (("l", "1"), []))),
    Row("sort", f"{B}.flatmap(lambda x: x[1:]).sort().register(trigger='s', mode=MODE)",
        ((("s", "b", "c", "a"), [b"a", b"b", b"c"]),)),
    Row("countby", f"{B}.flatmap(lambda x: x[1:]).countby().map(lambda r: (r['key'], r['value'])).sort()"
        ".register(trigger='cb', mode=MODE)", ((("cb", "b", "a", "b"), [b"('a', 1)", b"('b', 2)"]),)),
    Row("collect off", f"{B}.map(lambda x: x[1]).register(trigger='t', collect=False, mode=MODE)",
        ((("t", "a"), [b"a"]),)),
]  # fmt: skip


@MODE
@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS])
def test_example(wire, row, mode):
    register(wire, row.script.replace("MODE", repr(mode)))
    for args, wanted in row.calls:
        assert trigger(wire, *args) == wanted, args


def test_the_default_mode_is_async(wire):
    register(wire, f"{B}.register(trigger='t1')")
    assert by_trigger(wire, "t1").data["mode"] == b"async"
    assert trigger(wire, "t1", "a", "b") == [b"['t1', 'a', 'b']"]


def test_t1_names_are_case_sensitive(wire):
    register(wire, f"{B}.register(trigger='t1')")
    for name in ("T1", "t", "t11", "", "t1 "):
        assert trigger(wire, name) == Error(NOT_FOUND), name


@MODE
def test_t4_the_error_of_a_step_is_the_reply(wire, mode):
    register(wire, f"{B}.map(lambda x: bad).register(trigger='t4', mode={mode!r})")
    lines = traceback_lines(wire.error("RG.TRIGGER", "t4"))
    assert lines[-1] == "NameError: name 'bad' is not defined\n"


@MODE
def test_t8_one_error_and_no_results(wire, mode):
    steps = f"{B}.flatmap(lambda x: x[1:]).map(lambda x: int(x))"
    register(wire, f"{steps}.register(trigger='t8', convertToStr=False, mode={mode!r})")
    assert trigger(wire, "t8", "1", "2") == [1, 2]
    lines = traceback_lines(wire.error("RG.TRIGGER", "t8", "1", "z", "2", "y"))
    assert lines[-1] == "ValueError: invalid literal for int() with base 10: 'z'\n"


def test_t9_in_a_transaction(wire):
    register(wire, f"{B}.map(lambda x: 'OK').register(trigger='t9', mode='sync')\n{B}.register(trigger='t1')")
    assert wire.ok("MULTI") == Simple("OK")
    for name in ("t9", "t1"):
        assert trigger(wire, name) == Simple("QUEUED")
    text = "ERR can not run a non-sync execution inside a MULTI/LUA (blocking is not allowed) or on loading."
    assert wire.ok("EXEC") == [[b"OK"], Error(text)]
    # What can not start counts as aborted.
    counts = [by_trigger(wire, name).data for name in ("t9", "t1")]
    assert [(data["numTriggered"], data["numSuccess"], data["numAborted"]) for data in counts] == [(1, 1, 0), (1, 0, 1)]


def test_t10_a_name_that_is_taken(wire):
    register(wire, f"{B}.register(trigger='t1')")
    text = wire.error("RG.PYEXECUTE", f"{B}.register(trigger='t1')")
    assert "trigger already registered" in text and "in this session" not in text
    # Clients search for it in the last line of the traceback.
    assert "trigger already registered" in traceback_lines(text)[-1]
    assert trigger(wire, "t1") == [b"['t1']"]


@MODE
def test_t16_a_step_registers_another_trigger(wire, mode):
    script = f"""
def more(x):
    GB('CommandReader').map(lambda y: 'made for ' + y[1]).register(trigger=x[1], mode={mode!r})
    return 'done'
{B}.map(more).register(trigger='t16', mode={mode!r})
"""
    register(wire, script)
    assert trigger(wire, "t16", "new") == [b"done"]
    assert trigger(wire, "new", "you") == [b"made for you"]
    assert "trigger already registered" in wire.error("RG.TRIGGER", "t16", "new")
    assert trigger(wire, "t16", "newer") == [b"done"]
    assert trigger(wire, "newer", "me") == [b"made for me"]


def test_t17_run_and_register_in_one_script(wire):
    script = f"GB('ShardsIDReader').foreach(lambda x: execute('incr', 'ran')).run()\n{B}.register(trigger='t17')"
    register(wire, script)
    wait_until(lambda: wire.ok("GET", "ran") == b"1", "the run going on unattended")
    assert trigger(wire, "t17") == [b"['t17']"]


def test_t21_results_by_id(wire):
    execution = wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').run()", "UNBLOCKING")
    wait_done(wire, execution)
    assert results_of(wire.ok("RG.GETRESULTS", execution)) == [b"1"]


def test_v10_triggers_of_functions(wire):
    register(wire, f"{B}.map(lambda x: 'in:' + x[1]).register(trigger='s', mode='sync')\n{B}.register(trigger='a')")
    script = "GB('ShardsIDReader').map(lambda x: repr(execute('RG.TRIGGER', '%s', 'z'))).run()"
    assert results_of(wire.ok("RG.PYEXECUTE", script % "s")) == [b"['in:z']"]
    results, (error,) = wire.ok("RG.PYEXECUTE", script % "a")
    text = b"ERR can not run a non-sync execution inside a MULTI/LUA (blocking is not allowed) or on loading."
    assert results == [] and text in error


def test_v11_atomic_in_a_sync_trigger(wire):
    script = f"""
def f(x):
    before = isInAtomicBlock()
    with atomic():
        inside = isInAtomicBlock()
    return [before, inside, isInAtomicBlock()]
{B}.map(f).register(trigger='at', mode='sync', convertToStr=False)
"""
    register(wire, script)
    assert trigger(wire, "at") == [[0, 1, 0]]
    # The lock is given back.
    assert trigger(wire, "at") == [[0, 1, 0]]
    assert wire.call("PING") == Simple("PONG")


CONVERSIONS = [
    ("'+OK'", Simple("OK")),
    ("'-ERR no'", Error("ERR no")),
    ("'+'", b"+"),
    ("'-'", b"-"),
    ("''", b""),
    ("'é'", "é".encode()),
    ("b'+raw\\x00\\xff'", b"+raw\x00\xff"),
    ("True", 1),
    ("-7", -7),
    ("1 << 70", b"%d" % (1 << 70)),
    ("1.5", b"1.500000"),
    ("1e20", b"100000000000000000000.000000"),
    ("[1, ['a', [2.5]], []]", [1, [b"a", [b"2.500000"]], []]),
    ("None", b"PY RECORD"),
    ("(1, 2)", b"PY RECORD"),
    ("{'a': 1}", b"PY RECORD"),
    ("bytearray(b'x')", b"PY RECORD"),
]


@MODE
@pytest.mark.parametrize(("value", "wanted"), CONVERSIONS)
def test_conversion(wire, mode, value, wanted):
    register(wire, f"{B}.map(lambda x: {value}).register(trigger='c', convertToStr=False, mode={mode!r})")
    assert trigger(wire, "c") == [wanted]


@MODE
def test_conversion_to_text_by_default(wire, mode):
    script = f"{B}.flatmap(lambda x: [None, True, 1.0, b'x', -7, '+a']).register(trigger='c', mode={mode!r})"
    register(wire, script)
    assert trigger(wire, "c") == [b"None", b"True", b"1.0", b"b'x'", Error("7"), Simple("a")]


@MODE
def test_nothing_stays_listed_after_the_reply(wire, mode):
    register(wire, f"{B}.map(lambda x: int(x[1])).register(trigger='t', mode={mode!r})")
    for value in ("1", "z", "2"):
        trigger(wire, "t", value)
    wait_until(lambda: executions_of(wire) == {}, "the executions being dropped")
