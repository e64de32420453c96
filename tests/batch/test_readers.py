"""The readers by example: rows R1 to R25 of the interface."""

import pytest
from scripts import NEVER, SINGLE, Case, check, refusal, refusals, results, run, table

pytestmark = pytest.mark.matrix

WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
THREE_KEYS = (("SET", "u:1", "a"), ("SET", "u:2", "b"), ("SET", "v:1", "c"))
STREAM = (("XADD", "st", "1-0", "n", "1"), ("XADD", "st", "2-0", "n", "2"), ("XADD", "st", "3-0", "n", "3"))


def record(key, kind, value):
    return [f"{{'event': None, 'key': '{key}', 'type': '{kind}', 'value': {value}}}"]


ROWS = [
    Case("R1", "GB().run()", record("x", "string", "'1'"), data=(("SET", "x", "1"),)),
    Case("R2", "GB().run()", record("l", "list", "['a', 'b', 'c']"), data=(("RPUSH", "l", "a", "b", "c"),)),
    Case("R3", "GB().run()", record("h", "hash", "{'f': 'v'}"), data=(("HSET", "h", "f", "v"),)),
    Case("R4", "GB().run()", record("s", "set", "None"), data=(("SADD", "s", "a"),)),
    Case("R5", "GB().run()", record("z", "zset", "None"), data=(("ZADD", "z", "1", "a"),)),
    Case("R6", "GB().run()", record("st", "unknown", "None"), data=(("XADD", "st", "1-1", "a", "b"),)),
    Case("R7", "GB().run('nokey', noScan=True)", record("nokey", "empty", "None"), on_cluster=False),
    Case("R8", "GB().run('nokey')", []),
    Case("R9", "GB().run('x', readValue=False)", ["{'event': None, 'key': 'x'}"], data=(("SET", "x", "1"),)),
    Case(
        "R10",
        "GB().map(lambda r: type(r['value']).__name__).run('b')",
        ["bytearray"],
        data=(("SET", "b", b"\xff\xfe"),),
    ),
    Case("R11", "GB().map(lambda r: type(r['value']).__name__).run('i')", ["str"], data=(("SET", "i", "12"),)),
    Case("R12-star", "GB().count().run('u*')", ["2"], data=THREE_KEYS),
    Case("R12-mark", "GB().count().run('?:1')", ["2"], data=THREE_KEYS),
    Case("R12-class", "GB().count().run('u:[12]')", ["2"], data=THREE_KEYS),
    Case("R12-none", "GB().count().run('nope*')", [], data=THREE_KEYS),
    Case("R13-default", "GB(defaultArg='u:1').map(lambda r: r['value']).run()", ["a"], data=THREE_KEYS),
    Case("R13-given", "GB(defaultArg='u:1').map(lambda r: r['value']).run('v:1')", ["c"], data=THREE_KEYS),
    Case(
        "R14",
        "GB().filter(lambda r: r['value'] > 'a').map(lambda r: r['key']).sort().run()",
        ["u:2", "v:1"],
        data=THREE_KEYS,
    ),
    Case("R15", "GB('KeysOnlyReader').sort().run('u*')", ["u:1", "u:2"], data=THREE_KEYS),
    Case("R16-there", "GB('KeysOnlyReader').run('u:1', noScan=True)", ["u:1"], data=THREE_KEYS),
    Case("R16-glob", "GB('KeysOnlyReader').run('u*', noScan=True)", [], data=THREE_KEYS),
    Case("R17", "GB('KeysOnlyReader').run(patternGenerator=lambda: ('u:2', True))", ["u:2"], data=THREE_KEYS),
    Case("R18", "GB('ShardsIDReader').run()", ["1"], on_cluster=False),
    Case(
        "R19",
        "GB('StreamReader').map(lambda r: (r['id'], r['value']['n'])).run('st')",
        ["('1-0', '1')", "('2-0', '2')", "('3-0', '3')"],
        data=STREAM,
        order=SINGLE,
    ),
    Case(
        "R20",
        "GB('StreamReader').map(lambda r: r['id']).run('st', fromId='1-0')",
        ["2-0", "3-0"],
        data=STREAM,
        order=SINGLE,
    ),
    Case("R21-default", "GB('StreamReader', 'st').count().run()", ["3"], data=STREAM),
    Case("R21-star", "GB('StreamReader').run()", [], data=STREAM),
    Case("R22", "GB('StreamReader').run('s')", [], data=(("SET", "s", "v"),), errors=(WRONG_TYPE,)),
    Case(
        "R23",
        "GB('StreamReader').map(lambda r: sorted(r['value'].items())).run('st')",
        ["[('a', 'c'), ('z', '1')]"],
        data=(("XADD", "st", "1-1", "a", "b", "a", "c", "z", "1"),),
    ),
    Case(
        "R24",
        "GB('PythonReader').run(lambda: (i for i in range(5)))",
        ["0", "1", "2", "3", "4"],
        on_cluster=False,
    ),
    Case(
        "R25",
        "def g():\n    yield 1\n    raise Exception('stop here')\nGB('PythonReader').run(g)",
        ["1"],
        errors=("Exception: stop here",),
        on_cluster=False,
    ),
]


@table(ROWS)
def test_on_a_single_server(client, case):
    case.check_single(client)


@table(ROWS, lambda row: row.on_cluster)
def test_on_a_cluster(cluster, shard, case):
    case.check_cluster(cluster, shard)


