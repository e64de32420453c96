"""Code acts with the rights of the user who submitted it, on every shard."""

import pytest
import redis
from replies import is_error, pair
from wire import Error

USERS = {
    "bob": ["on", ">pw", "~b:*", "+@all"],
    "eve": ["on", ">pw", "~*", "+rg.pyexecute", "+get", "+scan"],
}


@pytest.fixture
def users(cluster):
    for server in cluster.masters():
        with server.client() as client:
            for name, rules in USERS.items():
                client.execute_command("ACL", "SETUSER", name, *rules)
    with cluster.cluster_client() as client:
        client.mset_nonatomic({"b:1": "x", "a:1": "y"})
    yield
    for server in cluster.masters():
        with server.client() as client:
            client.execute_command("ACL", "DELUSER", *USERS)


def run_as(cluster, user, script):
    with cluster.servers[0].client(username=user, password="pw") as client:
        return client.execute_command("RG.PYEXECUTE", script)


def write(key):
    return f"GB('ShardsIDReader').map(lambda x: execute('set', '{key}{{%s}}' % hashtag(), '1')).run()"


REFUSED = [
    ("bob", write("a:"), "keys"),
    ("eve", write("b:"), "command"),
    ("bob", "GB().count().run()", "right to read all keys"),
    ("bob", "GB('KeysOnlyReader').run()", "right to read all keys"),
    ("bob", "GB().count().run('a:1', noScan=True)", "NOPERM"),
    ("bob", "GB('StreamReader').run('a:1')", "NOPERM"),
    # A run that a step starts has the same rights.
    ("eve", "GB('ShardsIDReader').map(lambda x: execute('del', 'none{%s}' % hashtag())).run()", "command"),
]


@pytest.mark.parametrize(("user", "script", "text"), REFUSED)
def test_every_shard_refuses(cluster, users, user, script, text):
    results, errors = run_as(cluster, user, script)
    assert results == []
    assert len(errors) == 3
    assert all("NOPERM" in e.decode() and text in e.decode() for e in errors)


ALLOWED = [
    ("bob", write("b:"), [b"OK"] * 3),
    ("bob", "GB().map(lambda r: r['value']).filter(lambda v: v != 'None').run('b:1', noScan=True)", None),
    ("eve", "GB().count().run()", [b"2"]),
]


@pytest.mark.parametrize(("user", "script", "wanted"), ALLOWED)
def test_what_the_user_may_do_works(cluster, users, user, script, wanted):
    results, errors = run_as(cluster, user, script)
    assert errors == []
    assert wanted is None or results == wanted


def test_the_script_body_has_the_rights_too(cluster, users):
    with pytest.raises(redis.ResponseError, match="NOPERM"):
        run_as(cluster, "eve", "execute('set', 'k{%s}' % hashtag(), '1')")


def test_a_user_without_the_command_can_not_run_scripts(cluster, users):
    for server in cluster.masters():
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "eve", "-rg.pyexecute")
    with pytest.raises(redis.ResponseError):
        run_as(cluster, "eve", "x = 1")


def test_reading_leaves_the_encoding_alone(cluster):
    with cluster.cluster_client() as client:
        client.set("number", 12345)
        client.set("short", "abc")
    with cluster.servers[0].client() as client:
        results, errors = client.execute_command("RG.PYEXECUTE", "GB().map(lambda r: r['value']).run()")
    assert sorted(results) == [b"12345", b"abc"] and errors == []
    for key, encoding in (("number", b"int"), ("short", b"embstr")):
        with cluster.owner(key).client() as client:
            assert client.object("encoding", key) == encoding


@pytest.mark.parametrize(("policy", "refused"), [("noeviction", True), ("allkeys-lru", False)])
def test_a_full_server_takes_no_writes_of_functions(server, policy, refused):
    with server.client() as client:
        client.config_set("maxmemory-policy", policy)
        client.config_set("maxmemory", 1)
        try:
            results, errors = client.execute_command(
                "RG.PYEXECUTE",
                "GB('ShardsIDReader').map(lambda x: (execute('get', 'k'), execute('set', 'k', 'v'))).run()",
            )
        finally:
            client.config_set("maxmemory", 0)
            client.config_set("maxmemory-policy", "noeviction")
        assert bool(results) is not refused
        assert all(b"OOM" in error for error in errors) and bool(errors) is refused


LIMITS = [(["resetchannels"], "allchannels", ["PUBLISH", "c", "x"]), (["resetdbs", "db=1"], "alldbs", ["GET", "k"])]


@pytest.mark.matrix
def test_a_default_user_with_a_limit_is_not_one_with_all_rights(wire):
    for limit, restore, command in LIMITS:
        if isinstance(wire.call("ACL", "SETUSER", "default", *limit), Error):
            # The server knows no rights for databases.
            assert restore == "alldbs"
            continue
        try:
            is_error(wire.call(*command), "NOPERM")
            script = f"GB('ShardsIDReader').map(lambda x: execute(*{command})).run()"
            results, errors = pair(wire.ok("RG.PYEXECUTE", script))
        finally:
            wire.ok("ACL", "SETUSER", "default", restore)
        assert results == [] and "NOPERM" in errors[0]
