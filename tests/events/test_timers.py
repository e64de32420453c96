"""registerTE: timers with and without a key; what ends them; dumps, the AOF, replicas."""

import contextlib
import time

import pytest
from persisting import follow, follow_busy, rewrite
from registrations import OK, register
from replies import is_error, wait_until
from wire import Error, Simple, Wire

pytestmark = pytest.mark.matrix

RDB = ("--save", "3600 1")
AOF = ("--appendonly", "yes", "--appendfsync", "always")
WITH_PREAMBLE = (*AOF, "--aof-use-rdb-preamble", "yes")
COMMANDS_ONLY = (*AOF, "--aof-use-rdb-preamble", "no")
DEBUG = ("--enable-debug-command", "yes")
# Replicas get their data without waiting for others.
AT_ONCE = ("--repl-diskless-sync-delay", "0")
TYPE = Simple("rg_timeev")
# Longer than the timers of these tests would need to run once more.
STILL_S = 1.4


def script(wire, text):
    reply = wire.call("RG.PYEXECUTE", text)
    assert reply == OK, reply


def ticking(wire, key="te", counter="tick", seconds=0):
    """A timer that counts in `counter`; without `seconds` as fast as it can."""
    script(wire, f"assert registerTE({seconds}, lambda: execute('incr', {counter!r}), {key!r}) is True")


def count(wire, counter="tick"):
    return int(wire.ok("GET", counter) or 0)


def expect_running(wire, counter="tick", more=2):
    start = count(wire, counter)
    wait_until(lambda: count(wire, counter) >= start + more, f"{counter} growing")


def expect_still(wire, counter="tick", during=STILL_S):
    """Nothing runs any more. What was under way has ended when the first look is taken."""
    wire.ok("PING")
    time.sleep(0.05)
    start = count(wire, counter)
    time.sleep(during)
    assert count(wire, counter) == start


# --- T22 and the rules of the call -------------------------------------------------------------------------------


def test_the_example_of_the_specification(wire):
    began = time.monotonic()
    ticking(wire, seconds=1)
    wait_until(lambda: count(wire) >= 2, "two ticks")
    assert time.monotonic() - began >= 1.9, "it came too early"
    assert wire.ok("TYPE", "te") == TYPE
    assert wire.ok("DEL", "te") == 1
    expect_still(wire)


def test_what_registerTE_gives(wire):
    script(
        wire,
        """
def nothing(): pass
given = [registerTE(1, nothing, 'k'), registerTE(1, nothing, 'k'), registerTE(2, nothing, key='k2')]
execute('set', 'other', 'x')
given += [registerTE(1, nothing, 'other'), redisgears.registerTimeEvent(1, nothing, b'\\xff\\x00')]
assert given == [True, False, True, False, True], given
""",
    )
    assert wire.ok("TYPE", b"\xff\x00") == TYPE
    assert wire.ok("GET", "other") == b"x"
    assert sorted(wire.ok("SCAN", 0, "COUNT", 1000)[1]) == [b"k", b"k2", b"other", b"\xff\x00"]


REFUSED = {
    "registerTE(1)": "not enough arguments for time event",
    "registerTE()": "not enough arguments for time event",
    "registerTE(1, plain, 'a', 'b')": "not enough arguments for time event",
    "registerTE(1, 5)": "callback must be a function",
    "registerTE(1, print)": "callback must be a function",
    "registerTE(1.5, plain)": "time argument must be a long",
    "registerTE('1', plain)": "time argument must be a long",
    "registerTE(-1, plain)": "time argument must be between 0 and",
    "registerTE(10 ** 30, plain)": "time argument must be between 0 and",
    "registerTE(1, coroutine)": "callback must be a function, not a coroutine function",
}


def test_what_is_refused(wire):
    for call, text in REFUSED.items():
        reply = wire.call("RG.PYEXECUTE", f"def plain(): pass\nasync def coroutine(): pass\n{call}")
        assert is_error(reply, f"gears.error: {text}"), reply


