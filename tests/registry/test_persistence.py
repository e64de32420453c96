"""Registrations outlive the process: dumps, the AOF, its rewrites, DEBUG RELOAD. Nothing of a damaged dump is taken."""

import struct
import threading
import time
from pathlib import Path

import pytest
from breaking import exit_code, no_crash
from firing import counters
from localcluster import StartError
from persisting import (
    COMMAND,
    aof,
    children,
    expect,
    expect_names,
    idle,
    info,
    kill_children,
    logged,
    rewrite,
    wait_idle,
    works,
)
from registrations import OK, by_trigger, dump, register, sessions, simple_trigger, state, trigger
from replies import split_id, wait_until
from wire import Error, Wire

pytestmark = pytest.mark.matrix

RDB = ("--save", "3600 1")
AOF = ("--appendonly", "yes", "--appendfsync", "always")
WITH_PREAMBLE = (*AOF, "--aof-use-rdb-preamble", "yes")
COMMANDS_ONLY = (*AOF, "--aof-use-rdb-preamble", "no")
DEBUG = ("--enable-debug-command", "yes")
WAYS = {"rdb": RDB, "aof": WITH_PREAMBLE, "aof without preamble": COMMANDS_ONLY, "both": (*RDB, *WITH_PREAMBLE)}
# What the registry's bytes begin with; two bytes of format follow.
MAGIC = b"OXRS"
LOAD_S = 8.0


def add(server, *names):
    """A session with one trigger for each name; the trigger answers with its name."""
    with Wire(server.port) as wire:
        for name in names:
            register(wire, simple_trigger(name, name), "ID", name, "DESCRIPTION", f"about {name}")


def remove(server, name):
    with Wire(server.port) as wire:
        assert wire.call("RG.UNREGISTER", by_trigger(wire, name).id) == OK


def end(server, how):
    if how == "killed":
        server.kill()
        server.start()
    else:
        server.restart()


# --- restarts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_restart(fresh, way):
    server = fresh(server_args=WAYS[way])
    add(server, "a", "b", "gone")
    with Wire(server.port) as wire:
        register(wire, simple_trigger("c", "c", mode="async_local", inorder=True) + "\n" + simple_trigger("d", "d"))
        assert trigger(wire, "a") == [b"a"]
        removed = by_trigger(wire, "gone").id
    remove(server, "gone")
    before = state(server)
    for _ in range(2):
        server.restart()
        expect(server, before, "abcd")
    with Wire(server.port) as wire:
        # Statistics are not kept: each trigger ran once since the restart, to see that it works.
        assert {one.counters for one in dump(wire).values()} == {(1, 1, 0, 0)}
        assert by_trigger(wire, "c").args["inorder"] == 1
        used = [split_id(name)[1] for name in [removed, *dump(wire)]]
        register(wire, simple_trigger("new"), "ID", "new")
        _, number = split_id(by_trigger(wire, "new").id)
    assert number > max(used), "a number was used again"


@pytest.mark.parametrize("way", ["aof", "aof without preamble"])
def test_a_kill_loses_nothing_that_was_answered(fresh, way):
    server = fresh(server_args=WAYS[way])
    for n in range(5):
        add(server, f"t{n}")
        before = state(server)
        server.kill()
        server.start()
        expect(server, before, [f"t{i}" for i in range(n + 1)])


def test_without_a_file_nothing_is_kept(fresh):
    server = fresh()
    add(server, "a")
    server.restart()
    assert state(server) == ([], [])


def test_the_aof_counts_if_there_are_both(fresh):
    server = fresh(server_args=(*RDB, *COMMANDS_ONLY))
    add(server, "a")
    server.command("SAVE")
    add(server, "b")
    before = state(server)
    server.kill()
    server.start()
    expect(server, before, "ab")


def test_functions_hear_of_it_at_each_load(fresh):
    server = fresh(server_args=(*RDB, *DEBUG))
    code = """
def heard():
    execute('incr', 'heard')
GB('CommandReader').register(trigger='t', mode='sync', onRegistered=heard)
"""
    with Wire(server.port) as wire:
        register(wire, code)

    def heard():
        with Wire(server.port) as wire:
            return wire.ok("GET", "heard")

    wait_until(lambda: heard() == b"1", "onRegistered")
    server.restart()
    wait_until(lambda: heard() == b"2", "onRegistered after a restart")
    server.command("DEBUG", "RELOAD")
    wait_until(lambda: heard() == b"3", "onRegistered after a reload")


