"""kill -9 in each phase: the client has an error that names the shard, the survivors free everything."""

import pytest
from breaking import (
    ERROR_S,
    EVERYWHERE,
    HERE,
    PHASES,
    expect_free,
    expect_loss,
    outcome,
    wait_flowing,
    wait_works,
)
from replies import FINISHED, Gate, executions, results_of, start, wait_until
from wire import Error, Wire

PHASE = pytest.mark.parametrize("phase", PHASES)


@PHASE
def test_a_worker_dies(trio, wires, phase):
    initiator, victim, other = trio.servers
    wires[0].send("RG.PYEXECUTE", PHASES[phase])
    wait_flowing(trio.servers)
    victim.kill()
    expect_loss(wires[0].read(timeout=ERROR_S), victim)
    expect_free([initiator, other])


@PHASE
def test_the_initiator_dies(trio, wires, phase):
    initiator, *survivors = trio.servers
    wires[0].send("RG.PYEXECUTE", PHASES[phase])
    wait_flowing(trio.servers)
    initiator.kill()
    with pytest.raises(ConnectionError):
        wires[0].read(timeout=ERROR_S)
    expect_free(survivors)


def test_a_worker_dies_while_a_callback_runs_on_it(trio, wires):
    initiator, victim, other = trio.servers
    gate = Gate(trio.servers)
    wires[0].send("RG.PYEXECUTE", gate.code + "GB('ShardsIDReader').map(hold).collect().count().run()")
    gate.wait_reached()
    gate.open(initiator, other)
    victim.kill()
    expect_loss(wires[0].read(timeout=ERROR_S), victim)
    expect_free([initiator, other])


def test_a_worker_dies_after_it_has_sent_everything(trio, wires):
    """Its records have arrived, but nobody can know whether it would have sent more."""
    initiator, victim, other = trio.servers
    gate = Gate(trio.servers)
    execution = start(wires[0], gate.code + "GB('ShardsIDReader').map(hold).run()")
    gate.wait_reached()
    gate.open(initiator, victim)
    wait_until(lambda: executions(wires[1])[execution] == b"pending_termination", "the victim's part")
    victim.kill()
    results, errors = outcome(wires[0].call("RG.GETRESULTSBLOCKING", execution, timeout=ERROR_S))
    # Complete, or an error: its report may have been complete before it died.
    assert errors or len(results) == 3
    expect_free([initiator, other])


def test_a_shard_is_dead_before_the_start(trio, wires):
    initiator, victim, other = trio.servers
    victim.kill()
    for server in (initiator, other):
        with Wire(server.port) as wire:
            expect_loss(wire.call("RG.PYEXECUTE", EVERYWHERE, timeout=ERROR_S), victim)
            # What needs nobody else goes on.
            assert len(results_of(wire.ok("RG.PYEXECUTE", HERE))) == 1
    # By now the loss is old. A queue of hopeless executions does not hold up those that need nobody else.
    hopeless = [start(wires[0], EVERYWHERE) for _ in range(60)]
    assert len(results_of(wires[0].ok("RG.PYEXECUTE", HERE, timeout=ERROR_S))) == 1
    for execution in hopeless:
        expect_loss(wires[0].call("RG.GETRESULTSBLOCKING", execution), victim)
    expect_free([initiator, other])


def test_commands_that_ask_every_shard_while_one_is_dead(trio, wires):
    initiator, victim, other = trio.servers
    gate = Gate(trio.servers)
    execution = start(wires[0], gate.code + "GB('ShardsIDReader').map(hold).run()")
    gate.wait_reached()
    victim.kill()
    for command in (["RG.GETEXECUTION", execution], ["RG.ABORTEXECUTION", execution]):
        # An answer or an error, but soon.
        wires[0].call(*command, timeout=ERROR_S)
    wait_until(lambda: executions(wires[0])[execution] in FINISHED, "the execution ending")
    expect_free([initiator, other])


def test_many_executions_at_once_lose_a_worker(trio, wires):
    initiator, victim, other = trio.servers
    gate = Gate(trio.servers)
    script = gate.code + "GB('ShardsIDReader').map(hold).run()"
    clients = [Wire(server.port) for server in (initiator, other) for _ in range(10)]
    try:
        for client in clients:
            client.send("RG.PYEXECUTE", script)
        gate.wait_reached(victim)
        gate.open(initiator, other)
        victim.kill()
        for client in clients:
            expect_loss(client.read(timeout=ERROR_S), victim)
    finally:
        for client in clients:
            client.close()
    expect_free([initiator, other])


def test_it_works_again_after_a_restart(trio, wires):
    _, victim, other = trio.servers
    for round_number in range(2):
        victim.kill()
        victim.start()
        trio.wait_cluster_ok()
        wait_works(trio.servers, 3)
        for i in range(30):
            trio.owner(f"k{i}").command("SET", f"k{i}", round_number)
        with Wire(other.port) as wire:
            assert results_of(wire.ok("RG.PYEXECUTE", "GB().count().run('k*')")) == [b"30"]
            counted = "GB().countby(lambda r: r['value']).map(lambda r: r['value']).run('k*')"
            assert results_of(wire.ok("RG.PYEXECUTE", counted)) == [b"30"]


@pytest.mark.matrix
def test_a_shard_that_has_just_started_never_answers_for_itself_alone(trio):
    """From its first answer on: all shards, or an error."""
    victim = trio.servers[1]
    answers = []

    def answers_for_all():
        try:
            with Wire(victim.port) as wire:
                answers.append(wire.call("RG.PYEXECUTE", EVERYWHERE, timeout=ERROR_S))
        except OSError:
            return False
        return not isinstance(answers[-1], Error) and not answers[-1][1]

    victim.kill()
    victim.spawn()
    wait_until(answers_for_all, "an answer without errors")
    assert len(answers[-1][0]) == 3, answers
