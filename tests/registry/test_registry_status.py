"""RG.REGISTRY and INFO: where the registry of a node stands."""

import os
from pathlib import Path

from registrations import register, simple_trigger, status, trigger, wait_group
from replies import wait_until
from wire import Wire

INFO_FIELDS = {"role", "term", "leader", "commit", "applied"}


def registry_info(wire):
    lines = wire.ok("INFO", "rg_registry").decode().splitlines()
    fields = dict(line.partition(":")[::2] for line in lines if line and not line.startswith("#"))
    return {name.removeprefix("rg_"): text for name, text in fields.items()}


def test_a_single_server_is_alone(server, wire):
    before = status(wire)
    assert before["role"] == b"alone" and before["leader"] is None and before["members"] == []
    register(wire, simple_trigger("t"))
    after = status(wire)
    assert after["applied"] == before["applied"] + 1
    info = registry_info(wire)
    assert set(info) >= INFO_FIELDS and info["role"] == "alone"
    assert info["applied"] == str(after["applied"])


def test_no_thread_and_no_folder_of_a_group_on_a_single_server(fresh):
    server = fresh()
    with Wire(server.port) as wire:
        register(wire, simple_trigger("t"))
        assert trigger(wire, "t") == [b"1"]
    names = [path.read_text().strip() for path in Path(f"/proc/{server.pid}/task").glob("*/comm")]
    assert not [name for name in names if "raft" in name or "grpc" in name or "mesh" in name], names
    assert set(os.listdir(server.dir)) <= {"server.log", "output.log"}, os.listdir(server.dir)


def test_three_shards(cluster, wires):
    leader = wait_group(cluster.servers)
    ids = sorted(server.node_id.encode() for server in cluster.servers)
    found = [status(wire) for wire in wires]
    assert sorted(one["role"] for one in found) == [b"follower", b"follower", b"leader"]
    assert {one["leader"] for one in found} == {leader.node_id.encode()}
    assert len({one["group"] for one in found}) == 1 and len(found[0]["group"]) == 32
    assert len({one["term"] for one in found}) == 1 and found[0]["term"] >= 1
    assert len({one["raftId"] for one in found}) == 3
    for one in found:
        assert sorted(member["node"] for member in one["members"]) == ids
        assert all(member["voter"] == 1 for member in one["members"])
        assert one["error"] is None
        assert one["applied"] <= one["commit"] and one["diskBytes"] > 0


def test_the_leader_knows_how_far_the_others_are(cluster, wires):
    leader = wait_group(cluster.servers)
    with Wire(leader.port) as wire:
        register(wire, simple_trigger("t"))

        def all_there():
            found = status(wire)
            return all(member["lag"] == 0 and member["matched"] >= found["commit"] for member in found["members"])

        wait_until(all_there, "all members having everything")


def test_each_change_is_one_index_and_reads_are_none(cluster, wires):
    wait_group(cluster.servers)
    register(wires[0], "\n".join(simple_trigger(f"t{i}") for i in range(20)))
    # Who has its OK sees its change.
    before = status(wires[0])["applied"]
    for wire in wires:
        wire.ok("RG.DUMPREGISTRATIONS")
        trigger(wire, "t0")
    register(wires[1], "\n".join(simple_trigger(f"u{i}") for i in range(20)))
    assert status(wires[1])["applied"] == before + 1
    for wire in wires:
        wait_until(lambda wire=wire: status(wire)["applied"] == before + 1, "the change being applied")


def test_info_carries_the_same_numbers(cluster, wires):
    wait_group(cluster.servers)
    for wire in wires:
        found, info = status(wire), registry_info(wire)
        assert info["role"] == found["role"].decode() and info["leader"] == found["leader"].decode()
        for name in ("term", "commit", "applied"):
            assert info[name] == str(found[name])


def test_arguments_are_refused_or_ignored(wire):
    wire.call("RG.REGISTRY", "any", "thing")
    assert status(wire)["role"] == b"alone"


def test_replicas_learn(six):
    wait_group(six.servers)
    masters = {server.node_id.encode() for server in six.masters()}
    for server in six.servers:
        with Wire(server.port) as wire:
            found = status(wire)
            assert {member["node"] for member in found["members"] if member["voter"]} == masters
            assert (found["role"] == b"learner") is (server.node_id.encode() not in masters)
