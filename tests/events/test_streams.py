"""Stream registrations on one server: the examples S1 to S12 of the specification, and what is around them."""

import time

import pytest
from replies import flat_map, wait_until
from streams import (
    ARGS,
    NOTE,
    OWN_GROUP,
    add,
    counters,
    data,
    groups,
    only_group,
    only_id,
    register,
    register_stream,
    rows,
    script,
    seen,
    status,
    wait_counters,
    wait_length,
    wait_seen,
    wait_status,
)
from wire import Error, Simple

MODES = ("sync", "async_local", "async")
MODE = pytest.mark.parametrize("mode", MODES)
GROUP = pytest.mark.parametrize("group", [{}, {"sharedGroup": True}, {"group": "team"}], ids=["own", "shared", "named"])
LOCAL = pytest.mark.parametrize("mode", ("async_local", "async"))
SHOW = "foreach(lambda x: execute('rpush', 'seen', repr(x)))"
IDS = "accumulate(lambda a, x: (a or []) + [x['id']]).foreach(lambda l: execute('rpush', 'seen', ' '.join(l)))"
pytestmark = pytest.mark.matrix


@MODE
def test_s1_one_entry(wire, mode):
    register_stream(wire, SHOW, "s*", mode=mode)
    wire.ok("XADD", "s1", "1-1", "a", "b")
    wait_seen(wire, ["{'key': 's1', 'id': '1-1', 'value': {'a': 'b'}}"])
    wait_length(wire, "s1", 0)
    wait_counters(wire, (2, 2, 0, 0))
    add(wire, "s1", "1-2")
    wait_length(wire, "s1", 0)
    wait_counters(wire, (3, 3, 0, 0))


@MODE
def test_s2_entries_from_before(wire, mode):
    add(wire, "s1", "1-1", "1-2", "1-3")
    register_stream(wire, NOTE, "s*", mode=mode, batch=2)
    wait_seen(wire, ["1-1", "1-2", "1-3"])
    wait_length(wire, "s1", 0)
    wait_counters(wire, (3, 3, 0, 0))


@GROUP
@MODE
def test_s3_full_batches(wire, mode, group):
    register_stream(wire, IDS, "s*", mode=mode, batch=3, **group)
    add(wire, "s1", *(f"1-{i}" for i in range(1, 8)))
    wait_seen(wire, ["1-1 1-2 1-3", "1-4 1-5 1-6"])
    wait_length(wire, "s1", 1)
    wait_counters(wire, (3, 3, 0, 0))


@GROUP
@MODE
def test_s4_duration(wire, mode, group):
    register_stream(wire, IDS, "s*", mode=mode, batch=3, duration=100, **group)
    add(wire, "s1", *(f"1-{i}" for i in range(1, 6)))
    wait_seen(wire, ["1-1 1-2 1-3", "1-4 1-5"])
    wait_length(wire, "s1", 0)


@GROUP
@MODE
def test_a_first_entry_alone_waits_for_its_time(wire, mode, group):
    """The registration looks for what is pending first, and that look must not lose count."""
    register_stream(wire, IDS, "s*", mode=mode, batch=3, duration=100, **group)
    for one in ("1-1", "1-2"):
        add(wire, "s1", one)
        wait_length(wire, "s1", 0)
    wait_seen(wire, ["1-1", "1-2"])


@MODE
def test_s5_without_trimming(wire, mode):
    register_stream(wire, NOTE, "s*", mode=mode, trimStream=False)
    add(wire, "s1", "1-1", "1-2")
    wait_seen(wire, ["1-1", "1-2"])
    wait_counters(wire, (3, 3, 0, 0))
    assert wire.ok("XLEN", "s1") == 2


@MODE
def test_s6_continue(wire, mode):
    register_stream(wire, f"{NOTE}.foreach(lambda x: 1 / 0)", "s*", mode=mode, onFailedPolicy="continue")
    for i, one in enumerate(("1-1", "1-2"), 1):
        add(wire, "s1", one)
        wait_counters(wire, (i + 1, 1, i, 0))
    assert seen(wire) == ["1-1", "1-2"]
    wait_length(wire, "s1", 0)
    assert status(wire) == "OK"
    assert b"ZeroDivisionError" in data(wire)["lastError"]


