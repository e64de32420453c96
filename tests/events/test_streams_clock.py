"""The time of day of a server is set back, or forward: what streams wait for comes when it was to come."""

import pytest
import shifted_clock
from replies import wait_until
from streams import NOTE, add, register_stream, wait_length, wait_seen
from wire import Wire

pytestmark = pytest.mark.matrix

HOUR_S = 3600
# Longer than any test.
NEVER_S = 600
GOOD = "foreach(lambda x: execute('incr', 'tries:' + x['key']) and execute('exists', 'good') or flat_error('bad'))"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return shifted_clock.build(tmp_path_factory.mktemp("clock"))


@pytest.fixture
def clock(library, tmp_path):
    return shifted_clock.ShiftedClock(library, tmp_path)


@pytest.fixture
def wire(clock, fresh, monkeypatch):
    """A connection to a server that has this clock."""
    with monkeypatch.context() as patch:
        for name, value in clock.environment.items():
            patch.setenv(name, value)
        server = fresh()
    with Wire(server.port) as connection:
        yield connection


@pytest.mark.parametrize("seconds", [-HOUR_S, HOUR_S], ids=["back", "forward"])
def test_streams_do_not_go_by_the_time_of_day(clock, wire, seconds):
    retry = {"mode": "async_local", "onFailedPolicy": "retry"}
    register_stream(wire, GOOD, "retried", onFailedRetryInterval=1, **retry)
    register_stream(wire, GOOD, "failed", onFailedRetryInterval=NEVER_S, **retry)
    register_stream(wire, NOTE, "soon", mode="async_local", batch=3, duration=300)
    register_stream(wire, NOTE, "late", mode="async_local", batch=3, duration=NEVER_S * 1000)
    for key in ("failed", "retried"):
        add(wire, key, "1-1")
        wait_until(lambda key=key: wire.ok("GET", f"tries:{key}") == b"1", "the first try")
    add(wire, "late", "1-1")
    add(wire, "soon", "2-1")
    clock.shift(wire, seconds)
    wire.ok("SET", "good", "1")
    # These have been waiting since before.
    wait_seen(wire, ["2-1"])
    wait_length(wire, "retried", 0)
    # This one begins to wait now.
    add(wire, "soon", "2-2")
    wait_seen(wire, ["2-1", "2-2"])
    assert wire.ok("XLEN", "late") == wire.ok("XLEN", "failed") == 1
    assert wire.ok("GET", "tries:failed") == b"1"
