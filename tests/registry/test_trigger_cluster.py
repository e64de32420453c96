"""Triggers on three shards: where they run, what each shard gets, whom they redirect."""

import pytest
from registrations import MODES, by_trigger, dump, register, simple_trigger, trigger
from replies import executions_of, own_tag, wait_until
from wire import Error, Simple, Wire

MODE = pytest.mark.parametrize("mode", MODES)
B = "GB('CommandReader')"


def test_async_gives_every_shard_its_own_copy(wires):
    register(wires[1], f"{B}.register(trigger='copies')\n{B}.count().register(trigger='count')")
    for wire in wires:
        assert trigger(wire, "copies", "a", "b") == [b"['copies', 'a', 'b']"] * 3
        assert trigger(wire, "count") == [b"3"]


def test_copies_are_apart(wires):
    """What one shard does to its record does not show on another one."""
    script = f"{B}.foreach(lambda x: x.append(hashtag())).map(lambda x: len(x)).register(trigger='t')"
    register(wires[0], script)
    assert trigger(wires[0], "t", "a") == [b"3"] * 3


def test_async_runs_on_every_shard(cluster, wires):
    register(wires[0], f"{B}.map(lambda x: hashtag()).register(trigger='where')")
    tags = {own_tag(server).encode() for server in cluster.servers}
    assert len(tags) == 3
    for wire in wires:
        found = trigger(wire, "where")
        assert len(found) == 3 and set(found) == tags


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_the_other_modes_run_where_they_were_asked(cluster, wires, mode):
    register(wires[2], f"{B}.map(lambda x: hashtag()).register(trigger='where', mode={mode!r})")
    for server, wire in zip(cluster.servers, wires, strict=True):
        assert trigger(wire, "where") == [own_tag(server).encode()]


def test_without_collect_only_the_own_results_come(cluster, wires):
    register(wires[0], f"{B}.map(lambda x: hashtag()).register(trigger='where', collect=False)")
    for server, wire in zip(cluster.servers, wires, strict=True):
        assert trigger(wire, "where") == [own_tag(server).encode()]


def test_global_steps(cluster, wires):
    script = f"""
def store(key):
    execute('set', key, 'stored')
    return key
{B}.flatmap(lambda x: x[1:]).repartition(lambda x: x).map(store).distinct().count().register(trigger='store')
"""
    register(wires[0], script)
    keys = [f"k{i}" for i in range(30)]
    for wire in wires:
        assert trigger(wire, "store", *keys) == [b"30"]
    with cluster.cluster_client(socket_timeout=60) as client:
        assert client.mget_nonatomic(keys) == [b"stored"] * 30


def test_an_error_of_another_shard_is_the_reply(cluster, wires):
    tag = own_tag(cluster.servers[1])
    script = f"""
def f(x):
    if hashtag() == {tag!r}:
        flat_error('only there')
    return x
{B}.map(f).register(trigger='t')
"""
    register(wires[0], script)
    for wire in wires:
        assert trigger(wire, "t") == Error("only there")


def test_nothing_stays_listed_anywhere(wires):
    register(wires[0], f"{B}.map(lambda x: int(x[1])).register(trigger='t')")
    for wire in wires:
        for value in ("1", "z"):
            trigger(wire, "t", value)
    for wire in wires:
        wait_until(lambda wire=wire: executions_of(wire) == {}, "the executions being dropped")


def test_each_shard_counts_its_own_events(wires):
    register(wires[0], f"{B}.map(lambda x: int(x[1])).register(trigger='t')")
    for wire, good, bad in zip(wires, (5, 0, 2), (1, 3, 0), strict=True):
        for value in ["1"] * good + ["z"] * bad:
            trigger(wire, "t", value)
    for wire, good, bad in zip(wires, (5, 0, 2), (1, 3, 0), strict=True):
        assert by_trigger(wire, "t").counters == (good + bad, good, bad, 0)


# --- keys --------------------------------------------------------------------------------------------------------


@MODE
def test_triggeronkey_is_redirected_to_the_owner(cluster, wires, mode):
    register(wires[0], f"{B}.map(lambda x: x[1]).register(trigger='t', mode={mode!r})")
    for i in range(10):
        key = f"key:{i}"
        owner = cluster.owner(key)
        for server, wire in zip(cluster.servers, wires, strict=True):
            reply = wire.call("RG.TRIGGERONKEY", "t", key)
            if server is owner:
                assert reply == [key.encode()] * (3 if mode == "async" else 1)
            else:
                slot = wire.ok("CLUSTER", "KEYSLOT", key)
                assert reply == Error(f"MOVED {slot} {owner.addr}")
    # Nobody counts what was redirected.
    assert sum(by_trigger(wire, "t").counters[0] for wire in wires) == 10


def test_a_redirect_comes_before_the_trigger_is_looked_up(cluster, wires):
    key = next(f"k{i}" for i in range(100) if cluster.owner(f"k{i}") is cluster.servers[1])
    assert wires[0].error("RG.TRIGGERONKEY", "none", key).startswith("MOVED ")
    assert wires[1].error("RG.TRIGGERONKEY", "none", key) == "ERR subcommand not found"


