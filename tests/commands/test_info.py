"""What INFO shows of the module."""

import pytest
from replies import Gate, results_of, start, wait_done, wait_until
from wire import Simple

STATS = {"rg_TotalAllocated", "rg_PeakAllocated", "rg_CurrAllocated"}


def sections(wire, *names):
    """Section -> field -> text of INFO; the sections of modules keep their names."""
    found, section = {}, None
    for line in wire.ok("INFO", *names).decode().splitlines():
        if line.startswith("# "):
            section = found.setdefault(line[2:], {})
        elif line:
            field, _, text = line.partition(":")
            section[field] = text
    return found


def ours(wire, *names):
    return {name: fields for name, fields in sections(wire, *names).items() if name.startswith("rg")}


@pytest.mark.parametrize("name", ["rg", "modules", "everything"])
def test_where_the_sections_show(wire, name):
    found = ours(wire, name)
    assert "rg_rg" in found or "rg" in found
    assert {"rg_plugins", "rg_python_stats"} <= set(found)


def test_plain_info_does_not_show_them(wire):
    assert ours(wire) == {}
    assert ours(wire, "default") == {}


def counters(wire):
    found = ours(wire, "rg")
    return found.get("rg") or found["rg_rg"]


def test_counters(server, wire):
    fields = counters(wire)
    assert fields["rg_nexecutions"] == "0"
    assert fields["rg_nregistrations"] == "0"
    gate = Gate([server])
    held = start(wire, gate.code + "GB('ShardsIDReader').map(hold).run()")
    finished = start(wire, "GB('ShardsIDReader').run()")
    wait_done(wire, finished)
    wait_until(lambda: counters(wire)["rg_nexecutions"] == "2", "two executions being listed")
    gate.open()
    wait_done(wire, held)
    for execution in (held, finished):
        assert wire.call("RG.DROPEXECUTION", execution) == Simple("OK")
    wait_until(lambda: counters(wire)["rg_nexecutions"] == "0", "no execution being listed")


def test_the_projects_own_version_and_commit(wire):
    text = wire.ok("INFO", "rg").decode()
    versions = [line for line in text.splitlines() if line.startswith("rg_") and "version" in line.partition(":")[0]]
    assert any(line.partition(":")[2][:1].isdigit() for line in versions), text
    assert any("commit" in line.partition(":")[0] or "git_sha" in line.partition(":")[0] for line in text.splitlines())


def test_plugin(wire):
    assert ours(wire, "rg")["rg_plugins"]["rg_GearsPythonPlugin"] == "version=10000"


def test_memory_of_the_interpreter(wire):
    fields = ours(wire, "rg")["rg_python_stats"]
    assert set(fields) == STATS
    assert all(text.isdecimal() for text in fields.values())
    assert int(fields["rg_CurrAllocated"]) > 0


def test_one_section(wire):
    found = ours(wire, "rg_python_stats")
    assert list(found) == ["rg_python_stats"]
    assert set(found["rg_python_stats"]) == STATS


def test_info_while_an_execution_runs(server, wire):
    gate = Gate([server])
    execution = start(wire, gate.code + "GB('ShardsIDReader').map(hold).run()")
    gate.wait_reached()
    for _ in range(20):
        assert int(counters(wire)["rg_nexecutions"]) >= 1
    gate.open()
    assert results_of(wire.ok("RG.GETRESULTSBLOCKING", execution)) == [b"1"]


def test_every_shard_counts_what_it_knows(wires):
    execution = start(wires[0], "GB('ShardsIDReader').run()")
    for wire in wires:
        wait_done(wire, execution)
        assert counters(wire)["rg_nexecutions"] == "1"
