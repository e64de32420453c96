"""The log can not be written: the node says so and stops taking part, the others go on, and it comes back by itself."""

import os

import localcluster
import pytest
from breaking import HEAL_S, no_crash
from ledger import Ledger, Writer
from logs import SmallDisk, can_mount, ignoring_file_signals, limit_files, log_file, log_folder
from registrations import find_leader, register, simple_trigger, state, status_of, trigger, wait_equal, wait_group
from replies import wait_until
from wire import Error, Wire

ERROR_S = 6.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three masters that survive a write beyond the limit of their files' size."""
    program = ignoring_file_signals(tmp_path_factory.mktemp("bin"), localcluster.DEFAULT_REDIS_SERVER)
    args = ("--cluster-node-timeout", "6000")
    with localcluster.LocalCluster(masters=3, redis_server=program, server_args=args) as started:
        started.wait_mesh()
        wait_group(started.servers)
        yield started
        no_crash(started.servers)


class Limited:
    """No file of the server can become longer than its log is now."""

    def __init__(self, server):
        self.server = server

    def fill(self):
        limit_files(self.server, os.stat(log_file(self.server)).st_size)

    def free(self):
        limit_files(self.server, None)

    def end(self):
        self.free()


def on_small_disk(server):
    """Moves the log of the server onto a small disk."""
    server.kill()
    disk = SmallDisk(log_folder(server))
    server.start()
    return disk


def ways(folder):
    """A small file system where this process may mount one; a limit of file sizes always."""
    return ["limit", "disk"] if can_mount(folder) else ["limit"]


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_the_disk_of_one_node_is_full(cluster, tmp_path, who):
    for way in ways(tmp_path):
        leader = wait_group(cluster.servers, HEAL_S)
        victim = leader if who == "leader" else next(server for server in cluster.servers if server is not leader)
        disk = Limited(victim) if way == "limit" else on_small_disk(victim)
        try:
            cluster.wait_cluster_ok(HEAL_S)
            wait_group(cluster.servers, HEAL_S)
            fill_and_free(cluster, victim, disk, f"{who}-{way}")
        finally:
            if way == "disk":
                victim.kill()
            disk.end()
            if way == "disk":
                # Its log is gone with the disk: it joins again.
                victim.start()
        cluster.wait_cluster_ok(HEAL_S)
        wait_group(cluster.servers, HEAL_S)
        wait_equal(cluster.servers)


def fill_and_free(cluster, victim, disk, name):
    others = [server for server in cluster.servers if server is not victim]
    ledger = Ledger()
    ledger.add(victim, f"{name}-before")
    known = {row[3].decode() for row in wait_equal(cluster.servers)[0]} - ledger.made
    with Writer(ledger, cluster.servers, name) as writer:
        writer.wait_done(3)
        disk.fill()
        writer.wait_done(10, HEAL_S)
        wait_until(lambda: status_of(victim)["role"] == b"failed", "the node saying that it has failed", HEAL_S)
        assert status_of(victim)["error"], "RG.REGISTRY must say why"
        wait_until(lambda: find_leader(others) in others, "another leader", HEAL_S)
        with Wire(victim.port) as wire:
            assert trigger(wire, f"{name}-before") == [f"{name}-before".encode()], "triggers go on"
            assert state(victim)[0], "reads go on"
        writer.wait_done(5, HEAL_S)
        disk.free()
        wait_group(cluster.servers, HEAL_S)
        writer.wait_done(5, HEAL_S)
    ledger.made |= known
    ledger.check(cluster.servers)


def test_all_disks_are_full(cluster):
    """Nothing can be promised, so nothing is; when there is room again all goes on."""
    wait_group(cluster.servers, HEAL_S)
    known = {row[3].decode() for row in wait_equal(cluster.servers)[0]}
    ledger = Ledger()
    for i, server in enumerate(cluster.servers):
        ledger.add(server, f"before-{i}")
    wait_equal(cluster.servers)
    for server in cluster.servers:
        Limited(server).fill()
    try:
        for turn in range(2):
            for i, server in enumerate(cluster.servers):
                with Wire(server.port) as wire:
                    name = f"full-{turn}-{i}"
                    reply = wire.call("RG.PYEXECUTE", simple_trigger(name, name), "ID", name, timeout=ERROR_S)
                    assert isinstance(reply, Error) and reply.text.startswith(("NOQUORUM", "TIMEOUT")), reply
                    (ledger.refused if reply.text.startswith("NOQUORUM") else ledger.unknown).add(name)
                    assert trigger(wire, f"before-{i}") == [f"before-{i}".encode()]
        for server in cluster.servers:
            assert server.alive()
    finally:
        for server in cluster.servers:
            Limited(server).free()
    wait_group(cluster.servers, HEAL_S)
    with Wire(cluster.servers[0].port) as wire:
        register(wire, simple_trigger("after", "after"))
    ledger.made |= known | {"after"}
    found = {row[3].decode() for row in wait_equal(cluster.servers)[0]}
    assert ledger.made <= found <= ledger.made | ledger.unknown
    assert not ledger.refused & found


def test_killed_with_a_full_disk(cluster):
    """It starts without being able to write its log, serves what it holds, and joins in when there is room."""
    wait_group(cluster.servers, HEAL_S)
    victim = cluster.servers[2]
    with Wire(victim.port) as wire:
        register(wire, simple_trigger("kept"), "ID", "kept")
    wait_equal(cluster.servers)
    Limited(victim).fill()
    with Wire(cluster.servers[0].port) as wire:
        register(wire, simple_trigger("while full"))
    wait_until(lambda: status_of(victim)["role"] == b"failed", "the node saying that it has failed", HEAL_S)
    victim.kill()
    victim.start()
    cluster.wait_cluster_ok(HEAL_S)
    wait_group(cluster.servers, HEAL_S)
    found = {row[3] for row in wait_equal(cluster.servers)[0]}
    assert {b"kept", b"while full"} <= found
