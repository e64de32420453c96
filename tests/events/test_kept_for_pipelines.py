"""The main thread keeps the interpreter from one command with a sync handler to the next, and for nothing else."""

import threading
import time

import pytest
from replies import wait_until
from wire import Simple, Wire, encode

pytestmark = pytest.mark.matrix

OK = Simple("OK")
# A thread that needs the interpreter alone; it tells how far it is now and then.
SCRIPT = """
import threading
import time
seen = [0]
def loop():
    while True:
        seen[0] += 1
        time.sleep(0)
threading.Thread(target=loop, daemon=True).start()
GB().foreach(lambda x: execute('INCR', 'handled')).register('k*', mode='sync', eventTypes=['set'])
GB('CommandReader').map(lambda x: seen[0]).register(trigger='seen', mode='sync')
"""
PIPELINE = 64


@pytest.fixture
def server(fresh):
    return fresh()


@pytest.fixture
def wire(server):
    with Wire(server.port) as wire:
        assert wire.ok("RG.PYEXECUTE", SCRIPT) == OK
        yield wire


def seen(wire):
    return int(wire.ok("RG.TRIGGER", "seen")[0])


def handled(wire):
    return int(wire.ok("GET", "handled") or 0)


# Commands with handlers.
SETS = [("SET", f"k{number}", "x") for number in range(PIPELINE)]


def send(wire, commands):
    """In one piece."""
    wire.send_raw(b"".join(map(encode, commands)))


def sets(wire, rounds, behind=()):
    """Pipelines of commands with handlers, and others; how many have handlers."""
    for _ in range(rounds):
        send(wire, [*SETS, *behind])
        assert [wire.read() for _ in SETS] == [OK] * PIPELINE
        for _ in behind:
            wire.read()
    return rounds * PIPELINE


def test_threads_get_on_between_pipelines(wire):
    before = seen(wire)
    count = sets(wire, 50)
    assert handled(wire) == count
    assert seen(wire) > before


def test_threads_get_on_while_clients_never_pause(wire, server):
    """Turns of the event loop that have commands of many clients, one after the other."""
    over = threading.Event()
    counts = []

    def client():
        with Wire(server.port) as own:
            count = 0
            while not over.is_set():
                count += sets(own, 5)
            counts.append(count)

    clients = [threading.Thread(target=client) for _ in range(8)]
    for thread in clients:
        thread.start()
    try:
        steps = [seen(wire)]
        for _ in range(10):
            wait_until(lambda: seen(wire) > steps[-1], "the thread")
            steps.append(seen(wire))
    finally:
        over.set()
        for thread in clients:
            thread.join()
    assert handled(wire) == sum(counts)


def test_nothing_is_kept_when_the_server_sleeps(wire, server):
    """Also behind a client that waited: it goes on after the end of the turn."""
    with Wire(server.port) as waits:
        send(waits, [("BLPOP", "list", "0"), *SETS])
        wait_until(lambda: b"blocked_clients:1" in wire.ok("INFO", "clients"), "a client that waits")
        assert wire.ok("LPUSH", "list", "x") == 1
        before = seen(wire)
        assert [waits.read() for _ in range(PIPELINE + 1)] == [[b"list", b"x"]] + [OK] * PIPELINE
        # Nobody wakes the server meanwhile, but for its own ten turns a second.
        time.sleep(0.5)
        # A turn of the loop takes a microsecond or two, and ten milliseconds when it is woken by turns only.
        assert seen(wire) - before > 1000
    assert handled(wire) == PIPELINE


def test_what_else_stands_in_a_pipeline(wire):
    between = [
        ("PING",),
        ("RG.PYEXECUTE", "execute('INCR', 'scripts')"),
        ("RG.DUMPREGISTRATIONS",),
        ("EVAL", "return redis.call('SET', 'k1', 'x')", "0"),
        ("MULTI",),
        ("SET", "k2", "x"),
        ("RG.TRIGGER", "seen"),
        ("EXEC",),
        ("SAVE",),
        ("CLIENT", "LIST"),
        ("RG.PYEXECUTE", "GB('KeysReader').count().run('k*')"),
        ("SET", "k3", "x"),
    ]
    rounds = 5
    count = sets(wire, rounds, between) + 3 * rounds
    assert (handled(wire), wire.ok("GET", "scripts")) == (count, b"%d" % rounds)


def test_nothing_is_kept_while_commands_without_handlers_run(wire):
    """They are taken over as well, and may be long."""
    assert wire.ok("RG.PYEXECUTE", "GB().register('l*', mode='async_local', commands=['lpos'])") == OK
    for _ in range(20):
        wire.ok("RPUSH", "l", *range(5000))
    before = seen(wire)
    behind = [("LPOS", "l", "none")] * 100
    send(wire, [("SET", "k", "x"), *behind, ("RG.TRIGGER", "seen")])
    assert wire.read() == OK
    assert [wire.read() for _ in behind] == [None] * len(behind)
    (after,) = wire.read()
    # A turn of the thread's loop takes some microseconds, the commands much longer.
    assert int(after) - before > 1000


def test_saves_that_begin_under_load_end(wire):
    """The server forks by itself in the turn in which commands came."""
    wire.ok("CONFIG", "SET", "save", "1 1")

    def saved():
        fields = dict(line.split(b":", 1) for line in wire.ok("INFO", "persistence").splitlines() if b":" in line)
        return (
            fields[b"rdb_bgsave_in_progress"],
            fields[b"rdb_last_bgsave_status"],
            fields[b"rdb_changes_since_last_save"],
        )

    count = 0
    first = wire.ok("LASTSAVE")
    deadline = time.monotonic() + 60
    while wire.ok("LASTSAVE") < first + 3 and time.monotonic() < deadline:
        count += sets(wire, 5)
    assert wire.ok("LASTSAVE") >= first + 3
    assert saved()[1] == b"ok"
    for name in ("BGREWRITEAOF", "BGSAVE"):
        wait_until(lambda: saved()[0] == b"0", "the end of a save")
        count += sets(wire, 1, [(name,)])
    wire.ok("CONFIG", "SET", "save", "")
    wait_until(lambda: saved()[0] == b"0", "the end of the last save")
    assert saved()[1] == b"ok"
    assert handled(wire) == count


def test_the_registration_goes_in_the_middle_of_a_pipeline(wire):
    rows = wire.ok("RG.DUMPREGISTRATIONS")
    ids = [row[1] for row in rows if row[3] == b"KeysReader"]
    send(wire, [*SETS, ("RG.UNREGISTER", ids[0]), *SETS])
    assert [wire.read() for _ in range(2 * PIPELINE + 1)] == [OK] * (2 * PIPELINE + 1)
    before = seen(wire)
    assert handled(wire) == PIPELINE
    wait_until(lambda: seen(wire) > before, "the thread")


def test_the_server_ends_in_the_middle(wire, server):
    send(wire, [*SETS, ("SHUTDOWN", "NOSAVE"), *SETS])
    wait_until(lambda: not server.alive(), "the end of the server")