def test_sessions_share_their_globals_after_a_restart(fresh):
    server = fresh(server_args=RDB)
    code = """
count = 0
def f(x):
    global count
    count += 1
    return count
GB('CommandReader').map(f).register(trigger='one', mode='sync')
GB('CommandReader').map(f).register(trigger='two', mode='sync')
"""
    with Wire(server.port) as wire:
        register(wire, code, "ID", "shared")
    server.restart()
    wait_until(lambda: len(state(server)[0]) == 2, "the registrations")
    with Wire(server.port) as wire:
        assert [trigger(wire, name) for name in ("one", "two", "one")] == [[b"1"], [b"2"], [b"3"]]


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB"])
def test_flushing_leaves_registrations(fresh, command):
    server = fresh(server_args=(*RDB, *COMMANDS_ONLY))
    add(server, "a")
    before = state(server)
    server.command(command)
    expect(server, before, "a")
    server.restart()
    expect(server, before, "a")


def test_debug_reload(fresh):
    server = fresh(server_args=DEBUG)
    add(server, "a", "b")
    server.command("SET", "key", "value")
    before = state(server)
    for _ in range(3):
        server.command("DEBUG", "RELOAD")
        expect(server, before, "ab")
    add(server, "c")
    # The dump of the last reload is loaded again: what came after it is gone, keys and registrations alike.
    server.command("SET", "key", "other")
    server.command("DEBUG", "RELOAD", "NOSAVE")
    expect(server, before, "ab")
    assert server.command("GET", "key") == b"value"


