"""Triggers and hooks of mode async_local: calls that wait in a line, run in one go, and are executions like others."""

import contextlib

import pytest
from registrations import by_trigger, register
from replies import executions_of, flat_map, pair, wait_until
from wire import Error, Simple, Wire, encode

pytestmark = pytest.mark.matrix

OK = Simple("OK")
ABORTED = Error("ERR the execution was aborted")
CALLS = 10
HOLD = """
def hold(x):
    import time
    execute('rpush', 'begun', x[-1])
    while not execute('exists', 'go'):
        time.sleep(0.005)
    return x[-1]
GB('CommandReader').map(hold).register(trigger='t', mode='async_local')
"""


@contextlib.contextmanager
def calling(server, wire, *commands):
    """A client for each command, each of which has been counted."""
    clients = []
    try:
        for command in commands:
            clients.append(Wire(server.port))
            clients[-1].send(*command)
            wait_until(lambda: counted(wire)[0] == len(clients), "the call")
        yield clients
    finally:
        for client in clients:
            client.close()


@pytest.fixture
def held(server, wire):
    """Clients whose calls run or wait, in their order."""
    register(wire, HOLD)
    with calling(server, wire, *(("RG.TRIGGER", "t", n) for n in range(CALLS))) as clients:
        wait_until(lambda: wire.ok("LLEN", "begun") == threads(wire), "as many as there are threads")
        yield clients


def threads(wire):
    return wire.ok("RG.CONFIGGET", "ExecutionThreads")[0]


def counted(wire):
    return by_trigger(wire, "t").counters


def under_way(wire, status):
    """Ids of executions of this status, oldest first."""
    found = executions_of(wire)
    assert all(registered == 1 for _, registered in found.values())
    its = [one for one, (known, _) in found.items() if known == status.encode()]
    return sorted(its, key=lambda one: int(one.rsplit(b"-", 1)[1]))


def executions_in_info(wire):
    (line,) = [line for line in wire.ok("INFO", "rg").splitlines() if line.startswith(b"rg_nexecutions:")]
    return int(line.split(b":")[1])


def test_calls_that_wait_and_run_are_listed_and_leave_nothing(wire, held):
    running, waiting = under_way(wire, "running"), under_way(wire, "created")
    assert (len(running), len(waiting)) == (threads(wire), CALLS - threads(wire))
    assert executions_in_info(wire) == CALLS
    for execution, status in ((running[0], b"running"), (waiting[-1], b"created")):
        (shard,) = wire.ok("RG.GETEXECUTION", execution)
        assert flat_map(flat_map(shard)["execution_plan"])["status"] == status
    wire.ok("SET", "go", "1")
    assert [client.read() for client in held] == [[b"%d" % n] for n in range(CALLS)]
    assert counted(wire) == (CALLS, CALLS, 0, 0)
    assert executions_of(wire) == {} and executions_in_info(wire) == 0


def test_a_call_that_waits_can_be_aborted(wire, held):
    at = threads(wire) + 2
    execution = under_way(wire, "created")[2]
    assert wire.ok("RG.ABORTEXECUTION", execution) == OK
    assert held[at].read() == ABORTED
    assert wire.error("RG.ABORTEXECUTION", execution) == "execution does not exist"
    wire.ok("SET", "go", "1")
    assert [client.read() for n, client in enumerate(held) if n != at] == [[b"%d" % n] for n in range(CALLS) if n != at]
    assert counted(wire) == (CALLS, CALLS - 1, 0, 1)
    assert b"%d" % at not in wire.ok("LRANGE", "begun", 0, -1)


def test_who_waits_for_a_call_hears_of_its_end(server, wire, held):
    running, waiting = under_way(wire, "running")[0], under_way(wire, "created")[:2]
    with contextlib.ExitStack() as stack:
        watchers = [stack.enter_context(Wire(server.port)) for _ in range(3)]
        for watcher, execution in zip(watchers, [running, *waiting], strict=True):
            watcher.send("RG.GETRESULTSBLOCKING", execution)
        wait_until(lambda: wire.ok("INFO", "clients").count(b"blocked_clients:%d\r" % (CALLS + 3)), "the watchers")
        assert wire.ok("RG.ABORTEXECUTION", waiting[0]) == OK
        assert pair(watchers[1].read()) == ([], [])
        wire.ok("SET", "go", "1")
        assert pair(watchers[0].read()) == ([b"0"], [])
        assert pair(watchers[2].read()) == ([b"%d" % (threads(wire) + 1)], [])


