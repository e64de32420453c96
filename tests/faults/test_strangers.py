"""Whoever does not belong to the cluster does no harm at the mesh's port, and learns nothing."""

import contextlib
import random
import ssl

import pytest
from breaking import EVERYWHERE, outcome
from guarded import Certificates, GuardedCluster
from replies import executions, results_of
from strangers import (
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    Stranger,
    call,
    field,
    frame,
    headers,
    listening_ports,
    mesh_ports,
    message,
)
from wire import Wire

RANDOM = random.Random(20)
MESH = "/oxigears.mesh.v1.Mesh/"
HELLO = PREFACE + frame(SETTINGS)
TLS_CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500
# What a stranger would like to have run: the plan of an execution.
PREPARE = field(1, "f" * 40 + "-1") + field(2, 1) + field(3, "f" * 40) + field(4, b"\x00" * 64) + field(5, 5000)
FRAME = field(1, PREPARE)

NOISE = {
    "nothing": b"",
    "zeros": b"\x00" * 10_000,
    "random": RANDOM.randbytes(100_000),
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "tls": TLS_CLIENT_HELLO,
    "half-a-preface": PREFACE[:10],
    "preface-and-random": PREFACE + RANDOM.randbytes(100_000),
    "preface-and-text": PREFACE + b"hello " * 1000,
    "a-huge-frame": HELLO + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + b"x" * 100_000,
    "data-without-a-stream": HELLO + frame(DATA, b"x" * 100, stream=7),
    "broken-headers": HELLO + frame(HEADERS, b"\xff" * 200, flags=4, stream=1),
    "bad-settings": PREFACE + frame(SETTINGS, b"x" * 5),
    "many-settings": PREFACE + frame(SETTINGS, b"\x00\x03\x00\x00\x00\x01") * 5000,
    "many-pings": HELLO + frame(PING, b"12345678") * 5000,
    "windows": HELLO + frame(WINDOW_UPDATE, b"\x7f\xff\xff\xff") * 100,
    "goodbye": HELLO + frame(GOAWAY, b"\x00" * 8),
    "large-headers": HELLO + frame(HEADERS, headers("/x", [("x", "y" * 15_000)]), flags=4, stream=1),
}


def rapid_resets():
    """Streams that are opened and given up at once."""
    out = HELLO
    for i in range(2000):
        stream = 2 * i + 1
        out += frame(HEADERS, headers(MESH + "Link"), flags=4, stream=stream)
        out += frame(0x3, b"\x00\x00\x00\x08", stream=stream)
    return out


CALLS = {
    "challenge": call(MESH + "Challenge", field(1, "f" * 40)),
    "challenge-empty": call(MESH + "Challenge"),
    "challenge-garbage": call(MESH + "Challenge", RANDOM.randbytes(900)),
    "challenge-too-large": call(MESH + "Challenge", field(1, "f" * 15_000)),
    "link": call(MESH + "Link", FRAME),
    "link-open": call(MESH + "Link", FRAME, end=False),
    "link-garbage": call(MESH + "Link", RANDOM.randbytes(5000), end=False),
    "link-as-a-member": call(MESH + "Link", FRAME, [("from", "f" * 40), ("authorization", "Bearer x")], end=False),
    "link-wrong-length": frame(HEADERS, headers(MESH + "Link"), 4, 1)
    + frame(DATA, b"\x00\xff\xff\xff\xff" + b"x", 0, 1),
    "no-such-call": call(MESH + "Everything", b"x"),
    "no-such-service": call("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", field(7, "")),
    "not-grpc": frame(HEADERS, headers("/", [("content-length", "0")]), 5, 1),
    "messages-without-end": frame(HEADERS, headers(MESH + "Link"), 4, 1) + frame(DATA, message(FRAME), 0, 1) * 500,
}


@pytest.fixture
def doors(trio):
    found = {server: mesh_ports(server) for server in trio.servers}
    assert all(found.values()), f"every shard of a cluster serves its peers somewhere: {found}"
    return found


def secrets(cluster):
    """What a stranger must not be told."""
    return [server.node_id.encode() for server in cluster.servers]


def expect_unharmed(cluster, pids):
    assert [server.pid for server in cluster.servers if server.alive()] == pids
    for server in cluster.servers:
        with Wire(server.port) as wire:
            assert len(results_of(wire.ok("RG.PYEXECUTE", EVERYWHERE))) == 3
            assert not any(name.startswith(b"f" * 40) for name in executions(wire)), "a stranger's plan was taken"


