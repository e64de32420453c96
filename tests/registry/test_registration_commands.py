"""RG.DUMPREGISTRATIONS, RG.UNREGISTER, RG.PAUSEREGISTRATIONS, RG.UNPAUSEREGISTRATIONS, RG.PYDUMPSESSIONS, INFO."""

import ast

import pytest
from registrations import (
    COUNTERS,
    NOT_FOUND,
    NOT_REGISTERED,
    PD_COUNT,
    PD_FIELDS,
    SESSION_FIELDS,
    by_trigger,
    dump,
    only,
    read_registration,
    register,
    sessions,
    simple_trigger,
    trigger,
)
from replies import SINGLE_ID, Gate, executions_of, flat_map, pair, wait_until
from wire import Error, Simple, Wire

B = "GB('CommandReader')"
UNKNOWN = "0" * 40 + "-999999"
OK = Simple("OK")


def arity_error(command):
    return f"err wrong number of arguments for '{command.lower()}' command"


# --- RG.DUMPREGISTRATIONS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [[], ["any", "thing"]])
def test_no_registrations(wire, args):
    assert wire.call("RG.DUMPREGISTRATIONS", *args) == []


def test_one_registration(wire):
    script = "GB('CommandReader', desc='what it does').register(trigger='t', mode='async_local', inorder=True)"
    register(wire, script, "ID", "s", "DESCRIPTION", "about the session")
    (row,) = wire.ok("RG.DUMPREGISTRATIONS", "ignored")
    pd = row[9]
    assert row == [
        *(b"id", row[1], b"reader", b"CommandReader", b"desc", b"what it does", b"RegistrationData"),
        [
            *(b"mode", b"async_local", b"numTriggered", 0, b"numSuccess", 0, b"numFailures", 0, b"numAborted", 0),
            *(b"lastRunDurationMS", 0, b"totalRunDurationMS", 0, b"avgRunDurationMS", b"0", b"lastError", None),
            *(b"args", [b"trigger", b"t", b"inorder", 1]),
        ],
        *(b"PD", pd, b"ExecutionThreadPool", b"DefaultPool"),
    ]
    assert row[1].startswith(SINGLE_ID.encode() + b"-")
    found = ast.literal_eval(pd.decode())
    assert tuple(name for name in found if name != PD_COUNT) == PD_FIELDS
    assert found.get(PD_COUNT, 1) == 1
    assert found["sessionName"] == found["sessionId"] == "s"
    assert found["sessionDescription"] == "about the session"
    assert found["registrationsList"] == [row[1].decode()]
    assert found["depsList"] == []
    assert found["linkedTo"] == "primary" and found["dead"] is False
    assert found["isInstallationNeeded"] == 0 and found["refCount"] >= 1


def test_without_descriptions(wire):
    register(wire, f"{B}.register(trigger='t')")
    found = only(wire)
    assert found.desc is None
    assert found.pd["sessionDescription"] == "null"
    assert len(found.pd["sessionName"]) == 40


NASTY = [
    "it's",
    'a "quote"',
    "back\\slash\\n",
    "line\nbreak\r\n",
    "é\N{SNOWMAN}\N{GRINNING FACE}",
    "",
    "null",
    "}{[]'",
    "\0\x01",
]


@pytest.mark.parametrize("text", NASTY)
def test_the_pd_is_a_python_literal_whatever_the_description_is(wire, text):
    register(wire, f"{B}.register(trigger='t')", "DESCRIPTION", text)
    assert only(wire).pd["sessionDescription"] == text
    (session,) = sessions(wire).values()
    assert session["sessionDescription"] == text.encode()
    # In INFO it is one field of one line.
    (fields,) = info_section(wire, "rg_regisrations").values()
    assert fields.count("PD=") >= 1


def test_a_description_that_is_not_utf8(wire):
    """It is kept as it can be, or refused; whatever is listed can be read."""
    reply = wire.call("RG.PYEXECUTE", f"{B}.register(trigger='t')", "DESCRIPTION", b"\xff\xfe")
    assert reply == OK or isinstance(reply, Error)
    assert len(dump(wire)) == (1 if reply == OK else 0)


def test_registrations_of_a_session_share_its_pd(wire):
    register(wire, "\n".join(simple_trigger(f"t{i}") for i in range(3)), "ID", "s")
    found = dump(wire)
    pds = [one.pd for one in found.values()]
    assert pds[0] == pds[1] == pds[2]
    assert pds[0]["registrationsList"] == [one.decode() for one in found]
    assert [one.trigger for one in found.values()] == [b"t0", b"t1", b"t2"]