# Its functions take a while to load.
SLOW = """
import time
class Slow:
    def __reduce__(self):
        return time.sleep, (0.2,)
slow = Slow()
GB().foreach(lambda x: (slow, execute('incr', 'seen'))).register('k*', mode='sync')
"""
LOADS = {
    "reload": lambda server: server.command("DEBUG", "RELOAD"),
    "start": lambda server: server.restart(),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_what_was_loaded_is_active_for_the_first_command(fresh, load):
    server = fresh(server_args=(*RDB, *DEBUG))
    with Wire(server.port) as wire:
        register(wire, SLOW)
    for number in (b"1", b"2"):
        load(server)
        with Wire(server.port) as wire:
            wire.ok("SET", "k", "v")
            assert wire.ok("GET", "seen") == number
            assert counters(wire) == (1, 1, 0, 0), "counted by what was loaded"


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_a_load_begins_with_the_globals_that_were_registered(fresh, load):
    server = fresh(server_args=(*RDB, *DEBUG))
    code = """
calls = []
def f(x):
    calls.append(x[1])
    return calls
GB('CommandReader').map(f).register(trigger='one', mode='sync')
GB('CommandReader').map(f).register(trigger='two', mode='sync')
"""
    with Wire(server.port) as wire:
        register(wire, code)
    for _ in range(3):
        with Wire(server.port) as wire:
            assert trigger(wire, "one", "a") == [b"['a']"]
            assert trigger(wire, "two", "b") == [b"['a', 'b']"]
        load(server)


def test_a_script_runs_while_the_dataset_is_reloaded(fresh):
    server = fresh(server_args=DEBUG)
    add(server, "a")
    failures = []

    def ask():
        with Wire(server.port) as wire:
            for _ in range(200):
                reply = trigger(wire, "a")
                if reply != [b"a"] and not (isinstance(reply, Error) and "LOADING" in reply.text):
                    failures.append(reply)

    thread = threading.Thread(target=ask)
    thread.start()
    while thread.is_alive():
        server.command("DEBUG", "RELOAD")
    thread.join()
    # Between a load and its activation a shard shows what was active before: here the same.
    assert failures == []


# --- the AOF ----------------------------------------------------------------------------------------------------


def test_a_change_is_one_command_in_the_aof(fresh):
    server = fresh(server_args=COMMANDS_ONLY)
    add(server, "a", "b")
    assert logged(server, "APPLY") == 2
    with Wire(server.port) as wire:
        register(wire, simple_trigger("a", "new"), "ID", "a", "UPGRADE")
        register(wire, simple_trigger("c") + "\n" + simple_trigger("d"), "ID", "more")
    assert logged(server, "APPLY") == 4
    remove(server, "b")
    assert logged(server, "APPLY") == 5
    with Wire(server.port) as wire:
        # What is refused, or reads, leaves no trace.
        wire.error("RG.PYEXECUTE", simple_trigger("a"), "ID", "another")
        wire.call("RG.UNREGISTER", "0" * 40 + "-999")
        trigger(wire, "a")
        dump(wire)
    assert (logged(server, "APPLY"), logged(server, "RESTORE")) == (5, 0)


@pytest.mark.parametrize("way", ["aof", "aof without preamble"])
@pytest.mark.parametrize("how", ["restarted", "killed"])
def test_a_rewrite_keeps_everything(fresh, way, how):
    server = fresh(server_args=WAYS[way])
    add(server, "a", "gone")
    remove(server, "gone")
    for name in "bcd":
        rewrite(server)
        assert logged(server, "APPLY") == 0, "the rewritten file still has what came before"
        assert logged(server, "RESTORE") == (0 if way == "aof" else 1)
        add(server, name)
    before = state(server)
    end(server, how)
    expect(server, before, "abcd")
    rewrite(server)
    end(server, how)
    expect(server, before, "abcd")


@pytest.mark.parametrize("way", ["aof", "aof without preamble"])
def test_a_rewrite_that_fails_and_is_repeated(fresh, way):
    server = fresh(server_args=WAYS[way])
    add(server, "a")
    with server.client() as client:
        pipe = client.pipeline(transaction=False)
        for n in range(3000):
            pipe.set(f"key{n}", "x" * 200)
        pipe.execute()
        for name in "bc":
            # Makes the child wait after each key, long enough to be ended in the middle.
            client.config_set("rdb-key-save-delay", 1000)
            client.bgrewriteaof()
            wait_until(lambda: children(server), "the rewriting child")
            add(server, name)
            kill_children(server)
            client.config_set("rdb-key-save-delay", 0)
            wait_until(lambda: idle(server), "the end of the rewrite")
            assert info(server, "persistence")["aof_last_bgrewrite_status"] == "err"
    add(server, "d")
    before = state(server)
    server.kill()
    server.start()
    expect(server, before, "abcd")
    # The failure holds the next one up for a while, unless it is asked for.
    rewrite(server)
    remove(server, "a")
    before = state(server)
    server.kill()
    server.start()
    expect(server, before, "bcd")


@pytest.mark.parametrize("preamble", ["yes", "no"])
def test_an_aof_that_is_switched_on_later(fresh, preamble):
    server = fresh(server_args=("--aof-use-rdb-preamble", preamble, "--appendfsync", "always"))
    add(server, "a", "gone")
    remove(server, "gone")
    server.command("CONFIG", "SET", "appendonly", "yes")
    add(server, "b")
    wait_idle(server)
    add(server, "c")
    before = state(server)
    server.server_args += ["--appendonly", "yes"]
    server.kill()
    server.start()
    expect(server, before, "abc")
    # Off, a change that no file has, and on again.
    server.command("CONFIG", "SET", "appendonly", "no")
    remove(server, "a")
    server.command("CONFIG", "SET", "appendonly", "yes")
    wait_idle(server)
    before = state(server)
    server.kill()
    server.start()
    expect(server, before, "bc")


def test_the_preamble_can_be_switched_at_any_time(fresh):
    server = fresh(server_args=WITH_PREAMBLE)
    names = []
    for n, preamble in enumerate(["no", "yes", "yes", "no", "no", "yes"]):
        names.append(f"t{n}")
        add(server, names[-1])
        server.command("CONFIG", "SET", "aof-use-rdb-preamble", preamble)
        rewrite(server)
        before = state(server)
        server.server_args[-1] = preamble
        server.kill()
        server.start()
        expect(server, before, names)


def test_the_aof_is_loaded_again(fresh):
    server = fresh(server_args=(*COMMANDS_ONLY, *DEBUG))
    add(server, "a", "gone")
    rewrite(server)
    remove(server, "gone")
    add(server, "b")
    before = state(server)
    for _ in range(2):
        server.command("DEBUG", "LOADAOF")
        expect(server, before, "ab")


def test_changes_during_a_rewrite(fresh):
    server = fresh(server_args=COMMANDS_ONLY)
    add(server, "a", "gone")
    with server.client() as client:
        pipe = client.pipeline(transaction=False)
        for n in range(1000):
            pipe.set(f"key{n}", "x")
        pipe.execute()
        client.config_set("rdb-key-save-delay", 1000)
        client.bgrewriteaof()
        add(server, "b")
        remove(server, "gone")
        with Wire(server.port) as wire:
            register(wire, simple_trigger("a", "a") + "\n" + simple_trigger("c", "c"), "ID", "a", "UPGRADE")
        assert info(server, "persistence")["aof_rewrite_in_progress"] == 1, "the rewrite was over too early"
        client.config_set("rdb-key-save-delay", 0)
    wait_idle(server)
    before = state(server)
    server.kill()
    server.start()
    expect(server, before, "abc")


# --- the internal command ---------------------------------------------------------------------------------------


INNER = COMMAND.decode()


@pytest.mark.parametrize("words", [(), ("APPLY",), ("APPLY", "x"), ("RESTORE", b"OXRS\x01\x00"), ("x",) * 5])
def test_clients_may_not_use_the_internal_command(wire, words):
    add_one(wire)
    text = "RG.INNERREGISTRY is for replication and the AOF only"
    assert text in wire.error(INNER, *words)
    wire.ok("MULTI")
    wire.ok(INNER, *words)
    (reply,) = wire.ok("EXEC")
    assert text in reply.text
    if all(isinstance(word, str) for word in words):
        listed = ", ".join(f"'{word}'" for word in (INNER, *words))
        assert text in wire.error("EVAL", f"return redis.call({listed})", "0")
        code = f"GB('ShardsIDReader').map(lambda x: execute({listed})).run()"
        results, errors = wire.ok("RG.PYEXECUTE", code)
        assert results == [] and text in errors[0].decode()
    assert len(dump(wire)) == 1 and trigger(wire, "one") == [b"1"]


def add_one(wire):
    register(wire, simple_trigger("one"), "ID", "one")


def test_what_of_the_aof_can_not_be_read_is_logged(fresh):
    server = fresh(server_args=COMMANDS_ONLY)
    add(server, "a")
    server.kill()
    (path,) = [p for p in (Path(server.dir) / "appendonlydir").iterdir() if ".incr." in p.name]
    with path.open("ab") as file:
        for words in ((b"APPLY", b"\xff\xfe"), (b"RESTORE", b"nonsense"), (b"LATER", b"x"), (b"APPLY",)):
            parts = [COMMAND, *words]
            file.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
    server.start()
    expect_names(server, "a")
    assert server.log().count("Failed register session from the AOF") == 4
    assert "RG.INNERREGISTRY LATER is not known to this version" in server.log()


# --- dumps that can not be loaded -------------------------------------------------------------------------------


def dump_file(server):
    return Path(server.dir) / "dump.rdb"


def expect_refused(server, said):
    """The server does not start with this dump, says why, and has not crashed."""
    with pytest.raises(StartError):
        server.start()
    # The server checks the file for itself before it ends: 0 if it finds nothing but what the module said.
    assert exit_code(server) in (0, 1)
    no_crash([server])
    lines = server.log().splitlines()
    assert any(said in line for line in lines), lines[-12:]


@pytest.fixture
def dumped(fresh):
    """A server that has ended, with a dump of one registration and one key."""
    server = fresh(server_args=(*RDB, "--rdbchecksum", "no", "--rdbcompression", "no"))
    add(server, "a")
    server.command("SET", "key", "value")
    server.command("SAVE")
    server.kill()
    return server


def test_a_damaged_dump_is_refused(dumped):
    path = dump_file(dumped)
    good = path.read_bytes()
    at = good.index(MAGIC)
    # The checksum of the state, its first byte, some byte further on.
    for offset in (6, 10, 40):
        bad = bytearray(good)
        bad[at + offset] ^= 0x55
        path.write_bytes(bad)
        expect_refused(dumped, "the registry's bytes are cut off or damaged")
        assert "load another dump, or this one with the version of the module that wrote it" in dumped.log()
        Path(dumped.log_path).unlink()
    path.write_bytes(good)
    dumped.start()
    expect_names(dumped, "a")


def test_a_dump_of_a_newer_version_is_refused(dumped):
    path = dump_file(dumped)
    good = path.read_bytes()
    at = good.index(MAGIC) + len(MAGIC)
    (version,) = struct.unpack("<H", good[at : at + 2])
    path.write_bytes(good[:at] + struct.pack("<H", version + 1) + good[at + 2 :])
    expect_refused(dumped, f"the registry was written by a newer version (format {version + 1}); upgrade this node")


def test_a_dump_that_is_cut_off(dumped):
    path = dump_file(dumped)
    good = path.read_bytes()
    for length in (good.index(MAGIC) + 2, good.index(MAGIC) + 30):
        path.write_bytes(good[:length])
        expect_refused(dumped, "oxigears1")


def test_a_dump_without_registrations_needs_no_module(fresh):
    """Servers before 7.2 write a few bytes for each module, and load them only with it."""
    server = fresh(server_args=RDB)
    server.command("SET", "key", "value")
    server.command("SAVE")
    assert MAGIC not in dump_file(server).read_bytes()
    version = info(server, "server")["redis_version"]
    server.kill()
    server.module = None
    if tuple(map(int, version.split(".")[:2])) >= (7, 2):
        server.start()
        assert server.command("GET", "key") == b"value"
    else:
        expect_refused(server, "no matching module 'oxigears1'")


ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def crc64(data):
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x95AC9329AC4BC9B5 if crc & 1 else 0)
    return crc


