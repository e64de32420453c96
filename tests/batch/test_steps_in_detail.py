"""Steps beyond the examples: callables, identity of records, start values, keys of groups, and odd results."""

import pytest
from scripts import INITIATOR_ONLY, NEVER, Case, check, check_errors, results, run, table, with_source

pytestmark = pytest.mark.matrix

# --- what may be a callback --------------------------------------------------------------------------------------

CALLABLES = """
import functools, operator
class Doubler:
    factor = 2
    def method(self, x):
        return x * self.factor
    @staticmethod
    def static(x):
        return x * 2
    @classmethod
    def of_class(cls, x):
        return x * cls.factor
    def __call__(self, x):
        return x * 2
def outer():
    factor = 2
    def inner(x):
        return x * factor
    return inner
def with_default(x, y=2):
    return x * y
def star(*args, **kw):
    return args[0] * 2
def decorate(f):
    @functools.wraps(f)
    def wrapped(*args):
        return f(*args)
    return wrapped
@decorate
def decorated(x):
    return x * 2
def by_two(y, x):
    return x * y
class Wrapped:
    def __init__(self, x):
        self.x = x * 2
    def __repr__(self):
        return str(self.x)
"""
CALLBACKS = ["lambda x: x * 2", "Doubler().method", "Doubler.static", "Doubler().of_class", "Doubler()", "outer()",
             "with_default", "star", "decorated", "functools.partial(by_two, 2)", "Wrapped"]  # fmt: skip


@pytest.mark.parametrize("callback", CALLBACKS)
def test_callbacks(client, callback):
    check(client, CALLABLES + with_source("1, 2", f"PR.map({callback}).run(src)"), ["2", "4"])


@pytest.mark.parametrize("callback", CALLBACKS)
def test_callbacks_on_a_cluster(shard, callback):
    script = CALLABLES + with_source("1, 2", f"PR.repartition(lambda x: x).map({callback}).run(src)")
    check(shard, script, ["2", "4"] * 3, ordered=False)


def test_classes_of_the_language_are_callbacks(client):
    check(client, with_source("'1', '2'", "PR.map(int).map(float).map(str).run(src)"), ["1.0", "2.0"])
    check(client, with_source("'ab'", "PR.flatmap(list).run(src)"), ["a", "b"])
    check(client, with_source("0, 1", "PR.filter(bool).run(src)"), ["1"])


