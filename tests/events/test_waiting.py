"""Events that wait for a worker thread are executions like others: they are listed, looked at, waited for, aborted."""

import threading

import pytest
from firing import counters, listed, settled
from registrations import register
from replies import executions_of, flat_map, own_plan, pair, wait_until
from wire import Error, Simple, Wire

pytestmark = pytest.mark.matrix

OK = Simple("OK")
# More than there are worker threads.
EVENTS = 12
HOLD = """
def hold(x):
    import time
    execute('rpush', 'begun', x['key'])
    while not execute('exists', 'go'):
        time.sleep(0.005)
    execute('rpush', 'seen', x['key'])
    return x['key']
GB().map(hold).register('k*', mode='async_local', eventTypes=['set'])
"""


@pytest.fixture
def waiting(wire):
    """Ids of executions that wait, oldest first; the ones before them run, and wait for the key `go`."""
    register(wire, HOLD)
    for number in range(EVENTS):
        wire.ok("SET", f"k{number:02}", "1")
    wait_until(lambda: wire.ok("LLEN", "begun") >= 1, "the first one")
    known = set()

    def steady():
        """Spare workers may still come."""
        before = set(known)
        known.clear()
        known.update(of_status(wire, "created"))
        return before == known

    wait_until(steady, "the others")
    found = sorted(known, key=lambda one: int(one.rsplit(b"-", 1)[1]))
    assert found
    return found


def of_status(wire, status):
    found = executions_of(wire)
    assert all(registered == 1 for _, registered in found.values())
    return [one for one, (its, _) in found.items() if its == status.encode()]


def status_of(wire, execution):
    (shard,) = wire.ok("RG.GETEXECUTION", execution)
    return flat_map(flat_map(shard)["execution_plan"])["status"]


def test_all_of_them_are_listed(wire, waiting):
    assert len(of_status(wire, "running")) + len(waiting) == EVENTS
    assert status_of(wire, waiting[-1]) == b"created"
    wire.ok("SET", "go", "1")
    settled(wire)
    assert len(of_status(wire, "done")) == EVENTS
    assert status_of(wire, waiting[-1]) == b"done"
    assert pair(wire.ok("RG.GETRESULTS", waiting[-1])) == ([f"k{EVENTS - 1:02}".encode()], [])