def test_a_key_that_claims_to_be_of_our_type(wire):
    kind = 0
    for letter in "oxigears1":
        kind = kind << 6 | ALPHABET.index(letter)
    version = struct.unpack("<H", wire.ok("DUMP", "key")[-10:-8] if wire.ok("SET", "key", "v") else b"")[0]
    body = b"\x07\x81" + struct.pack(">Q", kind << 10 | 1) + b"\x00" + struct.pack("<H", version)
    payload = body + struct.pack("<Q", crc64(body))
    assert "Bad data format" in wire.error("RESTORE", "hostile", "0", payload)
    assert wire.ok("EXISTS", "hostile") == 0


# --- forks, pauses ----------------------------------------------------------------------------------------------


class Busy:
    """Registers and unregisters, fires, and runs Python until it is left."""

    def __init__(self, server):
        self.server = server
        self.names = []
        self.broken = None
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in (self._change, self._fire)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join()
        assert self.broken is None, self.broken

    def _run(self, work):
        try:
            with Wire(self.server.port) as wire:
                n = 0
                while not self._end.is_set():
                    work(wire, n)
                    n += 1
        except BaseException as error:
            self.broken = error

    def _change(self, wire, n):
        name = f"busy{n}"
        register(wire, simple_trigger(name, name), "ID", name)
        self.names.append(name)
        if len(self.names) > 5:
            assert wire.call("RG.UNREGISTER", by_trigger(wire, self.names.pop(0)).id) == OK

    def _fire(self, wire, n):
        assert trigger(wire, "steady") == [b"steady"]
        assert trigger(wire, "steady-local") == [b"steady-local"]
        wire.ok("RG.PYEXECUTE", "GB().count().run()")


