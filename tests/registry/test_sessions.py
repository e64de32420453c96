"""Sessions: names, UPGRADE, REPLACE_WITH, and scripts that fail and must leave everything as it was."""

import re

import pytest
from registrations import (
    NOT_FOUND,
    by_trigger,
    dump,
    only,
    refusals_of,
    register,
    sessions,
    simple_trigger,
    trigger,
)
from replies import Gate, executions_of, split_id, wait_until
from wire import Error, Simple, Wire

B = "GB('CommandReader')"
BAD_NAME = "ID must be compose of: ['A'-'Z' | 'a'-'z' | '0' - '9' | '-' | '_']"
RAN = "execute('set', 'ran', '1')\n"


def version(value, name="t"):
    return simple_trigger(name, value)


def everything(wire):
    return [
        wire.ok(*words) for words in (["RG.DUMPREGISTRATIONS"], ["RG.PYDUMPSESSIONS"], ["RG.PYDUMPSESSIONS", "DEAD"])
    ]


# --- names -------------------------------------------------------------------------------------------------------


def test_t18_t19_t20_a_session_is_upgraded(wire):
    register(wire, version("v1"), "ID", "s1")
    assert wire.call("RG.PYEXECUTE", version("v1"), "ID", "s1") == Error("Session s1 already exists")
    register(wire, version("v2"), "ID", "s1", "UPGRADE")
    assert trigger(wire, "t") == [b"v2"]
    before = wire.ok("RG.DUMPREGISTRATIONS")
    assert "NameError" in wire.error("RG.PYEXECUTE", version("v3") + "\nbad()", "ID", "s1", "UPGRADE")
    assert trigger(wire, "t") == [b"v2"]
    register(wire, "x = 1", "ID", "s1", "UPGRADE")
    assert trigger(wire, "t") == [b"v2"]
    assert [row[1] for row in before] == list(dump(wire))


def test_without_a_name(wire):
    register(wire, version("a"))
    register(wire, version("b", "u"))
    names = [name.decode() for name in sessions(wire)]
    assert len(names) == 2
    assert all(re.fullmatch("[0-9a-f]{40}", name) for name in names)


@pytest.mark.parametrize("name", ["a", "AZaz09-_", "n" * 1000])
def test_a_name(wire, name):
    register(wire, version("a"), "ID", name)
    assert list(sessions(wire)) == [name.encode()]
    assert only(wire).pd["sessionName"] == only(wire).pd["sessionId"] == name


def test_an_empty_name_is_a_name(wire):
    register(wire, version("a"), "ID", "")
    assert list(sessions(wire)) == [b""]
    assert wire.call("RG.PYEXECUTE", "x = 1", "ID", "") == Error("Session  already exists")


def test_the_last_option_of_a_kind_counts(wire):
    register(wire, version("a"), "ID", "first", "DESCRIPTION", "one", "ID", "second", "DESCRIPTION", "two")
    assert sessions(wire)[b"second"]["sessionDescription"] == b"two"


def test_a_session_is_gone_with_its_last_registration(wire):
    register(wire, version("a") + "\n" + version("b", "u"), "ID", "s")
    first, second = dump(wire)
    assert wire.call("RG.UNREGISTER", first) == Simple("OK")
    assert list(sessions(wire)) == [b"s"]
    assert wire.call("RG.PYEXECUTE", "x = 1", "ID", "s") == Error("Session s already exists")
    assert wire.call("RG.UNREGISTER", second) == Simple("OK")
    assert sessions(wire) == {}
    register(wire, version("c"), "ID", "s")
    assert trigger(wire, "t") == [b"c"]


def test_a_script_without_registrations_leaves_no_session(wire):
    register(wire, "x = 1", "ID", "s")
    register(wire, "x = 1", "ID", "s")
    assert wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').run()", "ID", "s") == [[b"1"], []]
    assert sessions(wire) == {}


