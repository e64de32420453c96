"""The operations by example: rows O1 to O42 of the interface, on a single server and across shards.

On the cluster the values come from the contacted shard alone, so that a program must give the same there, while its
functions are shipped to all shards and its groups travel to the owners of their keys.
"""

import pytest
from scripts import INITIATOR_ONLY, NEVER, SINGLE, Case, check, result, results, table, with_source

pytestmark = pytest.mark.matrix

EIGHT = [str(i) for i in range(8)]
BATCHED = [
    "{'key': \"b'b'\", 'value': (\"b'b'\", [b'b'])}",
    "{'key': 'é', 'value': ('é', ['é'])}",
    "{'key': 'None', 'value': ('None', [None])}",
    "{'key': '2', 'value': ('2', [2])}",
    "{'key': '1', 'value': ('1', [1, 1])}",
]


def pairs(**counts):
    return [f"{{'key': '{key}', 'value': {value}}}" for key, value in counts.items()]


ODD_EVEN = "lambda x: x % 2, {zero}, lambda k, a, x: a + x, lambda k, a, x: a + x"
ADD = "lambda a, x: a + x"

ROWS = [
    Case("O1", "PR.map(lambda x: x * 2).run(src)", ["2", "4", "6"], "1, 2, 3"),
    Case("O2", "PR.filter(lambda x: x % 2 == 0).run(src)", ["0", "2", "4"], "*range(5)"),
    Case("O3", "PR.filter(lambda x: x).run(src)", ["1", "[0]"], "0, 1, '', None, [], [0]"),
    Case("O4", "PR.foreach(lambda d: d.update(n=2)).run(src)", ["{'n': 2}"], "{'n': 1}"),
    Case("O5", "PR.foreach(lambda x: 0).run(src)", ["1"], "1"),
    Case("O6", "PR.flatmap(lambda x: [1, 2, 3, 4]).run(src)", ["1", "2", "3", "4"], "1"),
    Case("O7", "PR.flatmap(lambda x: x).run(src)", ["1", "2", "3"], "[1, 2], [3]"),
    Case(
        "O8",
        "PR.flatmap(lambda x: x).run(src)",
        ["3", "[1, 2]", "ab", "(7, 8)", "None", "{}"],
        "[3, [1, 2]], 'ab', (7, 8), None, {}",
    ),
    Case("O9", "PR.flatmap(lambda x: [x] * x).run(src)", list("122333444455555"), "*range(6)"),
    Case("O10-first", "PR.limit(3).run(src)", ["0", "1", "2"], "*range(8)"),
    Case("O10-middle", "PR.limit(3, 2).run(src)", ["2", "3", "4"], "*range(8)"),
    Case("O10-none", "PR.limit(0).run(src)", [], "*range(8)"),
    Case("O11-wraps", "PR.limit(-1).run(src)", EIGHT, "*range(8)"),
    Case("O11-start-wraps", "PR.limit(3, -1).run(src)", [], "*range(8)"),
    Case("O11-bool", "PR.limit(True).run(src)", ["0"], "*range(8)"),
    Case("O12-long", "PR.limit(10, 1).run(src)", ["1", "2"], "0, 1, 2"),
    Case("O12-late", "PR.limit(10, 5).run(src)", [], "0, 1, 2"),
    Case("O13-twice", "PR.limit(2, 1).limit(1, 1).run(src)", ["3"], "1, 2, 3, 4"),
    Case("O13-count", "PR.limit(3).count().run(src)", ["3"], "1, 2, 3, 4"),
    Case("O15", "PR.accumulate(lambda a, x: x + (a or 0)).run(src)", ["10"], "*range(5)"),
    Case("O16", "PR.accumulate(lambda a, x: [x] if a is None else a + [x]).run(src)", ["[1, 2]"], "1, 2"),
    Case("O17", "PR.accumulate(lambda a, x: None).run(src)", ["None"], "1, 2, 3"),
    Case("O18-accumulate", "PR.accumulate(lambda a, x: 1).run(src)", [], ""),
    Case("O18-count", "PR.count().run(src)", [], ""),
    Case("O18-avg", "PR.avg().run(src)", [], ""),
    Case("O18-sort", "PR.sort().run(src)", [], ""),
    Case("O18-distinct", "PR.distinct().run(src)", [], ""),
    Case("O18-aggregate", f"PR.aggregate(5, {ADD}, {ADD}).run(src)", [], ""),
    Case("O18-groupby", "PR.groupby(lambda x: x, lambda k, a, x: 1).run(src)", [], ""),
    Case("O18-batchgroupby", "PR.batchgroupby(lambda x: x, lambda k, l: 1).run(src)", [], ""),
    Case(
        "O19",
        "PR.groupby(lambda x: x, lambda k, a, x: (k, (a[1] if a else 0) + x)).run(src)",
        ["{'key': '1', 'value': ('1', 2)}", "{'key': '2', 'value': ('2', 2)}"],
        "1, 1, 2",
        order=NEVER,
    ),
    Case(
        "O20",
        "PR.localgroupby(lambda x: (x, 't'), lambda k, a, x: [a, x]).run(src)",
        [
            "{'key': \"(1, 't')\", 'value': [[None, 1], 1]}",
            "{'key': \"(2, 't')\", 'value': [None, 2]}",
        ],
        "1, 1, 2",
        order=NEVER,
    ),
    Case(
        "O21",
        "PR.batchgroupby(lambda x: x, lambda k, l: (k, l)).run(src)",
        BATCHED,
        "1, 1, 2, None, 'é', b'b'",
        order=SINGLE,
    ),
    # Records of one key may arrive in any order when they travel.
    Case(
        "O22",
        "PR.groupby(lambda x: 'k', lambda k, a, x: x).run(src)",
        pairs(k=3),
        "1, 2, 3",
        on_cluster=False,
    ),
    Case("O23", "PR.groupby(lambda x: 'k', lambda k, a, x: None).run(src)", pairs(k=None), "1, 2"),
    Case(
        "O24",
        "PR.batchgroupby(lambda x: 'k', lambda k, l: l).flatmap(lambda r: r['value']).run(src)",
        ["1", "2", "3"],
        "1, 2, 3",
        order=SINGLE,
    ),
    Case("O25", "PR.repartition(lambda x: x).run(src)", ["1", "2"], "1, 2", order=SINGLE),
    Case("O26", f"PR.aggregate(10, {ADD}, {ADD}).run(src)", ["26"], "1, 2, 3"),
    Case("O27", f"PR.aggregate([], lambda a, x: a + [x], {ADD}).run(src)", ["[1, 2, 3]"], "1, 2, 3"),
    Case(
        "O28",
        f"PR.aggregateby({ODD_EVEN.format(zero=0)}).run(src)",
        ["{'key': '1', 'value': 4}", "{'key': '0', 'value': 2}"],
        "1, 2, 3",
        order=NEVER,
    ),
    Case(
        "O29",
        f"PR.aggregateby({ODD_EVEN.format(zero=10)}).run(src)",
        ["{'key': '1', 'value': 24}", "{'key': '0', 'value': 22}"],
        "1, 2, 3",
        order=NEVER,
    ),
    Case("O30-count", "PR.count().run(src)", ["3"], "1, 2, 3"),
    Case("O30-map", "PR.count().map(lambda n: n * 10).run(src)", ["30"], "1, 2, 3"),
    Case("O31", "PR.countby().run(src)", pairs(a=3, b=1, c=1), "'a', 'a', 'b', 'a', 'c'", order=NEVER),
    Case("O32", "PR.countby().run(src)", pairs(**{"1.0": 1, "1": 1, "True": 1}), "1.0, 1, True", order=NEVER),
    Case("O33", "PR.countby(lambda x: None).run(src)", pairs(**{"None": 2}), "5, 6"),
    Case("O34-up", "PR.sort().run(src)", ["1", "2", "3"], "3, 1, 2"),
    Case("O34-down", "PR.sort(reverse=False).run(src)", ["3", "2", "1"], "3, 1, 2"),
    Case("O34-limit", "PR.sort().limit(2).run(src)", ["1", "2"], "3, 1, 2"),
    Case("O35", "PR.sort().run(src)", ["(1, 'z')", "(2, 'a')", "(2, 'b')"], "(2, 'b'), (1, 'z'), (2, 'a')"),
    Case(
        "O36",
        "PR.sort().run(src)",
        [],
        "3, 'a', 2",
        errors=("TypeError: '<' not supported between instances of",),
    ),
    Case("O37-sort", "PR.distinct().sort().run(src)", ["1", "2", "3"], "3, 1, 3, 2, 1"),
    Case("O37-count", "PR.distinct().count().run(src)", ["3"], "3, 1, 3, 2, 1"),
    Case("O38", "PR.distinct().run(src)", ["1.0"], "1.0, 1, True"),
    Case("O39", "PR.distinct().run(src)", [], "[1], [1]", errors=("TypeError: unhashable type: 'list'",)),
    Case("O40", "PR.avg().run(src)", ["2.3333333333333335"], "'1', '2', '4'"),
    Case("O41", "PR.avg(lambda x: x * 2).run(src)", ["4.0"], "1, 2, 3"),
    Case(
        "O42",
        """
        (PR.flatmap(lambda r: r['value'].split()).countby()
            .map(lambda r: (r['key'], r['value'])).sort().run(src))
        """,
        ["('1', 2)", "('2', 1)"],
        "{'value': '1 2 1'}",
    ),
]


