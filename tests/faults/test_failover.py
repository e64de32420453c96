"""Three masters with a replica each: a master dies or hands over, and executions work again by themselves."""

import pytest
from breaking import HEAL_S, expect_free, outcome, running_cluster, wait_works
from loops import KEYS, Loop, expect_complete, fill
from replies import FINISHED, executions, wait_until
from wire import HANG_GUARD_S, Wire


@pytest.fixture(scope="module")
def pairs():
    with running_cluster(masters=3, replicas=1) as cluster:
        yield cluster


@pytest.fixture
def filled(pairs):
    """The cluster with all its nodes, every key on master and replica."""
    for server in pairs.servers:
        if not server.alive():
            server.start()
    pairs.wait_cluster_ok(HEAL_S)
    pairs.wait_mesh(HEAL_S)
    fill(pairs)
    for master in pairs.masters():
        with Wire(master.port) as wire:
            wait_until(lambda wire=wire: wire.ok("WAIT", 1, 1000) >= 1, f"the replica of {master} being in step")
    return pairs


def replica_of(cluster, master):
    for server in cluster.replicas():
        if server.command("ROLE")[2] == master.port:
            return server
    raise LookupError(f"{master} has no replica")


def test_a_master_dies(filled):
    victim, first, second = filled.masters()
    heir = replica_of(filled, victim)
    with Loop(first) as loop:
        loop.wait_complete(4)
        victim.kill()
        wait_until(lambda: heir.is_master(), "the promotion", HEAL_S)
        loop.wait_complete(8)
    loop.check()
    expect_complete([first, second, heir], 3)
    expect_free([first, second, heir])

    # The old master comes back as a replica and disturbs nobody.
    with Loop(heir) as loop:
        victim.start()
        filled.wait_cluster_ok(HEAL_S)
        loop.wait_complete(8)
    loop.check()
    assert not victim.is_master()
    expect_complete([first, second, heir], 3)


def test_a_master_hands_over(filled):
    """CLUSTER FAILOVER: nobody dies, the roles change under the executions."""
    master = filled.masters()[0]
    heir = replica_of(filled, master)
    others = [server for server in filled.masters() if server is not master]
    with Loop(others[0]) as outside, Loop(master) as inside:
        outside.wait_complete(4)
        assert heir.command("CLUSTER", "FAILOVER") == b"OK"
        wait_until(lambda: heir.is_master(), "the hand-over", HEAL_S)
        outside.wait_complete(8)
    for loop in (outside, inside):
        loop.check()
    expect_complete([*others, heir], 3)
    expect_free([*others, heir])


def test_executions_started_on_a_replica(filled):
    """A replica owns no slots. What it answers is complete or an error, and it answers."""
    replica = filled.replicas()[0]
    with Wire(replica.port) as wire:
        results, errors = outcome(wire.call("RG.PYEXECUTE", "GB().count().run('k*')"))
        assert errors or results == [b"%d" % KEYS]
        results, errors = outcome(wire.call("RG.PYEXECUTE", "GB('ShardsIDReader').run()"))
        assert errors or len(results) == 3
        outcome(wire.call("RG.PYEXECUTE", "GB().count().run('k*', mode='async_local')"))
        wait_until(lambda: all(status in FINISHED for status in executions(wire).values()), "everything ending")


def test_a_master_is_stopped_and_replaced(filled):
    """The old master wakes up and still believes to be one; nothing of it may be counted."""
    victim, first, _ = filled.masters()
    heir = replica_of(filled, victim)
    with Loop(first) as loop:
        loop.wait_complete(4)
        victim.pause()
        wait_until(lambda: heir.is_master(), "the promotion", HEAL_S)
        loop.wait_complete(4)
        victim.resume()
        with Wire(victim.port) as wire:
            results, errors = outcome(wire.call("RG.PYEXECUTE", "GB().count().run('k*')", timeout=HANG_GUARD_S))
            assert errors or results == [b"%d" % KEYS]
        filled.wait_cluster_ok(HEAL_S)
        loop.wait_complete(8)
    loop.check()
    wait_works([first, heir], 3)
