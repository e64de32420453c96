"""Client libraries that were written for RedisGears read the replies of this module."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import localcluster
import pytest
from replies import SINGLE_ID
from wire import Wire

HERE = Path(__file__).resolve().parent / "published"
REQUIREMENTS = HERE / "requirements.txt"
CONFIG_NAMES = """
    MaxExecutions MaxExecutionsPerRegistration ProfileExecutions PythonAttemptTraceback DownloadDeps DependenciesUrl
    DependenciesSha256 PythonInstallationDir CreateVenv ExecutionThreads ExecutionMaxIdleTime
    PythonInstallReqMaxIdleTime SendMsgRetries
""".split()


@pytest.fixture(scope="session")
def packages():
    """The folder with the clients. They need an old redis-py, so they do not go beside the one of the tests."""
    folder = Path(sys.prefix) / "published-clients"
    stamp = folder / "installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--upgrade"]
        subprocess.run([*pip, "--target", folder, "-r", REQUIREMENTS], check=True, timeout=600)
        stamp.write_text(wanted)
    return folder


def report(packages, script, port):
    """What the script prints; it runs in a process of its own, because of its old redis-py."""
    env = {**os.environ, "PYTHONPATH": str(packages)}
    argv = [sys.executable, HERE / script, str(port)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_config(found):
    assert set(found["config"]) == set(CONFIG_NAMES)
    for name in ("ProfileExecutions", "PythonAttemptTraceback", "DownloadDeps", "CreateVenv"):
        assert found["kinds"][name] == "bool", name
    for name in ("MaxExecutions", "ExecutionThreads", "ExecutionMaxIdleTime", "SendMsgRetries"):
        assert found["kinds"][name] == "int", name
    assert found["config"]["MaxExecutions"] == "1000"
    assert found["changed"] == 123


REGISTRATIONS = {"made": "True", "answer": "a", "again": "DuplicateTriggerError", "removed": [True]}


def test_redgrease_on_a_single_server(packages, server, wire):
    found = report(packages, "use_redgrease.py", server.port)
    assert found["version"] == [1, 2, 13]
    assert found["nothing"] == "True"
    assert found["several"] == ["a", "b"]
    assert found["step_errors"] == 1
    assert "foo" in found["refusal"]["text"]
    assert found["cluster"] is None
    assert found["refreshed"] is True
    assert len(found["stats"]) == 3 and found["stats"][0] > 0
    check_config(found["config"])
    assert found["registrations"] == REGISTRATIONS

    execution = found["execution"]
    assert execution["shard_id"] == SINGLE_ID
    assert execution["id"] == f"{SINGLE_ID}-{execution['sequence']}"
    assert execution["blocking"] == execution["results"] == "b'a'"
    assert len(execution["listed"]) == 1 and "done" in execution["listed"][0][0]
    assert execution["listed"][0][1] is False
    plan = execution["plan"]
    assert plan["shards"] == [SINGLE_ID]
    assert "done" in plan["status"] and plan["results"] == 1 and plan["errors"] == []
    assert [kind for kind, _ in plan["steps"]] == ["collect", "map", "map", "map"]
    assert execution["everywhere"] == [SINGLE_ID]
    assert execution["aborted"] is True and execution["dropped"] is True


@pytest.fixture
def own_server():
    """Its interpreter may load what others should not see."""
    server = localcluster.start_server(module=localcluster.DEFAULT_MODULE)
    yield server
    server.stop()


def test_redgrease_in_functions(packages, own_server):
    """It takes the builtin names from the module `__main__`, as in the original."""
    program = f"""
import sys
sys.path.append({str(packages)!r})
import redgrease
def step(x):
    with redgrease.atomic():
        redgrease.cmd.set('k', 'v')
    return [redgrease.cmd.get('k'), redgrease.gearsConfigGet('none', 'default'), redgrease.hashtag() is not None]
redgrease.GB('ShardsIDReader').map(step).run()
"""
    with Wire(own_server.port) as wire:
        assert wire.ok("RG.PYEXECUTE", program) == [[b"['v', 'default', True]"], []]


def test_redgrease_on_a_cluster(packages, cluster, wires):
    server = cluster.masters()[0]
    ids = sorted(master.node_id for master in cluster.masters())
    found = report(packages, "use_redgrease.py", server.port)
    assert found["cluster"]["my_id"] == server.node_id
    assert sorted(shard[0] for shard in found["cluster"]["shards"]) == ids
    assert {shard[2] for shard in found["cluster"]["shards"]} == {master.port for master in cluster.masters()}
    execution = found["execution"]
    assert execution["shard_id"] == server.node_id
    assert execution["everywhere"] == ids
    assert execution["plan"]["shards"] == [server.node_id]
    assert execution["plan"]["shards_received"] == 2
    check_config(found["config"])
    assert found["registrations"] == REGISTRATIONS


def test_gearsclient(packages, fresh):
    # Its programs refer to the package, which the server's Python must be able to import.
    server = fresh()
    with Wire(server.port) as wire:
        wire.ok("RG.PYEXECUTE", f"import sys\nsys.path.append({str(packages)!r})")
    found = report(packages, "use_gearsclient.py", server.port)
    assert found["numbers"] == [0, 1, 2, 3, 4]
    assert found["errors"] == 0
    assert found["counted"] == [["0", 3], ["1", 2]]
    assert found["failed"] == [0, 1]
    assert (found["made"], found["answer"]) == ("OK", ["a!"])
