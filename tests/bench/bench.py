"""The benchmark: OxiGears against a client-side script and a Lua script per shard. README.md says more."""

import argparse
import json
import sys
import time
from pathlib import Path

import fleet
import key_events
import latency
import measure
import report
import streams
import targets
import trigger_half
import triggers
from cases import CASES, ROUND_TRIP
from cases import NAMES as BATCH
from effort import Effort
from ways import GEARS, WAYS, WrongAnswer

# Cases that measure themselves.
WHOLE = {**triggers.CASES, **trigger_half.CASES, **key_events.CASES, **streams.CASES, **latency.CASES}
NAMES = [*BATCH, *WHOLE]
UNITS = {"k": 1_000, "m": 1_000_000}
# Fewer rounds where each takes long: (up to this many keys, rounds).
DEFAULT_PAIRS = ((10_000, 9), (100_000, 7), (float("inf"), 3))


def size(text):
    unit = UNITS.get(text[-1:].lower())
    n = int(text[:-1]) * unit if unit else int(text)
    if n < 1:
        raise ValueError(text)
    return n


def sizes(text):
    try:
        return [size(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write numbers of keys like 5000,10k,1m") from error


def some_of(names):
    def parse(text):
        chosen = text.split(",")
        if not set(chosen) <= set(names):
            raise argparse.ArgumentTypeError(f"{text!r}: choose from {','.join(names)}")
        return chosen

    return parse


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    every_case, every_way = ",".join(NAMES), ",".join(WAYS)
    parser.add_argument("--sizes", type=sizes, default="10k,100k,1m", help="numbers of keys (10k,100k,1m)")
    parser.add_argument("--cases", type=some_of(NAMES), default=every_case, help=f"which cases ({every_case})")
    parser.add_argument("--ways", type=some_of(WAYS), default=every_way, help=f"{every_way}; no module without gears")
    parser.add_argument("--pairs", type=int, help="timed rounds (9, 7 and 3, by size; others have their own number)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the calls and entries of cases without sizes (1)")
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    options = parser.parse_args()
    if options.pairs is not None and options.pairs < 1:
        parser.error("--pairs must be at least 1")
    if not 0 < options.scale <= 1:
        parser.error("--scale must be above 0 and at most 1")
    options.ways = [way for way in WAYS if way in options.ways]
    return options


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def pairs_for(n, wanted):
    return wanted or next(pairs for limit, pairs in DEFAULT_PAIRS if n <= limit)


def measure_all(options, results):
    effort = Effort(options.pairs, options.scale)
    for name in options.cases:
        if name == ROUND_TRIP:
            if GEARS in options.ways:
                results.append(measure.measure_round_trip(say))
            continue
        if name in WHOLE:
            if GEARS in options.ways:
                results.append(WHOLE[name](say, effort))
            continue
        for n in options.sizes:
            results.append(measure.measure_case(CASES[name], n, pairs_for(n, options.pairs), options.ways, say))


def finish(options, results):
    """Whatever was measured is shown, also after an interruption."""
    rows = targets.check(results)
    if results:
        print(report.render(results, rows))
    if options.json:
        document = {
            "results": results,
            "targets": [{"target": t, "measured": m, "met": met} for t, m, met in rows],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def main():
    options = arguments()
    module = Path(fleet.localcluster.DEFAULT_MODULE)
    if GEARS in options.ways and not module.exists():
        sys.exit(f"{module} is missing: run `make build` first, or choose --ways client,lua")
    results = []
    try:
        measure_all(options, results)
    except WrongAnswer as error:
        finish(options, results)
        sys.exit(f"WRONG ANSWER: {error}")
    except KeyboardInterrupt:
        finish(options, results)
        sys.exit("interrupted: the tables hold what was finished")
    finish(options, results)


if __name__ == "__main__":
    main()