def test_one_that_is_aborted_does_not_run(wire, waiting):
    gone = waiting[len(waiting) // 2]
    assert wire.ok("RG.ABORTEXECUTION", gone) == OK
    assert status_of(wire, gone) == b"aborted"
    assert counters(wire) == (EVENTS, 0, 0, 1)
    assert wire.ok("RG.ABORTEXECUTION", gone) == OK
    wire.ok("SET", "go", "1")
    settled(wire)
    assert counters(wire) == (EVENTS, EVENTS - 1, 0, 1)
    assert len(listed(wire)) == EVENTS - 1
    assert sorted(of_status(wire, "aborted")) == [gone]
    assert pair(wire.ok("RG.GETRESULTS", gone)) == ([], [])
    assert wire.ok("RG.DROPEXECUTION", gone) == OK
    assert gone not in executions_of(wire)


def test_a_client_waits_for_one(wire, server, waiting):
    with Wire(server.port) as other:
        other.send("RG.GETRESULTSBLOCKING", waiting[0])
        with Wire(server.port) as third:
            third.send("RG.GETRESULTSBLOCKING", waiting[-1])
            wait_until(lambda: status_of(wire, waiting[-1]) == b"created", "its being looked at")
            assert wire.ok("RG.ABORTEXECUTION", waiting[-1]) == OK
            assert pair(third.read()) == ([], [])
        wire.ok("SET", "go", "1")
        results, errors = pair(other.read())
        assert len(results) == 1 and not errors
    settled(wire)


def test_what_is_looked_at_ends_with_its_registration(wire, server, waiting):
    (registration,) = (flat_map(row)["id"] for row in wire.ok("RG.DUMPREGISTRATIONS"))
    with Wire(server.port) as other:
        other.send("RG.GETRESULTSBLOCKING", waiting[-1])
        wait_until(lambda: status_of(wire, waiting[-1]) == b"created", "its being looked at")
        wire.ok("RG.UNREGISTER", registration, "ABORTPENDING")
        assert pair(other.read()) == ([], [])
    wire.ok("SET", "go", "1")
    wait_until(lambda: not executions_of(wire), "the end of all")
    assert set(listed(wire)) == {key.decode() for key in wire.ok("LRANGE", "begun", "0", "-1")}


@pytest.fixture
def kept_executions(wire):
    """As many as the shard keeps at all."""
    wire.ok("RG.CONFIGSET", "MaxExecutionsPerRegistration", "1000")
    yield
    wire.ok("RG.CONFIGSET", "MaxExecutionsPerRegistration", "100")


@pytest.mark.usefixtures("kept_executions")
def test_looking_while_they_run(wire, server):
    """Each one is listed once at any time, and none is forgotten."""
    register(wire, "GB().map(lambda x: x['key']).register('k*', mode='async_local', eventTypes=['set'])")
    count, failed = 900, []

    def look():
        try:
            with Wire(server.port) as other:
                for _ in range(40):
                    for one in list(executions_of(other))[-3:]:
                        reply = other.call("RG.GETEXECUTION", one)
                        assert not isinstance(reply, Error), reply
        except BaseException as error:
            failed.append(error)

    looker = threading.Thread(target=look)
    looker.start()
    for number in range(count):
        wire.send("SET", f"k{number}", "1")
    assert all(wire.read() == OK for _ in range(count))
    looker.join()
    assert not failed, failed
    settled(wire)
    assert len(of_status(wire, "done")) == count


LATER = """import asyncio
async def later(x):
    execute('incr', 'begun')
    while not execute('exists', 'go'):
        await asyncio.sleep(0.005)
    return 'value'
"""
SLOW = """
def slow(x):
    import time
    execute('incr', 'begun')
    while not execute('exists', 'go'):
        time.sleep(0.005)
    return 'value'
"""


@pytest.mark.parametrize("mode", ["sync", "async_local", "async"])
def test_a_client_waits_for_one_that_awaits(wire, other_wire, mode):
    register(wire, f"{LATER}GB().map(later).register('k*', mode='{mode}', eventTypes=['set'])")
    wire.ok("SET", "k1", "1")
    wait_until(lambda: wire.ok("GET", "begun") == b"1", "it waiting")
    (execution,) = wait_until(lambda: list(executions_of(wire)), "the execution")
    other_wire.send("RG.GETRESULTSBLOCKING", execution)
    assert wire.ok("PING") == Simple("PONG")
    assert not other_wire.has_reply(0.1)
    wire.ok("SET", "go", "1")
    assert pair(other_wire.read()) == ([b"value"], [])
    assert pair(wire.ok("RG.GETRESULTS", execution)) == ([b"value"], [])
    settled(wire)


@pytest.mark.parametrize("mode", ["async_local", "async"])
@pytest.mark.parametrize("step", ["later", "slow"])
def test_clients_that_wait_for_a_trigger_do_not_take_each_others_results(wire, other_wire, server, mode, step):
    register(wire, f"{LATER}{SLOW}GB('CommandReader').map({step}).register(trigger='t', mode='{mode}')")
    other_wire.send("RG.TRIGGER", "t")
    wait_until(lambda: wire.ok("GET", "begun") == b"1", "it waiting")
    (execution,) = executions_of(wire)
    with Wire(server.port) as third:
        third.send("RG.GETRESULTSBLOCKING", execution)
        assert not third.has_reply(0.1)
        wire.ok("SET", "go", "1")
        assert pair(third.read()) == ([b"value"], [])
    assert other_wire.read() == [b"value"]


def test_an_endless_atomic_block_is_aborted_from_another_shard(cluster, wires):
    """Nobody waits for the lock that it holds, although some executions are events that wait."""
    register(wires[0], "GB().foreach(lambda x: None).register('k*', mode='async_local')")
    own = wires[1].ok("CLUSTER", "MYID").decode()
    program = f"""
def f(x):
    if x == '{own}':
        with atomic():
            while True:
                pass
    return x
GB('ShardsIDReader').map(f).run()
"""
    execution = wires[0].ok("RG.PYEXECUTE", program, "UNBLOCKING")

    def is_held():
        with Wire(cluster.servers[1].port) as other:
            other.send("PING")
            try:
                other.read(timeout=0.5)
            except TimeoutError:
                return True

    wait_until(is_held, "the server being held")
    assert wires[0].ok("RG.ABORTEXECUTION", execution, timeout=30) == OK
    assert wires[1].ok("PING", timeout=30) == Simple("PONG")
    assert all(executions_of(wire)[execution][0] in (b"done", b"aborted") for wire in wires)
    assert wires[0].ok("RG.DROPEXECUTION", execution) == OK


def next_ended(wire, known):
    """The execution that is not known, when it has ended."""
    wait_until(lambda: set(of_status(wire, "done")) - known, "the end of the next one")
    (execution,) = executions_of(wire).keys() - known
    return execution


@pytest.mark.parametrize("mode", ["sync", "async_local", "async"])
@pytest.mark.parametrize("command", ["SET k 1", "XADD k * f v"], ids=["key", "stream"])
@pytest.mark.parametrize("step", ["map(later)", "filter(lambda x: True)"], ids=["postponed", "at-once"])
def test_durations_of_steps(wire, mode, command, step):
    """A step's time is that of one execution, and there if it is asked for."""
    reader = "StreamReader" if command.startswith("XADD") else "KeysReader"
    program = f"""
import asyncio, time
def nap(x):
    time.sleep(0.03)
    return x
async def later(x):
    await asyncio.sleep(0)
    return x
GB({reader!r}).map(nap).{step}.register('k', mode={mode!r})
"""
    register(wire, program)
    known = set()
    for profile in (0, 1, 1, 0):
        wire.ok("RG.CONFIGSET", "ProfileExecutions", profile)
        wire.ok(*command.split())
        execution = next_ended(wire, known)
        known.add(execution)
        plan = own_plan(wire, execution)
        steps = [step["duration"] for step in plan["steps"]]
        assert max(steps) >= 30 if profile else max(steps) == 0, steps
        # That of a postponed one begins anew behind the wait.
        assert sum(steps) <= plan["total_duration"] or "later" in step
