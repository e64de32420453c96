"""Batches that are one transaction, in a cluster: slots that move and masters that change leave each effect once."""

import localcluster
import pytest
from cleaning import leave_nothing
from moving import Move
from registrations import clear, wait_group
from replies import own_tag, wait_until
from streams import add, counters, data, register, script, seen, wait_length, wait_seen
from wire import Wire

BOTH = "foreach(lambda x: execute('incr', 'a{%s}')).foreach(lambda x: execute('incr', 'b{%s}'))"


def register_atomic(wire, steps, stream, **words):
    options = {"mode": "async_local", "onFailedRetryInterval": 0, **words}
    register(wire, script(steps, stream, atomicBatch=True, **options))


def tags_of(server):
    """Two hash tags with different slots of this server."""
    first = own_tag(server)
    with Wire(server.port) as wire:
        mine = {
            slot
            for low, high, owner, *_ in wire.ok("CLUSTER", "SLOTS")
            for slot in range(low, high + 1)
            if owner[1] == server.port
        }
        mine.discard(wire.ok("CLUSTER", "KEYSLOT", first))
        second = next(str(n) for n in range(10**6) if localcluster.key_slot(b"%d" % n) in mine)
    return first, second


@pytest.fixture
def pair(cluster, wires):
    """Two shards, and connections to them."""
    yield cluster.servers[:2], wires[:2]
    for wire, server in zip(wires, cluster.servers, strict=True):
        clear([server])
        wire.ok("FLUSHALL")
    leave_nothing(cluster.servers)


@pytest.mark.matrix
@pytest.mark.parametrize("policy", ["continue", "retry", "abort"])
def test_a_batch_waits_while_its_slot_moves(cluster, pair, policy):
    (source, target), (wire, other) = pair
    tag = own_tag(source)
    register_atomic(wire, BOTH % (tag, tag), f"s{{{tag}}}", onFailedPolicy=policy)
    add(wire, f"s{{{tag}}}", "1-1")
    wait_length(wire, f"s{{{tag}}}", 0)
    with Move(cluster, source, target, tag) as move:
        move.key(f"b{{{tag}}}")
        add(wire, f"s{{{tag}}}", "1-2", "1-3")
        wait_until(lambda: counters(wire)[2] >= 2, "two tries")
        assert b"TRYAGAIN slot" in data(wire)["lastError"] and data(wire)["status"] != b"ABORTED"
        assert wire.ok("GET", f"a{{{tag}}}") == b"1" and wire.ok("XLEN", f"s{{{tag}}}") == 2
        move.finish()
        wait_length(other, f"s{{{tag}}}", 0)
        assert [other.ok("GET", f"{name}{{{tag}}}") for name in "ab"] == [b"3", b"3"]


@pytest.mark.matrix
def test_a_step_that_hides_the_error_loses_nothing(cluster, pair):
    """Neither do dead letters get what only had to wait."""
    (source, target), (wire, _) = pair
    first, second = tags_of(source)
    text = (
        "def step(x):\n"
        f"    execute('rpush', 'seen{{{first}}}', x['id'])\n"
        "    try:\n"
        f"        execute('set', 'last{{{second}}}', execute('get', 'now{{{second}}}'))\n"
        "    except Exception:\n"
        "        pass\n"
    )
    words = {"mode": "async_local", "onFailedPolicy": "retry", "onFailedRetryInterval": 0, "maxRetries": 1}
    steps = script("foreach(step)", f"s{{{first}}}", atomicBatch=True, deadLetter=f"dead{{{first}}}", **words)
    register(wire, text + steps)
    wire.ok("SET", f"now{{{second}}}", "1")
    with Move(cluster, source, target, second) as move:
        add(wire, f"s{{{first}}}", "1-1")
        wait_until(lambda: counters(wire)[2] >= 4, "some tries")
        assert seen(wire, f"seen{{{first}}}") == []
        move.cancel()
        wait_length(wire, f"s{{{first}}}", 0)
        assert seen(wire, f"seen{{{first}}}") == ["1-1"] and wire.ok("GET", f"last{{{second}}}") == b"1"
        assert wire.ok("EXISTS", f"dead{{{first}}}") == 0


