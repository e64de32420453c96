"""Records that cannot be packed or unpacked, and steps that raise on some records of some shards."""

import collections

import pytest
from breaking import expect_free, outcome
from replies import executions, pair, results_of, wait_until

# A class whose instances travel by pickle and fail on arrival in the way that is filled in.
BOMB = """
def boom():
    %s
class Bomb:
    def __reduce__(self):
        return (boom, ())
"""
WAYS_TO_FAIL = {
    "exception": "raise ValueError('cannot be loaded')",
    "exit": "raise SystemExit('cannot be loaded')",
    "interrupt": "raise KeyboardInterrupt('cannot be loaded')",
    "recursion": "return boom()",
    "bad-text": "raise type('Odd', (Exception,), {'__str__': lambda self: 1/0})()",
}
RECORDS = "GB('ShardsIDReader').map(lambda x: %s).run(convertToStr=False)"


@pytest.mark.parametrize(
    "value",
    ["threading.Lock()", "(i for i in range(3))", "[1, {'a': threading.Lock()}]", "Refuses()"],
)
def test_records_that_cannot_be_packed(wires, value):
    """The initiator's own record stays, each of the others becomes an error."""
    script = """
import threading
class Refuses:
    def __getstate__(self):
        raise ValueError('I stay where I am')
"""
    results, errors = pair(wires[0].ok("RG.PYEXECUTE", script + RECORDS % value))
    assert len(results) == 1
    assert len(errors) == 2
    assert wires[0].ok("RG.PYEXECUTE", RECORDS % "1") == [[1, 1, 1], []]


@pytest.mark.parametrize("way", WAYS_TO_FAIL)
def test_records_that_cannot_be_unpacked(trio, wires, way):
    """Nobody unpacks a record before a step wants it."""
    script = BOMB % WAYS_TO_FAIL[way] + (
        "GB('ShardsIDReader').map(lambda x: Bomb()).collect().map(lambda x: x).run(convertToStr=False)"
    )
    results, errors = pair(wires[0].ok("RG.PYEXECUTE", script))
    # The initiator's own record needs no unpacking, but its reader stops at its first error, which may come first.
    assert len(results) <= 1
    assert len(errors) == 2
    if way == "exception":
        assert all("cannot be loaded" in text for text in errors)
    expect_free(trio.servers)


@pytest.mark.parametrize("way", ["exception", "exit"])
def test_good_records_arrive_beside_bad_ones(trio, wires, way):
    owner = trio.servers.index(trio.owner("one place"))
    # Not from there: a shard with errors of its own stops reading.
    initiator = wires[(owner + 1) % 3]
    script = BOMB % WAYS_TO_FAIL[way] + (
        "def src():\n"
        "    for i in range(3000):\n"
        "        yield Bomb() if i % 1000 == 500 else i\n"
        "GB('PythonReader').repartition(lambda x: 'one place').filter(lambda x: type(x) is int).count().run(src)"
    )
    results, errors = pair(initiator.ok("RG.PYEXECUTE", script))
    # The shard that owns the place keeps its own records as they are; the six bombs of the others are errors.
    assert len(errors) == 6
    assert results == [b"8991"]


def test_functions_that_cannot_be_packed(trio, wires):
    script = "import threading\nlock = threading.Lock()\nGB('ShardsIDReader').map(lambda x: lock).run()"
    text = wires[0].error("RG.PYEXECUTE", script)
    assert "Error occured when serialized a python callback, callback=" in text
    for wire in wires:
        assert executions(wire) == {}


@pytest.mark.parametrize("way", WAYS_TO_FAIL)
def test_functions_that_cannot_be_unpacked(trio, wires, way):
    """No shard begins unless every shard has understood the plan."""
    script = BOMB % WAYS_TO_FAIL[way] + (
        "bomb = Bomb()\n"
        "def step(x):\n"
        "    execute('incr', 'ran{%s}' % hashtag())\n"
        "    return repr(bomb)\n"
        "GB('ShardsIDReader').map(step).run()"
    )
    _, errors = outcome(wires[0].call("RG.PYEXECUTE", script))
    assert any(server.node_id in text for text in errors for server in trio.servers[1:]), errors
    for wire in wires:
        assert wire.ok("KEYS", "ran*") == []
        wait_until(lambda wire=wire: executions(wire) == {}, "nothing being left")


@pytest.mark.parametrize("failing", [0, 1])
def test_steps_that_raise_on_some_records_of_one_shard(trio, wires, failing):
    script = f"""
def step(x):
    if x[0] == {trio.servers[failing].node_id!r} and x[1] % 10 == 3:
        raise ValueError('not %d' % x[1])
    return x[1]
def src():
    me = execute('cluster', 'myid')
    for i in range(50):
        yield (me, i)
GB('PythonReader').map(step).run(src)
"""
    results, errors = pair(wires[0].ok("RG.PYEXECUTE", script))
    told = sorted(int(text.rsplit("not ", 1)[1].split("\\n")[0]) for text in errors)
    found = collections.Counter(int(result) for result in results)
    if failing == 0:
        # The initiator's reader stops at its first own error; the others go on.
        assert told == [3]
        assert found == {i: 3 if i < 3 else 2 for i in range(50)}
    else:
        # A worker ships its error records away and reads on.
        assert told == [3, 13, 23, 33, 43]
        assert found == {i: 2 if i in told else 3 for i in range(50)}


@pytest.mark.parametrize(
    "op",
    [
        "map(bad)",
        "filter(bad)",
        "foreach(bad)",
        "flatmap(bad)",
        "repartition(bad)",
        "accumulate(lambda a, x: bad(x))",
        "groupby(bad, lambda k, a, x: 1)",
        "groupby(lambda x: x, lambda k, a, x: bad(x))",
        "batchgroupby(lambda x: x, lambda k, l: bad(l))",
        "countby(bad)",
        "aggregate(0, lambda a, x: bad(x), lambda a, x: x)",
        "collect().accumulate(lambda a, x: bad(x))",
        "avg(bad)",
        "sort().map(bad)",
    ],
)
def test_every_step_may_raise_on_every_shard(wires, op):
    script = f"def bad(x):\n    raise ValueError('bad record')\nGB('ShardsIDReader').{op}.run()"
    results, errors = pair(wires[0].ok("RG.PYEXECUTE", script))
    assert results == []
    assert 1 <= len(errors) <= 3
    assert all("ValueError: bad record" in text for text in errors)


def test_values_keep_their_types_on_the_way(wires):
    """What crosses shards is what was sent, odd values included."""
    values = (
        "None, True, 0, -1, 2**63, 2**200, -2**64, 1.5, float('inf'), 1j, '', 'é', 'a\\x00b', '\\ud800', "
        "b'', b'\\x00\\xff', "
        "bytearray(b'x'), (1,), (), [], [[[]]], {}, {'a': {1: (2,)}}, set(), {1, 2}, frozenset('a'), range(3), len, "
        "ValueError('x'), Ellipsis, complex, __import__('datetime').date(2020, 1, 2)"
    )
    script = f"""
values = [{values}]
def src():
    for i, value in enumerate(values):
        yield (i, value)
def same(x):
    i, value = x
    known = values[i]
    equal = value == known or repr(value) == repr(known)
    return 'ok' if equal and type(value) is type(known) else 'changed: %r %r' % (known, value)
GB('PythonReader').repartition(lambda x: 'one place').map(same).countby().map(lambda r: (r['key'], r['value'])).run(src)
"""
    count = len(eval(f"[{values}]"))
    assert results_of(wires[0].ok("RG.PYEXECUTE", script)) == [f"('ok', {3 * count})".encode()]
