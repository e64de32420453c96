"""KeysReader: patterns, types, encodings, binary keys, expired keys, and the values that are read on request."""

import ast

import pytest
from replies import wait_until
from scripts import check, load, plain, result, results, run

pytestmark = pytest.mark.matrix

KEYS = ["u:1", "u:2", "u:3", "v:1", "U:1", "u", "user", "a*b", "a?b", "a[b", "a\\b", "é:1", "x^y", "long" * 50]

# pattern -> keys that match
PATTERNS = [
    ("*", KEYS),
    ("u*", ["u:1", "u:2", "u:3", "u", "user"]),
    ("U*", ["U:1"]),
    ("?:1", ["u:1", "v:1", "U:1"]),
    ("u:[12]", ["u:1", "u:2"]),
    ("u:[1-3]", ["u:1", "u:2", "u:3"]),
    ("u:[^1]", ["u:2", "u:3"]),
    ("[uv]:1", ["u:1", "v:1"]),
    ("u", ["u"]),
    ("*:*", ["u:1", "u:2", "u:3", "v:1", "U:1", "é:1"]),
    ("*e*", ["user"]),
    ("u??r", ["user"]),
    ("a\\*b", ["a*b"]),
    ("a\\?b", ["a?b"]),
    ("a\\[b", ["a[b"]),
    ("a\\\\b", ["a\\b"]),
    ("a?b", ["a*b", "a?b", "a[b", "a\\b"]),
    ("x[\\^]y", ["x^y"]),
    ("é*", ["é:1"]),
    ("long*", ["long" * 50]),
    ("**u**", ["u:1", "u:2", "u:3", "u", "user"]),
    ("nope", []),
    ("u:", []),
    ("[", []),
    ("?" * 300, []),
]


@pytest.mark.parametrize(("pattern", "wanted"), PATTERNS)
def test_patterns(client, pattern, wanted):
    client.mset(dict.fromkeys(KEYS, "v"))
    check(client, f"GB().map(lambda r: r['key']).run({pattern!r})", wanted, ordered=False)
    check(client, f"GB('KeysOnlyReader').run({pattern!r})", wanted, ordered=False)
    # The server has the last word on what a pattern matches.
    assert sorted(plain(client.keys(pattern))) == sorted(wanted)


@pytest.mark.parametrize("pattern", ["[a-é]*", "[é-a]*", "[^a-é]*", "[é-ü]*", "[\x01-é]*", "?[\x7f-\x80]*"])
def test_ranges_beyond_ascii(client, pattern):
    """Their order is the one of the server's bytes, whose highest may count as below zero."""
    client.mset(dict.fromkeys([*KEYS, "\x02", "é", "ü", "z", "\x7f", "€"], "v"))
    check(client, f"GB('KeysOnlyReader').run({pattern!r})", plain(client.keys(pattern)), ordered=False)


def test_patterns_on_a_cluster(cluster, shard):
    load(cluster, [("SET", key, "v") for key in KEYS])
    for pattern in ("*", "u*", "[uv]:1", "a\\*b", "nope"):
        wanted = dict(PATTERNS)[pattern]
        check(shard, f"GB().map(lambda r: r['key']).run({pattern!r})", wanted, ordered=False)


# --- records -----------------------------------------------------------------------------------------------------


def record(client, key, more=""):
    return ast.literal_eval(result(client, f"GB().map(lambda r: r).run({key!r}{more})"))


def test_fields_come_in_order(client):
    client.set("x", "1")
    assert result(client, "GB().map(lambda r: list(r)).run()") == "['event', 'key', 'type', 'value']"
    assert result(client, "GB().map(lambda r: list(r)).run(readValue=False)") == "['event', 'key']"
    assert result(client, "GB().map(lambda r: type(r).__name__).run()") == "dict"


LENGTHS = [0, 1, 5, 44, 45, 200, 10_000, 1 << 20]


