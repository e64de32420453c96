"""Sessions and registrations in tests: making, reading, comparing between nodes, and clearing away."""

import ast
import contextlib
import dataclasses
import threading

import redis
from replies import executions_of, flat_map, wait_until
from wire import Error, Simple, Wire

REGISTRATION_FIELDS = ("id", "reader", "desc", "RegistrationData", "PD", "ExecutionThreadPool")
COUNTERS = ("numTriggered", "numSuccess", "numFailures", "numAborted")
DATA_FIELDS = (
    "mode",
    *COUNTERS,
    "lastRunDurationMS",
    "totalRunDurationMS",
    "avgRunDurationMS",
    "lastError",
    "args",
)
ARGS_FIELDS = ("trigger", "inorder")
PD_FIELDS = (
    "sessionName",
    "sessionDescription",
    "refCount",
    "linkedTo",
    "dead",
    "isInstallationNeeded",
    "registrationsList",
    "depsList",
    "sessionId",
)
# Behind `depsList`: how many there are, since the list itself is bounded.
PD_COUNT = "registrationsCount"
SESSION_FIELDS = (
    "ID",
    "sessionDescription",
    "refCount",
    "linked",
    "dead",
    "requirementInstallationNeeded",
    "requirements",
    "registrations",
)
NOT_FOUND = "ERR subcommand not found"
NOT_REGISTERED = "execution is not registered"
NO_BLOCKING = "ERR can not run a non-sync execution inside a MULTI/LUA (blocking is not allowed) or on loading."
OK = Simple("OK")
MODES = ("sync", "async_local", "async")
# Bounds for what must happen at some time; they only guard against hanging.
EVERYWHERE_S = 60.0
# Before 3.11.5 CPython's parser fails at times when threads make syntax trees at once.
_parsing = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Registration:
    """One entry of RG.DUMPREGISTRATIONS."""

    id: bytes
    desc: bytes | None
    data: dict
    args: dict
    pd: dict

    @property
    def counters(self):
        return tuple(self.data[name] for name in COUNTERS)

    @property
    def trigger(self):
        return self.args["trigger"]


def literal(text):
    with _parsing:
        return ast.literal_eval(text)


def read_registration(row, with_pd=True):
    names = [name for name in REGISTRATION_FIELDS if with_pd or name != "PD"]
    fields = flat_map(row, names)
    assert fields["reader"] == b"CommandReader", fields
    assert fields["ExecutionThreadPool"] == b"DefaultPool", fields
    data = flat_map(fields["RegistrationData"], DATA_FIELDS)
    pd = literal(fields["PD"].decode()) if with_pd else {}
    assert tuple(name for name in pd if name != PD_COUNT) == (PD_FIELDS if with_pd else ()), pd
    return Registration(fields["id"], fields["desc"], data, flat_map(data["args"], ARGS_FIELDS), pd)


def dump(wire):
    """The registrations of a node by id, in the order in which it lists them."""
    rows = [read_registration(row) for row in wire.ok("RG.DUMPREGISTRATIONS")]
    found = {row.id: row for row in rows}
    assert len(found) == len(rows), "a registration is listed twice"
    return found


def only(wire):
    """The one registration that there is."""
    (registration,) = dump(wire).values()
    return registration


def by_trigger(wire, name):
    (found,) = [one for one in dump(wire).values() if one.trigger == as_bytes(name)]
    return found


def as_bytes(value):
    return value if isinstance(value, bytes) else str(value).encode()


def sessions(wire, *options):
    """Name -> fields of RG.PYDUMPSESSIONS."""
    rows = [flat_map(row, SESSION_FIELDS) for row in wire.ok("RG.PYDUMPSESSIONS", *options)]
    return {row["ID"]: row for row in rows}


def register(wire, script, *options):
    """Sends a script that registers something, which must succeed."""
    reply = wire.call("RG.PYEXECUTE", script, *options)
    assert reply == OK, f"registering answered {reply!r}"


def simple_trigger(name, value="1", mode="sync", **options):
    """A script whose trigger of this name answers with a text."""
    more = "".join(f", {key}={value!r}" for key, value in options.items())
    return f"GB('CommandReader').map(lambda x: {value!r}).register(trigger={name!r}, mode={mode!r}{more})"


def trigger(wire, name, *args, **options):
    return wire.call("RG.TRIGGER", name, *args, **options)


# --- the group ---------------------------------------------------------------------------------------------------


def named(reply):
    """A flat map, or the map of RESP3, as a dict with text keys; further ones inside stay as they are."""
    if isinstance(reply, dict):
        return {key.decode(): value for key, value in reply.items()}
    return flat_map(reply)


def status(wire):
    """RG.REGISTRY by names; `members` is a list of such dicts."""
    found = named(wire.ok("RG.REGISTRY"))
    found["members"] = [named(member) for member in found["members"]]
    return found


