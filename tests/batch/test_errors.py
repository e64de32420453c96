"""Errors by example: rows X1 to X24 of the interface, the texts of the builder, and when a failure stops the reader."""

import ast

import pytest
from scripts import NEVER, Case, check, execute, last_line, load, refusal, refusals, result, results, run, table

pytestmark = pytest.mark.matrix

BAD = "name 'bad' is not defined"
SIX = "*range(1, 7)"


def ids(expression):
    return f"GB('ShardsIDReader').map(lambda x: {expression}).run()"


# --- the script as a whole ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["", "1+1"], ids=["X1-empty", "X1-expression"])
def test_x1_nothing_to_run(client, script):
    assert execute(client, script) == "OK"


def test_x2_exception(client):
    text = refusal(client, "raise Exception('foo')")
    lines = ast.literal_eval(text)
    assert lines[0] == "Traceback (most recent call last):\n"
    assert '  File "<string>", line 1, in <module>\n' in lines
    assert lines[-1] == "Exception: foo\n"


def test_x3_syntax_error(client):
    text = refusal(client, "def f(:")
    assert text == "Error type: <class 'SyntaxError'>, Value: invalid syntax (<string>, line 1)"


def test_x4_flat_error(client):
    assert refusal(client, "raise redisgears.GearsFlatError('only this')") == "only this"
    assert refusal(client, "flat_error('only that')") == "only that"


def test_x5_exit(client):
    assert refusal(client, "import sys; sys.exit(3)").endswith("'SystemExit: 3\\n']")
    assert client.ping()


REFUSED = [
    ("X6", "GB().run(); GB().run()", "gears.error: Can not run more then 1 executions in a single script"),
    ("X7-reader", "GB('nope')", "gears.error: The given reader does not exists"),
    ("X7-number", "GB(1)", "gears.error: reader argument must be a string"),
    ("X7-desc", "GB('KeysReader', '*', 5)", "gears.error: desc argument must be a string"),
    ("X8-none", "GB().map()", "gears.error: wrong number of args to map function"),
    ("X8-number", "GB().map(1)", "gears.error: map argument must be a function"),
    ("X8-built-in", "GB().map(len)", "gears.error: map argument must be a function"),
    ("X9-text", "GB().limit('a')", "gears.error: limit argument must be a number"),
    ("X9-float", "GB().limit(1.5)", "gears.error: limit argument must be a number"),
    ("X9-three", "GB().limit(1, 2, 3)", "gears.error: wrong number of args to limit function"),
    ("X10-pattern", "GB().run(1)", "gears.error: regex argument must be a string"),
    ("X10-mode", "GB().run('x', mode='sync')", "gears.error: unknown execution mode"),
    ("X10-noScan", "GB().run(noScan=1)", "gears.error: exactMatch value is not boolean"),
    ("X11-source", "GB('PythonReader').run(5)", "gears.error: pyreader argument must be a function"),
    ("X11-commands", "GB('CommandReader').run()", "gears.error: Given reader do not support run or not exists"),
    ("X24-future", "gearsFuture()", "Future object can only be created inside certain execution steps"),
    ("X24-hook", "call_next()", "Can not get CommandHook ctx"),
    ("X24-command", "get_command()", "Can not get command ctx"),
    ("limit without number", "GB().limit()", "wrong number of args to limit function"),
    ("limit start", "GB().limit(1, 'a')", "limit argument must be a number"),
    ("limit keyword", "GB().limit(length=1)", "unexpected keyword argument 'length'"),
    ("map keyword", "GB().map(f=lambda x: x)", "unexpected keyword argument 'f'"),
    ("collect", "GB().collect(1)", "wrong number of args to collect function"),
    ("groupby none", "GB().groupby()", "wrong number of args to groupby function"),
    ("groupby one", "GB().groupby(lambda x: x)", "wrong number of args to groupby function"),
    ("groupby extractor", "GB().groupby(1, lambda k, a, x: x)", "groupby extractor argument must be a function"),
    ("groupby reducer", "GB().groupby(lambda x: x, 1)", "groupby reducer argument must be a function"),
    ("localgroupby none", "GB().localgroupby()", "wrong number of args to groupby function"),
    ("localgroupby extractor", "GB().localgroupby(len, lambda k, a, x: x)", "groupby extractor argument must be a"),
    ("localgroupby reducer", "GB().localgroupby(lambda x: x, 'r')", "groupby reducer argument must be a function"),
    ("batchgroupby one", "GB().batchgroupby(lambda x: x)", "wrong number of args to batchgroupby function"),
    ("batchgroupby extractor", "GB().batchgroupby(1, lambda k, l: l)", "batchgroupby extractor argument must be a"),
    ("avg", "GB().avg(5)", "map argument must be a function"),
    ("execute number", "execute(1)", "gears.error: the given command must be a string"),
]
NEEDS_FUNCTION = ["map", "filter", "foreach", "flatmap", "accumulate", "repartition"]
for name in NEEDS_FUNCTION:
    REFUSED += [
        (f"{name} nothing", f"GB().{name}()", f"gears.error: wrong number of args to {name} function"),
        (f"{name} two", f"GB().{name}(lambda x: x, 1)", f"gears.error: wrong number of args to {name} function"),
        (f"{name} number", f"GB().{name}(1)", f"gears.error: {name} argument must be a function"),
        (f"{name} None", f"GB().{name}(None)", f"gears.error: {name} argument must be a function"),
        (f"{name} built-in", f"GB().{name}(len)", f"gears.error: {name} argument must be a function"),
    ]


