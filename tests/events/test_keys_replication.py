"""Events and replication: masters fire, replicas do not; what a handler writes comes after what fired it."""

import re

import pytest
from firing import NOTE, counters, listed, rows, settled, wait_list
from persisting import follow, wait_following
from registrations import MODES, register
from replies import wait_until
from wire import Wire

pytestmark = pytest.mark.matrix

AOF = ("--appendonly", "yes", "--appendfsync", "always", "--aof-use-rdb-preamble", "no")
WRITE = "lambda x: execute('set', 'effect-of:' + x['key'], '1')"


@pytest.fixture
def pair(fresh):
    """A master and its replica."""
    master, replica = fresh(), fresh()
    follow(replica, master)
    wait_following(replica, master)
    return master, replica


def equal(master, replica):
    """Returns when both hold the same keys and values."""

    def same():
        with Wire(master.port) as one, Wire(replica.port) as two:
            return one.ok("DEBUG", "DIGEST") == two.ok("DEBUG", "DIGEST")

    wait_until(same, "the replica holding what the master holds")


@pytest.mark.parametrize("mode", MODES)
def test_replicas_do_not_fire(fresh, mode):
    debug = ("--enable-debug-command", "yes")
    master, replica = fresh(server_args=debug), fresh(server_args=debug)
    follow(replica, master)
    wait_following(replica, master)
    with Wire(master.port) as wire, Wire(replica.port) as other:
        register(wire, f"GB().foreach({NOTE}).register('k*', mode={mode!r})")
        wait_until(lambda: other.ok("RG.DUMPREGISTRATIONS") != [], "the replica's registration")
        wire.ok("SET", "k1", "1")
        wire.ok("MSET", "k2", "1", "k3", "2")
        wire.ok("SET", "k4", "1", "PX", "1")
        wait_until(lambda: wire.ok("EXISTS", "k4") == 0, "k4 expiring")
        settled(wire)
        assert sorted(listed(wire))[0].startswith("expire:k4:")
        equal(master, replica)
        assert listed(other) == listed(wire)
        other.call("GET", "k-missing")
        assert counters(other) == (0, 0, 0, 0)


def commands_in_aof(server):
    """The names and first arguments of what the append-only files hold, in order."""
    from pathlib import Path

    folder = Path(server.dir) / "appendonlydir"
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("*.incr.aof")))
    found = []
    for command in re.split(rb"\*\d+\r\n", text)[1:]:
        words = re.findall(rb"\$\d+\r\n([^\r]*)\r\n", command)
        found.append(" ".join(word.decode() for word in words[:2]))
    return [one for one in found if not one.startswith(("SELECT", "RG."))]


@pytest.mark.parametrize("mode", MODES)
def test_effects_come_after_their_cause(fresh, mode):
    server = fresh(server_args=AOF)
    with Wire(server.port) as wire:
        register(
            wire, f"GB().foreach({WRITE}).register('k*', mode={mode!r}, eventTypes=['set', 'expired', 'incrbyfloat'])"
        )
        wire.ok("SET", "k1", "1")
        settled(wire)
        wire.ok("INCRBYFLOAT", "k2", "1.5")
        settled(wire)
        wire.ok("SET", "k3", "1", "PX", "1")
        wait_until(lambda: wire.ok("EXISTS", "effect-of:k3") == 1 and wire.ok("EXISTS", "k3") == 0, "k3 expiring")
        settled(wire)
        found = [one for one in commands_in_aof(server) if not one.startswith(("MULTI", "EXEC"))]
        at = {name: found.index(name) for name in ("SET k1", "set effect-of:k1", "set effect-of:k2")}
        assert at["SET k1"] < at["set effect-of:k1"] < at["set effect-of:k2"]
        second = min(i for i, one in enumerate(found) if one.lower().startswith("set k2"))
        assert second < at["set effect-of:k2"], "INCRBYFLOAT is replicated as SET"
        gone = min(i for i, one in enumerate(found) if one.lower() in ("del k3", "unlink k3"))
        assert [i for i, one in enumerate(found) if one == "set effect-of:k3"][-1] > gone
        before = sorted(wire.ok("KEYS", "*"))
    server.kill()
    server.start()
    with Wire(server.port) as wire:
        assert sorted(wire.ok("KEYS", "*")) == before
        # Its functions are loaded by another thread.
        wait_until(lambda: rows(wire), "the registration")
        assert counters(wire) == (0, 0, 0, 0), "loading fires nothing"


@pytest.mark.parametrize("mode", MODES)
def test_promoted_replicas_fire(pair, mode):
    master, replica = pair
    with Wire(master.port) as wire, Wire(replica.port) as other:
        register(wire, f"GB().foreach({NOTE}).register('k*', mode={mode!r})")
        wire.ok("SET", "k1", "1")
        settled(wire)
        wait_until(lambda: other.ok("RG.DUMPREGISTRATIONS") != [], "the replica's registration")
        wait_until(lambda: listed(other) == ["set:k1:string"], "the replica's list")
        other.ok("REPLICAOF", "NO", "ONE")
        other.ok("SET", "k2", "1")
        settled(other)
        wait_list(other, ["set:k1:string", "set:k2:string"])
        assert counters(other) == (1, 1, 0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_reloading_fires_nothing(fresh, mode):
    server = fresh(server_args=("--enable-debug-command", "yes"))
    with Wire(server.port) as wire:
        register(wire, f"GB().foreach({NOTE}).register('k*', mode={mode!r})")
        wire.ok("SET", "k1", "1")
        settled(wire)
        wire.ok("DEBUG", "RELOAD")
        settled(wire)
        wait_list(wire, ["set:k1:string"])
        wait_until(lambda: not isinstance(wire.call("SET", "k2", "1"), Exception), "a write")
        wait_list(wire, ["set:k1:string", "set:k2:string"])


def test_effects_of_sync_handlers_are_in_the_transaction_of_their_cause(fresh):
    server = fresh(server_args=AOF)
    with Wire(server.port) as wire:
        register(wire, f"GB().foreach({WRITE}).register('k*', mode='sync', eventTypes=['set'])")
        wire.ok("SET", "k1", "1")
        wire.ok("MULTI")
        wire.ok("SET", "k2", "1")
        wire.ok("SET", "k3", "1")
        wire.ok("EXEC")
        found = [one.split(" ")[0].lower() + " " + one.partition(" ")[2] for one in commands_in_aof(server)]
    assert [one.strip() for one in found if not one.startswith("rg.")] == [
        *("multi", "set k1", "set effect-of:k1", "exec"),
        *("multi", "set k2", "set effect-of:k2", "set k3", "set effect-of:k3", "exec"),
    ]
