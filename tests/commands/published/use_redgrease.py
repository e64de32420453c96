"""Run by test_published_clients.py: what redgrease makes of the replies of the server at the given port, as JSON."""

import json
import sys

import redgrease.client
import redis
from redgrease.data import ExecLocality

TRIGGER = "GB('CommandReader').map(lambda x: x[1]).register(trigger='published', mode='sync')"
ERROR_SCRIPT = "GB('ShardsIDReader').map(lambda x: y).run()"


def text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def refusal(gears, script):
    """The error of a script, and whether redgrease could read its traceback."""
    try:
        gears.pyexecute(script)
    except Exception as error:
        return {"class": type(error).__name__, "text": str(error)}
    return None


def execution_commands(gears):
    execution = gears.pyexecute("GB('ShardsIDReader').map(lambda x: 'a').run()", unblocking=True)
    blocking = gears.getresultsblocking(execution)
    results = gears.getresults(execution)
    listed = [row for row in gears.dumpexecutions() if text(row.executionId) == text(execution)]
    plans = gears.getexecution(execution, ExecLocality.Shard)
    (plan,) = plans.values()
    report = {
        "id": text(execution),
        "shard_id": text(execution.shard_id),
        "sequence": int(execution.sequence),
        "blocking": repr(blocking.value),
        "results": repr(results.value),
        "listed": [[str(row.status), bool(row.registered)] for row in listed],
        "plan": {
            "shards": [text(shard) for shard in plans],
            "status": str(plan.status),
            "results": plan.results,
            "errors": list(plan.errors),
            "shards_received": plan.shards_received,
            "steps": [[text(getattr(step.type, "value", step.type)), text(step.name)] for step in plan.steps],
        },
        "everywhere": sorted(text(shard) for shard in gears.getexecution(execution)),
        "aborted": gears.abortexecution(execution),
        "dropped": gears.dropexecution(execution),
    }
    return report


def config_commands(gears):
    config = {text(name): value for name, value in gears.config.get().items()}
    kinds = {name: type(value).__name__ for name, value in config.items()}
    gears.config.MaxExecutions = 123
    changed = gears.config.MaxExecutions
    gears.config.MaxExecutions = 1000
    return {"config": {name: repr(value) for name, value in config.items()}, "kinds": kinds, "changed": changed}


def cluster_info(gears):
    info = gears.infocluster()
    if info is None:
        return None
    shards = [[text(shard.id), text(shard.ip), shard.port, shard.minHslot, shard.maxHslot] for shard in info.shards]
    return {"my_id": text(info.my_id), "shards": shards}


def registrations(gears, port):
    """Its reader of RG.DUMPREGISTRATIONS knows only the shape of servers up to 1.2.1: the id is read without it."""
    made = gears.pyexecute(TRIGGER)
    ids = [row[1] for row in redis.Redis(host="127.0.0.1", port=port).execute_command("RG.DUMPREGISTRATIONS")]
    return {
        "made": repr(getattr(made, "value", made)),
        "answer": text(gears.trigger("published", "a").value),
        "again": refusal(gears, TRIGGER)["class"],
        "removed": [gears.unregister(one) for one in ids],
    }


def main(port):
    client = redgrease.client.Redis(host="127.0.0.1", port=port)
    gears = client.gears
    nothing, several = gears.pyexecute("x = 1"), gears.pyexecute("GB('PythonReader').run(lambda: iter('ab'))")
    failed = gears.pyexecute(ERROR_SCRIPT)
    stats = gears.pystats()
    return {
        "version": list(gears.gears_version()),
        "nothing": repr(getattr(nothing, "value", nothing)),
        "several": sorted(map(text, several.value)),
        "step_errors": len(failed.errors),
        "refusal": refusal(gears, "raise Exception('foo')"),
        "execution": execution_commands(gears),
        "config": config_commands(gears),
        "cluster": cluster_info(gears),
        "registrations": registrations(gears, port),
        "refreshed": gears.refreshcluster(),
        "stats": [stats.TotalAllocated, stats.PeakAllocated, stats.CurrAllocated],
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
