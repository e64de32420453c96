"""The steps that RG.GETEXECUTION lists for each operation, last step first on the wire."""

import pytest
from replies import own_plan, start, wait_done

ANY = None  # a name that no client looks at
TO_PYTHON = ("map", "RedisGearsPy_ToPyRecordMapper")
MAPPER = ("map", "RedisGearsPy_PyCallbackMapper")
EXTRACT = ("extractkey", "RedisGearsPy_PyCallbackExtractor")
REPARTITION = ("repartition", "repartition")
ACCUMULATE = ("accumulate", "RedisGearsPy_PyCallbackAccumulate")
BY_KEY = ("accumulatebykey", "RedisGearsPy_PyCallbackAccumulateByKey")
COLLECT = ("collect", "collect")
BACK = ("map", ANY)
FLATMAP = [("map", "RedisGearsPy_PyCallbackFlatMapper"), ("flatmap", "flatmap")]
LOCAL_GROUP = [("extractkey", ANY), BY_KEY, BACK]
GROUP = [("extractkey", ANY), REPARTITION, BY_KEY, BACK]
AGGREGATE = [ACCUMULATE, COLLECT, ACCUMULATE]
ADD = "lambda a, x: x"
ADD_KEY = "lambda k, a, x: x"

PRIMITIVE = {
    "": [],
    "map(lambda x: x)": [MAPPER],
    "filter(lambda x: x)": [("filter", "RedisGearsPy_PyCallbackFilter")],
    "foreach(lambda x: x)": [("foreach", "RedisGearsPy_PyCallbackForEach")],
    "accumulate(lambda a, x: x)": [ACCUMULATE],
    "flatmap(lambda x: x)": FLATMAP,
    "collect()": [COLLECT],
    "limit(3)": [("limit", "limit")],
    "limit(3, 1)": [("limit", "limit")],
    "repartition(lambda x: x)": [EXTRACT, REPARTITION, ("map", "GetValueMapper")],
    f"groupby(lambda x: x, {ADD_KEY})": GROUP,
    "batchgroupby(lambda x: x, lambda k, l: l)": [
        ("extractkey", ANY),
        REPARTITION,
        ("group", "group"),
        ("reduce", "RedisGearsPy_PyCallbackReducer"),
        BACK,
    ],
    f"localgroupby(lambda x: x, {ADD_KEY})": LOCAL_GROUP,
}
# Defined on top of the primitives: what counts is the order of the types.
COMPOSED = {
    f"aggregate(0, {ADD}, {ADD})": AGGREGATE,
    f"aggregateby(lambda x: x, 0, {ADD_KEY}, {ADD_KEY})": LOCAL_GROUP + GROUP,
    "count()": AGGREGATE,
    "countby()": LOCAL_GROUP + GROUP,
    "sort()": AGGREGATE + [MAPPER] + FLATMAP,
    "distinct()": AGGREGATE + FLATMAP,
    "avg()": [MAPPER] + AGGREGATE + [MAPPER],
}
CHAIN = "map(lambda x: x).filter(lambda x: x).repartition(lambda x: x).collect().limit(1)"


def listed(wire, script):
    execution = start(wire, script)
    wait_done(wire, execution)
    steps = own_plan(wire, execution)["steps"]
    return [(step["type"].decode(), step["name"].decode()) for step in steps]


def check(found, wanted, names=True):
    assert [kind for kind, _ in found] == [kind for kind, _ in wanted]
    if names:
        for (_, name), (_, expected) in zip(found, wanted, strict=True):
            assert expected is ANY or name == expected, found


def bare(op):
    dot = "." if op else ""
    return f"GB('ShardsIDReader'){dot}{op}.run(convertToStr=False, collect=False)"


@pytest.mark.parametrize("op", PRIMITIVE)
def test_steps_of_each_operation(wire, op):
    check(listed(wire, bare(op)), [TO_PYTHON, *PRIMITIVE[op]])


@pytest.mark.parametrize("op", COMPOSED)
def test_steps_of_composed_operations(wire, op):
    check(listed(wire, bare(op)), [TO_PYTHON, *COMPOSED[op]], names=False)


@pytest.mark.parametrize("op", ["map(lambda x: x)", "repartition(lambda x: x)", "count()"])
def test_run_appends_two_steps(wire, op):
    wanted = {**PRIMITIVE, **COMPOSED}[op]
    name = f"GB('ShardsIDReader').{op}"
    check(listed(wire, f"{name}.run()"), [TO_PYTHON, *wanted, MAPPER, COLLECT], names=False)
    check(listed(wire, f"{name}.run(collect=False)"), [TO_PYTHON, *wanted, MAPPER], names=False)
    check(listed(wire, f"{name}.run(convertToStr=False)"), [TO_PYTHON, *wanted, COLLECT], names=False)


@pytest.mark.parametrize("reader", ["KeysReader", "KeysOnlyReader", "StreamReader", "ShardsIDReader"])
def test_the_reader_is_not_listed(wire, reader):
    found = listed(wire, f"GB('{reader}').map(lambda x: x).run('nothing', convertToStr=False, collect=False)")
    # KeysOnlyReader may be built on another reader, with steps of its own in front.
    assert found[0] == TO_PYTHON and found[-1] == MAPPER
    if reader != "KeysOnlyReader":
        assert len(found) == 2


def test_a_chain_of_operations(wire):
    wanted = [MAPPER, ("filter", ANY), EXTRACT, REPARTITION, ("map", "GetValueMapper"), COLLECT, ("limit", "limit")]
    check(listed(wire, bare(CHAIN)), [TO_PYTHON, *wanted])


def test_all_shards_list_the_same_steps(wires):
    execution = start(wires[0], bare(CHAIN))
    plans = []
    for wire in wires:
        wait_done(wire, execution)
        plans.append(own_plan(wire, execution))
    kinds = [[(step["type"], step["name"]) for step in plan["steps"]] for plan in plans]
    assert kinds[0] == kinds[1] == kinds[2]
    assert len(kinds[0]) == 8
