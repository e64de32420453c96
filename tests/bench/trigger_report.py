"""The texts and targets of the cases in triggers.py."""

from machine import MIB
from tables import table
from triggers import ASYNC, CASES, EVALSHA, LOCAL, SYNC

K = 1000
SYNC_RATE_RATIO = 0.7
SYNC_P99_RATIO = 2.0
LOCAL_RATE = 35_000
ASYNC_RATE = 8_000
ASYNC_MEDIAN_MS = 6.0
CHANGE_MS = 20.0
MANY_S = 10.0
MANY_BYTES = 400 * MIB
IDLE_PERCENT = 0.5
LABEL = {
    EVALSHA: "EVALSHA of the same in Lua",
    SYNC: "RG.TRIGGER, sync",
    LOCAL: "RG.TRIGGER, async_local",
    ASYNC: "RG.TRIGGER, async, 3 shards",
}


def render(results):
    """Parts of the report."""
    found = {result["case"]: result for result in results if result["case"] in CASES}
    calls = [
        [LABEL[way], f"{one['rate'] / K:.1f} k/s", *(f"{one[name]:.2f}" for name in ("p50", "p99", "max"))]
        for name in ("trigger", "trigger_async")
        if name in found
        for way, one in found[name]["ways_of_calling"].items()
    ]
    parts = []
    if calls:
        head = ["50 clients without pipelining, medians of the rounds", "rate", "p50 ms", "p99 ms", "max ms"]
        parts.append(table(head, calls))
    if "register" in found:
        parts.append(changes(found["register"]))
    if "many" in found:
        parts.append(many(found["many"]))
    if "idle" in found:
        parts.append(idle(found["idle"]))
    return parts


def changes(result):
    rows = [[kind, *(f"{times[name]:.2f}" for name in ("p50", "p99", "max"))] for kind, times in result["ms"].items()]
    head = ["one change after the other, 3 shards", "p50 ms", "p99 ms", "max ms"]
    return f"{table(head, rows)}\n(one fsync of a small write there: median {result['fsync_ms']:.2f} ms)"


def many(result):
    seconds = {what: f"{found:.2f} s" for what, found in result["seconds"].items()}
    return (
        f"{result['count']} registrations of one script on 3 shards: OK after {seconds['register']}, on all shards "
        f"after {seconds['everywhere']};\nall three killed and restarted: {seconds['restart']}; a node that lost its "
        f"log has them again after {seconds['snapshot']};\n{result['rss_growth_bytes'] / MIB:.1f} MiB of memory and "
        f"{result['disk_bytes'] / MIB:.1f} MiB of disk on each shard"
    )


def idle(result):
    busiest = sorted(result["threads"].items(), key=lambda item: -item[1])[:5]
    return (
        f"Idle shard of three: {result['with_module']:.2f} % of a core with the module (worst {result['worst']:.2f} %),"
        f"\n{result['plain']:.2f} % of a plain node beside it; by thread: "
        + ", ".join(f"{name} {percent:.2f} %" for name, percent in busiest)
    )


# --- targets -----------------------------------------------------------------------------------------------------


def check_trigger(result):
    ratio, p99, local = result["rate_ratio"], result["p99_ratio"], result["ways_of_calling"][LOCAL]["rate"]
    return [
        (f"sync trigger: rate >= {SYNC_RATE_RATIO:g} x EVALSHA", f"{ratio:.2f} x", ratio >= SYNC_RATE_RATIO),
        (f"sync trigger: p99 <= {SYNC_P99_RATIO:g} x EVALSHA", f"{p99:.2f} x", p99 <= SYNC_P99_RATIO),
        (f"async_local trigger: >= {LOCAL_RATE // K} k/s", f"{local / K:.1f} k/s", local >= LOCAL_RATE),
    ]


def check_async(result):
    one = result["ways_of_calling"][ASYNC]
    return [
        (f"async trigger, 3 shards: >= {ASYNC_RATE // K} k/s", f"{one['rate'] / K:.1f} k/s", one["rate"] >= ASYNC_RATE),
        (
            f"async trigger, 3 shards: median < {ASYNC_MEDIAN_MS:g} ms",
            f"{one['p50']:.2f} ms",
            one["p50"] < ASYNC_MEDIAN_MS,
        ),
    ]


def check_register(result):
    return [
        (f"{kind}, 3 shards, fsync: median < {CHANGE_MS:g} ms", f"{times['p50']:.2f} ms", times["p50"] < CHANGE_MS)
        for kind, times in result["ms"].items()
    ]


def check_many(result):
    rows = [
        (f"{result['count']} registrations: {what} < {MANY_S:g} s", f"{seconds:.2f} s", seconds < MANY_S)
        for what, seconds in result["seconds"].items()
    ]
    grown = result["rss_growth_bytes"]
    text = f"{result['count']} registrations: memory < {MANY_BYTES // MIB} MiB"
    return [*rows, (text, f"{grown / MIB:.0f} MiB", grown < MANY_BYTES)]


def check_idle(result):
    cost = result["with_module"] - result["plain"]
    return [(f"idle shard: < {IDLE_PERCENT:g} % of a core", f"{cost:.2f} %", cost < IDLE_PERCENT)]


CHECKS = {
    "trigger": check_trigger,
    "trigger_async": check_async,
    "register": check_register,
    "many": check_many,
    "idle": check_idle,
}
