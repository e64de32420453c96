"""What else happens on a server while executions run: clients leave, data goes, snapshots are written, it ends."""

import signal
import time

import pytest
from breaking import ERROR_S, HERE, exit_code, expect_free, expect_loss, outcome
from replies import Gate, executions, results_of, start, wait_until
from wire import HANG_GUARD_S, Simple, Wire

HELD = "GB('ShardsIDReader').map(hold).run()"
BUSY = """
def spin(x):
    execute('set', 'spinning{%s}' % hashtag(), '1')
    while True:
        x = 0
GB('ShardsIDReader').map(spin).run()
"""
# One call into C code that does not give the interpreter lock back for seconds.
HOG = """
def hog(x):
    execute('set', 'hogging', '1')
    return sum(range(10**8))
GB('ShardsIDReader').map(hog).run()
"""


@pytest.fixture
def server(fresh):
    return fresh()


@pytest.fixture
def wire(server):
    with Wire(server.port) as connection:
        yield connection


# --- clients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "kill"])
def test_a_client_leaves_while_it_is_blocked(server, wire, way):
    gate = Gate([server])
    leaving = Wire(server.port)
    client_id = leaving.ok("CLIENT", "ID")
    leaving.send("RG.PYEXECUTE", gate.code + HELD)
    gate.wait_reached()
    if way == "close":
        leaving.close()
    else:
        assert wire.ok("CLIENT", "KILL", "ID", client_id) == 1
    wait_until(lambda: b"blocked_clients:0\r\n" in wire.ok("INFO", "clients"), "the client being gone")
    gate.open()
    # Nobody will ask for its results, so it must not stay in the list.
    wait_until(lambda: executions(wire) == {}, "the execution being dropped")
    leaving.close()
    expect_free([server])


def test_many_clients_leave(server, wire):
    gate = Gate([server])
    clients = [Wire(server.port) for _ in range(50)]
    for client in clients:
        client.send("RG.PYEXECUTE", gate.code + HELD)
    wait_until(lambda: b"blocked_clients:50\r\n" in wire.ok("INFO", "clients"), "fifty clients waiting")
    for client in clients:
        client.close()
    gate.open()
    wait_until(lambda: executions(wire) == {}, "every execution being dropped")
    expect_free([server])


def test_a_client_leaves_a_distributed_execution(trio, wires):
    gate = Gate(trio.servers)
    leaving = Wire(trio.servers[0].port)
    leaving.send("RG.PYEXECUTE", gate.code + HELD)
    gate.wait_reached()
    leaving.close()
    gate.open()
    for wire in wires:
        wait_until(lambda wire=wire: executions(wire) == {}, "the execution being dropped everywhere")
    expect_free(trio.servers)


# --- the data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB", "SWAPDB"])
def test_the_data_goes_in_the_middle(server, wire, command):
    keys = 50_000
    for first in range(0, keys, 1000):
        wire.ok("MSET", *[word for i in range(first, first + 1000) for word in (f"k{i}", "v")])
    gate = Gate([server])
    with Wire(server.port) as other:
        script = "def once(r):\n    return hold(r) if r['key'] == 'k7' else r\n"
        other.send("RG.PYEXECUTE", gate.code + script + "GB().map(once).count().run('k*')")
        gate.wait_reached()
        wire.ok(*(["SWAPDB", 0, 1] if command == "SWAPDB" else [command]))
        gate.open()
        results, errors = outcome(other.read())
    # Keys that went meanwhile may or may not have been seen; none may be counted twice.
    assert errors or 1 <= int(results[0]) <= keys
    expect_free([server])


def test_keys_that_change_type_under_the_reader(server, wire):
    for i in range(2000):
        wire.ok("SET", f"k{i}", "v")
    with Wire(server.port) as other:
        other.send("RG.PYEXECUTE", "GB().map(lambda r: r['type']).countby().count().run('k*')")
        for i in range(2000):
            wire.ok("DEL", f"k{i}")
            wire.ok("RPUSH", f"k{i}", "a")
        results, errors = outcome(other.read())
    assert errors == [] and 1 <= int(results[0]) <= 3
    assert wire.ok("RG.PYEXECUTE", "GB().map(lambda r: r['type']).distinct().run('k*')") == [[b"list"], []]


def test_snapshots_every_100_ms(server, wire):
    for first in range(0, 20_000, 1000):
        wire.ok("MSET", *[word for i in range(first, first + 1000) for word in (f"k{i}", i)])
    script = "GB().map(lambda r: int(r['value']) % 7).countby().count().run('k*')"
    with Wire(server.port) as other:
        other.send("RG.PYEXECUTE", script)
        for _ in range(30):
            # An error only if the one before still runs.
            wire.call("BGSAVE")
            until = time.monotonic() + 0.1
            while (left := until - time.monotonic()) > 0:
                if other.has_reply(within=left):
                    assert results_of(other.read()) == [b"7"]
                    other.send("RG.PYEXECUTE", script)
        assert results_of(other.read()) == [b"7"]
    wait_until(lambda: b"rdb_bgsave_in_progress:0" in wire.ok("INFO", "persistence"), "the last snapshot")
    assert b"rdb_last_bgsave_status:ok" in wire.ok("INFO", "persistence")


# --- the interpreter lock ----------------------------------------------------------------------------------------


def test_ping_is_answered_while_c_code_holds_the_interpreter(server, wire):
    with Wire(server.port) as hog, Wire(server.port) as waiting:
        hog.send("RG.PYEXECUTE", HOG)
        wait_until(lambda: wire.ok("EXISTS", "hogging"), "the step being reached")
        # Another script waits for the interpreter meanwhile; the main thread must not.
        waiting.send("RG.PYEXECUTE", "x = 1")
        answered = 0
        while not hog.has_reply():
            assert wire.call("PING") == Simple("PONG")
            answered += 1
        assert answered > 5, "nothing was answered before the step ended"
        assert results_of(hog.read()) == [str(sum(range(10**8))).encode()]
        assert waiting.read() == Simple("OK")