@table(ROWS)
def test_on_a_single_server(client, case):
    case.check_single(client)


@table(ROWS, lambda row: row.on_cluster)
def test_on_a_cluster(cluster, shard, case):
    case.check_cluster(cluster, shard)


# --- O14: a step asks for one record at a time -------------------------------------------------------------------

PULLS = """
key = 'pulled{%s}' % hashtag()
def src():
    for v in range(5):
        execute('incr', key)
        yield v
"""


def test_limit_pulls_one_record_more_than_it_passes(client):
    assert results(client, PULLS + "GB('PythonReader').limit(2).run(src)") == ["0", "1"]
    assert client.get("pulled{06S}") == b"3"


def test_limit_pulls_no_more_on_a_cluster(shard):
    key = result(shard, "GB('ShardsIDReader').map(lambda x: 'pulled{%s}' % hashtag()).run(mode='async_local')")
    assert results(shard, PULLS + "GB('PythonReader').limit(2).run(src, mode='async_local')") == ["0", "1"]
    assert shard.get(key) == b"3"


def test_each_record_goes_to_the_end_before_the_next_is_read(client):
    script = """
def note(word, x):
    execute('rpush', 'order', '%s%s' % (word, x))
    return x
def src():
    for v in [1, 2]:
        note('read', v)
        yield v
GB('PythonReader').map(lambda x: note('map', x)).foreach(lambda x: note('each', x)).run(src)
"""
    assert results(client, script) == ["1", "2"]
    order = [entry.decode() for entry in client.lrange("order", 0, -1)]
    assert order == ["read1", "map1", "each1", "read2", "map2", "each2"]


