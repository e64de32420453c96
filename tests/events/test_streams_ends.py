"""What ends: the group of a registration that is removed, and streams that feed each other."""

import pytest
from replies import SOON_S, flat_map, wait_until
from streams import (
    NOTE,
    OWN_GROUP,
    SHARED_GROUP,
    add,
    counters,
    fill,
    groups,
    only_id,
    register,
    register_stream,
    rows,
    script,
    seen,
    wait_length,
    wait_seen,
)
from wire import Simple, Wire

MODE = pytest.mark.parametrize("mode", ("sync", "async_local", "async"))
PREFIX = pytest.mark.parametrize("prefix", ["s*", "s1"])
OK = Simple("OK")


# --- groups ------------------------------------------------------------------------------------------------------


@pytest.mark.matrix
@MODE
@PREFIX
@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_the_group_of_what_is_removed_is_removed(wire, mode, prefix, paused):
    keys = ["s1", "s2"] if prefix == "s*" else ["s1"]
    register_stream(wire, NOTE, prefix, mode=mode, trimStream=False)
    for number, key in enumerate(keys, 1):
        add(wire, key, f"{number}-1")
        wait_until(lambda key=key: len(groups(wire, key)) == 1, "the group")
    wait_seen(wire, [f"{number}-1" for number in range(1, len(keys) + 1)])
    # A group like any other, though it begins as those do.
    for key in keys:
        wire.ok("XGROUP", "CREATE", key, f"{OWN_GROUP}other", "0")
    if paused:
        assert wire.call("RG.PAUSEREGISTRATIONS", only_id(wire)) == OK
    assert wire.call("RG.UNREGISTER", only_id(wire)) == OK
    for key in keys:
        wait_until(lambda key=key: list(groups(wire, key)) == [f"{OWN_GROUP}other"], "the group being removed")
        assert wire.ok("XLEN", key) == 1


BACKLOG = 60_000


@pytest.mark.matrix
@PREFIX
@pytest.mark.parametrize(
    "words",
    [{"mode": "sync", "batch": 10}, {"mode": "async_local", "batch": 10, "atomicBatch": True}],
    ids=["sync", "atomic"],
)
def test_what_is_removed_in_the_middle_of_a_backlog_leaves_its_group(wire, prefix, words):
    """Nobody comes for the next batch, for which the group was kept."""
    fill(wire, "s1", 1, BACKLOG)
    for turn in range(1, 6):
        count = f"count:{turn}"
        register_stream(wire, f"foreach(lambda x: execute('incr', '{count}'))", prefix, trimStream=False, **words)
        wait_until(lambda count=count: int(wire.ok("GET", count) or 0) > 0, "a batch")
        assert wire.call("RG.UNREGISTER", only_id(wire)) == OK
        assert int(wire.ok("GET", count)) < BACKLOG
        wait_until(lambda: groups(wire, "s1") == {}, "the group being removed")
    assert wire.ok("XLEN", "s1") == BACKLOG


@pytest.mark.matrix
def test_what_is_removed_while_a_long_batch_is_read_leaves_its_group(wire):
    fill(wire, "s1", 1, 3 * BACKLOG)
    for _ in range(5):
        register_stream(wire, "filter(lambda x: False)", "s1", mode="async_local", batch=3 * BACKLOG, trimStream=False)
        wait_until(lambda: len(groups(wire, "s1")) == 1, "the group")
        assert wire.call("RG.UNREGISTER", only_id(wire)) == OK
        wait_until(lambda: groups(wire, "s1") == {}, "the group being removed")


@pytest.mark.matrix
@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_what_only_the_removed_one_had_not_passed_is_removed(wire, paused):
    """In slices, as it may be much; that changes nothing of what is there in the end."""
    fill(wire, "s1", 1, BACKLOG)
    slow = {"mode": "async_local", "batch": 10, "atomicBatch": True}
    register_stream(wire, "foreach(lambda x: execute('incr', 'slow'))", "s1", **slow)
    slow_one = only_id(wire)
    if paused:
        assert wire.call("RG.PAUSEREGISTRATIONS", slow_one) == OK
    register_stream(wire, "filter(lambda x: False)", "s*", mode="async_local", batch=5000, duration=1)
    (fast,) = (one for one, _ in rows(wire) if one != slow_one)

    def passed():
        return any(one["last-delivered-id"] == b"1-%d" % BACKLOG for one in groups(wire, "s1").values())

    wait_until(passed, "the fast one")
    assert wire.ok("XLEN", "s1") > 0
    assert wire.call("RG.UNREGISTER", slow_one) == OK
    wait_length(wire, "s1", 0)
    wait_until(lambda: len(groups(wire, "s1")) == 1, "the group being removed")
    wire.ok("XADD", "s1", "2-1", "f", "v")
    wait_length(wire, "s1", 0)
    assert wire.call("RG.UNREGISTER", fast) == OK


