"""TimerReader: registrations that the clock fires; on one server."""

import contextlib
import time
from pathlib import Path

import pytest
from persisting import follow_busy, rewrite
from registrations import OK, register
from replies import flat_map, is_error, wait_until
from wire import Error, Wire

pytestmark = pytest.mark.matrix

COUNTERS = ("numTriggered", "numSuccess", "numFailures", "numAborted")
MODES = ("async", "async_local", "sync")
COMMANDS_ONLY = ("--appendonly", "yes", "--appendfsync", "always", "--aof-use-rdb-preamble", "no")


def timers(wire):
    """The registrations as dicts, their data and arguments inside."""
    rows = [flat_map(row) for row in wire.ok("RG.DUMPREGISTRATIONS")]
    for row in rows:
        row["data"] = flat_map(row["RegistrationData"])
        row["args"] = flat_map(row["data"]["args"])
    return rows


def only(wire):
    (row,) = timers(wire)
    return row


def counters(wire):
    data = only(wire)["data"]
    return {name: data[name] for name in COUNTERS}


def count(wire, counter="n"):
    return int(wire.ok("GET", counter) or 0)


def expect_running(wire, counter="n", more=3):
    start = count(wire, counter)
    wait_until(lambda: count(wire, counter) >= start + more, f"{counter} growing")


def expect_still(wire, counter="n", during=0.4):
    time.sleep(0.05)
    start = count(wire, counter)
    time.sleep(during)
    assert count(wire, counter) == start


def every(seconds=0.05, step="lambda x: execute('incr', 'n')", **options):
    more = "".join(f", {key}={value!r}" for key, value in options.items())
    return f"GB('TimerReader').foreach({step}).register(interval={seconds}{more})"


@pytest.mark.parametrize("mode", MODES)
def test_an_interval(wire, mode):
    register(wire, every(mode=mode, step="lambda x: (execute('rpush', 'seen', str(x)), execute('incr', 'n'))"))
    expect_running(wire)
    row = only(wire)
    assert row["reader"] == b"TimerReader"
    assert row["args"] == {"schedule": b"every 50 ms", "everywhere": 0}
    assert row["data"]["status"] == b"OK" and row["data"]["mode"] == mode.encode()
    seen = [eval(text) for text in wire.ok("LRANGE", "seen", 0, 2)]
    assert [record["count"] for record in seen] == [1, 2, 3]
    assert [list(record) for record in seen] == [["scheduled", "fired", "count"]] * 3
    now = time.time() * 1000
    for record in seen:
        assert now - 60_000 < record["scheduled"] <= record["fired"] + 1 <= now + 1
    # The time of day is read at each firing: it may differ by a little.
    assert all(45 <= b["scheduled"] - a["scheduled"] for a, b in zip(seen, seen[1:], strict=False))
    wait_until(lambda: counters(wire)["numSuccess"] >= 3, "the counters")
    found = counters(wire)
    assert found["numFailures"] == 0 and found["numTriggered"] >= found["numSuccess"]
    assert wire.call("RG.UNREGISTER", row["id"]) == OK
    expect_still(wire)


def test_all_steps_of_a_pipeline(wire):
    register(
        wire,
        "GB('TimerReader').flatmap(lambda x: [x['count']] * 3).groupby(lambda x: 'all', lambda k, a, r: (a or 0) + 1)"
        ".foreach(lambda x: execute('rpush', 'sums', x['value'])).register(interval=0.05)",
    )
    wait_until(lambda: wire.ok("LLEN", "sums") >= 2, "two firings")
    assert set(wire.ok("LRANGE", "sums", 0, -1)) == {b"3"}


def test_cron(wire):
    register(wire, "GB('TimerReader').foreach(lambda x: 1).register(cron='*/5 0-23 1,15 jan-DEC MON')")
    assert only(wire)["args"] == {"schedule": b"cron */5 0-23 1,15 jan-DEC MON", "everywhere": 0}
    info = wire.ok("INFO", "everything")
    assert b"TimerReader" in info and b"cron */5 0-23 1|15 jan-DEC MON" in info


