"""execute(): how arguments and replies are converted, and what commands do inside of a function."""

import pytest
from scripts import check_errors, evaluate, execute, last_line, on_shard, refusal, result, run

pytestmark = pytest.mark.matrix

REPLIES = [
    ("V1-ping", "execute('ping')", "PONG"),
    ("V1-null", "execute('get', 'nokey')", None),
    ("V1-int", "execute('incr', 'n')", 1),
    ("V3", "execute('eval', 'return {1,{ok=\"hi\"},{err=\"ERR x\"}}', 0)", [1, "hi", "ERR x"]),
    ("V5-blocking", "execute('blpop', 'none', 0)", None),
    ("V5-nothing", "execute()", []),
    ("status", "execute('set', 'k', 'v')", "OK"),
    ("negative int", "execute('decr', 'd')", -1),
    ("empty bulk", "execute('echo', '')", ""),
    ("null in an array", "execute('mget', 'no1', 'no2')", [None, None]),
    ("empty array", "execute('keys', 'no*')", []),
    ("nested arrays", "execute('eval', 'return {1,{2,{3,{}}}}', 0)", [1, [2, [3, []]]]),
    ("double is text", "(execute('zadd', 'z', '1.5', 'a'), execute('zscore', 'z', 'a'))", (1, "1.5")),
    ("map is flat", "(execute('hset', 'h', 'f', 'v'), execute('hgetall', 'h'))", (1, ["f", "v"])),
    ("bytes in an array", "(execute('rpush', 'b', b'\\xff', 'x'), execute('lrange', 'b', 0, -1))",
     (2, [bytearray(b"\xff"), "x"])),
    ("upper case", "execute('PING')", "PONG"),
    ("mixed case", "execute('PiNg', 'hello')", "hello"),
    ("subcommand", "execute('config', 'get', 'appendonly')", ["appendonly", "no"]),
    ("multi has no effect", "(execute('multi'), execute('incr', 'm'))", ("OK", 1)),
    ("select has no effect", "(execute('select', 1), execute('set', 'k', 1), execute('get', 'k'))", ("OK", "OK", "1")),
    ("a stream entry", "(execute('xadd', 's', '1-1', 'f', 'v'), execute('xrange', 's', '-', '+'))",
     ("1-1", [["1-1", ["f", "v"]]])),
    ("a megabyte", "len(execute('eval', 'return string.rep(\"x\", 1048576)', 0))", 1 << 20),
    ("many elements", "len(execute('eval', 'local t={} for i=1,5000 do t[i]=i end return t', 0))", 5000),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "wanted"), [pytest.param(*row[1:], id=row[0]) for row in REPLIES])
def test_replies(client, expression, wanted):
    found = evaluate(client, expression)
    assert found == wanted
    assert type(found) is type(wanted)


def test_commands_of_another_database_stay_in_the_first(client, server):
    evaluate(client, "(execute('select', 3), execute('set', 'k', 'v'))")
    assert client.get("k") == b"v"
    with server.client(db=3) as other:
        assert other.dbsize() == 0


# --- arguments ---------------------------------------------------------------------------------------------------

ARGUMENTS = [
    ("'text'", b"text"),
    ("''", b""),
    ("'é€'", "é€".encode()),
    ("b'raw'", b"raw"),
    (r"b'\xff\x00\xfe'", b"\xff\x00\xfe"),
    (r"bytearray(b'\xfe')", b"\xfe"),
    (r"'nul\x00nul'", b"nul\x00nul"),
    ("1", b"1"),
    ("-5", b"-5"),
    ("2**70", b"1180591620717411303424"),
    ("2.5", b"2.5"),
    ("1e20", b"1e+20"),
    ("None", b"None"),
    ("True", b"True"),
    ("[1]", b"[1]"),
    ("(1, 'a')", b"(1, 'a')"),
    ("{'a': 1}", b"{'a': 1}"),
    ("memoryview(b'x')[0]", b"120"),
    ("type('S', (str,), {})('sub')", b"sub"),
    ("type('T', (), {'__str__': lambda self: 'mine'})()", b"mine"),
    ("'x' * (2 << 20)", b"x" * (2 << 20)),
]


