"""Commands inside MULTI, Lua and functions: those that would have to wait are refused and do nothing."""

import pytest
from replies import FINISHED, Gate, executions, own_plan, pair, results_of, start, wait_done, wait_until
from wire import Error, Simple

REFUSED = "Can not run gears inside a multi exec, lua, or when blocking is not allowed"
LUA = "return redis.call(unpack(ARGV))"
LUA_PCALL = "return redis.pcall(unpack(ARGV))"
SET = "execute('set', 'ran', '1')"


def in_multi(wire, *args):
    assert wire.ok("MULTI") == Simple("OK")
    assert wire.ok(*args) == Simple("QUEUED")
    (reply,) = wire.ok("EXEC")
    return reply


def in_lua(wire, *args):
    return wire.call("EVAL", LUA, 0, *args)


def nested(wire, *args):
    """The reply to a command of `execute()`, or the error that it raises, as the wire would show it."""
    script = f"GB('ShardsIDReader').map(lambda x: execute(*{args!r})).run(convertToStr=False)"
    results, errors = pair(wire.ok("RG.PYEXECUTE", script))
    return Error(errors[0]) if errors else results[0]


CONTEXTS = pytest.mark.parametrize("within", [in_multi, in_lua, nested])


@pytest.mark.parametrize("options", [[], ["UNBLOCKING"], ["ID"], ["FOO"]])
@CONTEXTS
def test_pyexecute_is_refused_before_anything_else(wire, within, options):
    reply = within(wire, "RG.PYEXECUTE", SET, *options)
    assert isinstance(reply, Error) and REFUSED in reply.text
    assert wire.ok("EXISTS", "ran") == 0


def test_exact_text_in_multi(wire):
    assert in_multi(wire, "RG.PYEXECUTE", SET) == Error(REFUSED)
    reply = wire.call("EVAL", LUA_PCALL, 0, "RG.PYEXECUTE", SET)
    assert isinstance(reply, Error) and REFUSED in reply.text


@pytest.mark.parametrize("command", ["RG.GETRESULTSBLOCKING", "RG.ABORTEXECUTION"])
@CONTEXTS
def test_waiting_commands_are_refused_without_effect(server, wire, within, command):
    gate = Gate([server])
    execution = start(wire, gate.code + "GB('ShardsIDReader').map(hold).run()")
    gate.wait_reached()
    reply = within(wire, command, execution)
    assert isinstance(reply, Error) and "ERR" in reply.text
    assert executions(wire)[execution] not in FINISHED, "the execution must go on"
    gate.open()
    wait_done(wire, execution)
    # Not aborted: the step's value has arrived. Nor may a second reply have been sent.
    assert results_of(wire.ok("RG.GETRESULTS", execution)) == [b"1"]
    assert wire.call("PING") == Simple("PONG")
    assert not wire.has_reply()


@CONTEXTS
def test_cluster_form_of_getexecution_is_refused(wires, within):
    wire = wires[0]
    execution = start(wire, "GB('ShardsIDReader').run()")
    wait_done(wire, execution)
    reply = within_cluster(wire, within, "RG.GETEXECUTION", execution.decode(), "CLUSTER")
    assert isinstance(reply, Error) and "ERR" in reply.text
    # The form that asks nobody else is allowed.
    reply = within_cluster(wire, within, "RG.GETEXECUTION", execution.decode(), "SHARD")
    assert not isinstance(reply, Error), reply
    assert wire.call("PING") == Simple("PONG")
    assert not wire.has_reply()


def within_cluster(wire, within, *args):
    """As `within`; a function must run on the shard that knows the execution."""
    if within is not nested:
        return within(wire, *args)
    script = f"GB('ShardsIDReader').map(lambda x: execute(*{args!r})).run(convertToStr=False, mode='async_local')"
    results, errors = pair(wire.ok("RG.PYEXECUTE", script))
    return Error(errors[0]) if errors else results[0]


@CONTEXTS
def test_refreshcluster_is_refused(wires, within):
    reply = within_cluster(wires[0], within, "RG.REFRESHCLUSTER")
    assert isinstance(reply, Error) and "ERR" in reply.text
    assert wires[0].call("PING") == Simple("PONG")


@CONTEXTS
def test_commands_that_do_not_wait_are_allowed(wire, within):
    execution = start(wire, "GB('ShardsIDReader').run()")
    wait_done(wire, execution)
    name = execution.decode()

    assert name.encode() in [row[1] for row in texts_as_bytes(within(wire, "RG.DUMPEXECUTIONS"))]
    assert texts_as_bytes(within(wire, "RG.GETRESULTS", name)) == [[b"1"], []]
    assert texts_as_bytes(within(wire, "RG.GETEXECUTION", name))[0][1] == b"0" * 40
    assert within(wire, "RG.CONFIGGET", "MaxExecutions") == [1000]
    assert texts_as_bytes(within(wire, "RG.INFOCLUSTER")) == b"no cluster mode"
    assert texts_as_bytes(within(wire, "RG.PYSTATS"))[0] == b"TotalAllocated"
    assert texts_as_bytes(within(wire, "RG.DUMPPLUGINS"))[0][0] == b"GearsPythonPlugin"
    assert within(wire, "RG.CONFIGSET", "MaxExecutions", 999) in ([Simple("OK")], [b"OK"])
    assert wire.ok("RG.CONFIGGET", "MaxExecutions") == [999]
    assert within(wire, "RG.DROPEXECUTION", name) in (Simple("OK"), b"OK")
    assert execution not in executions(wire)


def texts_as_bytes(reply):
    """Functions get texts where clients get bulk strings; shown again by the same rule they are equal."""
    if isinstance(reply, Simple):
        return reply.text.encode()
    return [texts_as_bytes(item) for item in reply] if isinstance(reply, list) else reply


def test_a_transaction_with_a_refused_command_goes_on(wire):
    wire.ok("MULTI")
    for args in (["SET", "a", "1"], ["RG.PYEXECUTE", SET], ["INCR", "a"]):
        wire.ok(*args)
    assert wire.ok("EXEC") == [Simple("OK"), Error(REFUSED), 2]


def test_deny_blocking_clients_get_an_error_and_the_server_lives(wire):
    """A function that calls every waiting command in turn, many times."""
    script = """
def try_all(x):
    texts = []
    for command in (['RG.PYEXECUTE', 'x = 1'], ['RG.GETRESULTSBLOCKING', 'x'], ['RG.ABORTEXECUTION', 'x'],
                    ['RG.GETEXECUTION', 'x', 'CLUSTER'], ['RG.REFRESHCLUSTER']):
        try:
            texts.append(repr(execute(*command)))
        except Exception as e:
            texts.append('raised')
    return ' '.join(texts)
GB('PythonReader').map(try_all).run(lambda: iter(range(20)))
"""
    lines = results_of(wire.ok("RG.PYEXECUTE", script))
    assert len(lines) == 20
    assert set(lines) == {b"raised raised raised raised raised"}
    assert wire.call("PING") == Simple("PONG")


def test_getexecution_of_a_running_execution_in_multi(server, wire):
    gate = Gate([server])
    execution = start(wire, gate.code + "GB('ShardsIDReader').map(hold).run()")
    gate.wait_reached()
    (entry,) = in_multi(wire, "RG.GETEXECUTION", execution)
    assert entry[1] == b"0" * 40
    assert own_plan(wire, execution)["status"] == b"running"
    gate.open()
    wait_until(lambda: executions(wire)[execution] == b"done", "the released execution")
