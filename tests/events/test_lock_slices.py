"""Commands of functions on a busy server: the main thread lends its lock for slices, and nothing is lost thereby."""

import contextlib
import threading

import localcluster
import pytest
from persisting import follow, wait_following
from replies import results_of, wait_until
from wire import Simple, Wire

pytestmark = pytest.mark.matrix

# Bounds that only guard against hanging.
LOOP_S = 100.0
CLIENTS = 4
PIPELINE = 10
# Keeps the main thread busy for a part of a millisecond, at no cost for the client.
WORK = "for i = 1, 20000 do end return 1"
# Counts until a number of holds of the lock was in slices.
LOOP = """
import time
def count(x):
    n, limit = 0, time.monotonic() + 60
    while not (n % 50 == 0 and execute('exists', 'enough')):
        execute('incr', 'n')
        n += 1
        if time.monotonic() > limit:
            raise Exception('not enough slices')
    return n
"""
RUN = "GB('ShardsIDReader').map(count).run()"
# The same in threads of the script's own, whose sum is the answer.
THREADS = """
import threading
def together(x):
    sums = []
    threads = [threading.Thread(target=lambda: sums.append(count(x))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return sum(sums) if len(sums) == 4 else sums
GB('ShardsIDReader').map(together).run()
"""
ATOMIC = LOOP.replace(
    "        execute('incr', 'n')\n",
    """
        with atomic():
            before = int(execute('incr', 'n'))
            if before != int(execute('incr', 'twin')):
                raise Exception('not atomic')
""",
)
HOG = """
import threading
def hog():
    while not execute('exists', 'enough'):
        sum(range(3 * 10**7))
threading.Thread(target=hog).start()
"""


def keep_busy(server, stop):
    with Wire(server.port) as wire:
        while not stop.is_set():
            for _ in range(PIPELINE):
                wire.send("EVAL", WORK, "0")
            for _ in range(PIPELINE):
                assert wire.read() == 1


@contextlib.contextmanager
def busy(server):
    """A server whose main thread does not sleep."""
    stop = threading.Event()
    threads = [threading.Thread(target=keep_busy, args=(server, stop)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def calls_in_slices(client):
    (calls,) = (value for name, value in client.info("rg").items() if name.endswith("calls_in_slices"))
    return calls


def run_until_enough(server, client, script, calls=300, meanwhile=None):
    """Runs a script that counts on a busy server until there were so many calls in slices; its answer."""
    before = calls_in_slices(client)
    with busy(server), Wire(server.port) as wire:
        wire.send("RG.PYEXECUTE", script)
        try:
            wait_until(lambda: calls_in_slices(client) >= before + calls, "calls in slices", LOOP_S)
            if meanwhile:
                meanwhile()
        finally:
            client.set("enough", "1")
        (answer,) = results_of(wire.read(LOOP_S))
    return int(answer)


@pytest.mark.parametrize("script", [LOOP + RUN, LOOP + THREADS, ATOMIC + RUN], ids=["one", "threads", "atomic"])
def test_every_call_counts_once(server, client, script):
    assert run_until_enough(server, client, script) == int(client.get("n"))


def test_a_hog_of_the_interpreter_does_not_stop_the_server(server, client):
    # The server answers all the while, or the load would not get on.
    answer = run_until_enough(server, client, HOG + LOOP + RUN, calls=3)
    assert answer == int(client.get("n"))


def test_a_pause_of_all_writes_is_waited_for(server, client):
    def pause():
        with Wire(server.port) as wire:
            assert wire.call("CLIENT", "PAUSE", "60000", "WRITE") == Simple("OK")
            wait_until(lambda: int(client.get("n")) == int(client.get("n")), "the loop waiting")
            stood = int(client.get("n"))
            for _ in range(20):
                assert int(client.get("n")) == stood
            assert wire.call("CLIENT", "UNPAUSE") == Simple("OK")
            wait_until(lambda: int(client.get("n")) > stood, "the loop going on")

    assert run_until_enough(server, client, LOOP + RUN, meanwhile=pause) == int(client.get("n"))


def test_replica_and_aof_have_the_same():
    args = ("--appendonly", "yes", "--appendfsync", "always")
    servers = localcluster.start_servers(2, module=localcluster.DEFAULT_MODULE, server_args=args)
    try:
        follow(servers[1], servers[0])
        with servers[0].client() as client:
            counted = run_until_enough(servers[0], client, LOOP + THREADS)
        wait_following(servers[1], servers[0])
        servers[0].kill()
        servers[0].start()
        for server in servers:
            assert server.command("GET", "n") == b"%d" % counted
    finally:
        for server in servers:
            server.stop()
