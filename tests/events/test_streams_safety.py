"""Streams whatever happens: restarts, promotion, failures, and others who change the streams meanwhile."""

import contextlib

import localcluster
import pytest
from replies import flat_map, wait_until
from streams import (
    NOTE,
    add,
    counters,
    data,
    fill,
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
from wire import Simple, Wire, encode

MODES = ("sync", "async_local", "async")
MODE = pytest.mark.parametrize("mode", MODES)
GROUP = pytest.mark.parametrize("group", [{}, {"sharedGroup": True}], ids=["own", "shared"])
# Notes the ids of each batch.
IDS = "accumulate(lambda a, x: (a or []) + [x['id']]).foreach(lambda l: execute('rpush', 'seen', ' '.join(l)))"
AOF = ("--appendonly", "yes", "--appendfsync", "always")
# A step that waits for the key `go`.
HOLD = (
    "def hold(x):\n"
    "    import time\n"
    "    execute('rpush', 'begun', x['id'])\n"
    "    while not execute('exists', 'go'): time.sleep(0.005)\n"
    "    execute('rpush', 'seen', x['id'])\n"
)


# --- restarts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept_by", ["dump", "aof"])
@pytest.mark.parametrize("group", [{}, {"sharedGroup": True}])
def test_a_restart_begins_with_what_was_not_acknowledged(fresh, kept_by, group):
    server = fresh(server_args=AOF if kept_by == "aof" else ())
    with Wire(server.port) as wire:
        register(wire, HOLD + script("foreach(hold)", "s*", mode="async_local", batch=2, **group))
        add(wire, "s1", *(f"1-{i}" for i in range(1, 6)))
        wait_until(lambda: wire.ok("LLEN", "begun") == 1, "the first batch")
        if kept_by == "dump":
            wire.ok("SAVE")
    server.restart()
    with Wire(server.port) as wire:
        wire.ok("SET", "go", "1")
        wait_seen(wire, [f"1-{i}" for i in range(1, 6)])
        wait_length(wire, "s1", 0)
        assert status(wire) == "OK"


@pytest.mark.matrix
def test_debug_reload(wire):
    register_stream(wire, NOTE, "s*", mode="async_local", trimStream=False)
    add(wire, "s1", "1-1", "1-2")
    wait_seen(wire, ["1-1", "1-2"])
    wait_until(lambda: only_group(wire, "s1")["last-delivered-id"] == b"1-2", "the acknowledgement")
    assert wire.call("DEBUG", "RELOAD") == Simple("OK")
    add(wire, "s1", "1-3")
    wait_seen(wire, ["1-1", "1-2", "1-3"])
    add(wire, "s1", "1-4")
    wait_seen(wire, ["1-1", "1-2", "1-3", "1-4"])


@contextlib.contextmanager
def pair_of_servers():
    """A master and its replica, which are no cluster."""
    module = localcluster.DEFAULT_MODULE
    master = localcluster.start_server(module=module)
    try:
        replica = localcluster.start_server(module=module)
        try:
            replica.command("REPLICAOF", localcluster.HOST, master.port)
            wait_until(
                lambda: b"up" in replica.command("INFO", "replication").split(b"master_link_status:")[1][:4], "the link"
            )
            yield master, replica
        finally:
            replica.stop()
    finally:
        master.stop()


@MODE
def test_a_promoted_replica_goes_on(mode):
    with pair_of_servers() as (master, replica), Wire(master.port) as wire, Wire(replica.port) as other:
        register_stream(wire, NOTE, "s*", mode=mode, trimStream=False)
        add(wire, "s1", "1-1", "1-2")
        wait_seen(wire, ["1-1", "1-2"])
        wait_until(lambda: only_group(wire, "s1")["last-delivered-id"] == b"1-2", "the acknowledgement")
        # Left for the replica.
        wire.ok("XADD", "t", "1-1", "f", "v")
        wire.ok("RENAME", "t", "other")
        wait_until(lambda: other.ok("EXISTS", "other") == 1 and other.ok("LLEN", "seen") == 2, "the replica")
        assert only_group(other, "s1") == only_group(wire, "s1")
        master.kill()
        assert counters(other) == (0, 0, 0, 0), "a replica consumes nothing"
        other.ok("REPLICAOF", "NO", "ONE")
        add(other, "s1", "1-3")
        wait_seen(other, ["1-1", "1-2", "1-3"])


def test_what_was_under_way_is_done_by_the_promoted_replica():
    with pair_of_servers() as (master, replica), Wire(master.port) as wire, Wire(replica.port) as other:
        register(wire, HOLD + script("foreach(hold)", "s*", mode="async_local", batch=2))
        add(wire, "s1", *(f"1-{i}" for i in range(1, 6)))
        wait_until(lambda: wire.ok("LLEN", "begun") == 1, "the first batch")
        wait_until(lambda: other.ok("XLEN", "s1") == 5, "the replica")
        master.kill()
        other.ok("REPLICAOF", "NO", "ONE")
        other.ok("SET", "go", "1")
        wait_seen(other, [f"1-{i}" for i in range(1, 6)])
        wait_length(other, "s1", 0)


@pytest.mark.matrix
@MODE
def test_a_replica_gets_what_its_master_has(mode):
    with pair_of_servers() as (master, replica), Wire(master.port) as wire, Wire(replica.port) as other:
        register_stream(wire, NOTE, "s*", mode=mode)
        add(wire, "s1", *(f"1-{i}" for i in range(1, 6)))
        wait_length(wire, "s1", 0)
        wait_until(lambda: other.ok("XLEN", "s1") == 0 and other.ok("LLEN", "seen") == 5, "the replica")
        assert only_group(other, "s1") == only_group(wire, "s1")


@pytest.mark.matrix
def test_a_replica_loses_the_groups_of_what_is_removed_too():
    with pair_of_servers() as (master, replica), Wire(master.port) as wire, Wire(replica.port) as other:
        for prefix in ("s*", "s1"):
            register_stream(wire, NOTE, prefix, mode="async_local")
        add(wire, "s1", "1-1")
        wait_length(wire, "s1", 0)
        wait_until(lambda: other.ok("LLEN", "seen") == 2 and groups(other, "s1") == groups(wire, "s1"), "the replica")
        assert len(groups(other, "s1")) == 2
        for one, _ in rows(wire):
            assert wire.call("RG.UNREGISTER", one) == Simple("OK")
        wait_until(lambda: not groups(wire, "s1"), "the groups being removed")
        wait_until(lambda: not groups(other, "s1"), "the groups being removed on the replica")


# --- failures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [{}, {"sharedGroup": True}])
def test_retries_keep_the_order(wire, group):
    step = "foreach(lambda x: 1 / 0 if x['id'] == '1-2' and execute('incr', 'tries') < 4 else 0)"
    register_stream(
        wire, f"{step}.{NOTE}", "s*", mode="async_local", onFailedPolicy="retry", onFailedRetryInterval=0, **group
    )
    add(wire, "s1", *(f"1-{i}" for i in range(1, 6)))
    wait_seen(wire, [f"1-{i}" for i in range(1, 6)])
    wait_length(wire, "s1", 0)
    wait_counters(wire, (9, 6, 3, 0))


def test_a_failed_batch_is_tried_again_as_it_was(wire):
    step = "foreach(lambda x: 1 / 0 if execute('incr', 'tries') < 3 else 0)"
    register_stream(
        wire, f"{IDS}.{step}", "s*", mode="async_local", batch=2, onFailedPolicy="retry", onFailedRetryInterval=0
    )
    add(wire, "s1", *(f"1-{i}" for i in range(1, 6)))
    wait_seen(wire, ["1-1 1-2", "1-1 1-2", "1-1 1-2", "1-3 1-4"])
    wait_length(wire, "s1", 1)


def test_one_failing_stream_does_not_stop_others(wire):
    step = f"foreach(lambda x: 1 / 0 if x['key'] == 's1' else 0).{NOTE}"
    register_stream(wire, step, "s*", mode="async_local", onFailedPolicy="retry", onFailedRetryInterval=100)
    add(wire, "s1", "1-1")
    wait_status(wire, "WAITING_FOR_RETRY_ON_FAILURE")
    add(wire, "s2", "2-1")
    wait_seen(wire, ["2-1"])
    assert status(wire) == "WAITING_FOR_RETRY_ON_FAILURE"
    assert wire.ok("XLEN", "s1") == 1


@pytest.mark.matrix
@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("group", [{}, {"sharedGroup": True}])
def test_poison_goes_to_the_dead_letter_stream(wire, atomic, group):
    step = "foreach(lambda x: flat_error('poison') if 'bad' in x['value'] else 0)"
    register_stream(
        wire,
        f"{step}.{NOTE}",
        "s*",
        mode="async_local",
        onFailedPolicy="retry",
        onFailedRetryInterval=0,
        maxRetries=2,
        deadLetter="dead",
        atomicBatch=atomic,
        **group,
    )
    wire.ok("XADD", "s1", "1-1", "f", "v")
    wire.ok("XADD", "s1", "1-2", "bad", "x", "f", "y")
    wire.ok("XADD", "s1", "1-3", "f", "v")
    wait_seen(wire, ["1-1", "1-3"])
    wait_length(wire, "s1", 0)
    ((_, fields),) = wire.ok("XRANGE", "dead", "-", "+")
    assert fields == [
        *(b"bad", b"x", b"f", b"y"),
        *(b"oxigears:source", b"s1", b"oxigears:id", b"1-2"),
        *(b"oxigears:reason", b"poison", b"oxigears:tries", b"3"),
    ]
    wait_counters(wire, (6, 3, 3, 0))
    assert status(wire) == "OK" and data(wire)["lastError"] is None


# --- others change the streams -----------------------------------------------------------------------------------


@MODE
def test_entries_that_others_delete_or_add_are_not_lost(wire, mode):
    register_stream(wire, NOTE, "s*", mode=mode, batch=3)
    add(wire, "s1", "1-1", "1-2")
    wire.ok("XDEL", "s1", "1-1")
    add(wire, "s1", "1-3")
    wait_until(lambda: counters(wire)[0] == 1, "the look at the stream")
    assert seen(wire) == []
    add(wire, "s1", "1-4")
    wait_seen(wire, ["1-2", "1-3", "1-4"])
    wait_length(wire, "s1", 0)
    add(wire, "s1", *(f"2-{i}" for i in range(1, 6)))
    wait_seen(wire, ["1-2", "1-3", "1-4", "2-1", "2-2", "2-3"])
    wait_length(wire, "s1", 2)


def test_trimming_leaves_what_came_meanwhile(wire, other_wire):
    register(wire, HOLD + script("foreach(hold)", "s*", mode="async_local"))
    add(wire, "s1", "1-1")
    wait_until(lambda: wire.ok("LLEN", "begun") == 1, "the first batch")
    add(wire, "s1", "1-2", "1-3")
    wire.ok("XDEL", "s1", "1-2")
    wire.ok("SET", "go", "1")
    wait_seen(wire, ["1-1", "1-3"])
    wait_length(wire, "s1", 0)


def test_an_entry_stays_until_the_slowest_registration_has_passed_it(wire):
    register(wire, script("foreach(lambda x: execute('rpush', 'fast', x['id']))", "s*", mode="async_local"))
    register(wire, HOLD + script("foreach(hold)", "s*", mode="async_local", trimStream=False))
    add(wire, "s1", "1-1", "1-2")
    wait_seen(wire, ["1-1", "1-2"], "fast")
    assert wire.ok("XLEN", "s1") == 2
    wire.ok("SET", "go", "1")
    wait_seen(wire, ["1-1", "1-2"])
    # The slow one does not trim itself, yet nobody else comes by any more.
    wait_length(wire, "s1", 0)
    add(wire, "s1", "1-3")
    wait_seen(wire, ["1-1", "1-2", "1-3"])
    wait_length(wire, "s1", 0)


@pytest.mark.matrix
@MODE
@pytest.mark.parametrize("slow_trims", [False, True])
def test_entries_that_two_registrations_have_passed_are_removed(wire, mode, slow_trims):
    """It is enough that one of them has asked for it, whichever is the last."""
    pause = "import time\ndef late(x):\n    time.sleep(0.05)\n    execute('rpush', 'slow', x['id'])\n"
    fast = "foreach(lambda x: execute('rpush', 'fast', x['id']))"
    register(
        wire,
        pause
        + script(fast, "s*", mode=mode, trimStream=not slow_trims)
        + "\n"
        + script("foreach(late)", "s*", mode=mode, trimStream=slow_trims),
    )
    for key in "s1", "s2":
        add(wire, key, "1-1", "1-2", "1-3")
    for key in "s1", "s2":
        wait_length(wire, key, 0)
    assert sorted(seen(wire, "fast")) == sorted(seen(wire, "slow")) == sorted(["1-1", "1-2", "1-3"] * 2)


@MODE
def test_entries_stay_if_no_registration_removes_them(wire, mode):
    for key in "fast", "slow":
        register_stream(
            wire, f"foreach(lambda x: execute('rpush', '{key}', x['id']))", "s*", mode=mode, trimStream=False
        )
    add(wire, "s1", "1-1", "1-2", "1-3")
    for key in "fast", "slow":
        wait_seen(wire, ["1-1", "1-2", "1-3"], key)

    def acknowledged():
        return [group["last-delivered-id"] for group in groups(wire, "s1").values()] == [b"1-3"] * 2

    wait_until(acknowledged, "both groups having passed everything")
    assert wire.ok("XLEN", "s1") == 3


@pytest.mark.matrix
@MODE
def test_a_stream_that_is_deleted_begins_anew(wire, mode):
    register_stream(wire, NOTE, "s*", mode=mode)
    add(wire, "s1", "5-1")
    wait_seen(wire, ["5-1"])
    wait_length(wire, "s1", 0)
    wire.ok("DEL", "s1")
    add(wire, "s1", "1-1")
    wait_seen(wire, ["5-1", "1-1"])
    wire.ok("FLUSHALL")
    add(wire, "s1", "1-1")
    wait_seen(wire, ["1-1"])


def test_a_stream_that_is_deleted_under_way(wire):
    register(wire, HOLD + script("foreach(hold)", "s*", mode="async_local"))
    add(wire, "s1", "5-1", "5-2")
    wait_until(lambda: wire.ok("LLEN", "begun") == 1, "the first batch")
    wire.ok("DEL", "s1")
    add(wire, "s1", "1-1")
    wire.ok("SET", "go", "1")
    wait_seen(wire, ["5-1", "1-1"])
    wait_length(wire, "s1", 0)


@pytest.mark.parametrize(
    "by", [("FLUSHALL",), ("FLUSHDB",), ("SWAPDB", "0", "7"), ("DEL", "s1"), ("XGROUP", "DESTROY")]
)
@pytest.mark.parametrize("again", ["in between", "afterwards"])
def test_a_batch_whose_stream_or_group_is_lost_acknowledges_nothing(wire, by, again):
    """What comes instead is run, once."""
    wait = (
        "def hold(x):\n"
        "    import time\n"
        "    if x['value']['f'] == 'first':\n"
        "        execute('rpush', 'begun', x['id'])\n"
        "        while not execute('exists', 'go'): time.sleep(0.005)\n"
        "    execute('rpush', 'seen', x['id'])\n"
    )
    register(wire, wait + script("foreach(hold)", "s*", mode="async_local"))
    wire.ok("XADD", "s1", "5-1", "f", "first")
    wait_until(lambda: wire.ok("LLEN", "begun") == 1, "the first batch")
    destroyed = by[0] == "XGROUP"
    wire.ok(*by, *(("s1", only_group(wire, "s1")["name"]) if destroyed else ()))
    if again == "in between":
        add(wire, "s1", *(("5-2", "5-3") if destroyed else ("1-1", "5-1", "5-2")))
    wire.ok("SET", "go", "1")
    first = ["5-1"]
    wait_until(lambda: seen(wire)[:1] == first, "the end of the first batch")
    if again == "afterwards":
        add(wire, "s1", *(("5-2", "5-3") if destroyed else ("1-1", "5-1", "5-2")))
    rest = ["5-1", "5-2", "5-3"] if destroyed else ["1-1", "5-1", "5-2"]
    wait_seen(wire, first + rest)
    wait_length(wire, "s1", 0)
    add(wire, "s1", "6-1")
    wait_seen(wire, [*first, *rest, "6-1"])


@MODE
def test_a_stream_that_is_renamed_or_restored(wire, mode):
    register_stream(wire, NOTE, "s*", mode=mode, trimStream=False)
    add(wire, "other", "1-1")
    wire.ok("RENAME", "other", "s1")
    wait_seen(wire, ["1-1"])
    wait_until(lambda: only_group(wire, "s1")["last-delivered-id"] == b"1-1", "the acknowledgement")
    wire.ok("RENAME", "s1", "s2")
    add(wire, "s2", "1-2")
    wait_seen(wire, ["1-1", "1-2"])
    wait_until(lambda: only_group(wire, "s2")["last-delivered-id"] == b"1-2", "the acknowledgement")
    wire.ok("COPY", "s2", "s3")
    add(wire, "s3", "1-3")
    wait_seen(wire, ["1-1", "1-2", "1-3"])


@MODE
def test_other_types_are_left_alone(wire, mode):
    wire.ok("SET", "s0", "x")
    register_stream(wire, NOTE, "s*", mode=mode)
    add(wire, "s1", "1-1")
    wait_seen(wire, ["1-1"])
    wire.ok("DEL", "s1")
    wire.ok("SET", "s1", "x")
    wire.ok("DEL", "s1")
    add(wire, "s1", "1-2")
    wait_seen(wire, ["1-1", "1-2"])
    assert wire.ok("GET", "s0") == b"x"


def test_a_group_that_is_destroyed_begins_anew(wire):
    register_stream(wire, NOTE, "s*", mode="async_local", trimStream=False)
    add(wire, "s1", "1-1")
    wait_seen(wire, ["1-1"])
    wait_until(lambda: only_group(wire, "s1")["last-delivered-id"] == b"1-1", "the acknowledgement")
    wire.ok("XGROUP", "DESTROY", "s1", only_group(wire, "s1")["name"])
    add(wire, "s1", "1-2")
    wait_seen(wire, ["1-1", "1-1", "1-2"])


def test_other_databases_are_not_read(wire):
    register_stream(wire, NOTE, "s*", mode="async_local")
    wire.ok("SELECT", "1")
    add(wire, "s1", "9-1")
    wire.ok("SELECT", "0")
    add(wire, "s1", "1-1")
    wait_seen(wire, ["1-1"])


@pytest.mark.matrix
@GROUP
def test_a_pause_of_writes_makes_no_small_batch(wire, group):
    register_stream(wire, IDS, "s*", mode="async_local", batch=3, **group)
    # In one go, so nobody looks at the stream in between.
    wire.send_raw(encode(["XADD", "s1", "1-1", "f", "v"]) + encode(["CLIENT", "PAUSE", 200, "WRITE"]))
    assert [wire.read(), wire.read()] == [b"1-1", Simple("OK")]
    wait_until(lambda: counters(wire)[0] >= 1, "the look at the stream")
    add(wire, "s1", "1-2", "1-3")
    wait_seen(wire, ["1-1 1-2 1-3"])
    wait_length(wire, "s1", 0)
    wait_counters(wire, (2, 2, 0, 0))


@GROUP
def test_a_stream_that_is_deleted_under_way_makes_no_small_batch(wire, group):
    register(
        wire,
        HOLD + script(f"{IDS}.foreach(lambda x: hold({{'id': 'end'}}))", "s*", mode="async_local", batch=3, **group),
    )
    add(wire, "s1", "1-1", "1-2", "1-3")
    wait_until(lambda: wire.ok("LLEN", "begun") == 1, "the first batch")
    wire.ok("DEL", "s1")
    add(wire, "s1", "1-4")
    wire.ok("SET", "go", "1")
    wait_until(lambda: counters(wire)[0] >= 3, "the look at the new stream")
    add(wire, "s1", "1-5", "1-6")
    wait_seen(wire, ["1-1 1-2 1-3", "end", "1-4 1-5 1-6", "end"])
    wait_length(wire, "s1", 0)
    wait_counters(wire, (4, 4, 0, 0))


@pytest.mark.matrix
@MODE
@pytest.mark.parametrize(
    ("by", "last"),
    [(("XDEL", "s1", "1-13", "1-15"), 20), (("XTRIM", "s1", "MAXLEN", "4"), 20), (("XDEL", "s1", "1-20"), 19)],
)
def test_what_others_remove_unread_does_not_count_as_a_lag(wire, mode, by, last):
    register_stream(wire, NOTE, "s*", mode=mode, batch=10, trimStream=False)

    def stands_at(last, added):
        def reached():
            return [group["last-delivered-id"] for group in groups(wire, "s1").values()] == [b"1-%d" % last]

        wait_until(reached, "the acknowledgement")
        group, stream = only_group(wire, "s1"), flat_map(wire.ok("XINFO", "STREAM", "s1"))
        assert stream["entries-added"] == group["entries-read"] == added
        # The server does not know it while something that was deleted is behind the group.
        assert group["lag"] == 0 or (group["lag"] is None and last < added)

    fill(wire, "s1", 1, 10)
    stands_at(10, 10)
    assert wire.call("RG.PAUSEREGISTRATIONS", only_id(wire)) == Simple("OK")
    fill(wire, "s1", 11, 20)
    wire.ok(*by)
    assert wire.call("RG.UNPAUSEREGISTRATIONS", only_id(wire)) == Simple("OK")
    stands_at(last, 20)
    fill(wire, "s1", 21, 40)
    stands_at(40, 40)


# --- many --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ("sync", "async_local"))
def test_many_streams(wire, mode):
    streams = [f"s{i}" for i in range(200)]
    for name in streams[:100]:
        add(wire, name, "1-1", "1-2", "1-3")
    register_stream(wire, "foreach(lambda x: execute('rpush', 'of:' + x['key'], x['id']))", "s*", mode=mode, batch=2)
    for name in streams[100:]:
        add(wire, name, "1-1", "1-2", "1-3", "1-4")
    for name in streams[:100]:
        add(wire, name, "1-4", "1-5", "1-6")
    for i, name in enumerate(streams):
        wanted = [f"1-{n}" for n in range(1, 5 if i >= 100 else 6)]
        wait_until(lambda name=name, wanted=wanted: len(seen(wire, f"of:{name}")) >= len(wanted), f"all of {name}")
        found = seen(wire, f"of:{name}")
        assert found == [f"1-{n}" for n in range(1, len(found) + 1)]


def test_streams_run_side_by_side_and_each_in_order(wire):
    text = (
        "def hold(x):\n"
        "    import time\n"
        "    execute('rpush', 'begun', x['key'])\n"
        "    while not execute('exists', 'go:' + x['key']): time.sleep(0.005)\n"
        "    execute('rpush', 'seen', x['key'] + x['id'])\n"
    )
    register(wire, text + script("foreach(hold)", "s*", mode="async_local"))
    for key in ("s1", "s2"):
        add(wire, key, "1-1", "1-2")
    wait_until(lambda: sorted(seen(wire, "begun")) == ["s1", "s2"], "both")
    wire.ok("SET", "go:s2", "1")
    wait_seen(wire, ["s21-1", "s21-2"])
    wire.ok("SET", "go:s1", "1")
    wait_seen(wire, ["s21-1", "s21-2", "s11-1", "s11-2"])


def test_a_running_batch_that_is_stopped_counts_as_a_failure(wire):
    register(wire, HOLD + script("foreach(hold)", "s*", mode="async_local"))
    add(wire, "s1", "1-1")
    wait_until(lambda: wire.ok("LLEN", "begun") == 1, "the first batch")
    (running,) = [row[1] for row in wire.ok("RG.DUMPEXECUTIONS") if row[3] == b"running"]
    assert wire.call("RG.ABORTEXECUTION", running) == Simple("OK")
    wait_counters(wire, (2, 1, 1, 0))
    wait_length(wire, "s1", 0)
    wire.ok("SET", "go", "1")
    add(wire, "s1", "1-2")
    wait_seen(wire, ["1-2"])
    wait_length(wire, "s1", 0)


def test_rights(wire, server):
    wire.ok("ACL", "SETUSER", "narrow", "on", ">secret", "~seen", "~s1", "+@all")
    with Wire(server.port) as user:
        user.ok("AUTH", "narrow", "secret")
        register_stream(user, NOTE, "s*", mode="async_local")
    add(wire, "s2", "1-1")
    # Twice, if the scan for streams that the registration began finds it, too.
    wait_until(lambda: counters(wire)[2] >= 1, "the refusal")
    assert b"NOPERM" in data(wire)["lastError"]
    add(wire, "s1", "1-1")
    wait_seen(wire, ["1-1"])
    assert wire.ok("XLEN", "s2") == 1
    wire.ok("ACL", "DELUSER", "narrow")


def test_executions_stay_listed(wire):
    register_stream(wire, "map(lambda x: x['id'])", "s*", mode="async_local", convertToStr=False)
    add(wire, "s1", "1-1")
    wait_length(wire, "s1", 0)
    found = wait_until(lambda: [row for row in wire.ok("RG.DUMPEXECUTIONS") if row[3] == b"done"], "the execution")
    results = [wire.ok("RG.GETRESULTS", row[1]) for row in found]
    assert [[b"1-1"], []] in results


@pytest.mark.parametrize("mode", ("async", "async_local"))
def test_in_a_cluster(wires, mode):
    """Streams are consumed on the shard that holds them; in mode `async` all shards take part."""
    steps = "foreach(lambda x: execute('rpush', 'seen{%s}' % x['key'], x['id'])).count()"
    register_stream(wires[0], steps, "s*", mode=mode)
    names = [f"s{i}" for i in range(9)]
    for name in names:
        key = wires[0].call("CLUSTER", "KEYSLOT", name)
        owner = next(wire for wire in wires if owns(wire, key))
        add(owner, name, "1-1", "1-2")
        wait_seen(owner, ["1-1", "1-2"], f"seen{{{name}}}")
        wait_length(owner, name, 0)
    triggered = [counters(wire) for wire in wires]
    assert sum(row[1] for row in triggered) == 3 * len(names) and all(row[2:] == (0, 0) for row in triggered)


def owns(wire, slot):
    me = wire.ok("CLUSTER", "MYID")
    for first, last, master, *_ in wire.ok("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return master[2] == me
    return False


def test_dead_letters_in_a_cluster_go_to_the_shard_of_their_stream(wires):
    words = {"onFailedPolicy": "retry", "onFailedRetryInterval": 0, "maxRetries": 0, "deadLetter": "dead"}
    register_stream(wires[0], "foreach(lambda x: 1 / 0)", "s*", mode="async_local", **words)
    for name in ("s1", "s2", "s3"):
        owner = next(wire for wire in wires if owns(wire, wires[0].call("CLUSTER", "KEYSLOT", name)))
        add(owner, name, "1-1")
        wait_length(owner, name, 0)
        dead = [f"dead{{{name}}}", "dead"]
        assert any(owner.call("XLEN", key) == 1 for key in dead)
