"""The registry of a cluster: nodes that join get everything before they fire anything, replicas hold everything."""

import threading

import localcluster
import pytest
from breaking import no_crash
from registrations import (
    NOT_FOUND,
    clear,
    dump,
    find_leader,
    register,
    simple_trigger,
    state,
    status_of,
    trigger,
    wait_equal,
    wait_group,
)
from repeating import Repeating
from replies import wait_until
from wire import Error, Simple, Wire

B = "GB('CommandReader')"
CHANGING = [
    lambda one: ["RG.UNREGISTER", one],
    lambda one: ["RG.PYEXECUTE", simple_trigger("new")],
    lambda one: ["RG.PYEXECUTE", simple_trigger("t"), "ID", "s", "UPGRADE"],
    lambda one: ["RG.PYEXECUTE", simple_trigger("t"), "REPLACE_WITH", "s"],
    lambda one: ["RG.CLEARREGISTRATIONSSTATS"],
    lambda one: ["RG.PAUSEREGISTRATIONS", one],
    lambda one: ["RG.UNPAUSEREGISTRATIONS", one],
]


def test_replicas_hold_everything(six):
    for i, master in enumerate(six.masters()):
        with Wire(master.port) as wire:
            register(wire, simple_trigger(f"t{i}") + f"\n{B}.register(trigger='a{i}')", "ID", f"s{i}")
    found = wait_equal(six.servers)
    assert [row[3] for row in found[0]] == [b"t0", b"a0", b"t1", b"a1", b"t2", b"a2"]
    with Wire(six.masters()[1].port) as wire:
        register(wire, simple_trigger("other"), "ID", "s0", "UPGRADE")
        assert wire.call("RG.UNREGISTER", next(iter(dump(wire)))) == Simple("OK")
    assert len(wait_equal(six.servers)[0]) == 4


@pytest.mark.parametrize("command", CHANGING)
def test_replicas_refuse_changes(six, command):
    with Wire(six.masters()[0].port) as wire:
        register(wire, simple_trigger("t"), "ID", "s")
        (one,) = dump(wire)
    before = wait_equal(six.servers)
    for replica in six.replicas():
        with Wire(replica.port) as wire:
            text = wire.error(*command(one))
            assert "READONLY" in text, text
            # What changes nothing is answered.
            assert wire.call("RG.PYEXECUTE", "x = 1") == Simple("OK")
            assert wire.ok("RG.DUMPREGISTRATIONS") and wire.ok("RG.PYDUMPSESSIONS")
    assert wait_equal(six.servers) == before


def test_functions_hear_of_it_on_replicas(six):
    """onRegistered is called there as well; it cannot write, but its globals are set."""
    script = f"""
told = 'nothing'
def on():
    global told
    told = 'registered'
    log('heard of it', level='warning')
{B}.map(lambda x: told).register(trigger='t', mode='sync', onRegistered=on)
"""
    before = {server: len(server.log()) for server in six.servers}
    with Wire(six.masters()[0].port) as wire:
        register(wire, script)
    for server in six.servers:
        wait_until(lambda server=server: "heard of it" in server.log()[before[server] :], f"{server} hearing of it")
        assert server.log()[before[server] :].count("heard of it") == 1


class Trier(Repeating):
    """Asks a node without pause for a trigger that its cluster has had for long."""

    def __init__(self, server, name):
        super().__init__(server)
        self.name = name
        self.replies = []

    def step(self, wire):
        self.replies.append(trigger(wire, self.name))


@pytest.fixture(scope="module")
def growing():
    """Three masters with 60 registrations, some of which came and went, and room for more nodes."""
    with localcluster.LocalCluster(masters=3) as cluster:
        cluster.wait_mesh()
        wait_group(cluster.servers)
        for i in range(30):
            with Wire(cluster.servers[i % 3].port) as wire:
                register(wire, "\n".join(simple_trigger(f"t{i}-{j}", f"v{i}") for j in range(3)), "ID", f"s{i}")
                if i % 5 == 4:
                    assert wire.call("RG.UNREGISTER", list(dump(wire))[-1]) == Simple("OK")
        yield cluster
        no_crash(cluster.servers)


