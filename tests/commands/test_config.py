"""RG.CONFIGGET and RG.CONFIGSET: every key, its type, its default, and what may be changed at run time."""

import pytest
from replies import results_of
from wire import Error, Simple

ENGINE_KEYS = {
    "MaxExecutions": 1000,
    "MaxExecutionsPerRegistration": 100,
    "MaxEventDepth": 64,
    "InterpreterMaxWaitTime": 50,
    "ProfileExecutions": 0,
    "ExecutionThreads": 3,
    "ExecutionMaxIdleTime": 5000,
    "SendMsgRetries": 3,
}
PYTHON_INTS = {
    "PythonAttemptTraceback": 1,
    "PythonInstallReqMaxIdleTime": 30000,
    "CreateVenv": 0,
    "DownloadDeps": 0,
    "ForeceDownloadDepsOnEnterprise": 0,
    "OverridePythonAllocators": 1,
}
PYTHON_STRINGS = ["DependenciesUrl", "DependenciesSha256", "PythonInstallationDir"]
OK = Simple("OK")
SAVED = Simple("OK - value was saved in extra config dictionary")


def unsupported(key):
    return Error(f"(error) Unsupported config parameter: {key}")


def not_modifiable(key):
    return Error(f"(error) Config value {key} not modifiable at runtime")


def not_configurable(key):
    return Error(f"(error) {key} is not configurable at runtime")


def bad_engine_value(key):
    return Error(f"(error) Failed setting config value {key}")


def bad_python_value(key, value):
    return Error(f"Failed setting config value for key '{key}' with value '{value}'")


# --- RG.CONFIGGET ------------------------------------------------------------------------------------------------


def test_defaults(fresh_wire):
    wire = fresh_wire()
    numbers = {**ENGINE_KEYS, **PYTHON_INTS}
    assert wire.ok("RG.CONFIGGET", *numbers) == list(numbers.values())
    strings = wire.ok("RG.CONFIGGET", *PYTHON_STRINGS)
    assert all(isinstance(value, bytes) for value in strings)
    assert strings[2] != b""


def test_nothing_asked(wire):
    assert wire.call("RG.CONFIGGET") == []


def test_unknown_names_are_errors_in_their_places(wire):
    reply = wire.ok("RG.CONFIGGET", "nosuch", "MaxExecutions", "No Such", "ExecutionThreads", "")
    assert reply[:2] == [unsupported("nosuch"), 1000]
    assert reply[2] == unsupported("No Such")
    assert reply[3] == 3
    assert isinstance(reply[4], Error)


@pytest.mark.parametrize("key", [*ENGINE_KEYS, *PYTHON_INTS, *PYTHON_STRINGS])
def test_names_are_read_case_sensitively(wire, key):
    for spelling in (key.lower(), key.upper()):
        assert wire.ok("RG.CONFIGGET", spelling) == [unsupported(spelling)]


def test_a_name_may_be_asked_twice(wire):
    assert wire.ok("RG.CONFIGGET", "MaxExecutions", "MaxExecutions") == [1000, 1000]


def test_plugins_are_a_list(fresh_wire):
    wire = fresh_wire("Plugin", "/some/where/plugin.so", "Plugin", "other.so")
    assert wire.ok("RG.CONFIGGET", "Plugin") == [[b"/some/where/plugin.so", b"other.so"]]


# --- RG.CONFIGSET of known keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("MaxExecutions", "5", 5),
        ("MaxExecutions", "0", 0),
        ("MaxExecutions", "-1", -1),
        ("MaxExecutions", str(2**62), 2**62),
        ("MaxExecutionsPerRegistration", "7", 7),
        ("MaxExecutionsPerRegistration", "-7", -7),
        ("MaxEventDepth", "1", 1),
        ("InterpreterMaxWaitTime", "2000", 2000),
        ("ProfileExecutions", "1", 1),
        ("ProfileExecutions", "0", 0),
        ("ExecutionMaxIdleTime", "1", 1),
        ("ExecutionMaxIdleTime", "60000", 60000),
        ("SendMsgRetries", "0", 0),
        ("SendMsgRetries", "9", 9),
    ],
)
def test_engine_keys_are_set(wire, key, value, read):
    for spelling in (key, key.lower(), key.upper()):
        assert wire.ok("RG.CONFIGSET", spelling, value) == [OK]
        assert wire.ok("RG.CONFIGGET", key) == [read]


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("PythonAttemptTraceback", "0", 0),
        ("PythonAttemptTraceback", "1", 1),
        ("PythonAttemptTraceback", "5", 1),
        ("PythonAttemptTraceback", "-1", 1),
        ("PythonInstallReqMaxIdleTime", "1", 1),
        ("PythonInstallReqMaxIdleTime", "12345", 12345),
    ],
)
def test_python_keys_are_set(wire, key, value, read):
    assert wire.ok("RG.CONFIGSET", key, value) == [SAVED]
    assert wire.ok("RG.CONFIGGET", key) == [read]


BAD_NUMBERS = ["", "x", "1x", "1.5", " 1", "1 ", "0x10", "99999999999999999999", "--1"]


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("key", ["MaxExecutions", "ProfileExecutions", "ExecutionMaxIdleTime", "SendMsgRetries"])
def test_engine_keys_refuse_what_is_no_number(wire, key, value):
    before = wire.ok("RG.CONFIGGET", key)
    assert wire.ok("RG.CONFIGSET", key, value) == [bad_engine_value(key)]
    assert wire.ok("RG.CONFIGGET", key) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ExecutionMaxIdleTime", "0"),
        ("ExecutionMaxIdleTime", "-1"),
        ("SendMsgRetries", "-1"),
        ("MaxEventDepth", "0"),
        ("InterpreterMaxWaitTime", "0"),
    ],
)
def test_engine_keys_refuse_what_is_out_of_range(wire, key, value):
    assert wire.ok("RG.CONFIGSET", key, value) == [bad_engine_value(key)]
    assert wire.ok("RG.CONFIGGET", key) == [ENGINE_KEYS[key]]


