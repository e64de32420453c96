"""Three shards by example: rows L1 to L21 of the interface, over the keys k1 to k9 with the values 1 to 9."""

import pytest
from scripts import check, evaluate, last_line, load, plain, refusal, result, results, run

pytestmark = pytest.mark.matrix

NINE = [f"k{i}" for i in range(1, 10)]
ONE_TO_NINE = [str(i) for i in range(1, 10)]
ONE_TWO_THREE = "PR = GB('PythonReader')\ndef src():\n    for v in [1, 2, 3]:\n        yield v\n"
REMAINDER = "lambda r: int(r['value']) % 3"


@pytest.fixture
def asked(cluster, shard):
    """A client of the contacted shard, with the nine keys spread over the cluster."""
    load(cluster, [("SET", key, value) for key, value in zip(NINE, ONE_TO_NINE, strict=True)])
    return shard


def own_keys(client):
    return sorted(key.decode() for key in client.keys("k*"))


def test_every_shard_has_keys(asked, shards):
    # What the rows below rely on.
    assert all(own_keys(one) for one in shards)


ROWS = [
    ("L1", "GB().count().run()", ["9"]),
    ("L2", "GB().map(lambda r: r['key']).run()", NINE),
    ("L5", "GB().map(lambda r: int(r['value'])).avg().run()", ["5.0"]),
    ("L6", f"GB().countby({REMAINDER}).run()", [f"{{'key': '{i}', 'value': 3}}" for i in range(3)]),
    (
        "L7",
        f"GB().batchgroupby({REMAINDER}, lambda k, l: sorted(x['key'] for x in l)).run()",
        [
            "{'key': '0', 'value': ['k3', 'k6', 'k9']}",
            "{'key': '1', 'value': ['k1', 'k4', 'k7']}",
            "{'key': '2', 'value': ['k2', 'k5', 'k8']}",
        ],
    ),
    ("L9", "GB().repartition(lambda r: 'one').map(lambda r: hashtag()).distinct().count().run()", ["1"]),
    (
        "L10",
        "GB().repartition(lambda r: r['key']).foreach(lambda r: execute('get', r['key'])).count().run()",
        ["9"],
    ),
    ("L12", "GB().map(lambda r: r['key']).limit(1).collect().limit(2).count().run()", ["2"]),
    ("L13-count", ONE_TWO_THREE + "PR.count().run(src)", ["9"]),
    ("L13-aggregate", ONE_TWO_THREE + "PR.aggregate(10, lambda a, x: a + x, lambda a, x: a + x).run(src)", ["58"]),
    ("L13-accumulate", ONE_TWO_THREE + "PR.accumulate(lambda a, x: (a or 0) + x).run(src)", ["6", "6", "6"]),
    ("L15", ONE_TWO_THREE + "PR.countby().map(lambda r: (r['key'], r['value'])).sort().run(src)",
     ["('1', 3)", "('2', 3)", "('3', 3)"]),
    ("L18", "GB('ShardsIDReader').map(lambda x: execute('set', 'z{%s}' % hashtag(), '1')).run()", ["OK"] * 3),
    (
        "L19",
        "c = 5\ndef f(x):\n    global c\n    c += 1\n    return c\nGB('ShardsIDReader').map(f).map(f).run()",
        ["7", "7", "7"],
    ),
    (
        "L20",
        "GB().map(lambda r: (r['key'], r['type'])).run('k1', noScan=True)",
        ["('k1', 'string')", "('k1', 'empty')", "('k1', 'empty')"],
    ),
    ("L21", "GB('KeysOnlyReader').count().run('k1', noScan=True)", ["1"]),
    ("count of keys by KeysOnlyReader", "GB('KeysOnlyReader').count().run('k*')", ["9"]),
    ("sum by aggregate", "GB().aggregate(0, lambda a, r: a + int(r['value']), lambda a, x: a + x).run()", ["45"]),
    ("distinct", f"GB().map({REMAINDER}).distinct().count().run()", ["3"]),
    (
        "groupby",
        f"GB().groupby({REMAINDER}, lambda k, a, r: (a or 0) + int(r['value'])).run()",
        ["{'key': '0', 'value': 18}", "{'key': '1', 'value': 12}", "{'key': '2', 'value': 15}"],
    ),
    ("two global steps", f"GB().repartition(lambda r: r['value']).countby({REMAINDER}).count().run()", ["3"]),
    ("collect twice", "GB().collect().map(lambda r: r['key']).collect().run()", NINE),
    ("map after collect", "GB().collect().map(lambda r: hashtag()).distinct().count().run()", ["1"]),
    ("repartition after collect", "GB().collect().repartition(lambda r: r['key']).map(lambda r: r['key']).run()", NINE),
]  # fmt: skip


@pytest.mark.parametrize(("script", "wanted"), [pytest.param(*row[1:], id=row[0]) for row in ROWS])
def test_row(asked, script, wanted):
    check(asked, script, wanted, ordered=False)


LOCAL = ["collect=False", "mode='async_local'"]


@pytest.mark.parametrize("option", LOCAL)
@pytest.mark.parametrize("i", range(3))
def test_l3_only_the_contacted_shard(asked, shards, i, option):
    found = results(shards[i], f"GB().map(lambda r: r['key']).run({option})")
    assert sorted(found) == own_keys(shards[i])


def test_l4_sort_is_global(asked):
    assert results(asked, "GB().map(lambda r: int(r['value'])).sort().run()") == ONE_TO_NINE
    script = "GB().map(lambda r: int(r['value'])).sort(reverse=False).run()"
    assert results(asked, script) == ONE_TO_NINE[::-1]