FAILS_FIRST = f"{NOTE}.foreach(lambda x: 1 / 0 if x['id'] == '1-1' else execute('incr', 'done'))"
FOUR = ["1-1", "1-2", "1-3", "1-4"]


@MODE
@pytest.mark.parametrize("first", ["", "map(later)."], ids=["at once", "later"])
def test_an_error_does_not_cost_the_entries_behind_it(wire, mode, first):
    words = {"mode": mode, "batch": 4, "onFailedPolicy": "continue"}
    program = "import asyncio\nasync def later(x):\n    await asyncio.sleep(0.001)\n    return x\n"
    register(wire, program + script(first + FAILS_FIRST, "s*", **words))
    add(wire, "s1", *FOUR)
    wait_counters(wire, (2, 1, 1, 0))
    assert seen(wire) == FOUR and wire.ok("GET", "done") == b"3"
    wait_length(wire, "s1", 0)
    assert status(wire) == "OK" and b"ZeroDivisionError" in data(wire)["lastError"]


@MODE
def test_an_error_that_pauses_ends_the_batch_at_once(wire, mode):
    step = "foreach(lambda x: flat_error('PAUSE here') if x['id'] == '1-2' and execute('exists', 'bad') else 0)"
    wire.ok("SET", "bad", "1")
    register_stream(wire, f"{NOTE}.{step}", "s*", mode=mode, batch=4)
    add(wire, "s1", *FOUR)
    wait_status(wire, "PAUSED")
    assert seen(wire) == FOUR[:2] and wire.ok("XLEN", "s1") == 4
    wire.ok("DEL", "bad", "seen")
    assert wire.call("RG.UNPAUSEREGISTRATIONS", only_id(wire)) == Simple("OK")
    wait_seen(wire, FOUR)
    wait_length(wire, "s1", 0)


@LOCAL
@pytest.mark.parametrize("policy", ["abort", "retry"])
def test_other_policies_end_a_batch_at_its_first_error(wire, mode, policy):
    register_stream(wire, FAILS_FIRST, "s*", mode=mode, batch=4, onFailedPolicy=policy, onFailedRetryInterval=100)
    add(wire, "s1", *FOUR)
    wait_status(wire, {"abort": "ABORTED", "retry": "WAITING_FOR_RETRY_ON_FAILURE"}[policy])
    assert seen(wire) == FOUR[:1] and wire.ok("XLEN", "s1") == 4


@LOCAL
def test_s7_abort(wire, mode):
    register_stream(wire, f"{NOTE}.foreach(lambda x: 1 / 0)", "s*", mode=mode, onFailedPolicy="abort")
    add(wire, "s1", "1-1", "1-2")
    wait_status(wire, "ABORTED")
    add(wire, "s1", "1-3")
    assert seen(wire) == ["1-1"]
    assert wire.ok("XLEN", "s1") == 3
    assert counters(wire) == (2, 1, 1, 0)


@LOCAL
def test_s8_retry(wire, mode):
    register_stream(
        wire,
        f"{NOTE}.foreach(lambda x: 1 / int(execute('get', 'good') or 0))",
        "s*",
        mode=mode,
        onFailedPolicy="retry",
        onFailedRetryInterval=0,
    )
    add(wire, "s1", "1-1", "1-2")
    wait_until(lambda: len(seen(wire)) >= 3, "retries")
    assert set(seen(wire)) == {"1-1"}
    assert wire.ok("XLEN", "s1") == 2
    wire.ok("SET", "good", "1")
    wait_length(wire, "s1", 0)
    tried = seen(wire)
    assert tried[-1] == "1-2" and set(tried[:-1]) == {"1-1"}
    wait_status(wire, "OK")
    assert data(wire)["lastError"] is None