def test_through_the_cluster_client_of_redis_py(cluster, wires):
    register(wires[0], f"{B}.map(lambda x: execute('incr', x[1])).register(trigger='t', mode='sync')")
    with cluster.cluster_client(socket_timeout=60) as client:
        for i in range(30):
            assert client.execute_command("RG.TRIGGERONKEY", "t", f"n{i}") == [b"1"]
        assert client.mget_nonatomic([f"n{i}" for i in range(30)]) == [b"1"] * 30
        for node in client.get_primaries():
            reply = client.execute_command("RG.TRIGGER", "t", f"x{{{own_tag_of(cluster, node)}}}", target_nodes=node)
            assert reply == [b"1"]


def own_tag_of(cluster, node):
    return own_tag(cluster.by_port(node.port))


# --- functions on the shards -------------------------------------------------------------------------------------


def test_globals_of_a_session_are_shared_on_each_shard(wires):
    script = f"""
c = 0
def inc(x):
    global c
    c += 1
    return c
{B}.map(inc).register(trigger='d', convertToStr=False, mode='sync')
{B}.map(inc).register(trigger='e', convertToStr=False, mode='async_local')
"""
    register(wires[0], script)
    for i, wire in enumerate(wires):
        assert [trigger(wire, name) for name in "de" * (i + 1)] == [[n + 1] for n in range(2 * (i + 1))]


@pytest.mark.parametrize("mode", ["async_local", "async"])
def test_a_step_registers_another_trigger_for_all_shards(wires, mode):
    script = f"""
def more(x):
    try:
        GB('CommandReader').map(lambda y: 'made').register(trigger=x[1], mode='sync')
    except Exception as error:
        return 'refused' if 'trigger already registered' in str(error) else str(error)
    return 'done'
{B}.map(more).register(trigger='maker', mode={mode!r})
"""
    register(wires[0], script)
    for i, wire in enumerate(wires):
        found = trigger(wire, "maker", f"new{i}")
        if mode == "async_local":
            assert found == [b"done"]
            # Here at once, elsewhere soon.
            assert trigger(wire, f"new{i}") == [b"made"]
        else:
            # All three shards want the name, and one gets it.
            assert sorted(found) == [b"done", b"refused", b"refused"]
        for other in wires:
            wait_until(lambda other=other, i=i: trigger(other, f"new{i}") == [b"made"], "the new trigger everywhere")
    assert len({tuple(dump(wire)) for wire in wires}) == 1


def test_a_sync_function_registers_another_trigger(wires):
    """It holds the server lock, so it can only hand the request in."""
    script = f"""
def more(x):
    GB('CommandReader').map(lambda y: 'made').register(trigger=x[1], mode='sync')
    return 'handed in'
{B}.map(more).register(trigger='maker', mode='sync')
"""
    register(wires[0], script)
    assert trigger(wires[1], "maker", "new") == [b"handed in"]
    for wire in wires:
        wait_until(lambda wire=wire: trigger(wire, "new") == [b"made"], "the new trigger everywhere")
    assert wires[1].call("PING") == Simple("PONG")


@MODE
def test_many_clients_of_all_shards_at_once(cluster, wires, mode):
    copies = 3 if mode == "async" else 1
    register(wires[0], f"{B}.map(lambda x: x[1]).register(trigger='t', mode={mode!r})")
    clients = [Wire(server.port) for server in cluster.servers for _ in range(8)]
    try:
        for turn in range(10):
            for i, client in enumerate(clients):
                client.send("RG.TRIGGER", "t", f"{turn}-{i}")
            for i, client in enumerate(clients):
                assert client.read() == [b"%d-%d" % (turn, i)] * copies
    finally:
        for client in clients:
            client.close()
    assert [by_trigger(wire, "t").counters for wire in wires] == [(80, 80, 0, 0)] * 3


def test_a_replica_refuses_triggers(six):
    """It holds them, and fires nothing."""
    master = six.masters()[0]
    with Wire(master.port) as wire:
        register(wire, simple_trigger("s") + f"\n{B}.map(lambda x: x[1]).register(trigger='a')")
        assert trigger(wire, "s") == [b"1"]
        held = set(dump(wire))
    for replica in six.replicas():
        with Wire(replica.port) as wire:
            wait_until(lambda wire=wire: set(dump(wire)) == held, f"{replica} holding both")
            for name in ("s", "a"):
                assert wire.error("RG.TRIGGER", name, "x").startswith("READONLY")
            wire.ok("READONLY")
            key = next(f"k{i}" for i in range(1000) if not wire_moved(wire, f"k{i}"))
            assert wire.error("RG.TRIGGERONKEY", "s", key).startswith("READONLY")
            assert by_trigger(wire, "s").counters == (0, 0, 0, 0)


def wire_moved(wire, key):
    reply = wire.call("GET", key)
    return isinstance(reply, Error) and reply.text.startswith("MOVED")