def test_threads_of_scripts_need_a_session(wire):
    reply = wire.call(
        "RG.PYEXECUTE",
        """
found = []
def work(session):
    setGearsSession(session)
    try:
        found.append(registerTE(100, lambda: 1, 'k'))
    except Exception as e:
        found.append(str(e))
import threading
for session in (None, getGearsSession()):
    t = threading.Thread(target=work, args=(session,))
    t.start()
    # The thread needs the server lock, which the script body holds.
    if session is None: t.join()
GB('PythonReader').map(lambda x: (t.join(), found)[1]).run(lambda: iter([1]), mode='async_local')
""",
    )
    assert reply == [[b"['can not create time event on a python created thread', True]"], []], reply


def test_steps_and_onRegistered_make_timers(wire):
    register(
        wire,
        """
n = 0
def started():
    registerTE(0, lambda: execute('incr', 'of-registered'), 'reg')
def make(x):
    return registerTE(0, lambda: execute('incr', x[1]), x[1] + '-te')
GB('CommandReader').map(make).register(trigger='make', onRegistered=started)
GB('CommandReader').map(make).register(trigger='make-sync', mode='sync')
""",
    )
    expect_running(wire, "of-registered")
    assert wire.call("RG.TRIGGER", "make", "a") == [b"True"]
    assert wire.call("RG.TRIGGER", "make-sync", "b") == [b"True"]
    expect_running(wire, "a")
    expect_running(wire, "b")


def test_a_timer_keeps_the_globals_of_its_script(wire):
    script(
        wire,
        """
c = 0
def tick():
    global c
    c += 1
    execute('set', 'c', c)
registerTE(0, tick, 'te')
registerTE(0, lambda: execute('set', 'seen', c), 'other')
""",
    )
    wait_until(lambda: count(wire, "seen") >= 3 and count(wire, "c") >= 3, "both timers sharing a variable")


def test_the_function_runs_with_the_lock_held(wire, other_wire):
    script(
        wire,
        """
def slow():
    before = execute('get', 'n')
    import time
    time.sleep(0.02)
    assert execute('get', 'n') == before
    execute('incr', 'runs')
registerTE(0, slow, 'te')
""",
    )
    for _ in range(300):
        other_wire.ok("INCR", "n")
    expect_running(wire, "runs")


def test_a_busy_interpreter_keeps_no_client_waiting(wire, other_wire):
    ticking(wire)
    wire.send(
        "RG.PYEXECUTE",
        "GB('PythonReader').map(lambda x: sum(range(10 ** 7))).run(lambda: iter(range(3)), mode='async_local')",
    )
    while not wire.has_reply(0.01):
        began = time.monotonic()
        other_wire.ok("PING")
        # A hang shows as seconds: the sum itself takes some tenths.
        assert time.monotonic() - began < 5
    wire.read()
    expect_running(wire)


# --- the end of a timer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "commands",
    [
        [("DEL", "te")],
        [("UNLINK", "te")],
        [("SET", "te", "x")],
        [("SET", "other", "x"), ("RENAME", "other", "te")],
        [("PEXPIRE", "te", "1")],
        [("FLUSHALL",)],
        [("FLUSHALL", "ASYNC")],
        [("FLUSHDB",)],
        [("RENAME", "te", "te2"), ("DEL", "te2")],
        [("MOVE", "te", "3")],
        [("SWAPDB", "0", "3")],
    ],
    ids=lambda commands: " ".join(" ".join(command) for command in commands),
)
def test_what_ends_a_timer(wire, commands):
    ticking(wire)
    expect_running(wire)
    for command in commands:
        assert not isinstance(wire.call(*command), Error), command
    if commands == [("PEXPIRE", "te", "1")]:
        time.sleep(0.01)
    expect_still(wire, during=0.3)


def test_a_timer_goes_on_under_a_new_name(wire):
    ticking(wire)
    for old, new in [("te", "a"), ("a", "b")]:
        assert wire.ok("RENAME", old, new) == OK
        expect_running(wire)
        assert wire.ok("TYPE", new) == TYPE
    assert wire.ok("EXISTS", "te", "a") == 0


def test_a_timer_rests_in_another_database(wire):
    ticking(wire)
    assert wire.ok("MOVE", "te", "3") == 1
    expect_still(wire, during=0.3)
    with contextlib.closing(Wire(wire.socket.getpeername()[1])) as other:
        other.ok("SELECT", 3)
        assert other.ok("MOVE", "te", "0") == 1
    expect_running(wire)


