"""Timers in clusters: one owner fires, the owner changes with fail-over and slots, keys of timers move with them."""

import time

import localcluster
import pytest
from breaking import no_crash
from registrations import clear, named, register, wait_group
from replies import is_error, results_of, wait_until
from wire import Simple, Wire

# The owner changes within about two seconds of the change of the role; the rest is for a busy machine.
TAKEN_OVER_S = 20.0
STEP = "lambda x: execute('rpush', 'f{%s}' % hashtag(), str((x['scheduled'], x['count'])))"


def registered(**options):
    more = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f"GB('TimerReader').foreach({STEP}).register({more})"


def own_tag(server):
    """A hash tag of keys that live on this server; `None` if it is no master."""
    with Wire(server.port) as wire:
        script = "GB('ShardsIDReader').map(lambda x: hashtag()).run(mode='async_local')"
        (tag,) = results_of(wire.ok("RG.PYEXECUTE", script))
    return tag.decode()


def firings(server):
    """What this master has noted, oldest first; nothing while it is none."""
    tag = own_tag(server)
    if tag == "None":
        return []
    with Wire(server.port) as wire:
        return [eval(text) for text in wire.ok("LRANGE", "f{%s}" % tag, 0, -1)]


def sizes(servers):
    return [len(firings(server)) for server in servers]


def growing(servers, during=1.2):
    """Those of the servers that fire."""
    before = sizes(servers)
    time.sleep(during)
    return [server for server, a, b in zip(servers, before, sizes(servers), strict=True) if b > a]


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["async_local", "sync"])
def test_one_shard_fires(cluster, wires, mode):
    for _ in range(3):
        register(wires[0], registered(interval=0.1, mode=mode))
        wait_until(lambda: sum(sizes(cluster.servers)) >= 5, "some firings")
        counts = sizes(cluster.servers)
        assert sorted(counts)[:2] == [0, 0], f"several shards fire: {counts}"
        clear(cluster.servers)
        for server in cluster.servers:
            server.command("FLUSHALL")


@pytest.mark.matrix
def test_mode_async_gives_the_record_to_all_shards(cluster, wires):
    register(wires[0], registered(interval=0.2, mode="async"))
    wait_until(lambda: min(sizes(cluster.servers)) >= 3, "each shard working")
    lists = [firings(server)[:3] for server in cluster.servers]
    # One firing: the shards saw the same records.
    assert lists[0] == lists[1] == lists[2]
    assert [number for _, number in lists[0]] == [1, 2, 3]


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["async_local", "sync"])
def test_everywhere(cluster, wires, mode):
    register(wires[0], registered(interval=0.1, everywhere=True, mode=mode))
    wait_until(lambda: min(sizes(cluster.servers)) >= 3, "each shard firing")


def test_many_registrations_spread_over_the_shards(cluster, wires):
    register(wires[0], "\n".join(registered(interval=0.3, mode="async_local") for _ in range(24)))
    wait_until(lambda: min(sizes(cluster.servers)) > 0, "each shard firing some")


def test_a_key_of_another_shard_is_refused(cluster, wires):
    tags = [own_tag(server) for server in cluster.servers]
    reply = wires[0].call("RG.PYEXECUTE", f"registerTE(1, lambda: 1, 'te{{{tags[1]}}}')")
    assert is_error(reply, "ERR a key of command 'registerTE' is in a slot of another shard"), reply
    script = f"assert registerTE(1, lambda: execute('incr', 'n{{{tags[0]}}}'), 'te{{{tags[0]}}}')"
    assert wires[0].call("RG.PYEXECUTE", script) == Simple("OK")
    wait_until(lambda: wires[0].ok("GET", f"n{{{tags[0]}}}"), "the timer running")


@pytest.fixture
def own_cluster():
    with localcluster.LocalCluster(masters=3, replicas=1) as own:
        own.wait_mesh()
        wait_group(own.servers)
        yield own
        no_crash([server for server in own.servers if server.alive()])


def test_the_owner_changes_with_slots_and_fail_over(own_cluster):
    masters = own_cluster.masters()
    with Wire(masters[0].port) as wire:
        register(wire, registered(interval=0.1, mode="async_local"))
        # A timer with a key lives in a slot that moves.
        (registration,) = [row[1] for row in wire.ok("RG.DUMPREGISTRATIONS")]
        slot = wire.ok("CLUSTER", "KEYSLOT", registration)
    (owner,) = wait_until(lambda: growing(masters) if len(growing(masters, 0.5)) == 1 else None, "one owner")
    key, counter = "te{%s}" % registration.decode(), "n{%s}" % registration.decode()
    with Wire(owner.port) as wire:
        made = wire.call("RG.PYEXECUTE", f"assert registerTE(0, lambda: execute('incr', {counter!r}), {key!r})")
        assert made == Simple("OK"), made
        wait_until(lambda: int(wire.ok("GET", counter) or 0) > 2, "the timer with a key running")
    # The slot of the registration and of the key goes to another master.
    target = next(server for server in masters if server is not owner)
    own_cluster.move_slots([slot], owner, target)
    wait_until(lambda: growing(masters, 0.5) == [target], "the new owner of the slot firing", TAKEN_OVER_S)
    with Wire(target.port) as wire, Wire(owner.port) as other:
        assert wire.ok("TYPE", key) == Simple("rg_timeev")
        before = int(wire.ok("GET", counter))
        wait_until(lambda: int(wire.ok("GET", counter)) > before + 2, "the timer with a key going on", TAKEN_OVER_S)
        assert is_error(other.call("TYPE", key), "MOVED")
    # It fails over: its replica goes on with both.
    moments = sum((firings(server) for server in masters), [])
    replica = next(s for s in own_cluster.replicas() if master_of(s) == target.port)
    wait_until(lambda: holds(replica, key), "the replica having the key")
    target.kill()
    replica.command("CLUSTER", "FAILOVER", "TAKEOVER")
    others = [server for server in masters if server is not target]
    wait_until(lambda: growing([replica, *others], 0.5) == [replica], "the promoted replica firing", TAKEN_OVER_S)
    with Wire(replica.port) as wire:
        before = int(wire.ok("GET", counter))
        wait_until(lambda: int(wire.ok("GET", counter)) > before + 2, "the timer with a key going on", TAKEN_OVER_S)
    # No moment was fired by two masters.
    assert len({moment for moment, _ in moments}) == len(moments)


