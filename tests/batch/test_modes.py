"""How a run is started: modes, collect, UNBLOCKING, several runs, runs inside of functions, and what is lazy."""

import pytest
from replies import wait_until
from scripts import check, check_errors, execute, load, plain, refusal, result, results, run

pytestmark = pytest.mark.matrix

IDS = "GB('ShardsIDReader')"


def finished(client, identifier):
    """The pair of an execution that was started without waiting; it is dropped."""
    pair = plain(client.execute_command("RG.GETRESULTSBLOCKING", identifier))
    assert client.execute_command("RG.DROPEXECUTION", identifier) == b"OK"
    return pair


def listed(client):
    return {row[1] for row in client.execute_command("RG.DUMPEXECUTIONS")}


# --- what is answered --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["async", "async_local"])
@pytest.mark.parametrize("collect", [True, False])
def test_modes_on_a_single_server(client, mode, collect):
    client.mset({"a": 1, "b": 2})
    script = "GB().map(lambda r: int(r['value'])).aggregate(0, lambda a, x: a + x, lambda a, x: a + x)"
    assert results(client, f"{script}.run(mode={mode!r}, collect={collect})") == ["3"]


def test_a_pipeline_that_fails_is_no_error_reply(client):
    assert isinstance(execute(client, f"{IDS}.map(lambda x: bad).run()"), list)


def test_run_gives_something_at_once(client):
    script = f"f = {IDS}.run()\nexecute('set', 'k', f is not None)"
    assert results(client, script) == ["1"]
    assert client.get("k") == b"True"


def test_unblocking(client):
    identifier = execute(client, f"{IDS}.run()", "UNBLOCKING")
    assert identifier.startswith("0" * 40 + "-")
    assert finished(client, identifier) == [["1"], []]


def test_unblocking_on_a_cluster(cluster, shards):
    for server, client in zip(cluster.servers, shards, strict=True):
        identifier = execute(client, f"{IDS}.count().run()", "UNBLOCKING")
        assert identifier.startswith(server.node_id + "-")
        assert finished(client, identifier) == [["3"], []]


@pytest.mark.parametrize("keywords", ["convertToStr=False", "None, False"])
def test_without_conversion_to_text(client, keywords):
    assert results(client, f"{IDS}.map(lambda x: 5).run({keywords})") == [5]


def test_positions_of_the_arguments_of_run(cluster, shard):
    assert len(results(shard, f"{IDS}.run(None, True, False)")) == 1
    assert len(results(shard, f"{IDS}.run(None, True, True)")) == 3


# --- one run in a script -----------------------------------------------------------------------------------------

TWO = ["{0}.run()\n{0}.run()", "b = {0}\nb.run()\nb.run()", "for i in range(2):\n    {0}.run()"]


@pytest.mark.parametrize("script", TWO)
def test_a_second_run_is_refused_and_cancels_the_first(client, script):
    marked = IDS + ".foreach(lambda x: execute('set', 'ran', 1))"
    text = refusal(client, script.format(marked))
    assert "gears.error: Can not run more then 1 executions in a single script" in text
    assert results(client, f"{IDS}.run()") == ["1"]
    assert client.exists("ran") == 0


def test_a_refused_run_does_not_count(client):
    script = f"try:\n    {IDS}.run(mode='no')\nexcept Exception:\n    pass\n{IDS}.run()"
    assert results(client, script) == ["1"]


def test_the_second_run_may_be_caught(client):
    script = f"{IDS}.run()\ntry:\n    {IDS}.run()\nexcept redisgears.GearsError as e:\n    execute('set', 'e', str(e))"
    assert results(client, script) == ["1"]
    assert client.get("e") == b"Can not run more then 1 executions in a single script"


# --- runs inside of functions ------------------------------------------------------------------------------------


def test_a_step_may_start_runs(client):
    script = """
def f(x):
    for i in range(5):
        GB('ShardsIDReader').foreach(lambda x: execute('incr', 'nested')).run()
    return 'started'
GB('ShardsIDReader').map(f).run()
"""
    assert results(client, script) == ["started"]
    wait_until(lambda: client.get("nested") == b"5", "the nested runs")


def test_nested_runs_are_dropped_when_they_end(client):
    script = """
def f(x):
    GB('ShardsIDReader').foreach(lambda x: execute('incr', 'nested')).run()
GB('ShardsIDReader').foreach(f).run()
"""
    assert results(client, script) == ["1"]
    wait_until(lambda: client.get("nested") == b"1", "the nested run")
    wait_until(lambda: listed(client) == set(), "the nested run going away")


def test_a_step_on_every_shard_starts_local_runs(cluster, shards):
    script = """
def f(x):
    mark = lambda x: execute('incr', 'n{%s}' % hashtag())
    GB('ShardsIDReader').foreach(mark).run(mode='async_local')
GB('ShardsIDReader').foreach(f).run()
"""
    assert len(results(shards[0], script)) == 3

    def counted():
        return [one.get(key) for one in shards for key in one.keys("n{*}")] == [b"1"] * 3

    wait_until(counted, "one nested run on each shard")


def test_a_step_on_every_shard_starts_runs_everywhere(cluster, shards):
    script = """
def f(x):
    GB('ShardsIDReader').foreach(lambda x: execute('incr', 'n{%s}' % hashtag())).run()
GB('ShardsIDReader').foreach(f).run()
"""
    assert len(results(shards[0], script)) == 3

    def counted():
        return [one.get(key) for one in shards for key in one.keys("n{*}")] == [b"3"] * 3

    wait_until(counted, "three nested runs on each shard")
    for one in shards:
        wait_until(lambda one=one: listed(one) == set(), "the nested runs going away")