def test_a_running_call_that_is_stopped_is_a_failure(server, wire):
    """Its error is that of the stop, or one of its own from before."""
    register(
        wire,
        "def loop(x):\n    if x == '0': raise ValueError('mine')\n    execute('set', 'in', x)\n    while True: pass\n"
        "GB('CommandReader').flatmap(lambda x: x[1:]).map(loop).register(trigger='t', mode='async_local')",
    )
    for args, text in ((("1",), "forcestopped"), (("0", "1"), "mine")):
        wire.ok("DEL", "in")
        with Wire(server.port) as client:
            client.send("RG.TRIGGER", "t", *args)
            wait_until(lambda: wire.ok("EXISTS", "in"), "the loop")
            (execution,) = under_way(wire, "running")
            assert wire.ok("RG.ABORTEXECUTION", execution) == OK
            assert text in client.read().text.lower()
        assert text in by_trigger(wire, "t").data["lastError"].decode().lower()
    assert counted(wire) == (2, 0, 2, 0)


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_postponed_call_that_is_stopped_is_aborted(server, wire, when):
    """`at once`: it has been told to stop before it awaits."""
    wait = "time.sleep(0.5)" if when == "at once" else "pass"
    register(
        wire,
        "import time\nkept = []\ndef f(x):\n    execute('set', 'in', 1)\n"
        f"    try:\n        {wait}\n    except BaseException: pass\n"
        "    kept.append(gearsFuture())\n    return kept[-1]\n"
        "GB('CommandReader').map(f).register(trigger='t', mode='async_local')",
    )
    with calling(server, wire, ("RG.TRIGGER", "t")) as (client,):
        wait_until(lambda: wire.ok("EXISTS", "in"), "the beginning")
        if when == "later":
            wait_until(lambda: wire.ok("INFO", "rg").count(b"rg_nexecutions_pending:1\r") == 1, "what is postponed")
        (execution,) = under_way(wire, "running")
        assert wire.ok("RG.ABORTEXECUTION", execution, timeout=30) == OK
        assert client.read() == ABORTED
    assert counted(wire) == (1, 0, 0, 1)
    assert executions_of(wire) == {}


def test_stops_and_postponed_records_do_not_miss_each_other(server, wire):
    """Many times: what is told to stop is over when that is answered, though it goes on elsewhere meanwhile."""
    register(
        wire,
        "kept = []\ndef f(x):\n    kept.append(gearsFuture())\n    return kept[-1]\n"
        "GB('CommandReader').map(f).register(trigger='t', mode='async_local')",
    )
    with Wire(server.port) as client:
        for _ in range(1000):
            client.send("RG.TRIGGER", "t")
            (execution,) = wait_until(lambda: list(executions_of(wire)), "the call")
            # Each of its states finds it, also between two of them.
            (shard,) = wire.ok("RG.GETEXECUTION", execution)
            assert wire.ok("RG.ABORTEXECUTION", execution) == OK
            assert {status for status, _ in executions_of(wire).values()} <= {b"aborted"}
            assert isinstance(client.read(), Error)
            assert executions_of(wire) == {}
    triggered, success, failures, aborted = counted(wire)
    assert (triggered, success, failures + aborted) == (1000, 0, 1000)


def test_waiting_calls_go_with_their_registration(wire, held):
    row = by_trigger(wire, "t")
    assert wire.ok("RG.UNREGISTER", row.id, "ABORTPENDING") == OK
    began = threads(wire)
    assert [client.read() for client in held[began:]] == [ABORTED] * (CALLS - began)
    wire.ok("SET", "go", "1")
    assert [client.read() for client in held[:began]] == [[b"%d" % n] for n in range(began)]


def test_waiting_calls_outlive_their_registration(wire, held):
    assert wire.ok("RG.UNREGISTER", by_trigger(wire, "t").id) == OK
    wire.ok("SET", "go", "1")
    assert [client.read() for client in held] == [[b"%d" % n] for n in range(CALLS)]


def test_clients_that_die_hold_up_nobody(wire, held):
    for client in held[::2]:
        client.close()
    wire.ok("SET", "go", "1")
    assert [client.read() for client in held[1::2]] == [[b"%d" % n] for n in range(1, CALLS, 2)]
    wait_until(lambda: counted(wire) == (CALLS, CALLS, 0, 0), "the calls of those that died")