def test_many_registrations_that_go_at_once_leave_all_streams(wire):
    keys = [f"s{number}" for number in range(150)]
    for key in keys:
        wire.ok("XADD", key, "1-1", "f", "v")
    text = "\n".join([script("filter(lambda x: False)", "s*", mode="async_local", trimStream=False)] * 20)
    register(wire, text)
    wait_until(lambda: all(len(groups(wire, key)) == 20 for key in keys), "all groups")
    for one, _ in rows(wire):
        wire.send("RG.UNREGISTER", one)
    for _ in range(20):
        assert wire.read() == OK
    wait_until(lambda: all(groups(wire, key) == {} for key in keys), "all groups being removed")


@pytest.mark.matrix
@MODE
@PREFIX
def test_groups_with_which_others_can_go_on_stay(wire, mode, prefix):
    """Those of a session with a name, and those that others may share."""
    for session, words in ((["ID", "mine"], {}), ([], {"group": "team"}), ([], {"sharedGroup": True}), ([], {})):
        register_stream(wire, NOTE, prefix, *session, mode=mode, trimStream=False, **words)
    add(wire, "s1", "1-1")
    wait_seen(wire, ["1-1"] * 4)

    def stand():
        found = groups(wire, "s1").values()
        return len(found) == 4 and all((one["last-delivered-id"], one["pending"]) == (b"1-1", 0) for one in found)

    wait_until(stand, "all groups having passed the entry")
    (mine,) = (name for name in groups(wire, "s1") if name.startswith(f"{OWN_GROUP}mine:"))
    stay = {mine, "team", SHARED_GROUP}
    # The last one goes last: what would be done for the others is done before.
    for one, _ in rows(wire):
        assert wire.call("RG.UNREGISTER", one) == OK
    wait_until(lambda: set(groups(wire, "s1")) == stay, "the one group being removed")
    register_stream(wire, NOTE, prefix, "ID", "mine", mode=mode, trimStream=False)
    add(wire, "s1", "1-2")
    wait_seen(wire, [*["1-1"] * 4, "1-2"])
    assert set(groups(wire, "s1")) == stay


@pytest.mark.parametrize("mode", ["async_local", "async"])
@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_groups_of_what_is_removed_are_removed_on_all_shards(cluster, wires, mode, paused):
    home = {key: wires[cluster.servers.index(cluster.owner(key))] for key in (f"s{i}" for i in range(9))}
    assert len(set(home.values())) == 3
    for prefix in ("s*", "s1"):
        register_stream(wires[0], "filter(lambda x: False)", prefix, mode=mode)
    for key, wire in home.items():
        add(wire, key, "1-1")
        wait_length(wire, key, 0)
        assert len(groups(wire, key)) == (2 if key == "s1" else 1)
    for number, (one, _) in enumerate(rows(wires[0]), 1):
        if paused:
            assert wires[number].call("RG.PAUSEREGISTRATIONS", one) == OK
        assert wires[number].call("RG.UNREGISTER", one) == OK
    for key, wire in home.items():
        wait_until(lambda key=key, wire=wire: not groups(wire, key), f"the groups of {key} being removed")


# --- chains ------------------------------------------------------------------------------------------------------

FEED = "foreach(lambda x: execute('xadd', 's:2' if x['key'] == 's:1' else 's:1', '*', 'f', 'v'))"


def added(wire):
    """Entries that the streams ever had."""
    streams = (flat_map(wire.ok("XINFO", "STREAM", key)) for key in ("s:1", "s:2"))
    return sum(stream["entries-added"] for stream in streams)


@pytest.mark.matrix
def test_streams_that_feed_each_other_leave_the_server_to_others_and_can_be_ended(fresh):
    server = fresh()
    with Wire(server.port) as wire, Wire(server.port) as other:
        register_stream(wire, FEED, "s:*", mode="sync")
        wire.ok("XADD", "s:1", "*", "f", "v", timeout=SOON_S)
        # More than any chain of events may have.
        wait_until(lambda: counters(other)[1] > 200, "many batches")
        assert other.call("PING", timeout=SOON_S) == Simple("PONG")
        assert other.call("RG.UNREGISTER", only_id(other), timeout=SOON_S) == OK
        before = added(other)
        # One entry is left, and nobody feeds it back.
        register_stream(other, NOTE, "s:*", mode="sync")
        wait_until(lambda: len(seen(other)) == 1, "what is left being read")
        for key in ("s:1", "s:2"):
            wait_length(other, key, 0)
        assert added(other) == before and len(seen(other)) == 1
