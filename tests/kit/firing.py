"""Registrations that events fire: what they count, waiting for what they do in the background."""

from registrations import COUNTERS
from replies import SOON_S, executions_of, flat_map, wait_until
from wire import Error

# A handler that notes what it sees as `event:key:type` in the list `seen`; its own writes are left out.
NOTE = "lambda x: execute('rpush', 'seen', '%s:%s:%s' % (x['event'], x['key'], x['type']))"


def rows(wire):
    """Id -> (reader, RegistrationData) of all registrations."""
    found = {}
    for row in wire.ok("RG.DUMPREGISTRATIONS"):
        fields = flat_map(row)
        found[fields["id"]] = (fields["reader"].decode(), flat_map(fields["RegistrationData"]))
    return found


def data(wire, number=0):
    """RegistrationData of one registration, by its place in the dump."""
    return list(rows(wire).values())[number][1]


def counters(wire, number=0):
    """Triggered, succeeded, failed, aborted."""
    found = data(wire, number)
    return tuple(found[name] for name in COUNTERS)


def settled(wire, timeout=SOON_S):
    """Returns when everything that was triggered is over."""

    def over():
        counts = [[fields[name] for name in COUNTERS] for _, fields in rows(wire).values()]
        return all(count[0] == sum(count[1:]) for count in counts)

    wait_until(over, "what was triggered being over", timeout)


def large_results(wire, size):
    """How many of the kept executions have a result of more than `size` bytes."""
    replies = [wire.call("RG.GETRESULTS", name) for name in executions_of(wire)]
    # The oldest ones leave while this looks.
    gone = Error("execution plan does not exist")
    results = [reply[0] for reply in replies if reply != gone]
    return sum(len(result[0]) > size for result in results if result)


def listed(wire, key="seen"):
    """A list, as text."""
    return [one.decode() for one in wire.ok("LRANGE", key, 0, -1)]


def wait_list(wire, wanted, key="seen"):
    """Returns when the list holds exactly this."""
    try:
        wait_until(lambda: listed(wire, key) == list(wanted), f"{key} being {wanted}")
    except TimeoutError as error:
        raise AssertionError(f"{key} is {listed(wire, key)}, not {wanted}") from error
