"""Writes are paused (CLIENT PAUSE, FAILOVER) while functions write to keys for which clients wait.

Redis 7.0 serves such a client after the next command. In a pause it would replicate that, and end itself.
"""

import threading

import localcluster
import pytest
from persisting import follow
from wire import Simple, Wire

OK = Simple("OK")
ROUNDS = 200
PUSH = "    execute('rpush', 'q', 'x')\n"
ATOMIC = "    with atomic():\n        execute('rpush', 'q', 'x')\n"
# A reader of keys, in its modes; a busy interpreter makes `sync` go on in a thread.
WAYS = {
    "async_local": (PUSH, "register('k*', mode='async_local', eventTypes=['set'])"),
    "async": (PUSH, "register('k*', mode='async', eventTypes=['set'])"),
    "atomic": (ATOMIC, "register('k*', mode='async_local', eventTypes=['set'])"),
    "sync": (PUSH, "register('k*', mode='sync', eventTypes=['set'])"),
}
SPIN = """
import threading
def spin():
    while not execute('exists', 'enough'):
        sum(range(10**5))
threading.Thread(target=spin).start()
"""


@pytest.fixture
def server(fresh):
    """Has an append-only file, so that writes go somewhere, and looks often whether a pause is over."""
    return fresh(server_args=("--appendonly", "yes", "--appendfsync", "no", "--hz", "500"))


@pytest.mark.matrix
@pytest.mark.parametrize("way", WAYS)
def test_a_pause_behind_a_write_that_serves_a_client(server, way):
    body, registration = WAYS[way]
    busy = SPIN if way == "sync" else ""
    with Wire(server.port) as wire, Wire(server.port) as waiting, Wire(server.port) as pausing:
        assert wire.ok("RG.PYEXECUTE", f"{busy}def push(x):\n{body}GB().foreach(push).{registration}") == OK
        for _ in range(ROUNDS):
            waiting.send("BLPOP", "q", "0")
            wire.send("SET", "k", "1")
            pausing.ok("CLIENT", "PAUSE", "2", "WRITE")
            assert wire.read() == OK
            assert waiting.read() == [b"q", b"x"]
        wire.ok("SET", "enough", "1")
        assert wire.ok("LLEN", "q") == 0


@pytest.mark.matrix
@pytest.mark.parametrize("step", ("execute('xadd', 'out', '*', 'a', 'b')", "1 / 0"), ids=("writes", "dead-letter"))
def test_a_pause_behind_an_atomic_batch_that_serves_a_client(server, step):
    with Wire(server.port) as wire, Wire(server.port) as waiting, Wire(server.port) as pausing:
        program = f"""
GB('StreamReader').foreach(lambda x: {step}).register(
    's', mode='async_local', atomicBatch=True, onFailedPolicy='retry', deadLetter='out', maxRetries=0)
"""
        assert wire.ok("RG.PYEXECUTE", program) == OK
        wire.ok("XGROUP", "CREATE", "out", "g", "$", "MKSTREAM")
        for number in range(1, ROUNDS + 1):
            waiting.send("XREADGROUP", "GROUP", "g", "c", "BLOCK", "0", "STREAMS", "out", ">")
            wire.send("XADD", "s", f"1-{number}", "a", "b")
            pausing.ok("CLIENT", "PAUSE", "2", "WRITE")
            wire.read()
            assert waiting.read()


@pytest.mark.matrix
def test_a_fail_over_amid_writes_that_serve_clients(fresh):
    master, replica = fresh(), fresh()
    follow(replica, master)
    stop = threading.Event()

    def repeat(*command):
        try:
            with Wire(master.port) as wire:
                while not stop.is_set():
                    wire.call(*command)
        except OSError:
            pass

    with Wire(master.port) as wire:
        body, registration = WAYS["async_local"]
        assert wire.ok("RG.PYEXECUTE", f"def push(x):\n{body}GB().foreach(push).{registration}") == OK
        clients = [("BLPOP", "q", "0.1")] * 10 + [("SET", "k", "1")] * 2
        threads = [threading.Thread(target=repeat, args=command) for command in clients]
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                wire.call("FAILOVER", "TIMEOUT", "1")
                wire.call("FAILOVER", "ABORT")
            assert wire.ok("FAILOVER") == OK
            localcluster.wait_until(lambda: wire.ok("ROLE")[0] == b"slave", 30, "the master has handed over")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert master.alive() and replica.alive()
