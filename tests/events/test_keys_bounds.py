"""The bounds of what waits: writers are slowed down before anything is lost, and INFO shows it."""

import threading

from firing import counters, settled
from registrations import register
from replies import wait_until
from wire import Simple, Wire, encode

# `EVENTS_SLOW` in the table of bounds.
SLOW = 100_000
MORE = 2_000


def numbers(wire):
    lines = wire.ok("INFO", "rg").decode().split("\r\n")
    return {name: int(value) for name, _, value in (line.partition(":") for line in lines) if value.isdecimal()}


def test_writers_wait_for_room(server, wire, other_wire):
    register(
        wire,
        """
import time
def hold(x):
    while execute('exists', 'gate') == 0:
        time.sleep(0.01)
GB().foreach(hold).register('k*', mode='async_local', eventTypes=['set'], readValue=False)
""",
    )
    refused = numbers(wire)["rg_events_refused"]
    replies = []

    def write():
        with Wire(server.port) as writer:
            for start in range(0, SLOW + MORE, 1000):
                writer.send_raw(b"".join(encode(("SET", f"k{start + i}", "1")) for i in range(1000)))
                replies.extend(writer.read() for _ in range(1000))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_until(lambda: numbers(other_wire)["rg_events_waiting"] >= SLOW, "the queue being full")
        # Everybody else is served, also by writes that fire nothing.
        assert other_wire.ok("SET", "other", "1") == Simple("OK")
        assert numbers(other_wire)["rg_events_waiting"] <= SLOW + 1000
        assert len(replies) < SLOW + MORE
    finally:
        other_wire.ok("SET", "gate", "1")
        thread.join()
    assert replies == [Simple("OK")] * (SLOW + MORE)
    settled(wire)
    assert counters(wire) == (SLOW + MORE, SLOW + MORE, 0, 0)
    after = numbers(wire)
    assert after["rg_events_waiting"] == 0 and after["rg_events_refused"] == refused
    assert SLOW <= after["rg_events_waiting_most"] <= SLOW + 1000


def test_a_run_that_holds_the_interpreter_in_long_calls_does_not_starve_events(server, wire):
    """Between two such calls many events are handled, not one."""
    register(wire, "GB().foreach(lambda x: None).register('k*', mode='async_local', eventTypes=['set'])")
    calls, events = 12, 2000
    with Wire(server.port) as other:
        other.send(
            "RG.PYEXECUTE",
            "def hog(x):\n"
            "    execute('incr', 'hogs')\n"
            "    return sum(range(6_000_000))\n"
            f"GB('PythonReader').map(hog).count().run(lambda: iter(range({calls})))",
        )
        wait_until(lambda: int(wire.ok("GET", "hogs") or 0) >= 1, "the first call")
        for number in range(events):
            wire.send("SET", f"k{number}", "1")
        assert all(wire.read() == Simple("OK") for _ in range(events))
        other.read(timeout=60)
    assert counters(wire)[1] >= 20 * calls
    settled(wire)
    assert counters(wire) == (events, events, 0, 0)