# --- the checks, in order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["REPLACE_WITH"], "REPLACE_WITH is missing"),
        (["UPGRADE", "ID"], "ID is missing"),
        (["ID", "a b", "REPLACE_WITH"], "REPLACE_WITH is missing"),
        (["ID", "a b", "FOO"], BAD_NAME),
        (["ID", "a b", "REPLACE_WITH", "none"], BAD_NAME),
        (["ID", "s1", "FOO"], "Unknown arguments were given: FOO"),
        (["ID", "s2", "REPLACE_WITH", "none", "FOO"], "Unknown arguments were given: FOO"),
        (["ID", "s2", "REPLACE_WITH", "s1"], "Can not replace an existing session s2 with s1"),
        (["ID", "s2", "REPLACE_WITH", "none"], "Can not replace an existing session s2 with none"),
        (["ID", "s1", "REPLACE_WITH", "s1"], "Can not replace an existing session s1 with s1"),
        (["ID", "new", "REPLACE_WITH", "none"], "Can not replace with none, session does not exists."),
        (["REPLACE_WITH", "none"], "Can not replace with none, session does not exists."),
        (["REPLACE_WITH", "a b"], "Can not replace with a b, session does not exists."),
        (["REPLACE_WITH", "none", "UPGRADE"], "Can not replace with none, session does not exists."),
        (["ID", "s1"], "Session s1 already exists"),
        (["ID", "s1", "UNBLOCKING", "DESCRIPTION", "x"], "Session s1 already exists"),
    ],
)
def test_refused_before_the_script_runs(wire, options, error):
    register(wire, version("1", "t1"), "ID", "s1")
    register(wire, version("2", "t2"), "ID", "s2")
    before = everything(wire)
    assert wire.call("RG.PYEXECUTE", RAN + version("3"), *options) == Error(error)
    assert wire.ok("EXISTS", "ran") == 0, "the script must not run"
    assert everything(wire) == before


# --- upgrade and replace -----------------------------------------------------------------------------------------


def test_upgrade_of_what_is_not_there_is_a_plain_create(wire):
    register(wire, version("v1"), "ID", "new", "UPGRADE")
    register(wire, version("v1", "u"), "UPGRADE")
    assert trigger(wire, "t") == trigger(wire, "u") == [b"v1"]
    assert len(sessions(wire)) == 2


def test_upgrade_changes_everything_at_once(wire):
    first = "\n".join(version("old", name) for name in ("gone", "kept"))
    register(wire, first, "ID", "s", "DESCRIPTION", "old text")
    trigger(wire, "kept")
    old = dump(wire)
    register(wire, "\n".join(version("new", name) for name in ("kept", "come")), "ID", "s", "UPGRADE")
    assert trigger(wire, "gone") == Error(NOT_FOUND)
    assert trigger(wire, "kept") == trigger(wire, "come") == [b"new"]
    new = dump(wire)
    assert not set(old) & set(new), "a new registration has a new id"
    assert by_trigger(wire, "kept").counters == (1, 1, 0, 0), "statistics start from zero"
    assert sessions(wire)[b"s"]["sessionDescription"] is None
    assert sessions(wire)[b"s"]["registrations"] == list(new)


def test_upgrade_gives_fresh_globals(wire):
    script = f"""
c = 0
def inc(x):
    global c
    c += 1
    return c
{B}.map(inc).register(trigger='t', convertToStr=False, mode='sync')
"""
    register(wire, script, "ID", "s")
    assert [trigger(wire, "t") for _ in range(3)] == [[1], [2], [3]]
    register(wire, script, "ID", "s", "UPGRADE")
    assert [trigger(wire, "t") for _ in range(2)] == [[1], [2]]


def test_replace_with(wire):
    register(wire, version("old") + "\n" + version("old", "gone"), "ID", "old")
    register(wire, version("other", "other"), "ID", "other")
    register(wire, version("new"), "ID", "new", "REPLACE_WITH", "old", "DESCRIPTION", "text")
    assert trigger(wire, "t") == [b"new"]
    assert trigger(wire, "gone") == Error(NOT_FOUND)
    assert trigger(wire, "other") == [b"other"]
    assert list(sessions(wire)) == [b"new", b"other"]
    # Without a name the new one has a random name.
    register(wire, version("newer"), "REPLACE_WITH", "new")
    (name,) = set(sessions(wire)) - {b"other"}
    assert len(name) == 40 and trigger(wire, "t") == [b"newer"]


def test_replace_with_a_script_that_registers_nothing(wire):
    register(wire, version("old"), "ID", "old")
    register(wire, "x = 1", "ID", "new", "REPLACE_WITH", "old")
    assert trigger(wire, "t") == [b"old"] and list(sessions(wire)) == [b"old"]