REFUSED = {
    "": "TimerReader needs either interval=<seconds> or cron=<expression>",
    "interval=1, cron='* * * * *'": "TimerReader needs either interval=<seconds> or cron=<expression>",
    "interval='1'": "interval argument must be a number of seconds",
    "interval=True": "interval argument must be a number of seconds",
    "interval=0": "interval argument must be between 0.001 and",
    "interval=-1": "interval argument must be between 0.001 and",
    "interval=float('nan')": "interval argument must be between 0.001 and",
    "interval=float('inf')": "interval argument must be between 0.001 and",
    "cron=5": "cron argument must be a string",
    "cron='* * * *'": "a cron expression has five fields",
    "cron='61 * * * *'": "the cron field `61` (minute) is not valid: `61` is no number from 0 to 59",
    "cron='0 0 30 feb *'": "the cron expression `0 0 30 feb *` never comes",
    "interval=1, everywhere=1": "everywhere argument must be a boolean",
    "interval=1, mode='often'": "unknown execution mode",
}


def test_what_is_refused(wire):
    for arguments, text in REFUSED.items():
        reply = wire.call("RG.PYEXECUTE", f"GB('TimerReader').register({arguments})")
        assert is_error(reply, f"gears.error: {text}"), reply
    assert timers(wire) == []


def test_it_can_not_be_run(wire):
    assert is_error(wire.call("RG.PYEXECUTE", "GB('TimerReader').run()"), "Given reader do not support run")


@pytest.mark.parametrize("mode", MODES)
def test_failures_are_counted_and_the_clock_goes_on(wire, mode):
    register(wire, every(mode=mode, step="lambda x: (execute('incr', 'n'), 1 / 0)"))
    expect_running(wire)
    wait_until(lambda: counters(wire)["numFailures"] >= 3, "failures")
    data = only(wire)["data"]
    assert b"ZeroDivisionError" in data["lastError"] and data["numSuccess"] == 0
    assert wire.call("RG.CLEARREGISTRATIONSSTATS") == OK
    assert only(wire)["data"]["numFailures"] < data["numFailures"] + 3


@pytest.mark.parametrize("mode", MODES)
def test_what_comes_while_one_runs_is_skipped(wire, mode):
    step = "lambda x: (execute('incr', 'n'), __import__('time').sleep(0.3))"
    register(wire, every(0.02, step=step, mode=mode))
    wait_until(lambda: counters(wire)["numSuccess"] >= 2, "two firings")
    found = counters(wire)
    # In each of them at least ten moments passed; a busy machine may see fewer of the clock's turns.
    assert found["numAborted"] >= 4 and found["numTriggered"] >= found["numSuccess"] + found["numAborted"]
    assert count(wire) <= found["numSuccess"] + 2, "more than one ran at once"


@pytest.mark.parametrize("mode", MODES)
def test_coroutines(wire, mode):
    register(
        wire,
        f"""
import asyncio
async def step(x):
    execute('incr', 'begun')
    await asyncio.sleep(0.1)
    execute('incr', 'n')
    if x['count'] == 3:
        raise ValueError('the third')
GB('TimerReader').foreach(step).register(interval=0.02, mode={mode!r})
""",
    )
    expect_running(wire, more=4)
    found = counters(wire)
    # While one is under way no other one begins.
    assert found["numFailures"] == 1 and found["numAborted"] >= 4
    assert 0 <= count(wire, "begun") - count(wire) <= 1
    (row,) = timers(wire)
    assert wire.call("RG.UNREGISTER", row["id"]) == OK


def test_pause_and_unpause(wire):
    register(wire, every())
    expect_running(wire)
    row = only(wire)
    assert wire.call("RG.PAUSEREGISTRATIONS", row["id"]) == OK
    assert only(wire)["data"]["status"] == b"PAUSED"
    expect_still(wire)
    assert wire.call("RG.UNPAUSEREGISTRATIONS", row["id"]) == OK
    assert only(wire)["data"]["status"] == b"OK"
    expect_running(wire)


