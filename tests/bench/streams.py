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
# One call of Lua adds this many, which takes less than the time after which a script counts as slow.
ADDED_AT_ONCE = 100_000
ADD = "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'field', 'value of some length') end"


def script(mode):
    return f"GB('StreamReader').foreach(lambda x: None).register('{STREAM}', batch={BATCH}, mode='{mode}')"


def fill(client):
    client.flushall()
    for _ in range(ENTRIES // ADDED_AT_ONCE):
        client.eval(ADD, 1, STREAM, ADDED_AT_ONCE)


def timed(work):
    start = time.perf_counter()
    work()
    return ENTRIES / (time.perf_counter() - start)


def xread(client):
    """Reads all of it, as a consumer that keeps up would: COUNT 100, each time behind the last."""
    last, count = "0-0", 0
    while found := client.execute_command("XREAD", "COUNT", str(BATCH), "STREAMS", STREAM, last):
        entries = found[0][1]
        count, last = count + len(entries), entries[-1][0]
    if count != ENTRIES:
        raise WrongAnswer(f"XREAD gave {count} entries")


def run(client):
    text = f"GB('StreamReader').foreach(lambda x: None).count().run('{STREAM}')"
    found = client.execute_command("RG.PYEXECUTE", text)
    if found != [[str(ENTRIES).encode()], []]:
        raise WrongAnswer(f"the run gave {found!r}")


def wait_consumed(client):
    deadline = time.monotonic() + WAIT_S
    while client.xlen(STREAM):
        if time.monotonic() > deadline:
            raise WrongAnswer(f"{client.xlen(STREAM)} entries are left")
        time.sleep(POLL_S)
    (row,) = client.execute_command("RG.DUMPREGISTRATIONS")
    data = dict(zip(row[7][::2], row[7][1::2], strict=True))
    if data[b"numFailures"] or data[b"numAborted"] or data[b"numSuccess"] < ENTRIES // BATCH:
        raise WrongAnswer(f"batches were lost: {data}")


def unregister(client):
    for row in client.execute_command("RG.DUMPREGISTRATIONS"):
        client.execute_command("RG.UNREGISTER", row[1])


def register(client, mode):
    if client.execute_command("RG.PYEXECUTE", script(mode)) != b"OK":
        raise WrongAnswer(f"{mode} can not be registered")


def present(client, mode):
    def consume():
        register(client, mode)
        wait_consumed(client)

    rate = timed(consume)
    unregister(client)
    return rate


def live(client, port, mode):
    """50 clients add with a pipeline of 16; the time ends when all is consumed."""
    program = shutil.which("redis-benchmark")
    if program is None:
        raise RuntimeError("redis-benchmark is missing: it comes with redis-tools")
    client.flushall()
    register(client, mode)
    argv = [program, "-h", localcluster.HOST, "-p", str(port), "-c", "50", "-P", "16", "-n", str(ENTRIES), "-q"]
    argv += ["XADD", STREAM, "*", "field", "value of some length"]

    def add():
        subprocess.run(argv, capture_output=True, check=True, timeout=600)
        wait_consumed(client)

    rate = timed(add)
    unregister(client)
    return rate


def measure(case, say):
    with fleets.running(1, with_module=True) as fleet:
        client, port, server = fleet.clients[0], fleet.ports[0], fleet.servers[0]
        ways = (RUN,) if case == "stream_run" else MODES
        rounds = {way: [] for way in (XREAD, *ways)}
        grown = []
        for _ in range(ROUNDS):
            fill(client)
            rounds[XREAD].append(timed(lambda: xread(client)))
            for way in ways:
                if way == RUN:
                    machine.reset_peak(server.pid)
                    before = server.rss_bytes()
                    rounds[way].append(timed(lambda: run(client)))
                    grown.append(server.peak_rss_bytes() - before)
                elif case == "stream_live":
                    rounds[way].append(live(client, port, way))
                else:
                    fill(client)
                    rounds[way].append(present(client, way))
                say(f"{case}: {way} {rounds[way][-1] / K:.0f} k/s")
        about = machine.describe(client)
    rival = rounds[XREAD]
    return {
        "case": case,
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


CASES = {case: lambda say, case=case: measure(case, say) for case in TARGETS}


def render(results):
    """Parts of the report."""
    rows = [
        [f"{result['case']}: {way}", f"{one['rate'] / K:.0f} k/s", f"{one['ratio']:.2f}"]
        for result in results
        for way, one in result.get("ways_of_consuming", {}).items()
    ]
    head = [f"{ENTRIES:,} entries, batch {BATCH}, medians", "rate", "of XREAD by a client"]
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