def test_wrong_type_is_the_bare_error_text(client):
    client.set("s", "v")
    assert run(client, "GB('StreamReader').run('s')").errors == [WRONG_TYPE]


def test_readers_without_keys_run_on_every_shard(cluster, shard):
    ids = [server.node_id for server in cluster.servers]
    check(shard, "GB('ShardsIDReader').run()", ids, ordered=False)
    check(shard, "GB('ShardsIDReader').run('any', noScan='argument')", ids, ordered=False)
    check(shard, "GB('PythonReader').run(lambda: (i for i in range(2)))", ["0", "1"] * 3, ordered=False)
    nokey = record("nokey", "empty", "None")
    check(shard, "GB().run('nokey', noScan=True)", nokey * 3, ordered=False)


@pytest.mark.parametrize("initiator", range(3))
def test_every_shard_may_be_asked(cluster, shards, initiator):
    for i in range(30):
        with cluster.owner(f"k{i}").client() as owner:
            owner.set(f"k{i}", i)
    keys = [f"k{i}" for i in range(30)]
    check(shards[initiator], "GB().map(lambda r: r['key']).run()", keys, ordered=False)


# --- errors of the builder and of run() --------------------------------------------------------------------------

REFUSED = [
    ("reader is no text", "GB(1)", "reader argument must be a string"),
    ("reader unknown", "GB('nope')", "The given reader does not exists"),
    ("reader in lower case", "GB('keysreader')", "The given reader does not exists"),
    ("desc is no text", "GB('KeysReader', '*', 5)", "desc argument must be a string"),
    ("desc as keyword", "GB(desc=b'x')", "desc argument must be a string"),
    ("pattern is no text", "GB().run(1)", "regex argument must be a string"),
    ("pattern is bytes", "GB().run(b'x')", "regex argument must be a string"),
    ("default pattern is no text", "GB('KeysReader', 5).run()", "regex argument must be a string"),
    ("noScan is no bool", "GB().run(noScan=1)", "exactMatch value is not boolean"),
    ("noScan is None", "GB().run(noScan=None)", "exactMatch value is not boolean"),
    ("readValue is no bool", "GB().run(readValue='yes')", "readValue value is not boolean"),
    ("mode sync", "GB().run('x', mode='sync')", "unknown execution mode"),
    ("mode in upper case", "GB().run('x', mode='ASYNC')", "unknown execution mode"),
    ("mode is no text", "GB().run('x', mode=1)", "execution mode must be a string"),
    ("mode is None", "GB().run('x', mode=None)", "execution mode must be a string"),
    ("mode for Python", "GB('PythonReader').run(lambda: iter([]), mode='sync')", "unknown execution mode"),
    ("mode for ids", "GB('ShardsIDReader').run(mode='no')", "unknown execution mode"),
    ("mode for streams", "GB('StreamReader').run('s', mode=2)", "execution mode must be a string"),
    ("commands have no run", "GB('CommandReader').run()", "Given reader do not support run or not exists"),
    ("fromId is no text", "GB('StreamReader').run('s', fromId=0)", "fromId argument must be a string"),
    ("stream key is no text", "GB('StreamReader').run(5)", "regex argument must be a string"),
    ("Python source is no function", "GB('PythonReader').run(5)", "pyreader argument must be a function"),
    ("Python source is built in", "GB('PythonReader').run(len)", "pyreader argument must be a function"),
    ("Python source is missing", "GB('PythonReader').run()", "pyreader argument must be a function"),
    ("two runs", "GB().run(); GB().run()", "gears.error: Can not run more then 1 executions in a single script"),
    ("keys only: unknown keyword", "GB('KeysOnlyReader').run('*', nope=1)", "TypeError"),
    ("too many arguments", "GB('KeysReader', '*', None, 4)", "TypeError"),
]


@refusals(REFUSED)
def test_refused(client, script, text):
    assert text in refusal(client, script)
    assert results(client, "GB('ShardsIDReader').run()") == ["1"]


@refusals(REFUSED)
def test_refused_on_a_cluster(shard, script, text):
    assert text in refusal(shard, script)


IGNORED = ["GB().run(nope=1)", "GB('ShardsIDReader').run(readValue=5)", "GB('StreamReader', 'no').run(batch='x')"]


@pytest.mark.parametrize("script", IGNORED)
def test_unknown_keywords_are_ignored(client, script):
    assert run(client, script).errors == []


FALSY = ["''", "None", "0", "False", "[]"]


@pytest.mark.parametrize("argument", FALSY)
def test_a_falsy_argument_becomes_the_default(client, argument):
    client.mset({"u:1": "a", "v:1": "c"})
    check(client, f"GB('KeysReader', 'u*').map(lambda r: r['key']).run({argument})", ["u:1"])


def test_keyword_names_of_the_constructor(client):
    client.mset({"u:1": "a", "v:1": "c"})
    script = "GearsBuilder(reader='KeysOnlyReader', defaultArg='v*', desc='about').run()"
    check(client, script, ["v:1"])
    assert results(client, "GB(desc=None).count().run()") == ["2"]


def test_a_database_that_a_client_selected_does_not_matter(server):
    with server.client(db=1) as other, server.client() as client:
        other.set("in1", "x")
        client.set("in0", "x")
        check(other, "GB().map(lambda r: r['key']).run()", ["in0"])
        check(other, "GB('KeysOnlyReader').run('*')", ["in0"])


@table([Case("none", "GB().map(lambda r: r['key']).run()", [], order=NEVER)])
def test_an_empty_database(client, case):
    case.check_single(client)
