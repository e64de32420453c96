"""The server outlives whatever a script does at top level or in a step."""

import pytest
from replies import pair, results_of, traceback_lines, wait_until
from wire import HANG_GUARD_S, Error, Simple, Wire

AT_TOP = {
    "recursion": ("def f(): return f()\nf()", "RecursionError"),
    "recursion-without-limit": (
        "import sys\nsys.setrecursionlimit(10**8)\ndef f(n): return f(n + 1) + 1\nf(0)",
        "Error",
    ),
    "exit": ("import sys\nsys.exit(3)", "SystemExit"),
    "quit": ("raise SystemExit", "SystemExit"),
    "interrupt": ("raise KeyboardInterrupt('now')", "KeyboardInterrupt"),
    "generator-exit": ("raise GeneratorExit", "GeneratorExit"),
    "base": ("class Base(BaseException): pass\nraise Base('x')", "Base"),
    "bad-str": ("class Odd(Exception):\n    def __str__(self): raise ValueError('no text')\nraise Odd()", ""),
    "bad-str-type": ("class Odd(Exception):\n    def __str__(self): return 5\nraise Odd()", ""),
    "str-exits": ("class Odd(Exception):\n    def __str__(self): raise SystemExit\nraise Odd()", ""),
    "str-recurses": ("class Odd(Exception):\n    def __str__(self): return str(self)\nraise Odd()", ""),
    "not-utf8": ("raise Exception('\\udcff\\ud800')", "Exception"),
    "nul": ("raise Exception('a\\x00b')", "Exception"),
    "line-breaks": ("raise Exception('a\\r\\nb')", "Exception"),
    "long": ("raise Exception('x' * 10_000_000)", "Exception"),
    "flat-odd": ("flat_error(object())", "object"),
    "group": ("raise ExceptionGroup('many', [ValueError('a'), KeyError('b')])", "ExceptionGroup"),
    "chain": ("try:\n    1/0\nexcept Exception as e:\n    raise ValueError('x') from e", "ValueError"),
    "no-memory": ("x = bytearray(1 << 60)", "MemoryError"),
    "deep-nesting": ("x = " + "(" * 500 + ")" * 500, "SyntaxError"),
    "deep-brackets": ("x = " + "[" * 100_000, "Error"),
}
# A step's body, with x as its record.
IN_STEP = {
    "recursion": "def f(): return f()\n    return f()",
    "recursion-without-limit": "import sys\n    sys.setrecursionlimit(10**8)\n    return step(x)",
    "exit": "import sys\n    sys.exit(3)",
    "interrupt": "raise KeyboardInterrupt('now')",
    "generator-exit": "raise GeneratorExit",
    "stop-iteration": "raise StopIteration",
    "bad-str": "raise type('Odd', (Exception,), {'__str__': lambda self: 1/0})()",
    "bad-repr-str": "raise type('Odd', (Exception,), {'__str__': lambda s: 1/0, '__repr__': lambda s: 1/0})()",
    "bad-class-name": "raise type('\\udcff', (Exception,), {})('x')",
    "not-utf8": "raise Exception('\\udcff\\ud800')",
    "long": "raise Exception('x' * 10_000_000)",
    "no-memory": "return bytearray(1 << 60)",
    "str-result-raises": "return type('Odd', (), {'__str__': lambda self: 1/0})()",
    "str-result-is-no-text": "return type('Odd', (), {'__str__': lambda self: 5})()",
    "str-result-exits": "return type('Odd', (), {'__str__': lambda self: __import__('sys').exit(1)})()",
}
FINE = {
    "prints": "print('é', b'\\xff', flush=True)\n    return 'ok'",
    "prints-to-stderr": "import sys\n    print('x' * 100_000, file=sys.stderr)\n    return 'ok'",
    "flushes": "import sys\n    sys.stdout.flush()\n    sys.stderr.flush()\n    return 'ok'",
    "thread": "import threading\n    t = threading.Thread(target=lambda: execute('set', 'by-thread', '1'))\n"
    "    t.start()\n    t.join()\n    return 'ok' if execute('get', 'by-thread') == '1' else 'lost'",
    "raw-thread": "import _thread, time\n    _thread.start_new_thread(lambda: execute('set', 'raw', '1'), ())\n"
    "    limit = time.monotonic() + 30\n"
    "    while not execute('exists', 'raw') and time.monotonic() < limit: time.sleep(0.01)\n"
    "    return 'ok' if execute('exists', 'raw') else 'lost'",
    "threads-that-fail": "import threading\n    ts = [threading.Thread(target=lambda: 1/0) for _ in range(20)]\n"
    "    [t.start() for t in ts]\n    [t.join() for t in ts]\n    return 'ok'",
    "thread-that-stays": "import threading\n    e = threading.Event()\n    keep.append(e)\n"
    "    threading.Thread(target=e.wait, daemon=True).start()\n    return 'ok'",
    "thread-that-exits": "import threading, sys\n    t = threading.Thread(target=sys.exit)\n    t.start()\n"
    "    t.join()\n    return 'ok'",
    "bad-del": "class D:\n        def __del__(self): raise ValueError('in del')\n    D()\n    return 'ok'",
    "cycle": "class C: pass\n    c = C()\n    c.c = c\n    import gc\n    del c\n    gc.collect()\n    return 'ok'",
    "warning": "import warnings\n    warnings.warn('x')\n    return 'ok'",
    "subprocess": "import subprocess\n    return subprocess.check_output(['echo', 'ok'], text=True).strip()",
    "c-extensions": "import ctypes, ssl, decimal, json\n    return ctypes.c_char_p(b'ok').value.decode()",
}