# --- more than a batch -------------------------------------------------------------------------------------------

MANY = [
    Case("map", "PR.map(lambda x: x + 1).run(src)", [str(i + 1) for i in range(5000)]),
    Case("sort", "PR.sort(reverse=False).limit(3).run(src)", ["4999", "4998", "4997"]),
    Case("limit", "PR.limit(3, 4090).run(src)", ["4090", "4091", "4092"]),
    Case("accumulate", "PR.accumulate(lambda a, x: x + (a or 0)).run(src)", [str(sum(range(5000)))]),
    Case("flatmap", "PR.flatmap(lambda x: [x, x]).limit(4, 9990).run(src)", ["4995", "4995", "4996", "4996"]),
    Case("countby", "PR.countby(lambda x: x % 7).count().run(src)", ["7"]),
    Case("batchgroupby", "PR.batchgroupby(lambda x: x, lambda k, l: len(l)).count().run(src)", ["5000"]),
    Case("groups", "PR.groupby(lambda x: x % 999, lambda k, a, x: (a or 0) + 1).count().run(src)", ["999"]),
    Case("repartition", "PR.repartition(lambda x: x).count().run(src)", ["5000"]),
    Case("distinct", "PR.map(lambda x: x // 2).distinct().count().run(src)", ["2500"]),
    Case("avg", "PR.avg().run(src)", ["2499.5"]),
]


@table(MANY)
def test_many_records(client, case):
    check(client, with_source("*range(5000)", case.program), case.results)


@table(MANY)
def test_many_records_on_a_cluster(shard, case):
    check(shard, with_source("*range(5000)", case.program, INITIATOR_ONLY), case.results)
