"""RG.ABORTEXECUTION: what has not begun, what runs, what waits, what has ended."""

import time

import pytest
from replies import Gate, executions, own_plan, own_tag, pair, results_of, start, wait_done, wait_until
from wire import Error, Simple, Wire

UNKNOWN = "execution does not exist"
BUSY = """
def spin(x):
    execute('incr', 'spinning{%s}' % hashtag())
    while True:
        x = 0
GB('ShardsIDReader').map(spin).run()
"""
SLEEPY = """
import time
def doze(x):
    execute('incr', 'spinning{%s}' % hashtag())
    while True:
        time.sleep(0.01)
GB('ShardsIDReader').map(doze).run()
"""
# Swallows whatever can be swallowed, a few times.
STUBBORN = """
import time
def cling(x):
    execute('incr', 'spinning{%s}' % hashtag())
    for _ in range(3):
        try:
            while True:
                time.sleep(0.001)
        except Exception:
            pass
    return 'let go'
GB('ShardsIDReader').map(cling).run()
"""
MANY = """
def count(x):
    execute('incr', 'spinning{%s}' % hashtag())
    return x
def src():
    n = 0
    while True:
        n += 1
        yield n
GB('PythonReader').map(count).filter(lambda x: False).run(src)
"""


def wait_spinning(wire, execution):
    """Returns when a callback of the execution runs on the shard."""

    def spinning():
        return wire.ok("KEYS", "spinning*") and executions(wire).get(execution) == b"running"

    wait_until(spinning, f"{execution} running")


@pytest.mark.parametrize("args", [[], ["a", "b"]])
def test_arity(wire, args):
    text = wire.error("RG.ABORTEXECUTION", *args)
    assert text.lower() == "err wrong number of arguments for 'rg.abortexecution' command"


@pytest.mark.parametrize("name", ["", "x", "0" * 40 + "-999999", b"\x00" * 50])
def test_unknown_id(wire, name):
    assert wire.call("RG.ABORTEXECUTION", name) == Error(UNKNOWN)


def test_unknown_id_in_a_cluster(wires):
    for wire in wires:
        assert wire.call("RG.ABORTEXECUTION", "0" * 40 + "-999999") == Error(UNKNOWN)
        wait_until(lambda wire=wire: executions(wire) == {}, "no internal execution being left")


def test_a_finished_one_is_left_alone(wire):
    execution = start(wire, "GB('ShardsIDReader').run()")
    wait_done(wire, execution)
    assert wire.call("RG.ABORTEXECUTION", execution) == Simple("OK")
    assert executions(wire)[execution] == b"done"
    assert results_of(wire.ok("RG.GETRESULTS", execution)) == [b"1"]


@pytest.mark.parametrize("script", [BUSY, SLEEPY, MANY], ids=["busy", "sleepy", "many"])
def test_a_running_one(wire, script):
    execution = start(wire, script)
    wait_spinning(wire, execution)
    assert wire.call("RG.ABORTEXECUTION", execution) == Simple("OK")
    # The command answers when the execution has ended.
    assert executions(wire)[execution] in (b"done", b"aborted")
    results, errors = pair(wire.ok("RG.GETRESULTS", execution))
    assert results == []
    if executions(wire)[execution] == b"done":
        (error,) = errors
        assert "gears.forcestopped" in error
    assert wire.call("RG.DROPEXECUTION", execution) == Simple("OK")


def test_the_traceback_of_a_busy_loop_names_the_forced_stop(wire):
    execution = start(wire, BUSY)
    wait_spinning(wire, execution)
    assert wire.call("RG.ABORTEXECUTION", execution) == Simple("OK")
    plan = own_plan(wire, execution)
    assert plan["status"] == b"done"
    (error,) = plan["errors"]
    assert b"gears.forcestopped" in error and b"in spin" in error


def test_a_step_that_swallows_exceptions_is_stopped_again(wire):
    execution = start(wire, STUBBORN)
    wait_spinning(wire, execution)
    assert wire.call("RG.ABORTEXECUTION", execution) == Simple("OK")
    assert executions(wire)[execution] in (b"done", b"aborted")