def test_the_dump_of_a_large_session_does_not_grow_by_squares(wire):
    """Each entry describes the session, but not with all of its 2,000 registrations."""
    script = "for i in range(2000):\n    GB('CommandReader').register(trigger='t%d' % i, mode='sync')"
    register(wire, script, "ID", "large")
    rows = wire.ok("RG.DUMPREGISTRATIONS")
    assert len(rows) == 2000
    assert sum(len(row[9]) for row in rows) < 40_000_000
    assert len(sessions(wire)[b"large"]["registrations"]) == 2000
    # All of them go in one step.
    register(wire, simple_trigger("one"), "ID", "large", "UPGRADE")
    assert len(dump(wire)) == 1


# --- RG.UNREGISTER -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [[], ["a", "ABORTPENDING", "c"]])
def test_arity_of_unregister(wire, args):
    assert wire.error("RG.UNREGISTER", *args).lower() == arity_error("RG.UNREGISTER")


@pytest.mark.parametrize("name", ["", "x", UNKNOWN, b"\x00" * 50, b"\xff" * 42])
@pytest.mark.parametrize("more", [[], ["ABORTPENDING"]])
def test_unregister_of_an_unknown_id(wire, name, more):
    assert wire.call("RG.UNREGISTER", name, *more) == Error(NOT_REGISTERED)


@pytest.mark.parametrize("more", [[], ["ABORTPENDING"], ["abortPending"], ["anything"]])
def test_unregister(wire, more):
    register(wire, simple_trigger("a") + "\n" + simple_trigger("b"), "ID", "s")
    first = by_trigger(wire, "a").id
    assert wire.call("RG.UNREGISTER", first, *more) == OK
    assert trigger(wire, "a") == Error(NOT_FOUND)
    assert trigger(wire, "b") == [b"1"]
    assert sessions(wire)[b"s"]["registrations"] == list(dump(wire)) == [by_trigger(wire, "b").id]
    assert wire.call("RG.UNREGISTER", first, *more) == Error(NOT_REGISTERED)
    register(wire, simple_trigger("a", "again"))
    assert trigger(wire, "a") == [b"again"]


@pytest.mark.parametrize("mode", ["async", "async_local"])
@pytest.mark.parametrize("abort", [False, True])
def test_what_runs_and_what_waits(server, wire, mode, abort):
    threads = wire.ok("RG.CONFIGGET", "ExecutionThreads")[0]
    gate = Gate([server])
    register(wire, f"{gate.code}\n{B}.map(lambda x: hold(x)[1]).register(trigger='t', mode={mode!r})")
    clients = [Wire(server.port) for _ in range(threads + 3)]
    try:
        for i, client in enumerate(clients):
            client.send("RG.TRIGGER", "t", i)
            wait_until(lambda i=i: only(wire).counters[0] == i + 1, f"trigger {i} arriving")
        gate.wait_reached(times=threads)
        assert wire.call("RG.UNREGISTER", only(wire).id, *(["ABORTPENDING"] if abort else [])) == OK
        assert dump(wire) == {} and trigger(wire, "t") == Error(NOT_FOUND)
        if abort:
            for client in clients[threads:]:
                reply = client.read()
                assert isinstance(reply, Error), f"it has not run, but answers {reply!r}"
        gate.open()
        for i, client in enumerate(clients[:threads] if abort else clients):
            assert client.read() == [b"%d" % i]
    finally:
        for client in clients:
            client.close()
    wait_until(lambda: executions_of(wire) == {}, "the executions being dropped")


def in_multi(wire, *args):
    assert wire.ok("MULTI") == OK
    assert wire.ok(*args) == Simple("QUEUED")
    (reply,) = wire.ok("EXEC")
    return reply


def in_lua(wire, *args):
    return wire.call("EVAL", "return redis.pcall(unpack(ARGV))", 0, *args)


def nested(wire, *args):
    words = [arg.decode() if isinstance(arg, bytes) else arg for arg in args]
    script = f"GB('ShardsIDReader').map(lambda x: execute(*{words!r})).run(convertToStr=False, mode='async_local')"
    results, errors = pair(wire.ok("RG.PYEXECUTE", script))
    return Error(errors[0]) if errors else results[0]


CONTEXTS = pytest.mark.parametrize("within", [in_multi, in_lua, nested])


@CONTEXTS
def test_unregister_where_nobody_may_wait(wire, within):
    register(wire, simple_trigger("t"))
    assert within(wire, "RG.UNREGISTER", only(wire).id) in (OK, b"OK")
    assert dump(wire) == {} and trigger(wire, "t") == Error(NOT_FOUND)
    reply = within(wire, "RG.UNREGISTER", UNKNOWN)
    assert isinstance(reply, Error) and NOT_REGISTERED in reply.text
    assert not wire.has_reply()


