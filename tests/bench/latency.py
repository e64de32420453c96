"""How long clients wait while functions run: PING each millisecond on one server.

Loads are SET and XADD by redis-benchmark with 50 clients and a pipeline of 16, or none. A *hog* is a function that
keeps the interpreter for HOG_S inside one call of C. The load alone makes PINGs wait, too: so each row stands beside
the same load on a server without the module, which takes turns with it. The report's texts and targets are here too.
"""

import contextlib
import math
import shutil
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass

import fleet as fleets
import machine
from key_events import handled
from measure import Pinger
from tables import table
from ways import WrongAnswer

localcluster = fleets.localcluster

CASE = "latency"
ROUNDS = 3
SECONDS = 4.0
WARM_UP_S = 0.5
P99_MS, MAX_MS = 10.0, 100.0
HOG_S = 0.3
K = 1000
NONE, SET, XADD = "-", "SET", "XADD"
STREAM = "st"
COMMANDS = {
    SET: ["-r", "100000", "SET", "key:__rand_int__", "xxx"],
    XADD: ["XADD", STREAM, "*", "field", "value of some length"],
}
EVENTS, RUN = "events", "run"


@dataclass(frozen=True)
class Way:
    load: str
    name: str
    script: str | None = None  # registers the function
    hog: str | None = None

    @property
    def title(self):
        return f"{self.load}: {self.name}" if self.load != NONE else self.name


def keys(step, mode):
    return f"GB().foreach(lambda x: {step}).register('key*', mode='{mode}', eventTypes=['set'])"


def stream(mode):
    return f"GB('StreamReader').foreach(lambda x: None).register('{STREAM}', batch=100, mode='{mode}')"


ALONE = {load: Way(load, "no function, no module") for load in (NONE, SET, XADD)}
TRIVIAL = keys("None", "async_local")
WAYS = (
    Way(SET, "async_local", TRIVIAL),
    Way(SET, "async", keys("None", "async")),
    Way(SET, "async_local, execute", keys("execute('INCR', 'handled')", "async_local")),
    Way(SET, "async, execute", keys("execute('INCR', 'handled')", "async")),
    Way(XADD, "async_local", stream("async_local")),
    Way(XADD, "async", stream("async")),
    Way(NONE, "hog, async_local", keys("sum(range(HOG))", "async_local"), EVENTS),
    Way(NONE, "hog, batch run", None, RUN),
    Way(SET, "async_local, hog in a batch run", TRIVIAL, RUN),
)


def hog_size():
    """Numbers whose sum takes HOG_S here, at least."""
    probe, times = 2_000_000, []
    for _ in range(3):
        start = time.perf_counter()
        sum(range(probe))
        times.append(time.perf_counter() - start)
    return int(probe * HOG_S / min(times))


