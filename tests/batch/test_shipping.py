"""How functions travel to other shards: what goes with them, what is shared there, and what cannot go."""

import pytest
from scripts import Refused, check, check_errors, execute, refusal, results, run, sections

pytestmark = pytest.mark.matrix

IDS = "GB('ShardsIDReader')"

ROWS = sections("shipped.txt", fields=3)


@pytest.mark.parametrize(("expression", "wanted", "head"), [pytest.param(*row[1:], id=row[0]) for row in ROWS])
def test_what_travels(shard, expression, wanted, head):
    check(shard, f"{head}\n{IDS}.map(lambda x: {expression}).run()", [wanted] * 3)


def test_in_every_kind_of_step(shard):
    script = """
n = 2
def src():
    for i in range(n):
        yield i + n
b = GB('PythonReader').map(lambda x: x * n).filter(lambda x: x > n).foreach(lambda x: x + n)
b = b.flatmap(lambda x: [x] * n).accumulate(lambda a, x: (a or 0) + x + n).repartition(lambda x: n)
b = b.groupby(lambda x: n, lambda k, a, x: (a or 0) + x * n).batchgroupby(lambda x: n, lambda k, l: [n, l[0]['value']])
b.map(lambda r: r['value']).run(src)
"""
    # Per shard: 2, 3 -> 4, 6 -> 4, 4, 6, 6 -> 4+4+6+6+4*2 = 28; three shards, each times 2.
    assert results(shard, script) == ["[2, 168]"]


# --- what functions share on a shard -----------------------------------------------------------------------------


def test_globals_are_shared_by_the_functions_of_a_script_on_each_shard(shard):
    script = """
c = 0
def add(x):
    global c
    c += 1
    return x
GB('PythonReader').map(add).filter(lambda x: add(x)).foreach(add).map(lambda x: c).run(lambda: iter([1, 1, 1]))
"""
    # Each record goes through all steps, which count up the same name three times.
    check(shard, script, ["3", "6", "9"] * 3, ordered=False)


def test_globals_of_shards_are_apart(shard):
    script = """
seen = []
def note(x):
    seen.append(x)
    return len(seen)
GB('ShardsIDReader').map(note).run()
"""
    check(shard, script, ["1"] * 3)
    check(shard, script, ["1"] * 3)


def test_a_new_global_made_by_one_step_is_seen_by_the_next(shard):
    script = """
def first(x):
    global made
    made = 'here'
    return x
GB('ShardsIDReader').map(first).map(lambda x: made).run()
"""
    check(shard, script, ["here"] * 3)


def test_globals_are_taken_when_run_is_called(shard):
    script = "c = 1\nb = GB('ShardsIDReader').map(lambda x: c)\nc = 2\nb.run()"
    check(shard, script, ["2"] * 3)


def test_what_is_not_mentioned_does_not_travel(shard):
    # A lock cannot be pickled, but nobody asks for this one.
    script = f"import threading\nlock = threading.Lock()\n{IDS}.map(lambda x: 1).run()"
    check(shard, script, ["1"] * 3)
    script = f"other = 5\n{IDS}.map(lambda x: 'other' in globals()).sort().run()"
    assert results(shard, script)[0] == "False"


def test_the_contacted_shard_uses_the_original_objects(shard):
    script = """
state = []
def f(x):
    return state
GB('ShardsIDReader').map(f).foreach(lambda s: s.append(1)).map(lambda s: len(state)).run()
"""
    check(shard, script, ["1"] * 3)


def test_sessions_do_not_meet_on_other_shards(shard):
    for value in (1, 2, 3):
        check(shard, f"v = {value}\n{IDS}.map(lambda x: v).run()", [str(value)] * 3)
    pair = run(shard, f"{IDS}.map(lambda x: v).run()")
    assert pair.results == []
    check_errors(pair.errors, ["NameError: name 'v' is not defined"] * 3)


# --- what cannot travel ------------------------------------------------------------------------------------------

REFUSED = sections("not_shipped.txt", fields=2)


@pytest.mark.parametrize(("text", "head"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_unserialisable_globals(shard, text, head):
    found = refusal(shard, f"{head}\n{IDS}.map(lambda x: v).run()")
    assert "gears.error: Error occured when serialized a python callback, callback=<lambda> error=" in found
    assert text in found
    check(shard, f"{IDS}.count().run()", ["3"])


def test_the_error_names_the_function(shard):
    script = f"import threading\nlock = threading.Lock()\ndef my_step(x):\n    return lock\n{IDS}.map(my_step).run()"
    assert "callback=my_step error=" in refusal(shard, script)


def test_nothing_needs_to_travel_for_local_runs(shard, client):
    script = (
        f"import threading\nlock = threading.Lock()\n{IDS}.map(lambda x: lock.acquire(False)).run(mode='async_local')"
    )
    check(shard, script, ["True"])
    check(client, script.replace("mode='async_local'", "mode='async'"), ["True"])


def test_an_object_that_cannot_be_loaded_is_an_error_of_each_other_shard(shard):
    script = """
def load():
    raise ValueError('cannot load')
class A:
    def __reduce__(self):
        return load, ()
a = A()
GB('ShardsIDReader').map(lambda x: a).run()
"""
    reply = execute(shard, script)
    # Whether the plan is refused or the other shards fail: a part must not look whole.
    text = reply.text if isinstance(reply, Refused) else " ".join(reply[1])
    assert "cannot load" in text
    check(shard, f"{IDS}.count().run()", ["3"])
