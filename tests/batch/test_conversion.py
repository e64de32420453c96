"""How results become replies: rows C1 to C9 of the interface, and what else a record may be.

These tests look at the bytes of the reply, since a client library does not tell a simple string from a bulk string.
"""

import pickle

import pytest
from scripts import INITIATOR_ONLY, with_source
from wire import Error, Simple

pytestmark = pytest.mark.matrix

RAW = "PR.run(src, convertToStr=False)"
TEXT = "PR.run(src)"
THING = """
class Thing:
    def __str__(self):
        return 'I am P'
"""

# id, values, program, results as they are on the wire
ROWS = [
    ("C1", "'+a', '-b', '+', '-', '', 'a+'", TEXT, [Simple("a"), Error("b"), b"+", b"-", b"", b"a+"]),
    ("C2", "3, 1", "PR.map(lambda x: -x).run(src)", [Error("3"), Error("1")]),
    (
        "C3",
        "1",
        "PR.map(lambda x: [1, 'a', None, 2.5, True, [3, [4]], b'raw', (1,), {'a': 1}]).run(src, convertToStr=False)",
        [[1, b"a", b"PY RECORD", b"2.500000", 1, [3, [4]], b"raw", b"PY RECORD", b"PY RECORD"]],
    ),
    (
        "C4",
        "1.0, 1e20, float('inf'), float('nan'), -0.5",
        RAW,
        [b"1.000000", b"100000000000000000000.000000", b"inf", b"nan", b"-0.500000"],
    ),
    ("C5", "1.0, 1e20, True, None, b'x'", TEXT, [b"1.0", b"1e+20", b"True", b"None", b"b'x'"]),
    ("C6", "-7, 2**62", RAW, [-7, 4611686018427387904]),
    ("C7", "2**70", TEXT, [b"1180591620717411303424"]),
    ("C9", "1", "def g(x):\n    yield x\nPR.flatmap(g).run(src, convertToStr=False)", [b"PY RECORD"]),
    ("simple in a list", "['+OK', '-no', ['+in']]", RAW, [[Simple("OK"), Error("no"), [Simple("in")]]]),
    ("bytes keep signs", "b'+a', b'-b', b''", RAW, [b"+a", b"-b", b""]),
    ("bytes are raw", r"b'\x00\xff\r\n$5'", RAW, [b"\x00\xff\r\n$5"]),
    ("text with NUL", r"'a\x00b'", TEXT, [b"a\x00b"]),
    ("text in UTF-8", "'é€\U0001f600'", TEXT, ["é€\U0001f600".encode()]),
    ("bool", "True, False", RAW, [1, 0]),
    ("edges of 64 bits", "2**63 - 1, -2**63", RAW, [2**63 - 1, -(2**63)]),
    ("beyond 64 bits", "2**63, -2**63 - 1, 2**70", RAW, [b"%d" % 2**63, b"%d" % (-(2**63) - 1), b"%d" % 2**70]),
    ("empty list", "[], [[]]", RAW, [[], [[]]]),
    ("a subclass of list", "type('L', (list,), {})([1, 2])", RAW, [[1, 2]]),
    ("a subclass of int", "type('I', (int,), {})(5)", RAW, [5]),
    ("a subclass of str", "type('S', (str,), {})('x')", RAW, [b"x"]),
    ("small floats", "1e-7, -0.0, 123456.7891239", RAW, [b"0.000000", b"-0.000000", b"123456.789124"]),
    ("infinity below", "float('-inf')", RAW, [b"-inf"]),
    ("no reply type", "None, (1, 2), {'a': 1}, {1}, bytearray(b'x'), object()", RAW, [b"PY RECORD"] * 6),
    ("no reply type either", "len, int, lambda: 1, 1j, frozenset(), range(3)", RAW, [b"PY RECORD"] * 6),
    ("text of containers", "(1,), {'a': [None]}, [b'x']", TEXT, [b"(1,)", b"{'a': [None]}", b"[b'x']"]),
    ("text of a list with a sign", "['-x']", TEXT, [b"['-x']"]),
    ("text of a bytearray", "bytearray(b'x')", TEXT, [b"bytearray(b'x')"]),
]
TABLE = pytest.mark.parametrize(("values", "program", "wanted"), [pytest.param(*row[1:], id=row[0]) for row in ROWS])


@TABLE
def test_on_a_single_server(exact, values, program, wanted):
    assert exact.ok("RG.PYEXECUTE", with_source(values, program)) == [wanted, []]