@pytest.mark.parametrize(("argument", "wanted"), ARGUMENTS, ids=[row[0] for row in ARGUMENTS])
def test_arguments(client, argument, wanted):
    assert evaluate(client, f"execute('set', 'k', {argument})") == "OK"
    assert client.get("k") == wanted


def test_v2_a_list_of_arguments(client):
    push = "execute('rpush','l',1,2.5,b'b',bytearray(b'c'),None,True,[1],'é')"
    assert evaluate(client, push) == 8
    assert evaluate(client, "execute('lrange','l',0,-1)") == ["1", "2.5", "b", "c", "None", "True", "[1]", "é"]


def test_v4_keys_and_values_that_are_not_utf8(client):
    assert evaluate(client, r"execute('set', b'k\xff', b'\xfe')") == "OK"
    assert evaluate(client, r"execute('get', b'k\xff')") == bytearray(b"\xfe")
    assert client.get(b"k\xff") == b"\xfe"


def test_a_key_may_hold_nul(client):
    assert evaluate(client, r"execute('set', 'a\x00b', 'v\x00w')") == "OK"
    assert client.keys() == [b"a\x00b"]
    assert evaluate(client, r"execute('get', 'a\x00b')") == "v\x00w"


def test_thousands_of_arguments(client):
    assert evaluate(client, "execute('rpush', 'l', *range(5000))") == 5000
    assert client.lindex("l", -1) == b"4999"


# --- errors ------------------------------------------------------------------------------------------------------

ERRORS = [
    ("execute('incr', 'list')", "gears.error: WRONGTYPE Operation against a key holding the wrong kind of value"),
    ("execute('nosuchcommand', 'x')", "gears.error: ERR unknown command"),
    ("execute('')", "gears.error: ERR unknown command"),
    ("execute('get')", "gears.error: ERR wrong number of arguments for 'get' command"),
    ("execute('get', 'a', 'b')", "gears.error: ERR wrong number of arguments for 'get' command"),
    ("execute('set', 'a', 'b', 'nonsense')", "gears.error: ERR syntax error"),
    ("execute('eval', 'return redis.error_reply(\"MINE of mine\")', 0)", "gears.error: MINE of mine"),
    ("execute('exec')", "gears.error: ERR EXEC without MULTI"),
    ("execute('subscribe', 'c')", "gears.error: ERR"),
    ("execute('rg.pyexecute', 'GB().run()')",
     "gears.error: Can not run gears inside a multi exec, lua, or when blocking is not allowed"),
    ("execute(b'ping')", "gears.error: the given command must be a string"),
    ("execute(None)", "gears.error: the given command must be a string"),
    ("execute(['ping'])", "gears.error: the given command must be a string"),
    ("execute('ping', reply='x')", "TypeError"),
    (r"execute('set', 'k', '\ud800')", "surrogates not allowed"),
    (r"execute('\ud800')", "surrogates not allowed"),
    ("execute('set', 'k', type('T', (), {'__str__': lambda self: 1 // 0})())", "ZeroDivisionError"),
    ("execute('set', 'k', type('T', (), {'__str__': lambda self: 5})())", "TypeError"),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "text"), ERRORS)
def test_errors(client, expression, text):
    client.rpush("list", "a")
    pair = run(client, on_shard(expression))
    assert pair.results == []
    check_errors(pair.errors, [text])
    # Texts come without the end of line of the protocol.
    assert "\\r" not in pair.errors[0]
    assert client.get("k") is None
    assert text in refusal(client, expression), "the same at top level"


def test_the_text_is_that_of_the_server(client):
    client.rpush("list", "a")
    text = last_line(run(client, on_shard("execute('incr', 'list')")).errors[0])
    assert text == "gears.error: WRONGTYPE Operation against a key holding the wrong kind of value"