def test_commands_are_answered_while_c_code_holds_the_interpreter(server, wire):
    finished = start(wire, HERE)
    wire.ok("RG.GETRESULTSBLOCKING", finished)
    with Wire(server.port) as hog:
        hog.send("RG.PYEXECUTE", HOG)
        wait_until(lambda: wire.ok("EXISTS", "hogging"), "the step being reached")
        before = []
        for command in (
            ["RG.DUMPEXECUTIONS"],
            ["RG.GETEXECUTION", finished],
            ["RG.GETRESULTS", finished],
            ["RG.CONFIGGET", "MaxExecutions"],
            ["RG.CONFIGSET", "Mine", "x"],
            ["RG.INFOCLUSTER"],
            ["RG.PYSTATS"],
            ["INFO", "everything"],
            ["SET", "k", "v"],
            ["BGSAVE"],
        ):
            wire.ok(*command)
            before.append(not hog.has_reply())
        assert before[0], "the first command waited for the interpreter"
        assert results_of(hog.read()) == [str(sum(range(10**8))).encode()]


# --- the end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [BUSY, HOG, None], ids=["python-loop", "c-code", "waiting-step"])
def test_shutdown_in_the_middle(server, wire, script):
    if script is None:
        gate = Gate([server])
        wire.send("RG.PYEXECUTE", gate.code + HELD)
        gate.wait_reached()
    else:
        wire.send("RG.PYEXECUTE", script)
        with Wire(server.port) as look:
            wait_until(lambda: look.ok("KEYS", "*ing*"), "the step being reached")
    with Wire(server.port) as last:
        last.send("SHUTDOWN", "NOSAVE")
        with pytest.raises(ConnectionError):
            last.read(timeout=HANG_GUARD_S)
    assert exit_code(server) == 0
    with pytest.raises(ConnectionError):
        wire.read()


def test_shutdown_with_save(server, wire):
    wire.ok("SET", "k", "v")
    wire.send("RG.PYEXECUTE", BUSY)
    with Wire(server.port) as last:
        wait_until(lambda: last.ok("KEYS", "spinning*"), "the step being reached")
        last.send("SHUTDOWN", "SAVE")
        with pytest.raises(ConnectionError):
            last.read(timeout=HANG_GUARD_S)
    assert exit_code(server) == 0
    server.start()
    with Wire(server.port) as again:
        assert again.ok("GET", "k") == b"v"
        assert again.ok("RG.PYEXECUTE", HERE) == [[b"1"], []]


def test_a_shard_of_a_cluster_shuts_down(trio, wires):
    initiator, victim, other = trio.servers
    gate = Gate(trio.servers)
    wires[0].send("RG.PYEXECUTE", gate.code + HELD)
    gate.wait_reached()
    gate.open(initiator, other)
    wires[1].send("SHUTDOWN", "NOSAVE")
    expect_loss(wires[0].read(timeout=ERROR_S), victim)
    assert exit_code(victim) == 0
    expect_free([initiator, other])


def test_start_and_end_in_a_loop(server):
    """A server that starts, runs something and ends, several times: no start and no end hangs."""
    for _ in range(4):
        with Wire(server.port) as wire:
            assert wire.ok("RG.PYEXECUTE", HERE) == [[b"1"], []]
            start(wire, BUSY)
            wait_until(lambda wire=wire: wire.ok("KEYS", "spinning*"), "the step being reached")
        server.kill(signal.SIGTERM)
        assert exit_code(server) == 0
        server.start()


SHUTDOWN = "execute('shutdown', 'nosave', 'now')"


@pytest.mark.parametrize(
    "text",
    [
        SHUTDOWN,
        f"GB('ShardsIDReader').foreach(lambda x: {SHUTDOWN}).run()",
        f"async def ends():\n    {SHUTDOWN}\nrunCoroutine(ends())",
        f"import threading\nthreading.Thread(target=lambda: {SHUTDOWN}).start()",
    ],
    ids=["script", "step", "coroutine", "thread"],
)
def test_shutdown_by_code(server, wire, text):
    """The process ends within a visit to the interpreter, to which its thread does not come back."""
    with Wire(server.port) as last:
        last.send("RG.PYEXECUTE", text)
        wait_until(lambda: not server.alive(), "the server ending")


CHANGES_CLIENTS = (
    "execute('client', 'kill', 'type', 'normal', 'skipme', 'yes')",
    "execute('config', 'set', 'maxclients', '11000')",
    "execute('config', 'set', 'maxmemory-clients', '1%')",
)


@pytest.mark.matrix
@pytest.mark.parametrize("code", CHANGES_CLIENTS)
def test_clients_of_threads_of_the_server(fresh, code):
    """Redis 8 ends itself if another thread than the main one looks at them: there the command is refused."""
    server = fresh(server_args=("--io-threads", "3"))
    others = [Wire(server.port) for _ in range(6)]
    for other in others:
        other.ok("PING")
    for program in (f"GB('ShardsIDReader').map(lambda x: {code}).run()", code):
        with Wire(server.port) as wire:
            wire.send("RG.PYEXECUTE", program)
            try:
                wire.read(timeout=ERROR_S)
            except ConnectionError:
                # It was one of those that were ended.
                pass
    with Wire(server.port) as wire:
        assert wire.ok("RG.PYEXECUTE", HERE) == [[b"1"], []]
    for other in others:
        other.close()
