"""atomic(): nobody comes in between, and the writes inside are replicated as one transaction."""

import threading
from pathlib import Path

import localcluster
import pytest
from replies import wait_until
from scripts import check_errors, evaluate, execute, last_line, on_shard, results, run

pytestmark = pytest.mark.matrix

MISUSE = [
    ("nested", "with atomic():\n        with atomic():\n            pass", "Already inside an atomic block"),
    ("the same", "a = atomic()\n    with a:\n        with a:\n            pass", "Already inside an atomic block"),
    ("leaving without entering", "atomic().__exit__(None, None, None)", "Not inside an atomic block"),
    ("leaving twice", "a = atomic()\n    with a:\n        pass\n    a.__exit__(None, None, None)",
     "Not inside an atomic block"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "text"), [pytest.param(*row[1:], id=row[0]) for row in MISUSE])
def test_misuse(client, body, text):
    script = f"def f(x):\n    {body}\nGB('ShardsIDReader').map(f).run()"
    pair = run(client, script)
    assert pair.results == []
    assert last_line(pair.errors[0]) == f"gears.error: {text}"
    assert client.set("the lock is free", "1")
    assert evaluate(client, "isInAtomicBlock()") is False


def test_inside_and_outside(client):
    prelude = """
def f():
    seen = [isInAtomicBlock()]
    with atomic() as a:
        seen.append(isInAtomicBlock())
        seen.append(type(a) is type(atomic()))
        seen.append(execute('ping'))
    seen.append(isInAtomicBlock())
    return seen
"""
    assert evaluate(client, "f()", prelude) == [False, True, True, "PONG", False]


def test_again_after_the_end(client):
    prelude = """
def f():
    for i in range(100):
        with atomic():
            n = execute('incr', 'n')
    return n
"""
    assert evaluate(client, "f()", prelude) == 100


def test_at_top_level(client):
    script = "with atomic():\n    execute('set', 'k', isInAtomicBlock())\nexecute('set', 'after', isInAtomicBlock())"
    assert execute(client, script) == "OK"
    assert (client.get("k"), client.get("after")) == (b"True", b"False")


def test_at_top_level_an_exception_frees_the_lock(client):
    assert "ValueError: x" in execute(client, "with atomic():\n    raise ValueError('x')").text
    assert client.ping()
    assert evaluate(client, "isInAtomicBlock()") is False


def test_no_other_client_comes_in_between(client, server):
    script = """
import time
def f(x):
    differences = 0
    for i in range(20):
        with atomic():
            before = execute('get', 'n')
            time.sleep(0.002)
            differences += execute('get', 'n') != before
    return differences
GB('ShardsIDReader').map(f).run()
"""
    stop = threading.Event()
    client.set("n", 0)

    def count():
        with server.client() as other:
            while not stop.is_set():
                other.incr("n")

    counter = threading.Thread(target=count)
    counter.start()
    try:
        wait_until(lambda: int(client.get("n")) > 100, "the other client counting")
        assert results(client, script) == ["0"]
        # Without the block the same is seen to change, so the counter did run.
        loose = script.replace("with atomic():", "if True:")
        assert int(results(client, loose)[0]) > 0
    finally:
        stop.set()
        counter.join()


def test_functions_of_two_threads_exclude_each_other(client):
    prelude = """
import threading
def add(n):
    for _ in range(n):
        with atomic():
            execute('set', 'sum', int(execute('get', 'sum') or 0) + 1)
def both():
    threads = [threading.Thread(target=add, args=(200,)) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    return execute('get', 'sum')
"""
    assert evaluate(client, "both()", prelude) == "600"


def test_an_exit_inside_frees_the_lock(client):
    script = "import sys\ndef f(x):\n    with atomic():\n        sys.exit(1)\nGB('ShardsIDReader').map(f).run()"
    check_errors(run(client, script).errors, ["SystemExit: 1"])
    assert client.set("k", "1")


# --- what replicas and the append-only file see ------------------------------------------------------------------


@pytest.fixture
def written():
    """A server with an append-only file, and the commands that it has written."""
    server = localcluster.start_server(
        module=localcluster.DEFAULT_MODULE, server_args=["--appendonly", "yes", "--appendfsync", "always"]
    )

    def commands():
        text = b"".join(path.read_bytes() for path in sorted(Path(server.dir).glob("appendonlydir/*.incr.aof")))
        words, found, left = text.split(b"\r\n"), [], 0
        for word in words:
            if word.startswith(b"*") and not left:
                found.append([])
                left = int(word[1:])
            elif left and not word.startswith(b"$"):
                found[-1].append(word.decode())
                left -= 1
        return [command for command in found if command[0].lower() != "select"]

    yield server.client(), commands
    server.stop()


def names(commands):
    return [" ".join([command[0].lower(), *command[1:]]) for command in commands]


def test_writes_of_an_atomic_block_are_one_transaction(written):
    client, commands = written
    script = """
def f(x):
    with atomic():
        execute('set', 'a', 1)
        execute('incr', 'n')
        execute('get', 'a')
    execute('set', 'b', 1)
    execute('set', 'c', 1)
GB('ShardsIDReader').foreach(f).run()
"""
    assert len(results(client, script)) == 1
    assert names(commands()) == ["multi", "set a 1", "incr n", "exec", "set b 1", "set c 1"]


def test_writes_of_a_script_body_are_one_transaction(written):
    client, commands = written
    assert execute(client, "execute('set', 'a', 1)\nexecute('set', 'b', 2)\nexecute('del', 'a')") == "OK"
    assert names(commands()) == ["multi", "set a 1", "set b 2", "del a", "exec"]


def test_nothing_else_is_written(written):
    client, commands = written
    client.set("own", "1")
    assert results(client, "GB().count().run()") == ["1"]
    assert evaluate(client, "execute('get', 'own')") == "1"
    assert names(commands()) == ["set own 1"]


def test_a_replica_refuses_writes_of_functions(server):
    replica = localcluster.start_server(
        module=localcluster.DEFAULT_MODULE, server_args=["--replicaof", "127.0.0.1", server.port]
    )
    try:
        with server.client() as master, replica.client() as client:
            master.set("k", "v")
            wait_until(lambda: client.get("k") == b"v", "the replica being in step")
            assert results(client, "GB().map(lambda r: r['value']).run()") == ["v"]
            pair = run(client, on_shard("execute('set', 'k', 'w')"))
            check_errors(pair.errors, ["READONLY"])
            assert "READONLY" in execute(client, "execute('set', 'k', 'w')").text
            assert client.get("k") == b"v"
    finally:
        replica.stop()
