"""Python code that misbehaves: whatever a script does, it gets an answer and the server goes on."""

import textwrap

import localcluster
import pytest
from replies import wait_until
from scripts import check, check_errors, execute, last_line, refusal, result, results, run, sections

pytestmark = pytest.mark.matrix

IDS = "GB('ShardsIDReader')"

BODIES = sections("nasty.txt", fields=2)
TABLE = pytest.mark.parametrize(("text", "body"), [pytest.param(*row[1:], id=row[0]) for row in BODIES])


def function(body):
    return f"def bad(*args):\n{textwrap.indent(body, '    ')}\n"


@TABLE
def test_at_top_level(client, text, body):
    assert text in refusal(client, function(body) + "bad()")
    assert results(client, f"{IDS}.run()") == ["1"]


@TABLE
def test_in_a_step(client, text, body):
    pair = run(client, function(body) + f"{IDS}.map(bad).run()")
    assert pair.results == []
    check_errors(pair.errors, [text])
    assert results(client, f"{IDS}.run()") == ["1"]


@TABLE
def test_in_a_step_of_every_shard(shard, text, body):
    pair = run(shard, function(body) + f"{IDS}.map(bad).run()")
    assert pair.results == []
    check_errors(pair.errors, [text] * 3)
    check(shard, f"{IDS}.count().run()", ["3"])


PLACES = [
    "filter(bad)", "foreach(bad)", "flatmap(bad)", "accumulate(bad)", "repartition(bad)",
    "groupby(bad, lambda k, a, x: x)", "groupby(lambda x: x, bad)", "localgroupby(lambda x: x, bad)",
    "batchgroupby(lambda x: x, bad)",
    "aggregate(0, bad, lambda a, x: a)", "aggregate(1, lambda a, x: a, bad)", "countby(bad)", "avg(bad)",
]  # fmt: skip
SOME = ["exit", "KeyboardInterrupt", "StopIteration", "recursion through C", "surrogates",
        "an exception whose text raises"]  # fmt: skip
SOME_BODIES = pytest.mark.parametrize(
    ("text", "body"), [pytest.param(*row[1:], id=row[0]) for row in BODIES if row[0] in SOME]
)


@SOME_BODIES
@pytest.mark.parametrize("place", PLACES)
def test_in_every_kind_of_step(client, text, body, place):
    pair = run(client, function(body) + f"{IDS}.{place}.run()")
    assert pair.results == []
    check_errors(pair.errors, [text])


@SOME_BODIES
def test_in_a_reader(client, text, body):
    pair = run(client, function(body) + "GB('PythonReader').run(lambda: bad())")
    assert pair.results == []
    check_errors(pair.errors, [text])


@SOME_BODIES
def test_in_the_text_of_a_result(client, text, body):
    script = f"class R:\n    def __str__(self):\n        bad()\n{function(body)}{IDS}.map(lambda x: R()).run()"
    pair = run(client, script)
    assert pair.results == []
    check_errors(pair.errors, [text])


def test_the_text_of_a_result_is_no_text(client):
    pair = run(client, f"class R:\n    def __str__(self):\n        return 5\n{IDS}.map(lambda x: R()).run()")
    check_errors(pair.errors, ["TypeError: __str__ returned non-string"])


def test_a_long_message_is_whole_or_says_that_it_was_cut(client):
    (error,) = run(client, f"{IDS}.map(lambda x: flat_error('y' * 100_000)).run()").errors
    assert error == "y" * 100_000
    (error,) = run(client, f"{IDS}.map(lambda x: flat_error('y' * (10 << 20))).run()").errors
    assert error == "y" * (10 << 20) or (error.startswith("y" * 100_000) and error.endswith("(cut)"))


def test_an_error_without_text_names_its_class(client):
    body = "class Mute(Exception):\n    def __str__(self):\n        raise KeyError('inner')\nraise Mute()"
    assert "Mute" in refusal(client, function(body) + "bad()")
    assert "Mute" in run(client, function(body) + f"{IDS}.map(bad).run()").errors[0]


# --- deep source text --------------------------------------------------------------------------------------------

DEEP_SOURCES = ["(" * 10_000, "[" * 150 + "]" * 150, "-" * 100_000 + "1", "x" + ".a" * 50_000, "not " * 50_000 + "1",
                "if 1:\n" + "".join(" " * i + "if 1:\n" for i in range(1, 150)) + " " * 150 + "pass",
                "+".join(["1"] * 100_000), "f(" * 5_000 + ")" * 5_000]  # fmt: skip


@pytest.mark.parametrize("number", range(len(DEEP_SOURCES)))
def test_source_too_deep_for_the_compiler(client, number):
    execute(client, DEEP_SOURCES[number])
    assert results(client, f"{IDS}.run()") == ["1"]


