"""log(), and what Python itself prints: both go to the log of the server."""

import re
import uuid

import pytest
from replies import wait_until
from scripts import evaluate, execute, refusal, result, results, run

pytestmark = pytest.mark.matrix

MARKS = {"debug": ".", "verbose": "-", "notice": "*", "warning": "#"}


@pytest.fixture
def everything_logged(client):
    client.config_set("loglevel", "debug")
    yield
    client.config_set("loglevel", "notice")


def line_with(server, text):
    def find():
        return next((line for line in server.log().splitlines() if text in line), None)

    return wait_until(find, f"a line with {text!r} in the log")


def level_of(line):
    """The mark by which the server writes a level."""
    return re.match(r"\d+:[A-Z] .*?\d\d:\d\d:\d\d\.\d+ ([.\-*#]) ", line).group(1)


def token():
    return uuid.uuid4().hex


@pytest.mark.parametrize("level", MARKS)
@pytest.mark.parametrize("form", ["log(t, level={0!r})", "log(t, {0!r})", "redisgears.log(t, level={0!r})"])
def test_levels(server, client, everything_logged, level, form):
    text = token()
    if form == "log(t, {0!r})":
        # Two positional arguments have the old order.
        expression = f"log({level!r}, {text!r})"
    else:
        expression = form.format(level).replace("(t", f"({text!r}")
    assert evaluate(client, expression) is None
    line = line_with(server, text)
    assert f"GEARS: {text}" in line
    assert level_of(line) == MARKS[level]


def test_notice_is_the_default(server, client):
    text = token()
    assert execute(client, f"log('{text}')") == "OK"
    line = line_with(server, f"GEARS: {text}")
    assert level_of(line) == MARKS["notice"]


def test_the_old_name_warns(server, client):
    text = token()
    assert evaluate(client, f"Log('{text}')") is None
    line_with(server, f"GEARS: {text}")
    warning = line_with(server, "Log is deprecated, use log instead")
    assert level_of(warning) == MARKS["warning"]


@pytest.mark.parametrize(("old", "new"), [("ConfigGet", "configGet"), ("GearsConfigGet", "gearsConfigGet")])
def test_deprecated_names_of_configuration(server, client, old, new):
    assert evaluate(client, f"{old}('nothing')") is None
    assert level_of(line_with(server, f"{old} is deprecated, use {new} instead")) == MARKS["warning"]


REFUSED = [
    ("log()", "log function must get a log message as input"),
    ("log(1)", "Log message must be a string"),
    ("log(None)", "Log message must be a string"),
    ("log(b'x')", "Log message must be a string"),
    ("log('x', level=5)", "Log level must be a sting (debug/verbose/notice/warning)"),
    ("log('x', level='loud')", "Log level should be one of the following : debug,verbose,notice,warning"),
    ("log('x', level='NOTICE')", "Log level should be one of the following : debug,verbose,notice,warning"),
]


@pytest.mark.parametrize(("expression", "text"), REFUSED)
def test_refused(client, expression, text):
    assert f"gears.error: {text}" in refusal(client, expression)
    (error,) = run(client, f"GB('ShardsIDReader').map(lambda x: {expression}).run()").errors
    assert text in error


ODD = [r"'a\nb'", r"'a\x00b'", r"'a\ud800b'", "'%s%n%p'", "'é€'", "'x' * 100000", "''"]


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_do_no_harm(server, client, text):
    end = token()
    pair = run(client, f"GB('ShardsIDReader').foreach(lambda x: log({text})).foreach(lambda x: log('{end}')).run()")
    assert len(pair.results) + len(pair.errors) == 1
    if pair.results:
        line_with(server, f"GEARS: {end}")
    pair = run(client, f"GB('ShardsIDReader').map(lambda x: print({text})).run()")
    assert len(pair.results) + len(pair.errors) == 1


def test_percent_signs_are_no_format(server, client):
    text = token()
    evaluate(client, f"log('%d %s {text} 100%')")
    line_with(server, f"GEARS: %d %s {text} 100%")


PRINTED = [
    "print('{0}')",
    "print('{0}', end='', flush=True)",
    "__import__('sys').stderr.write('{0}\\n') and None",
    "__import__('sys').stdout.buffer.write('{0} é\\n'.encode()) and None",
    "__import__('warnings').warn('{0}')",
    "__import__('logging').getLogger('x').error('{0}')",
]


@pytest.mark.parametrize("expression", PRINTED)
def test_what_python_prints_is_in_the_log(server, client, expression):
    in_step, at_top = token(), token()
    evaluate(client, f"{expression.format(in_step)} is None")
    assert execute(client, expression.format(at_top)) == "OK"
    line_with(server, in_step)
    line_with(server, at_top)


def test_every_shard_has_its_own_log(cluster, shard):
    text = token()
    script = (
        f"GB('ShardsIDReader').foreach(lambda x: log('{text} ' + hashtag())).foreach(lambda x: print('{text} p')).run()"
    )
    assert len(results(shard, script)) == 3
    for server in cluster.servers:
        line_with(server, f"GEARS: {text} ")
        line_with(server, f"{text} p")


def test_a_thread_that_fails_is_in_the_log(server, client):
    text = token()
    script = f"""
import threading
def work():
    raise ValueError('{text}')
def f(x):
    t = threading.Thread(target=work)
    t.start()
    t.join(30)
    return 'fine'
GB('ShardsIDReader').map(f).run()
"""
    assert result(client, script) == "fine"
    line_with(server, f"ValueError: {text}")


def test_a_generator_that_fails_while_it_is_closed_does_no_harm(server, client):
    text = token()
    script = f"""
def src():
    try:
        for i in range(10):
            yield i
    finally:
        raise ValueError('{text}')
GB('PythonReader').limit(2).run(src)
"""
    pair = run(client, script)
    assert pair.results == ["0", "1"]
    assert server.alive()
