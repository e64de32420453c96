"""KeysOnlyReader, StreamReader, PythonReader and ShardsIDReader: all their arguments, and what is not text."""

import pytest
from replies import wait_until
from scripts import check, check_errors, last_line, load, refusal, result, results, run

pytestmark = pytest.mark.matrix

# --- KeysOnlyReader ----------------------------------------------------------------------------------------------

KEYS = ["u:1", "u:2", "v:1"]
KEYS_ONLY = [
    ("default", "", KEYS),
    ("pattern", "'u*'", ["u:1", "u:2"]),
    ("count 1", "'*', count=1", KEYS),
    ("count as text", "'u*', count='10'", ["u:1", "u:2"]),
    ("huge count", "count=10**6", KEYS),
    ("one key", "'u:1', noScan=True", ["u:1"]),
    ("no such key", "'none', noScan=True", []),
    ("no glob for one key", "'u*', noScan=True", []),
    ("generated pattern", "patternGenerator=lambda: ('v*', False)", ["v:1"]),
    ("generated key", "patternGenerator=lambda: ('v:1', True)", ["v:1"]),
    ("generated key that is none", "patternGenerator=lambda: ('v*', True)", []),
    ("generator replaces both", "'u:1', noScan=True, patternGenerator=lambda: ('*', False)", KEYS),
    ("without text conversion", "'u*', convertToStr=False", ["u:1", "u:2"]),
]
KEYS_ONLY_TABLE = pytest.mark.parametrize(
    ("arguments", "wanted"), [pytest.param(*row[1:], id=row[0]) for row in KEYS_ONLY]
)


@KEYS_ONLY_TABLE
def test_keys_only(client, arguments, wanted):
    client.mset(dict.fromkeys(KEYS, "v"))
    check(client, f"GB('KeysOnlyReader').run({arguments})", wanted, ordered=False)


@KEYS_ONLY_TABLE
def test_keys_only_on_a_cluster(cluster, shard, arguments, wanted):
    load(cluster, [("SET", key, "v") for key in KEYS])
    check(shard, f"GB('KeysOnlyReader').run({arguments})", wanted, ordered=False)


BAD_COUNTS = [("'many'", "not an integer"), ("0", "syntax error"), ("-1", "syntax error"), ("None", "not an integer")]


@pytest.mark.parametrize(("count", "text"), BAD_COUNTS)
def test_a_bad_count_gives_the_error_of_the_server(client, count, text):
    client.set("k", "v")
    pair = run(client, f"GB('KeysOnlyReader').run('*', count={count})")
    assert pair.results == []
    check_errors(pair.errors, [text])


def test_the_pattern_generator_runs_on_each_shard(cluster, shard):
    load(cluster, [("SET", key, "v") for key in KEYS])
    script = "GB('KeysOnlyReader').run(patternGenerator=lambda: ('z{%s}' % hashtag(), True))"
    assert results(shard, script) == []
    results(shard, "GB('ShardsIDReader').foreach(lambda x: execute('set', 'z{%s}' % hashtag(), 1)).run()")
    assert len(results(shard, script)) == 3


def test_a_pattern_generator_that_fails(client):
    pair = run(client, "GB('KeysOnlyReader').run(patternGenerator=lambda: 1 // 0)")
    assert pair.results == []
    check_errors(pair.errors, ["ZeroDivisionError"])


def test_keys_only_knows_its_keywords(client):
    text = refusal(client, "GB('KeysOnlyReader').run('*', readValue=False)")
    assert "TypeError" in text and "readValue" in text


def test_keys_only_with_binary_keys(client):
    client.set(b"\xff\x00", "v")
    client.set("nul\0", "v")
    check(client, "GB('KeysOnlyReader').map(lambda k: repr(k)).run()", [r"bytearray(b'\xff\x00')", r"'nul\x00'"],
          ordered=False)  # fmt: skip


def test_many_keys_only(client):
    client.mset({f"k{i}": "v" for i in range(10_000)})
    assert set(results(client, "GB('KeysOnlyReader').run(count=10)")) == {f"k{i}" for i in range(10_000)}


# --- StreamReader ------------------------------------------------------------------------------------------------

BAD_ID = "ERR Invalid stream ID specified as stream command argument"
FROM = [
    ("'0-0'", ["1-0", "1-1", "2-0", "3-5"]),
    ("'0'", ["1-0", "1-1", "2-0", "3-5"]),
    ("'1-0'", ["1-1", "2-0", "3-5"]),
    ("'1'", ["1-1", "2-0", "3-5"]),
    ("'1-1'", ["2-0", "3-5"]),
    ("'2-999'", ["3-5"]),
    ("'3-5'", []),
    ("'999999'", []),
]