def test_s8_status_and_pause(wire):
    register_stream(wire, f"{NOTE}.foreach(lambda x: 1 / 0)", "s*", onFailedPolicy="retry", onFailedRetryInterval=1)
    add(wire, "s1", "1-1", "1-2")
    wait_status(wire, "WAITING_FOR_RETRY_ON_FAILURE")
    wait_until(lambda: seen(wire) == ["1-1", "1-1"], "the first retry")
    assert wire.ok("XLEN", "s1") == 2


def test_s9_what_a_filter_drops_is_acknowledged(wire):
    register_stream(wire, "filter(lambda x: False)", "s*", mode="sync")
    add(wire, "s1", "1-1")
    assert wire.ok("XLEN", "s1") == 0


@MODE
def test_s10_an_exact_name(wire, mode):
    add(wire, "s1", "1-1")
    add(wire, "s12", "1-1")
    register_stream(wire, SHOW, "s1", mode=mode)
    add(wire, "s12", "1-2")
    add(wire, "s1", "1-2")
    wait_length(wire, "s1", 0)
    assert len(seen(wire)) == 2
    assert wire.ok("XLEN", "s12") == 2


def test_s11_a_shared_group_shares(wire):
    text = script("foreach(lambda x: execute('rpush', 'seen', 'NAME'))", "s*", mode="sync", sharedGroup=True)
    register(wire, text.replace("NAME", "first") + "\n" + text.replace("NAME", "second"))
    add(wire, "s1", *(f"1-{i}" for i in range(1, 7)))
    wait_seen(wire, ["second"] * 6)
    wait_length(wire, "s1", 0)


@MODE
def test_two_registrations_both_see_every_entry(wire, mode):
    text = script("foreach(lambda x: execute('rpush', 'NAME', x['id']))", "s*", mode=mode)
    ids = [f"1-{i}" for i in range(1, 7)]
    add(wire, "s1", *ids[:3])
    register(wire, text.replace("NAME", "first") + "\n" + text.replace("NAME", "second"))
    add(wire, "s1", *ids[3:])
    wait_seen(wire, ids, "first")
    wait_seen(wire, ids, "second")
    wait_length(wire, "s1", 0)


def test_s12_a_stream_written_by_a_sync_handler(wire):
    register(
        wire,
        "GB().foreach(lambda x: execute('xadd', 'log', '*', 'k', x['key'])).register('k*', mode='sync')\n"
        + script("foreach(lambda x: execute('rpush', 'seen', x['value']['k']))", "log", mode="sync"),
    )
    wire.ok("SET", "k1", "1")
    wire.ok("SET", "k2", "2")
    wait_seen(wire, ["k1", "k2"])
    wait_length(wire, "log", 0)


def test_what_a_registration_shows(wire):
    register_stream(
        wire, NOTE, "s*", batch=7, duration=8, onFailedPolicy="Retry", onFailedRetryInterval=9, trimStream=False
    )
    ((_, fields),) = rows(wire)
    assert flat_map(fields["args"], ARGS) == {
        "batchSize": 7,
        "durationMS": 8,
        "stream": b"s*",
        "trimStream": 0,
        "onFailedPolicy": b"retry",
        "retryInterval": 9,
    }
    assert fields["mode"] == b"async" and fields["status"] == b"OK"
    assert fields["lastEstimatedLagMS"] == 0 and fields["avgEstimatedLagMS"] == b"0"


def test_the_lag_is_that_of_the_first_entry_of_the_last_batch(wire):
    register_stream(wire, NOTE, "s*", batch=2, mode="async_local")
    wire.ok("XADD", "s1", "*", "f", "v")
    start = time.monotonic()
    wait_until(lambda: time.monotonic() > start + 0.13, "a moment")
    wire.ok("XADD", "s1", "*", "f", "v")
    wait_counters(wire, (2, 2, 0, 0))
    fields = data(wire)
    assert 120 <= fields["lastEstimatedLagMS"] < 60_000
    assert float(fields["avgEstimatedLagMS"]) == pytest.approx(fields["lastEstimatedLagMS"] / 2, abs=0.5)


