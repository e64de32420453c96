"""Nodes that come, go, come back, and lose their logs; clusters that are formed, restarted and merged."""

import re
import signal

import localcluster
import pytest
from breaking import HEAL_S, no_crash
from ledger import Ledger, Writer
from logs import cut, flip, log_file, log_folder, set_aside, wipe
from registrations import (
    OK,
    find_leader,
    register,
    simple_trigger,
    state,
    status_of,
    trigger,
    wait_equal,
    wait_group,
)
from replies import wait_until
from wire import Error, Simple, Wire


def make(server, *names):
    """One session with these triggers."""
    with Wire(server.port) as wire:
        register(wire, "\n".join(simple_trigger(name, name) for name in names), "ID", names[0])


def make_alone(server, *names):
    """As `make`, on a node that knows nobody. Ten times a second the server tells clients that wait that the cluster is
    down: that takes their answer, but not the change."""
    with Wire(server.port) as wire:
        reply = wire.call("RG.PYEXECUTE", "\n".join(simple_trigger(name, name) for name in names), "ID", names[0])
        assert reply == OK or "CLUSTERDOWN" in reply.text
    wait_until(lambda: set(names) <= set(names_of(state(server))), f"{names} at {server}")


def names_of(found):
    return [row[3].decode() for row in found[0]]


def voters(server):
    return {member["node"].decode() for member in status_of(server)["members"] if member["voter"]}


# --- come and go -------------------------------------------------------------------------------------------------


@pytest.fixture
def own():
    """own(masters) starts a cluster that nobody else uses."""
    clusters = []

    def start(masters=3, **options):
        cluster = localcluster.LocalCluster(masters=masters, **options)
        clusters.append(cluster)
        cluster.start()
        cluster.wait_mesh()
        wait_group(cluster.servers)
        return cluster

    yield start
    servers = [server for cluster in clusters for server in cluster.servers]
    try:
        no_crash(servers)
    finally:
        for cluster in clusters:
            cluster.stop()


def forget(cluster, server):
    for other in cluster.live():
        if other is not server:
            other.command("CLUSTER", "FORGET", server.node_id)


def test_a_node_is_added_and_another_one_replaced(own):
    # A master that has given its last slot away would become a replica by itself.
    cluster = own(server_args=("--cluster-allow-replica-migration", "no"))
    ledger = Ledger()
    with Writer(ledger, list(cluster.servers), "w") as writer:
        writer.wait_done(5)
        added = cluster.add_node()
        writer.wait_done(5)
        wait_until(lambda: added.node_id in voters(cluster.servers[0]), "the new master having a vote", HEAL_S)
        # It takes all slots of the first one, slot 0 among them, and then the first one goes for good.
        old = cluster.servers[0]
        slots = [
            slot
            for first, last, port, _ in localcluster._slot_rows(cluster.servers[1])
            if port == old.port
            for slot in range(first, last + 1)
        ]
        cluster.move_slots(slots, old, added)
        cluster.wait_cluster_ok()
        writer.wait_done(5)
        old.kill()
        forget(cluster, old)
        cluster.servers.remove(old)
        writer.wait_done(10)
    wait_group(cluster.servers, HEAL_S)
    assert voters(added) == {server.node_id for server in cluster.servers}
    ledger.check(cluster.servers)
    old._forget()


def test_a_node_is_forgotten_and_met_again(own):
    """Meanwhile it does not get what the others agree on; afterwards it has exactly that."""
    # Else the others find their cluster down without the slots of the lost one, and clients that wait are told so.
    cluster = own(4, server_args=("--cluster-require-full-coverage", "no"))
    for i in range(6):
        make(cluster.servers[i % 4], f"t{i}")
    lost, others = cluster.servers[3], cluster.servers[:3]
    forget(cluster, lost)
    wait_until(lambda: lost.node_id not in {m for s in others for m in voters(s)}, "the node leaving", HEAL_S)
    with Wire(others[1].port) as wire:
        register(wire, simple_trigger("new"), "ID", "t0", "UPGRADE")
        (gone,) = [row[0] for row in state(others[0])[0] if row[3] == b"t1"]
        assert wire.call("RG.UNREGISTER", gone) == Simple("OK")
    wanted = wait_equal(others)
    for other in others:
        other.command("CLUSTER", "MEET", localcluster.HOST, lost.port)
        lost.command("CLUSTER", "MEET", localcluster.HOST, other.port)
    wait_until(lambda: state(lost) == wanted, "the node having what the others have", HEAL_S)
    wait_group(cluster.servers, HEAL_S)
    # The server itself answers CLUSTERDOWN until it counts the others again.
    cluster.wait_cluster_ok(HEAL_S)
    make(lost, "back")
    assert "back" in names_of(wait_equal(cluster.servers))


