"""Registrations on replicas: full and partial syncs, single changes, chains, promotion and demotion; clusters."""

import contextlib
import os
import time

import localcluster
import pytest
from breaking import no_crash, running_cluster
from persisting import (
    expect,
    expect_names,
    follow,
    info,
    is_readonly,
    kill_children,
    logged,
    received,
    rewrite,
    wait_following,
    wait_idle,
    works,
)
from registrations import (
    OK,
    by_trigger,
    dump,
    register,
    simple_trigger,
    state,
    trigger,
    wait_equal,
    wait_group,
)
from replies import executions_of, wait_until
from wire import Wire

RDB = ("--save", "3600 1")
COMMANDS_ONLY = ("--appendonly", "yes", "--appendfsync", "always", "--aof-use-rdb-preamble", "no")
DISK = ("--repl-diskless-sync", "no")
DISKLESS = ("--repl-diskless-sync", "yes")
# How the master sends its data, and how the replica takes it.
SYNCS = {
    "disk": (DISK, ("--repl-diskless-load", "disabled")),
    "sockets": (DISKLESS, ("--repl-diskless-load", "disabled")),
    "sockets, parsed at once": (DISKLESS, ("--repl-diskless-load", "on-empty-db")),
    "sockets, beside the old data": (DISKLESS, ("--repl-diskless-load", "swapdb")),
}
PROMOTED_S = 2.0
DEBUG = ("--enable-debug-command", "yes")

on_every_server = pytest.mark.matrix


def add(server, *names):
    with Wire(server.port) as wire:
        for name in names:
            register(wire, simple_trigger(name, name), "ID", name, "DESCRIPTION", f"about {name}")


def remove(server, name, *options):
    with Wire(server.port) as wire:
        assert wire.call("RG.UNREGISTER", by_trigger(wire, name).id, *options) == OK


def expect_silent(server, before, names):
    """The replica holds everything, fires nothing and takes no change."""
    wait_until(lambda: state(server) == before, f"{server} holding {before}")
    with Wire(server.port) as wire:
        for name in names:
            assert is_readonly(wire.call("RG.TRIGGER", name))
        assert is_readonly(wire.call("RG.PYEXECUTE", simple_trigger("of-a-replica"), "ID", "of-a-replica"))
        for registration in dump(wire):
            assert is_readonly(wire.call("RG.UNREGISTER", registration))
        # What a master began just before it became a replica ends a moment later.
        wait_until(lambda: executions_of(wire) == {}, "nothing being executed")
    assert state(server) == before


@pytest.fixture
def pair(fresh):
    """A master and its replica."""
    master, replica = fresh(), fresh()
    follow(replica, master)
    return master, replica


# --- full syncs --------------------------------------------------------------------------------------------------


@on_every_server
@pytest.mark.parametrize("way", SYNCS)
def test_a_full_sync(fresh, way):
    to, at = SYNCS[way]
    master, replica = fresh(server_args=to), fresh(server_args=at)
    add(master, "a", "gone")
    remove(master, "gone")
    # What the replica had is of no use any more.
    add(replica, "own")
    follow(replica, master)
    before = state(master)
    expect_silent(replica, before, "a")
    add(master, "b")
    wait_following(replica, master)
    expect_silent(replica, state(master), "ab")
    # Once more, now that it has the master's data already.
    replica.command("REPLICAOF", "NO", "ONE")
    add(replica, "c")
    follow(replica, master)
    expect_silent(replica, state(master), "ab")


@on_every_server
def test_a_master_without_registrations(fresh):
    master, replica = fresh(), fresh()
    add(replica, "own")
    follow(replica, master)
    expect_silent(replica, ([], []), [])


def fill(server):
    """Data that takes a while to send and to load."""
    with server.client() as client:
        for start in range(0, 6000, 500):
            pipe = client.pipeline(transaction=False)
            for n in range(start, start + 500):
                pipe.set(f"key{n}", os.urandom(4000))
            pipe.execute()


def lose_track(master, replica):
    """The replica misses more than the master's backlog holds, and wakes up to a slow full sync."""
    with master.client() as client:
        client.config_set("repl-backlog-size", 16384)
        replica.pause()
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")
        fill(master)
        # Keys come one by one, so that the sync lasts until it is ended.
        client.config_set("rdb-key-save-delay", 500)
    replica.resume()