def test_a_queued_one_never_starts(server, wire):
    threads = wire.ok("RG.CONFIGGET", "ExecutionThreads")[0]
    gate = Gate([server])
    running = [start(wire, gate.code + "GB('ShardsIDReader').map(hold).run()") for _ in range(threads)]
    gate.wait_reached(times=threads)
    queued = start(wire, "GB('ShardsIDReader').foreach(lambda x: execute('set', 'ran', '1')).run()")
    assert executions(wire)[queued] == b"created"
    assert wire.call("RG.ABORTEXECUTION", queued) == Simple("OK")
    plan = own_plan(wire, queued)
    assert (plan["status"], plan["results"]) == (b"aborted", 0)
    assert pair(wire.ok("RG.GETRESULTS", queued))[0] == []
    gate.open()
    for execution in running:
        wait_done(wire, execution)
    assert wire.ok("EXISTS", "ran") == 0
    assert executions(wire)[queued] == b"aborted"
    assert wire.call("RG.DROPEXECUTION", queued) == Simple("OK")


def test_a_blocked_client_gets_what_was_gathered(server, wire, other_wire):
    script = """
def src():
    for i in range(3):
        yield i
    execute('incr', 'spinning')
    while True:
        pass
GB('PythonReader').run(src)
"""
    wire.send("RG.PYEXECUTE", script)
    wait_until(lambda: other_wire.ok("EXISTS", "spinning"), "the reader reaching its loop")
    (execution,) = executions(other_wire)
    assert other_wire.call("RG.ABORTEXECUTION", execution) == Simple("OK")
    results, errors = pair(wire.read())
    assert set(results) <= {b"0", b"1", b"2"}
    assert errors, "a part must not look like the whole"


@pytest.mark.matrix
def test_a_blocked_client_whose_execution_waits(wire, other_wire):
    script = """
held = []
def step(x):
    if x == 3:
        held.append(gearsFuture())
        return held[0]
    return x
def src():
    yield from range(5)
GB('PythonReader').map(step).foreach(lambda x: execute('incr', 'passed')).run(src)
"""
    wire.send("RG.PYEXECUTE", script)
    wait_until(lambda: other_wire.ok("GET", "passed") == b"3", "the record that waits")
    (execution,) = executions(other_wire)
    assert other_wire.call("RG.ABORTEXECUTION", execution) == Simple("OK")
    results, errors = pair(wire.read())
    assert set(results) <= {b"0", b"1", b"2"}
    assert errors == ["the execution was aborted"]
    assert executions(other_wire) == {}


def test_aborting_twice_at_once(server, wire, other_wire):
    execution = start(wire, STUBBORN)
    wait_spinning(wire, execution)
    with Wire(server.port) as third:
        for client in (other_wire, third):
            client.send("RG.ABORTEXECUTION", execution)
        assert other_wire.read() == Simple("OK")
        assert third.read() == Simple("OK")
    assert executions(wire)[execution] in (b"done", b"aborted")


def test_the_client_that_aborts_leaves(server, wire):
    execution = start(wire, BUSY)
    wait_spinning(wire, execution)
    with Wire(server.port) as leaving:
        leaving.send("RG.ABORTEXECUTION", execution)
        # The server reads commands of one connection in order, so it has taken this one.
        wait_until(lambda: executions(wire)[execution] != b"running" or leaving.has_reply(), "the abort")
    wait_done(wire, execution)
    assert wire.call("PING") == Simple("PONG")


STARTING = """
import threading
def start(x):
    for _ in range(20):
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
    return x
GB('ShardsIDReader').map(start).run()
"""


def test_functions_that_start_threads(wire):
    """The one to be stopped is the one that starts them."""
    for number in range(150):
        execution = start(wire, STARTING)
        time.sleep(number % 10 * 0.0004)
        assert wire.call("RG.ABORTEXECUTION", execution, timeout=30) == Simple("OK")
        wire.ok("RG.DROPEXECUTION", execution)


