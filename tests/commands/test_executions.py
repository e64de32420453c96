"""The list of executions: RG.DUMPEXECUTIONS, RG.DROPEXECUTION, ids and MaxExecutions."""

import pytest
from replies import (
    EXECUTION_FIELDS,
    SINGLE_ID,
    Gate,
    executions,
    flat_map,
    own_plan,
    results_of,
    split_id,
    start,
    wait_done,
    wait_until,
)
from wire import Error, Simple

UNKNOWN = "execution plan does not exist"
UNFINISHED = "can not drop a not yet finished execution, abort it first."
ONE = "GB('ShardsIDReader').run()"


def done(wire, script=ONE):
    execution = start(wire, script)
    wait_done(wire, execution)
    return execution


# --- RG.DUMPEXECUTIONS -------------------------------------------------------------------------------------------


def test_no_executions(wire):
    assert wire.call("RG.DUMPEXECUTIONS") == []


def test_fields_and_ignored_arguments(wire):
    first, second = done(wire), done(wire)
    for args in ([], ["any", "thing"]):
        rows = [flat_map(row, EXECUTION_FIELDS) for row in wire.ok("RG.DUMPEXECUTIONS", *args)]
        assert sorted(row["executionId"] for row in rows) == sorted([first, second])
        assert {row["status"] for row in rows} == {b"done"}
        assert {row["registered"] for row in rows} == {0}


def test_a_running_one_is_listed_with_its_status(server, wire, other_wire):
    gate = Gate([server])
    wire.send("RG.PYEXECUTE", gate.code + "GB('ShardsIDReader').map(hold).run()")
    gate.wait_reached()
    (status,) = executions(other_wire).values()
    assert status == b"running"
    gate.open()
    assert results_of(wire.read()) == [b"1"]
    wait_until(lambda: executions(other_wire) == {}, "the end of the bookkeeping")


def test_every_shard_lists_a_distributed_execution(cluster, wires):
    execution = done(wires[0])
    for wire in wires:
        wait_done(wire, execution)
        assert executions(wire) == {execution: b"done"}
    local = done(wires[1], "GB('ShardsIDReader').run(mode='async_local')")
    assert executions(wires[0]) == {execution: b"done"}
    assert executions(wires[1]) == {execution: b"done", local: b"done"}


def test_a_blocking_run_leaves_nothing_on_any_shard(wires):
    for wire in wires:
        assert len(results_of(wire.ok("RG.PYEXECUTE", ONE))) == 3
    for wire in wires:
        wait_until(lambda wire=wire: executions(wire) == {}, "the workers forgetting it")


# --- RG.DROPEXECUTION --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [[], ["a", "b"]])
def test_arity_of_dropexecution(wire, args):
    text = wire.error("RG.DROPEXECUTION", *args)
    assert text.lower() == "err wrong number of arguments for 'rg.dropexecution' command"


def test_drop(wire):
    first, second = done(wire), done(wire)
    assert wire.call("RG.DROPEXECUTION", first) == Simple("OK")
    assert executions(wire) == {second: b"done"}
    for command in ("RG.DROPEXECUTION", "RG.GETRESULTS", "RG.GETRESULTSBLOCKING", "RG.GETEXECUTION"):
        assert wire.call(command, first) == Error(UNKNOWN)
    assert wire.call("RG.ABORTEXECUTION", first) == Error("execution does not exist")


def test_an_unfinished_one_is_not_dropped(server, wire):
    gate = Gate([server])
    execution = start(wire, gate.code + "GB('ShardsIDReader').map(hold).run()")
    gate.wait_reached()
    assert wire.call("RG.DROPEXECUTION", execution) == Error(UNFINISHED)
    gate.open()
    wait_done(wire, execution)
    assert results_of(wire.ok("RG.GETRESULTS", execution)) == [b"1"]
    assert wire.call("RG.DROPEXECUTION", execution) == Simple("OK")


@pytest.mark.parametrize("asked", [0, 1])
def test_drop_reaches_every_shard(wires, asked):
    execution = done(wires[0])
    for wire in wires:
        wait_done(wire, execution)
    assert wires[asked].call("RG.DROPEXECUTION", execution) == Simple("OK")
    for wire in wires:
        wait_until(lambda wire=wire: execution not in executions(wire), "the drop arriving")