def bother(cluster, ports, data):
    """Sends it to every shard and looks at what comes back."""
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(Stranger(port)) for port in ports]
        for stranger in strangers:
            stranger.send(data)
        for stranger in strangers:
            reply = stranger.received(0.1)
            assert not any(secret in reply for secret in secrets(cluster)), reply


@pytest.mark.parametrize("kind", NOISE)
def test_noise(trio, doors, kind):
    pids = [server.pid for server in trio.servers]
    bother(trio, [port for ports in doors.values() for port in ports], NOISE[kind])
    expect_unharmed(trio, pids)


@pytest.mark.parametrize("kind", CALLS)
def test_calls_without_credentials(trio, doors, kind):
    pids = [server.pid for server in trio.servers]
    bother(trio, [port for ports in doors.values() for port in ports], HELLO + CALLS[kind])
    expect_unharmed(trio, pids)


def test_rapid_resets(trio, doors):
    pids = [server.pid for server in trio.servers]
    bother(trio, [ports[0] for ports in doors.values()], rapid_resets())
    expect_unharmed(trio, pids)


def test_many_silent_connections(trio, doors):
    """They neither keep the members out nor stay for ever."""
    pids = [server.pid for server in trio.servers]
    port = doors[trio.servers[0]][0]
    strangers = []
    try:
        for _ in range(300):
            try:
                strangers.append(Stranger(port))
            except OSError:
                break
        assert strangers
        for stranger in strangers[::2]:
            stranger.send(PREFACE)
        expect_unharmed(trio, pids)
        # A connection that never says who it is gets hung up on.
        first = strangers[1]
        first.socket.settimeout(30)
        try:
            while first.socket.recv(1 << 16):
                pass
        except ConnectionError:
            pass
    finally:
        for stranger in strangers:
            stranger.socket.close()
    expect_unharmed(trio, pids)


def test_noise_while_an_execution_runs(trio, doors, wires):
    script = "GB('PythonReader').repartition(lambda x: x).count().run(lambda: iter(range(30_000)))"
    wires[0].send("RG.PYEXECUTE", script)
    for data in (*NOISE.values(), *(HELLO + frames for frames in CALLS.values())):
        for ports in doors.values():
            with Stranger(ports[0]) as stranger:
                stranger.send(data)
    results, errors = outcome(wires[0].read())
    assert (results, errors) == ([b"90000"], [])


def test_a_single_server_has_no_door(fresh):
    server = fresh()
    with Wire(server.port) as wire:
        assert results_of(wire.ok("RG.PYEXECUTE", EVERYWHERE)) == [b"1"]
    assert listening_ports(server) == {server.port}


def test_the_door_is_on_loopback_only(trio, doors):
    """As the server itself, which these tests bind to 127.0.0.1."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.read().splitlines()[1:]]
    own = {port for ports in doors.values() for port in ports}
    addresses = {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) in own}
    assert addresses == {"0100007F"}


def test_tls_asks_for_a_certificate_of_the_cluster(tmp_path):
    certificates = Certificates(tmp_path)
    outsider = tmp_path / "outsider"
    outsider.mkdir()
    foreign = Certificates(outsider)
    with GuardedCluster(certificates.only_tls, masters=3) as cluster:
        cluster.wait_mesh()
        pids = [server.pid for server in cluster.servers]
        for server in cluster.servers:
            ports = mesh_ports(server)
            assert ports
            for port in ports:
                # Without TLS nothing but an alert comes back.
                with Stranger(port) as stranger:
                    stranger.send(HELLO + CALLS["challenge"])
                    assert len(stranger.received(1)) < 100
                for own in (None, foreign):
                    assert_refused(port, certificates, own)
        for server in cluster.servers:
            with server.client(socket_timeout=60) as client:
                results, errors = client.execute_command("RG.PYEXECUTE", EVERYWHERE)
                assert len(results) == 3 and errors == []
        assert [server.pid for server in cluster.servers if server.alive()] == pids


def assert_refused(port, certificates, own):
    """A TLS client without a certificate, or with one of another CA, gets no answer to a call."""
    context = ssl.create_default_context(cafile=certificates.path("ca.crt"))
    context.set_alpn_protocols(["h2"])
    if own:
        context.load_cert_chain(own.path("node.crt"), own.path("node.key"))
    try:
        with Stranger(port, lambda plain: context.wrap_socket(plain, server_hostname="localhost")) as stranger:
            stranger.socket.sendall(HELLO + CALLS["challenge"])
            # With TLS 1.3 the refusal comes after the client's side of the handshake.
            reply = stranger.socket.recv(1 << 16)
    except OSError:
        return
    assert reply == b"", reply