def test_one_that_is_paused_counts_nothing_while_an_execution_goes_on(wire):
    step = """
import asyncio
async def slow(x):
    while not execute('exists', 'go'):
        await asyncio.sleep(0.005)
"""
    register(wire, step + every(0.02, step="slow", mode="async_local"))
    row = only(wire)
    wait_until(lambda: counters(wire)["numAborted"] >= 2, "moments that are skipped")
    assert wire.call("RG.PAUSEREGISTRATIONS", row["id"]) == OK

    def its_counters():
        (found,) = [one["data"] for one in timers(wire) if one["id"] == row["id"]]
        assert found["status"] == b"PAUSED"
        return {name: found[name] for name in COUNTERS}

    before = its_counters()
    # Many of its moments pass.
    register(wire, every(0.02))
    expect_running(wire, more=20)
    assert its_counters() == before
    wire.ok("SET", "go", "1")
    wait_until(lambda: its_counters() == {**before, "numSuccess": 1}, "the end of the execution")
    assert wire.call("RG.UNPAUSEREGISTRATIONS", row["id"]) == OK
    wait_until(lambda: timers(wire)[0]["data"]["numSuccess"] > 3, "it running again")


def test_upgrade(wire):
    register(wire, every(), "ID", "s")
    expect_running(wire)
    register(wire, every(step="lambda x: execute('incr', 'new')"), "ID", "s", "UPGRADE")
    expect_running(wire, "new")
    expect_still(wire)
    assert only(wire)["args"]["schedule"] == b"every 50 ms"


@pytest.mark.parametrize("mode", MODES)
def test_the_rights_of_who_registered_it(wire, mode):
    wire.ok("ACL", "SETUSER", "u", "on", ">p", "~a*", "+@all")
    with contextlib.closing(Wire(wire.socket.getpeername()[1])) as other:
        other.ok("AUTH", "u", "p")
        register(other, every(mode=mode, step="lambda x: execute('incr', 'n')"))
    wait_until(lambda: counters(wire)["numFailures"] >= 1, "a failure")
    assert b"NOPERM" in only(wire)["data"]["lastError"]
    wire.ok("ACL", "DELUSER", "u")


def test_a_registration_survives_a_restart(fresh):
    server = fresh(server_args=COMMANDS_ONLY)
    with Wire(server.port) as wire:
        register(wire, every())
        expect_running(wire)
    for step in (lambda: None, lambda: rewrite(server)):
        step()
        server.restart()
        with Wire(server.port) as wire:
            expect_running(wire)
            assert only(wire)["args"] == {"schedule": b"every 50 ms", "everywhere": 0}


def test_a_replica_fires_nothing(fresh):
    master, replica = fresh(server_args=("--repl-diskless-sync-delay", "0")), fresh()
    step = "lambda x: (log('a firing'), execute('incr', 'n'))"
    with Wire(master.port) as wire, Wire(replica.port) as other:
        register(wire, every(step=step))
        follow_busy(replica, master)
        expect_running(wire)
        assert len(timers(other)) == 1
        assert "a firing" not in replica.log()
        assert not isinstance(other.call("REPLICAOF", "NO", "ONE"), Error)
        wait_until(lambda: "a firing" in replica.log(), "the new master firing")


def test_nothing_wakes_without_timers(fresh):
    server = fresh()
    names = [open(path).read().strip() for path in thread_names(server.pid)]
    assert not [name for name in names if name.startswith(("oxi-clock", "oxi-timer"))]
    with Wire(server.port) as wire:
        register(wire, every())
        expect_running(wire)
    names = [open(path).read().strip() for path in thread_names(server.pid)]
    assert [name for name in names if name.startswith("oxi-clock")]


def thread_names(pid):
    return Path(f"/proc/{pid}/task").glob("*/comm")
