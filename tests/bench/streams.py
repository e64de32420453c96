"""Streams: how fast registrations consume what is there and what is being added, and a batch run over a stream.

The rival is a plain client that reads the same stream by XREAD COUNT 100, in the same round. The report's texts and
targets are here as well.
"""

import shutil
import statistics
import subprocess
import time

import fleet as fleets
import machine
from tables import table
from ways import WrongAnswer

localcluster = fleets.localcluster

ENTRIES = 1_000_000
ROUNDS = 3
BATCH = 100
STREAM = "st"
WAIT_S = 300.0
POLL_S = 0.01
K = 1000
XREAD, RUN = "XREAD", "run"
MODES = ("sync", "async_local")
# Case -> way -> least rate, entries a second.
TARGETS = {
    "stream_present": dict.fromkeys(MODES, 300 * K),
    "stream_live": dict.fromkeys(MODES, 150 * K),
    "stream_run": {RUN: 400 * K},
}
RUN_BYTES = 64 * machine.MIB
# One call of Lua adds at most this many, which takes less than the time after which a script counts as slow.
ADDED_AT_ONCE = 100_000
ADD = "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'field', 'value of some length') end"


def script(mode):
    return f"GB('StreamReader').foreach(lambda x: None).register('{STREAM}', batch={BATCH}, mode='{mode}')"


def fill(client, entries):
    client.flushall()
    for start in range(0, entries, ADDED_AT_ONCE):
        client.eval(ADD, 1, STREAM, min(ADDED_AT_ONCE, entries - start))


def per_second(entries, work):
    start = time.perf_counter()
    work()
    return entries / (time.perf_counter() - start)


def xread(client, entries):
    """Reads all of it, as a consumer that keeps up would: COUNT 100, each time behind the last."""
    last, count = "0-0", 0
    while found := client.execute_command("XREAD", "COUNT", str(BATCH), "STREAMS", STREAM, last):
        page = found[0][1]
        count, last = count + len(page), page[-1][0]
    if count != entries:
        raise WrongAnswer(f"XREAD gave {count} entries")


def run(client, entries):
    text = f"GB('StreamReader').foreach(lambda x: None).count().run('{STREAM}')"
    found = client.execute_command("RG.PYEXECUTE", text)
    if found != [[str(entries).encode()], []]:
        raise WrongAnswer(f"the run gave {found!r}")


def wait_consumed(client, entries):
    deadline = time.monotonic() + WAIT_S
    while client.xlen(STREAM):
        if time.monotonic() > deadline:
            raise WrongAnswer(f"{client.xlen(STREAM)} entries are left")
        time.sleep(POLL_S)
    (row,) = client.execute_command("RG.DUMPREGISTRATIONS")
    data = dict(zip(row[7][::2], row[7][1::2], strict=True))
    if data[b"numFailures"] or data[b"numAborted"] or data[b"numSuccess"] < entries // BATCH:
        raise WrongAnswer(f"batches were lost: {data}")


def unregister(client):
    for row in client.execute_command("RG.DUMPREGISTRATIONS"):
        client.execute_command("RG.UNREGISTER", row[1])


def register(client, mode):
    if client.execute_command("RG.PYEXECUTE", script(mode)) != b"OK":
        raise WrongAnswer(f"{mode} can not be registered")


def present(client, entries, mode):
    def consume():
        register(client, mode)
        wait_consumed(client, entries)

    found = per_second(entries, consume)
    unregister(client)
    return found


def live(client, port, entries, mode):
    """50 clients add with a pipeline of 16; the time ends when all is consumed."""
    program = shutil.which("redis-benchmark")
    if program is None:
        raise RuntimeError("redis-benchmark is missing: it comes with redis-tools")
    client.flushall()
    register(client, mode)
    argv = [program, "-h", localcluster.HOST, "-p", str(port), "-c", "50", "-P", "16", "-n", str(entries), "-q"]
    argv += ["XADD", STREAM, "*", "field", "value of some length"]

    def add():
        subprocess.run(argv, capture_output=True, check=True, timeout=600)
        wait_consumed(client, entries)

    found = per_second(entries, add)
    unregister(client)
    return found


def measure(case, say, effort):
    entries = effort.count(ENTRIES, BATCH)
    ways = (RUN,) if case == "stream_run" else MODES
    rounds = {way: [] for way in (XREAD, *ways)}
    grown = []
    with fleets.running(1, with_module=True) as fleet:
        client, port, server = fleet.clients[0], fleet.ports[0], fleet.servers[0]
        for _ in range(effort.rounds(ROUNDS)):
            fill(client, entries)
            rounds[XREAD].append(per_second(entries, lambda: xread(client, entries)))
            for way in ways:
                if way == RUN:
                    machine.reset_peak(server.pid)
                    before = server.rss_bytes()
                    rounds[way].append(per_second(entries, lambda: run(client, entries)))
                    grown.append(server.peak_rss_bytes() - before)
                elif case == "stream_live":
                    rounds[way].append(live(client, port, entries, way))
                else:
                    fill(client, entries)
                    rounds[way].append(present(client, entries, way))
                say(f"{case}: {way} {rounds[way][-1] / K:.0f} k/s")
        about = machine.describe(client)
    return summary(case, entries, rounds, grown, about)


def summary(case, entries, rounds, grown, about):
    rival = rounds[XREAD]
    return {
        "case": case,
        "entries": entries,
        "ways_of_consuming": {
            way: {
                "rate": statistics.median(found),
                "ratio": statistics.median(one / other for one, other in zip(found, rival, strict=True)),
            }
            for way, found in rounds.items()
        },
        "grown_bytes": max(grown, default=0),
        "rounds": rounds,
        "machine": about,
    }


CASES = {case: lambda say, effort, case=case: measure(case, say, effort) for case in TARGETS}


def render(results):
    """Parts of the report."""
    rows = [
        [f"{result['case']}: {way}", f"{result['entries']:,}", f"{one['rate'] / K:.0f} k/s", f"{one['ratio']:.2f}"]
        for result in results
        for way, one in result.get("ways_of_consuming", {}).items()
    ]
    head = [f"streams, batch {BATCH}, medians", "entries", "rate", "of XREAD by a client"]
    return [table(head, rows)] if rows else []


def check(result):
    """Rows of (target, measured, met)."""
    rows = []
    for way, least in TARGETS[result["case"]].items():
        rate = result["ways_of_consuming"][way]["rate"]
        rows.append((f"{result['case']}, {way}: >= {least // K} k entries/s", f"{rate / K:.0f} k/s", rate >= least))
    if result["case"] == "stream_run":
        grown = result["grown_bytes"]
        text = f"stream_run: at most {RUN_BYTES // machine.MIB} MiB above the data"
        rows.append((text, f"{grown / machine.MIB:.0f} MiB", grown <= RUN_BYTES))
    return rows


CHECKS = {case: check for case in TARGETS}