@pytest.mark.parametrize("preamble", ["yes", "no"])
def test_saving_and_rewriting_again_and_again_under_load(fresh, preamble):
    server = fresh(server_args=(*RDB, "--appendonly", "yes", "--aof-use-rdb-preamble", preamble))
    add(server, "steady")
    with Wire(server.port) as wire:
        register(wire, simple_trigger("steady-local", "steady-local", mode="async_local"), "ID", "steady-local")
    forks = 0
    with Busy(server) as busy:
        until = time.monotonic() + LOAD_S
        while time.monotonic() < until and busy.broken is None:
            with server.client() as client:
                (client.bgsave if forks % 2 else client.bgrewriteaof)()
            forks += 1
            wait_idle(server)
            assert info(server, "persistence")["rdb_last_bgsave_status"] == "ok"
            assert info(server, "persistence")["aof_last_bgrewrite_status"] == "ok"
    assert forks >= 4
    names = [*busy.names, "steady", "steady-local"]
    before = state(server)
    server.restart()
    expect(server, before, names)
    # The dump of the end holds the same.
    server.command("CONFIG", "SET", "appendonly", "no")
    server.command("SAVE")
    server.server_args += ["--appendonly", "no"]
    server.kill()
    server.start()
    expect(server, before, names)


def test_nothing_is_written_while_writes_are_paused(fresh):
    """The server would end itself if something were replicated in a pause."""
    server = fresh(server_args=COMMANDS_ONLY)
    add(server, "a")
    with Wire(server.port) as admin, Wire(server.port) as changer, Wire(server.port) as runner:
        register(
            changer, "GB('CommandReader').foreach(lambda x: execute('incr', 'n')).register(trigger='w', mode='sync')"
        )
        admin.ok("CLIENT", "PAUSE", 60000, "WRITE")
        changer.send("RG.PYEXECUTE", simple_trigger("b", "b"), "ID", "b")
        runner.send("RG.PYEXECUTE", "GB('ShardsIDReader').foreach(lambda x: execute('incr', 'n')).run()")
        # Reads go on, and so do functions that only read.
        assert admin.ok("GET", "n") is None
        assert admin.ok("RG.DUMPREGISTRATIONS")
        # A rewrite in the pause: the state for the new file has to wait.
        admin.ok("BGREWRITEAOF")
        wait_idle(server)
        assert (logged(server, "APPLY"), logged(server, "RESTORE")) == (0, 0)
        assert not changer.has_reply(0.2) and not runner.has_reply(0.0)
        admin.ok("CLIENT", "UNPAUSE")
        assert changer.read() == OK
        assert runner.read()[1] == []
        changer.ok("RG.TRIGGER", "w")
        assert admin.ok("GET", "n") == b"2"
    wait_until(lambda: logged(server, "RESTORE") == 1, "the state in the new file")
    before = state(server)
    server.kill()
    server.start()
    expect_names_of(server, before)
    assert works(server, "ab")


