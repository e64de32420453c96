"""The performance targets of the project, next to what was measured."""

import key_events
import latency
import streams
import trigger_half
import trigger_report
from cases import ROUND_TRIP
from machine import MIB
from ways import CLIENT, GEARS, LUA

K, M = 1_000, 1_000_000

WORDCOUNT_VS_LUA = 1.0
WORDCOUNT_VS_CLIENT = 2.0
HASHES_SLOWER_THAN_LUA = 1.5
REPARTITION_RECORDS_S = 300_000
COUNT_SLOWER_THAN_SCAN = 1.5
ROUND_TRIP_MS = 5.0
PING_P99_MS = 10.0
PING_MAX_MS = 100.0
MEMORY_FACTOR = 3
MEMORY_BASE_BYTES = 32 * MIB
# Cases that know their targets.
OF_ITS_OWN = {
    name: check
    for module in (trigger_report, trigger_half, key_events, streams, latency)
    for name, check in module.CHECKS.items()
}


def check(results):
    """Rows of (target, measured, met) for every target that these results can speak about."""
    rows = []
    for result in results:
        if result["case"] == ROUND_TRIP:
            median = result["ms"]["p50"]
            rows.append((f"round trip, median < {ROUND_TRIP_MS:g} ms", f"{median:.2f} ms", median < ROUND_TRIP_MS))
        elif result["case"] in OF_ITS_OWN:
            rows += OF_ITS_OWN[result["case"]](result)
        elif GEARS in result["ways"]:
            rows += CHECKS.get(result["case"], lambda _: [])(result)
        rows += ping(result)
    return rows


def wordcount(result):
    if result["keys"] < 100 * K:
        return []
    name, ways = f"wordcount {result['keys'] // K} k", result["ways"]
    rows = []
    for way, least, rival in (
        (LUA, WORDCOUNT_VS_LUA, "Lua"),
        (CLIENT, WORDCOUNT_VS_CLIENT, "the client script"),
    ):
        if way in ways:
            times = ways[way]["ratio"]
            rows.append((f"{name}: >= {least:g} times as fast as {rival}", f"{times:.2f}", times >= least))
    distinct = [run["distinct_bytes"] for run in result["warm_up"].values() if run["distinct_bytes"]]
    if distinct:
        limit = MEMORY_FACTOR * max(distinct) + MEMORY_BASE_BYTES
        peak = ways[GEARS]["peak_growth_bytes"]
        rows.append((f"{name}: memory above data < {limit / MIB:.1f} MiB", f"{peak / MIB:.1f} MiB", peak < limit))
    return rows


def hashes(result):
    if result["keys"] < M or LUA not in result["ways"]:
        return []
    times = 1 / result["ways"][LUA]["ratio"]
    text = f"hashes 1000 k: time <= {HASHES_SLOWER_THAN_LUA:g} x Lua"
    return [(text, f"{times:.2f} x", times <= HASHES_SLOWER_THAN_LUA)]


def repartition(result):
    if result["keys"] < M:
        return []
    rate = result["keys"] / result["ways"][GEARS]["median_s"]
    text = f"repartition 1000 k: >= {REPARTITION_RECORDS_S // K} k records/s"
    return [(text, f"{rate / K:.0f} k/s", rate >= REPARTITION_RECORDS_S)]


def count(result):
    """Against both bare scans: the one in Lua is the hard one."""
    rows = []
    for way, scan in ((CLIENT, "a client's SCAN"), (LUA, "SCAN in Lua")):
        if result["keys"] >= M and way in result["ways"]:
            times = 1 / result["ways"][way]["ratio"]
            text = f"count 1000 k: time <= {COUNT_SLOWER_THAN_SCAN:g} x {scan}"
            rows.append((text, f"{times:.2f} x", times <= COUNT_SLOWER_THAN_SCAN))
    return rows


def ping(result):
    shards = result.get("ping", {}).get(GEARS, {}).get("shards", {}).values()
    if not shards:
        return []
    name = f"{result['case']} {result['keys'] // K} k" if "keys" in result else result["case"]
    p99, worst = max(s["p99"] for s in shards), max(s["max"] for s in shards)
    met = p99 <= PING_P99_MS and worst <= PING_MAX_MS
    text = f"{name}: PING p99 <= {PING_P99_MS:g}, max <= {PING_MAX_MS:g} ms"
    return [(text, f"{p99:.2f}, {worst:.1f} ms", met)]


CHECKS = {"wordcount": wordcount, "hashes": hashes, "repartition": repartition, "count": count}