@CONTEXTS
def test_unregister_in_a_cluster_where_nobody_may_wait(wires, within):
    """A group has to agree first: it is done, or refused and not done."""
    register(wires[0], simple_trigger("t"))
    (one,) = dump(wires[1])
    reply = within(wires[1], "RG.UNREGISTER", one)
    if isinstance(reply, Error):
        assert "ERR" in reply.text
        assert wires[1].call("RG.UNREGISTER", one) == OK, "it was refused and yet done"
    for wire in wires:
        wait_until(lambda wire=wire: dump(wire) == {}, "the registration going away")
    assert not wires[1].has_reply()


@CONTEXTS
def test_waiting_commands_are_refused_without_effect(wire, within):
    register(wire, simple_trigger("t"))
    trigger(wire, "t")
    for command in (
        ["RG.PAUSEREGISTRATIONS", only(wire).id],
        ["RG.UNPAUSEREGISTRATIONS", only(wire).id],
        ["RG.CLEARREGISTRATIONSSTATS"],
    ):
        reply = within(wire, *command)
        assert isinstance(reply, Error) and "ERR" in reply.text, command
    assert only(wire).counters == (1, 1, 0, 0)
    assert wire.call("PING") == Simple("PONG") and not wire.has_reply()


@CONTEXTS
def test_reading_commands_are_allowed(wire, within):
    register(wire, simple_trigger("t"), "ID", "s")
    for command in (["RG.DUMPREGISTRATIONS"], ["RG.PYDUMPSESSIONS"], ["RG.REGISTRY"]):
        reply = within(wire, *command)
        assert isinstance(reply, list) and reply, command


# --- RG.PAUSEREGISTRATIONS, RG.UNPAUSEREGISTRATIONS --------------------------------------------------------------

PAUSE = pytest.mark.parametrize(
    ("command", "word"), [("RG.PAUSEREGISTRATIONS", "pause"), ("RG.UNPAUSEREGISTRATIONS", "unpause")]
)


@PAUSE
def test_pause_needs_an_id(wire, command, word):
    assert wire.error(command).lower() == arity_error(command)


def test_pause_with_only_the_option(wire):
    assert wire.call("RG.PAUSEREGISTRATIONS", "ABORTPENDING") == Error("ERR no registration to pause")


@PAUSE
def test_pause_of_an_unknown_registration(wire, command, word):
    register(wire, simple_trigger("t"))
    for ids in ([UNKNOWN], ["x"], [UNKNOWN, only(wire).id], [b"\xff"]):
        text = wire.error(command, *ids)
        shown = ids[0] if isinstance(ids[0], str) else ids[0].decode("utf-8", "replace")
        assert f"Execution {shown} does not exists on shard {SINGLE_ID}" in text


@PAUSE
def test_triggers_can_not_be_paused(wire, command, word):
    register(wire, simple_trigger("t"))
    options = [["ABORTPENDING"], []] if word == "pause" else [[]]
    for option in options:
        text = wire.error(command, *option, only(wire).id)
        assert f"Reader CommandReader does not support {word}" in text
    assert trigger(wire, "t") == [b"1"]


@PAUSE
def test_pause_in_a_cluster(wires, command, word):
    register(wires[0], simple_trigger("t"))
    for wire in wires:
        assert f"Reader CommandReader does not support {word}" in wire.error(command, only(wire).id)
        assert f"Execution {UNKNOWN} does not exists on shard " in wire.error(command, UNKNOWN)


# --- RG.PYDUMPSESSIONS -------------------------------------------------------------------------------------------


def test_no_sessions(wire):
    assert wire.call("RG.PYDUMPSESSIONS") == []
    assert wire.call("RG.PYDUMPSESSIONS", "DEAD") == []
    assert wire.call("RG.PYDUMPSESSIONS", "SESSIONS") == []


def test_sessions_by_name(wire):
    for name in ("b", "a", "C"):
        register(wire, simple_trigger(name), "ID", name, "DESCRIPTION", f"about {name}")
    rows = wire.ok("RG.PYDUMPSESSIONS")
    found = [flat_map(row, SESSION_FIELDS) for row in rows]
    assert [row["ID"] for row in found] == [b"C", b"a", b"b"]
    assert found[1] == {
        "ID": b"a",
        "sessionDescription": b"about a",
        "refCount": 1,
        "linked": b"primary",
        "dead": b"false",
        "requirementInstallationNeeded": 0,
        "requirements": [],
        "registrations": [by_trigger(wire, "a").id],
    }