@refusals(REFUSED)
def test_the_script_is_refused(client, script, text):
    assert text in refusal(client, script)


def test_composed_operations_check_per_record(client):
    pair = run(client, "GB('ShardsIDReader').aggregate(0, 1, 2).run()")
    assert pair.results == [] and len(pair.errors) == 1 and "TypeError" in pair.errors[0]


def test_a_run_before_an_exception_is_cancelled(client):
    script = "GB('ShardsIDReader').foreach(lambda x: execute('set', 'ran', '1')).run()\nraise Exception('late')"
    assert last_line(refusal(client, script)) == "Exception: late"
    # The cancelled run would come before this one.
    assert results(client, "GB('ShardsIDReader').run()") == ["1"]
    assert client.exists("ran") == 0


# --- records -----------------------------------------------------------------------------------------------------

ROWS = [
    Case(
        "X13",
        "PR.map(lambda x: bad if x == 2 else x).run(src)",
        ["1"],
        SIX,
        errors=(f"NameError: {BAD}",),
    ),
    Case("X14", "PR.map(lambda x: bad if x == 2 else x).count().run(src)", ["1"], SIX, errors=(BAD,)),
    Case(
        "X15",
        "PR.avg().run(src)",
        ["1.0"],
        "'1', 'x', '2', '4'",
        errors=("could not convert string to float: 'x'",),
    ),
    Case("X16", "PR.accumulate(lambda a, x: bad if x == 2 else (a or 0) + x).run(src)", [], SIX, errors=(BAD,)),
    Case(
        "X17",
        "PR.groupby(lambda x: x % 2, lambda k, a, x: bad if x == 3 else (a or 0) + x).run(src)",
        ["{'key': '0', 'value': 2}"],
        SIX,
        errors=(BAD,),
        # Elsewhere the reducer is on another shard than the reader that its error stops.
        on_cluster=False,
    ),
    Case("X18", "PR.batchgroupby(lambda x: x, lambda k, l: bad).run(src)", [], "1, 2, 3", errors=(BAD,) * 3),
    Case("X19", "PR.sort().map(lambda x: bad if x < 3 else x).run(src)", ["3"], "1, 2, 3", errors=(BAD,) * 2),
    Case("first fails", "PR.map(lambda x: bad if x == 1 else x).run(src)", [], SIX, errors=(BAD,)),
    Case("last fails", "PR.map(lambda x: bad if x == 6 else x).run(src)", list("12345"), SIX, errors=(BAD,)),
    Case("filter", "PR.filter(lambda x: bad if x == 3 else x % 2).run(src)", ["1"], SIX, errors=(BAD,)),
    Case("foreach", "PR.foreach(lambda x: bad if x == 3 else 0).run(src)", ["1", "2"], SIX, errors=(BAD,)),
    Case("flatmap", "PR.flatmap(lambda x: bad if x == 2 else [x, x]).run(src)", ["1", "1"], SIX, errors=(BAD,)),
    Case(
        "flattened records are processed after an error",
        "PR.flatmap(lambda x: [x, 0, 3]).map(lambda x: 6 // x).run(src)",
        ["6", "2"],
        SIX,
        errors=("ZeroDivisionError",),
        order=NEVER,
    ),
    Case(
        "groupby extractor",
        "PR.groupby(lambda x: bad if x == 3 else 'k', lambda k, a, x: (a or 0) + x).run(src)",
        ["{'key': 'k', 'value': 3}"],
        SIX,
        errors=(BAD,),
    ),
    Case("repartition", "PR.repartition(lambda x: bad if x == 2 else x).run(src)", ["1"], SIX, errors=(BAD,)),
    Case(
        "errors skip later steps",
        "PR.map(lambda x: bad).map(lambda x: 'never').filter(lambda x: False).flatmap(lambda x: []).run(src)",
        [],
        SIX,
        errors=(BAD,),
    ),
    Case("errors pass a limit", "PR.map(lambda x: bad if x == 2 else x).limit(5).run(src)", ["1"], SIX, errors=(BAD,)),
    Case("errors do not count", "PR.sort().map(lambda x: bad if x < 3 else x).limit(2).run(src)", ["3", "4"], SIX,
         errors=(BAD,) * 2),
    Case("errors pass a count", "PR.sort().map(lambda x: bad if x < 3 else x).count().run(src)", ["4"], SIX,
         errors=(BAD,) * 2),
    Case("errors pass sort", "PR.map(lambda x: bad if x == 3 else -x).sort().run(src, convertToStr=False)", [-2, -1],
         SIX, errors=(BAD,)),
    Case("accumulator is lost, not the rest", "PR.localgroupby(lambda x: x % 3, lambda k, a, x: 1 // (x - 4)).run(src)",
         ["{'key': '2', 'value': -1}", "{'key': '0', 'value': -1}"], SIX, errors=("ZeroDivisionError",), order=NEVER),
    Case("str() of the record fails",
         "class P:\n    def __str__(self):\n        raise ValueError('no text')\nPR.map(lambda x: P()).run(src)",
         [], "1", errors=("ValueError: no text",)),
]  # fmt: skip


