"""RG.GETEXECUTION: its forms, its fields and its errors."""

import time

import pytest
from replies import SINGLE_ID, Gate, executions, own_plan, plans, start, traceback_lines, wait_done, wait_until
from wire import Error

UNKNOWN = "execution plan does not exist"
NO_CLUSTER = "no cluster detected - use `RG.GETEXECUTION <id> [SHARD]` instead"
ONE = "GB('ShardsIDReader').run()"
SRC = "GB('PythonReader').map(lambda x: x).run(lambda: iter(range(4)))"
STATUSES = {
    b"created",
    b"pending_receive",
    b"pending_run",
    b"running",
    b"pending_cluster",
    b"pending_termination",
    b"done",
    b"aborted",
}


def finished(wire, script):
    execution = start(wire, script)
    wait_done(wire, execution)
    return execution


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [[], ["a", "SHARD", "more"], ["a", "SHARD", "CLUSTER", "x"]])
def test_arity(wire, args):
    text = wire.error("RG.GETEXECUTION", *args)
    assert text.lower() == "err wrong number of arguments for 'rg.getexecution' command"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        "0" * 40,
        "0" * 40 + "-",
        "0" * 40 + "_1",
        "0" * 40 + "-999999",
        "0" * 40 + "-x",
        "0" * 39 + "-1",
        "f" * 40 + "-1",
        "0" * 40 + "-" + "9" * 40,
        b"0" * 40 + b"\x00-1",
        b"\xff" * 42,
        pytest.param("x" * 100_000, id="long"),
    ],
)
@pytest.mark.parametrize("command", ["RG.GETEXECUTION", "RG.GETRESULTS", "RG.GETRESULTSBLOCKING", "RG.DROPEXECUTION"])
def test_unknown_ids(wire, command, name):
    assert wire.call(command, name) == Error(UNKNOWN)


def test_characters_after_the_number_are_ignored(wire):
    execution = finished(wire, ONE)
    for tail in (b"abc", b" 7", b"-9", b"\x00\xff", b"."):
        assert own_plan(wire, execution + tail)["status"] == b"done"
        assert wire.ok("RG.GETRESULTS", execution + tail) == [[b"1"], []]


def test_third_argument_on_a_single_server(wire):
    execution = finished(wire, ONE)
    assert wire.error("RG.GETEXECUTION", execution, "CLUSTER") == NO_CLUSTER
    assert wire.error("RG.GETEXECUTION", execution, "cluster") == NO_CLUSTER
    for word in ("FOO", "", "SHARDS"):
        assert wire.error("RG.GETEXECUTION", execution, word) == "unknown subcommand"
    # The id is looked up first.
    assert wire.error("RG.GETEXECUTION", "x", "FOO") == UNKNOWN
    assert wire.error("RG.GETEXECUTION", "x", "CLUSTER") == UNKNOWN


# --- one shard ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [[], ["SHARD"], ["shard"]])
def test_forms_on_a_single_server(wire, form):
    shards = plans(wire.ok("RG.GETEXECUTION", finished(wire, SRC), *form))
    assert list(shards) == [SINGLE_ID]
    plan = shards[SINGLE_ID]
    assert plan["status"] == b"done"
    assert (plan["shards_received"], plan["shards_completed"]) == (0, 0)
    assert (plan["results"], plan["errors"]) == (4, [])
    for field in ("total_duration", "read_duration"):
        assert isinstance(plan[field], int) and plan[field] >= 0
    assert [step["duration"] for step in plan["steps"]] == [0] * len(plan["steps"])


def test_a_running_execution(server, wire):
    gate = Gate([server])
    execution = start(wire, gate.code + "GB('ShardsIDReader').map(hold).map(lambda x: bad).run()")
    gate.wait_reached()
    plan = own_plan(wire, execution)
    assert (plan["status"], plan["results"], plan["errors"]) == (b"running", -1, [])
    gate.open()
    wait_done(wire, execution)
    plan = own_plan(wire, execution)
    assert (plan["status"], plan["results"]) == (b"done", 0)
    (error,) = plan["errors"]
    assert traceback_lines(error.decode())[-1] == "NameError: name 'bad' is not defined\n"


def test_an_execution_that_waits_for_a_thread_is_created(server, wire):
    threads = wire.ok("RG.CONFIGGET", "ExecutionThreads")[0]
    gate = Gate([server])
    script = gate.code + "GB('ShardsIDReader').map(hold).run()"
    running = [start(wire, script) for _ in range(threads)]
    gate.wait_reached(times=threads)
    waiting = start(wire, script)
    assert own_plan(wire, waiting)["status"] == b"created"
    gate.open()
    for execution in [*running, waiting]:
        wait_done(wire, execution)


def test_durations(wire):
    script = """
import time
def src():
    for i in range(3):
        time.sleep(0.05)
        yield i
GB('PythonReader').map(lambda x: time.sleep(0.05)).filter(lambda x: True).run(src)
"""
    plan = own_plan(wire, finished(wire, script))
    assert plan["total_duration"] >= 300
    assert plan["read_duration"] >= 150
    assert [step["duration"] for step in plan["steps"]] == [0] * len(plan["steps"])

    wire.ok("RG.CONFIGSET", "ProfileExecutions", 1)
    plan = own_plan(wire, finished(wire, script))
    slept = next(step for step in plan["steps"] if step["name"] == b"RedisGearsPy_PyCallbackMapper")
    assert slept["duration"] >= 150
    # A step's duration holds neither the steps before it nor those after it.
    assert plan["total_duration"] >= plan["read_duration"] + slept["duration"] - len(plan["steps"])
    assert sum(step["duration"] for step in plan["steps"]) <= plan["total_duration"]


