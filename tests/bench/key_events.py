"""Events of keys: what registrations cost the writers, against the server alone, and how much they handle.

SET by redis-benchmark with 50 clients and a pipeline of 16. Server alone and server with a registration run at the same
time as processes, and take turns under load, in random order within a round. Two processes of the same kind differ by
some hundredths as long as they live, so what is to be known to a hundredth is measured with many. The report's texts
and targets are here as well.
"""

import contextlib
import csv
import random
import shutil
import statistics
import subprocess
import time

import fleet as fleets
import machine
from tables import table
from ways import WrongAnswer

localcluster = fleets.localcluster

CLIENTS, PIPELINE, KEYS = 50, 16, 100_000
# Rounds, and SETs in each.
ROUNDS, CALLS = 5, 500_000
# The same for shares that matter to a hundredth: of each of so many sets of fresh processes.
FINE_SETS, FINE_ROUNDS, FINE_CALLS = 16, 3, 200_000
FINE = ("set_idle", "set_sync")
WARM_UP = 50_000
DRAIN_S = 120.0
POLL_S = 0.005
K = 1000

ALONE = "alone"
LOADED = "loaded"
TRIVIAL = "GB().foreach(lambda x: None).register('*', mode=MODE, eventTypes=['set'])"
INCR = "GB().foreach(lambda x: execute('INCR', 'handled')).register('*', mode=MODE, eventTypes=['set'])"
NO_MATCH = "GB().foreach(lambda x: None).register('nomatch*', mode='sync')"
# Case -> way -> the script that registers; none: the module without a registration.
SCRIPTS = {
    "set_idle": {LOADED: None, "no match": NO_MATCH},
    "set_sync": {"sync": TRIVIAL.replace("MODE", "'sync'")},
    "set_async": {"async_local": TRIVIAL.replace("MODE", "'async_local'")},
    "set_execute": {
        "sync, execute": INCR.replace("MODE", "'sync'"),
        "async_local, execute": INCR.replace("MODE", "'async_local'"),
    },
}
# Way -> least share of the rate of the server alone, and least number of events handled a second.
TARGETS = {
    LOADED: (0.99, None),
    "no match": (0.97, None),
    "sync": (0.35, None),
    "async_local": (0.5, 90 * K),
    "sync, execute": (0.2, None),
    "async_local, execute": (None, 50 * K),
}


def sets(port, calls):
    """SETs a second."""
    program = shutil.which("redis-benchmark")
    if program is None:
        raise RuntimeError("redis-benchmark is missing: it comes with redis-tools")
    argv = [program, "-h", localcluster.HOST, "-p", str(port), "-c", str(CLIENTS), "-P", str(PIPELINE)]
    argv += ["-r", str(KEYS), "-n", str(calls), "-t", "set", "--csv"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=600)
    (row,) = csv.DictReader(line for line in done.stdout.splitlines() if line.startswith('"'))
    return float(row["rps"])


def counts(client):
    (row,) = client.execute_command("RG.DUMPREGISTRATIONS")
    return dict(zip(row[7][::2], row[7][1::2], strict=True))


def handled(client):
    """How many events are over; all that were triggered, once nothing waits any more."""
    deadline = time.monotonic() + DRAIN_S
    while True:
        data = counts(client)
        over = data[b"numSuccess"] + data[b"numFailures"] + data[b"numAborted"]
        if over == data[b"numTriggered"]:
            break
        if time.monotonic() > deadline:
            raise WrongAnswer(f"events are not handled: {data}")
        time.sleep(POLL_S)
    if data[b"numFailures"] or data[b"numAborted"]:
        raise WrongAnswer(f"events were lost: {data}")
    return over


def one_round(way, fleet, script, calls):
    client = fleet.clients[0]
    before = handled(client) if script else 0
    start = time.perf_counter()
    rate = sets(fleet.ports[0], calls)
    if not script:
        return {"rate": rate}
    events = handled(client) - before
    if (events == calls) != (script != NO_MATCH):
        raise WrongAnswer(f"{way}: {events} events for {calls} commands")
    return {"rate": rate, "handled": events / (time.perf_counter() - start)}


