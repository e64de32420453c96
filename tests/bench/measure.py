"""Runs one case at one size: loads it, alternates the ways, and collects times, memory and PING latencies."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import fleet as fleets
import machine
from cases import ROUND_TRIP, ROUND_TRIP_SCRIPT
from ways import CLIENT, GEARS, LUA, RUN, WrongAnswer, check_equal, check_placement, execute

IDLE_S = 2.0
IDLE = "idle"
ROUND_TRIPS = 500
ROUND_TRIP_WARM_UP = 50
COUNT_BYTES = 8  # what one count takes at least; for the memory bound


class Pinger:
    """The process of pinger.py, told which phase it is in."""

    def __init__(self, ports):
        program = Path(__file__).with_name("pinger.py")
        self.process = subprocess.Popen(
            [sys.executable, str(program), *map(str, ports)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def phase(self, name):
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        if self.process.stdout.readline() != "ok\n":
            raise RuntimeError("the pinging process ended early")

    def report(self):
        """Ends the process. {phase: {late: {...}, shards: {port: {n, p50, p99, max, refused}}}}"""
        output, _ = self.process.communicate(timeout=120)
        return json.loads(output)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Run:
    """One timed run of one way."""

    def __init__(self, way, case, fleet, pinger):
        fleet.settle()
        pids = [server.pid for server in fleet.servers]
        before = [server.rss_bytes() for server in fleet.servers]
        for pid in pids:
            machine.reset_peak(pid)
        server_cpu = sum(map(machine.process_cpu_s, pids))
        client_cpu = time.process_time()
        pinger.phase(way)
        start = time.perf_counter()
        self.answer, self.parts = RUN[way](case, fleet)
        self.seconds = time.perf_counter() - start
        pinger.phase("between")
        self.client_cpu_s = time.process_time() - client_cpu
        self.server_cpu_s = sum(map(machine.process_cpu_s, pids)) - server_cpu
        self.growth = [server.peak_rss_bytes() - rss for server, rss in zip(fleet.servers, before, strict=True)]

    def figures(self):
        return {
            "seconds": self.seconds,
            "server_cpu_s": self.server_cpu_s,
            "client_cpu_s": self.client_cpu_s,
            "peak_growth_bytes": self.growth,
        }


def measure_case(case, n, pairs, ways, say):
    """The result of one case at one size, as plain data."""
    with fleets.running(case.shards, with_module=GEARS in ways) as fleet:
        load_s = fleet.load(case.dataset, n)
        say(f"{case.name} {n}: loaded in {load_s:.1f} s")
        pinger = Pinger(fleet.ports)
        try:
            result = alternate(case, fleet, pinger, pairs, ways, say)
            result["ping"] = pinger.report()
        finally:
            pinger.kill()
        result.update(case=case.name, keys=n, pairs=pairs, load_seconds=load_s)
        result["machine"] = machine.describe(fleet.clients[0])
    return result


def alternate(case, fleet, pinger, pairs, ways, say):
    """A warm-up round, then `pairs` rounds of all ways in turn. OxiGears is first: its memory is clean."""
    pids = [*(server.pid for server in fleet.servers), os.getpid(), pinger.process.pid]
    pinger.phase(IDLE)
    time.sleep(IDLE_S)
    before = machine.Cpu.now(pids)
    warm_up, expected = {}, {}
    for way in ways:
        run = Run(way, case, fleet, pinger)
        expected[way] = run.answer
        warm_up[way] = run.figures() | {"distinct_bytes": distinct_bytes(run.parts)}
        say(f"{case.name}: {way} warm-up {run.seconds:.3f} s")
    check_equal(case, expected)
    rounds = {way: [] for way in ways}
    for _ in range(pairs):
        answers = {}
        for way in ways:
            run = Run(way, case, fleet, pinger)
            answers[way] = run.answer
            rounds[way].append(run.figures())
            say(f"{case.name}: {way} {run.seconds:.3f} s")
        for way, answer in answers.items():
            if answer != expected[way]:
                raise WrongAnswer(f"{case.name}: {way} answers differently in a later round")
    noise = machine.Cpu.now(pids).shares_since(before)
    if case.placement and GEARS in ways and (CLIENT in ways or LUA in ways):
        check_placement(case, fleet, expected[CLIENT if CLIENT in ways else LUA])
    return {"ways": summarise(warm_up, rounds), "warm_up": warm_up, "rounds": rounds, "noise": noise}


def distinct_bytes(parts):
    """Most bytes of distinct keys with their counts that any one shard's data holds."""
    if not parts or not all(isinstance(part, dict) and part for part in parts):
        return None
    return max(sum(len(key) + COUNT_BYTES for key in part if isinstance(key, (str, bytes))) for part in parts)


def summarise(warm_up, rounds):
    """Median times, and the ratio of each rival to OxiGears, taken pair by pair."""
    summary = {}
    for way, runs in rounds.items():
        seconds = [run["seconds"] for run in runs]
        median = statistics.median(seconds)
        every = [warm_up[way], *runs]
        summary[way] = {
            "median_s": median,
            "min_s": min(seconds),
            "max_s": max(seconds),
            "spread": (max(seconds) - min(seconds)) / median,
            "server_cpu_s": statistics.median(run["server_cpu_s"] for run in runs),
            "client_cpu_s": statistics.median(run["client_cpu_s"] for run in runs),
            "peak_growth_bytes": max(growth for run in every for growth in run["peak_growth_bytes"]),
        }
        if way != GEARS and GEARS in rounds:
            ratios = [rival["seconds"] / own["seconds"] for rival, own in zip(runs, rounds[GEARS], strict=True)]
            summary[way]["ratio"] = statistics.median(ratios)
            summary[way]["ratio_range"] = [min(ratios), max(ratios)]
    return summary


def measure_round_trip(say):
    """RG.PYEXECUTE of a script that only names the shards, beside a plain PING of the same client."""
    with fleets.running(3, with_module=True) as fleet:
        client = fleet.clients[0]
        pinger = Pinger(fleet.ports)
        try:
            pinger.phase(IDLE)
            time.sleep(IDLE_S)
            for _ in range(ROUND_TRIP_WARM_UP):
                check_shards(execute(client, ROUND_TRIP_SCRIPT))
            pinger.phase(GEARS)
            own = time_calls(lambda: check_shards(execute(client, ROUND_TRIP_SCRIPT)))
            pinger.phase("between")
            ping = time_calls(client.ping)
            result = {"case": ROUND_TRIP, "runs": ROUND_TRIPS, "ms": own, "client_ping_ms": ping}
            result["ping"] = pinger.report()
        finally:
            pinger.kill()
        result["machine"] = machine.describe(client)
    say(f"{ROUND_TRIP}: median {own['p50']:.2f} ms")
    return result


def check_shards(results):
    if len(set(results)) != 3:
        raise WrongAnswer(f"{ROUND_TRIP}: {results!r} instead of three shard ids")


def time_calls(call):
    times = []
    for _ in range(ROUND_TRIPS):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1000)
    times.sort()
    return {"p50": statistics.median(times), "p99": times[int(0.99 * len(times))], "max": times[-1]}