def test_arguments_of_steps(wire):
    script = """
def named(x):
    return x
GB('ShardsIDReader').map(named).filter(lambda x: True).limit(3).collect().run(convertToStr=False, collect=False)
"""
    steps = own_plan(wire, finished(wire, script))["steps"]
    args = {step["name"]: step["arg"] for step in steps}
    assert args[b"RedisGearsPy_PyCallbackMapper"].startswith(b"<function named at 0x")
    assert args[b"RedisGearsPy_PyCallbackFilter"].startswith(b"<function <lambda> at 0x")
    assert args[b"limit"] == b""
    assert args[b"collect"] == b""


# --- three shards ------------------------------------------------------------------------------------------------


def shard_ids(cluster):
    return [master.node_id for master in cluster.masters()]


def test_every_shard_answers(cluster, wires):
    ids = shard_ids(cluster)
    execution = finished(wires[0], SRC)
    for form in ([], ["CLUSTER"], ["cluster"]):
        shards = plans(wires[0].ok("RG.GETEXECUTION", execution, *form))
        assert sorted(shards) == sorted(ids)
        initiator = shards.pop(ids[0])
        assert (initiator["status"], initiator["results"], initiator["errors"]) == (b"done", 12, [])
        assert (initiator["shards_received"], initiator["shards_completed"]) == (2, 2)
        for plan in shards.values():
            assert plan["status"] == b"done"
            assert (plan["results"], plan["errors"]) == (0, [])
            assert (plan["shards_received"], plan["shards_completed"]) == (0, 0)


def test_any_shard_may_be_asked(cluster, wires):
    ids = shard_ids(cluster)
    execution = finished(wires[1], SRC)
    assert execution[:40].decode() == ids[1], "the id names the initiator"
    for i, wire in enumerate(wires):
        assert sorted(plans(wire.ok("RG.GETEXECUTION", execution))) == sorted(ids)
        assert list(plans(wire.ok("RG.GETEXECUTION", execution, "SHARD"))) == [ids[i]]
        assert wire.error("RG.GETEXECUTION", execution, "FOO") == "unknown subcommand"


def test_results_and_errors_are_those_of_each_shard(cluster, wires):
    ids = shard_ids(cluster)
    script = "GB('PythonReader').map(lambda x: x if x < 2 else bad).run(lambda: iter(range(3)), collect=False)"
    execution = finished(wires[0], script)
    shards = plans(wires[0].ok("RG.GETEXECUTION", execution))
    assert sorted(shards) == sorted(ids)
    for plan in shards.values():
        assert plan["results"] == 2
        assert len(plan["errors"]) == 1 and b"NameError: name 'bad' is not defined" in plan["errors"][0]


def test_a_local_execution_of_a_cluster_is_known_to_one_shard(cluster, wires):
    ids = shard_ids(cluster)
    execution = finished(wires[2], "GB('ShardsIDReader').run(mode='async_local')")
    assert list(plans(wires[2].ok("RG.GETEXECUTION", execution))) == [ids[2]]
    assert wires[0].error("RG.GETEXECUTION", execution) == UNKNOWN


def test_statuses_while_some_shards_are_held(cluster, wires):
    servers = cluster.masters()
    ids = shard_ids(cluster)
    gate = Gate(servers)
    execution = start(wires[0], gate.code + "GB('ShardsIDReader').map(hold).run()")
    gate.wait_reached()
    statuses = {shard: plan["status"] for shard, plan in plans(wires[0].ok("RG.GETEXECUTION", execution)).items()}
    assert statuses == {shard: b"running" for shard in ids}

    # One worker ends its part and waits for the end of the whole.
    gate.open(servers[1])
    worker_seen = set()

    def worker_waits():
        plan = own_plan(wires[1], execution)
        worker_seen.add(plan["status"])
        return plan["status"] == b"pending_termination"

    wait_until(worker_waits, "the worker that has finished its part")
    assert worker_seen <= STATUSES
    assert own_plan(wires[1], execution)["results"] == -1
    gate.open()
    for wire in wires:
        wait_done(wire, execution)
        assert own_plan(wire, execution)["status"] == b"done"


def test_the_initiator_waits_for_the_workers(cluster, wires):
    servers = cluster.masters()
    gate = Gate(servers)
    execution = start(wires[0], gate.code + "GB('ShardsIDReader').map(hold).run(collect=False)")
    gate.wait_reached()
    gate.open(servers[0])
    wait_until(lambda: own_plan(wires[0], execution)["status"] == b"pending_cluster", "the initiator's own part")
    assert own_plan(wires[0], execution)["shards_completed"] == 0
    gate.open(servers[1])
    wait_until(lambda: own_plan(wires[0], execution)["shards_completed"] == 1, "the first worker")
    assert executions(wires[0])[execution] == b"pending_cluster"
    assert own_plan(wires[0], execution)["results"] == -1
    gate.open()
    for wire in wires:
        wait_done(wire, execution)
    plan = own_plan(wires[0], execution)
    assert (plan["shards_received"], plan["shards_completed"], plan["results"]) == (2, 2, 1)


def test_waiting_for_others_is_no_running_time(cluster, wires):
    servers = cluster.masters()
    gate = Gate(servers)
    execution = start(wires[0], gate.code + "GB('ShardsIDReader').map(hold).run()")
    gate.wait_reached()
    gate.open(servers[1])
    wait_until(lambda: own_plan(wires[1], execution)["status"] == b"pending_termination", "the first worker")
    spent = own_plan(wires[1], execution)["total_duration"]
    waited_s = 1.0
    until = time.monotonic() + waited_s
    wait_until(lambda: time.monotonic() > until, "the worker having waited for a while")
    gate.open()
    for wire in wires:
        wait_done(wire, execution)
    assert own_plan(wires[1], execution)["total_duration"] - spent < waited_s * 1000 / 2
