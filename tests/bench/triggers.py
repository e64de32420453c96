"""Triggers and registrations: rates and latencies under redis-benchmark, changes on three shards, cost when idle.

Each function gives one result as plain data. The rival of a `sync` trigger is EVALSHA of a Lua script of the same
content on the same server; the two take turns.
"""

import contextlib
import csv
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import fleet as fleets
import machine
from ways import WrongAnswer

localcluster = fleets.localcluster

CLIENTS = 50
ROUNDS = 5
CALLS = 200_000
CALLS_CLUSTER = 60_000
WARM_UP = 10_000
CHANGES = 300
MANY = 10_000
IDLE_S = 20.0
WAIT_S = 300.0
ARGUMENT = "some-text"
LUA = "return {ARGV[1]}"
STEPS = "GB('CommandReader').map(lambda x: x[1])"
SYNC, LOCAL, ASYNC = "sync", "async_local", "async"
EVALSHA = "evalsha"


def trigger_script(mode):
    return f"{STEPS}.register(trigger='bench-{mode}', mode='{mode}')"


# --- redis-benchmark ---------------------------------------------------------------------------------------------


def benchmark(port, calls, *command):
    """Rate and latencies (ms) of one command, sent by 50 clients that wait for each reply."""
    program = shutil.which("redis-benchmark")
    if program is None:
        raise RuntimeError("redis-benchmark is missing: it comes with redis-tools")
    argv = [program, "-h", localcluster.HOST, "-p", str(port), "-c", str(CLIENTS), "-n", str(calls), "-e", "--csv"]
    done = subprocess.run([*argv, *command], capture_output=True, text=True, check=True, timeout=600)
    if "Error from server" in done.stdout + done.stderr:
        raise WrongAnswer(f"{command[0]} answered an error: {(done.stdout + done.stderr)[:500]}")
    (row,) = csv.DictReader(line for line in done.stdout.splitlines() if line.startswith('"'))
    names = {"p50": "p50_latency_ms", "p99": "p99_latency_ms", "max": "max_latency_ms"}
    return {"rate": float(row["rps"]), **{short: float(row[name]) for short, name in names.items()}}


def median_of(rounds):
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def expect(found, wanted, what):
    if found != wanted:
        raise WrongAnswer(f"{what} answered {found!r} instead of {wanted!r}")


def expect_no_failures(client, name, at_least):
    """Every call that redis-benchmark made was counted as a success."""
    for row in client.execute_command("RG.DUMPREGISTRATIONS"):
        data = dict(zip(row[7][::2], row[7][1::2], strict=True))
        if data[b"args"][1] == name.encode():
            if data[b"numFailures"] or data[b"numAborted"] or data[b"numSuccess"] < at_least:
                raise WrongAnswer(f"{name}: {data}")
            return
    raise WrongAnswer(f"{name} is not registered")


def measure_triggers(say, effort):
    """On one server: EVALSHA and a sync trigger in turns, then async_local."""
    rounds_wanted, calls = effort.rounds(ROUNDS), effort.count(CALLS)
    with fleets.running(1, with_module=True) as fleet:
        client, port = fleet.clients[0], fleet.ports[0]
        sha = client.script_load(LUA)
        expect(client.evalsha(sha, 0, ARGUMENT), [ARGUMENT.encode()], EVALSHA)
        for mode in (SYNC, LOCAL):
            expect(client.execute_command("RG.PYEXECUTE", trigger_script(mode)), b"OK", "registering")
            expect(client.execute_command("RG.TRIGGER", f"bench-{mode}", ARGUMENT), [ARGUMENT.encode()], mode)
        commands = {EVALSHA: ["EVALSHA", sha, "0"], SYNC: ["RG.TRIGGER", "bench-sync"]}
        commands[LOCAL] = ["RG.TRIGGER", f"bench-{LOCAL}"]
        rounds = {way: [] for way in commands}
        pids = [fleet.servers[0].pid, os.getpid()]
        for way, command in commands.items():
            benchmark(port, effort.count(WARM_UP), *command, ARGUMENT)
            say(f"trigger: {way} is warm")
        before = machine.Cpu.now(pids)
        for _ in range(rounds_wanted):
            for way, command in commands.items():
                rounds[way].append(benchmark(port, calls, *command, ARGUMENT))
                say(f"trigger: {way} {rounds[way][-1]['rate']:.0f}/s")
        for mode in (SYNC, LOCAL):
            expect_no_failures(client, f"bench-{mode}", rounds_wanted * calls)
        pairs = list(zip(rounds[SYNC], rounds[EVALSHA], strict=True))
        result = {
            "case": "trigger",
            "ways_of_calling": {way: median_of(measured) for way, measured in rounds.items()},
            "rate_ratio": statistics.median(own["rate"] / rival["rate"] for own, rival in pairs),
            "p99_ratio": statistics.median(own["p99"] / rival["p99"] for own, rival in pairs),
            "rounds": rounds,
            "noise": {"steal": machine.Cpu.now(pids).shares_since(before)["steal"]},
            "machine": machine.describe(client),
        }
    return result