ROWS = [
    # --- map and foreach
    Case("None is a value", "PR.map(lambda x: None).map(lambda x: x is None).run(src)", ["True", "True"], "1, 2"),
    Case("foreach passes the same object", "PR.foreach(lambda x: x.append(2)).run(src)", ["[1, 2]"], "[1]"),
    Case("foreach ignores what it gives", "PR.foreach(lambda x: [1, 2]).run(src)", ["5"], "5"),
    Case("an error as a value", "PR.map(lambda x: ValueError('v')).run(src)", ["v"], "1"),
    Case("a class as a value", "PR.map(lambda x: int).run(src)", ["<class 'int'>"], "1"),
    Case("no step", "PR.run(src)", ["1", "2"], "1, 2"),
    Case("fifty steps", "PR" + ".map(lambda x: x + 1)" * 50 + ".run(src)", ["51"], "1"),
    # --- filter
    Case("truth by __bool__",
         "class F:\n    def __bool__(self):\n        return False\nPR.filter(lambda x: F()).run(src)", [], "1"),
    Case("truth by __len__",
         "class L:\n    def __len__(self):\n        return 3\nPR.filter(lambda x: L()).run(src)", ["1"], "1"),
    Case("a generator is true", "PR.filter(lambda x: (i for i in [])).run(src)", ["1"], "1"),
    Case("nan is true", "PR.filter(lambda x: float('nan')).run(src)", ["1"], "1"),
    # --- flatmap
    Case("flatmap one level", "PR.flatmap(lambda x: [[1, [2]], 3]).run(src)", ["[1, [2]]", "3"], "1"),
    Case("flatmap drops by an empty list", "PR.flatmap(lambda x: [] if x == 1 else [x]).run(src)", ["2"], "1, 2"),
    Case("flatmap of a subclass of list",
         "class L(list):\n    pass\nPR.flatmap(lambda x: L([1, 2])).run(src)", ["1", "2"], "1"),
    Case("flatmap twice", "PR.flatmap(lambda x: x).flatmap(lambda x: x).run(src)", list("1234"), "[[1, 2], [3, 4]]"),
    Case("flatmap keeps None inside", "PR.flatmap(lambda x: [None, 1]).run(src)", ["None", "1"], "1"),
    Case("flatmap of no list", "PR.flatmap(lambda x: {1}).run(src)", ["{1}"], "1"),
    # --- limit
    Case("limit after a filter", "PR.filter(lambda x: x % 2).limit(2).run(src)", ["1", "3"], "*range(10)"),
    Case("limit after flatmap", "PR.flatmap(lambda x: [x, x]).limit(3).run(src)", ["0", "0", "1"], "*range(10)"),
    Case("limit then flatmap", "PR.limit(1).flatmap(lambda x: [1, 2]).run(src)", ["1", "2"], "*range(10)"),
    Case("limit of a huge number", "PR.limit(2**62).run(src)", ["1", "2"], "1, 2"),
    Case("limit then accumulate", "PR.limit(3).accumulate(lambda a, x: (a or 0) + x).run(src)", ["3"], "*range(10)"),
    Case("limit then sort", "PR.limit(3).sort(reverse=False).run(src)", ["2", "1", "0"], "*range(10)"),
    # --- accumulate
    Case("accumulate gives the last", "PR.accumulate(lambda a, x: x).run(src)", ["3"], "1, 2, 3"),
    Case("the first accumulator is None", "PR.accumulate(lambda a, x: (a, x)).run(src)", ["((None, 1), 2)"], "1, 2"),
    Case("accumulate a list", "PR.accumulate(lambda a, x: (a or []) + [x]).map(lambda a: len(a)).run(src)", ["2"],
         "1, 2"),
    Case("accumulate twice", "PR.accumulate(lambda a, x: x).accumulate(lambda a, x: [a, x]).run(src)", ["[None, 2]"],
         "1, 2"),
    # --- start values
    Case("a falsy accumulator is replaced", "PR.aggregate(10, lambda a, x: 0, lambda a, x: a + x).run(src)", ["10"],
         "1, 2"),
    Case("a falsy accumulator is replaced on the way", "PR.aggregate(10, lambda a, x: a - 10, lambda a, x: x).run(src)",
         ["0"], "1, 2"),
    Case("zero is copied", "z = []\nPR.aggregate(z, lambda a, x: (a.append(x), a)[1], lambda a, x: a + x)"
         ".map(lambda r: (r, z)).run(src)", ["([1, 2], [])"], "1, 2"),
    Case("zero is copied for each key",
         "PR.aggregateby(lambda x: x % 2, [], lambda k, a, x: (a.append(x), a)[1], lambda k, a, x: a + x).run(src)",
         ["{'key': '1', 'value': [1, 3]}", "{'key': '0', 'value': [2]}"], "1, 2, 3", order=NEVER),
    Case("zero may be nested", "PR.aggregate({'n': []}, lambda a, x: (a['n'].append(x), a)[1], "
         "lambda a, x: {'n': a['n'] + x['n']}).run(src)", ["{'n': [1, 2]}"], "1, 2"),
    Case("keywords of aggregate", "PR.aggregate(zero=0, seqOp=lambda a, x: a + x, combOp=lambda a, x: a + x).run(src)",
         ["3"], "1, 2"),
    Case("keywords of aggregateby",
         "PR.aggregateby(extractor=lambda x: 'k', zero=0, seqOp=lambda k, a, x: a + x, combOp=lambda k, a, x: a + x)"
         ".run(src)", ["{'key': 'k', 'value': 3}"], "1, 2"),
    Case("keywords of countby", "PR.countby(extractor=lambda x: 'k').run(src)", ["{'key': 'k', 'value': 2}"], "1, 2"),
    Case("keywords of avg", "PR.avg(extractor=lambda x: x * 2).run(src)", ["3.0"], "1, 2"),
    Case("sort by position", "PR.sort(False).run(src)", ["2", "1"], "1, 2"),
    Case("aggregate passes the key of aggregateby",
         "PR.aggregateby(lambda x: x, '', lambda k, a, x: a + k, lambda k, a, x: a + k + '!').run(src)",
         ["{'key': '1', 'value': '1!'}"], "1"),
    Case("local aggregate by",
         "PR.__localAggregateby__(lambda x: x % 2, 10, lambda k, a, x: a + x).run(src)",
         ["{'key': '1', 'value': 14}", "{'key': '0', 'value': 12}"], "1, 2, 3", order=NEVER),
    # --- groups
    Case("keys become text", "PR.groupby(lambda x: x, lambda k, a, x: type(k).__name__).map(lambda r: r['value'])"
         ".distinct().run(src)", ["str"], "1, 'a', None, (1, 2)"),
    Case("1 and '1' are one key", "PR.countby().run(src)", ["{'key': '1', 'value': 2}"], "1, '1'"),
    Case("bytes are a key by their repr", "PR.countby().run(src)", ["{'key': \"b'x'\", 'value': 1}"], "b'x'"),
    Case("the empty key", "PR.countby(lambda x: '').run(src)", ["{'key': '', 'value': 2}"], "1, 2"),
    Case("keys with NUL", "PR.countby().count().run(src)", ["2"], r"'a\x00b', 'a\x00c'"),
    Case("long keys", "PR.countby(lambda x: 'k' * 100000 + x).map(lambda r: (len(r['key']), r['value'])).run(src)",
         ["(100001, 2)", "(100001, 1)"], "'a', 'b', 'a'", order=NEVER),
    Case("keys with tags", "PR.countby().run(src)",
         ["{'key': '{t}a', 'value': 1}", "{'key': '{t}b', 'value': 1}"], "'{t}a', '{t}b'", order=NEVER),
    Case("a reducer that gives the record", "PR.groupby(lambda x: 'k', lambda k, a, x: x).run(src)",
         ["{'key': 'k', 'value': [3]}"], "[1], [3]", on_cluster=False),
    Case("groups of groups", "PR.countby(lambda x: x % 4).countby(lambda r: r['value']).run(src)",
         ["{'key': '5', 'value': 4}"], "*range(20)"),
    Case("records of batchgroupby keep their order",
         "PR.batchgroupby(lambda x: x % 2, lambda k, l: l).map(lambda r: r['value']).run(src)",
         ["[0, 2, 4]", "[1, 3, 5]"], "*range(6)", order=NEVER, on_cluster=False),
    Case("fields of a group", "PR.groupby(lambda x: 1, lambda k, a, x: 1).map(lambda r: list(r)).run(src)",
         ["['key', 'value']"], "1"),
    Case("localgroupby", "PR.localgroupby(lambda x: x % 2, lambda k, a, x: (a or 0) + x).run(src)",
         ["{'key': '0', 'value': 6}", "{'key': '1', 'value': 4}"], "*range(5)", order=NEVER),
    # --- sort and distinct
    Case("sort text", "PR.sort().run(src)", ["", "10", "9", "a", "é"], "'é', 'a', '10', '9', ''"),
    Case("sort ints and floats", "PR.sort().run(src)", ["0.5", "1", "1.5", "2"], "2, 1.5, 1, 0.5"),
    Case("sort lists", "PR.sort().run(src)", ["[1]", "[1, 2]", "[2]"], "[2], [1, 2], [1]"),
    Case("sort one", "PR.sort().run(src)", ["5"], "5"),
    Case("sort big ints", "PR.sort().run(src)", ["5", str(2**70)], "2**70, 5"),
    Case("sort then more", "PR.sort().map(lambda x: x * 2).filter(lambda x: x > 2).run(src)", ["4", "6"], "3, 1, 2"),
    Case("sort by __lt__", "class V:\n    def __init__(self, v):\n        self.v = v\n    def __lt__(self, o):\n"
         "        return self.v > o.v\nPR.map(lambda x: V(x)).sort().map(lambda v: v.v).run(src)",
         ["3", "2", "1"], "1, 3, 2"),
    Case("distinct of text", "PR.distinct().run(src)", ["a", "b"], "'a', 'b', 'a'", order=NEVER),
    Case("distinct of tuples", "PR.distinct().count().run(src)", ["2"], "(1, 2), (1, 2), (2, 1)"),
    Case("distinct of None", "PR.distinct().run(src)", ["None"], "None, None"),
    Case("distinct of text and bytes", "PR.distinct().count().run(src)", ["2"], "'a', b'a'"),
    Case("distinct of sets", "PR.distinct().run(src)", [], "{1}", errors=("TypeError: unhashable type: 'set'",)),
    # --- count and avg
    Case("count is an int", "PR.count().map(lambda n: type(n).__name__).run(src)", ["int"], "1, 2"),
    Case("count counts None", "PR.count().run(src)", ["2"], "None, None"),
    Case("count of nothing left", "PR.filter(lambda x: False).count().run(src)", [], "1, 2"),
    Case("count after flatmap", "PR.flatmap(lambda x: [x] * 3).count().run(src)", ["6"], "1, 2"),
    Case("avg is a float", "PR.avg().map(lambda n: type(n).__name__).run(src)", ["float"], "1, 1"),
    Case("avg of text", "PR.avg().run(src)", ["2.0"], "'1', ' 3 '"),
    Case("avg of nan", "PR.avg().run(src)", ["nan"], "1, float('nan')"),
    Case("avg of zero", "PR.avg().run(src)", ["0.0"], "0, 0"),
    Case("avg of signs", "PR.avg().run(src)", ["0.0"], "-1, 1"),
    Case("avg of no number", "PR.avg(lambda x: x).run(src)", [], "None", errors=("TypeError",)),
    # --- combinations
    Case("global steps in a row", "PR.collect().repartition(lambda x: x).collect().count().run(src)", ["3"], "1, 2, 3"),
    Case("count of counts", "PR.countby(lambda x: x % 3).map(lambda r: r['value']).countby().run(src)",
         ["{'key': '10', 'value': 3}"], "*range(30)"),
    Case("sort of groups", "PR.countby().map(lambda r: (-r['value'], r['key'])).sort().limit(1).run(src)",
         ["(-3, 'a')"], "'a', 'b', 'a', 'a'"),
]  # fmt: skip