@on_every_server
def test_a_failed_sync_beside_the_old_data_changes_nothing(fresh):
    to, at = SYNCS["sockets, beside the old data"]
    # The replica answers after each few keys that it has loaded.
    master, replica = fresh(server_args=to), fresh(server_args=(*at, "--loading-process-events-interval-bytes", "8192"))
    follow(replica, master)
    add(master, "a")
    wait_following(replica, master)
    before = state(replica)
    lose_track(master, replica)
    add(master, "b")
    remove(master, "a")
    wait_until(lambda: info(replica, "persistence")["async_loading"] == 1, "the load beside the old data")
    # The old registrations are there as long as the old data is.
    assert state(replica) == before
    kill_children(master)
    # The replica begins the next one at once.
    wait_until(lambda: "sync: Discarding temporary DB" in replica.log(), "the end of the failed load")
    assert state(replica) == before
    master.command("CONFIG", "SET", "rdb-key-save-delay", 0)
    wait_following(replica, master)
    expect_silent(replica, state(master), "b")


@on_every_server
def test_a_failed_sync_in_place_is_repeated(fresh):
    master, replica = fresh(server_args=DISKLESS), fresh(server_args=("--repl-diskless-load", "on-empty-db"))
    add(replica, "own")
    add(master, "a")
    with master.client() as client:
        fill(master)
        client.config_set("rdb-key-save-delay", 500)
        replica.command("REPLICAOF", "127.0.0.1", master.port)
        wait_until(lambda: "Loading DB in memory" in replica.log(), "the load")
        kill_children(master)
        client.config_set("rdb-key-save-delay", 0)
    wait_following(replica, master)
    expect_silent(replica, state(master), "a")
    no_crash([master, replica])


# --- single changes ----------------------------------------------------------------------------------------------


@on_every_server
def test_each_change_is_one_command(pair):
    master, replica = pair
    changes = [
        lambda: add(master, "a"),
        lambda: add(master, "b"),
        lambda: remove(master, "a"),
        lambda: upgrade(master),
    ]
    for n, change in enumerate(changes, 1):
        change()
        wait_following(replica, master)
        expect_silent(replica, state(master), [])
        assert received(replica) == n
    with Wire(master.port) as wire:
        wire.error("RG.PYEXECUTE", simple_trigger("b"), "ID", "taken")
        trigger(wire, "b")
        wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').run()")
    wait_following(replica, master)
    assert received(replica) == len(changes)


def upgrade(server):
    with Wire(server.port) as wire:
        register(wire, simple_trigger("b", "b") + "\n" + simple_trigger("c", "c"), "ID", "b", "UPGRADE")


@on_every_server
def test_changes_that_functions_make(pair):
    master, replica = pair
    inner = "GB('CommandReader').map(lambda y: 'inner').register(trigger='inner-%s' % x[1], mode='sync')"
    with Wire(master.port) as wire:
        for mode in ("sync", "async_local"):
            register(wire, f"GB('CommandReader').foreach(lambda x: {inner}).register(trigger='{mode}', mode='{mode}')")
            wire.ok("RG.TRIGGER", mode, mode)
    wait_until(lambda: len(state(master)[0]) == 4, "what the functions registered")
    wait_following(replica, master)
    expect_silent(replica, state(master), ["inner-sync", "inner-async_local"])
    assert received(replica) == 4


@on_every_server
def test_within_a_transaction(pair):
    master, replica = pair
    add(master, "a", "b")
    with Wire(master.port) as wire:
        first = by_trigger(wire, "a").id
        wire.ok("MULTI")
        wire.ok("SET", "before", "1")
        wire.ok("RG.UNREGISTER", first)
        wire.ok("SET", "after", "1")
        assert wire.ok("EXEC")[1] == OK
    wait_following(replica, master)
    expect_silent(replica, state(master), "b")
    assert replica.command("MGET", "before", "after") == [b"1", b"1"]


@on_every_server
def test_a_partial_sync(pair):
    master, replica = pair
    add(master, "a")
    wait_following(replica, master)
    syncs = info(master, "stats")["sync_full"]
    for name in "bcd":
        replica.pause()
        master.command("CLIENT", "KILL", "TYPE", "replica")
        add(master, name)
        replica.resume()
        wait_following(replica, master)
        expect_silent(replica, state(master), "a" + name)
    assert info(master, "stats")["sync_full"] == syncs
    assert info(master, "stats")["sync_partial_ok"] == 3


@on_every_server
def test_a_chain(fresh):
    master, middle, last = fresh(), fresh(server_args=COMMANDS_ONLY), fresh()
    add(master, "a")
    follow(middle, master)
    follow(last, middle)
    add(master, "b")
    remove(master, "a")
    wait_until(lambda: state(last) == state(master) == state(middle), "the whole chain holding the same")
    assert received(last) == received(middle) == 2
    expect_silent(last, state(master), "b")