def try_triggers(server, names, answers):
    """One more row of `answers`, if the node is there; true if the first two are no errors."""
    try:
        with Wire(server.port) as wire:
            answers.append([trigger(wire, name) for name in names])
    except OSError:
        return False
    return not any(isinstance(answer, Error) for answer in answers[-1][:2])


@pytest.mark.matrix
def test_a_node_that_was_away_runs_nothing_old(trio):
    """From its first answer on: what was decided meanwhile, or an error."""
    first, _, victim = trio.servers
    versions = [
        "\n".join(simple_trigger(mode, f"{version} {mode}", mode) for mode in ("sync", "async"))
        for version in ("old", "new")
    ]
    with Wire(first.port) as wire:
        register(wire, versions[0], "ID", "versions")
        make(first, "gone")
        wait_equal(trio.servers)
        (gone,) = [row[0] for row in state(first)[0] if row[3] == b"gone"]
        victim.kill()
        register(wire, versions[1], "ID", "versions", "UPGRADE")
        assert wire.call("RG.UNREGISTER", gone) == OK
    answers = []
    victim.spawn()
    wait_until(lambda: try_triggers(victim, ("sync", "async", "gone"), answers), "answers without errors", HEAL_S)
    assert not [found for found in answers if "old" in repr(found) or not isinstance(found[2], Error)]
    assert answers[-1][1] == [b"new async"] * 3


def test_a_node_that_finds_nobody_after_its_start_runs_what_it_has(trio):
    victim = trio.servers[2]
    make(victim, "kept")
    wait_equal(trio.servers)
    for server in trio.servers:
        server.kill()
    victim.spawn()
    answers = []
    wait_until(lambda: try_triggers(victim, ("kept",), answers), "the trigger running", HEAL_S)


def test_a_minority_is_lost_and_forgotten(own):
    """Five masters, two gone for good, then one more: the members follow, so three of five and two of three suffice."""
    # The slots of the lost ones stay without an owner.
    cluster = own(5, server_args=("--cluster-require-full-coverage", "no"))
    make(cluster.servers[4], "first")
    for count, victims in ((3, cluster.servers[3:]), (2, cluster.servers[2:3])):
        for victim in victims:
            victim.kill()
        for victim in victims:
            forget(cluster, victim)
            victim._forget()
        cluster.servers = cluster.servers[:count]
        wait_group(cluster.servers, HEAL_S)
        assert voters(cluster.servers[0]) == {server.node_id for server in cluster.servers}
        make(cluster.servers[count - 1], f"with {count}".replace(" ", "-"))
    assert names_of(wait_equal(cluster.servers)) == ["first", "with-3", "with-2"]


# --- all at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_all_nodes_end_and_start_again(six, how):
    """There is neither RDB nor AOF: the logs alone bring everything back."""
    ledger = Ledger()
    with Writer(ledger, six.masters(), "w") as writer:
        writer.wait_done(20)
    for server in six.servers:
        server.kill(how)
    for server in six.servers:
        localcluster.wait_until(lambda server=server: not server.alive(), HEAL_S, f"{server} ending")
    for server in six.servers:
        server.spawn()
    for server in six.servers:
        server.wait_ready()
    six.wait_cluster_ok(HEAL_S)
    wait_group(six.servers, HEAL_S)
    ledger.check(six.servers)
    make(six.masters()[0], "after")
    assert "after" in names_of(wait_equal(six.servers))


def test_all_nodes_are_killed_in_the_middle_of_changes(six):
    ledger = Ledger()
    with Writer(ledger, six.servers, "a") as first, Writer(ledger, six.servers, "b"):
        for _ in range(2):
            first.wait_done(5)
            for server in six.servers:
                server.kill()
            for server in six.servers:
                server.spawn()
            for server in six.servers:
                server.wait_ready()
            first.wait_done(1, HEAL_S)
    six.wait_cluster_ok(HEAL_S)
    wait_group(six.servers, HEAL_S)
    ledger.check(six.servers)