def test_the_group_stands_where_the_registration_does(wire):
    add(wire, "s1", "1-1", "1-2", "1-3")
    wire.ok("XTRIM", "s1", "MAXLEN", "2")
    register_stream(wire, NOTE, "s*", "ID", "mine", trimStream=False, mode="async_local")
    wait_seen(wire, ["1-2", "1-3"])
    wait_until(lambda: only_group(wire, "s1")["last-delivered-id"] == b"1-3", "the acknowledgement")
    group = only_group(wire, "s1")
    assert group["name"].decode() == f"{OWN_GROUP}mine:s*:0"
    assert group["pending"] == 0 and group["lag"] == 0 and group["entries-read"] == 3
    (consumer,) = wire.ok("XINFO", "CONSUMERS", "s1", group["name"])
    assert flat_map(consumer)["name"] == b"__gears_client__"


def test_an_upgrade_goes_on_where_the_old_version_stood(wire):
    ids = [f"1-{i}" for i in range(1, 5)]
    register_stream(wire, NOTE, "s*", "ID", "mine", trimStream=False, mode="async_local")
    add(wire, "s1", *ids[:2])
    wait_seen(wire, ids[:2])
    wait_until(lambda: only_group(wire, "s1")["last-delivered-id"] == b"1-2", "the acknowledgement")
    register_stream(wire, NOTE, "s*", "ID", "mine", "UPGRADE", trimStream=False, mode="async_local")
    add(wire, "s1", *ids[2:])
    wait_seen(wire, ids)


def test_a_group_of_a_name(wire):
    add(wire, "s1", "1-1", "1-2")
    register_stream(wire, NOTE, "s*", mode="async_local", group="team", trimStream=False)
    wait_seen(wire, ["1-1", "1-2"])
    wait_until(lambda: only_group(wire, "s1")["pending"] == 0, "the acknowledgement")
    assert list(groups(wire, "s1")) == ["team"]
    # Another consumer takes its share.
    wire.ok("XGROUP", "SETID", "s1", "team", "$")
    add(wire, "s1", "1-3")
    wait_seen(wire, ["1-1", "1-2", "1-3"])


def test_pending_entries_of_a_shared_group_come_first(wire):
    add(wire, "s1", "1-1", "1-2", "1-3")
    wire.ok("XGROUP", "CREATE", "s1", "team", "0")
    wire.ok("XREADGROUP", "GROUP", "team", "__gears_client__", "COUNT", "2", "STREAMS", "s1", ">")
    wire.ok("XDEL", "s1", "1-1")
    register_stream(wire, IDS, "s*", mode="async_local", group="team", batch=10)
    wait_seen(wire, ["1-2", "1-3"])
    wait_length(wire, "s1", 0)
    assert only_group(wire, "s1")["pending"] == 0


def test_a_foreign_group_member_keeps_its_entries(wire):
    add(wire, "s1", "1-1", "1-2", "1-3")
    wire.ok("XGROUP", "CREATE", "s1", "team", "0")
    wire.ok("XREADGROUP", "GROUP", "team", "other", "COUNT", "2", "STREAMS", "s1", ">")
    register_stream(wire, NOTE, "s*", mode="async_local", group="team")
    wait_seen(wire, ["1-3"])
    wait_counters(wire, (2, 2, 0, 0))
    assert wire.ok("XLEN", "s1") == 3, "what another member has pending is not removed"


@MODE
def test_pause_error(wire, mode):
    step = f"{NOTE}.foreach(lambda x: flat_error('PAUSE for now') if execute('exists', 'bad') else 0)"
    wire.ok("SET", "bad", "1")
    register_stream(wire, step, "s*", mode=mode)
    add(wire, "s1", "1-1")
    wait_status(wire, "PAUSED")
    add(wire, "s1", "1-2")
    assert seen(wire) == ["1-1"] and wire.ok("XLEN", "s1") == 2
    assert data(wire)["lastError"] == b"PAUSE for now"
    wire.ok("DEL", "bad", "seen")
    assert wire.call("RG.UNPAUSEREGISTRATIONS", only_id(wire)) == Simple("OK")
    wait_seen(wire, ["1-1", "1-2"])
    wait_length(wire, "s1", 0)
    assert status(wire) == "OK"