@on_every_server
def test_a_replica_keeps_an_aof_of_its_own(fresh):
    master, replica = fresh(), fresh(server_args=COMMANDS_ONLY)
    add(master, "a")
    follow(replica, master)
    wait_idle(replica)
    assert (logged(replica, "APPLY"), logged(replica, "RESTORE")) == (0, 1)
    add(master, "b")
    wait_following(replica, master)
    assert logged(replica, "APPLY") == 1
    rewrite(replica)
    assert (logged(replica, "APPLY"), logged(replica, "RESTORE")) == (0, 1)
    add(master, "c")
    wait_following(replica, master)
    before = state(master)
    master.kill()
    replica.kill()
    replica.start()
    expect(replica, before, "abc")


@on_every_server
def test_a_replica_that_restarts(fresh):
    master = fresh()
    replica = fresh(server_args=(*RDB, "--replicaof", f"127.0.0.1 {master.port}"))
    wait_following(replica, master)
    add(master, "a")
    wait_following(replica, master)
    replica.restart()
    add(master, "b")
    wait_following(replica, master)
    expect_silent(replica, state(master), "ab")


@on_every_server
def test_clients_of_a_replica_may_not_use_the_internal_command(pair):
    master, replica = pair
    add(master, "a")
    wait_following(replica, master)
    with Wire(replica.port) as wire:
        for word in ("APPLY", "RESTORE"):
            wire.error("RG.INNERREGISTRY", word, "x")
        replica.command("CONFIG", "SET", "replica-read-only", "no")
        for word in ("APPLY", "RESTORE"):
            assert "for replication and the AOF only" in wire.error("RG.INNERREGISTRY", word, "x")
    assert state(replica) == state(master)


# --- roles -------------------------------------------------------------------------------------------------------


@on_every_server
def test_promotion_and_demotion(pair):
    master, replica = pair
    add(master, "a")
    with Wire(master.port) as wire:
        register(wire, simple_trigger("local", "local", mode="async_local"), "ID", "local")
    names = ["a", "local"]
    wait_following(replica, master)
    for _ in range(3):
        before = state(master)
        replica.command("REPLICAOF", "NO", "ONE")
        promoted = time.monotonic()
        wait_until(lambda replica=replica: works(replica, names), "the triggers of the new master")
        assert time.monotonic() - promoted < PROMOTED_S
        assert state(replica) == before
        follow(master, replica)
        master, replica = replica, master
        expect_silent(replica, before, names)
        add(master, f"more{len(names)}")
        names.append(f"more{len(names)}")
        wait_following(replica, master)
        expect_silent(replica, state(master), names)
    # Numbers of registrations go on where the old master was.
    assert len(set(dump_ids(master))) == len(names)


def dump_ids(server):
    with Wire(server.port) as wire:
        return list(dump(wire))


@on_every_server
def test_functions_hear_of_it_on_a_replica(fresh):
    master, replica = fresh(), fresh()
    code = """
def heard():
    log('heard of it')
def gone():
    log('heard of its end')
GB('CommandReader').register(trigger='t', mode='sync', onRegistered=heard, onUnregistered=gone)
"""
    with Wire(replica.port) as wire:
        register(wire, code.replace("heard of", "OWN heard of"))
    follow(replica, master)
    wait_until(lambda: "OWN heard of its end" in replica.log(), "onUnregistered of what the sync removed")
    with Wire(master.port) as wire:
        register(wire, code)
    wait_until(lambda: "heard of it" in replica.log().replace("OWN heard of it", ""), "onRegistered on the replica")
    remove(master, "t")
    wait_until(lambda: "heard of its end" in replica.log().replace("OWN heard of its end", ""), "onUnregistered")


@on_every_server
def test_a_failover_while_functions_write(pair):
    """FAILOVER pauses writes until the replica has everything: what functions and changes do has to wait."""
    master, replica = pair
    add(master, "a")
    writes = "GB('ShardsIDReader').foreach(lambda x: [execute('incr', 'n') for _ in range(200)]).run()"
    total = 0
    for round in range(5):
        with Wire(master.port) as runner, Wire(master.port) as changer:
            for _ in range(5):
                runner.send("RG.PYEXECUTE", writes)
            changer.send("RG.PYEXECUTE", simple_trigger(f"t{round}", f"t{round}"), "ID", f"t{round}")
            master.command("FAILOVER")
            wait_until(lambda replica=replica: info(replica, "replication")["role"] == "master", "the failover")
            # Clients that wait when their master becomes a replica are told so, or cut off.
            with contextlib.suppress(ConnectionError):
                for _ in range(5):
                    runner.read()
                changer.read()
        wait_following(master, replica)
        no_crash([master, replica])
        master, replica = replica, master
        done = int(master.command("GET", "n") or 0)
        assert total <= done <= total + 1000
        total = done
        assert replica.command("GET", "n") == master.command("GET", "n")
        expect_silent(replica, state(master), "a")
    assert works(master, "a")


