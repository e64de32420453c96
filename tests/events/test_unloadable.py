"""Registrations and timers whose functions can not be loaded after a start: nothing of theirs is lost meanwhile."""

import contextlib
from pathlib import Path

import pytest
from registrations import register, trigger
from replies import wait_until
from streams import NOTE, add, counters, data, only_id, seen, wait_length, wait_seen
from wire import Simple, Wire

pytestmark = pytest.mark.matrix

AOF = ("--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "yes")
WHY = b"can not be loaded"
# A function with it can be loaded only while there is a file of this name.
NEEDS = """
def read(path):
    with open(path) as file:
        return file.read()

class Needs:
    def __reduce__(self):
        return read, (%r,)
"""


@pytest.fixture
def needed(tmp_path):
    path = tmp_path / "needed"
    path.write_text("here")
    return path


@pytest.mark.parametrize(
    "options",
    (
        "mode='sync'",
        "mode='async_local'",
        "mode='async_local', onFailedPolicy='abort'",
        "mode='async_local', onFailedPolicy='retry'",
        "mode='async_local', atomicBatch=True",
    ),
)
def test_entries_wait_until_the_functions_can_be_loaded(fresh, needed, options):
    server = fresh(server_args=AOF)
    with Wire(server.port) as wire:
        step = "foreach(lambda x, needs=Needs(): execute('rpush', 'seen', x['id']))"
        register(wire, f"{NEEDS % str(needed)}GB('StreamReader').{step}.register('s', {options})")
        add(wire, "s", "1-1")
        wait_seen(wire, ["1-1"])
        wait_length(wire, "s", 0)
    needed.unlink()
    server.restart()
    with Wire(server.port) as wire:
        add(wire, "s", "1-2", "1-3")
        wait_until(lambda: WHY in (data(wire)["lastError"] or b""), "the reason")
        assert data(wire)["status"] == b"PAUSED"
        assert wire.call("RG.UNPAUSEREGISTRATIONS", only_id(wire)) == Simple("OK")
        # Another one gets all of them, and they stay for the first one.
        register(wire, f"GB('StreamReader').{NOTE.replace('seen', 'others')}.register('s', mode='sync')")
        wait_seen(wire, ["1-2", "1-3"], "others")
        add(wire, "s", "1-4")
        wait_seen(wire, ["1-2", "1-3", "1-4"], "others")
        assert (wire.ok("XLEN", "s"), seen(wire)) == (3, ["1-1"])
        wire.ok("RG.UNREGISTER", wire.ok("RG.DUMPREGISTRATIONS")[1][1])
        assert counters(wire) == (0, 0, 0, 0)
    needed.write_text("here again")
    server.restart()
    with Wire(server.port) as wire:
        wait_seen(wire, ["1-1", "1-2", "1-3", "1-4"])
        wait_length(wire, "s", 0)


def test_a_timer_goes_on_when_its_function_can_be_loaded(fresh, needed):
    server = fresh(server_args=AOF)
    with Wire(server.port) as wire:
        call = "registerTE(0, lambda needs=Needs(): execute('incr', 'ticks'), 'timer')"
        register(wire, NEEDS % str(needed) + call)
        wait_until(lambda: int(wire.ok("GET", "ticks") or 0) > 1, "it ticking")
    needed.unlink()
    server.restart()
    wait_until(lambda: "the timer of key `timer` can not run" in server.log(), "the reason in the log")
    with Wire(server.port) as wire:
        before = wire.ok("GET", "ticks")
        needed.write_text("here again")
        wait_until(lambda: int(wire.ok("GET", "ticks")) > int(before) + 1, "it ticking again")


# A function with it is loaded at once, or when the file is gone.
LONG = """
import os, time
def wait(path):
    while os.path.exists(path):
        time.sleep(0.01)

class Long:
    def __reduce__(self):
        return wait, (%r,)
"""


def loading(server):
    """How many threads of the server load functions."""
    names = []
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        # It may end meanwhile.
        with contextlib.suppress(OSError):
            names.append((task / "comm").read_text().strip())
    return names.count("oxi-load")


@pytest.fixture
def long(fresh, tmp_path):
    """(server, connection, file): started anew, with a stream whose function waits for the file to be gone."""
    blocker = tmp_path / "blocker"
    server = fresh(server_args=AOF)
    with Wire(server.port) as wire:
        register(wire, "GB('CommandReader').map(lambda x: 'yes').register(trigger='well', mode='sync')")
        step = "foreach(lambda x, long=Long(): execute('rpush', 'seen', x['id']))"
        called = "onRegistered=lambda: execute('incr', 'called')"
        register(wire, f"{LONG % str(blocker)}GB('StreamReader').{step}.register('s', mode='sync', {called})")
        add(wire, "s", "1-1")
        wait_seen(wire, ["1-1"])
        wire.ok("SET", "called", "0")
    blocker.write_text("")
    server.restart()
    with Wire(server.port) as wire:
        wait_until(lambda: trigger(wire, "well") == [b"yes"], "the trigger")
        assert loading(server)
        yield server, wire, blocker


def test_others_are_active_while_a_function_takes_long_to_load(long):
    server, wire, blocker = long
    add(wire, "s", "1-2")
    assert (data(wire)["status"], wire.ok("GET", "called")) == (b"PAUSED", b"0")
    # A change of what is registered is made meanwhile.
    register(wire, "GB('CommandReader').map(lambda x: 'yes').register(trigger='more', mode='sync')")
    assert trigger(wire, "more") == [b"yes"]
    blocker.unlink()
    wait_seen(wire, ["1-1", "1-2"])
    assert (data(wire)["status"], wire.ok("GET", "called")) == (b"OK", b"1")
    wait_until(lambda: not loading(server), "the thread ending")
    add(wire, "s", "1-3")
    assert seen(wire) == ["1-1", "1-2", "1-3"]


def test_loading_ends_with_its_registration(long):
    server, wire, _ = long
    assert wire.call("RG.UNREGISTER", only_id(wire)) == Simple("OK")
    wait_until(lambda: not loading(server), "the thread ending")
    assert trigger(wire, "well") == [b"yes"]


def test_what_was_loaded_for_another_dataset_is_not_taken(long):
    server, wire, blocker = long
    # Loads the dataset, and with it the registration, a second time.
    wire.ok("DEBUG", "RELOAD")
    wait_until(lambda: trigger(wire, "well") == [b"yes"], "the trigger")
    add(wire, "s", "1-2")
    blocker.unlink()
    wait_seen(wire, ["1-1", "1-2"])
    wait_until(lambda: not loading(server), "the threads ending")
    assert (data(wire)["status"], wire.ok("GET", "called")) == (b"OK", b"1")


def test_timers_whose_functions_take_long_to_load_keep_no_other_waiting(fresh, tmp_path):
    blocker = tmp_path / "blocker"
    server = fresh(server_args=AOF)
    with Wire(server.port) as wire:

        def ticks(key):
            return int(wire.ok("GET", f"ticks-{key}") or 0)

        for key in ("a", "b", "c"):
            callback = f"lambda long=Long(): execute('incr', 'ticks-{key}')"
            register(wire, f"{LONG % str(blocker)}registerTE(0, {callback}, '{key}')")
        # Those of one script are loaded one after the other.
        many = "for i in range(70):\n    registerTE(0, lambda long=Long(): None, f'many-{i}')\n"
        register(wire, LONG % str(blocker) + many)
        register(wire, "registerTE(0, lambda: execute('incr', 'ticks-well'), 'well')")
        for key in ("a", "b", "c", "well"):
            wait_until(lambda key=key: ticks(key), f"{key} ticking")
    blocker.write_text("")
    server.restart()
    with Wire(server.port) as wire:
        before = {key: ticks(key) for key in ("a", "b", "c")}
        wait_until(lambda: loading(server) == 4, "the threads")
        well = ticks("well")
        wait_until(lambda: ticks("well") > well + 1, "the other one ticking")
        # With the timer goes what loads its function.
        wire.ok("DEL", "a")
        wait_until(lambda: loading(server) == 3, "one thread ending")
        assert before == {key: ticks(key) for key in ("a", "b", "c")}
        blocker.unlink()
        for key in ("b", "c"):
            wait_until(lambda key=key: ticks(key) > before[key] + 1, f"{key} ticking again")
        wait_until(lambda: not loading(server), "the threads ending")
        assert ticks("a") == before["a"]