@MODE
def test_paused_and_unpaused(wire, mode):
    register_stream(wire, NOTE, "s*", mode=mode)
    add(wire, "s1", "1-1")
    wait_seen(wire, ["1-1"])
    assert wire.call("RG.PAUSEREGISTRATIONS", only_id(wire)) == Simple("OK")
    assert status(wire) == "PAUSED"
    add(wire, "s1", "1-2")
    add(wire, "s2", "1-1")
    assert wire.call("RG.PAUSEREGISTRATIONS", only_id(wire)) == Simple("OK")
    assert wire.ok("XLEN", "s1") == 1 and seen(wire) == ["1-1"]
    assert wire.call("RG.UNPAUSEREGISTRATIONS", only_id(wire)) == Simple("OK")
    wait_until(lambda: sorted(seen(wire)) == ["1-1", "1-1", "1-2"], "both streams")
    wait_length(wire, "s1", 0)
    before = counters(wire)
    assert wire.call("RG.UNPAUSEREGISTRATIONS", only_id(wire)) == Simple("OK")
    add(wire, "s1", "1-3")
    wait_counters(wire, (before[0] + 1, before[1] + 1, 0, 0))


def test_unpausing_ends_an_abort(wire):
    wire.ok("SET", "bad", "1")
    step = f"{NOTE}.foreach(lambda x: 1 / 0 if execute('exists', 'bad') else 0)"
    register_stream(wire, step, "s*", mode="async_local", onFailedPolicy="abort")
    add(wire, "s1", "1-1", "1-2")
    wait_status(wire, "ABORTED")
    wire.ok("DEL", "bad")
    assert wire.call("RG.UNPAUSEREGISTRATIONS", only_id(wire)) == Simple("OK")
    wait_seen(wire, ["1-1", "1-1", "1-2"])
    assert status(wire) == "OK"


@GROUP
@pytest.mark.parametrize(("mode", "prefix"), [("async_local", "s1"), ("async", "s*")])
def test_unpausing_ends_the_wait_for_a_retry(wire, mode, prefix, group):
    wire.ok("SET", "bad", "1")
    step = f"{NOTE}.foreach(lambda x: 1 / 0 if execute('exists', 'bad') else 0)"
    register_stream(wire, step, prefix, mode=mode, onFailedPolicy="retry", onFailedRetryInterval=1000, **group)
    add(wire, "s1", "1-1", "1-2")
    wait_status(wire, "WAITING_FOR_RETRY_ON_FAILURE")
    assert wire.call("RG.UNPAUSEREGISTRATIONS", only_id(wire)) == Simple("OK")
    wait_until(lambda: counters(wire)[2] == 2, "the retry")
    wait_status(wire, "WAITING_FOR_RETRY_ON_FAILURE")
    wire.ok("DEL", "bad")
    assert wire.call("RG.UNPAUSEREGISTRATIONS", only_id(wire)) == Simple("OK")
    wait_seen(wire, ["1-1", "1-1", "1-1", "1-2"])
    wait_length(wire, "s1", 0)
    assert status(wire) == "OK"


def test_the_running_batch_is_finished_by_a_pause(wire, other_wire):
    step = (
        "def slow(x):\n"
        "    import time\n"
        "    execute('rpush', 'begun', x['id'])\n"
        "    while not execute('exists', 'go'): time.sleep(0.005)\n"
        "    execute('rpush', 'seen', x['id'])\n"
    )
    register(wire, step + script("foreach(slow)", "s*", mode="async_local"))
    add(wire, "s1", "1-1", "1-2")
    wait_until(lambda: wire.ok("LLEN", "begun") == 1, "the first batch")
    assert wire.call("RG.PAUSEREGISTRATIONS", "ABORTPENDING", only_id(wire)) == Simple("OK")
    wire.ok("SET", "go", "1")
    wait_seen(wire, ["1-1"])
    wait_length(wire, "s1", 1)
    assert counters(wire) == (2, 2, 0, 0)