# --- clusters ----------------------------------------------------------------------------------------------------


def test_in_a_group_replicas_learn_from_the_log(six):
    for server in six.masters():
        add(server, f"of-{server.port}")
    names = [f"of-{server.port}" for server in six.masters()]
    wait_equal(six.servers)
    for replica in six.replicas():
        assert received(replica) == 0
        with Wire(replica.port) as wire:
            for name in names:
                assert is_readonly(trigger(wire, name))
    for master in six.masters():
        assert works(master, names)


@pytest.mark.parametrize("kind", ["rdb", "aof"])
def test_the_log_wins_over_what_a_node_loads(kind):
    """Dump and AOF of a member are older than the group's log: nothing comes back from them and nothing is lost."""
    args = RDB if kind == "rdb" else COMMANDS_ONLY
    with running_cluster(masters=3, server_args=args) as cluster:
        wait_group(cluster.servers)
        add(cluster.servers[0], "a", "gone")
        wait_equal(cluster.servers)
        for server in cluster.servers:
            server.command("SAVE") if kind == "rdb" else rewrite(server)
        remove(cluster.servers[0], "gone")
        add(cluster.servers[0], "b")
        before = wait_equal(cluster.servers)
        for server in cluster.servers:
            server.kill()
        for server in cluster.servers:
            server.start()
        wait_group(cluster.servers)
        for server in cluster.servers:
            expect(server, before, "ab")
        if kind == "aof":
            # Changes are not in it, but its state is.
            assert all(logged(server, "APPLY") == 0 for server in cluster.servers)


def test_a_member_takes_no_harm_from_reloading_and_damaged_dumps():
    with running_cluster(
        masters=3, server_args=(*RDB, "--rdbcompression", "no", "--rdbchecksum", "no", *DEBUG)
    ) as cluster:
        wait_group(cluster.servers)
        add(cluster.servers[0], "a")
        before = wait_equal(cluster.servers)
        server = cluster.servers[1]
        server.command("DEBUG", "RELOAD")
        expect(server, before, "a")
        path = os.path.join(server.dir, "dump.rdb")
        with open(path, "rb") as file:
            data = bytearray(file.read())
        data[data.index(b"OXRS") + 12] ^= 0x55
        server.kill()
        with open(path, "wb") as file:
            file.write(data)
        server.start()
        assert "the cluster's log has the registrations, so the dump's are not needed" in server.log()
        wait_group(cluster.servers)
        expect(server, before, "a")


def test_a_dump_of_a_cluster_restores_fresh_servers(fresh):
    with running_cluster(masters=3, server_args=RDB) as cluster:
        wait_group(cluster.servers)
        add(cluster.servers[0], "a", "b")
        remove(cluster.servers[0], "a")
        before = wait_equal(cluster.servers)
        donor = cluster.servers[0]
        donor.command("FLUSHALL")
        donor.command("SAVE")
        with open(os.path.join(donor.dir, "dump.rdb"), "rb") as file:
            data = file.read()
    alone = fresh(server_args=RDB)
    restore(alone, data)
    expect(alone, before, "b")


def restore(server, data):
    server.kill()
    with open(os.path.join(server.dir, "dump.rdb"), "wb") as file:
        file.write(data)
    server.start()


def test_a_dump_founds_a_new_cluster(fresh):
    """The node that founds the group brings what it has loaded."""
    alone = fresh(server_args=RDB)
    add(alone, "a", "b")
    before = state(alone)
    alone.command("SAVE")
    with open(os.path.join(alone.dir, "dump.rdb"), "rb") as file:
        data = file.read()
    servers = localcluster.start_servers(
        3, module=localcluster.DEFAULT_MODULE, cluster=True, server_args=("--save", "")
    )
    try:
        for server in servers:
            restore(server, data)
            wait_until(lambda server=server: state(server) == before, f"{server} holding the dump")
        per_node = localcluster.SLOTS // 3 + 1
        for n, server in enumerate(servers):
            slots = range(n * per_node, min((n + 1) * per_node, localcluster.SLOTS))
            server.command("CLUSTER", "ADDSLOTSRANGE", slots[0], slots[-1])
        for server in servers[1:]:
            servers[0].command("CLUSTER", "MEET", "127.0.0.1", server.port)
        wait_group(servers)
        assert wait_equal(servers) == before
        for server in servers:
            expect_names(server, "ab")
        no_crash(servers)
    finally:
        for server in servers:
            server.stop()