@TABLE
def test_on_a_cluster(exact_shard, values, program, wanted):
    assert exact_shard.ok("RG.PYEXECUTE", with_source(values, program, INITIATOR_ONLY)) == [wanted, []]


@pytest.mark.parametrize(("program", "wanted"), [(TEXT, b"I am P"), (RAW, b"PY RECORD")], ids=["C8", "C8-raw"])
def test_objects_of_a_class_of_the_script(exact, program, wanted):
    assert exact.ok("RG.PYEXECUTE", THING + with_source("Thing()", program)) == [[wanted], []]


@pytest.mark.parametrize("program", [TEXT, RAW])
def test_lone_surrogates_become_the_replacement_character(exact, program):
    (text,), errors = exact.ok("RG.PYEXECUTE", with_source(r"'a\ud800b'", program))
    assert errors == []
    assert set(text.decode()) == {"a", "\ufffd", "b"}
    assert text.startswith(b"a") and text.endswith(b"b")


SIGNED = [r"'+a\r\nb'", r"'-a\r\nb'", r"'+a\nb'", r"'-\n'", r"'+\r\n+OK'", r"'-a\ud800'", r"'+a\x00b'"]


@pytest.mark.parametrize("value", SIGNED)
def test_line_breaks_do_not_break_the_protocol(exact, value):
    (found, second), errors = exact.ok("RG.PYEXECUTE", with_source(f"{value}, 'next'", TEXT))
    assert isinstance(found, Simple if value[1] == "+" else Error)
    assert "\n" not in found.text and "\r" not in found.text
    assert (second, errors) == (b"next", [])
    assert exact.call("PING") == Simple("PONG")


def test_a_float_of_many_digits(exact):
    (found,), _ = exact.ok("RG.PYEXECUTE", with_source("1.7976931348623157e308", RAW))
    assert found == b"%f" % 1.7976931348623157e308


def test_ten_megabytes_of_bytes(exact):
    (found,), errors = exact.ok("RG.PYEXECUTE", with_source(r"b'\xffab' * (10 << 20)", RAW))
    assert found == b"\xffab" * (10 << 20)
    assert errors == []


def test_huge_ints_have_no_limit_of_digits_or_say_so(exact):
    # CPython refuses to write an int of more than 4300 digits unless told otherwise.
    results, errors = exact.ok("RG.PYEXECUTE", with_source("10**5000", TEXT))
    assert results == [] and len(errors) == 1 and b"4300 digits" in errors[0]
    results, errors = exact.ok("RG.PYEXECUTE", with_source("10**5000", RAW))
    assert results in ([b"1" + b"0" * 5000], [b"PY RECORD"], []) and len(results) + len(errors) == 1
    assert exact.call("PING") == Simple("PONG")


DEEP = """
def src():
    x = []
    for _ in range({depth}):
        x = [x]
    yield x
"""
ENDLESS = """
def src():
    x = []
    x.append(x)
    yield x
"""


@pytest.mark.parametrize("source", [DEEP.format(depth=100_000), ENDLESS], ids=["deep", "endless"])
@pytest.mark.parametrize("program", ["run(src, convertToStr=False)", "run(src)"])
def test_deep_nesting_does_no_harm(server, client, exact, source, program):
    exact.send("RG.PYEXECUTE", f"{source}GB('PythonReader').{program}")
    # The reply may be as deep as the list, so only its beginning is looked at.
    assert exact.socket.recv(1)
    assert client.ping()
    assert server.alive()


def test_a_list_of_moderate_depth_is_an_array(exact):
    (found,), errors = exact.ok(
        "RG.PYEXECUTE", DEEP.format(depth=20) + "GB('PythonReader').run(src, convertToStr=False)"
    )
    depth = 0
    while found:
        (found,), depth = found, depth + 1
    assert (depth, errors) == (20, [])


def test_pickled_results_reach_the_client(exact):
    script = "import cloudpickle\n" + with_source(
        "{'a': (1, None)}", "PR.map(lambda x: cloudpickle.dumps(x)).run(src, convertToStr=False)"
    )
    (found,), _ = exact.ok("RG.PYEXECUTE", script)
    assert pickle.loads(found) == {"a": (1, None)}


def test_errors_are_bulk_strings_whatever_they_begin_with(exact):
    script = with_source("1", "PR.map(lambda x: flat_error('-ERR mine')).run(src)")
    assert exact.ok("RG.PYEXECUTE", script) == [[], [b"-ERR mine"]]
    script = with_source("1", "PR.map(lambda x: flat_error('+fine')).run(src)")
    assert exact.ok("RG.PYEXECUTE", script) == [[], [b"+fine"]]