def test_errors_can_be_caught(client):
    prelude = """
def f():
    try:
        return execute('incr', 'l', 'too', 'many')
    except redisgears.GearsError as e:
        return type(e).__name__, str(e)
"""
    name, text = evaluate(client, "f()", prelude)
    assert name == "error" and text.startswith("ERR wrong number of arguments")


BLOCKING = [
    "'brpop','none',0",
    "'blmove','a','b','left','right',0",
    "'bzpopmin','none',0",
    "'xread','block',0,'streams','s','$'",
]


@pytest.mark.parametrize("arguments", BLOCKING)
def test_blocking_commands_act_as_if_their_time_was_over(client, arguments):
    assert evaluate(client, f"execute({arguments})") is None


def test_wait_tells_how_many_replicas_have_acknowledged(client):
    assert evaluate(client, "execute('wait', '1', '0')") == 0
    assert evaluate(client, "execute('WAIT', 3, 100)") == 0
    assert "not an integer" in refusal(client, "execute('wait', 'many', '0')")


@pytest.mark.parametrize("arguments", ["'sync'", "'PSYNC', '?', '-1'"])
def test_commands_of_replicas_are_refused(client, arguments):
    text = "is for replicas, functions can not call it"
    assert text in refusal(client, f"execute({arguments})")
    check_errors(run(client, on_shard(f"execute({arguments})")).errors, [text])


# --- places from where it is called ------------------------------------------------------------------------------


def test_at_top_level(client):
    assert execute(client, "execute('set', 'k', 'v')") == "OK"
    assert client.get("k") == b"v"


def test_in_a_reader_and_in_every_kind_of_step(client):
    script = """
def hit(name):
    execute('incr', name)
    return name
def src():
    hit('read')
    yield 1
    hit('read')
b = GB('PythonReader').map(lambda x: hit('map')).filter(lambda x: hit('filter')).foreach(lambda x: hit('foreach'))
b = b.flatmap(lambda x: [hit('flatmap')]).accumulate(lambda a, x: hit('accumulate'))
b = b.repartition(lambda x: hit('repartition'))
b = b.groupby(lambda x: hit('extractor'), lambda k, a, x: hit('reducer'))
b = b.batchgroupby(lambda x: hit('extractor2'), lambda k, l: hit('reducer2'))
b.map(lambda x: x['value']).distinct().run(src)
"""
    assert result(client, script) == "reducer2"
    counts = {key.decode(): int(client.get(key)) for key in client.keys()}
    names = "map filter foreach flatmap accumulate repartition extractor reducer extractor2 reducer2".split()
    assert counts == {"read": 2, **dict.fromkeys(names, 1)}


def test_in_a_nested_function_while_others_work(client, server):
    script = """
import time
def wait(x):
    limit = time.monotonic() + 60
    while execute('get', 'go') is None:
        if time.monotonic() > limit:
            raise Exception('nobody let it go')
        time.sleep(0.002)
    return 'went'
GB('ShardsIDReader').map(wait).run()
"""
    identifier = execute(client, script, "UNBLOCKING")
    with server.client() as other:
        # The server serves others while the function polls.
        assert other.set("go", "1")
        found = other.execute_command("RG.GETRESULTSBLOCKING", identifier)
        other.execute_command("RG.DROPEXECUTION", identifier)
    assert found == [[b"went"], []]


def test_pings_are_answered_while_python_is_busy(client, server):
    script = """
def busy(x):
    n = 0
    while n % 1000 or execute('get', 'go') is None:
        n += 1
    return 'went'
GB('ShardsIDReader').map(busy).run()
"""
    identifier = execute(client, script, "UNBLOCKING")
    with server.client() as other:
        assert all(other.ping() for _ in range(50))
        other.set("go", "1")
        assert other.execute_command("RG.GETRESULTSBLOCKING", identifier) == [[b"went"], []]
        other.execute_command("RG.DROPEXECUTION", identifier)