def test_replicas_know_of_a_failure_though_the_slot_begins_to_move(own_cluster):
    """Within the function: nothing else can come between it and what the replica is told."""
    master, other = own_cluster.masters()[:2]
    key = "te{%s}" % own_tag(master)
    replica = next(s for s in own_cluster.replicas() if master_of(s) == master.port)
    with Wire(master.port) as wire, Wire(replica.port) as copy:
        move = ["cluster", "setslot", str(wire.ok("CLUSTER", "KEYSLOT", key)), "migrating", other.node_id]
        program = f"def f():\n    execute(*{move!r})\n    raise ValueError('no more')\nregisterTE(0, f, {key!r})"
        assert wire.call("RG.PYEXECUTE", program) == Simple("OK")
        wait_until(lambda: "stopped for good" in master.log(), "the failure")
        assert wire.ok("WAIT", 1, 10000, timeout=30) == 1
        copy.ok("READONLY")
        assert copy.ok("DUMP", key) == wire.ok("DUMP", key)


@pytest.mark.matrix
def test_a_cluster_that_is_down_stops_no_timer():
    aof = ("--appendonly", "yes", "--appendfsync", "always")
    with localcluster.LocalCluster(masters=3, server_args=aof) as own:
        server, other, _ = own.servers
        tag = own_tag(server)
        keyed, loose = (f"{name}{{{tag}}}" for name in ("keyed", "loose"))
        with Wire(server.port) as wire:
            program = f"""
registerTE(0, lambda: execute('incr', {keyed!r}), 'te{{{tag}}}')
registerTE(0, lambda: execute('incr', {loose!r}))
"""
            assert wire.call("RG.PYEXECUTE", program) == Simple("OK")
            # What fires everywhere asks for no slot, but is skipped, too.
            register(wire, registered(interval=0.02, everywhere=True, mode="async_local"))
            expect_counting(server, keyed)
            expect_counting(server, loose)
            other.kill()
            wait_until(lambda: b"cluster_state:fail" in wire.ok("CLUSTER", "INFO"), "the cluster being down")
            # Their periods pass, in which they would fail.
            time.sleep(0.2)
            other.start()
            own.wait_cluster_ok()
            expect_counting(server, keyed)
            expect_counting(server, loose)
            expect_skips(server)
        # Its own restart: the server is up before its cluster is.
        server.restart()
        own.wait_cluster_ok()
        expect_counting(server, keyed)
        expect_skips(server)
        assert "stopped for good" not in server.log()
        no_crash(own.servers)


def expect_skips(server):
    """Of the only registration: some moments were skipped, none has failed."""
    with Wire(server.port) as wire:
        (row,) = wait_until(lambda: wire.ok("RG.DUMPREGISTRATIONS"), "the registration")
        data = named(named(row)["RegistrationData"])
        assert (data["numFailures"], data["lastError"], data["numAborted"] > 0) == (0, None, True), data


def expect_counting(server, counter):
    with Wire(server.port) as wire:
        start = int(wire.ok("GET", counter) or 0)
        wait_until(lambda: int(wire.ok("GET", counter) or 0) > start + 2, f"{counter} growing")


@pytest.mark.matrix
def test_a_server_that_stood_still_fires_nothing_by_what_it_knew():
    with localcluster.LocalCluster(masters=3, replicas=1, server_args=("--enable-debug-command", "yes")) as own:
        own.wait_mesh()
        wait_group(own.servers)
        masters = own.masters()
        with Wire(masters[0].port) as wire:
            for who, everywhere in (("one", False), ("each", True)):
                options = f"interval=0.1, mode='async_local', everywhere={everywhere}"
                register(wire, f"GB('TimerReader').foreach(lambda x: log('{who} fires')).register({options})")
        owner = wait_until(lambda: next((s for s in masters if "one fires" in s.log()), None), "an owner firing")
        replica = next(s for s in own.replicas() if master_of(s) == owner.port)
        with Wire(owner.port) as wire:
            # Stopped while its main thread is busy: what comes due waits for the lock, and gets it before news is read.
            wire.send("DEBUG", "SLEEP", "1")
            time.sleep(0.5)
            owner.pause()
            before = owner.log().count(" fires")
            wait_until(lambda: "one fires" in replica.log(), "the promoted replica firing", TAKEN_OVER_S)
            owner.resume()
            wire.read()
            wait_until(lambda: wire.ok("ROLE")[0] == b"slave", "the old owner knowing that it is none", TAKEN_OVER_S)
        assert owner.log().count(" fires") == before
        no_crash(own.servers)


def master_of(replica):
    with Wire(replica.port) as wire:
        return wire.ok("ROLE")[2]


def holds(server, key):
    with Wire(server.port) as wire:
        wire.ok("READONLY")
        return wire.ok("EXISTS", key) == 1