def test_l8_local_groups_are_per_shard(asked, shards):
    script = f"GB().localgroupby({REMAINDER}, lambda k, a, r: (a or 0) + 1).map(lambda r: (r['key'], r['value'])).run()"
    found = [eval(one) for one in results(asked, script)]
    wanted = []
    for one in shards:
        keys = [int(one.get(key)) % 3 for key in own_keys(one)]
        wanted += [(str(key), keys.count(key)) for key in set(keys)]
    assert sorted(found) == sorted(wanted)
    assert sum(count for _, count in found) == 9


def test_l11_limit_is_local(asked):
    found = results(asked, "GB().map(lambda r: r['key']).limit(1).run()")
    assert len(found) == 3 and set(found) < set(NINE)


def test_l14_errors_of_three_shards(asked):
    pair = run(asked, ONE_TWO_THREE + "PR.map(lambda x: bad).run(src)")
    assert pair.results == []
    assert len(pair.errors) == 7
    assert {last_line(error) for error in pair.errors} == {"NameError: name 'bad' is not defined"}


@pytest.mark.parametrize(("option", "wanted"), [("convertToStr=False", "PY RECORD"), ("", "re.compile('a')")])
def test_l16_any_object_crosses_shards(asked, option, wanted):
    script = f"import re\nGB('ShardsIDReader').map(lambda x: re.compile('a')).run({option})"
    assert results(asked, script) == [wanted] * 3


def test_l17_keys_of_other_shards_are_refused(asked):
    pair = run(asked, "GB('ShardsIDReader').map(lambda x: execute('get', 'k1')).run()")
    assert pair.results == ["1"] and len(pair.errors) == 2
    for error in map(last_line, pair.errors):
        assert error.startswith("gears.error: ")
        assert "MOVED" in error or "slot" in error


def test_l17_writes_of_keys_of_other_shards_are_refused(cluster, asked):
    pair = run(asked, "GB('ShardsIDReader').map(lambda x: execute('set', 'new', hashtag())).run()")
    assert pair.results == ["OK"] and len(pair.errors) == 2
    with cluster.owner("new").client() as owner:
        tag = result(owner, "GB('ShardsIDReader').map(lambda x: hashtag()).run(mode='async_local')")
        assert plain(owner.get("new")) == tag


def test_hashtags_lead_to_their_shards(cluster, shards):
    tags = [evaluate(one, "hashtag()") for one in shards]
    assert len(set(tags)) == 3
    for server, tag in zip(cluster.servers, tags, strict=True):
        assert cluster.owner(f"any{{{tag}}}thing") is server
        assert not set(tag) & set("{}")


def test_the_tag_of_the_first_shard(shard):
    # It owns slot 0, as a single server does.
    assert evaluate(shard, "hashtag()") == "06S"


@pytest.mark.parametrize("name", ["plain", "with{tag}", "{}empty", "a{b}{c}", "é", "1", "None", "b'x'", "x" * 5000])
def test_repartition_leads_to_the_owner_of_the_key(cluster, shards, name):
    script = f"GB('ShardsIDReader').limit(1).repartition(lambda x: {name!r}).map(lambda x: hashtag()).distinct().run()"
    owner = cluster.servers.index(cluster.owner(name))
    assert results(shards[0], script) == [evaluate(shards[owner], "hashtag()")]


@pytest.mark.parametrize("key", ["1", "None", "b'x'", "('a', 1)", "1.5", "True", "['x']"])
def test_keys_that_are_no_text_travel_by_their_repr(cluster, shards, key):
    script = f"GB('ShardsIDReader').repartition(lambda x: {key}).map(lambda x: hashtag()).distinct().run()"
    owner = cluster.servers.index(cluster.owner(key))
    assert results(shards[0], script) == [evaluate(shards[owner], "hashtag()")]


def test_each_group_is_reduced_on_one_shard(asked):
    script = """
def where(k, a, r):
    return (a or set()) | {hashtag()}
GB().groupby(lambda r: int(r['value']) % 3, where).map(lambda r: len(r['value'])).run()
"""
    assert results(asked, script) == ["1", "1", "1"]


def test_local_runs_pass_global_steps_through(asked, shards):
    own = own_keys(asked)
    check(asked, "GB().repartition(lambda r: 'x').map(lambda r: r['key']).run(mode='async_local')", own, ordered=False)
    assert results(asked, "GB().count().run(mode='async_local')") == [str(len(own))]
    script = "GB().groupby(lambda r: r['key'], lambda k, a, r: hashtag()).count().run(mode='async_local')"
    assert results(asked, script) == [str(len(own))]
    script = "GB().map(lambda r: r['key']).sort().run(mode='async_local')"
    assert results(asked, script) == own


def test_without_collect_other_results_stay(asked, shards):
    found = results(asked, "GB('ShardsIDReader').run(collect=False)")
    assert len(found) == 1
    script = "GB().repartition(lambda r: r['key']).map(lambda r: r['key']).run(collect=False)"
    assert sorted(results(asked, script)) == own_keys(asked)


def test_a_thousand_keys(cluster, shard):
    with cluster.cluster_client() as client:
        for i in range(1000):
            client.set(f"key:{i}", i)
    assert results(
        shard, "GB().map(lambda r: int(r['value'])).aggregate(0, lambda a, x: a + x, lambda a, x: a + x).run()"
    ) == [str(sum(range(1000)))]
    script = "GB().repartition(lambda r: r['value']).map(lambda r: r['key']).run()"
    check(shard, script, [f"key:{i}" for i in range(1000)], ordered=False)


def test_unserialisable_functions_are_refused(shard):
    script = "import threading\nlock = threading.Lock()\nGB('ShardsIDReader').map(lambda x: lock).run()"
    text = refusal(shard, script)
    assert "Error occured when serialized a python callback, callback=<lambda> error=" in text
    assert "lock" in text
