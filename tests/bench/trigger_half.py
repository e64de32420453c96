"""Triggers at half of their greatest load: the time until the reply, beside EVALSHA at half of its own greatest load.

redis-benchmark finds what each way can do; pacer.py then sends half of it, evenly. The report's texts and targets are
here as well.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import fleet as fleets
import machine
from tables import table
from triggers import ARGUMENT, CALLS, EVALSHA, LOCAL, LUA, SYNC, WARM_UP, benchmark, expect, trigger_script
from ways import WrongAnswer

CASE = "trigger_half"
ROUNDS = 5
SECONDS = 3.0
RATIO = 2.0
K = 1000
REPLY = f"*1\\r\\n${len(ARGUMENT)}\\r\\n{ARGUMENT}\\r\\n"
LABEL = {EVALSHA: "EVALSHA of the same in Lua", SYNC: "RG.TRIGGER, sync", LOCAL: "RG.TRIGGER, async_local"}


def paced(port, rate, seconds, command):
    program = Path(__file__).with_name("pacer.py")
    argv = [sys.executable, str(program), str(port), str(rate), str(seconds), REPLY, *command, ARGUMENT]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise WrongAnswer(f"{command[0]} at {rate:.0f}/s: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def measure(say, effort):
    calls, seconds = effort.count(CALLS), effort.seconds(SECONDS)
    with fleets.running(1, with_module=True) as fleet:
        client, port = fleet.clients[0], fleet.ports[0]
        commands = {EVALSHA: ["EVALSHA", client.script_load(LUA), "0"]}
        for mode in (SYNC, LOCAL):
            expect(client.execute_command("RG.PYEXECUTE", trigger_script(mode)), b"OK", "registering")
            commands[mode] = ["RG.TRIGGER", f"bench-{mode}"]
        most = {}
        for way, command in commands.items():
            benchmark(port, effort.count(WARM_UP), *command, ARGUMENT)
            most[way] = benchmark(port, calls, *command, ARGUMENT)["rate"]
            say(f"{CASE}: {way} can do {most[way]:.0f}/s")
        rounds = {way: [] for way in commands}
        for _ in range(effort.rounds(ROUNDS)):
            for way, command in commands.items():
                rounds[way].append(paced(port, most[way] / 2, seconds, command))
                say(f"{CASE}: {way} p99 {rounds[way][-1]['p99']:.2f} ms")
        about = machine.describe(client)
    rival = [one["p99"] for one in rounds[EVALSHA]]
    return {
        "case": CASE,
        "at_half_load": {
            way: {
                **{name: statistics.median(one[name] for one in found) for name in found[0]},
                "most": most[way],
                "p99_ratio": statistics.median(one["p99"] / other for one, other in zip(found, rival, strict=True)),
            }
            for way, found in rounds.items()
        },
        "rounds": rounds,
        "machine": about,
    }


CASES = {CASE: measure}


def render(results):
    """Parts of the report."""
    rows = [
        [
            LABEL[way],
            *(f"{one[name] / K:.1f} k/s" for name in ("most", "rate")),
            *(f"{one[name]:.2f}" for name in ("p50", "p99", "max")),
            f"{one['p99_ratio']:.2f}",
            f"{one['late_p99']:.2f}",
        ]
        for result in results
        for way, one in result.get("at_half_load", {}).items()
    ]
    head = ["50 connections, paced, medians", "most", "sent", "p50 ms", "p99 ms", "max ms", "p99 of EVALSHA"]
    return [table([*head, "sender late p99"], rows)] if rows else []


def check(result):
    """Rows of (target, measured, met)."""
    ratios = {way: result["at_half_load"][way]["p99_ratio"] for way in (SYNC, LOCAL)}
    return [
        (f"{way} trigger at half load: p99 < {RATIO:g} x EVALSHA", f"{ratio:.2f} x", ratio < RATIO)
        for way, ratio in ratios.items()
    ]


CHECKS = {CASE: check}
