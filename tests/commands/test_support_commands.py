"""RG.PYSTATS, RG.DUMPPLUGINS and the commands that only say that they are gone."""

import pytest
from replies import flat_map, results_of, wait_until
from wire import Simple

STATS = ("TotalAllocated", "PeakAllocated", "CurrAllocated")


def stats(wire, *args):
    fields = flat_map(wire.ok("RG.PYSTATS", *args), STATS)
    assert all(isinstance(value, int) and value >= 0 for value in fields.values()), fields
    return fields


def test_pystats_count_the_interpreters_memory(wire):
    before = stats(wire)
    assert before["TotalAllocated"] >= before["PeakAllocated"] >= before["CurrAllocated"] > 0
    size = 50_000_000
    script = f"import sys\nsys.kept = 'x' * {size}"
    assert wire.call("RG.PYEXECUTE", script) == Simple("OK")
    held = stats(wire, "ignored")
    assert held["CurrAllocated"] >= before["CurrAllocated"] + size // 2
    assert wire.call("RG.PYEXECUTE", "import sys\ndel sys.kept") == Simple("OK")
    wait_until(lambda: stats(wire)["CurrAllocated"] < held["CurrAllocated"] - size // 2, "the memory coming back")
    after = stats(wire)
    assert after["PeakAllocated"] >= held["CurrAllocated"]
    assert after["TotalAllocated"] >= before["TotalAllocated"] + size


def test_pystats_stay_zero_when_switched_off(fresh_wire):
    wire = fresh_wire("OverridePythonAllocators", 0)
    assert results_of(wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').run()")) == [b"1"]
    assert stats(wire) == dict.fromkeys(STATS, 0)


@pytest.mark.parametrize("args", [[], ["any", "thing"]])
def test_dumpplugins(wire, args):
    assert wire.call("RG.DUMPPLUGINS", *args) == [[b"GearsPythonPlugin", 10000]]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("RG.PYFREEINTERPRETER", b"Free interpreter is not longer supported"),
        ("RG.PYEXECUTEREMOTE", b"Execute remote is not longer supported"),
    ],
)
def test_deprecated_commands(wire, command, text):
    assert wire.call(command) == text
    assert wire.call(command, "any", "thing") == text