def test_chosen_sessions(wire):
    for name in ("a", "b"):
        register(wire, simple_trigger(name), "ID", name)
    b, missing, a = wire.ok("RG.PYDUMPSESSIONS", "SESSIONS", "b", "none", "a")
    assert flat_map(b)["ID"] == b"b" and flat_map(a)["ID"] == b"a"
    assert missing == b"Session none does not exists"
    assert wire.ok("RG.PYDUMPSESSIONS", "DEAD", "SESSIONS", "a") == [a]
    # Whatever follows the word is a name.
    assert wire.ok("RG.PYDUMPSESSIONS", "SESSIONS", "VERBOSE") == [b"Session VERBOSE does not exists"]


@pytest.mark.parametrize("options", [["VERBOSE"], ["verbose", "DEAD"], ["DEAD", "VERBOSE", "sessions", "s"]])
def test_verbose_sessions(wire, options):
    register(wire, simple_trigger("a") + "\n" + simple_trigger("b"), "ID", "s")
    trigger(wire, "b")
    rows = wire.ok("RG.PYDUMPSESSIONS", *options)
    if "DEAD" in options and "sessions" not in options:
        assert rows == []
        return
    (session,) = rows
    found = [read_registration(row, with_pd=False) for row in flat_map(session, SESSION_FIELDS)["registrations"]]
    assert [one.id for one in found] == list(dump(wire))
    assert [one.counters for one in found] == [(0, 0, 0, 0), (1, 1, 0, 0)]


@pytest.mark.parametrize("options", [["FOO"], ["VERBOSE", "FOO"], ["DEAD", "FOO", "VERBOSE"], ["TS"]])
def test_unknown_options_of_pydumpsessions(wire, options):
    word = next(word for word in options if word not in ("VERBOSE", "DEAD"))
    assert wire.call("RG.PYDUMPSESSIONS", *options) == Error(f"Unknown option {word}")


def test_sessions_in_a_cluster(wires):
    register(wires[0], simple_trigger("t"), "ID", "s", "DESCRIPTION", "d")
    first, second, third = (wire.ok("RG.PYDUMPSESSIONS") for wire in wires)
    assert first == second == third and len(first) == 1


# --- INFO --------------------------------------------------------------------------------------------------------


def info_section(wire, name):
    """Field -> text of one section."""
    found, section = {}, None
    for line in wire.ok("INFO", "rg").decode().splitlines():
        if line.startswith("# "):
            section = line[2:]
        elif line and section == name:
            field, _, text = line.partition(":")
            found[field] = text
    return found


def test_registrations_in_info(wire):
    assert info_section(wire, "rg")["rg_nregistrations"] == "0"
    assert info_section(wire, "rg_regisrations") == {}
    script = f"{simple_trigger('t')}\nGB('CommandReader', desc='my desc').register(trigger='u', inorder=True)"
    register(wire, script, "ID", "s", "DESCRIPTION", "one, two")
    trigger(wire, "t")
    assert info_section(wire, "rg")["rg_nregistrations"] == "2"
    section = info_section(wire, "rg_regisrations")
    t, u = by_trigger(wire, "t"), by_trigger(wire, "u")
    assert list(section) == [f"rg_{one.id.decode()}" for one in (t, u)]
    texts = [dict(part.partition("=")[::2] for part in text.split(",")) for text in section.values()]
    durations = ("lastRunDurationMS", "totalRunDurationMS", "avgRunDurationMS")
    names = ["desc", "reader", "mode", *COUNTERS, *durations, "lastError", "trigger", "inorder", "PD"]
    assert [list(text) for text in texts] == [names, names]
    assert (texts[0]["desc"], texts[1]["desc"]) == ("None", "my desc")
    assert [texts[0][name] for name in COUNTERS] == ["1", "1", "0", "0"]
    assert (texts[0]["mode"], texts[1]["mode"]) == ("sync", "async")
    assert (texts[0]["lastError"], texts[0]["trigger"], texts[1]["inorder"]) == ("None", "t", "1")
    assert texts[0]["PD"] == repr(t.pd).replace(",", "|") or "one| two" in texts[0]["PD"]


def test_sessions_in_info(wire):
    assert info_section(wire, "rg_python_sessions") == {}
    register(wire, simple_trigger("t"), "ID", "s", "DESCRIPTION", "text")
    (text,) = info_section(wire, "rg_python_sessions").values()
    assert "'sessionName'" in text and "text" in text


def test_info_survives_any_name(wire):
    register(wire, f"{B}.register(trigger='a\\r\\nb:c=d,e')", "ID", "s", "DESCRIPTION", "x\r\ny: z=1,2")
    text = wire.ok("INFO", "rg").decode()
    assert "a\r\nb" not in text and "x\r\ny" not in text
    assert wire.ok("INFO", "everything")