@pytest.fixture
def wire(server):
    with Wire(server.port) as connection:
        yield connection
        assert connection.call("PING") == Simple("PONG")
        assert results_of(connection.ok("RG.PYEXECUTE", "GB('ShardsIDReader').run()")) == [b"1"]


def one_step(body):
    return f"keep = []\ndef step(x):\n    {body}\nGB('ShardsIDReader').map(step).run()"


@pytest.mark.parametrize("kind", AT_TOP)
def test_at_top_level(wire, kind):
    script, part = AT_TOP[kind]
    text = wire.error("RG.PYEXECUTE", script)
    assert part in text
    assert text.strip(), "there must be some text"
    assert len(text) < 1_000_000, "a client must not be sent everything"


@pytest.mark.parametrize("kind", IN_STEP)
def test_in_a_step(wire, kind):
    results, errors = pair(wire.ok("RG.PYEXECUTE", one_step(IN_STEP[kind])))
    assert results == []
    (text,) = errors
    assert text and len(text) < 1_000_000


@pytest.mark.parametrize("kind", FINE)
def test_odd_but_allowed(wire, kind):
    assert results_of(wire.ok("RG.PYEXECUTE", one_step(FINE[kind]))) == [b"ok"]


@pytest.mark.parametrize("kind", ["exit", "interrupt", "bad-str", "recursion"])
@pytest.mark.parametrize("op", ["filter", "foreach", "flatmap", "repartition", "accumulate", "countby", "groupby"])
def test_in_other_steps(wire, op, kind):
    body = IN_STEP[kind]
    script = f"def bad(*args):\n    {body}\ndef keep(*args):\n    return 1\n"
    argument = "bad, keep" if op == "groupby" else "bad"
    results, errors = pair(wire.ok("RG.PYEXECUTE", f"{script}GB('ShardsIDReader').{op}({argument}).run()"))
    assert results == [] and len(errors) == 1


