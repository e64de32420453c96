"""Streams of dead letters: no registration with a prefix reads them, and a big batch gets there in slices."""

import pytest
from replies import flat_map, wait_until
from streams import (
    OWN_GROUP,
    SHARED_GROUP,
    add,
    counters,
    fill,
    groups,
    looks,
    only_group,
    only_id,
    register_stream,
    script,
    seen,
    wait_length,
    wait_seen,
)
from wire import Error, Simple

POISON = "foreach(lambda x: flat_error('poison') if 'bad' in x['value'] else execute('rpush', 'fine', x['id']))"
AT_ONCE = {"mode": "async_local", "onFailedPolicy": "retry", "onFailedRetryInterval": 0, "maxRetries": 0}
OK = Simple("OK")


def add_bad(wire, key, *ids):
    for one in ids:
        wire.ok("XADD", key, one, "bad", "x")


def told(wire, key):
    """(source, id, tries) of the dead letters, which must hold nothing else of ours than one telling."""
    found = []
    for _, fields in wire.ok("XRANGE", key, "-", "+"):
        names = flat_map(fields)
        assert list(names) == ["bad", "oxigears:source", "oxigears:id", "oxigears:reason", "oxigears:tries"]
        found.append(tuple(names[f"oxigears:{name}"].decode() for name in ("source", "id", "tries")))
    return found


@pytest.mark.matrix
@pytest.mark.parametrize("prefix", ["s*", "*"])
@pytest.mark.parametrize("group", [{}, {"sharedGroup": True}], ids=["own", "shared"])
def test_a_prefix_does_not_read_its_own_dead_letters(wire, prefix, group):
    register_stream(wire, POISON, prefix, deadLetter="s:dead", **AT_ONCE, **group)
    add_bad(wire, "s1", "1-1", "1-2")
    wait_length(wire, "s1", 0)
    add(wire, "s2", "2-1")
    wait_seen(wire, ["2-1"], "fine")
    # What others add there is for whoever looks after dead letters, too; and a pause makes it look for streams anew.
    wire.ok("XADD", "s:dead", "*", "f", "v")
    assert wire.call("RG.PAUSEREGISTRATIONS", only_id(wire)) == OK
    add(wire, "s3", "3-1", "3-2")
    assert wire.call("RG.UNPAUSEREGISTRATIONS", only_id(wire)) == OK
    wait_seen(wire, ["2-1", "3-1", "3-2"], "fine")
    wait_length(wire, "s3", 0)
    assert wire.ok("XLEN", "s:dead") == 3 and groups(wire, "s:dead") == {}
    wire.ok("XTRIM", "s:dead", "MAXLEN", "0")
    add_bad(wire, "s1", "1-3")
    wait_length(wire, "s1", 0)
    assert told(wire, "s:dead") == [("s1", "1-3", "1")] and counters(wire)[2] == 3


@pytest.mark.matrix
def test_dead_letters_of_another_registration_are_read_by_their_exact_name_only(wire):
    register_stream(wire, POISON, "t*", deadLetter="s:dead", **AT_ONCE)
    register_stream(wire, "foreach(lambda x: execute('rpush', 'of:' + x['key'], x['id']))", "s*", mode="async_local")
    add_bad(wire, "t1", "1-1", "1-2")
    wait_length(wire, "t1", 0)
    add(wire, "s1", "1-1")
    # On one server no tag is put behind the name.
    add(wire, "s:dead{t1}", "1-2")
    wait_seen(wire, ["1-1"], "of:s1")
    wait_seen(wire, ["1-2"], "of:s:dead{t1}")
    assert seen(wire, "of:s:dead") == [] and groups(wire, "s:dead") == {}
    assert told(wire, "s:dead") == [("t1", "1-1", "1"), ("t1", "1-2", "1")]
    again = "foreach(lambda x: execute('rpush', 'again', x['value']['oxigears:id']))"
    register_stream(wire, again, "s:dead", "ID", "again", mode="async_local")
    add_bad(wire, "t1", "1-3")
    wait_seen(wire, ["1-1", "1-2", "1-3"], "again")
    wait_length(wire, "s:dead", 0)
    assert only_group(wire, "s:dead")["name"].startswith(b"%sagain:" % OWN_GROUP.encode())
    assert seen(wire, "of:s:dead") == []


