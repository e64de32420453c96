"""Fail-over: a promoted replica fires within 2 s of its new role, a demoted master is silent at once."""

import time

from breaking import HEAL_S
from ledger import Ledger, Writer
from registrations import find_leader, register, simple_trigger, trigger, wait_equal, wait_group
from replies import wait_until
from wire import Error, Simple, Wire

# Promised.
ACTIVE_S = 2.0
# After this time the server itself has given up a hand-over.
FAILOVER_S = 6.0


def replica_of(cluster, master):
    def found():
        return next((one for one in cluster.replicas() if one.command("ROLE")[2] == master.port), None)

    return wait_until(found, f"a replica of {master}")


def has_role(wire, role):
    return wire.ok("ROLE")[0] == role


def expect_active(server):
    """It is silent as a replica, and fires soon after it calls itself a master."""
    until, again = None, time.monotonic() + FAILOVER_S
    with Wire(server.port) as wire:
        while (reply := trigger(wire, "t")) != [b"v"]:
            assert isinstance(reply, Error) and reply.text.startswith("READONLY"), reply
            # On a busy machine the old master may have taken its place back.
            if has_role(wire, b"slave"):
                until = None
            elif until is None:
                until = time.monotonic() + ACTIVE_S
            if until is None and time.monotonic() > again:
                begin_hand_over(server)
                again = time.monotonic() + FAILOVER_S
            late = until is not None and time.monotonic() > until
            assert not late, f"{server} is not active {ACTIVE_S:g} s after its promotion"
        assert has_role(wire, b"master"), "a replica has fired"


def expect_silent(server):
    """From the moment on when the server calls itself a replica."""
    with Wire(server.port) as wire:
        wait_until(lambda: has_role(wire, b"slave"), f"{server} becoming a replica", HEAL_S)
        for _ in range(20):
            reply = trigger(wire, "t")
            assert isinstance(reply, Error) and reply.text.startswith("READONLY"), reply
            text = wire.error("RG.PYEXECUTE", simple_trigger("new"))
            assert "READONLY" in text


def settle(cluster):
    cluster.wait_cluster_ok(HEAL_S)
    wait_group(cluster.servers, HEAL_S)


def begin_hand_over(heir):
    wait_until(lambda: heir.command("CLUSTER", "FAILOVER") == b"OK", "the hand-over beginning")


def finish_hand_over(heir):
    """A master that has not heard yet that this is its replica ignores the request: it is repeated then."""

    def over():
        try:
            return wait_until(heir.is_master, "the hand-over", FAILOVER_S)
        except TimeoutError:
            begin_hand_over(heir)
            return False

    wait_until(over, "the hand-over", HEAL_S)


def hand_over(cluster, master):
    heir = replica_of(cluster, master)
    begin_hand_over(heir)
    expect_active(heir)
    expect_silent(master)
    settle(cluster)
    return heir


def test_masters_hand_over(six):
    with Wire(six.masters()[0].port) as wire:
        register(wire, simple_trigger("t", "v"))
    wait_equal(six.servers)
    heirs = [hand_over(six, master) for master in six.masters()]
    for heir in heirs:
        with Wire(heir.port) as wire:
            register(wire, simple_trigger(f"by {heir.port}"))
    # And the one who leads the group by now: a master again.
    wait_until(lambda: find_leader(six.servers) in six.masters(), "a leader that is a master", HEAL_S)
    hand_over(six, find_leader(six.servers))
    assert len(wait_equal(six.servers)[0]) == 4


def test_a_master_dies(six):
    with Wire(six.masters()[0].port) as wire:
        register(wire, simple_trigger("t", "v"))
    wait_equal(six.servers)
    victim = six.masters()[-1]
    heir = replica_of(six, victim)
    victim.kill()
    expect_active(heir)
    victim.start()
    expect_silent(victim)
    settle(six)
    assert len(wait_equal(six.servers)[0]) == 1


def test_a_master_is_stopped_and_wakes_up_as_a_replica(six):
    with Wire(six.masters()[0].port) as wire:
        register(wire, simple_trigger("t", "v"), "ID", "s")
    wait_equal(six.servers)
    victim = six.masters()[0]
    heir = replica_of(six, victim)
    victim.pause()
    expect_active(heir)
    with Wire(heir.port) as wire:
        wait_until(lambda: upgraded(wire), "an upgrade without the stopped one", HEAL_S)
    victim.resume()
    expect_silent(victim)
    settle(six)
    (row,) = wait_equal(six.servers)[0]
    assert row[3] == b"t2"


def upgraded(wire):
    """A repeated upgrade is safe."""
    return wire.call("RG.PYEXECUTE", simple_trigger("t2"), "ID", "s", "UPGRADE") == Simple("OK")


def test_registrations_while_masters_hand_over(six):
    ledger = Ledger()
    with Writer(ledger, six.servers, "a") as first, Writer(ledger, six.servers, "b"):
        for _ in range(4):
            first.wait_done(5)
            master = find_leader(six.servers) or six.masters()[0]
            if master.is_master():
                heir = replica_of(six, master)
                begin_hand_over(heir)
                finish_hand_over(heir)
            first.wait_done(5)
    settle(six)
    ledger.check(six.servers)


def test_a_client_that_waits_when_its_master_hands_over(six):
    """Whatever it is told, all nodes agree, and what it was told is so."""
    ledger = Ledger()
    for turn in range(3):
        master = six.masters()[0]
        heir = replica_of(six, master)
        with Writer(ledger, [master], f"w{turn}") as writer:
            writer.wait_done(3)
            begin_hand_over(heir)
            finish_hand_over(heir)
            count = writer.count
            wait_until(lambda count=count: writer.count > count + 3 or writer.broken, "the writer being refused")
        settle(six)
    ledger.check(six.servers)


def test_the_new_master_fires_on_three_shards(six):
    """What it knew of the cluster before its promotion does not count."""
    with Wire(six.masters()[0].port) as wire:
        register(wire, "GB('CommandReader').map(lambda x: 1).register(trigger='all', mode='async')")
    for _ in range(3):
        heir = six.replicas()[0]
        with Wire(heir.port) as wire:
            wait_until(lambda wire=wire: isinstance(trigger(wire, "all"), Error), "the registration")
        again = 0

        def is_over(heir=heir):
            nonlocal again
            # A connection each time: a server that becomes a replica once more closes those of waiting clients.
            with Wire(heir.port) as wire:
                if has_role(wire, b"slave") and time.monotonic() > again:
                    begin_hand_over(heir)
                    again = time.monotonic() + FAILOVER_S
                reply = trigger(wire, "all")
            assert isinstance(reply, Error) or reply == [b"1"] * 3
            return not isinstance(reply, Error)

        wait_until(is_over, "the promotion", HEAL_S)
        settle(six)