def measure_async(say, effort):
    """Over three shards, asked on one of them."""
    rounds_wanted, calls = effort.rounds(ROUNDS), effort.count(CALLS_CLUSTER)
    with fleets.running(3, with_module=True) as fleet:
        client, port = fleet.clients[0], fleet.ports[0]
        expect(client.execute_command("RG.PYEXECUTE", trigger_script(ASYNC)), b"OK", "registering")
        expect(client.execute_command("RG.TRIGGER", "bench-async", ARGUMENT), [ARGUMENT.encode()] * 3, ASYNC)
        benchmark(port, effort.count(WARM_UP), "RG.TRIGGER", "bench-async", ARGUMENT)
        rounds = []
        for _ in range(rounds_wanted):
            rounds.append(benchmark(port, calls, "RG.TRIGGER", "bench-async", ARGUMENT))
            say(f"trigger_async: {rounds[-1]['rate']:.0f}/s, median {rounds[-1]['p50']:.2f} ms")
        expect_no_failures(client, "bench-async", rounds_wanted * calls)
        return {
            "case": "trigger_async",
            "ways_of_calling": {ASYNC: median_of(rounds)},
            "rounds": rounds,
            "machine": machine.describe(client),
        }


# --- changes of the registry -------------------------------------------------------------------------------------


def timed(call):
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def spread(times):
    times = sorted(times)
    return {"p50": statistics.median(times), "p99": times[int(0.99 * len(times))], "max": times[-1]}


def fsync_ms(folder):
    """What one sync of a small write takes there, for comparison."""
    path = Path(folder) / "sync-trial"
    times = []
    with path.open("wb", buffering=0) as file:
        for _ in range(100):
            file.write(b"x" * 500)
            times.append(timed(lambda: os.fsync(file.fileno())))
    path.unlink()
    return statistics.median(times)


def measure_registering(say, _effort):
    """One change after the other, asked on each of three shards in turn."""
    with fleets.running(3, with_module=True) as fleet:
        times = {"register": [], "upgrade": [], "unregister": []}

        def send(kind, client, *command):
            times[kind].append(timed(lambda: expect(client.execute_command(*command), b"OK", kind)))

        for i in range(CHANGES):
            first, second, third = (fleet.clients[(i + j) % 3] for j in range(3))
            script = "GB('CommandReader').map(lambda x: %d).register(trigger='t', mode='sync')"
            send("register", first, "RG.PYEXECUTE", script % i, "ID", "s")
            send("upgrade", second, "RG.PYEXECUTE", script % -i, "ID", "s", "UPGRADE")
            (row,) = third.execute_command("RG.DUMPREGISTRATIONS")
            send("unregister", third, "RG.UNREGISTER", row[1])
        result = {
            "case": "register",
            "ms": {kind: spread(found) for kind, found in times.items()},
            "fsync_ms": fsync_ms(fleet.servers[0].dir),
            "machine": machine.describe(fleet.clients[0]),
        }
    say("register: medians " + ", ".join(f"{kind} {found['p50']:.2f} ms" for kind, found in result["ms"].items()))
    return result


def wait_many(server):
    """Returns when the server has all registrations and its last one answers; how long that took, in seconds."""
    start = time.perf_counter()

    def there():
        return server.command("RG.TRIGGER", f"m{MANY - 1}", timeout=60) == [b"m%d" % (MANY - 1)]

    localcluster.wait_until(there, WAIT_S, f"{server} having all registrations")
    return time.perf_counter() - start