def test_dead_letters_in_a_cluster_are_not_read_again_either(cluster, wires):
    fails = "foreach(lambda x: flat_error('poison') if 'bad' in x['value'] else 0)"
    register_stream(wires[0], fails, "d*", deadLetter="d:dead", **AT_ONCE)
    for name in ("d1", "d2", "d3"):
        wire = wires[cluster.servers.index(cluster.owner(name))]
        add_bad(wire, name, "1-1", "1-2")
        wait_length(wire, name, 0)
        # Other names are read: on the same shard, behind what would be read of the dead letters.
        for other in (f"d:more{{{name}}}", f"d:dead{{{name}}}x"):
            add(wire, other, "1-1")
            wait_length(wire, other, 0)
        letters = f"d:dead{{{name}}}"
        assert told(wire, letters) == [(name, "1-1", "1"), (name, "1-2", "1")] and groups(wire, letters) == {}
    again = "foreach(lambda x: execute('rpush', 'again{d2}', x['value']['oxigears:id']))"
    register_stream(wires[0], again, "d:dead{d2}", mode="async_local")
    wire = wires[cluster.servers.index(cluster.owner("d2"))]
    add_bad(wire, "d2", "1-3")
    wait_seen(wire, ["1-1", "1-2", "1-3"], "again{d2}")
    wait_length(wire, "d:dead{d2}", 0)


@pytest.mark.parametrize("letters", ["{x}dead", "dead{", "d{}d"])
def test_dead_letters_in_a_cluster_whose_name_has_braces(cluster, wires, letters):
    """Their first brace would be where the slot is looked for."""
    register_stream(wires[0], POISON, "*", deadLetter=letters, **AT_ONCE)
    owner = cluster.owner(letters)
    for name in ("d1", "d2", "d3", "d4"):
        shard = cluster.owner(name)
        wire = wires[cluster.servers.index(shard)]
        add_bad(wire, name, "1-1")
        wait_length(wire, name, 0)
        found = {key.decode() for key in wire.ok("KEYS", "*") if key not in (b"d1", b"d2", b"d3", b"d4")}
        assert f"{{{name}}}{letters}" in found or (shard is owner and letters in found)
        for key in found:
            assert groups(wire, key) == {} and wire.ok("DEL", key) == 1


@pytest.mark.matrix
def test_dead_letters_are_another_stream(wire):
    # In a cluster those of `s{1}` would go to `s` with the tag of its slot, those of `{1}{s}` to `{s}` behind it.
    names = (("s1", "s1"), ("s*", "s*"), ("s{1}", "s"), ("{1}{s}", "{s}"), ("{1}s{", "s{"))
    for name, letters in names:
        reply = wire.call("RG.PYEXECUTE", script("foreach(lambda x: 0)", name, deadLetter=letters, **AT_ONCE))
        assert isinstance(reply, Error) and "deadLetter argument must be another stream" in reply.text
    register_stream(wire, POISON, "s1", deadLetter="s12", **AT_ONCE)
    add_bad(wire, "s1", "1-1")
    wait_length(wire, "s1", 0)
    assert told(wire, "s12") == [("s1", "1-1", "1")]


# --- big batches -------------------------------------------------------------------------------------------------

BATCH = 30_000
# Their fields, a line for each.
LINES = """
local lines = {}
for i, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do lines[i] = table.concat(entry[2], ' ') end
return table.concat(lines, '\\n')
"""
FAILS = "count().foreach(lambda n: (execute('rpush', 'counted', n), flat_error('poison')))"
TAKE = "redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '>')"


@pytest.mark.matrix
@pytest.mark.parametrize("case", ["own", "shared", "shared with others"])
def test_a_big_batch_is_buried_whole_while_others_are_served(wire, other_wire, case):
    fill(wire, "s1", 1, BATCH)
    numbers, others = range(1, BATCH + 1), 0
    if case == "shared with others":
        # What this consumer has pending is one batch; what another one has is in the middle of it.
        wire.ok("XGROUP", "CREATE", "s1", SHARED_GROUP, "0")
        numbers, others = [*range(1, 101), *range(201, BATCH + 1)], 100
        for consumer, count in (("__gears_client__", 100), ("other", others), ("__gears_client__", BATCH)):
            wire.ok("EVAL", TAKE, 1, "s1", SHARED_GROUP, consumer, count)
    register_stream(wire, FAILS, "s1", deadLetter="dead", batch=BATCH, sharedGroup=case != "own", **AT_ONCE)
    lengths = looks(lambda: other_wire.ok("XLEN", "dead"), len(numbers))
    assert any(0 < length < len(numbers) for length in lengths), "nobody was served before the last copy"
    assert lengths == sorted(lengths)
    wait_until(lambda: counters(wire)[2] == 1, "the end of the batch")
    assert seen(wire, "counted") == [str(len(numbers))]
    told = " oxigears:source s1 oxigears:id 1-%d oxigears:reason poison oxigears:tries 1"
    assert wire.ok("EVAL", LINES, 1, "dead").decode().split("\n") == [f"n {n}{told % n}" for n in numbers]
    group = only_group(wire, "s1")
    assert (group["last-delivered-id"], group["pending"]) == (b"1-%d" % BATCH, others)
    assert (group["entries-read"], group["lag"]) == (BATCH, 0)
    # It is trimmed up to what another one has pending.
    assert wire.ok("XLEN", "s1") == (BATCH - 100 if others else 0)
    assert counters(wire)[1:] == ((1, 1, 0) if not others else (0, 1, 0))
