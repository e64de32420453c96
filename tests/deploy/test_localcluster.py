"""The local servers and clusters that the demo, the tests and the benchmark stand on, tried without the module."""

import os
import signal
import subprocess
import sys

import localcluster
import pytest
from localcluster import LocalCluster, StartError, start_server, wait_until

SOON_S = 30.0
REPO = localcluster.REPO


def gone(pid):
    """No longer running; where nobody collects orphans a zombie may stay."""
    fields = localcluster._stat_fields(pid)
    return fields is None or fields[0] == "Z"


@pytest.fixture
def plain_server():
    server = start_server()
    yield server
    server.stop()


def test_a_server_answers_and_ends(plain_server):
    server, path = plain_server, plain_server.dir
    assert server.client().set("a", "b")
    assert server.alive() and server.node_id == "0" * 40
    assert 0 < server.rss_bytes() <= server.peak_rss_bytes()
    assert "Ready to accept connections" in server.log()
    assert server.stop() is True
    assert not server.alive() and not os.path.exists(path)


def test_pause_resume_restart_and_kill(plain_server):
    server = plain_server
    server.client().set("a", "b")
    server.pause()
    assert server.paused() and server.alive()
    server.resume()
    assert server.client().get("a") == b"b" and not server.paused()
    pid = server.pid
    server.restart()
    assert server.pid != pid and server.client().get("a") is None
    server.kill()
    assert not server.alive()
    server.start()
    assert server.client().ping()


def test_a_paused_server_can_be_stopped():
    server = start_server()
    server.pause()
    assert server.stop() is True


@pytest.mark.parametrize("options", [{"module": "/no/such/module.so"}, {"server_args": ["--no-such-option", "x"]}])
def test_a_server_that_cannot_start_says_why(options):
    with pytest.raises(StartError) as found:
        start_server(**options)
    assert "no/such/module.so" in str(found.value) or "no-such-option" in str(found.value)


def test_a_given_port_that_is_taken_is_an_error(plain_server):
    with pytest.raises(StartError):
        start_server(port=plain_server.port)
    assert plain_server.client().ping()


def test_a_port_taken_meanwhile_is_given_up_for_another(plain_server, monkeypatch):
    choices, choose = [plain_server.port], localcluster.free_port
    monkeypatch.setattr(localcluster, "free_port", lambda: choices.pop() if choices else choose())
    server = start_server()
    try:
        assert server.port != plain_server.port and server.client().ping()
        assert server.client().info("server")["process_id"] == server.pid
    finally:
        server.stop()


def test_ports_leave_room_for_bus_and_mesh():
    for _ in range(50):
        port = localcluster.free_port()
        assert port + localcluster.MESH_OFFSET < 65536
        localcluster._release_port(port)


def test_shares_of_ports_have_nothing_in_common(monkeypatch):
    offsets = (0, localcluster.BUS_OFFSET, localcluster.MESH_OFFSET)
    for share in range(localcluster.PORT_SHARES):
        monkeypatch.setattr(localcluster, "PORT_SHARE", str(share))
        for _ in range(20):
            port = localcluster.free_port()
            localcluster._release_port(port)
            assert {(port + offset) % localcluster.PORT_SHARES for offset in offsets} == {share}


def test_passwords():
    server = start_server(server_args=["--requirepass", "a secret"])
    try:
        assert server.client().ping()
    finally:
        server.stop()


# --- clusters ----------------------------------------------------------------------------------------------------


def test_a_cluster_with_replicas_grows_and_fails_over():
    with LocalCluster(masters=3, replicas=1, module=None) as cluster:
        assert (len(cluster.masters()), len(cluster.replicas())) == (3, 3)
        with cluster.cluster_client() as client:
            for i in range(500):
                client.set(f"k{i}", i)
        assert cluster.owner("k1").client().get("k1") == b"1"
        added = cluster.add_node(with_slots=True)
        assert len(cluster.masters()) == 4 and added.client().dbsize() > 0
        assert sum(master.client().dbsize() for master in cluster.masters()) == 500
        assert cluster.add_node().is_master()
        lost = cluster.owner("k1")
        lost.kill()
        wait_until(lambda: len(cluster.masters()) == 5, SOON_S, "a replica taking over")
        cluster.wait_cluster_ok()
        assert cluster.owner("k1") is not lost and cluster.owner("k1").client().get("k1") == b"1"
        lost.restart()
        cluster.wait_cluster_ok()
        wait_until(lambda: not lost.is_master(), SOON_S, "the lost master coming back as a replica")
        stopped = cluster.masters()[0]
        stopped.pause()
        assert stopped in cluster.masters()
        pids, path = [server.pid for server in cluster.servers], cluster.dir
    assert all(gone(pid) for pid in pids) and not os.path.exists(path)


def test_a_cluster_of_one_shard():
    with LocalCluster(masters=1, module=None) as cluster:
        assert cluster.cluster_client().set("a", "b")
        assert cluster.owner("a") is cluster.servers[0]


def test_an_exception_ends_the_cluster():
    with pytest.raises(KeyError), LocalCluster(masters=1, module=None) as cluster:
        pid, path = cluster.servers[0].pid, cluster.dir
        raise KeyError
    assert gone(pid) and not os.path.exists(path)


# --- other processes ---------------------------------------------------------------------------------------------

HEAD = f"import sys; sys.path.insert(0, {str(REPO / 'deploy')!r})\nimport localcluster as lc\n"


def python(code):
    return subprocess.run([sys.executable, "-c", HEAD + code], stdout=subprocess.PIPE, text=True).stdout.split()


ENDS = [("import os; os.kill(os.getpid(), 9)", False), ("sys.exit(0)", True), ("1 / 0", True)]


@pytest.mark.parametrize(("end", "tidy"), ENDS)
def test_servers_end_with_their_parent(end, tidy):
    code = f"sys.stderr = None\ns = lc.start_server()\nprint(s.pid, s.dir, flush=True)\n{end}"
    pid, path = python(code)
    wait_until(lambda: gone(int(pid)), SOON_S, "the server ending")
    assert os.path.exists(path) != tidy
    if not tidy:
        localcluster.shutil.rmtree(path)


def test_a_detached_cluster_outlives_its_parent(tmp_path):
    python(
        f"c = lc.LocalCluster(masters=3, module=None, dir={str(tmp_path)!r}, detached=True)\n"
        "c.start()\nc.save_state()\n"
    )
    cluster = LocalCluster.load_state(tmp_path)
    pids = [server.pid for server in cluster.servers]
    try:
        assert len(cluster.masters()) == 3
        cluster.add_node()
        cluster.save_state()
        assert len(LocalCluster.load_state(tmp_path).live()) == 4
        cluster.servers[0].kill(signal.SIGKILL)
        assert not cluster.servers[0].alive()
    finally:
        cluster.stop()
    assert all(gone(pid) for pid in pids)


def test_a_cluster_starts_again_in_the_same_directory(tmp_path):
    for _ in range(2):
        with LocalCluster(masters=1, module=None, dir=tmp_path) as cluster:
            assert cluster.client().set("a", "b")
