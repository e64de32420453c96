"""Slots, masters and nodes that come and go while executions run: complete or an error, and no refresh command."""

import subprocess

import localcluster
import pytest
from breaking import HEAL_S, running_cluster, works
from loops import SCRIPTS, Loop, expect_complete, fill
from replies import wait_until
from wire import HANG_GUARD_S

MOVED_SLOTS = 4000


@pytest.fixture(scope="module")
def moving():
    """A cluster of its own: its slots do not come back to where they were."""
    with running_cluster(masters=3) as cluster:
        fill(cluster)
        yield cluster


def slot_owners(cluster):
    return {row[:2]: row[3] for row in localcluster._slot_rows(cluster.servers[0])}


def reshard(source, target):
    argv = ["redis-cli", "--cluster", "reshard", source.addr, "--cluster-from", source.node_id]
    argv += ["--cluster-to", target.node_id, "--cluster-slots", str(MOVED_SLOTS), "--cluster-yes"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=HANG_GUARD_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_reshard_while_executions_run(moving):
    first, second, third = moving.servers
    with Loop(first) as at_first, Loop(third) as at_third:
        at_first.wait_complete(len(SCRIPTS))
        for source, target in ((first, second), (second, first)):
            before = slot_owners(moving)
            reshard(source, target)
            assert slot_owners(moving) != before
            for loop in (at_first, at_third):
                loop.wait_complete(len(SCRIPTS))
    for loop in (at_first, at_third):
        loop.check()
    expect_complete(moving.servers, 3)


def test_nodes_come_and_go(moving):
    first = moving.servers[0]
    with Loop(first) as loop:
        # A master without slots takes no part.
        newcomer = moving.add_node()
        loop.wait_complete(2 * len(SCRIPTS))
        assert works(first, 3)

        moving._give_share(newcomer)
        moving.wait_cluster_ok()
        wait_until(lambda: works(first, 4), "the new shard taking part", HEAL_S)
        loop.wait_complete(2 * len(SCRIPTS))
        expect_complete([first, newcomer], 4)

        slots = [
            slot
            for (low, high), owner in slot_owners(moving).items()
            if owner == newcomer.node_id
            for slot in range(low, high + 1)
        ]
        assert slots
        # Else it would become a replica with its last slot.
        newcomer.command("CONFIG", "SET", "cluster-allow-replica-migration", "no")
        moving.move_slots(slots, newcomer, first)
        moving.wait_cluster_ok()
        wait_until(lambda: works(first, 3), "the old shard leaving", HEAL_S)
        loop.wait_complete(len(SCRIPTS))

        argv = ["redis-cli", "--cluster", "del-node", first.addr, newcomer.node_id]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=HANG_GUARD_S)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        newcomer.kill()
        moving.servers.remove(newcomer)
        loop.wait_complete(len(SCRIPTS))
    loop.check()
    expect_complete(moving.servers, 3)
