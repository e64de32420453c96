"""Without a majority: changes are refused with a clear error in time, everything else goes on."""

import contextlib
import time

import pytest
from breaking import HEAL_S
from ledger import DONE, REFUSED, Ledger, Writer
from registrations import dump, register, sessions, simple_trigger, status, trigger, wait_equal, wait_group
from replies import wait_until
from wire import Error, Simple, Wire

# Promised are 5 s; the rest is for a machine that has other things to do.
ERROR_S = 6.0
B = "GB('CommandReader')"


@contextlib.contextmanager
def gone(victims, how):
    """The victims are stopped or killed; SIGSTOP leaves their connections open."""
    for victim in victims:
        victim.pause() if how == "stopped" else victim.kill()
    yield
    for victim in victims:
        victim.resume() if how == "stopped" else victim.start()


def changes(one):
    return {
        "register": ["RG.PYEXECUTE", simple_trigger("new"), "ID", "new"],
        "upgrade": ["RG.PYEXECUTE", simple_trigger("t", "other"), "ID", "s", "UPGRADE"],
        "unregister": ["RG.UNREGISTER", one],
        "clear": ["RG.CLEARREGISTRATIONSSTATS"],
    }


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_changes_are_refused_and_the_rest_goes_on(trio, how):
    survivor, *victims = trio.servers
    with Wire(survivor.port) as wire:
        script = f"{simple_trigger('t', 'v')}\n{B}.map(lambda x: x[1]).register(trigger='l', mode='async_local')"
        register(wire, script, "ID", "s")
        before = wire.ok("RG.PYDUMPSESSIONS")
        with gone(victims, how):
            # At once, while the links still look well, and again when the loss is known.
            for turn in range(2):
                for name, command in changes(next(iter(dump(wire)))).items():
                    reply = wire.call(*command, timeout=ERROR_S)
                    assert isinstance(reply, Error), f"{name} without a majority answered {reply!r}"
                    assert reply.text.startswith(("NOQUORUM", "TIMEOUT")), reply.text
                    if turn:
                        assert reply.text.startswith("NOQUORUM"), f"by now it is known: {reply.text}"
                if turn:
                    # Nobody waits there, but what is known is said.
                    command = changes(next(iter(dump(wire))))["unregister"]
                    wire.ok("MULTI")
                    wire.call(*command)
                    (reply,) = wire.ok("EXEC")
                    assert reply.text.startswith("NOQUORUM"), reply
                assert trigger(wire, "t") == [b"v"] and trigger(wire, "l", "a") == [b"a"]
                assert wire.call("RG.PYEXECUTE", "x = 1") == Simple("OK")
                run = "GB('ShardsIDReader').run(mode='async_local')"
                assert wire.ok("RG.PYEXECUTE", run) == [[survivor.node_id.encode()], []]
                assert len(dump(wire)) == 2 and wire.ok("RG.PYDUMPSESSIONS") == before
                assert list(sessions(wire)) == [b"s"]
                assert status(wire)["role"] != b"leader" or turn == 0
        trio.wait_cluster_ok(HEAL_S)
        wait_group(trio.servers, HEAL_S)
        # Those of unknown outcome may have been made; the nodes agree, and a repeated one is safe.
        wait_equal(trio.servers)
        reply = wire.call(*changes("")["register"])
        assert reply == Simple("OK") or "Session new already exists" in reply.text
        register(wire, simple_trigger("t", "other"), "ID", "s", "UPGRADE")
    assert {row[3] for row in wait_equal(trio.servers)[0]} == {b"t", b"new"}


def test_what_was_refused_is_never_there(trio):
    """Clients go on asking for changes while there is no majority, and when there is one again."""
    survivor, *victims = trio.servers
    ledger = Ledger()
    with Writer(ledger, [survivor], "a") as writer, Writer(ledger, [survivor], "b"):
        writer.wait_done(3)
        with gone(victims, "stopped"):
            wait_until(lambda: len(ledger.refused) >= 3 or writer.broken, "changes being refused", HEAL_S)
        writer.wait_done(3, HEAL_S)
    trio.wait_cluster_ok(HEAL_S)
    wait_group(trio.servers, HEAL_S)
    ledger.check(trio.servers)
    assert ledger.refused


def test_the_error_comes_from_every_node_that_is_left(six):
    """Two masters of three are gone with their replicas: one master and one replica are left."""
    keep = six.masters()[0]
    pairs = {server.command("ROLE")[2]: server for server in six.replicas()}
    replica = pairs[keep.port]
    victims = [server for server in six.servers if server not in (keep, replica)]
    with Wire(keep.port) as wire, Wire(replica.port) as other:
        register(wire, simple_trigger("t", "v"))
        wait_equal(six.servers)
        with gone(victims, "killed"):
            text = wire.error("RG.PYEXECUTE", simple_trigger("new"), timeout=ERROR_S)
            # Here the server itself finds its cluster down, and may be the first to say so.
            assert text.startswith(("NOQUORUM", "TIMEOUT", "CLUSTERDOWN")), text
            assert trigger(wire, "t") == [b"v"]
            text = other.error("RG.PYEXECUTE", simple_trigger("new"), timeout=ERROR_S)
            assert text.startswith(("READONLY", "CLUSTERDOWN")), text
            assert len(dump(other)) == 1
        six.wait_cluster_ok(HEAL_S)
        wait_group(six.servers, HEAL_S)


def test_many_clients_wait_at_once(trio):
    """All of them have their answer in time, not one after the other."""
    survivor, *victims = trio.servers
    ledger = Ledger()
    assert ledger.add(survivor, "before") == DONE
    clients = [Wire(survivor.port) for _ in range(40)]
    try:
        with gone(victims, "stopped"):
            for i, client in enumerate(clients):
                client.send("RG.PYEXECUTE", simple_trigger(f"c{i}"))
            until = time.monotonic() + ERROR_S + 2
            for client in clients:
                reply = client.read(timeout=max(0.1, until - time.monotonic()))
                assert isinstance(reply, Error) and reply.text.startswith(("NOQUORUM", "TIMEOUT")), reply
            wait_until(lambda: ledger.add(survivor, f"x{time.monotonic_ns()}") == REFUSED, "a definite refusal", HEAL_S)
    finally:
        for client in clients:
            client.close()
    trio.wait_cluster_ok(HEAL_S)
    wait_group(trio.servers, HEAL_S)
    assert {row[3] for row in wait_equal(trio.servers)[0]} >= {b"before"}