# --- lost and damaged logs ---------------------------------------------------------------------------------------


def spoil_and_start(cluster, spoil, others_change):
    """Kills a follower, spoils its files, has the others change something, starts it; gives it and its old number."""
    for i in range(5):
        make(cluster.servers[i % 3], f"t{i}")
    leader = wait_group(cluster.servers)
    victim = next(server for server in cluster.servers if server is not leader)
    others = [server for server in cluster.servers if server is not victim]
    number = status_of(victim)["raftId"]
    victim.kill()
    spoil(victim)
    if others_change:
        with Wire(others[0].port) as wire:
            register(wire, simple_trigger("changed"), "ID", "t1", "UPGRADE")
    victim.start()
    cluster.wait_cluster_ok(HEAL_S)
    wait_group(cluster.servers, HEAL_S)
    assert len(wait_equal(cluster.servers)[0]) == 5
    make(victim, "after")
    assert "after" in names_of(wait_equal(cluster.servers))
    return victim, number


@pytest.mark.parametrize("others_change", [False, True])
def test_a_lost_log(trio, others_change):
    victim, number = spoil_and_start(trio, wipe, others_change)
    found = status_of(victim)
    assert found["raftId"] != number, "it must not vote under a number whose votes it has forgotten"
    assert number not in {member["raftId"] for member in found["members"]}


