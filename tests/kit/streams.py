"""Stream registrations in tests: making them, what they show, and waiting for what they do."""

import time

from replies import SOON_S, flat_map, wait_until
from wire import Simple

DATA = (
    "mode",
    "numTriggered",
    "numSuccess",
    "numFailures",
    "numAborted",
    "lastRunDurationMS",
    "totalRunDurationMS",
    "avgRunDurationMS",
    "lastEstimatedLagMS",
    "avgEstimatedLagMS",
    "lastError",
    "args",
    "status",
)
ARGS = ("batchSize", "durationMS", "stream", "trimStream", "onFailedPolicy", "retryInterval")
OWN_GROUP = "__gears_consumer_group__:"
SHARED_GROUP = "__gears_consumer_group__"
# Notes each entry's id in a list.
NOTE = "foreach(lambda x: execute('rpush', 'seen', x['id']))"
# Entries in one script that adds many.
ADDED_AT_ONCE = 5000


def script(steps, prefix, reader="GB('StreamReader')", **options):
    words = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"{reader}.{steps}.register({prefix!r}{words})"


def register(wire, text, *options):
    assert wire.call("RG.PYEXECUTE", text, *options) == Simple("OK")


def register_stream(wire, steps, prefix, *options, **words):
    register(wire, script(steps, prefix, **words), *options)


def rows(wire):
    """(id, data) of each registration, the data by names."""
    found = []
    for row in wire.ok("RG.DUMPREGISTRATIONS"):
        fields = flat_map(row)
        if fields["reader"] == b"StreamReader":
            found.append((fields["id"], flat_map(fields["RegistrationData"], DATA)))
    return found


def data(wire):
    ((_, fields),) = rows(wire)
    return fields


def status(wire):
    return data(wire)["status"].decode()


def counters(wire):
    fields = data(wire)
    return tuple(fields[name] for name in DATA[1:5])


def only_id(wire):
    ((found, _),) = rows(wire)
    return found


def add(wire, key, *ids):
    for one in ids:
        wire.ok("XADD", key, one, "f", "v")


def fill(wire, key, first, last):
    """Adds entries that are numbered so."""
    text = "for i = ARGV[1], ARGV[2] do redis.call('XADD', KEYS[1], '1-' .. string.format('%d', i), 'n', i) end"
    for at in range(first, last + 1, ADDED_AT_ONCE):
        wire.ok("EVAL", text, "1", key, at, min(at + ADDED_AT_ONCE - 1, last))


def seen(wire, key="seen"):
    return [one.decode() for one in wire.ok("LRANGE", key, "0", "-1")]


def wait_seen(wire, wanted, key="seen"):
    """Returns when exactly these have been seen, in this order."""
    wanted = list(wanted)
    wait_until(lambda: len(seen(wire, key)) >= len(wanted), f"{len(wanted)} elements in {key}")
    assert seen(wire, key) == wanted


def looks(look, last):
    """What is seen by who looks again and again without a pause, up to `last`."""
    found, deadline = [look()], time.monotonic() + SOON_S
    while found[-1] != last:
        assert time.monotonic() < deadline, f"{found[-1]} instead of {last}"
        found.append(look())
    return found


def wait_length(wire, key, length):
    wait_until(lambda: wire.ok("XLEN", key) == length, f"{key} having {length} entries")


def wait_status(wire, wanted):
    wait_until(lambda: status(wire) == wanted, f"status {wanted}")


def wait_counters(wire, wanted):
    found = []

    def reached():
        found[:] = [counters(wire)]
        return found[0] == wanted

    try:
        wait_until(reached, f"counters {wanted}")
    except TimeoutError as error:
        raise AssertionError(f"counters {found[0]} instead of {wanted}") from error


def groups(wire, key):
    """Name -> fields of the consumer groups of a stream."""
    found = [flat_map(group) for group in wire.ok("XINFO", "GROUPS", key)]
    return {group["name"].decode(): group for group in found}


def only_group(wire, key):
    (group,) = groups(wire, key).values()
    return group