def restarted(servers):
    for server in servers:
        server.kill()
    start = time.perf_counter()
    for server in servers:
        server.spawn()
    for server in servers:
        server.wait_ready()
        wait_many(server)
    return time.perf_counter() - start


def disk_bytes(server):
    reply = server.command("RG.REGISTRY", timeout=60)
    return dict(zip(reply[::2], reply[1::2], strict=True))[b"diskBytes"]


def measure_many(say, _effort):
    """10,000 registrations of one script: made, restarted from the logs, sent to a node that lost its log."""
    script = f"""
def make(name):
    GB('CommandReader').map(lambda x: name).register(trigger=name, mode='sync')
for i in range({MANY}):
    make('m%d' % i)
"""
    with localcluster.LocalCluster(masters=3) as cluster:
        cluster.wait_mesh()
        servers = cluster.servers
        before = [server.rss_bytes() for server in servers]
        start = time.perf_counter()
        reply = servers[0].command("RG.PYEXECUTE", script, "ID", "many", timeout=WAIT_S)
        expect(reply, b"OK", "registering")
        register_s = time.perf_counter() - start
        for server in servers:
            wait_many(server)
        apply_s = time.perf_counter() - start
        grown = max(server.rss_bytes() - rss for server, rss in zip(servers, before, strict=True))
        say(f"many: OK after {register_s:.2f} s")
        restart_s = restarted(servers)
        say(f"many: all restarted in {restart_s:.2f} s")
        cluster.wait_cluster_ok()
        cluster.wait_mesh()
        # The node gets everything as a snapshot.
        servers[2].kill()
        shutil.rmtree(Path(servers[2].dir) / f"oxigears-{servers[2].node_id}")
        servers[2].start()
        snapshot_s = wait_many(servers[2])
        say(f"many: a lost log was replaced in {snapshot_s:.2f} s")
        with servers[0].client() as client:
            return {
                "case": "many",
                "count": MANY,
                "seconds": {
                    "register": register_s,
                    "everywhere": apply_s,
                    "restart": restart_s,
                    "snapshot": snapshot_s,
                },
                "rss_growth_bytes": grown,
                "disk_bytes": max(map(disk_bytes, servers)),
                "machine": machine.describe(client),
            }


# --- idle --------------------------------------------------------------------------------------------------------


def cpu_ns(server):
    """Processor time of all threads so far, exactly; by the names of the threads."""
    found = {}
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name = (task / "comm").read_text().strip()
            found[name] = found.get(name, 0) + int((task / "schedstat").read_text().split()[0])
    return found


def measure_idle(say, _effort):
    """Three shards with the module beside three plain nodes of the same server, all of them at rest."""
    with (
        localcluster.LocalCluster(masters=3) as own,
        localcluster.LocalCluster(masters=3, module=None) as plain,
    ):
        own.wait_mesh()
        expect(own.servers[0].command("RG.PYEXECUTE", trigger_script(SYNC), timeout=60), b"OK", "registering")
        # What a start still has to do is over by then.
        time.sleep(IDLE_S / 4)
        servers = [*own.servers, *plain.servers]
        before = [cpu_ns(server) for server in servers]
        time.sleep(IDLE_S)
        used = [
            {name: ns - old.get(name, 0) for name, ns in cpu_ns(server).items()}
            for server, old in zip(servers, before, strict=True)
        ]
        percent = [100 * sum(one.values()) / (IDLE_S * 1e9) for one in used]
        threads = {name: 100 * ns / (IDLE_S * 1e9) for name, ns in used[0].items() if ns}
        with own.servers[0].client() as client:
            about = machine.describe(client)
    result = {
        "case": "idle",
        "with_module": statistics.mean(percent[:3]),
        "plain": statistics.mean(percent[3:]),
        "worst": max(percent[:3]),
        "threads": threads,
        "machine": about,
    }
    say(f"idle: {result['with_module']:.2f} % of a core with the module, {result['plain']:.2f} % without")
    return result


CASES = {
    "trigger": measure_triggers,
    "trigger_async": measure_async,
    "register": measure_registering,
    "many": measure_many,
    "idle": measure_idle,
}