@pytest.fixture
def stream(client):
    for entry in ("1-0", "1-1", "2-0", "3-5"):
        client.xadd("st", {"id": entry}, id=entry)
    return client


@pytest.mark.parametrize(("start", "wanted"), FROM)
def test_entries_after_an_id(stream, start, wanted):
    assert results(stream, f"GB('StreamReader').map(lambda r: r['id']).run('st', fromId={start})") == wanted


def test_an_entry_is_a_record(stream):
    found = result(stream, "GB('StreamReader').run('st', fromId='2-0')")
    assert found == "{'key': 'st', 'id': '3-5', 'value': {'id': '3-5'}}"


@pytest.mark.parametrize("start", ["'x'", "'1-x'", "'-'", "'1-2-3'", "''"])
def test_a_bad_id(stream, start):
    pair = run(stream, f"GB('StreamReader').run('st', fromId={start})")
    assert (pair.results, pair.errors) == ([], [BAD_ID])


def test_a_stream_is_named_exactly(stream):
    for name in ("s*", "st*", "ST", "no"):
        assert results(stream, f"GB('StreamReader').run({name!r})") == []


def test_every_other_type_is_an_error(client):
    client.rpush("l", "a")
    client.hset("h", "f", "v")
    for key in ("l", "h"):
        pair = run(client, f"GB('StreamReader').run({key!r})")
        assert pair.results == []
        assert pair.errors == ["WRONGTYPE Operation against a key holding the wrong kind of value"]


def test_streams_with_bytes_that_are_not_utf8(client):
    client.execute_command("XADD", b"st\xff", "1-1", b"\xff\x00", b"v", b"f", b"\xfe")
    assert results(client, r"GB('StreamReader').run('st')") == []
    client.rename(b"st\xff", "st")
    script = r"GB('StreamReader').map(lambda r: (r['value'][b'\xff\x00'], r['value']['f'])).run('st')"
    assert results(client, script) == [r"('v', bytearray(b'\xfe'))"]


def test_long_streams_keep_their_order(client):
    pipe = client.pipeline(transaction=False)
    for i in range(1, 5001):
        pipe.xadd("st", {"n": i}, id=f"{i}-0")
    pipe.execute()
    client.xdel("st", "1-0", "2500-0", "5000-0")
    found = results(client, "GB('StreamReader').map(lambda r: int(r['value']['n'])).run('st', convertToStr=False)")
    assert found == [i for i in range(1, 5001) if i not in (1, 2500, 5000)]


def test_reading_leaves_the_stream_alone(stream):
    assert results(stream, "GB('StreamReader').count().run('st')") == ["4"]
    assert stream.xlen("st") == 4
    assert stream.xinfo_groups("st") == []


def test_a_stream_is_read_where_it_is(cluster, shards):
    load(cluster, [("XADD", "st", f"{i}-0", "n", i) for i in range(1, 10)])
    for one in shards:
        check(
            one, "GB('StreamReader').map(lambda r: r['id']).run('st')", [f"{i}-0" for i in range(1, 10)], ordered=False
        )
    with cluster.owner("st").client() as owner:
        assert results(owner, "GB('StreamReader').count().run('st', mode='async_local')") == ["9"]


# --- PythonReader ------------------------------------------------------------------------------------------------

NOT_ITERATOR = "PythonReader function must return an iterator"
SOURCES = [
    ("a generator function", "def src():\n    yield 1\n    yield 2", ["1", "2"]),
    ("a function that returns a generator", "def src():\n    return (i for i in [1, 2])", ["1", "2"]),
    ("an iterator of a list", "def src():\n    return iter([1, 2])", ["1", "2"]),
    ("a map", "def src():\n    return map(str, [1, 2])", ["1", "2"]),
    ("an iterator of itertools", "import itertools\ndef src():\n    return itertools.repeat(5, 2)", ["5", "5"]),
    ("a class with __next__",
     "class It:\n    n = 0\n    def __iter__(self):\n        return self\n    def __next__(self):\n"
     "        self.n += 1\n        if self.n > 2:\n            raise StopIteration\n        return self.n\n"
     "def src():\n    return It()", ["1", "2"]),
    ("None", "def src():\n    return None", []),
    ("nothing", "def src():\n    pass", []),
    ("an empty generator", "def src():\n    return\n    yield", []),
    ("delegation", "def src():\n    yield from [1, 2]", ["1", "2"]),
    ("values of every kind", "def src():\n    yield None\n    yield 1.5\n    yield {'a': [1]}\n    yield b'x'",
     ["None", "1.5", "{'a': [1]}", "b'x'"]),
    ("default values", "def src(n=2):\n    yield n", ["2"]),
    ("a bound method", "class C:\n    def m(self):\n        yield 7\nsrc = C().m", ["7"]),
    ("a partial", "import functools\ndef f(n):\n    yield n\nsrc = functools.partial(f, 3)", ["3"]),
    ("a callable object", "class C:\n    def __call__(self):\n        yield 8\nsrc = C()", ["8"]),
]  # fmt: skip
SOURCE_TABLE = pytest.mark.parametrize(("source", "wanted"), [pytest.param(*row[1:], id=row[0]) for row in SOURCES])


