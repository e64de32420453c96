"""Clusters that are reached in another way: with a password, over IPv6, by host name, over TLS."""

import os
import socket
import subprocess

import localcluster
import redis
from localcluster import CLUSTER_S, LocalCluster, Server, wait_until

PASSWORD = "a-password-that-must-not-leak"
KEY_PASSWORD = "the-password-of-the-key"


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


class GuardedServer(Server):
    """A server with another address, or one that asks its clients for something."""

    host = localcluster.HOST
    client_options: dict = {}
    # Where the cluster bus listens, if that does not follow from the port.
    bus_port = None

    @property
    def addr(self):
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def client(self, **kw):
        kw.setdefault("protocol", 2)
        kw.setdefault("socket_timeout", None)
        kw.setdefault("retry", localcluster.Retry(localcluster.NoBackoff(), 0))
        return redis.Redis(host=self.host, port=self.port, **{**self.client_options, **kw})


class GuardedCluster(LocalCluster):
    """`make(server)` turns each new server into what the test needs."""

    def __init__(self, make, **options):
        super().__init__(**options)
        self.make = make

    def _start(self, count):
        servers = []
        for _ in range(count):
            directory = os.path.join(self.dir, f"node-{self._made}")
            self._made += 1
            server = GuardedServer(localcluster.free_port(), directory, cluster=True, **self.options)
            self.make(server)
            servers.append(server)
        try:
            for server in servers:
                server.spawn()
            for server in servers:
                server.wait_ready()
        except BaseException:
            for server in servers:
                server.kill()
            raise
        return servers

    def _meet(self, newcomers):
        for server in newcomers:
            for other in self.live():
                if other is not server:
                    bus = [other.bus_port] if other.bus_port else []
                    server.command("CLUSTER", "MEET", other.host, other.port, *bus)
        ids = {server.node_id for server in self.live()}
        for server in self.live():
            wait_until(
                lambda server=server: ids <= localcluster._connected_ids(server),
                CLUSTER_S,
                f"{server} knowing all nodes",
            )


def with_password(server):
    server.server_args += ["--requirepass", PASSWORD, "--masterauth", PASSWORD]
    server.client_options = {"password": PASSWORD}


def over_ipv6(server):
    server.host = "::1"
    server.server_args += ["--bind", "::1"]


def by_host_name(server):
    server.server_args += ["--cluster-announce-hostname", "localhost", "--cluster-preferred-endpoint-type", "hostname"]


# --- TLS ---------------------------------------------------------------------------------------------------------


class Certificates:
    """A CA and one certificate for all nodes, good for 127.0.0.1."""

    def __init__(self, folder):
        self.folder = folder
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        extensions = "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n"
        (folder / "node.ext").write_text(extensions)
        self._openssl(
            *("req", "-x509", *curve, "-nodes", "-days", "2", "-subj", "/CN=test ca"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", "ca.key", "-out", "ca.crt"),
        )
        self._openssl("req", *curve, "-nodes", "-subj", "/CN=node", "-keyout", "node.key", "-out", "node.csr")
        self._openssl(
            *("x509", "-req", "-days", "2", "-in", "node.csr", "-CA", "ca.crt", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-extfile", "node.ext", "-out", "node.crt"),
        )
        self._openssl(
            *("pkcs8", "-topk8", "-v2", "aes-256-cbc", "-in", "node.key", "-out", "locked.key"),
            *("-passout", f"pass:{KEY_PASSWORD}"),
        )

    def _openssl(self, *args):
        done = subprocess.run(["openssl", *args], cwd=self.folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def path(self, name):
        return str(self.folder / name)

    def server_args(self, port, locked=False):
        key = ["--tls-key-file", self.path("locked.key" if locked else "node.key")]
        if locked:
            key += ["--tls-key-file-pass", KEY_PASSWORD]
        files = ["--tls-cert-file", self.path("node.crt"), *key, "--tls-ca-cert-file", self.path("ca.crt")]
        return ["--tls-port", str(port), "--tls-cluster", "yes", "--tls-replication", "yes", *files]

    def client_options(self):
        return {
            "ssl": True,
            "ssl_ca_certs": self.path("ca.crt"),
            "ssl_certfile": self.path("node.crt"),
            "ssl_keyfile": self.path("node.key"),
        }

    def only_tls(self, server):
        server.server_args += ["--port", "0", *self.server_args(server.port)]
        server.client_options = self.client_options()

    def with_locked_key(self, server):
        server.server_args += ["--port", "0", *self.server_args(server.port, locked=True)]
        server.client_options = self.client_options()

    def beside_plain(self, server):
        """Clients without TLS, shards with it."""
        port = localcluster.free_port()
        server.server_args += self.server_args(port)
        server.bus_port = port + localcluster.BUS_OFFSET
