"""Counters and durations of registrations: exact, under concurrency too, and cleared on every shard."""

import itertools
import threading

import pytest
from firing import data
from registrations import MODES, by_trigger, dump, only, register, simple_trigger, trigger
from replies import Gate, executions_of, flat_map, own_plan, wait_until
from wire import Error, Simple, Wire

MODE = pytest.mark.parametrize("mode", MODES)
B = "GB('CommandReader')"
OK = Simple("OK")


@MODE
def test_counters(wire, mode):
    register(wire, f"{B}.map(lambda x: int(x[1])).register(trigger='t', mode={mode!r})")
    for i, value in enumerate(["1", "z", "2", "y", "3"]):
        trigger(wire, "t", value)
        found = only(wire)
        good = sum(word.isdecimal() for word in "1z2y3"[: i + 1])
        assert found.counters == (i + 1, good, i + 1 - good, 0)
        if value.isdecimal():
            assert found.data["lastError"] is None, "a success clears the last error"
        else:
            assert f"invalid literal for int() with base 10: '{value}'" in found.data["lastError"].decode()


@MODE
def test_durations(wire, mode):
    register(wire, f"import time\n{B}.foreach(lambda x: time.sleep(float(x[1]))).register(trigger='t', mode={mode!r})")
    trigger(wire, "t", "0.05")
    first = only(wire).data
    assert first["lastRunDurationMS"] >= 50
    assert first["totalRunDurationMS"] >= first["lastRunDurationMS"]
    trigger(wire, "t", "0.02")
    second = only(wire).data
    assert second["lastRunDurationMS"] >= 20
    assert second["totalRunDurationMS"] >= first["totalRunDurationMS"] + 20
    assert float(second["avgRunDurationMS"]) == pytest.approx(second["totalRunDurationMS"] / 2, abs=1)
    assert isinstance(second["avgRunDurationMS"], bytes)


@MODE
@pytest.mark.parametrize(
    ("reader", "arguments", "command"),
    [
        (B, "trigger='t'", ["RG.TRIGGER", "t"]),
        (B, "hook='get'", ["GET", "k"]),
        ("GB()", "'k*'", ["SET", "k", "v"]),
        ("GB('StreamReader')", "'s*'", ["XADD", "s", "*", "f", "v"]),
        ("GB('TimerReader')", "interval=0.05", ["PING"]),
    ],
    ids=["trigger", "hook", "keys", "stream", "timer"],
)
def test_durations_of_what_goes_on_later(wire, mode, reader, arguments, command):
    register(
        wire,
        f"""import asyncio, time
def first(x):
    time.sleep(0.03)
    return x
async def later(x):
    await asyncio.sleep(0.01)
    return x
def last(x):
    time.sleep(0.04)
    return x
{reader}.map(first).map(later).map(last).register({arguments}, mode={mode!r})""",
    )
    wire.call(*command)
    wait_until(lambda: data(wire)["totalRunDurationMS"] >= 40, "a run that is over")
    counted = data(wire)
    assert counted["lastRunDurationMS"] >= 70, "what ran before the coroutine counts too"
    assert counted["totalRunDurationMS"] >= counted["lastRunDurationMS"]
    for execution, (status, _) in executions_of(wire).items():
        assert status != b"done" or own_plan(wire, execution)["total_duration"] >= 70


def test_the_average_is_a_double_in_resp3(server, wire):
    register(wire, simple_trigger("t"))
    with Wire(server.port) as third:
        third.ok("HELLO", "3")
        for _ in range(2):
            (row,) = third.ok("RG.DUMPREGISTRATIONS")
            data = flat_map(row[7])
            assert isinstance(data["avgRunDurationMS"], float)
            trigger(wire, "t")


def test_resp3_shows_the_same(server, wire):
    register(wire, simple_trigger("t") + "\n" + f"{B}.register(trigger='u')", "ID", "s", "DESCRIPTION", "d")
    trigger(wire, "t")

    with Wire(server.port) as third:
        third.ok("HELLO", "3")
        for command in (
            ["RG.TRIGGER", "t"],
            ["RG.TRIGGER", "u", "a"],
            ["RG.TRIGGER", "none"],
            ["RG.PYDUMPSESSIONS"],
            ["RG.PYDUMPSESSIONS", "SESSIONS", "s", "none"],
            ["RG.PYEXECUTE", "x = 1", "ID", "s"],
            ["RG.UNREGISTER", "none"],
            ["RG.PAUSEREGISTRATIONS", "none"],
        ):
            assert third.call(*command) == wire.call(*command), command
        old, new = wire.ok("RG.DUMPREGISTRATIONS"), third.ok("RG.DUMPREGISTRATIONS")
        for before, after in zip(old, new, strict=True):
            before[7][15] = float(before[7][15])
            assert before == after
        assert third.call("RG.CLEARREGISTRATIONSSTATS") == OK
        for one in dump(wire):
            assert third.call("RG.UNREGISTER", one) == OK


CLIENTS, EACH = 8, 60