def test_a_new_node_gets_everything_in_one_step(growing):
    """It answers as if nothing were registered, and then as if everything were: nothing in between."""
    wanted = state(growing.servers[0])
    server = growing._start(1)[0]
    growing.servers.append(server)
    with Trier(server, "t0-0") as first, Trier(server, "t29-1") as last:
        growing._meet([server])
        wait_until(lambda: state(server) == wanted, "the new node holding everything")
        wait_until(lambda: first.replies[-1] == [b"v0"] and last.replies[-1] == [b"v29"], "both triggers")
    for trier, value in ((first, b"v0"), (last, b"v29")):
        switch = trier.replies.index([value])
        assert set(map(str, trier.replies[:switch])) <= {str(Error(NOT_FOUND))}
        assert all(reply == [value] for reply in trier.replies[switch:])
    wait_group(growing.servers)
    growing.wait_cluster_ok()
    # It takes part at once, also in executions on all shards once it has slots.
    with Wire(server.port) as wire:
        register(wire, simple_trigger("from the new one") + f"\n{B}.count().register(trigger='shards')")
    for other in growing.servers:
        with Wire(other.port) as wire:
            assert trigger(wire, "from the new one") == [b"1"]
    growing._give_share(server)
    growing.wait_cluster_ok()
    growing.wait_mesh()
    for other in growing.servers:
        with Wire(other.port) as wire:
            wait_until(lambda wire=wire: trigger(wire, "shards") == [b"4"], "four shards answering")


def test_a_new_replica_gets_everything(growing):
    wanted = state(growing.servers[0])
    replica = growing.add_replica(growing.servers[0])
    wait_until(lambda: state(replica) == wanted, "the new replica holding everything")
    wait_group(growing.servers)
    wait_until(lambda: status_of(replica)["role"] == b"learner", "the new replica having no vote")
    with Wire(growing.servers[1].port) as wire:
        register(wire, simple_trigger("one more"))
    wait_equal(growing.servers)


def test_an_async_trigger_works_from_a_node_that_has_just_joined(growing):
    """The other shards may hear of the execution before they have activated what it needs: they wait for it."""
    for i in range(20):
        servers = growing.masters()
        with Wire(servers[i % len(servers)].port) as maker, Wire(servers[(i + 1) % len(servers)].port) as asker:
            register(maker, f"{B}.count().register(trigger='fresh{i}')")
            shards = trigger(asker, f"fresh{i}")
            assert isinstance(shards, list) and int(shards[0]) >= 4, shards


def test_a_storm_of_changes_from_all_nodes(six):
    """Registrations, upgrades and unregistrations of six clients at once end in one state."""
    failures = []

    def work(number, server):
        try:
            with Wire(server.port) as wire:
                for i in range(15):
                    register(wire, simple_trigger(f"{number}-{i % 4}", i), "ID", f"s{number}-{i % 4}", "UPGRADE")
                    if i % 5 == 4:
                        mine = [one.id for one in dump(wire).values() if one.trigger.startswith(b"%d-" % number)]
                        assert wire.call("RG.UNREGISTER", mine[0]) == Simple("OK")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i, six.masters()[i % 3])) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    registrations, sessions = wait_equal(six.servers)
    # Each client ends with three of its four sessions: its last step was to remove the oldest one.
    assert len(registrations) == len(sessions) == 18
    assert find_leader(six.servers) is not None


def test_flushall_leaves_registrations(six):
    with Wire(six.masters()[0].port) as wire:
        register(wire, simple_trigger("t"))
    for master in six.masters():
        assert master.command("FLUSHALL") == b"OK"
        with Wire(master.port) as wire:
            assert trigger(wire, "t") == [b"1"]
    assert len(wait_equal(six.servers)[0]) == 1
    clear(six.servers)
