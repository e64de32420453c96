"""Clients that speak RESP3 get the same replies: flat maps stay arrays."""

import pytest
import redis
from replies import flat_map, own_plan, start, wait_done
from wire import Error, Simple, Wire


@pytest.fixture
def third(server, wire):
    with Wire(server.port) as connection:
        assert connection.ok("HELLO", "3")[b"proto"] == 3
        yield connection


def test_same_replies_as_with_resp2(wire, third):
    script = "GB('PythonReader').run(lambda: iter([1, 2.5, None, b'\\x00', [1, [2]], '+a', '-b']), convertToStr=False)"
    execution = start(wire, script)
    wait_done(wire, execution)
    wire.ok("RG.CONFIGSET", "Mine", "x")
    commands = [
        ["RG.PYEXECUTE", script],
        ["RG.PYEXECUTE", "x = 1"],
        ["RG.PYEXECUTE", "raise Exception('x')"],
        ["RG.GETRESULTS", execution],
        ["RG.GETRESULTSBLOCKING", execution],
        ["RG.GETEXECUTION", execution],
        ["RG.GETEXECUTION", "x"],
        ["RG.DUMPEXECUTIONS"],
        ["RG.CONFIGGET", "MaxExecutions", "nosuch", "Mine"],
        ["RG.CONFIGSET", "MaxExecutions", "1000", "ExecutionThreads", "1"],
        ["RG.INFOCLUSTER"],
        ["RG.REFRESHCLUSTER"],
        ["RG.DUMPPLUGINS"],
        ["RG.PYFREEINTERPRETER"],
        ["RG.ABORTEXECUTION", execution],
    ]
    for command in commands:
        assert third.call(*command) == wire.call(*command), command
    assert third.call("RG.PYEXECUTE", script)[0][-2:] == [Simple("a"), Error("b")]
    assert own_plan(third, execution)["status"] == b"done"
    assert third.call("RG.DROPEXECUTION", execution) == Simple("OK")


def test_infocluster(cluster, wires):
    with Wire(cluster.masters()[0].port) as third:
        third.ok("HELLO", "3")
        reply = third.ok("RG.INFOCLUSTER")
        assert len(reply) == 5 and len(reply[4]) == 3
        for shard in reply[4]:
            flat_map(shard)
        results, errors = third.ok("RG.PYEXECUTE", "GB('ShardsIDReader').run()")
        assert len(results) == 3 and errors == []


@pytest.mark.parametrize("protocol", [2, 3])
def test_through_redis_py(server, wire, protocol):
    with server.client(protocol=protocol, socket_timeout=120) as client:
        client.set("k", "v")
        reply = client.execute_command("RG.PYEXECUTE", "GB().map(lambda r: r['key']).run()")
        assert reply == [[b"k"], []]
        script = "GB('PythonReader').run(lambda: iter(['+a', '-b']))"
        (simple, error), errors = client.execute_command("RG.PYEXECUTE", script)
        assert simple == b"a" and errors == []
        assert isinstance(error, redis.ResponseError) and str(error) == "b"
        with pytest.raises(redis.ResponseError, match="Exception: foo"):
            client.execute_command("RG.PYEXECUTE", "raise Exception('foo')")
        assert client.execute_command("RG.PYEXECUTE", "x = 1") == b"OK"
        execution = client.execute_command("RG.PYEXECUTE", "GB('ShardsIDReader').run()", "UNBLOCKING")
        assert client.execute_command("RG.GETRESULTSBLOCKING", execution) == [[b"1"], []]
        (number, missing) = client.execute_command("RG.CONFIGGET", "MaxExecutions", "nosuch")
        assert number == 1000 and isinstance(missing, redis.ResponseError)


def test_through_the_cluster_client_of_redis_py(cluster, wires):
    with cluster.cluster_client(socket_timeout=120) as client:
        node = client.get_primaries()[0]
        reply = client.execute_command("RG.PYEXECUTE", "GB('ShardsIDReader').run()", target_nodes=node)
        assert len(reply[0]) == 3 and reply[1] == []
