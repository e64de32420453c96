"""RG.PYEXECUTE: what a script's outcome becomes, and the command's own errors."""

import itertools

import pytest
from replies import SINGLE_ID, executions, pair, results_of, split_id, start, traceback_lines, wait_done, wait_until
from wire import Error, Simple

BAD_NAME = "ID must be compose of: ['A'-'Z' | 'a'-'z' | '0' - '9' | '-' | '_']"
NOT_YET = "not supported yet"
ONE = "GB('ShardsIDReader').run()"


# --- outcomes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["", "1+1", "x = 1", "# nothing\n", "def f():\n    pass\nf()", "\n\n"])
def test_neither_run_nor_register_is_a_simple_ok(wire, script):
    assert wire.call("RG.PYEXECUTE", script) == Simple("OK")


@pytest.mark.parametrize(
    ("script", "reply"),
    [
        ("GB().count().run()", [[b"3"], []]),
        (
            "GB('ShardsIDReader').map(lambda x: [1, 'a', None, 2.5]).run(convertToStr=False)",
            [[[1, b"a", b"PY RECORD", b"2.500000"]], []],
        ),
        ("GB('ShardsIDReader').map(lambda x: '+OK').run()", [[Simple("OK")], []]),
        ("GB('ShardsIDReader').map(lambda x: '-no luck').run()", [[Error("no luck")], []]),
        ("GB('ShardsIDReader').map(lambda x: -7).run()", [[Error("7")], []]),
        ("GB('ShardsIDReader').map(lambda x: -7).run(convertToStr=False)", [[-7], []]),
        ("GB('ShardsIDReader').map(lambda x: b'\\x00\\xff').run(convertToStr=False)", [[b"\x00\xff"], []]),
        ("GB('ShardsIDReader').run()", [[b"1"], []]),
    ],
)
def test_pair_of_results_and_errors(wire, script, reply):
    for key in "abc":
        wire.ok("SET", key, key)
    assert wire.call("RG.PYEXECUTE", script) == reply