def test_a_timer_that_is_renamed_in_another_database_goes_on_when_that_is_swapped(wire):
    ticking(wire)
    assert wire.ok("MOVE", "te", "3") == 1
    with contextlib.closing(Wire(wire.socket.getpeername()[1])) as other:
        other.ok("SELECT", 3)
        assert other.ok("RENAME", "te", "new") == OK
    expect_still(wire, during=0.3)
    assert wire.ok("SWAPDB", "0", "3") == OK
    assert wire.ok("TYPE", "new") == TYPE
    expect_running(wire)
    assert wire.ok("DEL", "new") == 1
    expect_still(wire, during=0.3)


def test_copies_and_dumps_are_timers_of_their_own(wire):
    ticking(wire)
    dumped = wire.ok("DUMP", "te")
    assert wire.ok("COPY", "te", "copy") == 1
    assert wire.ok("DEL", "te") == 1
    expect_running(wire)
    assert wire.ok("DEL", "copy") == 1
    expect_still(wire, during=0.3)
    assert wire.ok("RESTORE", "back", 0, dumped) == OK
    expect_running(wire)
    assert wire.ok("MEMORY", "USAGE", "back") > 100
    assert wire.ok("OBJECT", "ENCODING", "back") == b"raw"


def test_a_damaged_dump_is_refused(wire):
    ticking(wire, seconds=100)
    good = wire.ok("DUMP", "te")
    for bad in (good[:5] + good[6:], good[:-20] + good[-10:]):
        assert isinstance(wire.call("RESTORE", "bad", 0, bad), Error)
    assert wire.ok("EXISTS", "bad") == 0


def test_an_exception_stops_a_timer_for_good(fresh):
    server = fresh(server_args=COMMANDS_ONLY)
    with Wire(server.port) as wire:
        script(
            wire, "def bad():\n    execute('incr', 'tick')\n    1 / 0\nregisterTE(0, bad, 'te')\nregisterTE(0, bad)\n"
        )
        wait_until(lambda: count(wire) == 2, "both timers running once")
        expect_still(wire, during=0.3)
        assert wire.ok("TYPE", "te") == TYPE
        log = wait_until(lambda: server.log().count("ZeroDivisionError") >= 2 and server.log(), "two log lines")
    assert "the timer of key `te` failed and is stopped for good, its key stays" in log
    assert "a timer without key of session" in log
    server.restart()
    with Wire(server.port) as wire:
        assert wire.ok("TYPE", "te") == TYPE
        expect_still(wire, during=0.5)
        assert wire.ok("COPY", "te", "copy") == 1
        expect_still(wire, during=0.3)


def test_a_function_that_gives_a_coroutine_stops_its_timer(fresh):
    server = fresh()
    with Wire(server.port) as wire:
        script(wire, "async def c(): pass\nregisterTE(0, lambda: c(), 'te')")
        wait_until(lambda: "a coroutine function is not allowed here" in server.log(), "the log line")


def test_a_timer_may_end_itself(wire):
    script(wire, "def once():\n    execute('incr', 'tick')\n    execute('del', 'te')\nregisterTE(0, once, 'te')")
    wait_until(lambda: count(wire) == 1, "one run")
    expect_still(wire, during=0.3)
    assert wire.ok("EXISTS", "te") == 0


def test_a_timer_without_key_lasts_until_the_end(fresh):
    server = fresh(server_args=RDB)
    with Wire(server.port) as wire:
        script(wire, "assert registerTE(0, lambda: execute('incr', 'tick')) is True")
        expect_running(wire)
        wire.ok("FLUSHALL")
        expect_running(wire)
    server.restart()
    with Wire(server.port) as wire:
        expect_still(wire, during=0.3)


def test_clients_can_not_make_timers_by_the_internal_command(wire):
    ticking(wire, seconds=100)
    for words in (["SET", b"x"], ["STOP"], []):
        assert is_error(wire.call("RG.INNERTIMER", "te", *words), "RG.INNERTIMER is for replication")
    reply = wire.call("RG.PYEXECUTE", "execute('RG.INNERTIMER', 'te', 'STOP')")
    assert is_error(reply, "RG.INNERTIMER is for replication")