# --- ids ---------------------------------------------------------------------------------------------------------


def test_ids_of_a_single_server_count_up(fresh_wire):
    wire = fresh_wire()
    numbers = []
    for _ in range(5):
        node, number = split_id(done(wire))
        assert node == SINGLE_ID
        numbers.append(number)
    assert numbers == sorted(set(numbers))
    assert numbers[0] <= 1


def test_ids_of_a_cluster_name_the_initiator(cluster, wires):
    seen = []
    for _ in range(3):
        for server, wire in zip(cluster.masters(), wires, strict=True):
            execution = done(wire)
            assert split_id(execution)[0] == server.node_id
            seen.append(execution)
    assert len(set(seen)) == len(seen)


def test_a_counter_follows_those_of_other_shards(wires):
    """On receiving another shard's execution, the own counter passes its number."""
    last = -1
    for _ in range(3):
        for wire in wires:
            execution = done(wire)
            for other in wires:
                wait_done(other, execution)
            number = split_id(execution)[1]
            assert number > last
            last = number


# --- MaxExecutions -----------------------------------------------------------------------------------------------


def test_the_oldest_finished_ones_leave(wire):
    wire.ok("RG.CONFIGSET", "MaxExecutions", 3)
    ids = [done(wire) for _ in range(8)]
    assert sorted(executions(wire)) == sorted(ids[-3:])


def test_an_unfinished_oldest_one_is_freed_when_it_finishes(server, wire):
    wire.ok("RG.CONFIGSET", "MaxExecutions", 2)
    gate = Gate([server])
    held = start(wire, gate.code + "GB('ShardsIDReader').map(hold).run()")
    gate.wait_reached()
    ids = [done(wire) for _ in range(4)]
    listed = executions(wire)
    assert listed.pop(held) == b"running"
    assert sorted(listed) == sorted(ids[-2:])
    gate.open()
    wait_until(lambda: held not in executions(wire), "the one that left the list ending")
    assert sorted(executions(wire)) == sorted(ids[-2:])


@pytest.mark.parametrize("bound", [0, -1])
def test_no_bound(wire, bound):
    wire.ok("RG.CONFIGSET", "MaxExecutions", bound)
    ids = [done(wire) for _ in range(20)]
    assert sorted(executions(wire)) == sorted(ids)


def test_a_lower_bound_counts_from_the_next_execution(wire):
    ids = [done(wire) for _ in range(5)]
    wire.ok("RG.CONFIGSET", "MaxExecutions", 3)
    ids.append(done(wire))
    # The oldest one makes room for the new one; how many more leave at once is open.
    listed = executions(wire)
    assert ids[0] not in listed and ids[-1] in listed
    for _ in range(5):
        ids.append(done(wire))
    assert set(executions(wire)) >= set(ids[-3:])


def test_the_bound_holds_for_executions_of_others(wires):
    for wire in wires:
        wire.ok("RG.CONFIGSET", "MaxExecutions", 2)
    ids = []
    for _ in range(5):
        ids.append(done(wires[0]))
        for wire in wires:
            wait_done(wire, ids[-1])
    for wire in wires:
        assert sorted(executions(wire)) == sorted(ids[-2:])


def test_bound_given_at_load(fresh_wire):
    wire = fresh_wire("MaxExecutions", 1)
    first, second = done(wire), done(wire)
    assert first not in executions(wire)
    assert own_plan(wire, second)["status"] == b"done"


# --- many at once ------------------------------------------------------------------------------------------------


def test_many_queued_executions_all_end(server, wire):
    gate = Gate([server])
    threads = wire.ok("RG.CONFIGGET", "ExecutionThreads")[0]
    ids = [start(wire, gate.code + "GB('ShardsIDReader').map(hold).run()") for _ in range(30)]
    gate.wait_reached(times=threads)
    statuses = list(executions(wire).values())
    assert statuses.count(b"running") == threads
    assert statuses.count(b"created") == 30 - threads
    gate.open()
    for execution in ids:
        wait_done(wire, execution)
        assert results_of(wire.ok("RG.GETRESULTS", execution)) == [b"1"]