@table(ROWS)
def test_on_a_single_server(client, case):
    case.check_single(client)


@table(ROWS, lambda row: row.on_cluster)
def test_on_a_cluster(cluster, shard, case):
    case.check_cluster(cluster, shard)


# --- odd results of callbacks ------------------------------------------------------------------------------------

ODD_KEYS = [
    ("class K:\n    def __repr__(self):\n        raise ValueError('no repr')", "ValueError: no repr"),
    ("class K:\n    def __repr__(self):\n        return 5", "TypeError: __repr__ returned non-string"),
    ("class K:\n    def __repr__(self):\n        return repr(self)", "RecursionError"),
]


@pytest.mark.parametrize("operation", ["repartition(lambda x: K())", "countby(lambda x: K())",
                                       "groupby(lambda x: K(), lambda k, a, x: 1)"])  # fmt: skip
@pytest.mark.parametrize(("head", "text"), ODD_KEYS)
def test_keys_without_a_text(client, head, text, operation):
    pair = run(client, f"{head}\n" + with_source("1", f"PR.{operation}.run(src)"))
    assert pair.results == []
    check_errors(pair.errors, [text])


ODD_TRUTH = "class T:\n    def __bool__(self):\n        raise ValueError('no truth')\n"


@pytest.mark.parametrize("operation", ["filter(lambda x: T())", "aggregate(0, lambda a, x: T(), lambda a, x: 1)"])
def test_values_without_a_truth(client, operation):
    pair = run(client, ODD_TRUTH + with_source("1, 2", f"PR.{operation}.run(src)"))
    assert pair.results == []
    assert any("ValueError: no truth" in error for error in pair.errors)