def test_the_rights_of_who_made_it(wire):
    wire.ok("ACL", "SETUSER", "u", "on", ">p", "~a*", "+@all")
    with contextlib.closing(Wire(wire.socket.getpeername()[1])) as other:
        other.ok("AUTH", "u", "p")
        reply = other.call("RG.PYEXECUTE", "registerTE(0, lambda: 1, 'te')")
        assert is_error(reply, "NOPERM user 'u' may not write the key"), reply
        script(other, "registerTE(0, lambda: execute('incr', 'a-tick'), 'a-te')")
        script(other, "registerTE(0, lambda: execute('incr', 'tick'), 'a-bad')")
    expect_running(wire, "a-tick")
    expect_still(wire, during=0.2)
    # The rights travel with the timer.
    assert wire.ok("RENAME", "a-te", "te") == OK
    wire.ok("ACL", "SETUSER", "u", "resetkeys")
    expect_still(wire, "a-tick", during=0.3)
    wire.ok("ACL", "DELUSER", "u")


# --- dumps, the AOF, replicas ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [RDB, WITH_PREAMBLE, COMMANDS_ONLY], ids=["rdb", "aof", "aof without preamble"])
@pytest.mark.parametrize("rewritten", [False, True], ids=["", "rewritten"])
def test_a_timer_survives_a_restart(fresh, way, rewritten):
    server = fresh(server_args=way)
    with Wire(server.port) as wire:
        script(
            wire,
            "c = 40\ndef f():\n    execute('set', 'seen', c + 2)\n    execute('incr', 'tick')\nregisterTE(0, f, 'te')",
        )
        wire.ok("PEXPIRE", "te", 10**9)
        wait_until(lambda: count(wire) >= 1, "the first run")
    if rewritten and way is not RDB:
        rewrite(server)
    server.restart()
    with Wire(server.port) as wire:
        assert wire.ok("TYPE", "te") == TYPE
        assert wire.ok("PTTL", "te") > 0
        wire.ok("DEL", "seen")
        expect_running(wire, more=1)
        assert wire.ok("GET", "seen") == b"42"
        wire.ok("DEL", "te")
        expect_still(wire, during=0.3)


def test_debug_reload(fresh):
    server = fresh(server_args=(*RDB, *DEBUG))
    with Wire(server.port) as wire:
        ticking(wire)
        for _ in range(3):
            assert wire.ok("DEBUG", "RELOAD") == OK
            expect_running(wire)
        wire.ok("DEL", "te")
        expect_still(wire, during=0.3)


def test_replicas_hold_timers_and_run_them_when_they_are_masters(fresh):
    master, replica = fresh(server_args=AT_ONCE), fresh()
    with Wire(master.port) as wire, Wire(replica.port) as other:
        ticking(wire, "early", "a")
        follow_busy(replica, master)
        ticking(wire, "late", "b")
        script(wire, "def bad():\n    execute('incr', 'bad')\n    1 / 0\nregisterTE(0, bad, 'bad-te')")
        wait_until(lambda: count(wire, "bad") == 1, "the bad one running")
        wait_until(lambda: other.ok("EXISTS", "early", "late", "bad-te") == 3, "the keys on the replica")
        reply = other.call("RG.PYEXECUTE", "registerTE(1, lambda: 1, 'new')")
        assert is_error(reply, "READONLY"), reply
        for one in (wire, other):
            script(one, "def log_it():\n    execute('ping')\n    log('a run')\nregisterTE(0, log_it)")
        wait_until(lambda: "a run" in master.log(), "the log line of the master")
        assert "a run" not in replica.log(), "a timer has run on the replica"
        # Both hold the same.
        wire.ok("DEL", "late")
        wait_until(lambda: other.ok("EXISTS", "late") == 0, "the deletion on the replica")
        before = count(wire, "b")
        master.kill()
        other.ok("REPLICAOF", "NO", "ONE")
        expect_running(other, "a")
        assert count(other, "b") == before and count(other, "bad") == 1
        wait_until(lambda: "a run" in replica.log(), "the timer without key of the new master")


def test_a_master_that_becomes_a_replica_rests(fresh):
    first, second = fresh(), fresh(server_args=AT_ONCE)
    with Wire(first.port) as wire:
        script(wire, "def f():\n    log('a run')\nregisterTE(0, f)")
        wait_until(lambda: "a run" in first.log(), "the first run")
        follow(first, second)
        time.sleep(0.05)
        size = first.log().count("a run")
        time.sleep(0.5)
        assert first.log().count("a run") == size
        wire.ok("REPLICAOF", "NO", "ONE")
        wait_until(lambda: first.log().count("a run") > size, "it running again")