# The script's end comes after the new trigger was registered.
FAILURES = {
    "exception": "raise Exception('late')",
    "exit": "import sys; sys.exit(1)",
    "flat": "flat_error('late')",
    "taken": version("x", "other"),
    "twice": version("x"),
    "not shipped": f"import threading\nlock = threading.Lock()\n{B}.map(lambda x: lock).register(trigger='l')",
    "bad argument": f"{B}.register(trigger=5)",
    "two runs": "GB().run()\nGB().run()",
    "cannot be loaded": f"""
def load():
    raise ValueError('not here')
class Odd:
    def __reduce__(self):
        return load, ()
odd = Odd()
{B}.map(lambda x: odd).register(trigger='odd')
""",
}


@pytest.mark.parametrize("options", [[], ["UPGRADE"], ["REPLACE"]], ids=["create", "upgrade", "replace"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_script_that_fails_leaves_everything(wire, failure, options):
    register(wire, version("old"), "ID", "s", "DESCRIPTION", "d")
    register(wire, version("other", "other"), "ID", "o")
    trigger(wire, "t")
    before = everything(wire)
    name = "t" if options else "new"
    words = {"UPGRADE": ["ID", "s", "UPGRADE"], "REPLACE": ["ID", "n", "REPLACE_WITH", "s"]}.get("".join(options), [])
    run = "GB('ShardsIDReader').foreach(lambda x: execute('set', 'ran', '1')).run()\n"
    head = "" if failure == "two runs" else run
    tail = FAILURES[failure].replace("'t'", repr(name))
    assert refusals_of(wire.call("RG.PYEXECUTE", f"{head}{version('new', name)}\n{tail}", *words))
    assert everything(wire) == before
    assert trigger(wire, "t") == [b"old"]
    if not options:
        assert trigger(wire, "new") == Error(NOT_FOUND)
    wait_until(lambda: executions_of(wire) == {}, "nothing running")
    # And the names are free for a script that does not fail.
    register(wire, version("better", name), *words)
    assert trigger(wire, name) == [b"better"]


def test_dead_sessions_live_until_their_last_execution(server, wire):
    gate = Gate([server])
    script = f"{gate.code}\nword = 'old'\ndef say(x):\n    hold(x)\n    return word\n"
    register(wire, script + f"{B}.map(say).register(trigger='t', mode='async_local')", "ID", "s", "DESCRIPTION", "d")
    assert sessions(wire, "DEAD") == {}
    with Wire(server.port) as client:
        client.send("RG.TRIGGER", "t")
        gate.wait_reached()
        register(wire, version("new"), "ID", "s", "UPGRADE")
        dead = sessions(wire, "DEAD")
        assert list(dead) == [b"s"]
        assert (dead[b"s"]["linked"], dead[b"s"]["dead"]) == (b"None", b"true")
        assert dead[b"s"]["sessionDescription"] == b"d" and dead[b"s"]["refCount"] >= 1
        assert (sessions(wire)[b"s"]["linked"], sessions(wire)[b"s"]["dead"]) == (b"primary", b"false")
        assert trigger(wire, "t") == [b"new"]
        gate.open()
        assert client.read() == [b"old"], "what runs goes on with its own globals"
    wait_until(lambda: sessions(wire, "DEAD") == {}, "the dead session going away")


# --- ids ---------------------------------------------------------------------------------------------------------


def test_the_first_id_of_a_fresh_server(fresh):
    with Wire(fresh().port) as wire:
        register(wire, version("a"))
        assert list(dump(wire)) == [b"0" * 40 + b"-1"]


def test_ids_are_never_used_again(wire):
    seen = []
    for i in range(10):
        register(wire, version(str(i)) + "\n" + version(str(i), "u"), "ID", "s", "UPGRADE")
        seen += [split_id(one)[1] for one in dump(wire)]
        if i % 3 == 0:
            for one in dump(wire):
                assert wire.call("RG.UNREGISTER", one) == Simple("OK")
    assert seen == sorted(set(seen)), seen


def test_register_returns_the_id(wire):
    script = f"execute('rpush', 'ids', {B}.register(trigger='a'))\nexecute('rpush', 'ids', {B}.register(trigger='b'))"
    register(wire, script)
    assert wire.ok("LRANGE", "ids", 0, -1) == list(dump(wire))
    assert wire.ok("TYPE", "ids") == Simple("list")