def test_a_failed_step_is_an_error_in_the_pair(wire):
    results, (error,) = pair(wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').map(lambda x: y).run()"))
    assert results == []
    assert traceback_lines(error)[-1] == "NameError: name 'y' is not defined\n"


def test_a_blocking_run_is_dropped_after_its_reply(wire):
    kept = start(wire, ONE)
    wait_done(wire, kept)
    assert results_of(wire.ok("RG.PYEXECUTE", ONE)) == [b"1"]
    wait_until(lambda: executions(wire) == {kept: b"done"}, "the blocking run being dropped")


def test_every_database_is_answered_from_database_0(wire):
    wire.ok("SET", "in-0", "x")
    wire.ok("SELECT", 1)
    wire.ok("SET", "in-1", "x")
    reply = wire.ok("RG.PYEXECUTE", "GB().map(lambda r: r['key']).run('in-*')")
    assert results_of(reply) == [b"in-0"]
    assert wire.ok("GET", "in-1") == b"x", "the client must stay in the database that it has selected"


# --- errors of the script ----------------------------------------------------------------------------------------


def test_an_exception_at_top_level_is_a_list_of_traceback_lines(wire):
    lines = traceback_lines(wire.error("RG.PYEXECUTE", "raise Exception('foo')"))
    assert any('File "<string>", line 1, in <module>' in line for line in lines)
    assert lines[-1] == "Exception: foo\n"


def test_a_syntax_error_has_no_traceback(wire):
    text = wire.error("RG.PYEXECUTE", "def f(:")
    assert text.startswith("Error type: <class 'SyntaxError'>, Value: invalid syntax (<string>, line 1)")


def test_without_tracebacks(wire):
    wire.ok("RG.CONFIGSET", "PythonAttemptTraceback", 0)
    text = wire.error("RG.PYEXECUTE", "raise Exception('foo')")
    assert text == "Error type: <class 'Exception'>, Value: foo"
    results, (error,) = pair(wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').map(lambda x: y).run()"))
    assert results == []
    assert error == "Error type: <class 'NameError'>, Value: name 'y' is not defined"


def test_a_flat_error_is_its_message(wire):
    assert wire.error("RG.PYEXECUTE", "raise redisgears.GearsFlatError('only this')") == "only this"
    assert wire.error("RG.PYEXECUTE", "flat_error('my msg')") == "my msg"


@pytest.mark.parametrize("message", ["a\\r\\nb", "a\\n+OK", "\\r", "a\\n\\n"])
def test_line_breaks_in_errors_do_not_break_the_protocol(wire, message):
    text = wire.error("RG.PYEXECUTE", f"flat_error('x{message}')")
    assert text.startswith("x") and "\n" not in text and "\r" not in text
    assert wire.call("PING") == Simple("PONG")


def test_exit_and_two_runs(wire):
    text = wire.error("RG.PYEXECUTE", "import sys; sys.exit(3)")
    assert text.endswith("'SystemExit: 3\\n']") or text.endswith('"SystemExit: 3\\n"]')
    assert wire.call("PING") == Simple("PONG")
    text = wire.error("RG.PYEXECUTE", "GB().run(); GB().run()")
    assert "gears.error: Can not run more then 1 executions in a single script" in text


def test_a_failing_script_cancels_the_run_it_has_requested(wire):
    script = "GB('ShardsIDReader').foreach(lambda x: execute('set', 'ran', '1')).run()\nraise Exception('late')"
    assert "Exception: late" in wire.error("RG.PYEXECUTE", script)
    assert executions(wire) == {}
    # Executions are started in order: had the cancelled one been queued, it would run before these.
    for _ in range(5):
        assert results_of(wire.ok("RG.PYEXECUTE", ONE)) == [b"1"]
    assert wire.ok("EXISTS", "ran") == 0


# --- options -----------------------------------------------------------------------------------------------------


def test_unblocking_answers_the_id_and_keeps_the_execution(wire):
    execution = start(wire, ONE)
    assert split_id(execution)[0] == SINGLE_ID
    wait_done(wire, execution)
    assert results_of(wire.ok("RG.GETRESULTS", execution)) == [b"1"]


@pytest.mark.parametrize("words", list(itertools.permutations(["UNBLOCKING", "ID", "DESCRIPTION"])))
def test_options_in_any_order(wire, words):
    values = {"UNBLOCKING": [], "ID": ["my-session_1"], "DESCRIPTION": ["any text, even \x00 and é"]}
    options = [part for word in words for part in [word, *values[word]]]
    execution = wire.ok("RG.PYEXECUTE", ONE, *options)
    wait_done(wire, execution)
    assert results_of(wire.ok("RG.GETRESULTS", execution)) == [b"1"]


@pytest.mark.parametrize(
    "options",
    [
        ["id", "a", "description", "b"],
        ["Id", "a", "dEsCrIpTiOn", ""],
        ["ID", "a", "ID", "b", "DESCRIPTION", "c", "DESCRIPTION", "d"],
        ["ID", ""],
        ["ID", "AZaz09-_"],
        ["DESCRIPTION", "ID"],
        ["ID", "DESCRIPTION"],
        ["ID", "n" * 64],
    ],
)
def test_accepted_options(wire, options):
    assert results_of(wire.ok("RG.PYEXECUTE", ONE, *options)) == [b"1"]
    assert wire.call("RG.PYEXECUTE", "x = 1", *options) == Simple("OK")


def test_unblocking_is_case_insensitive_and_means_nothing_without_a_run(wire):
    assert split_id(wire.ok("RG.PYEXECUTE", ONE, "unBlocking", "UNBLOCKING"))[0] == SINGLE_ID
    assert wire.call("RG.PYEXECUTE", "x = 1", "UNBLOCKING") == Simple("OK")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["ID"], "ID is missing"),
        (["id"], "ID is missing"),
        (["DESCRIPTION"], "DESCRIPTION is missing"),
        (["UNBLOCKING", "DESCRIPTION"], "DESCRIPTION is missing"),
        (["ID", "a b"], BAD_NAME),
        (["ID", "a.b"], BAD_NAME),
        (["ID", "é"], BAD_NAME),
        (["ID", b"a\x00b"], BAD_NAME),
        (["ID", b"\xff"], BAD_NAME),
        (["FOO"], "Unknown arguments were given: FOO"),
        (["foo", "bar"], "Unknown arguments were given: foo"),
        (["UNBLOCKING", "BLOCKING"], "Unknown arguments were given: BLOCKING"),
        ([""], "Unknown arguments were given: "),
        # The order of the checks: a missing value, a bad name, an unknown word.
        (["ID", "a b", "DESCRIPTION"], "DESCRIPTION is missing"),
        (["ID", "a b", "FOO"], BAD_NAME),
        # The first unknown word ends the options.
        (["FOO", "ID"], "Unknown arguments were given: FOO"),
        (["FOO", "ID", "a b"], "Unknown arguments were given: FOO"),
    ],
)
def test_refused_options(wire, options, error):
    # The server cuts spaces at the end of an error.
    assert wire.error("RG.PYEXECUTE", "execute('set', 'ran', '1')", *options).rstrip() == error.rstrip()
    assert wire.ok("EXISTS", "ran") == 0, "the script must not run"


