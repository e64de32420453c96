"""Arguments of the module at load: good ones, and bad ones that refuse to load with a sentence."""

import localcluster
import pytest
from replies import Gate, executions, start
from wire import Simple, Wire

# The log line that operators of RedisGears know.
ENGINE_REFUSAL = "could not initialize gears config"


def test_values_given_at_load(fresh_wire):
    wire = fresh_wire(
        *("MaxExecutions", 7),
        *("maxexecutionsperregistration", 8),
        *("ProfileExecutions", 1),
        *("EXECUTIONTHREADS", 2),
        *("ExecutionMaxIdleTime", 1234),
        *("SendMsgRetries", 0),
        *("PythonAttemptTraceback", 0),
        *("PythonInstallReqMaxIdleTime", 999),
        *("OverridePythonAllocators", 0),
        *("Mine", "some value"),
    )
    names = ["MaxExecutions", "MaxExecutionsPerRegistration", "ProfileExecutions", "ExecutionThreads"]
    names += ["ExecutionMaxIdleTime", "SendMsgRetries", "PythonAttemptTraceback", "PythonInstallReqMaxIdleTime"]
    names += ["OverridePythonAllocators", "Mine"]
    assert wire.ok("RG.CONFIGGET", *names) == [7, 8, 1, 2, 1234, 0, 0, 999, 0, b"some value"]


def test_plugin_paths_are_accepted_and_ignored(fresh_wire):
    wire = fresh_wire("Plugin", "/no/such/file/gears_python.so")
    assert wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').run()") == [[b"1"], []]
    plugins = wire.ok("RG.DUMPPLUGINS")
    assert plugins == [[b"GearsPythonPlugin", 10000]]


def test_options_of_another_plugin_are_user_defined(fresh_wire):
    wire = fresh_wire("JvmOptions", "-Xmx1g", "JvmPath", "/opt/jvm")
    assert wire.ok("RG.CONFIGGET", "JvmOptions", "JvmPath") == [b"-Xmx1g", b"/opt/jvm"]


@pytest.fixture
def refused(tmp_path):
    """refused(args) gives the log of a server that ends because the module does not load."""

    def try_to_load(args):
        server = localcluster.Server(
            localcluster.free_port(), tmp_path, module=localcluster.DEFAULT_MODULE, module_args=args
        )
        try:
            server.spawn()
            localcluster.wait_until(lambda: not server.alive(), 60, "the server ending")
            return server.log() + server.output()
        finally:
            server.kill()

    return try_to_load


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["MaxExecutions"], "MaxExecutions"),
        (["MaxExecutions", "many"], "MaxExecutions"),
        (["ExecutionThreads", "0"], "ExecutionThreads"),
        (["ExecutionThreads", "-1"], "ExecutionThreads"),
        (["ExecutionMaxIdleTime", "0"], "ExecutionMaxIdleTime"),
        (["SendMsgRetries", "-1"], "SendMsgRetries"),
        (["Mine", "x", "ProfileExecutions", "on"], "ProfileExecutions"),
        (["NoValue"], "NoValue"),
        (["Plugin"], "Plugin"),
    ],
)
def test_bad_engine_values_refuse_to_load(refused, args, part):
    log = refused(args)
    assert ENGINE_REFUSAL in log
    assert part in log, "the log must name the key"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ["PythonInstallReqMaxIdleTime", "soon"],
            "Failed parsing PythonInstallReqMaxIdleTime config, value must be a number.",
        ),
        (
            ["PythonInstallReqMaxIdleTime", "0"],
            "Failed parsing PythonInstallReqMaxIdleTime config, value must be greater then zero.",
        ),
        (["PythonAttemptTraceback", "maybe"], "Failed parsing PythonAttemptTraceback config"),
        (["CreateVenv", "x"], "Failed parsing CreateVenv config"),
    ],
)
def test_bad_python_values_refuse_to_load(refused, args, sentence):
    assert sentence in refused(args)


@pytest.mark.parametrize("command", ["config", "ACL"])
def test_a_permission_that_would_refuse_everybody_refuses_to_load(refused, command):
    assert f"RequiredPermission {command}: this command has subcommands" in refused(["RequiredPermission", command])


def test_a_refused_load_leaves_a_running_server_alone():
    server = localcluster.start_server(server_args=("--enable-module-command", "yes"))
    try:
        with Wire(server.port) as wire:
            load = ["MODULE", "LOAD", localcluster.DEFAULT_MODULE]
            wire.error(*load, "ExecutionThreads", "0")
            assert ENGINE_REFUSAL in server.log()
            wire.error("RG.PYSTATS")
            # The same process then loads it with good arguments, and only once.
            assert wire.call(*load, "ExecutionThreads", "1") == Simple("OK")
            assert wire.ok("RG.CONFIGGET", "ExecutionThreads") == [1]
            wire.error(*load)
            assert wire.ok("RG.PYEXECUTE", "GB('ShardsIDReader').run()") == [[b"1"], []]
    finally:
        server.stop()


def test_one_thread_runs_one_execution_at_a_time(fresh):
    server = fresh("ExecutionThreads", 1)
    gate = Gate([server])
    with Wire(server.port) as wire:
        ids = [start(wire, gate.code + "GB('ShardsIDReader').map(hold).run()") for _ in range(3)]
        gate.wait_reached()
        assert sorted(executions(wire).values()) == [b"created", b"created", b"running"]
        gate.open()
        for execution in ids:
            assert wire.ok("RG.GETRESULTSBLOCKING", execution) == [[b"1"], []]