def expect_names_of(server, before):
    wait_until(lambda: state(server) == before, f"{server} holding what it held")


@pytest.mark.parametrize(
    "command",
    [
        "'set', 'k', 'v'",
        "'eval', 'return redis.call(\"set\", \"k\", \"v\")', '0'",
        "'publish', 'c', 'm'",
        "'pfcount', 'h'",
    ],
)
def test_functions_that_write_in_a_pause(fresh, command):
    server = fresh(server_args=AOF)
    with Wire(server.port) as admin, Wire(server.port) as runner:
        # In one lock hold nobody could end the pause: such code begins after it.
        code = f"""
def f(x):
    with atomic():
        execute({command})
    execute({command})
    return 'done'
GB('ShardsIDReader').map(f).run()
"""
        admin.ok("CLIENT", "PAUSE", 60000, "WRITE")
        runner.send("RG.PYEXECUTE", code)
        assert not runner.has_reply(0.3)
        admin.ok("CLIENT", "UNPAUSE")
        assert runner.read() == [[b"done"], []]


# --- many ------------------------------------------------------------------------------------------------------


def test_ten_thousand_registrations(fresh):
    """In one dump and in one command of the AOF. Few to a session: each entry of the listing names them all."""
    server = fresh(server_args=(*RDB, *COMMANDS_ONLY))
    code = """
def make(n):
    GB('CommandReader').map(lambda x: n).register(trigger='t%d' % n, mode='sync')
for n in range({0} * 10, {0} * 10 + 10):
    make(n)
"""
    with Wire(server.port) as wire:
        for part in range(1000):
            register(wire, code.replace("{0}", str(part)), "ID", f"many{part}")
    before = state(server)
    assert len(before[0]) == 10000
    rewrite(server)
    assert logged(server, "RESTORE") == 1 and len(aof(server)) == 2
    server.kill()
    server.start()
    expect_names_of(server, before)
    server.command("CONFIG", "SET", "appendonly", "no")
    server.command("SAVE")
    server.server_args += ["--appendonly", "no"]
    server.kill()
    server.start()
    expect_names_of(server, before)
    with Wire(server.port) as wire:
        assert trigger(wire, "t9999") == [b"9999"]
        assert len(sessions(wire)) == 1000
