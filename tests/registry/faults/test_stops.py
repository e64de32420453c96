"""SIGSTOP of the leader or of a follower, short and long: the others go on, and it catches up."""

import contextlib
import time

import pytest
from breaking import HEAL_S
from ledger import DONE, Ledger, Writer
from registrations import find_leader, register, simple_trigger, trigger, wait_equal, wait_group
from replies import wait_until
from wire import Wire


def chosen(cluster, who):
    leader = wait_group(cluster.servers)
    return leader if who == "leader" else next(server for server in cluster.servers if server is not leader)


@pytest.mark.parametrize("who", ["leader", "follower"])
@pytest.mark.parametrize("seconds", [1, 10])
def test_a_stop(trio, who, seconds):
    victim = chosen(trio, who)
    others = [server for server in trio.servers if server is not victim]
    ledger = Ledger()
    ledger.add(victim, "before")
    with contextlib.ExitStack() as stack:
        # One for each node: the client of the stopped one waits, the others need not.
        writers = {
            server: stack.enter_context(Writer(ledger, [server], f"w{i}")) for i, server in enumerate(trio.servers)
        }
        for writer in writers.values():
            writer.wait_done(3)
        victim.pause()
        until = time.monotonic() + seconds
        try:
            if seconds > 5:
                # Two of three are a majority.
                for server in others:
                    writers[server].wait_done(10, timeout=HEAL_S)
                    with Wire(server.port) as wire:
                        assert trigger(wire, "before") == [b"before"]
            wait_until(lambda: time.monotonic() > until, "the time of the stop", HEAL_S)
        finally:
            victim.resume()
        for writer in writers.values():
            writer.wait_done(5, timeout=HEAL_S)
    trio.wait_cluster_ok(HEAL_S)
    wait_group(trio.servers, HEAL_S)
    ledger.check(trio.servers)


def test_an_old_leader_does_not_believe_to_be_one(trio):
    """It wakes up after others have agreed on more, and answers a change only with what they agree to."""
    victim = chosen(trio, "leader")
    others = [server for server in trio.servers if server is not victim]
    with Wire(victim.port) as wire:
        register(wire, simple_trigger("t", "old"), "ID", "s")
        victim.pause()
        wait_until(lambda: find_leader(others), "another leader", HEAL_S)
        with Wire(others[0].port) as other:
            wait_until(lambda: upgraded(other, "new"), "an upgrade without the old leader", HEAL_S)
        # Sent while it sleeps: handled as soon as it wakes up.
        wire.send("RG.PYEXECUTE", simple_trigger("t", "newest"), "ID", "s", "UPGRADE")
        wire.send("RG.DUMPREGISTRATIONS")
        victim.resume()
        told = str(wire.read())
        wire.read()
        wait_group(trio.servers, HEAL_S)
        (row,) = wait_equal(trio.servers)[0]
        found = trigger(wire, "t")
        assert found == [b"newest"] if "OK" in told else found in ([b"new"], [b"newest"])
        for server in others:
            with Wire(server.port) as other:
                assert trigger(other, "t") == found


def upgraded(wire, value):
    reply = wire.call("RG.PYEXECUTE", simple_trigger("t", value), "ID", "s", "UPGRADE")
    return getattr(reply, "text", "") == "OK"


def test_a_stopped_node_is_upgraded_past_many_changes(trio):
    """More than a log keeps for one that lags: it gets a snapshot."""
    victim = chosen(trio, "follower")
    others = [server for server in trio.servers if server is not victim]
    victim.pause()
    ledger = Ledger()
    # Functions with large constants, so that the log is cut.
    with Wire(others[0].port) as wire:
        wait_until(lambda: ledger.add(others[0], f"first{time.monotonic_ns()}") == DONE, "a change without it", HEAL_S)
        for i in range(12):
            script = f"text = {chr(97 + i)!r} * 2_000_000\nGB('CommandReader').map(lambda x: len(text))"
            register(wire, f"{script}.register(trigger='big', mode='sync')", "ID", "big", "UPGRADE")
            ledger.add(others[1], f"small{i}")
    victim.resume()
    trio.wait_cluster_ok(HEAL_S)
    wait_group(trio.servers, HEAL_S)
    ledger.made.add("big")
    names = {row[3].decode() for row in wait_equal(trio.servers)[0]}
    assert ledger.made == names
    for server in trio.servers:
        with Wire(server.port) as wire:
            assert trigger(wire, "big") == [b"2000000"]