@pytest.mark.parametrize(
    "reader",
    [
        "sys.exit(2)",
        "raise KeyboardInterrupt",
        "raise GeneratorExit",
        "raise StopIteration",
        "src()",
        "1/0",
    ],
)
def test_in_a_reader(wire, reader):
    script = f"import sys\ndef src():\n    yield 1\n    {reader}\n    yield 2\nGB('PythonReader').run(src)"
    results, errors = pair(wire.ok("RG.PYEXECUTE", script))
    if reader == "src()":
        # Making a generator without using it is no error.
        assert (results, errors) == ([b"1", b"2"], [])
    else:
        assert results == [b"1"] and len(errors) == 1


@pytest.mark.parametrize("value", ["5", "'text'", "None", "[1, 2]", "object()", "iter([1, 2])"])
def test_what_a_reader_may_return(wire, value):
    """No endless repetition: an iterator is used up, None is no record, anything else is one error."""
    results, errors = pair(wire.ok("RG.PYEXECUTE", f"GB('PythonReader').run(lambda: {value})"))
    if value == "None":
        assert (results, errors) == ([], [])
    elif value == "iter([1, 2])":
        assert (results, errors) == ([b"1", b"2"], [])
    else:
        assert results == []
        assert len(errors) == 1 and "PythonReader function must return an iterator" in errors[0]


@pytest.mark.parametrize(
    ("op", "methods"),
    [
        ("distinct()", "__hash__"),
        ("sort()", "__lt__"),
        ("countby(lambda x: x)", "__repr__"),
        ("filter(lambda x: x)", "__bool__"),
        ("aggregate(0, lambda a, x: a + x, lambda a, x: a)", "__radd__"),
    ],
)
def test_objects_whose_methods_raise(wire, op, methods):
    script = f"""
class Odd:
    def {methods}(self, *others):
        raise ValueError('odd method')
def src():
    for _ in range(3):
        yield Odd()
GB('PythonReader').{op}.run(src)
"""
    results, errors = pair(wire.ok("RG.PYEXECUTE", script))
    assert results == []
    assert errors and all("ValueError: odd method" in text for text in errors)


def test_a_traceback_of_a_deep_stack_is_a_list(wire):
    text = wire.error("RG.PYEXECUTE", "def f(n):\n    return f(n + 1)\nf(0)")
    assert "RecursionError" in traceback_lines(text)[-1]


def test_many_scripts_with_names_of_their_own(wire):
    for i in range(200):
        script = f"class C{i}:\n    pass\nx{i} = C{i}()\nGB('ShardsIDReader').map(lambda x: type(x{i}).__name__).run()"
        assert results_of(wire.ok("RG.PYEXECUTE", script)) == [b"C%d" % i]


def test_output_goes_to_the_log(server, wire):
    wire.ok("RG.PYEXECUTE", "import sys\nprint('said to stdout')\nprint('said to stderr', file=sys.stderr)")
    wait_until(lambda: "said to stdout" in server.log() and "said to stderr" in server.log(), "the log lines")


def test_numpy(wire):
    script = "import numpy\nGB('ShardsIDReader').map(lambda x: int(numpy.arange(5).sum())).run()"
    assert results_of(wire.ok("RG.PYEXECUTE", script, timeout=HANG_GUARD_S)) == [b"10"]


def test_triggers_that_call_each_other_without_end(wire):
    """Each level takes some of the server's own stack, however deep Python may go."""
    program = """
import sys
sys.setrecursionlimit(10**8)
def down(x):
    n = int(x[1])
    return execute('RG.TRIGGER', 'down', n - 1)[0] if n else 'end'
GB('CommandReader').map(down).register(trigger='down', mode='sync')
"""
    assert wire.ok("RG.PYEXECUTE", program) == Simple("OK")
    assert wire.ok("RG.TRIGGER", "down", 100) == [b"end"]
    assert isinstance(wire.call("RG.TRIGGER", "down", -1), Error)
    assert isinstance(wire.call("EVAL", "return redis.call('RG.TRIGGER', 'down', '-1')", 0), Error)
    results, errors = pair(wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').map(lambda x: down([0, -1])).run()"))
    assert (results, len(errors)) == ([], 1)
    assert wire.ok("RG.TRIGGER", "down", 100) == [b"end"]