@pytest.mark.matrix
def test_a_key_that_has_just_gone_to_another_shard_is_refused(cluster, pair):
    (source, target), (wire, _) = pair
    first, second = tags_of(source)
    register_atomic(wire, BOTH % (first, second), f"s{{{first}}}", onFailedPolicy="retry")
    add(wire, f"s{{{first}}}", "1-1")
    wait_length(wire, f"s{{{first}}}", 0)
    wire.ok("DEL", f"b{{{second}}}")
    slot = localcluster.key_slot(second.encode())
    try:
        # At once: nobody may judge by what was known a moment ago.
        wire.ok("CLUSTER", "SETSLOT", slot, "NODE", target.node_id)
        add(wire, f"s{{{first}}}", "1-2")
        wait_until(lambda: counters(wire)[2] >= 2, "two tries")
        assert b"in a slot of another shard" in data(wire)["lastError"]
        assert wire.ok("GET", f"a{{{first}}}") == b"1"
    finally:
        for server in (source, target):
            server.command("CLUSTER", "SETSLOT", slot, "NODE", source.node_id)
        cluster.wait_cluster_ok()
    wait_length(wire, f"s{{{first}}}", 0)
    assert wire.ok("GET", f"a{{{first}}}") == b"2" and wire.ok("GET", f"b{{{second}}}") == b"1"


def test_what_belongs_to_another_shard_is_skipped(cluster, pair):
    """With policy `continue`: it is the script's mistake."""
    (source, target), (wire, _) = pair
    mine, others = own_tag(source), own_tag(target)
    register_atomic(wire, BOTH % (mine, others), f"s{{{mine}}}")
    add(wire, f"s{{{mine}}}", "1-1")
    wait_length(wire, f"s{{{mine}}}", 0)
    assert counters(wire)[2] == 1 and wire.ok("EXISTS", f"a{{{mine}}}") == 0


def follows(server, master):
    role = server.command("ROLE")
    return role[0] == b"slave" and role[2] == master.port and role[3] == b"connected"


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_a_promoted_replica_skips_nothing(six, mode):
    """Entries come in the moment when it becomes a master; the roles end as they were."""
    master = six.masters()[0]
    replica = next(server for server in six.replicas() if follows(server, master))
    tag = own_tag(master)
    stream, key = f"s{{{tag}}}", f"seen{{{tag}}}"
    with Wire(master.port) as wire:
        register_atomic(wire, f"foreach(lambda x: execute('rpush', {key!r}, x['id']))", stream, mode=mode)
    wanted = []
    for number, (old, new) in enumerate([(master, replica), (replica, master)], 1):
        with Wire(old.port) as wire:
            wait_until(lambda old=old, new=new: follows(new, old), "the replica following")
            wanted.append(f"{number}-1")
            add(wire, stream, wanted[-1])
            wait_seen(wire, wanted, key)
            wait_length(wire, stream, 0)
            wait_until(lambda wire=wire: wire.ok("WAIT", 1, 1000) == 1, "the replica having it")
        with Wire(new.port) as wire:
            wire.ok("CLUSTER", "FAILOVER", "TAKEOVER")
            wanted += [f"{number}-{n}" for n in range(2, 30)]
            add(wire, stream, *wanted[-28:])
            wait_length(wire, stream, 0)
            assert seen(wire, key) == wanted and counters(wire)[2] == 0
        six.wait_cluster_ok()
    with Wire(master.port) as wire:
        wire.ok("DEL", stream, key)
    wait_until(lambda: follows(replica, master), "the replica following")


def test_a_server_whose_commands_are_renamed():
    """What the server is asked with may be gone."""
    with localcluster.LocalCluster(masters=3, server_args=("--rename-command", "PERSIST", "")) as renamed:
        renamed.wait_mesh()
        wait_group(renamed.servers)
        source, target = renamed.servers[:2]
        tag = own_tag(source)
        with Wire(source.port) as wire, Wire(target.port) as other:
            register_atomic(wire, BOTH % (tag, tag), f"s{{{tag}}}")
            add(wire, f"s{{{tag}}}", "1-1")
            wait_length(wire, f"s{{{tag}}}", 0)
            with Move(renamed, source, target, tag) as move:
                add(wire, f"s{{{tag}}}", "1-2")
                wait_until(lambda: counters(wire)[2] >= 1, "a try")
                move.finish()
                wait_length(other, f"s{{{tag}}}", 0)
                assert [other.ok("GET", f"{name}{{{tag}}}") for name in "ab"] == [b"2", b"2"]
