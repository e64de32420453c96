"""kill -9 of the leader in the middle of registrations: what was acknowledged stays, what was refused is not there."""

import contextlib

from breaking import HEAL_S
from ledger import Ledger, Writer
from registrations import find_leader, wait_group
from replies import wait_until

KILLS = 20
WRITERS = 3


def test_twenty_kills(six):
    ledger = Ledger()
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(Writer(ledger, six.servers, f"w{i}")) for i in range(WRITERS)]
        for number in range(KILLS):
            # Not at the same step of a change each time: after one more, two more, ... of one of the writers.
            writers[number % WRITERS].wait_done(1 + number % 4)
            leader = wait_until(lambda: find_leader(six.servers), "a leader", HEAL_S)
            leader.kill()
            if number % 2:
                # The others go on without it; its replica may take its slots meanwhile.
                writers[0].wait_done(1)
            leader.start()
    six.wait_cluster_ok(HEAL_S)
    wait_group(six.servers, HEAL_S)
    there = ledger.check(six.servers)
    assert len(ledger.made) >= KILLS and len(ledger.removed) >= 1
    assert len(there) >= len(ledger.made)


def test_the_leader_dies_for_good(six):
    """Its replica takes its place in the cluster, and becomes a voter."""
    ledger = Ledger()
    with Writer(ledger, six.servers, "w") as writer:
        writer.wait_done(5)
        leader = wait_until(lambda: find_leader(six.servers), "a leader", HEAL_S)
        leader.kill()
        writer.wait_done(5)
        survivors = six.live()
        wait_until(lambda: len(six.masters()) == 3, "the promotion", HEAL_S)
        writer.wait_done(20)
    ledger.check(survivors)
    leader.start()
    six.wait_cluster_ok(HEAL_S)
    wait_group(six.servers, HEAL_S)
    ledger.check(six.servers)


def test_every_node_is_killed_again_and_again(six):
    """Never more than one master at a time, but without waiting until all is well."""
    ledger = Ledger()
    with Writer(ledger, six.servers, "a") as first, Writer(ledger, six.servers, "b"):
        for server in [*six.servers, *six.servers]:
            first.wait_done(2)
            server.kill()
            server.start()
    six.wait_cluster_ok(HEAL_S)
    wait_group(six.servers, HEAL_S)
    ledger.check(six.servers)
