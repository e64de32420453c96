"""RG.GETRESULTS and RG.GETRESULTSBLOCKING."""

import pytest
from replies import Gate, executions, pair, results_of, start, wait_done, wait_until
from wire import Error, Simple, Wire

RUNNING = "execution is still running"
ONE = "GB('ShardsIDReader').run()"


def held(gate):
    return gate.code + "GB('ShardsIDReader').map(hold).run()"


@pytest.mark.parametrize("args", [[], ["a", "b"]])
def test_arity_of_getresultsblocking(wire, args):
    text = wire.error("RG.GETRESULTSBLOCKING", *args)
    assert text.lower() == "err wrong number of arguments for 'rg.getresultsblocking' command"


def test_arity_of_getresults(wire):
    text = wire.error("RG.GETRESULTS")
    assert text.lower() == "err wrong number of arguments for 'rg.getresults' command"
    execution = start(wire, ONE)
    wait_done(wire, execution)
    assert wire.ok("RG.GETRESULTS", execution, "more", "words") == [[b"1"], []]


@pytest.mark.parametrize("command", ["RG.GETRESULTS", "RG.GETRESULTSBLOCKING"])
def test_results_and_errors_are_not_dropped(wire, command):
    script = "GB('PythonReader').map(lambda x: x if x < 2 else bad).run(lambda: iter([0, 1, 2]))"
    execution = start(wire, script)
    wait_done(wire, execution)
    for _ in range(3):
        results, (error,) = pair(wire.ok(command, execution))
        assert results == [b"0", b"1"]
        assert "NameError: name 'bad' is not defined" in error
    assert executions(wire)[execution] == b"done"


@pytest.mark.parametrize("command", ["RG.GETRESULTS", "RG.GETRESULTSBLOCKING"])
def test_results_are_converted_as_those_of_pyexecute(wire, command):
    script = (
        "GB('PythonReader').run(lambda: iter([1, 2.5, None, b'\\x00', [1, [2]], '+a', '-b', {}]), convertToStr=False)"
    )
    execution = start(wire, script)
    wait_done(wire, execution)
    values = [1, b"2.500000", b"PY RECORD", b"\x00", [1, [2]], Simple("a"), Error("b"), b"PY RECORD"]
    assert wire.ok(command, execution) == [values, []]


def test_getresults_of_a_running_execution(server, wire):
    gate = Gate([server])
    execution = start(wire, held(gate))
    assert wire.error("RG.GETRESULTS", execution) == RUNNING
    gate.wait_reached()
    assert wire.error("RG.GETRESULTS", execution) == RUNNING
    gate.open()
    wait_done(wire, execution)
    assert results_of(wire.ok("RG.GETRESULTS", execution)) == [b"1"]


def test_getresultsblocking_waits(server, wire, other_wire):
    gate = Gate([server])
    execution = start(wire, held(gate))
    gate.wait_reached()
    waiting = [Wire(server.port) for _ in range(20)]
    for client in waiting:
        client.send("RG.GETRESULTSBLOCKING", execution)

    def all_blocked():
        return b"blocked_clients:20\r\n" in other_wire.ok("INFO", "clients")

    wait_until(all_blocked, "twenty clients waiting")
    assert executions(wire)[execution] == b"running"
    assert not any(client.has_reply() for client in waiting)
    gate.open()
    for client in waiting:
        assert results_of(client.read()) == [b"1"]
        assert client.call("PING") == Simple("PONG")
        client.close()


def test_getresultsblocking_ends_with_an_abort(server, wire, other_wire):
    gate = Gate([server])
    execution = start(wire, held(gate))
    gate.wait_reached()
    wire.send("RG.GETRESULTSBLOCKING", execution)
    assert other_wire.ok("RG.ABORTEXECUTION", execution) == Simple("OK")
    results, errors = pair(wire.read())
    assert results == []
    assert len(errors) == 1


def test_a_client_that_leaves_while_it_waits(server, wire):
    gate = Gate([server])
    execution = start(wire, held(gate))
    gate.wait_reached()
    clients = [Wire(server.port) for _ in range(5)]
    for client in clients:
        client.send("RG.GETRESULTSBLOCKING", execution)
    wait_until(lambda: b"blocked_clients:5\r\n" in wire.ok("INFO", "clients"), "five clients waiting")
    for client in clients:
        client.close()
    wait_until(lambda: b"blocked_clients:0\r\n" in wire.ok("INFO", "clients"), "the clients leaving")
    assert executions(wire)[execution] == b"running", "the others' leaving must not end it"
    gate.open()
    assert results_of(wire.ok("RG.GETRESULTSBLOCKING", execution)) == [b"1"]


def test_each_shard_answers_with_its_own_part(cluster, wires):
    ids = [master.node_id.encode() for master in cluster.masters()]
    collected = start(wires[0], ONE)
    apart = start(wires[0], "GB('ShardsIDReader').run(collect=False)")
    for wire in wires:
        wait_done(wire, collected)
        wait_done(wire, apart)
    for command in ("RG.GETRESULTS", "RG.GETRESULTSBLOCKING"):
        assert sorted(results_of(wires[0].ok(command, collected))) == sorted(ids)
        for wire, own in zip(wires, ids, strict=True):
            assert results_of(wire.ok(command, apart)) == [own]
        for wire in wires[1:]:
            assert wire.ok(command, collected) == [[], []]


def test_getresultsblocking_on_a_worker(cluster, wires):
    servers = cluster.masters()
    gate = Gate(servers)
    execution = start(wires[0], gate.code + "GB('ShardsIDReader').map(hold).run(collect=False)")
    gate.wait_reached()
    wires[1].send("RG.GETRESULTSBLOCKING", execution)
    gate.open(servers[1])
    with Wire(servers[1].port) as look:
        wait_until(lambda: executions(look)[execution] == b"pending_termination", "the worker's own part")
    assert not wires[1].has_reply(), "the execution has not finished yet"
    gate.open()
    assert results_of(wires[1].read()) == [servers[1].node_id.encode()]