@pytest.mark.parametrize("length", LENGTHS)
def test_strings_of_every_encoding(client, length):
    client.set("s", "é" * (length // 2) + "x" * (length % 2))
    script = "GB().map(lambda r: (r['type'], type(r['value']).__name__, len(r['value']), r['value'][:1])).run()"
    kind, name, size, first = ast.literal_eval(result(client, script))
    wanted = "é" * (length // 2) + "x" * (length % 2)
    assert (kind, name, size, first) == ("string", "str", len(wanted), wanted[:1])


@pytest.mark.parametrize("value", ["12", "-1", "007", "1.5", str(2**63 - 1), "9" * 30])
def test_numbers_are_text(client, value):
    client.set("n", value)
    assert record(client, "n")["value"] == value


def test_values_made_by_commands(client):
    client.set("bits", "")
    client.setbit("bits", 6, 1)
    client.append("grown", "a")
    client.append("grown", "b")
    client.incrbyfloat("float", 1.25)
    client.pfadd("hll", "a")
    found = {r["key"]: r["value"] for r in map(eval, results(client, "GB().run()"))}
    assert (found["bits"], found["grown"], found["float"]) == ("\x02", "ab", "1.25")


@pytest.mark.parametrize("count", [1, 5, 129, 600, 5000])
def test_lists_of_every_encoding(client, count):
    values = [f"v{i}" for i in range(count)]
    client.rpush("l", *values)
    assert record(client, "l") == {"event": None, "key": "l", "type": "list", "value": values}


def test_lists_of_ints_and_big_elements(client):
    values = ["1", "-5", str(2**62), "x" * 20_000, "", "é"]
    client.rpush("l", *values)
    assert record(client, "l")["value"] == values


@pytest.mark.parametrize("count", [1, 5, 129, 600, 5000])
def test_hashes_of_every_encoding(client, count):
    values = {f"f{i}": f"v{i}" for i in range(count)}
    client.hset("h", mapping=values)
    assert record(client, "h") == {"event": None, "key": "h", "type": "hash", "value": values}


def test_hashes_of_ints_and_big_fields(client):
    values = {"1": "2", "": "empty", "e": "", "f" * 5000: "v" * 20_000, "é": "€", "n": "-9223372036854775808"}
    client.hset("h", mapping=values)
    assert record(client, "h")["value"] == values


# --- bytes that are not UTF-8, and NUL ---------------------------------------------------------------------------

BINARY = b"\xff\x00\xfe"


def kinds(client, expression):
    return results(client, f"GB().map(lambda r: repr({expression})).run()")


def test_binary_keys(client):
    client.set(b"k" + BINARY, "v")
    assert kinds(client, "(r['key'], r['value'])") == [r"(bytearray(b'k\xff\x00\xfe'), 'v')"]
    assert kinds(client, "execute('get', r['key'])") == ["'v'"]


def test_binary_values(client):
    client.set("k", BINARY)
    assert kinds(client, "r['value']") == [r"bytearray(b'\xff\x00\xfe')"]


def test_binary_elements_of_a_list(client):
    client.rpush("l", BINARY, "text", b"nul\x00")
    assert kinds(client, "r['value']") == [r"[bytearray(b'\xff\x00\xfe'), 'text', 'nul\x00']"]


@pytest.mark.parametrize("filler", [0, 600])
def test_binary_fields_of_a_hash(client, filler):
    client.hset("h", mapping={BINARY: "v", "f": BINARY, **{f"x{i}": "" for i in range(filler)}})
    script = "GB().map(lambda r: repr((r['value'][%r], r['value']['f'], len(r['value'])))).run()"
    assert results(client, script % BINARY) == [f"('v', bytearray({BINARY!r}), {filler + 2})"]


def test_nul_in_keys_and_values(client):
    client.set("a\0b", "c\0d")
    assert kinds(client, "(r['key'], r['value'])") == [r"('a\x00b', 'c\x00d')"]
    check(client, "GB().count().run('a*b')", ["1"])
    check(client, r"GB().map(lambda r: r['value']).run('a\x00b', noScan=True)", ["c\0d"])
    check(client, r"GB().map(lambda r: r['type']).run('a', noScan=True)", ["empty"])


def test_text_that_is_almost_utf8(client):
    # Surrogates and overlong forms are no UTF-8.
    for i, value in enumerate([b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80", b"\xe2\x82"]):
        client.set(f"k{i}", value)
    assert results(client, "GB().map(lambda r: type(r['value']).__name__).distinct().run()") == ["bytearray"]


def test_records_with_binary_parts_cross_shards(cluster, shard):
    load(cluster, [("SET", f"k{i}".encode() + BINARY, BINARY + b"%d" % i) for i in range(12)])
    wanted = [repr((bytearray(f"k{i}".encode() + BINARY), bytearray(BINARY + b"%d" % i))) for i in range(12)]
    script = "GB().repartition(lambda r: 'one').map(lambda r: (r['key'], r['value'])).run()"
    check(shard, script, wanted, ordered=False)


# --- one exact key -----------------------------------------------------------------------------------------------


def test_an_exact_key_is_no_pattern(client):
    client.mset({"u:1": "a", "u*": "star", "[u]": "class"})
    for key, value in (("u:1", "a"), ("u*", "star"), ("[u]", "class")):
        assert record(client, key, ", noScan=True") == {"event": None, "key": key, "type": "string", "value": value}
    assert record(client, "u?1", ", noScan=True")["type"] == "empty"
    assert record(client, "u:1", ", noScan=True, readValue=False") == {"event": None, "key": "u:1"}
    assert record(client, "none", ", noScan=True, readValue=False") == {"event": None, "key": "none"}


@pytest.mark.parametrize(
    ("command", "kind"),
    [(("SADD", "k", "a"), "set"), (("ZADD", "k", "1", "a"), "zset"), (("XADD", "k", "*", "a", "b"), "unknown")],
)
def test_other_types_have_no_value_by_default(client, command, kind):
    client.execute_command(*command)
    wanted = {"event": None, "key": "k", "type": kind, "value": None}
    assert record(client, "k") == wanted
    assert record(client, "k", ", noScan=True") == wanted


# --- keys that expired -------------------------------------------------------------------------------------------


@pytest.fixture
def with_expired(client):
    """A server that keeps its expired keys: `gone` is over but still in memory, `stays` has time left."""
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    client.set("stays", "v", ex=1000)
    client.set("gone", "v", px=1)
    start = client.time()
    # Looking at the key would remove it.
    wait_until(lambda: client.time()[0] > start[0], "the key expiring")
    yield client
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 1)


def test_expired_keys_count_as_missing(with_expired):
    assert with_expired.dbsize() == 2
    check(with_expired, "GB().map(lambda r: (r['key'], r['type'])).run()", ["('stays', 'string')"])
    check(with_expired, "GB().map(lambda r: r['type']).run('gone', noScan=True)", ["empty"])
    check(with_expired, "GB('KeysOnlyReader').run('*')", ["stays"])
    check(with_expired, "GB('KeysOnlyReader').run('gone', noScan=True)", [])
    check(with_expired, "GB().count().run(readValue=False)", ["1"])


# --- all types, on request ---------------------------------------------------------------------------------------

ALL = "GB().map(lambda r: repr({0})).run(readAllTypes=True)"


@pytest.mark.parametrize("values", [["a"], ["1", "2", "-3"], ["1", "b", "é"], [f"m{i}" for i in range(2000)]])
def test_sets(client, values):
    client.sadd("s", *values)
    assert results(client, ALL.format("r['type']")) == ["'set'"]
    found = eval(result(client, ALL.format("r['value']")))
    assert type(found) is set and found == set(values)


def test_sets_of_many_ints(client):
    client.sadd("s", *range(3000))
    assert eval(result(client, ALL.format("r['value']"))) == {str(i) for i in range(3000)}


def test_sets_with_binary_members(client):
    client.sadd("s", BINARY, "text")
    found = eval(result(client, ALL.format("r['value']")))
    assert found == {BINARY, "text"}


@pytest.mark.parametrize("count", [1, 5, 129, 2000])
def test_sorted_sets(client, count):
    client.zadd("z", {f"m{i}": (i * 7) % count + 0.5 for i in range(count)})
    assert results(client, ALL.format("r['type']")) == ["'zset'"]
    found = eval(result(client, ALL.format("r['value']")))
    assert found == [(member.decode(), score) for member, score in client.zrange("z", 0, -1, withscores=True)]
    assert all(type(score) is float for _, score in found)


def test_scores_of_every_kind(client):
    client.zadd("z", {"low": "-inf", "a": -1.5, "b": 0, "c": 1e300, "same1": 3, "same2": 3, "high": "inf"})
    found = eval(result(client, ALL.format("r['value']")), {"inf": float("inf")})
    assert [member for member, _ in found] == ["low", "a", "b", "same1", "same2", "c", "high"]
    assert [score for _, score in found] == [float("-inf"), -1.5, 0.0, 3.0, 3.0, 1e300, float("inf")]


@pytest.mark.parametrize("count", [1, 5, 2000])
def test_streams(client, count):
    pipe = client.pipeline(transaction=False)
    for i in range(count):
        pipe.xadd("st", {"n": i, "t": "é"}, id=f"{i + 1}-0")
    pipe.execute()
    assert results(client, ALL.format("r['type']")) == ["'stream'"]
    found = eval(result(client, ALL.format("r['value']")))
    assert found == [{"id": f"{i + 1}-0", "value": {"n": str(i), "t": "é"}} for i in range(count)]
    assert list(found[0]) == ["id", "value"]


def test_streams_with_deleted_entries(client):
    for i in range(1, 6):
        client.xadd("st", {"n": i}, id=f"{i}-0")
    client.xdel("st", "1-0", "3-0", "5-0")
    found = eval(result(client, ALL.format("r['value']")))
    assert [entry["id"] for entry in found] == ["2-0", "4-0"]


def test_an_empty_stream(client):
    client.xgroup_create("st", "g", mkstream=True)
    assert results(client, ALL.format("(r['type'], r['value'])")) == ["('stream', [])"]
    assert results(client, "GB().map(lambda r: (r['type'], r['value'])).run()") == ["('unknown', None)"]


def test_the_other_types_are_as_always(client):
    client.set("s", "v")
    client.rpush("l", "a")
    client.hset("h", "f", "v")
    found = results(client, "GB().map(lambda r: (r['key'], r['type'], r['value'])).run(readAllTypes=True)")
    assert sorted(found) == ["('h', 'hash', {'f': 'v'})", "('l', 'list', ['a'])", "('s', 'string', 'v')"]
    none = results(client, "GB().map(lambda r: (r['type'], r['value'])).run('no', noScan=True, readAllTypes=True)")
    assert none == ["('empty', None)"]


def test_all_types_switched_off(client):
    client.sadd("s", "a")
    assert results(client, "GB().map(lambda r: r['value']).run(readAllTypes=False)") == ["None"]


def test_values_of_all_types_cross_shards(cluster, shard):
    load(cluster, [("SADD", "s", "a"), ("ZADD", "z", "1.5", "m"), ("XADD", "st", "1-1", "f", "v"), ("SET", "k", "v")])
    script = "GB().repartition(lambda r: 'one').map(lambda r: (r['key'], r['type'], r['value'])).run(readAllTypes=True)"
    wanted = [
        "('k', 'string', 'v')",
        "('s', 'set', {'a'})",
        "('st', 'stream', [{'id': '1-1', 'value': {'f': 'v'}}])",
        "('z', 'zset', [('m', 1.5)])",
    ]
    check(shard, script, wanted, ordered=False)


# --- while the keyspace changes ----------------------------------------------------------------------------------


def test_every_key_once_among_many(client):
    client.mset({f"k{i}": i for i in range(20_000)})
    found = results(client, "GB().map(lambda r: int(r['value'])).run(convertToStr=False)")
    assert sorted(found) == list(range(20_000))


def test_a_function_may_change_the_keys_that_it_reads(client):
    client.mset({f"k{i}": i for i in range(5000)})
    (count,) = results(client, "GB().foreach(lambda r: execute('del', r['key'])).count().run('k*')")
    # The table shrinks meanwhile, and then a scan may show a key twice.
    assert int(count) >= 5000
    assert client.dbsize() == 0


def test_a_function_may_add_keys(client):
    client.mset({f"k{i}": i for i in range(3000)})
    pair = run(client, "GB().foreach(lambda r: execute('set', 'new:' + r['key'], 1)).map(lambda r: r['key']).run('k*')")
    assert pair.errors == [] and set(pair.results) == {f"k{i}" for i in range(3000)}
    assert client.dbsize() == 6000


def test_flushing_meanwhile_does_no_harm(client):
    client.mset({f"k{i}": i for i in range(5000)})
    pair = run(client, "GB().foreach(lambda r: execute('flushall')).limit(1).run()")
    assert len(pair.results) == 1
    assert client.dbsize() == 0
