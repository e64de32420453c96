"""RG.INFOCLUSTER and RG.REFRESHCLUSTER."""

import pytest
from replies import flat_map, results_of, wait_until
from wire import Simple

SHARD_FIELDS = ("id", "ip", "port", "unixSocket", "runid", "minHslot", "maxHslot", "pendingMessages")


def hex_id(value):
    return isinstance(value, bytes) and len(value) == 40 and set(value) <= set(b"0123456789abcdef")


def info(wire):
    """My id, my run id, and id -> fields of each shard."""
    reply = wire.ok("RG.INFOCLUSTER")
    assert len(reply) == 5
    assert reply[0] == b"MyId" and reply[2] == b"MyRunId"
    shards = [flat_map(shard, SHARD_FIELDS) for shard in reply[4]]
    assert len({shard["id"] for shard in shards}) == len(shards)
    return reply[1], reply[3], {shard["id"]: shard for shard in shards}


@pytest.mark.parametrize("args", [[], ["any", "thing"]])
def test_a_single_server_is_no_cluster(wire, args):
    assert wire.call("RG.INFOCLUSTER", *args) == b"no cluster mode"


@pytest.mark.parametrize("args", [[], ["any", "thing"]])
def test_refresh_on_a_single_server(wire, args):
    assert wire.call("RG.REFRESHCLUSTER", *args) == Simple("OK")
    assert wire.call("RG.INFOCLUSTER") == b"no cluster mode"


def test_fields(cluster, wires):
    servers = cluster.masters()
    for server, wire in zip(servers, wires, strict=True):
        my_id, my_run_id, shards = info(wire)
        assert my_id == server.node_id.encode()
        assert hex_id(my_run_id)
        assert set(shards) == {other.node_id.encode() for other in servers}
        for other in servers:
            shard = shards[other.node_id.encode()]
            assert shard["ip"] == b"127.0.0.1"
            assert shard["port"] == other.port
            assert shard["unixSocket"] == b"None"
            assert hex_id(shard["runid"])
            assert isinstance(shard["pendingMessages"], int) and shard["pendingMessages"] >= 0


def test_slots_are_those_of_the_server(cluster, wires):
    owned = {row[2][2]: (row[0], row[1]) for row in wires[0].ok("CLUSTER", "SLOTS")}
    for wire in wires:
        shards = info(wire)[2]
        assert {name: (shard["minHslot"], shard["maxHslot"]) for name, shard in shards.items()} == owned


def test_shards_agree_on_run_ids(cluster, wires):
    views = [info(wire) for wire in wires]
    own = {my_id: run_id for my_id, run_id, _ in views}
    assert len(set(own.values())) == 3
    for _, _, shards in views:
        assert {name: shard["runid"] for name, shard in shards.items()} == own


def test_nothing_is_pending_at_rest(wires):
    assert len(results_of(wires[0].ok("RG.PYEXECUTE", "GB('ShardsIDReader').run()"))) == 3

    def at_rest(wire):
        return all(shard["pendingMessages"] == 0 for shard in info(wire)[2].values())

    for wire in wires:
        wait_until(lambda wire=wire: at_rest(wire), "every message being acknowledged")


def test_refresh(cluster, wires):
    for wire in wires:
        assert wire.call("RG.REFRESHCLUSTER", "any", "thing") == Simple("OK")
    cluster.wait_mesh(60)
    for wire in wires:
        assert len(results_of(wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').run()"))) == 3


def test_refresh_does_no_harm_while_executions_run(wires):
    """Complete results or an error; a refresh is only a nudge."""
    script = "GB('PythonReader').repartition(lambda x: x).count().run(lambda: iter(range(300)))"
    for _ in range(10):
        wires[0].send("RG.PYEXECUTE", script)
        assert wires[1].call("RG.REFRESHCLUSTER") == Simple("OK")
        results, errors = wires[0].read()
        assert errors or results == [b"900"]


def test_a_cluster_of_one_shard_counts_as_single():
    import localcluster

    with localcluster.LocalCluster(masters=1) as cluster:
        reply = cluster.servers[0].command("RG.INFOCLUSTER")
        assert reply == b"no cluster mode"
        execution = cluster.servers[0].command("RG.PYEXECUTE", "GB('ShardsIDReader').run()", "UNBLOCKING")
        assert execution.startswith(b"0" * 40 + b"-")