@table(ROWS)
def test_on_a_single_server(client, case):
    case.check_single(client)


@table(ROWS, lambda row: row.on_cluster)
def test_on_a_cluster(cluster, shard, case):
    case.check_cluster(cluster, shard)


def test_x12_wrong_number_of_parameters(client):
    found = run(client, "GB('ShardsIDReader').map(lambda: 1).run()")
    text = "Error type: <class 'TypeError'>, Value: <lambda>() takes 0 positional arguments but 1 was given"
    assert (found.results, found.errors) == ([], [text])


def test_x20_flat_error_in_a_step(client):
    assert run(client, ids("flat_error('my msg')")).errors == ["my msg"]


def test_x21_error_of_a_command(client):
    client.rpush("l", "a")
    text = "gears.error: WRONGTYPE Operation against a key holding the wrong kind of value"
    pair = run(client, ids("execute('incr', 'l')"))
    assert pair.results == [] and len(pair.errors) == 1
    assert last_line(pair.errors[0]) == text


def test_x22_nested_atomic(client):
    script = "def f(x):\n    with atomic():\n        with atomic():\n            return 1\n"
    pair = run(client, script + ids("f(x)"))
    assert last_line(pair.errors[0]) == "gears.error: Already inside an atomic block"


def test_x23_atomic_rolls_nothing_back(client):
    script = "def f(x):\n    with atomic():\n        execute('set', 'c', '1')\n        raise ValueError('x')\n"
    pair = run(client, script + ids("f(x)"))
    assert pair.results == [] and last_line(pair.errors[0]) == "ValueError: x"
    assert client.get("c") == b"1"
    assert client.set("lock is released", "1")


# --- when the reader stops ---------------------------------------------------------------------------------------