@pytest.mark.parametrize(
    "options",
    [
        ["REQUIREMENTS", "redis"],
        ["UNBLOCKING", "REQUIREMENTS", "redis", "numpy"],
        ["FORCE_REINSTALL_REQUIREMENTS", "REQUIREMENTS", "redis"],
    ],
)
def test_options_that_are_refused_for_now(wire, options):
    assert NOT_YET in wire.error("RG.PYEXECUTE", "execute('set', 'ran', '1')", *options)
    assert wire.ok("EXISTS", "ran") == 0, "the script must not run"


def test_replace_with_needs_a_name(wire):
    assert wire.error("RG.PYEXECUTE", "x = 1", "REPLACE_WITH") == "REPLACE_WITH is missing"


def test_requirements_without_any(wire):
    reply = wire.call("RG.PYEXECUTE", "x = 1", "REQUIREMENTS")
    assert reply == Simple("OK") or NOT_YET in reply.text


def test_arity(wire):
    text = wire.error("RG.PYEXECUTE")
    assert text.lower() == "err wrong number of arguments for 'rg.pyexecute' command"


# --- bytes -------------------------------------------------------------------------------------------------------


def test_a_script_is_not_cut_at_a_nul_byte(wire):
    text = wire.error("RG.PYEXECUTE", b"execute('set', 'ran', '1')\n\x00x = 1")
    assert "null" in text.lower() or "nul" in text.lower()
    assert wire.ok("EXISTS", "ran") == 0


def test_a_script_that_is_not_utf8_is_refused(wire):
    wire.error("RG.PYEXECUTE", b"x = '\xff\xfe'\nexecute('set', 'ran', '1')")
    assert wire.ok("EXISTS", "ran") == 0
    assert wire.call("PING") == Simple("PONG")


def test_a_script_may_hold_any_text(wire):
    script = "GB('ShardsIDReader').map(lambda x: 'é\N{SNOWMAN}\N{GRINNING FACE}').run()"
    assert results_of(wire.ok("RG.PYEXECUTE", script)) == ["é\N{SNOWMAN}\N{GRINNING FACE}".encode()]


def test_a_long_script(wire):
    script = "x = [\n" + "    'some text',\n" * 100_000 + "]\nGB('ShardsIDReader').map(lambda _: len(x)).run()"
    assert results_of(wire.ok("RG.PYEXECUTE", script)) == [b"100000"]