def one_set(case, say, rounds, calls, warm_up):
    """Fresh servers, one for each way; what the rounds gave, by way, and INFO of each."""
    scripts = {ALONE: None, **SCRIPTS[case]}
    found = {way: [] for way in scripts}
    with contextlib.ExitStack() as running:
        fleet_of = {}
        for way in random.sample(list(scripts), len(scripts)):
            fleet_of[way] = running.enter_context(fleets.running(1, with_module=way != ALONE))
            script = scripts[way]
            if script and fleet_of[way].clients[0].execute_command("RG.PYEXECUTE", script) != b"OK":
                raise WrongAnswer(f"{way} can not be registered")
        for way in scripts:
            sets(fleet_of[way].ports[0], warm_up)
        for _ in range(rounds):
            for way in random.sample(list(scripts), len(scripts)):
                found[way].append(one_round(way, fleet_of[way], scripts[way], calls))
                say(f"{case}: {way} {found[way][-1]['rate']:.0f}/s")
        info = {way: fleet.clients[0].info() for way, fleet in fleet_of.items()}
        return found, info, machine.describe(fleet_of[ALONE].clients[0])


def share(found, way):
    """Of the rate of the server alone: the median of one set's rounds."""
    pairs = zip(found[way], found[ALONE], strict=True)
    return statistics.median(one["rate"] / alone["rate"] for one, alone in pairs)


def measure(case, say, effort):
    is_fine = case in FINE
    number = effort.rounds(FINE_SETS) if is_fine else 1
    rounds = FINE_ROUNDS if is_fine else effort.rounds(ROUNDS)
    calls, warm_up = effort.count(FINE_CALLS if is_fine else CALLS), effort.count(WARM_UP)
    measured = [one_set(case, say, rounds, calls, warm_up) for _ in range(number)]
    all_rounds = {way: [one for found, _, _ in measured for one in found[way]] for way in measured[0][0]}
    _, info, about = measured[-1]
    return {
        "case": case,
        "ways_of_setting": {
            way: {
                "rate": statistics.median(one["rate"] for one in found),
                "ratio": statistics.mean(share(rounds_of, way) for rounds_of, _, _ in measured),
                "handled": statistics.median(one.get("handled", 0) for one in found),
                "rss_mib": info[way]["used_memory_rss"] / machine.MIB,
            }
            for way, found in all_rounds.items()
        },
        "rounds": all_rounds,
        "machine": about,
    }


CASES = {case: lambda say, effort, case=case: measure(case, say, effort) for case in SCRIPTS}


def render(results):
    """Parts of the report."""
    rows = []
    for result in results:
        for way, one in result.get("ways_of_setting", {}).items():
            events = f"{one['handled'] / K:.1f} k/s" if one["handled"] else ""
            rows.append(
                [
                    f"{result['case']}: {way}",
                    f"{one['rate'] / K:.1f} k/s",
                    f"{one['ratio']:.3f}",
                    events,
                    f"{one['rss_mib']:.0f}",
                ]
            )
    head = ["SET, 50 clients, pipeline 16, medians", "rate", "of the server alone", "events handled", "MiB"]
    return [table(head, rows)] if rows else []


def check(result):
    """Rows of (target, measured, met)."""
    rows = []
    for way, one in result["ways_of_setting"].items():
        most_of, least = TARGETS.get(way, (None, None))
        name = f"{result['case']}, {way}"
        if most_of:
            rows.append((f"{name}: >= {most_of:g} of the server alone", f"{one['ratio']:.3f}", one["ratio"] >= most_of))
        if least:
            text = f"{name}: >= {least // K} k events/s"
            rows.append((text, f"{one['handled'] / K:.1f} k/s", one["handled"] >= least))
    return rows


CHECKS = {case: check for case in SCRIPTS}