def test_input_stops_on_the_first_own_error(client):
    script = """
def src():
    for v in range(1000):
        execute('incr', 'yielded')
        yield v
GB('PythonReader').map(lambda x: 1 // (x - 10)).run(src)
"""
    pair = run(client, script)
    assert len(pair.results) == 10 and len(pair.errors) == 1
    assert client.get("yielded") == b"11"


def test_keys_stop_too(client):
    client.mset({f"k{i}": i for i in range(20000)})
    pair = run(client, "GB().map(lambda r: bad).run()")
    # Keys that were read together before the first error may fail too.
    assert pair.results == [] and 1 <= len(pair.errors) < 10000


def test_other_shards_read_on(cluster, shard):
    # The initiator keeps its own error and stops; the others ship theirs away and go on.
    script = "def src():\n    for v in [1, 2, 3]:\n        yield v\n"
    pair = run(shard, script + "GB('PythonReader').map(lambda x: bad).run(src)")
    assert pair.results == [] and len(pair.errors) == 7
    pair = run(shard, script + "GB('PythonReader').map(lambda x: bad if x == 1 else x).limit(2).run(src)")
    assert sorted(pair.results) == ["2", "2", "3", "3"] and len(pair.errors) == 3


def test_without_collect_only_own_errors_are_told(shard):
    pair = run(shard, "GB('ShardsIDReader').map(lambda x: bad).run(collect=False)")
    assert pair.results == [] and len(pair.errors) == 1


def test_errors_of_every_shard_arrive(cluster, shards, shard):
    load(cluster, [("SET", f"k{i}", i) for i in range(60)])
    pair = run(shard, "GB().map(lambda r: flat_error(r['key'])).run()")
    elsewhere = {key.decode() for other in shards[1:] for key in other.keys()}
    assert pair.results == [] and elsewhere < set(pair.errors)
    assert len(set(pair.errors)) == len(pair.errors)


def test_error_texts_without_tracebacks(client):
    client.execute_command("RG.CONFIGSET", "PythonAttemptTraceback", 0)
    try:
        pair = run(client, ids("bad"))
        assert pair.errors == [f"Error type: <class 'NameError'>, Value: {BAD}"]
        assert refusal(client, "1 / 0") == "Error type: <class 'ZeroDivisionError'>, Value: division by zero"
        assert run(client, ids("flat_error('plain')")).errors == ["plain"]
    finally:
        client.execute_command("RG.CONFIGSET", "PythonAttemptTraceback", 1)
    assert last_line(run(client, ids("bad")).errors[0]) == f"NameError: {BAD}"


FLAT = [("5", "5"), ("None", "None"), ("['a', 1]", "['a', 1]"), ("''", ""), ("'é'", "é"), ("ValueError('v')", "v")]


@pytest.mark.parametrize(("argument", "text"), FLAT)
def test_flat_error_takes_any_object(client, argument, text):
    assert run(client, ids(f"flat_error({argument})")).errors == [text]


def test_flat_error_needs_a_message(client):
    assert "gears.error: not enough arguments for time flat error" in refusal(client, "flat_error()")


def test_a_flat_error_can_be_caught(client):
    script = """
def f(x):
    try:
        flat_error('inner')
    except redisgears.GearsFlatError as e:
        return str(type(e)) + str(e)
"""
    assert result(client, script + ids("f(x)")) == "<class 'gears.flat_error'>inner"


def test_an_error_names_its_line(client):
    script = "def f(x):\n    y = x\n    return y.nothing\n" + ids("f(x)")
    lines = ast.literal_eval(run(client, script).errors[0])
    assert any('File "<string>", line 3, in f' in line for line in lines)
    assert lines[-1] == "AttributeError: 'str' object has no attribute 'nothing'\n"


def test_checks_of_the_tables(client):
    # The helpers must not pass by themselves.
    with pytest.raises(AssertionError):
        check(client, ids("1"), ["2"])
    with pytest.raises(AssertionError):
        check(client, ids("bad"), [])
    with pytest.raises(AssertionError):
        check(client, ids("1"), ["1"], errors=("x",))
    with pytest.raises(AssertionError):
        check(client, ids("1"), ["1", "1"], ordered=False)
