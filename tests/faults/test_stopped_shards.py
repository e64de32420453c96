"""SIGSTOP: a shard that is silent is lost after a moment, and works again after SIGCONT."""

import time

import pytest
from breaking import (
    ERROR_S,
    EVERYWHERE,
    PHASES,
    expect_free,
    expect_loss,
    outcome,
    wait_flowing,
    wait_works,
)
from replies import FINISHED, Gate, executions, results_of, wait_until
from wire import Wire

COUNT = "GB().count().run('k*')"
KEYS = 60


def fill(cluster):
    for i in range(KEYS):
        cluster.owner(f"k{i}").command("SET", f"k{i}", i)


def expect_right(cluster):
    """Nothing of an older execution may turn up in later ones."""
    for server in cluster.servers:
        with Wire(server.port) as wire:
            for _ in range(5):
                assert results_of(wire.ok("RG.PYEXECUTE", COUNT)) == [b"%d" % KEYS]


def expect_nothing_listed(servers):
    """What a client waited for is dropped on all shards, also on those that were away."""
    for server in servers:
        with Wire(server.port) as wire:
            wait_until(lambda wire=wire: not executions(wire), f"the executions of {server} being dropped")


@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_is_stopped(trio, wires, phase):
    fill(trio)
    initiator, victim, other = trio.servers
    wires[0].send("RG.PYEXECUTE", PHASES[phase])
    wait_flowing(trio.servers)
    victim.pause()
    expect_loss(wires[0].read(timeout=ERROR_S), victim)
    expect_free([initiator, other])
    victim.resume()
    trio.wait_cluster_ok()
    wait_works(trio.servers, 3)
    expect_right(trio)
    # What it still had of the old execution is gone as well.
    expect_free(trio.servers)
    expect_nothing_listed(trio.servers)


def test_the_initiator_is_stopped(trio, wires):
    fill(trio)
    initiator, *others = trio.servers
    wires[0].send("RG.PYEXECUTE", PHASES["shuffle"])
    wait_flowing(trio.servers)
    initiator.pause()
    expect_free(others)
    initiator.resume()
    _, errors = outcome(wires[0].read(timeout=ERROR_S))
    assert errors, "the others have given up, so it cannot be complete"
    trio.wait_cluster_ok()
    wait_works(trio.servers, 3)
    expect_right(trio)
    expect_free(trio.servers)
    expect_nothing_listed(trio.servers)


def test_a_shard_is_stopped_before_the_start(trio, wires):
    initiator, victim, other = trio.servers
    victim.pause()
    expect_loss(wires[0].call("RG.PYEXECUTE", EVERYWHERE, timeout=ERROR_S), victim)
    # A second time, when the loss is known, and from another shard.
    expect_loss(wires[0].call("RG.PYEXECUTE", EVERYWHERE, timeout=ERROR_S), victim)
    expect_loss(wires[2].call("RG.PYEXECUTE", EVERYWHERE, timeout=ERROR_S), victim)
    victim.resume()
    trio.wait_cluster_ok()
    wait_works(trio.servers, 3)


def test_a_short_stop_is_survived_or_reported(trio, wires):
    """Shorter than what counts as a loss. Whatever the client gets, it is the whole or an error."""
    fill(trio)
    victim = trio.servers[1]
    for stop_s in (0.2, 1.0):
        gate = Gate(trio.servers)
        wires[0].send("RG.PYEXECUTE", gate.code + "GB().map(lambda r: r['key']).map(hold).count().run('k*')")
        gate.wait_reached()
        victim.pause()
        until = time.monotonic() + stop_s
        wait_until(lambda until=until: time.monotonic() > until, "the time of the stop")
        victim.resume()
        gate.open()
        results, errors = outcome(wires[0].read())
        assert errors or results == [b"%d" % KEYS]
    trio.wait_cluster_ok()
    wait_works(trio.servers, 3)
    expect_right(trio)


def test_stopped_and_killed(trio, wires):
    """A shard that never comes back after it was stopped."""
    initiator, victim, other = trio.servers
    wires[0].send("RG.PYEXECUTE", PHASES["collect"])
    wait_flowing(trio.servers)
    victim.pause()
    victim.kill()
    expect_loss(wires[0].read(timeout=ERROR_S), victim)
    expect_free([initiator, other])


def test_two_workers_are_stopped(trio, wires):
    initiator, first, second = trio.servers
    wires[0].send("RG.PYEXECUTE", PHASES["shuffle"])
    wait_flowing(trio.servers)
    first.pause()
    second.pause()
    _, errors = outcome(wires[0].read(timeout=ERROR_S))
    assert any(server.node_id in text or f":{server.port}" in text for text in errors for server in (first, second))
    expect_free([initiator])
    first.resume()
    second.resume()
    trio.wait_cluster_ok()
    wait_works(trio.servers, 3)
    for wire in wires:
        wait_until(
            lambda wire=wire: all(status in FINISHED for status in executions(wire).values()),
            "everything ending",
        )