@SOURCE_TABLE
def test_python_sources(client, source, wanted):
    assert results(client, f"{source}\nGB('PythonReader').run(src)") == wanted


@SOURCE_TABLE
def test_python_sources_on_a_cluster(shard, source, wanted):
    check(shard, f"{source}\nGB('PythonReader').run(src)", wanted * 3, ordered=False)


NO_ITERATORS = ["[1, 2]", "5", "'text'", "(1, 2)", "{'a': 1}", "range(3)", "object()", "True"]


@pytest.mark.parametrize("value", NO_ITERATORS)
def test_anything_else_is_one_error(client, value):
    pair = run(client, f"GB('PythonReader').run(lambda: {value})")
    assert pair.results == []
    check_errors(pair.errors, [NOT_ITERATOR])


FAILING = [
    ("before the first value", "def src():\n    raise ValueError('early')\n    yield", [], "ValueError: early"),
    ("in the middle", "def src():\n    yield 1\n    raise ValueError('middle')", ["1"], "ValueError: middle"),
    ("when called", "def src():\n    raise KeyError('called')", [], "KeyError: 'called'"),
    ("by StopIteration", "def src():\n    yield 1\n    raise StopIteration", ["1"], "generator raised StopIteration"),
    ("by exit", "import sys\ndef src():\n    yield 1\n    sys.exit(4)", ["1"], "SystemExit: 4"),
    ("by GeneratorExit", "def src():\n    yield 1\n    raise GeneratorExit()", ["1"], "GeneratorExit"),
    ("by a flat error", "def src():\n    yield 1\n    flat_error('flat')", ["1"], "flat"),
    ("with a parameter", "def src(x):\n    yield x", [], "missing 1 required positional argument"),
    ("in __next__", "class It:\n    def __iter__(self):\n        return self\n    def __next__(self):\n"
     "        raise ValueError('next')\ndef src():\n    return It()", [], "ValueError: next"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "wanted", "text"), [pytest.param(*row[1:], id=row[0]) for row in FAILING])
def test_python_sources_that_fail(client, source, wanted, text):
    pair = run(client, f"{source}\nGB('PythonReader').run(src)")
    assert pair.results == wanted
    check_errors(pair.errors, [text])


def test_each_shard_ends_its_own_input_on_an_error(shard):
    script = "def src():\n    yield 1\n    raise ValueError('stop')\n    yield 2\nGB('PythonReader').run(src)"
    check(shard, script, ["1"] * 3, errors=["ValueError: stop"] * 3, ordered=False)


def test_an_endless_source_ends_with_its_limit(client):
    script = "import itertools\nGB('PythonReader').limit(5).run(lambda: itertools.count())"
    assert results(client, script) == list("01234")


def test_an_endless_source_ends_with_its_limit_on_every_shard(shard):
    script = "import itertools\nGB('PythonReader').limit(2).run(lambda: itertools.count())"
    check(shard, script, ["0", "1"] * 3, ordered=False)


def test_a_source_is_closed_when_nobody_asks_any_more(client):
    script = """
def src():
    try:
        for i in range(100):
            yield i
    finally:
        execute('set', 'closed', 'yes')
GB('PythonReader').limit(2).run(src)
"""
    assert results(client, script) == ["0", "1"]
    wait_until(lambda: client.get("closed") == b"yes", "the generator being closed")


def test_a_missing_source_is_refused(client):
    for argument in ("", "None", "'text'", "[1]"):
        assert "gears.error: pyreader argument must be a function" in refusal(
            client, f"GB('PythonReader').run({argument})"
        )


def test_a_source_given_to_the_constructor(client):
    assert results(client, "GB('PythonReader', lambda: iter([1])).run()") == ["1"]


def test_values_are_the_same_objects(client):
    script = """
shared = []
def src():
    for i in range(3):
        yield shared
GB('PythonReader').foreach(lambda x: x.append(1)).map(lambda x: len(x)).run(src)
"""
    # Each record goes through all steps before the next is asked for.
    assert results(client, script) == ["1", "2", "3"]


def test_errors_have_a_traceback_into_the_source(client):
    (error,) = run(client, "def src():\n    yield 1 // 0\nGB('PythonReader').run(src)").errors
    assert last_line(error).startswith("ZeroDivisionError")
    assert "line 2, in src" in error