LONG = "GB('CommandReader').flatmap(lambda x: list(range(int(x[1])))){}.register(trigger={!r}, mode={!r})"


@pytest.mark.parametrize(
    "steps",
    [
        ".count()",
        ".distinct().count()",
        ".limit(400_000).count()",
        ".flatmap(lambda x: [x] * (x % 3)).filter(lambda x: x > 9).map(lambda x: -x).aggregate(0, lambda a, x: a + x, "
        "lambda a, x: a + x)",
        ".groupby(lambda x: x % 5, lambda k, a, x: (a or 0) + x).map(lambda x: (x['key'], x['value'])).sort()",
        ".map(lambda x: 1 // (x % 250_000)).count()",
        ".filter(lambda x: x % 1000 == 0)",
    ],
)
def test_long_calls_give_what_they_give_in_one_go(wire, steps):
    for mode in ("sync", "async_local"):
        register(wire, LONG.format(steps, mode, mode))
    for n in (3, 500_000):
        assert wire.call("RG.TRIGGER", "async_local", n) == wire.call("RG.TRIGGER", "sync", n)
    modes = [by_trigger(wire, mode).counters for mode in ("sync", "async_local")]
    assert modes[0] == modes[1] and modes[0][0] == 2
    assert executions_of(wire) == {}


def test_a_long_call_without_functions_can_be_aborted(server, wire):
    register(wire, LONG.format(".distinct().count()", "t", "async_local"))
    with calling(server, wire, ("RG.TRIGGER", "t", 8_000_000)) as (client,):
        (execution,) = wait_until(lambda: under_way(wire, "running"), "the call")
        assert wire.ok("RG.ABORTEXECUTION", execution) == OK
        assert isinstance(client.read(), Error)
    # The list may not have been complete: then its function was stopped.
    triggered, success, failures, aborted = counted(wire)
    assert (triggered, success, failures + aborted) == (1, 0, 1)


@pytest.mark.parametrize("run", ["call", "execution"])
@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_others_have_the_interpreter_beside_long_lists(server, wire, mode, run):
    """What works in slices and takes it back after each must be asked for it within."""
    register(wire, LONG.format(".map(lambda x: x + 1).count()", "long", "async_local"))
    register(wire, f"GB('CommandReader').map(lambda x: x[1]).register(trigger='t', mode={mode!r})")
    with Wire(server.port) as client:
        if run == "call":
            client.send("RG.TRIGGER", "long", 10_000_000)
        else:
            steps = "flatmap(lambda x: [x] * 10_000_000).map(lambda x: x + 1).count()"
            client.send("RG.PYEXECUTE", f"GB('PythonReader').{steps}.run(lambda: iter([1]))")
        wait_until(
            lambda: [one for one, (status, _) in executions_of(wire).items() if status == b"running"], "the long one"
        )
        for n in range(20):
            assert wire.call("RG.TRIGGER", "t", n) == [b"%d" % n]
        assert not client.has_reply()
        client.read()


def test_pipelines_of_many_clients(server, wire):
    """All answers, and in the order of each connection."""
    register(wire, "GB('CommandReader').map(lambda x: x[1]).register(trigger='t', mode='async_local')")
    each = 300
    clients = [Wire(server.port) for _ in range(20)]
    try:
        for number, client in enumerate(clients):
            client.send_raw(b"".join(encode(("RG.TRIGGER", "t", f"{number}:{n}")) for n in range(each)))
        for number, client in enumerate(clients):
            assert [client.read() for _ in range(each)] == [[b"%d:%d" % (number, n)] for n in range(each)]
    finally:
        for client in clients:
            client.close()
    assert counted(wire) == (20 * each, 20 * each, 0, 0)


def test_a_slow_command_of_the_same_turn_does_not_lose_calls(server, wire):
    """Their tasks come at the end of a turn of the event loop."""
    register(wire, "GB('CommandReader').map(lambda x: x[1]).register(trigger='t', mode='async_local')")
    with Wire(server.port) as other:
        other.send("DEBUG", "SLEEP", "0.3")
        wire.send("RG.TRIGGER", "t", "1")
        with Wire(server.port) as third:
            third.send("EVAL", "for i = 1, 10000000 do end", 0)
            assert wire.read() == [b"1"]
            third.read()
        assert other.read() == OK
