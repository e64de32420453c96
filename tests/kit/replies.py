"""What replies of RG commands look like, and scripts that a test can hold and release."""

import ast
import time

import localcluster
from wire import Error, Wire

SINGLE_ID = "0" * 40
# Bounds for what must happen at some time. The machine may be busy, so they only guard against hanging.
SOON_S = 30.0
FINISHED = (b"done", b"aborted")

# A step `hold` that waits for the key `gate:<name>` on its shard, and fails after a minute rather than wait for ever.
HOLD = """
import time
def hold(x):
    gate = 'gate:%(name)s{%%s}' %% hashtag()
    execute('incr', 'at-' + gate)
    limit = time.monotonic() + 60
    while execute('exists', gate) == 0:
        if time.monotonic() > limit:
            raise Exception('nobody opened the gate')
        time.sleep(0.005)
    return x
"""


def wait_until(probe, what, timeout=SOON_S):
    return localcluster.wait_until(probe, timeout, what)


def flat_map(reply, names=None):
    """The dict of a flat map; its names must be exactly these, in this order."""
    assert isinstance(reply, list), reply
    assert len(reply) % 2 == 0, reply
    found = [name.decode() for name in reply[::2]]
    if names is not None:
        assert found == list(names), f"fields {found}"
    return dict(zip(found, reply[1::2], strict=True))


def pair(reply):
    """Results and errors of a results-and-errors pair; the errors as text."""
    assert isinstance(reply, list) and len(reply) == 2, f"not a pair: {reply!r}"
    results, errors = reply
    assert isinstance(results, list) and isinstance(errors, list), f"not a pair: {reply!r}"
    assert all(isinstance(error, bytes) for error in errors), f"errors must be bulk strings: {errors!r}"
    return results, [error.decode() for error in errors]


def results_of(reply):
    results, errors = pair(reply)
    assert errors == [], errors
    return results


def traceback_lines(text):
    """The list of lines in which a Python error with a traceback is written."""
    lines = ast.literal_eval(text)
    assert isinstance(lines, list) and all(isinstance(line, str) for line in lines), text
    assert lines[0] == "Traceback (most recent call last):\n"
    return lines


def split_id(execution):
    """Node id and number of an execution id."""
    text = execution.decode() if isinstance(execution, bytes) else execution
    node, dash, number = text[:40], text[40:41], text[41:]
    assert dash == "-" and number.isdecimal() and len(text) <= 52, f"not an execution id: {text!r}"
    return node, int(number)


EXECUTION_FIELDS = ("executionId", "status", "registered")
PLAN_FIELDS = (
    "status",
    "shards_received",
    "shards_completed",
    "results",
    "errors",
    "total_duration",
    "read_duration",
    "steps",
)
STEP_FIELDS = ("type", "duration", "name", "arg")


def executions_of(wire):
    """Id -> (status, registered), as RG.DUMPEXECUTIONS shows them on this shard."""
    rows = [flat_map(row, EXECUTION_FIELDS) for row in wire.ok("RG.DUMPEXECUTIONS")]
    found = {row["executionId"]: (row["status"], row["registered"]) for row in rows}
    assert len(found) == len(rows), f"an execution is listed twice: {rows}"
    return found


def executions(wire):
    """Id -> status of executions of which none belongs to a registration."""
    found = executions_of(wire)
    assert all(registered == 0 for _, registered in found.values()), found
    return {execution: status for execution, (status, _) in found.items()}


def plans(reply):
    """Shard id -> plan of a reply of RG.GETEXECUTION, with the steps in pipeline order."""
    shards = {}
    for entry in reply:
        fields = flat_map(entry, ("shard_id", "execution_plan"))
        plan = flat_map(fields["execution_plan"], PLAN_FIELDS)
        plan["steps"] = [flat_map(step, STEP_FIELDS) for step in reversed(plan["steps"])]
        assert fields["shard_id"] not in shards, f"a shard is listed twice: {reply}"
        shards[fields["shard_id"].decode()] = plan
    return shards


def own_plan(wire, execution):
    """The plan as the asked shard sees it."""
    (plan,) = plans(wire.ok("RG.GETEXECUTION", execution, "SHARD")).values()
    return plan


def wait_status(wire, execution, *wanted):
    def seen():
        return executions(wire).get(execution) in wanted

    wait_until(seen, f"{execution} becoming {wanted}")


def wait_done(wire, execution):
    wait_status(wire, execution, *FINISHED)


def start(wire, script):
    """The id of an execution that was started without waiting for it."""
    execution = wire.ok("RG.PYEXECUTE", script, "UNBLOCKING")
    assert isinstance(execution, bytes), execution
    return execution


def own_tag(server):
    """A hash tag of keys that live on this server."""
    with Wire(server.port) as wire:
        before = set(executions(wire))
        script = "GB('ShardsIDReader').map(lambda x: hashtag()).run(mode='async_local')"
        (tag,) = results_of(wire.ok("RG.PYEXECUTE", script))
        # So that a test that looks at the list of executions does not see this one.
        wait_until(lambda: len(executions(wire)) <= len(before), "the helper's execution being dropped")
    return tag.decode()


class Gate:
    """Holds the step `hold` of an execution on every one of the given servers until it is opened there."""

    _count = 0

    def __init__(self, servers):
        Gate._count += 1
        self.name = f"{time.monotonic_ns()}-{Gate._count}"
        self.servers = list(servers)
        self.code = HOLD % {"name": self.name}
        self.keys = {}
        for server in self.servers:
            self.keys[server] = f"gate:{self.name}{{{own_tag(server)}}}"

    def open(self, *servers):
        for server in servers or self.servers:
            with Wire(server.port) as wire:
                wire.ok("SET", self.keys[server], "open")

    def wait_reached(self, *servers, times=1):
        """Returns when the step has been entered on these servers."""
        for server in servers or self.servers:
            with Wire(server.port) as wire:

                def entered(wire=wire, server=server):
                    return int(wire.ok("GET", "at-" + self.keys[server]) or 0) >= times

                wait_until(entered, f"the held step on {server}")


def is_error(reply, *parts):
    assert isinstance(reply, Error), f"{reply!r} is not an error"
    for part in parts:
        assert part in reply.text, f"{part!r} is not in {reply.text!r}"
    return True
