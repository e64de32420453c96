"""Turns results into aligned text tables: figures, and which targets are met."""

import key_events
import latency
import machine
import streams
import trigger_half
import trigger_report
from cases import ROUND_TRIP
from measure import IDLE
from tables import table
from ways import CLIENT, GEARS, LUA

LABEL = {GEARS: "OxiGears", CLIENT: "client script", LUA: "Lua per shard", IDLE: "idle"}
K = 1000
NOISY = "~"


def size_text(n):
    for unit, factor in (("M", K * K), ("k", K)):
        if n >= factor and n % factor == 0:
            return f"{n // factor} {unit}"
    return str(n)


def seconds(way):
    if way is None:
        return "-"
    return f"{way['median_s']:.3f} s" + (NOISY if way["spread"] > machine.SPREAD_LIMIT else "")


def ratio(way):
    if way is None or "ratio" not in way:
        return "-"
    low, high = way["ratio_range"]
    return f"{way['ratio']:.2f} ({low:.2f}-{high:.2f})"


def mib(number):
    return f"{number / machine.MIB:.1f}"


def machine_line(about):
    module = about["module"]
    built = " ".join(str(value) for value in module.values()) if module else "not loaded"
    return (
        f"Machine: {about['cores']} cores ({about['cpu']}), {about['memory_gib']} GiB, "
        f"Linux {about['kernel']}\n"
        f"Server:  {about['server']}, module rg: {built}\n"
        f"Client:  Python {about['python']}, {about['redis_py']}, its default parser for all three ways"
    )


def times_table(results):
    rows = []
    for result in results:
        ways = result["ways"]
        own = ways.get(GEARS)
        rows.append(
            [
                result["case"],
                size_text(result["keys"]),
                seconds(own),
                seconds(ways.get(CLIENT)),
                seconds(ways.get(LUA)),
                ratio(ways.get(CLIENT)),
                ratio(ways.get(LUA)),
                f"{result['keys'] / own['median_s'] / K:.0f} k/s" if own else "-",
            ]
        )
    names = [LABEL[way] for way in (GEARS, CLIENT, LUA)]
    return table(["case", "keys", *names, "client / OxiGears", "Lua / OxiGears", "OxiGears rate"], rows)


def cpu_and_memory_table(results):
    head = ["case", "keys", "way", "server CPU", "client CPU", "peak MiB per shard"]
    rows = [
        [
            result["case"],
            size_text(result["keys"]),
            LABEL[way],
            f"{figures['server_cpu_s']:.2f} s",
            f"{figures['client_cpu_s']:.2f} s",
            mib(figures["peak_growth_bytes"]),
        ]
        for result in results
        for way, figures in result["ways"].items()
    ]
    return table(head, rows, left=(0, 2))


def ping_rows(result):
    """The worst shard of each phase."""
    for phase in (IDLE, GEARS, CLIENT, LUA):
        stats = result["ping"].get(phase)
        if stats is None or not stats["shards"]:
            continue
        shards = list(stats["shards"].values())
        worst = {name: max(shard[name] for shard in shards) for name in ("p50", "p99", "max")}
        refused = sum(shard["refused"] for shard in shards)
        size = size_text(result["keys"]) if "keys" in result else "-"
        yield [
            result["case"],
            size,
            LABEL[phase],
            min(shard["n"] for shard in shards),
            *(f"{worst[name]:.2f}" for name in ("p50", "p99", "max")),
            f"{stats['late']['p99']:.2f}",
            refused or "-",
        ]


def ping_table(results):
    head = [
        "case",
        "keys",
        "meanwhile",
        "PINGs a shard",
        "p50 ms",
        "p99 ms",
        "max ms",
        "pinger late p99",
        "BUSY",
    ]
    return table(head, [row for result in results for row in ping_rows(result)], left=(0, 2))


def round_trip_text(result):
    own, ping = result["ms"], result["client_ping_ms"]
    return (
        f"Round trip of GB('ShardsIDReader').run() on 3 shards, {result['runs']} runs: "
        f"median {own['p50']:.2f} ms, p99 {own['p99']:.2f} ms,\nmax {own['max']:.2f} ms "
        f"(a PING of the same client: median {ping['p50']:.3f} ms)"
    )


def warnings(results):
    """Reasons to trust the times less."""
    found = []
    if results and results[0]["machine"]["load_average"] > machine.CORES * 0.75:
        found.append(f"the load average was {results[0]['machine']['load_average']:.1f} early in the run")
    for result in results:
        name = f"{result['case']} {size_text(result['keys'])}" if "keys" in result else result["case"]
        noise = result.get("noise", {})
        if noise.get("foreign", 0) > machine.FOREIGN_LIMIT:
            found.append(f"{name}: other processes used {noise['foreign']:.0%} of the machine")
        if noise.get("steal", 0) > machine.STEAL_LIMIT:
            found.append(f"{name}: the host took {noise['steal']:.0%} of the machine")
        late = result.get("ping", {}).get(IDLE, {}).get("late", {}).get("p99", 0)
        if late > machine.LATE_LIMIT_MS:
            found.append(f"{name}: on the idle machine the pinging process woke {late:.1f} ms late (p99)")
        for way, figures in result.get("ways", {}).items():
            if figures["spread"] > machine.SPREAD_LIMIT:
                found.append(f"{name}: the times of '{LABEL[way]}' differ by {figures['spread']:.0%}")
    return found


def render(results, targets):
    cases = [result for result in results if "ways" in result]
    pinged = [result for result in results if "ping" in result]
    parts = [machine_line(results[0]["machine"])]
    if cases:
        pairs = sorted({result["pairs"] for result in cases})
        parts += [
            f"Times: median of {'/'.join(map(str, pairs))} rounds in which the ways take turns. "
            "A ratio above 1 means that\nOxiGears is faster; in brackets its range over the rounds. "
            f"{NOISY} marks times whose range is more than\n{machine.SPREAD_LIMIT:.0%} of their median. "
            + ("The answers of all ways were compared and are equal." if len(cases[0]["ways"]) > 1 else ""),
            times_table(cases),
            "Processor time of all servers and of the client, and the most memory that any shard took above\n"
            "its data (the highest VmHWM of any run less VmRSS before that run):",
            cpu_and_memory_table(cases),
        ]
    parts += [round_trip_text(result) for result in results if result["case"] == ROUND_TRIP]
    for module in (trigger_report, trigger_half, key_events, streams, latency):
        parts += module.render(results)
    if pinged:
        parts += ["PING on every shard each millisecond from a process of its own; the worst shard:"]
        parts += [ping_table(pinged)]
    if targets:
        rows = [[text, measured, "yes" if met else "NO"] for text, measured, met in targets]
        parts += ["Targets:", table(["target", "measured", "met"], rows)]
    noise = warnings(results)
    if noise:
        head = "WARNING: this machine was noisy; trust the ratios, not the times:"
        parts.append("\n".join([head, *(f"  {line}" for line in noise)]))
    return "\n\n".join(parts)