DAMAGES = {
    "flipped at the start": lambda server: flip(log_file(server), 0.0),
    "flipped early": lambda server: flip(log_file(server), 0.2),
    "flipped in the middle": lambda server: flip(log_file(server), 0.5),
    "cut in half": lambda server: cut(log_file(server), log_file(server).stat().st_size // 2),
    "cut by a tenth": lambda server: cut(log_file(server), log_file(server).stat().st_size // 10),
    "empty": lambda server: log_file(server).write_bytes(b""),
    "something else": lambda server: log_file(server).write_bytes(b"not a log at all\n" * 1000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_log(trio, damage):
    """What was acknowledged is damaged: the node says so, keeps the files, and joins as if it had lost them."""
    log_length = {}
    victim, number = spoil_and_start(
        trio, lambda server: (DAMAGES[damage](server), log_length.update(at=len(server.log()))), others_change=False
    )
    found = status_of(victim)
    assert found["raftId"] != number
    assert any(".damaged-" in name for name in set_aside(victim)), set_aside(victim)
    said = victim.log()[log_length["at"] :]
    assert "damaged" in said.lower(), "the log of the server must say it"


def test_a_torn_tail(trio):
    """The last byte may belong to a note that nobody relied on: with or without a new number, nothing is lost."""
    spoil_and_start(trio, lambda server: cut(log_file(server), 1), others_change=True)


def test_a_damaged_log_of_every_node_in_turn(trio):
    """The leader as well. Nothing is lost as long as a majority has it."""
    for i in range(5):
        make(trio.servers[i % 3], f"t{i}")
    for server in trio.servers:
        server.kill()
        flip(log_file(server), 0.5)
        server.start()
        trio.wait_cluster_ok(HEAL_S)
        wait_group(trio.servers, HEAL_S)
        assert names_of(wait_equal(trio.servers)) == [f"t{i}" for i in range(5)]


def test_the_logs_of_a_majority_are_lost(own):
    """Nobody may decide then that the rest is the truth, but the administrator: RG.REGISTRY RECOVER."""
    cluster = own()
    for i in range(5):
        make(cluster.servers[i % 3], f"t{i}")
    wanted = wait_equal(cluster.servers)
    survivor, *others = cluster.servers
    for server in others:
        server.kill()
        wipe(server)
    for server in others:
        server.start()
    cluster.wait_cluster_ok(HEAL_S)
    with Wire(survivor.port) as wire:
        assert state(survivor) == wanted, "reads go on"
        assert trigger(wire, "t0") == [b"t0"]
        text = wire.error("RG.PYEXECUTE", simple_trigger("new"), timeout=30)
        assert text.startswith(("NOQUORUM", "TIMEOUT")), text
        wire.call("RG.REGISTRY", "RECOVER", timeout=30)
    wait_group(cluster.servers, HEAL_S)
    names = names_of(wait_equal(cluster.servers))
    assert names[:5] == [f"t{i}" for i in range(5)]
    make(others[0], "after")
    assert "after" in names_of(wait_equal(cluster.servers))


# --- formation ---------------------------------------------------------------------------------------------------


@pytest.fixture
def loners():
    """Cluster nodes that know nobody, with their part of the slots each."""
    cluster = localcluster.LocalCluster(masters=3)
    cluster.dir = localcluster._make_dir()
    cluster.servers = cluster._start(3)
    for i, server in enumerate(cluster.servers):
        first, last = localcluster.SLOTS * i // 3, localcluster.SLOTS * (i + 1) // 3 - 1
        server.command("CLUSTER", "ADDSLOTSRANGE", first, last)
        server.command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
    yield cluster
    try:
        no_crash(cluster.servers)
    finally:
        cluster.stop()


def introduce(newcomer, *others):
    for other in others:
        newcomer.command("CLUSTER", "MEET", localcluster.HOST, other.port)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_cluster_formed_node_by_node(loners, order):
    """Each had registrations alone. Those of slot 0's owner count, wherever it comes in the order."""
    for i, server in enumerate(loners.servers):
        assert status_of(server)["role"] == b"alone"
        make_alone(server, f"alone-{i}", f"more-{i}")
    first, second, third = (loners.servers[i] for i in order)
    introduce(second, first)
    wait_until(lambda: status_of(first)["role"] != b"alone", "the first two knowing each other", HEAL_S)
    introduce(third, first)
    loners.wait_cluster_ok(HEAL_S)
    wait_group(loners.servers, HEAL_S)
    assert names_of(wait_equal(loners.servers)) == ["alone-0", "more-0"]
    for server in loners.servers:
        with Wire(server.port) as wire:
            assert trigger(wire, "alone-0") == [b"alone-0"]
    # Those who gave something up have said so.
    for i in (1, 2):
        assert re.search("replaces what is here: 2 registrations", loners.servers[i].log())
    for server in loners.servers:
        make(server, f"then-{server.port}")
    assert len(wait_equal(loners.servers)[0]) == 5


def test_all_meet_at_once(loners):
    for server in loners.servers:
        introduce(server, *[other for other in loners.servers if other is not server])
    loners.wait_cluster_ok(HEAL_S)
    wait_group(loners.servers, HEAL_S)
    groups = {status_of(server)["group"] for server in loners.servers}
    assert len(groups) == 1
    make(loners.servers[2], "t")
    assert names_of(wait_equal(loners.servers)) == ["t"]
    assert not any(set_aside(server) for server in loners.servers), "there was never a second group"


def test_two_clusters_are_merged(own):
    """One of the two registries counts, as a whole; the other one's files are kept."""
    winners, losers = own(3), own(2)
    make(winners.servers[0], "kept", "both")
    make(losers.servers[0], "lost", "both")
    for server in winners.servers:
        # Its claims to the slots are the newer ones.
        for _ in range(10):
            server.command("CLUSTER", "BUMPEPOCH")
    old = {status_of(server)["group"] for server in losers.servers}
    introduce(losers.servers[0], winners.servers[0])
    everybody = [*winners.servers, *losers.servers]
    winners.servers = everybody
    losers.servers = []
    wait_group(everybody, HEAL_S)
    assert names_of(wait_equal(everybody)) == ["kept", "both"]
    assert status_of(everybody[0])["group"] not in old
    for server in everybody[3:]:
        assert set_aside(server), f"{server} has not kept the log that it gave up"
    # A master that lost all its slots in the merge has become a replica.
    masters = winners.masters()
    for server in masters:
        with Wire(server.port) as wire:
            assert trigger(wire, "both") == [b"both"]
    # The second one may find itself without the first one, and give up for that reason.
    assert any(re.search("gives way to group .*given up are 2 registrations", one.log()) for one in everybody[3:])
    for server in masters:
        make(server, f"then-{server.port}")
    assert len(wait_equal(everybody)[0]) == 2 + len(masters)
    leader = find_leader(everybody)
    assert leader is not None and log_folder(leader).is_dir()