def test_unregistering_finishes_the_running_batch_only(wire):
    step = (
        "def slow(x):\n"
        "    import time\n"
        "    execute('rpush', 'begun', x['id'])\n"
        "    while not execute('exists', 'go'): time.sleep(0.005)\n"
    )
    register(wire, step + script("foreach(slow)", "s*", mode="async_local"))
    add(wire, "s1", "1-1", "1-2")
    wait_until(lambda: wire.ok("LLEN", "begun") == 1, "the first batch")
    assert wire.call("RG.UNREGISTER", only_id(wire)) == Simple("OK")
    wire.ok("SET", "go", "1")
    # Nobody can go on with its group.
    wait_until(lambda: not groups(wire, "s1"), "the end of the last batch")
    add(wire, "s1", "1-3")
    assert [entry[0] for entry in wire.ok("XRANGE", "s1", "-", "+")] == [b"1-2", b"1-3"]
    assert wire.ok("LLEN", "begun") == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("batch='1'", "batch argument must be a number"),
        ("batch=-1", "batch argument must be a number"),
        ("batch=10**30", "batch argument must be a number"),
        ("duration=-1", "duration argument must be a number"),
        ("onFailedRetryInterval=-1", "retryInterval argument must be a number"),
        ("onFailedPolicy=1", "onFailedPolicy must be a string (Continue/Abort/Retry)"),
        ("onFailedPolicy='x'", "onFailedPolicy must be Continue/Abort/Retry"),
        ("trimStream=1", "pyTrimmStream argument must be a boolean"),
        ("mode='sync', onFailedPolicy='abort'", "ExecutionMode sync can only be combined with OnFailedPolicy Continue"),
        ("group=''", "group argument must be a string that is not empty"),
        ("group='a', sharedGroup=True", "group argument can not be given with sharedGroup"),
        ("group='__gears_consumer_group__:x:0'", "group argument can not begin with __gears_consumer_group__:"),
        ("sharedGroup=1", "sharedGroup argument must be a boolean"),
        ("atomicBatch=1", "atomicBatch argument must be a boolean"),
        ("atomicBatch=True", "atomicBatch can not be combined with ExecutionMode async"),
        ("deadLetter='d'", "deadLetter can only be combined with OnFailedPolicy Retry"),
        ("maxRetries=1", "maxRetries can only be given with deadLetter"),
        ("onFailedPolicy='retry', deadLetter='s*'", "deadLetter argument must be another stream"),
        ("onFailedPolicy='retry', deadLetter='d', maxRetries=-1", "maxRetries argument must be a number"),
    ],
)
def test_refused_words(wire, words, text):
    reply = wire.call("RG.PYEXECUTE", f"GB('StreamReader').register('s*', {words})")
    assert isinstance(reply, Error) and text in reply.text


@pytest.mark.parametrize("mode", ("sync", "async_local", "async"))
def test_executions_that_were_over_while_there_was_no_limit_count(wire, mode):
    wire.ok("RG.CONFIGSET", "MaxExecutionsPerRegistration", "0")
    register_stream(wire, NOTE, "s1", mode=mode)
    add(wire, "s1", *(f"{number}-1" for number in range(1, 151)))
    wait_counters(wire, (151, 151, 0, 0))
    wait_until(lambda: len(wire.ok("RG.DUMPEXECUTIONS")) == 150, "all executions being listed")
    wire.ok("RG.CONFIGSET", "MaxExecutionsPerRegistration", "3")
    add(wire, "s1", "151-1")
    wait_until(lambda: len(wire.ok("RG.DUMPEXECUTIONS")) == 3, "the older ones leaving")
