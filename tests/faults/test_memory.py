"""Executions leave nothing behind: no memory, no threads, no open files."""

import os
from pathlib import Path

from breaking import outcome
from replies import executions, wait_until
from wire import Wire

WARM_UP = 300
EXECUTIONS = 1000
SAMPLE_EVERY = 50
# Allocators settle by whole pages; a real leak of an execution (its plan, its functions, its records) is larger.
SLOPE_BYTES = 3000

SCRIPTS = [
    "GB('ShardsIDReader').map(lambda x: len(x)).run()",
    "GB().map(lambda r: r['value']).countby().run('k*')",
    "def src():\n    yield from map(str, range(50))\nGB('PythonReader').repartition(lambda x: x).count().run(src)",
    "GB('ShardsIDReader').map(lambda x: missing).run()",
    "class Own:\n    pass\nGB('ShardsIDReader').map(lambda x: Own()).groupby(lambda x: 'a', lambda k, a, x: 1).run()",
    "raise Exception('at the top')",
]


def slope(points):
    """Bytes an execution, by least squares."""
    n = len(points)
    mean_x = sum(x for x, _ in points) / n
    mean_y = sum(y for _, y in points) / n
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def open_files(server):
    return len(os.listdir(f"/proc/{server.pid}/fd"))


def threads(server):
    return len(list(Path(f"/proc/{server.pid}/task").iterdir()))


def run_some(wire, first, count):
    for i in range(first, first + count):
        script = SCRIPTS[i % len(SCRIPTS)]
        if i % 10 == 9:
            # Kept, then read and dropped; one of them is aborted as soon as it was started.
            execution = wire.ok("RG.PYEXECUTE", SCRIPTS[i % 2], "UNBLOCKING")
            if i % 20 == 19:
                wire.call("RG.ABORTEXECUTION", execution)
            wire.ok("RG.GETRESULTSBLOCKING", execution)
            wire.ok("RG.DROPEXECUTION", execution)
        else:
            outcome(wire.call("RG.PYEXECUTE", script))


def expect_flat(servers):
    with Wire(servers[0].port) as wire:
        run_some(wire, 0, WARM_UP)
        before = {server: (open_files(server), threads(server)) for server in servers}
        samples = {server: [] for server in servers}
        for done in range(0, EXECUTIONS, SAMPLE_EVERY):
            run_some(wire, done, SAMPLE_EVERY)
            for server in servers:
                samples[server].append((done, server.rss_bytes()))
    for server in servers:
        found = slope(samples[server])
        assert found < SLOPE_BYTES, f"{server} grows by {found:.0f} bytes an execution: {samples[server]}"
        files, count = before[server]
        assert open_files(server) <= files + 2
        assert threads(server) <= count + 2
        with Wire(server.port) as wire:
            wait_until(lambda wire=wire: executions(wire) == {}, "the bookkeeping of everything")


def test_a_single_server(fresh):
    server = fresh()
    for i in range(20):
        server.command("SET", f"k{i}", i)
    expect_flat([server])


def test_a_cluster(trio):
    for i in range(20):
        trio.owner(f"k{i}").command("SET", f"k{i}", i)
    expect_flat(trio.servers)


def test_large_results_are_given_back(fresh):
    """Ten times 50 MB pass through; what stays is far less than two of them."""
    server = fresh()
    script = "def src():\n    for i in range(50):\n        yield 'x' * 1_000_000\nGB('PythonReader').run(src)"
    with Wire(server.port) as wire:
        for _ in range(3):
            results, errors = outcome(wire.call("RG.PYEXECUTE", script))
            assert len(results) == 50 and errors == []
        before = server.rss_bytes()
        for _ in range(10):
            outcome(wire.call("RG.PYEXECUTE", script))
        assert server.rss_bytes() - before < 100_000_000