ODD_HASH = "class H:\n    def __hash__(self):\n        raise ValueError('no hash')\n"


def test_records_without_a_hash(client):
    pair = run(client, ODD_HASH + with_source("1", "PR.map(lambda x: H()).distinct().run(src)"))
    assert pair.results == []
    check_errors(pair.errors, ["ValueError: no hash"])


def test_comparisons_that_fail(client):
    head = "class C:\n    def __lt__(self, o):\n        raise ValueError('no order')\n"
    pair = run(client, head + with_source("1, 2", "PR.map(lambda x: C()).sort().run(src)"))
    assert pair.results == []
    check_errors(pair.errors, ["ValueError: no order"])


# --- a builder that is used again --------------------------------------------------------------------------------


def test_operations_give_the_same_builder(client):
    script = "b = GB('ShardsIDReader')\nsame = b.map(lambda x: x) is b and b.count() is b\nexecute('set', 'k', same)"
    client.execute_command("RG.PYEXECUTE", script)
    assert client.get("k") == b"True"


def test_steps_count_up_to_the_run(client):
    script = "b = GB('ShardsIDReader').map(lambda x: 5)\nb.run(convertToStr=False)\nb.map(lambda x: 6)"
    assert results(client, script) == [5]


def test_a_run_adds_its_text_conversion_to_the_builder(client):
    script = """
b = GB('ShardsIDReader').map(lambda x: 5)
try:
    b.run(mode='no')
except Exception:
    pass
b.map(lambda x: type(x).__name__).run()
"""
    # The failed run has appended its step before it was refused.
    assert results(client, script) == ["str"]


@pytest.mark.parametrize("where", ["", INITIATOR_ONLY], ids=["every shard", "one shard"])
def test_programs_in_sequence_do_not_meet(shard, where):
    times = 1 if where else 3
    for i in range(20):
        script = with_source(f"*range({i})", "PR.repartition(lambda x: x).count().run(src)", where)
        check(shard, script, [str(i * times)] if i else [])