def test_the_outer_run_does_not_wait_for_the_inner(client):
    script = """
import time
def wait(x):
    limit = time.monotonic() + 60
    while execute('get', 'go') is None and time.monotonic() < limit:
        time.sleep(0.002)
    execute('set', 'inner', 'done')
def f(x):
    GB('ShardsIDReader').foreach(wait).run()
    return 'outer'
GB('ShardsIDReader').map(f).run()
"""
    assert results(client, script) == ["outer"]
    assert client.get("inner") is None
    client.set("go", "1")
    wait_until(lambda: client.get("inner") == b"done", "the inner run")


def test_runs_of_runs(client):
    script = """
def start(depth):
    def f(x):
        execute('incr', 'depth')
        if depth:
            start(depth - 1)
    GB('ShardsIDReader').foreach(f).run()
start(10)
"""
    assert results(client, script) == ["1"]
    wait_until(lambda: client.get("depth") == b"11", "the innermost run")


def test_a_nested_run_that_fails_leaves_the_outer_alone(client):
    script = """
def f(x):
    GB('ShardsIDReader').map(lambda x: bad).run()
    return 'fine'
GB('ShardsIDReader').map(f).run()
"""
    assert results(client, script) == ["fine"]
    wait_until(lambda: listed(client) == set(), "the nested run going away")


def test_a_nested_run_with_bad_arguments_is_an_error_of_the_step(client):
    pair = run(client, f"{IDS}.map(lambda x: GB().run(mode='sync')).run()")
    assert pair.results == []
    check_errors(pair.errors, ["gears.error: unknown execution mode"])


def test_the_execution_command_is_not_nested(client):
    pair = run(client, f"{IDS}.map(lambda x: execute('RG.PYEXECUTE', '1')).run()")
    check_errors(pair.errors, ["Can not run gears inside a multi exec, lua, or when blocking is not allowed"])


# --- order on a single server ------------------------------------------------------------------------------------

KEEPING = ["", ".map(lambda x: x)", ".collect()", ".repartition(lambda x: x)", ".collect().repartition(lambda x: x)",
           ".filter(lambda x: True).foreach(lambda x: x).flatmap(lambda x: [x])", ".limit(10000)"]  # fmt: skip


@pytest.mark.parametrize("steps", KEEPING)
@pytest.mark.parametrize("count", [1, 10, 3000])
def test_order_is_kept(client, steps, count):
    script = f"GB('PythonReader'){steps}.run(lambda: iter(range({count})), convertToStr=False)"
    assert results(client, script) == list(range(count))


@pytest.mark.parametrize("steps", KEEPING)
def test_order_is_kept_in_a_local_run(shard, steps):
    script = f"GB('PythonReader'){steps}.run(lambda: iter(range(3000)), convertToStr=False, mode='async_local')"
    assert results(shard, script) == list(range(3000))


# --- laziness ----------------------------------------------------------------------------------------------------


def test_nothing_runs_without_run(client):
    script = "GB().foreach(lambda x: execute('set', 'ran', 1)).map(lambda x: bad).count()"
    assert execute(client, script) == "OK"
    assert client.exists("ran") == 0


def test_a_global_limit_stops_no_reader_but_its_result(cluster, shard):
    load(cluster, [("SET", f"k{i}", i) for i in range(100)])
    assert len(results(shard, "GB().map(lambda r: r['key']).collect().limit(5).run()")) == 5


def test_limit_pulls_no_more_through_other_steps(client):
    script = """
def src():
    for v in range(1000):
        execute('incr', 'pulled')
        yield v
b = GB('PythonReader').map(lambda x: x * 2).filter(lambda x: x % 4 == 0).flatmap(lambda x: [x]).foreach(lambda x: x)
b.limit(3).map(lambda x: x + 1).run(src)
"""
    assert results(client, script) == ["1", "5", "9"]
    # 0, 2 and 4 pass; the filter has to see 6 before it can give the one record more.
    assert int(client.get("pulled")) == 7


def test_a_step_behind_a_limit_sees_only_what_passes(client):
    script = "GB('PythonReader').limit(2).foreach(lambda x: execute('incr', 'seen')).run(lambda: iter(range(100)))"
    assert results(client, script) == ["0", "1"]
    assert client.get("seen") == b"2"


# --- many at once ------------------------------------------------------------------------------------------------


def test_many_runs_at_once(cluster, shards):
    load(cluster, [("SET", f"k{i}", i) for i in range(50)])
    waiting = []
    for i in range(30):
        client = shards[i % 3]
        script = f"GB().map(lambda r: int(r['value']) + {i}).aggregate(0, lambda a, x: a + x, lambda a, x: a + x).run()"
        waiting.append((client, execute(client, script, "UNBLOCKING"), i))
    for client, identifier, i in waiting:
        assert finished(client, identifier) == [[str(sum(range(50)) + 50 * i)], []]


def test_runs_in_a_row_leave_nothing(client):
    before = listed(client)
    for i in range(100):
        assert result(client, f"{IDS}.map(lambda x: {i}).run()") == str(i)
    assert listed(client) == before


def test_runs_in_a_row_leave_nothing_on_a_cluster(shards):
    before = [listed(one) for one in shards]
    for i in range(60):
        check(shards[i % 3], f"{IDS}.repartition(lambda x: x).map(lambda x: {i}).run()", [str(i)] * 3)
    wait_until(lambda: [listed(one) for one in shards] == before, "the executions going away")