def test_the_recursion_limit_is_not_left_changed_into_a_crash(client):
    script = "import sys\nsys.setrecursionlimit(10**8)\ndef f(n):\n    return 1 + f(n + 1)\n"
    assert "RecursionError" in refusal(client, script + "f(0)")
    check_errors(run(client, f"{script}{IDS}.map(f).run()").errors, ["TypeError"])
    check_errors(run(client, f"{script}{IDS}.map(lambda x: f(0)).run()").errors, ["RecursionError"])
    assert "RecursionError" in refusal(client, "def f(n):\n    return 1 + f(n + 1)\nf(0)")


def test_recursion_that_is_deep_but_allowed(client):
    script = "def f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\n"
    assert result(client, f"{script}{IDS}.map(lambda x: f(800)).run()") == "800"
    assert execute(client, f"{script}execute('set', 'k', f(800))") == "OK"
    assert client.get("k") == b"800"


# --- meddling ----------------------------------------------------------------------------------------------------

MEDDLING = [
    "import sys; sys.modules.clear()",
    "import builtins; builtins.nothing = 1",
    "import sys; sys.stdout = None; print('x')",
    "import sys; sys.stdout.close()",
    "import sys; sys.stderr = open('/dev/null', 'w')",
    "import sys; sys.settrace(lambda *a: 1 // 0)",
    "import sys; sys.setprofile(lambda *a: 1 // 0)",
    "import sys; sys.excepthook = None",
    "import sys; sys.argv = None; sys.path = None",
    "import gc; gc.disable(); gc.enable(); gc.collect()",
    "import signal; signal.getsignal(signal.SIGTERM)",
    "import atexit; atexit.register(lambda: 1 // 0)",
    "import threading; threading.Thread(target=lambda: 1 // 0).start()",
    "import threading; threading.excepthook = None; threading.Thread(target=lambda: 1 // 0).start()",
    "import traceback; traceback.format_exception = None",
    "import warnings; warnings.simplefilter('error')",
    "class D:\n    def __del__(self):\n        raise ValueError('del')\nd = D()\ndel d",
    "class D:\n    def __del__(self):\n        GB('ShardsIDReader').run()\nd = D()\ndel d",
    "globals().clear()",
    "del GB, execute, redisgears",
    "GB = None; execute = None; redisgears = None",
    "redisgears.GearsError = None",
    "redisgears.executeCommand = None",
    "GB.map = None",
    "__builtins__ = {}",
]


@pytest.fixture
def own_server():
    """What a script breaks in the interpreter goes away with its process, so nobody else may use it."""
    server = localcluster.start_server(module=localcluster.DEFAULT_MODULE)
    yield server
    server.stop()


@pytest.mark.parametrize("script", MEDDLING)
def test_meddling_scripts_do_no_harm(own_server, script):
    """Python code may break the interpreter that it shares with others, but never the server."""
    with own_server.client() as client:
        execute(client, script)
        execute(client, f"{script}\n{IDS}.map(lambda x: bad).run()")
        assert client.set("k", "v") and client.get("k") == b"v"
    assert own_server.alive()
    own_server.restart()
    with own_server.client() as client:
        assert results(client, f"{IDS}.run()") == ["1"]


def test_a_result_that_changes_while_it_is_converted(client):
    script = """
class Evil(list):
    def __iter__(self):
        raise ValueError('iter')
    def __len__(self):
        return 10**9
    def __getitem__(self, i):
        raise ValueError('item')
GB('ShardsIDReader').map(lambda x: Evil([1, 2])).run(convertToStr=False)
"""
    reply = run(client, script)
    assert len(reply.results) + len(reply.errors) == 1


def test_a_flattened_list_that_changes(client):
    script = """
shared = [1, 2, 3]
def f(x):
    shared.clear()
    return x
GB('ShardsIDReader').flatmap(lambda x: shared).map(f).run()
"""
    pair = run(client, script)
    assert pair.errors == [] and pair.results[0] == "1"


def test_a_dying_record_may_use_the_server(client):
    script = """
class Record:
    def __del__(self):
        execute('incr', 'died')
GB('PythonReader').map(lambda x: Record()).map(lambda x: 1).count().run(lambda: iter(range(10)))
"""
    assert results(client, script) == ["10"]
    wait_until(lambda: client.get("died") == b"10", "every record having died")


def test_threads_left_behind_do_no_harm(client):
    script = """
import threading, time
def spin():
    limit = time.monotonic() + 1
    while time.monotonic() < limit:
        pass
threading.Thread(target=spin, daemon=True).start()
GB('ShardsIDReader').run()
"""
    assert results(client, script) == ["1"]
    assert client.ping()


def test_a_traceback_may_be_long(client):
    script = "def f(n):\n    if n == 0:\n        raise ValueError('deep')\n    g(n)\ndef g(n):\n    f(n - 1)\n"
    (error,) = run(client, f"{script}{IDS}.map(lambda x: f(400)).run()").errors
    assert last_line(error) == "ValueError: deep"