def hammer(servers, name, values):
    """Many clients of all servers at once; gives the number of replies and of errors."""
    found, failures = [], []

    def work(server):
        try:
            with Wire(server.port) as wire:
                for value in itertools.islice(itertools.cycle(values), EACH):
                    found.append(isinstance(trigger(wire, name, value), Error))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(server,)) for server in servers for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    return len(found), sum(found)


@MODE
def test_exact_under_concurrency(server, wire, mode):
    register(wire, f"{B}.map(lambda x: int(x[1])).register(trigger='t', mode={mode!r})")
    total, errors = hammer([server], "t", ["1", "2", "z", "3"])
    assert (total, errors) == (CLIENTS * EACH, CLIENTS * EACH // 4)
    assert only(wire).counters == (total, total - errors, errors, 0)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_exact_under_concurrency_on_three_shards(cluster, wires, mode):
    register(wires[0], f"{B}.map(lambda x: int(x[1])).register(trigger='t', mode={mode!r})")
    total, errors = hammer(cluster.servers, "t", ["1", "z", "3"])
    assert (total, errors) == (3 * CLIENTS * EACH, CLIENTS * EACH)
    for wire in wires:
        each = CLIENTS * EACH
        assert only(wire).counters == (each, each - each // 3, each // 3, 0)


@pytest.mark.parametrize("mode", ["async", "async_local"])
def test_aborted_before_the_start(server, wire, mode):
    threads = wire.ok("RG.CONFIGGET", "ExecutionThreads")[0]
    gate = Gate([server])
    register(wire, f"{gate.code}\n{B}.map(lambda x: hold(x)[1]).register(trigger='t', mode={mode!r})")
    clients = [Wire(server.port) for _ in range(threads + 2)]
    try:
        for i, client in enumerate(clients):
            client.send("RG.TRIGGER", "t", i)
            wait_until(lambda i=i: only(wire).counters[0] == i + 1, f"trigger {i} arriving")
        gate.wait_reached(times=threads)
        for execution, (status, _) in list_created(wire):
            assert status == b"created"
            assert wire.call("RG.ABORTEXECUTION", execution) == OK
        for client in clients[threads:]:
            assert isinstance(client.read(), Error)
        gate.open()
        for i, client in enumerate(clients[:threads]):
            assert client.read() == [b"%d" % i]
    finally:
        for client in clients:
            client.close()
    triggered, success, failures, aborted = only(wire).counters
    assert (triggered, success, failures + aborted) == (threads + 2, threads, 2)
    assert aborted == 2, "what never ran is aborted, not failed"


def list_created(wire):
    found = [item for item in executions_of(wire).items() if item[1][0] == b"created"]
    assert len(found) == 2
    return found


# --- RG.CLEARREGISTRATIONSSTATS ----------------------------------------------------------------------------------


def test_arity_of_clear(wire):
    text = wire.error("RG.CLEARREGISTRATIONSSTATS", "x")
    assert text.lower() == "err wrong number of arguments for 'rg.clearregistrationsstats' command"


def test_clear_without_registrations(wire):
    assert wire.call("RG.CLEARREGISTRATIONSSTATS") == OK


def test_clear(wire):
    register(
        wire, f"import time\n{B}.foreach(lambda x: time.sleep(0.01)).map(lambda x: int(x[1])).register(trigger='t')"
    )
    for value in ("1", "2", "z"):
        trigger(wire, "t", value)
    before = only(wire)
    assert before.counters == (3, 2, 1, 0) and before.data["lastError"] and before.data["totalRunDurationMS"] >= 30
    assert wire.call("RG.CLEARREGISTRATIONSSTATS") == OK
    after = only(wire)
    assert after.counters == (0, 0, 0, 0) and after.data["lastError"] is None
    assert after.data["lastRunDurationMS"] == after.data["totalRunDurationMS"] == 0
    assert float(after.data["avgRunDurationMS"]) == 0
    assert after.id == before.id and after.pd == before.pd
    trigger(wire, "t", "1")
    assert only(wire).counters == (1, 1, 0, 0)


def test_clear_keeps_what_is_under_way(server, wire):
    gate = Gate([server])
    register(wire, f"{gate.code}\n{B}.map(lambda x: hold(x)[1]).register(trigger='t', mode='async_local')")
    with Wire(server.port) as client:
        client.send("RG.TRIGGER", "t", "a")
        gate.wait_reached()
        assert wire.call("RG.CLEARREGISTRATIONSSTATS") == OK
        assert only(wire).counters == (1, 0, 0, 0)
        gate.open()
        assert client.read() == [b"a"]
    assert only(wire).counters == (1, 1, 0, 0)


def test_clear_on_every_shard(wires):
    register(wires[0], f"{B}.map(lambda x: int(x[1])).register(trigger='t')\n{simple_trigger('u')}")
    for wire in wires:
        for value in ("1", "z"):
            trigger(wire, "t", value)
        trigger(wire, "u")
        assert by_trigger(wire, "t").counters == (2, 1, 1, 0)
    assert wires[1].call("RG.CLEARREGISTRATIONSSTATS") == OK
    for wire in wires:
        for one in dump(wire).values():
            assert one.counters == (0, 0, 0, 0) and one.data["lastError"] is None