@pytest.mark.parametrize("key", [key for key in ENGINE_KEYS if key != "ExecutionThreads"])
def test_engine_keys_without_value(wire, key):
    assert wire.ok("RG.CONFIGSET", key) == [bad_engine_value(key)]
    assert wire.ok("RG.CONFIGSET", key.lower()) == [bad_engine_value(key.lower())]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("PythonInstallReqMaxIdleTime", "0"),
        ("PythonInstallReqMaxIdleTime", "-5"),
        ("PythonInstallReqMaxIdleTime", "soon"),
        ("PythonAttemptTraceback", "yes"),
        ("PythonAttemptTraceback", "1.0"),
    ],
)
def test_python_keys_refuse_bad_values(wire, key, value):
    assert wire.ok("RG.CONFIGSET", key, value) == [bad_python_value(key, value)]
    assert wire.ok("RG.CONFIGGET", key) == [PYTHON_INTS[key]]


@pytest.mark.parametrize("key", ["ExecutionThreads", "executionthreads"])
def test_engine_keys_that_are_fixed_at_load(wire, key):
    assert wire.ok("RG.CONFIGSET", key, "5") == [not_modifiable(key)]
    assert wire.ok("RG.CONFIGGET", "ExecutionThreads") == [3]


def test_plugin_is_fixed_at_load(wire):
    assert wire.ok("RG.CONFIGSET", "Plugin", "x") == [not_modifiable("Plugin")]


@pytest.mark.parametrize(
    "key",
    ["CreateVenv", "DownloadDeps", "ForeceDownloadDepsOnEnterprise", "OverridePythonAllocators", *PYTHON_STRINGS],
)
def test_python_keys_that_are_fixed_at_load(wire, key):
    before = wire.ok("RG.CONFIGGET", key)
    assert wire.ok("RG.CONFIGSET", key, "1") == [not_configurable(key)]
    assert wire.ok("RG.CONFIGGET", key) == before


# --- other names -------------------------------------------------------------------------------------------------


def test_user_defined_names(wire):
    assert wire.ok("RG.CONFIGSET", "FooBar", "v1") == [SAVED]
    assert wire.ok("RG.CONFIGGET", "FooBar") == [b"v1"]
    assert wire.ok("RG.CONFIGGET", "foobar") == [unsupported("foobar")]
    assert wire.ok("RG.CONFIGSET", "FooBar", "") == [SAVED]
    assert wire.ok("RG.CONFIGGET", "FooBar") == [b""]


def test_python_names_in_another_case_are_user_defined(wire):
    assert wire.ok("RG.CONFIGSET", "pythonattempttraceback", "0") == [SAVED]
    assert wire.ok("RG.CONFIGGET", "PythonAttemptTraceback", "pythonattempttraceback") == [1, b"0"]


def test_user_defined_names_without_value(wire):
    assert wire.ok("RG.CONFIGSET", "Lonely") == [Error("(error) Value was not given to Lonely")]
    assert wire.ok("RG.CONFIGGET", "Lonely") == [unsupported("Lonely")]


def test_names_and_values_are_bytes(wire):
    key, value = b"a\x00b\xff", b"\x00\r\n\xfe"
    assert wire.ok("RG.CONFIGSET", key, value) == [SAVED]
    assert wire.ok("RG.CONFIGGET", key) == [value]
    assert wire.ok("RG.CONFIGGET", b"a") == [unsupported("a")]


def test_names_in_error_elements_do_not_break_the_protocol(wire):
    (element,) = wire.ok("RG.CONFIGGET", b"a\r\n+b")
    assert isinstance(element, Error) and "\r" not in element.text and "\n" not in element.text
    assert wire.call("PING") == Simple("PONG")


def test_functions_read_user_defined_names(wire):
    wire.ok("RG.CONFIGSET", "FooBar", "v1")
    script = """
def read(x):
    return repr((configGet('FooBar'), configGet('foobar'), gearsConfigGet('zz', 'd')))
GB('ShardsIDReader').map(read).run()
"""
    assert results_of(wire.ok("RG.PYEXECUTE", script)) == [b"('v1', None, 'd')"]


# --- several pairs -----------------------------------------------------------------------------------------------


def test_pairs_are_handled_from_left_to_right(wire):
    reply = wire.ok(
        "RG.CONFIGSET",
        *("MaxExecutions", "10"),
        *("ExecutionThreads", "9"),
        *("ExecutionMaxIdleTime", "never"),
        *("Mine", "x"),
        *("PythonInstallReqMaxIdleTime", "-1"),
        *("MaxExecutions", "20"),
        "Last",
    )
    assert reply == [
        OK,
        not_modifiable("ExecutionThreads"),
        bad_engine_value("ExecutionMaxIdleTime"),
        SAVED,
        bad_python_value("PythonInstallReqMaxIdleTime", "-1"),
        OK,
        Error("(error) Value was not given to Last"),
    ]
    assert wire.ok("RG.CONFIGGET", "MaxExecutions", "Mine") == [20, b"x"]


def test_nothing_to_set(wire):
    assert wire.call("RG.CONFIGSET") == []


def test_values_live_on_one_shard(wires):
    wires[0].ok("RG.CONFIGSET", "MaxExecutions", 77)
    assert [wire.ok("RG.CONFIGGET", "MaxExecutions") for wire in wires] == [[77], [1000], [1000]]
