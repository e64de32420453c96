"""Stream registrations that go, or come again in another version: what they leave, and where the next one goes on."""

import pytest
from replies import wait_until
from streams import (
    NOTE,
    OWN_GROUP,
    add,
    groups,
    register,
    register_stream,
    rows,
    script,
    seen,
    wait_length,
    wait_seen,
)
from wire import Simple

MODE = pytest.mark.parametrize("mode", ("sync", "async_local", "async"))
OK = Simple("OK")
IDS = [f"{number}-1" for number in range(1, 7)]


def ids(wire):
    """Ids of the registrations in the order in which they were made."""
    return [one for one, _ in rows(wire)]


def standing(wire, key):
    """Name -> where it stands, of the groups of a stream."""
    return {name: group["last-delivered-id"].decode() for name, group in groups(wire, key).items()}


# --- what only one that is gone had not passed ---------------------------------------------------------------------


@pytest.mark.matrix
@MODE
@pytest.mark.parametrize("session", [[], ["ID", "mine"]], ids=["unnamed", "named"])
@pytest.mark.parametrize("prefix", ["s*", "s1"])
def test_entries_that_only_one_that_is_gone_had_not_passed_are_removed(wire, mode, session, prefix):
    register_stream(wire, NOTE, prefix, *session, mode=mode)
    (gone,) = ids(wire)
    assert wire.call("RG.PAUSEREGISTRATIONS", gone) == OK
    register_stream(wire, NOTE, "s*", mode=mode, batch=2)
    add(wire, "s1", *IDS[:4])
    wait_seen(wire, IDS[:4])
    # The last one is for a batch that is not full yet.
    add(wire, "s1", IDS[4])
    wait_until(lambda: IDS[3] in standing(wire, "s1").values(), "the acknowledgement")
    assert wire.ok("XLEN", "s1") == 5
    assert wire.call("RG.UNREGISTER", gone) == OK
    wait_length(wire, "s1", 1)
    assert seen(wire) == IDS[:4]
    add(wire, "s1", IDS[5])
    wait_seen(wire, IDS)
    wait_length(wire, "s1", 0)


@pytest.mark.matrix
@MODE
def test_entries_stay_if_another_one_has_not_passed_them_or_none_that_is_left_trims(wire, mode):
    for prefix, trim in (("*", True), ("s*", True), ("s1", True), ("t1", False)):
        register_stream(wire, NOTE, prefix, mode=mode, trimStream=trim)
    gone, other, *_ = ids(wire)
    for key, count in (("s1", 3), ("t1", 2)):
        add(wire, key, IDS[0])
        wait_until(lambda key=key, count=count: list(standing(wire, key).values()) == [IDS[0]] * count, "its groups")
    for one in (gone, other):
        assert wire.call("RG.PAUSEREGISTRATIONS", one) == OK
    for key in ("s1", "t1"):
        add(wire, key, *IDS[1:4])
        wait_until(lambda key=key: IDS[3] in standing(wire, key).values(), "the acknowledgement")
    assert wire.call("RG.UNREGISTER", gone) == OK
    for key, count in (("s1", 2), ("t1", 1)):
        wait_until(lambda key=key, count=count: len(groups(wire, key)) == count, "its group being removed")
    left = wire.ok("XLEN", "s1"), wire.ok("XLEN", "t1")
    assert wire.call("RG.UNREGISTER", other) == OK
    wait_length(wire, "s1", 0)
    assert left == (3, 3) and wire.ok("XLEN", "t1") == 3


@pytest.mark.parametrize("mode", ("async_local", "async"))
@pytest.mark.parametrize("session", [[], ["ID", "mine"]], ids=["unnamed", "named"])
def test_entries_of_one_that_is_gone_are_removed_on_all_shards(cluster, wires, mode, session):
    home = {key: wires[cluster.servers.index(cluster.owner(key))] for key in (f"s{i}" for i in range(9))}
    assert len(set(home.values())) == 3
    register_stream(wires[0], "filter(lambda x: False)", "s*", *session, mode=mode)
    (gone,) = ids(wires[0])
    assert wires[1].call("RG.PAUSEREGISTRATIONS", gone) == OK
    register_stream(wires[0], "filter(lambda x: False)", "*", mode=mode)
    for key, wire in home.items():
        add(wire, key, *IDS)
        wait_until(lambda key=key, wire=wire: IDS[-1] in standing(wire, key).values(), "the acknowledgement")
        assert wire.ok("XLEN", key) == len(IDS)
    assert wires[2].call("RG.UNREGISTER", gone) == OK
    for key, wire in home.items():
        wait_length(wire, key, 0)


# --- versions ------------------------------------------------------------------------------------------------------


def noting(key, prefix):
    steps = f"foreach(lambda x: execute('rpush', '{key}', x['id']))"
    return script(steps, prefix, mode="async_local", trimStream=False)


def stand_at(wire, wanted):
    wait_until(lambda: standing(wire, "s1") == wanted, f"the groups standing at {wanted}")


@pytest.mark.matrix
def test_groups_are_called_after_session_prefix_and_number(wire):
    prefixes = ["s*", "s1", "s*", "*", "s*", "s1"]
    add(wire, "s1", IDS[0])
    register(wire, "\n".join(noting(f"seen{number}", prefix) for number, prefix in enumerate(prefixes)), "ID", "mine")
    wanted = ["s*:0", "s1:0", "s*:1", "*:0", "s*:2", "s1:1"]
    stand_at(wire, {f"{OWN_GROUP}mine:{name}": IDS[0] for name in wanted})
    for number in range(len(prefixes)):
        wait_seen(wire, [IDS[0]], f"seen{number}")


@pytest.mark.matrix
def test_the_next_version_goes_on_though_others_have_come_in_front(wire):
    """Ones of the same prefix come behind."""
    register(wire, "\n".join([noting("first", "s*"), noting("second", "s*")]), "ID", "mine")
    add(wire, "s1", *IDS[:2])
    wait_until(lambda: list(standing(wire, "s1").values()) == [IDS[1]] * 2, "the acknowledgements")
    versions = [("new", "s1"), ("first", "s*"), ("more", "*"), ("second", "s*"), ("last", "s*")]
    register(wire, "\n".join(noting(*one) for one in versions), "ID", "mine", "UPGRADE")
    add(wire, "s1", *IDS[2:])
    for key, _ in versions:
        wait_seen(wire, IDS, key)
    stand_at(wire, {f"{OWN_GROUP}mine:{name}": IDS[-1] for name in ("s*:0", "s*:1", "s1:0", "*:0", "s*:2")})
