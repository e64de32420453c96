"""Clusters with passwords, over IPv6, by host name and over TLS: the mesh comes up by itself and works."""

import pytest
from breaking import HEAL_S, no_crash
from guarded import (
    KEY_PASSWORD,
    PASSWORD,
    Certificates,
    GuardedCluster,
    by_host_name,
    has_ipv6,
    over_ipv6,
    with_password,
)
from replies import wait_until

KEYS = 90
PLAIN = {"password": with_password, "host-name": by_host_name}
# A machine without IPv6 has nothing to try here.
if has_ipv6():
    PLAIN["ipv6"] = over_ipv6
TLS = ["only_tls", "beside_plain"]


def run(server, script):
    with server.client(socket_timeout=60) as client:
        results, errors = client.execute_command("RG.PYEXECUTE", script)
        assert errors == []
        return results


def fill(cluster):
    for i in range(KEYS):
        cluster.owner(f"k{i}").command("SET", f"k{i}", i % 3)


def expect_working(cluster):
    fill(cluster)
    for server in cluster.servers:
        ids = run(server, "GB('ShardsIDReader').run()")
        assert sorted(ids) == sorted(other.node_id.encode() for other in cluster.servers)
        assert run(server, "GB().count().run('k*')") == [b"%d" % KEYS]
        counted = run(
            server, "GB().countby(lambda r: r['value']).map(lambda r: (r['key'], r['value'])).sort().run('k*')"
        )
        assert counted == [b"('0', 30)", b"('1', 30)", b"('2', 30)"]
        back = "GB().repartition(lambda r: r['key']).foreach(lambda r: execute('get', r['key'])).count().run('k*')"
        assert run(server, back) == [b"%d" % KEYS]
    no_crash(cluster.servers)


def expect_back_after_a_restart(cluster):
    victim = cluster.servers[1]
    victim.kill()
    victim.start()
    cluster.wait_cluster_ok(HEAL_S)
    cluster.wait_mesh(HEAL_S)

    def all_there():
        with cluster.servers[0].client(socket_timeout=60) as client:
            results, errors = client.execute_command("RG.PYEXECUTE", "GB('ShardsIDReader').run()")
            return len(results) == 3 and errors == []

    wait_until(all_there, "the restarted shard taking part", HEAL_S)


def expect_no_secret(cluster, *secrets):
    """Neither logs nor INFO hold a password."""
    for server in cluster.servers:
        with server.client(socket_timeout=60) as client:
            info = repr(client.execute_command("INFO", "everything")) + repr(client.execute_command("RG.INFOCLUSTER"))
        for text in (server.log(), server.output(), info):
            assert not any(secret in text for secret in secrets)


@pytest.mark.parametrize("kind", PLAIN)
def test_plain(kind):
    with GuardedCluster(PLAIN[kind], masters=3) as cluster:
        cluster.wait_mesh(HEAL_S)
        expect_working(cluster)
        expect_back_after_a_restart(cluster)
        expect_no_secret(cluster, PASSWORD)


@pytest.mark.parametrize("kind", TLS)
def test_tls(tmp_path, kind):
    certificates = Certificates(tmp_path)
    with GuardedCluster(getattr(certificates, kind), masters=3) as cluster:
        cluster.wait_mesh(HEAL_S)
        expect_working(cluster)
        if kind == "only_tls":
            expect_back_after_a_restart(cluster)
        expect_no_secret(cluster, KEY_PASSWORD, "PRIVATE KEY")


def test_an_encrypted_key(tmp_path):
    with GuardedCluster(Certificates(tmp_path).with_locked_key, masters=3) as cluster:
        cluster.wait_mesh(HEAL_S)
        expect_working(cluster)
        expect_no_secret(cluster, KEY_PASSWORD, "PRIVATE KEY")


def test_a_password_that_is_set_later():
    """CONFIG SET requirepass on a running cluster: peers do not need a restart."""
    with GuardedCluster(lambda server: None, masters=3) as cluster:
        cluster.wait_mesh(HEAL_S)
        for server in cluster.servers:
            server.command("CONFIG", "SET", "requirepass", PASSWORD, "masterauth", PASSWORD)
            server.client_options = {"password": PASSWORD}
        expect_working(cluster)