# --- loads -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def loaded(port, load):
    """redis-benchmark runs meanwhile."""
    if load == NONE:
        yield
        return
    program = shutil.which("redis-benchmark")
    if program is None:
        raise RuntimeError("redis-benchmark is missing: it comes with redis-tools")
    argv = [program, "-h", localcluster.HOST, "-p", str(port), "-c", "50", "-P", "16", "-n", "1000000000", "-q"]
    running = subprocess.Popen([*argv, *COMMANDS[load]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
        if running.poll() is not None:
            raise WrongAnswer(f"redis-benchmark ended early, with {running.returncode}")
    finally:
        running.kill()
        running.wait()


@contextlib.contextmanager
def hogged(fleet, kind, size, seconds):
    """Hogs follow each other meanwhile; returns when all of them are over."""
    if kind is None:
        yield
        return
    count = math.ceil(seconds / HOG_S) + 1
    if kind == EVENTS:
        with fleet.servers[0].client() as client:
            for i in range(count):
                client.set(f"key:{i}", "x")
        yield
        return
    text = f"GB('PythonReader').foreach(lambda x: sum(range({size}))).count().run(lambda: iter(range({count})))"
    replies = []

    def work():
        with fleet.servers[0].client(socket_timeout=600) as client:
            replies.append(client.execute_command("RG.PYEXECUTE", text))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if replies != [[[b"%d" % count], []]]:
        raise WrongAnswer(f"the run with hogs gave {replies!r}")


def calls(client, load):
    return client.info("commandstats").get(f"cmdstat_{load.lower()}", {}).get("calls", 0) if load != NONE else 0


def one_round(way, fleet, size, seconds):
    """PINGs of one phase, the rate of the load, and the events handled a second until none is left."""
    client, port = fleet.clients[0], fleet.ports[0]
    client.flushall()
    if way.script and client.execute_command("RG.PYEXECUTE", way.script.replace("HOG", str(size))) != b"OK":
        raise WrongAnswer(f"{way.title} can not be registered")
    pinger = Pinger([port])
    try:
        start = time.perf_counter()
        with loaded(port, way.load), hogged(fleet, way.hog, size, seconds + WARM_UP_S):
            time.sleep(WARM_UP_S)
            before, begun = calls(client, way.load), time.perf_counter()
            pinger.phase(CASE)
            time.sleep(seconds)
            pinger.phase("between")
            rate = (calls(client, way.load) - before) / (time.perf_counter() - begun)
        events = handled(client) if way.script else 0
        took = time.perf_counter() - start
        report = pinger.report()[CASE]
    finally:
        pinger.kill()
    for row in client.execute_command("RG.DUMPREGISTRATIONS") if way.script else []:
        client.execute_command("RG.UNREGISTER", row[1])
    (shard,) = report["shards"].values()
    return {**shard, "late_p99": report["late"]["p99"], "rate": rate, "handled": events / took}


# --- the case ----------------------------------------------------------------------------------------------------


def measure(say, effort):
    size, seconds = hog_size(), effort.seconds(SECONDS)
    rounds = {way: [] for way in (*ALONE.values(), *WAYS)}
    with fleets.running(1, with_module=False) as alone, fleets.running(1, with_module=True) as own:
        for _ in range(effort.rounds(ROUNDS)):
            for way, found in rounds.items():
                found.append(one_round(way, alone if way in ALONE.values() else own, size, seconds))
                say(f"{CASE}: {way.title}: p99 {found[-1]['p99']:.2f}, max {found[-1]['max']:.1f} ms")
        about = machine.describe(own.clients[0])
    return {
        "case": CASE,
        "waiting": [
            {
                "load": way.load,
                "way": way.name,
                "title": way.title,
                "alone": way in ALONE.values(),
                **{name: statistics.median(one[name] for one in found) for name in found[0]},
                "n": sum(one["n"] for one in found),
                "max": max(one["max"] for one in found),
                "rounds": found,
            }
            for way, found in rounds.items()
        ],
        "machine": about,
    }


CASES = {CASE: measure}


def beside(result, row):
    """The same load alone."""
    return next(one for one in result["waiting"] if one["alone"] and one["load"] == row["load"])


def speed(number):
    return f"{number / K:.{0 if number >= 10 * K else 1}f} k/s"


def row_of(row, alone):
    return [
        row["load"],
        row["way"],
        speed(row["rate"]) if row["load"] != NONE else "",
        speed(row["handled"]) if row["handled"] >= K else "",
        row["n"],
        *(f"{row[name]:.2f}" for name in ("p50", "p99", "max")),
        f"{row['p99'] / alone['p99']:.1f}",
        f"{row['late_p99']:.2f}",
    ]


def render(results):
    """Parts of the report."""
    rows = [
        row_of(row, beside(result, row))
        for result in results
        for row in sorted(result.get("waiting", []), key=lambda row: row["load"], reverse=True)
    ]
    head = ["load", "function", "rate", "handled", "PINGs", "p50 ms", "p99 ms", "max ms", "p99 of load alone"]
    title = "PING each millisecond on one server, medians of the rounds, the greatest maximum:"
    return [title, table([*head, "pinger late p99"], rows, left=(0, 1))] if rows else []


def check(result):
    """Rows of (target, measured, met)."""
    rows = []
    for row in result["waiting"]:
        if not row["alone"]:
            alone = beside(result, row)
            text = f"{row['title']}: PING p99 <= {P99_MS:g}, max <= {MAX_MS:g} ms"
            measured = f"{row['p99']:.2f}, {row['max']:.1f} ms (load alone: {alone['p99']:.2f}, {alone['max']:.1f})"
            rows.append((text, measured, row["p99"] <= P99_MS and row["max"] <= MAX_MS))
    return rows


CHECKS = {CASE: check}