def test_others_go_on_after_an_abort(wire):
    for _ in range(10):
        execution = start(wire, BUSY)
        wait_spinning(wire, execution)
        assert wire.call("RG.ABORTEXECUTION", execution) == Simple("OK")
        assert results_of(wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').run()")) == [b"1"]
        wire.ok("FLUSHALL")


# --- three shards ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [0, 1])
@pytest.mark.parametrize("script", [BUSY, SLEEPY], ids=["busy", "sleepy"])
def test_a_distributed_one_ends_on_every_shard(wires, script, asked):
    execution = start(wires[0], script)
    for wire in wires:
        wait_spinning(wire, execution)
    assert wires[asked].call("RG.ABORTEXECUTION", execution) == Simple("OK")
    for wire in wires:
        wait_done(wire, execution)
    results, errors = pair(wires[0].ok("RG.GETRESULTS", execution))
    assert results == []
    assert errors, "an aborted execution must not look complete"
    assert len(results_of(wires[0].ok("RG.PYEXECUTE", "GB('ShardsIDReader').run()"))) == 3


class Endless:
    """A function that ends at once on two shards and never on the third one."""

    def __init__(self, server, wire):
        self.wire, self.key = wire, f"turns{{{own_tag(server)}}}"
        wire.ok("DEL", self.key)
        self.script = f"""
def turn(x):
    while x == '{wire.ok("CLUSTER", "MYID").decode()}':
        execute('incr', '{self.key}')
    return x
GB('ShardsIDReader').map(turn).run()
"""

    def wait_begun(self):
        wait_until(lambda: self.wire.ok("EXISTS", self.key) == 1, "the function running")

    def has_ended(self):
        turns = self.wire.ok("GET", self.key)
        time.sleep(0.2)
        return self.wire.ok("GET", self.key) == turns


@pytest.fixture
def endless(cluster, wires):
    return Endless(cluster.servers[2], wires[2])


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_functions_end_where_they_run(wires, endless, asked):
    execution = start(wires[0], endless.script)
    endless.wait_begun()
    assert wires[asked].call("RG.ABORTEXECUTION", execution) == Simple("OK")
    assert endless.has_ended(), "it runs although the execution is aborted"
    assert all(executions(wire)[execution] in (b"done", b"aborted") for wire in wires)


@pytest.fixture
def impatient(wires):
    (before,) = wires[0].ok("RG.CONFIGGET", "ExecutionMaxIdleTime")
    for wire in wires:
        wire.ok("RG.CONFIGSET", "ExecutionMaxIdleTime", "1000")
    yield
    for wire in wires:
        wire.ok("RG.CONFIGSET", "ExecutionMaxIdleTime", str(before))


@pytest.mark.usefixtures("impatient")
def test_functions_end_when_the_execution_has_failed_elsewhere(wires, endless):
    results, (error,) = pair(wires[0].ok("RG.PYEXECUTE", endless.script))
    assert len(results) == 2 and "Execution max idle reached" in error
    wait_until(endless.has_ended, "the end of the function")


def test_shards_that_wait_for_a_slow_one(cluster, wires):
    """Two shards have sent everything and wait; the abort ends them together with the one at work."""
    servers = cluster.masters()
    gate = Gate(servers)
    execution = start(wires[0], gate.code + "GB('ShardsIDReader').map(hold).repartition(lambda x: x).run()")
    gate.wait_reached()
    gate.open(servers[0], servers[1])
    assert wires[1].call("RG.ABORTEXECUTION", execution) == Simple("OK")
    for wire in wires:
        wait_done(wire, execution)
    results, errors = pair(wires[0].ok("RG.GETRESULTS", execution))
    assert len(results) < 3
    assert errors or own_plan(wires[0], execution)["status"] == b"aborted"


def test_a_local_execution_in_a_cluster(wires):
    """The other shards do not know it, which is no error."""
    execution = start(wires[0], BUSY.replace("run()", "run(mode='async_local')"))
    wait_spinning(wires[0], execution)
    assert wires[0].call("RG.ABORTEXECUTION", execution) == Simple("OK")
    assert executions(wires[0])[execution] in (b"done", b"aborted")
    results, errors = pair(wires[0].ok("RG.GETRESULTS", execution))
    assert results == []
    assert errors, "an aborted execution must not look complete"


def test_a_finished_distributed_one(wires):
    execution = start(wires[0], "GB('ShardsIDReader').run()")
    for wire in wires:
        wait_done(wire, execution)
    for wire in wires:
        assert wire.call("RG.ABORTEXECUTION", execution) == Simple("OK")
    assert len(results_of(wires[0].ok("RG.GETRESULTS", execution))) == 3