def status_of(server):
    with Wire(server.port) as wire:
        return status(wire)


def role(server):
    return status_of(server)["role"].decode()


def find_leader(servers):
    """The server that leads the group and that a majority follows, or None."""
    answering = [server for server in servers if server.alive() and not server.paused()]
    found = {}
    for server in answering:
        with contextlib.suppress(OSError, TimeoutError):
            found[server] = status_of(server)
    leaders = [(fields["term"], server) for server, fields in found.items() if fields["role"] == b"leader"]
    if not leaders:
        return None
    _, leader = max(leaders, key=lambda pair: pair[0])
    followed = sum(fields["leader"] == leader.node_id.encode() for fields in found.values())
    return leader if 2 * followed > len(found) else None


def wait_leader(servers, timeout=EVERYWHERE_S):
    return wait_until(lambda: find_leader(servers), "a leader", timeout)


def state(server):
    """What all nodes must agree on: registrations in order, with their sessions."""
    with Wire(server.port) as wire:
        registrations = [
            (one.id, one.desc, one.data["mode"], one.trigger, one.args["inorder"], one.pd["sessionName"])
            for one in dump(wire).values()
        ]
        named_sessions = [
            (row["ID"], row["sessionDescription"], tuple(row["registrations"])) for row in sessions(wire).values()
        ]
        return registrations, named_sessions


def wait_equal(servers, timeout=EVERYWHERE_S):
    """Returns when all nodes hold the same; gives that."""
    found = {}

    def equal():
        found.clear()
        found.update({server: state(server) for server in servers})
        first, *others = found.values()
        return all(other == first for other in others)

    try:
        wait_until(equal, "all nodes holding the same registrations", timeout)
    except TimeoutError as error:
        sizes = {server: ([row[3] for row in rows], names) for server, (rows, names) in found.items()}
        raise AssertionError(f"the nodes differ: {sizes}") from error
    return next(iter(found.values()))


def wait_applied(servers, index, timeout=EVERYWHERE_S):
    """Returns when each of the nodes has applied this index."""
    for server in servers:
        wait_until(lambda server=server: status_of(server)["applied"] >= index, f"{server} catching up", timeout)


def wait_group(servers, timeout=EVERYWHERE_S):
    """Returns when all servers are members of one group with one leader, and have what it has; gives the leader."""
    wanted = {server.node_id.encode() for server in servers}

    def settled():
        leader = find_leader(servers)
        if leader is None:
            return False
        head = status_of(leader)
        members = {member["node"] for member in head["members"]}
        views = [status_of(server) for server in servers]
        return members == wanted and all(
            view["group"] == head["group"]
            and view["leader"] == leader.node_id.encode()
            and view["role"] in (b"leader", b"follower", b"learner")
            and view["applied"] >= head["commit"]
            for view in views
        )

    wait_until(settled, "one group of all nodes", timeout)
    return find_leader(servers)


# --- clearing away -----------------------------------------------------------------------------------------------


def is_master(wire):
    return wire.ok("ROLE")[0] == b"master"


def fired(wire):
    """Ids of executions that belong to registrations."""
    return [execution for execution, (_, registered) in executions_of(wire).items() if registered]


def clear(servers):
    """Removes every registration and waits until no node has one."""
    for server in servers:
        with Wire(server.port) as wire:
            if not is_master(wire):
                continue

            def emptied(wire=wire):
                for row in wire.ok("RG.DUMPREGISTRATIONS"):
                    wire.call("RG.UNREGISTER", row[1], "ABORTPENDING")
                return wire.ok("RG.DUMPREGISTRATIONS") == []

            wait_until(emptied, f"the registrations of {server} going away")
    for server in servers:
        with Wire(server.port) as wire:
            try:
                wait_until(lambda wire=wire: wire.ok("RG.DUMPREGISTRATIONS") == [], f"{server} having no registration")
            except TimeoutError as error:
                state = wire.call("RG.DUMPREGISTRATIONS"), wire.call("RG.REGISTRY"), wire.call("ROLE")
                raise AssertionError(f"{server} still has registrations: {state}") from error
            try:
                wait_until(lambda wire=wire: not fired(wire), f"the triggered executions of {server} ending")
            except TimeoutError:
                # One test has left them: the error is enough, the next ones begin with none.
                for execution in fired(wire):
                    wire.call("RG.ABORTEXECUTION", execution)
                raise


def is_refused(reply):
    """Whether a change was answered by an error, whole or in a list of them."""
    return isinstance(reply, (Error, redis.ResponseError)) or (
        isinstance(reply, list) and bool(reply) and all(isinstance(one, Error) for one in reply)
    )


def refusals_of(reply):
    """The texts of a refused change."""
    assert is_refused(reply), f"not refused: {reply!r}"
    return [reply.text] if isinstance(reply, Error) else [one.text for one in reply]
