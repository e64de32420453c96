"""Redis servers and clusters on 127.0.0.1, for the demo, the tests, the benchmark and the command-line tool.

Only the standard library and redis-py are used. Servers live in a directory of their own, write no snapshot and die
with the process that started them, unless they were started as `detached`.
"""

import atexit
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot
from redis.retry import Retry

REPO = Path(__file__).resolve().parent.parent
DEFAULT_MODULE = os.environ.get("OXIGEARS_MODULE") or str(REPO / "target" / "release" / "liboxigears.so")
DEFAULT_REDIS_SERVER = os.environ.get("OXIGEARS_REDIS_SERVER") or "redis-server"

HOST = "127.0.0.1"
SLOTS = 16384
BUS_OFFSET = 10000
MESH_OFFSET = 11000
# Port, bus and mesh then all lie below the usual range of ports that the kernel gives to outgoing connections.
FIRST_PORT, LAST_PORT = 11100, 21700
# Runs side by side that restart their servers must not take each other's ports meanwhile: each one has the ports of one
# remainder. Both offsets are multiples of the number of shares, so all three ports are in one share.
PORT_SHARES = 8
PORT_SHARE = os.environ.get("OXIGEARS_PORT_SHARE")
START_TRIES = 8
# Bounds for what must happen at some time. They are generous, since the machine may be busy.
READY_S = 60.0
STOP_S = 10.0
CLUSTER_S = 60.0
POLL_S = 0.02
PROBE_S = 5.0
STATE_FILE = "cluster.json"
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)
_lock = threading.Lock()
_reserved: set[int] = set()
_live: set["Server"] = set()
_temporary: set[str] = set()
_owner_pid = os.getpid()


class StartError(RuntimeError):
    """A server did not start. The text holds the end of its log."""


def wait_until(probe, timeout, what):
    """Calls `probe` until it gives something true, and gives that; errors of a connection count as `not yet`."""
    deadline = time.monotonic() + timeout
    last = None
    while True:
        try:
            value = probe()
            if value:
                return value
            last = value
        except (redis.RedisError, OSError) as error:
            last = error
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s (last: {last!r})")
        time.sleep(POLL_S)


def _is_free(port):
    with socket.socket() as probe:
        # As the server does it: ports in TIME_WAIT count as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port():
    """A port that is free together with those of the bus and the mesh, and not given out before."""
    for _ in range(2000):
        port = random.randrange(FIRST_PORT, LAST_PORT)
        if PORT_SHARE is not None:
            port += int(PORT_SHARE) % PORT_SHARES - port % PORT_SHARES
        trio = {port, port + BUS_OFFSET, port + MESH_OFFSET}
        with _lock:
            if trio & _reserved or not all(_is_free(one) for one in trio):
                continue
            _reserved.update(trio)
        return port
    raise RuntimeError("no free port found")


def _release_port(port):
    with _lock:
        _reserved.difference_update({port, port + BUS_OFFSET, port + MESH_OFFSET})


def _die_with(parent):
    """What the new process does before it becomes the server."""

    def ask_for_signal():
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The parent may have ended before the line above.
        if os.getppid() != parent:
            os._exit(1)

    return ask_for_signal


def _make_dir():
    path = tempfile.mkdtemp(prefix="oxigears-")
    _temporary.add(path)
    return path


def _drop_dir(path):
    if path in _temporary:
        _temporary.discard(path)
        shutil.rmtree(path, ignore_errors=True)


@atexit.register
def _tidy_up():
    # A forked child that ends normally must not end its parent's servers.
    if os.getpid() != _owner_pid:
        return
    for server in list(_live):
        server.kill()
    for path in list(_temporary):
        _drop_dir(path)


def _start_time(pid):
    """When the process started, in clock ticks since boot: tells it from a later one with the same pid."""
    stat = _stat_fields(pid)
    return int(stat[19]) if stat else None


def _stat_fields(pid):
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the name in parentheses and may hold anything.
    return text[text.rindex(")") + 2 :].split()


class Server:
    """One redis-server process."""

    def __init__(
        self,
        port,
        directory,
        *,
        module=None,
        module_args=(),
        server_args=(),
        redis_server=None,
        cluster=False,
        detached=False,
    ):
        self.port = port
        self.dir = str(directory)
        self.module = str(module) if module else None
        self.module_args = [str(arg) for arg in module_args]
        self.server_args = [str(arg) for arg in server_args]
        self.redis_server = str(redis_server or DEFAULT_REDIS_SERVER)
        self.cluster = cluster
        self.detached = detached
        self.pid = None
        self._process = None
        self._started_at = None
        self._node_id = None
        self._is_master = True

    def __repr__(self):
        return f"<Server {self.addr} pid {self.pid}>"

    @property
    def addr(self):
        return f"{HOST}:{self.port}"

    @property
    def log_path(self):
        return os.path.join(self.dir, "server.log")

    @property
    def password(self):
        args = self.server_args
        return args[args.index("--requirepass") + 1] if "--requirepass" in args else None

    @property
    def output_path(self):
        """What the process writes to its stdout and stderr by itself."""
        return os.path.join(self.dir, "output.log")

    def argv(self):
        argv = [self.redis_server, "--port", str(self.port), "--bind", HOST, "--dir", self.dir]
        argv += ["--save", "", "--appendonly", "no", "--logfile", self.log_path, "--daemonize", "no"]
        # A master would wait this long for slow replicas before it ends, and for more of them before it sends its data.
        argv += ["--shutdown-timeout", "0", "--repl-diskless-sync-delay", "0"]
        if self.cluster:
            argv += ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"]
            argv += ["--cluster-node-timeout", "2000"]
        argv += self.server_args
        if self.module:
            argv += ["--loadmodule", self.module, *self.module_args]
        return argv

    # --- life ----------------------------------------------------------------------------------------------

    def spawn(self):
        """Starts the process without waiting for it."""
        if self.alive():
            raise RuntimeError(f"{self} runs already")
        os.makedirs(self.dir, exist_ok=True)
        # The signal comes when the starting thread ends, so only the main thread may ask for it.
        guarded = not self.detached and threading.current_thread() is threading.main_thread()
        with open(self.output_path, "ab") as output:
            self._process = subprocess.Popen(
                self.argv(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.dir,
                start_new_session=self.detached,
                preexec_fn=_die_with(os.getpid()) if guarded else None,
            )
        self.pid = self._process.pid
        self._started_at = _start_time(self.pid)
        if not self.detached:
            _live.add(self)

    def start(self):
        self.spawn()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def wait_ready(self, timeout=READY_S):
        """Returns when the server answers and has loaded its data."""
        client = self.client(socket_timeout=PROBE_S)

        def ready():
            if not self.alive():
                raise StartError(f"{self} ended while it started:\n{self._log_tail()}")
            # On a port that was taken it is another server that answers, until this one has ended.
            return client.ping() and client.info("server")["process_id"] == self.pid

        try:
            wait_until(ready, timeout, f"{self} becoming ready")
        finally:
            client.close()

    def alive(self):
        if self.pid is None:
            return False
        if self._process is not None:
            return self._process.poll() is None
        stat = _stat_fields(self.pid)
        return stat is not None and stat[0] != "Z" and int(stat[19]) == self._started_at

    def paused(self):
        return self.alive() and (_stat_fields(self.pid) or ["?"])[0] == "T"

    def kill(self, sig=signal.SIGKILL):
        """Sends the signal; after SIGKILL the process is gone when this returns."""
        if self.alive():
            os.kill(self.pid, sig)
        if sig == signal.SIGKILL:
            self._wait_end(STOP_S)

    def stop(self):
        """Ends the server, by force if it does not end by itself. True if it did end by itself."""
        clean = True
        if self.alive():
            os.kill(self.pid, signal.SIGTERM)
            os.kill(self.pid, signal.SIGCONT)
            clean = self._wait_end(STOP_S)
            if not clean:
                self.kill()
        self._forget()
        return clean

    def _wait_end(self, timeout):
        deadline = time.monotonic() + timeout
        while self.alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        _live.discard(self)
        return True

    def _forget(self):
        _live.discard(self)
        _release_port(self.port)
        _drop_dir(self.dir)

    def pause(self):
        os.kill(self.pid, signal.SIGSTOP)
        wait_until(self.paused, STOP_S, f"{self} stopping")

    def resume(self):
        os.kill(self.pid, signal.SIGCONT)

    def restart(self):
        """Ends the process and starts it again on the same port with the same directory."""
        if self.alive():
            os.kill(self.pid, signal.SIGTERM)
            os.kill(self.pid, signal.SIGCONT)
            if not self._wait_end(STOP_S):
                self.kill()
        self.start()

    # --- looking at it -------------------------------------------------------------------------------------

    def client(self, **kw):
        """A new client. It neither repeats a command nor ends one for taking long, unless told so."""
        kw.setdefault("protocol", 2)
        kw.setdefault("socket_timeout", None)
        kw.setdefault("retry", Retry(NoBackoff(), 0))
        kw.setdefault("password", self.password)
        return redis.Redis(host=HOST, port=self.port, **kw)

    def command(self, *args, timeout=PROBE_S):
        """The plain reply to one command on a connection of its own."""
        client = self.client(socket_timeout=timeout)
        try:
            connection = client.connection_pool.get_connection()
            connection.send_command(*args)
            return connection.read_response()
        finally:
            client.close()

    @property
    def node_id(self):
        """The id of the node in its cluster, as text; forty zeros outside of a cluster."""
        if not self.cluster:
            return "0" * 40
        if self._node_id is None:
            self._node_id = self.command("CLUSTER", "MYID").decode()
        return self._node_id

    def is_master(self):
        """Its role now; of a server that cannot answer, the last one known."""
        if self.alive() and not self.paused():
            try:
                self._is_master = self.command("ROLE")[0] == b"master"
            except (redis.RedisError, OSError):
                pass
        return self._is_master

    def log(self):
        try:
            return Path(self.log_path).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def output(self):
        try:
            return Path(self.output_path).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def _log_tail(self, lines=40):
        return "\n".join((self.log() + self.output()).splitlines()[-lines:])

    def _status_bytes(self, field):
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
        raise RuntimeError(f"no {field} for {self}: did it end?")

    def rss_bytes(self):
        return self._status_bytes("VmRSS")

    def peak_rss_bytes(self):
        return self._status_bytes("VmHWM")

    # --- handing it on to another process ------------------------------------------------------------------

    def state(self):
        kept = ("port", "dir", "module", "module_args", "server_args", "redis_server", "cluster", "pid")
        return {**{name: getattr(self, name) for name in kept}, "started_at": self._started_at}

    @classmethod
    def from_state(cls, state):
        state = dict(state)
        pid, started_at = state.pop("pid"), state.pop("started_at")
        server = cls(state.pop("port"), state.pop("dir"), detached=True, **state)
        server.pid, server._started_at = pid, started_at
        return server


def _lost_its_port(server):
    text = server.log() + server.output()
    return "Address already in use" in text or "Failed listening on port" in text


def start_servers(count, *, port=None, dirs=None, **options):
    """Starts servers at once and waits for all; one whose port was taken meanwhile is tried again on another."""
    servers = []
    try:
        for i in range(count):
            chosen = port or free_port()
            server = Server(chosen, dirs[i] if dirs else _make_dir(), **options)
            servers.append(server)
            server.spawn()
        for i, server in enumerate(servers):
            servers[i] = _settle(server, may_move=port is None, **options)
    except BaseException:
        for server in servers:
            server.kill()
            server._forget()
        raise
    return servers


def _settle(server, may_move, **options):
    for tries_left in reversed(range(START_TRIES)):
        try:
            server.wait_ready()
            return server
        except StartError:
            if not (may_move and tries_left and _lost_its_port(server)):
                raise
        for path in (server.log_path, server.output_path):
            Path(path).unlink(missing_ok=True)
        _live.discard(server)
        # The lost port stays reserved: another process has it.
        server = Server(free_port(), server.dir, **options)
        server.spawn()
    raise StartError("no port could be held")


def start_server(
    module=None,
    module_args=(),
    server_args=(),
    redis_server=None,
    dir=None,
    cluster=False,
    port=None,
    detached=False,
):
    """One running server. Its directory is removed by `stop()` unless `dir` was given."""
    return start_servers(
        1,
        port=port,
        dirs=[dir] if dir else None,
        module=module,
        module_args=module_args,
        server_args=server_args,
        redis_server=redis_server,
        cluster=cluster,
        detached=detached,
    )[0]


class LocalCluster:
    """A Redis Cluster on this machine. As a context manager it starts on entry and is gone afterwards."""

    def __init__(
        self,
        masters=3,
        replicas=0,
        module=DEFAULT_MODULE,
        module_args=(),
        server_args=(),
        redis_server=None,
        dir=None,
        detached=False,
    ):
        """`replicas` counts those of each master."""
        self.master_count = masters
        self.replicas_per_master = replicas
        self.options = {
            "module": str(module) if module else None,
            "module_args": [str(arg) for arg in module_args],
            "server_args": [str(arg) for arg in server_args],
            "redis_server": str(redis_server or DEFAULT_REDIS_SERVER),
            "detached": detached,
        }
        self.dir = self._given_dir = str(dir) if dir else None
        self.servers: list[Server] = []
        self._made = 0

    def __enter__(self):
        if not self.servers:
            self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    # --- life ----------------------------------------------------------------------------------------------

    def start(self):
        if self.dir is None or not os.path.isdir(self.dir):
            self.dir = self._given_dir or _make_dir()
            os.makedirs(self.dir, exist_ok=True)
            if self.options["detached"]:
                _temporary.discard(self.dir)
        try:
            self.servers = self._start(self.master_count * (1 + self.replicas_per_master))
            self._create()
            self.wait_cluster_ok()
        except BaseException:
            self.stop()
            raise

    def _start(self, count):
        dirs = [os.path.join(self.dir, f"node-{self._made + i}") for i in range(count)]
        self._made += count
        for path in dirs:
            # A cluster stopped earlier in the same directory leaves its nodes' memory of each other.
            shutil.rmtree(path, ignore_errors=True)
        return start_servers(count, dirs=dirs, cluster=True, **self.options)

    def stop(self):
        """Ends every server. True if all of them ended by themselves."""
        for server in self.servers:
            if server.alive():
                server.kill(signal.SIGTERM)
                server.kill(signal.SIGCONT)
        clean = [server.stop() for server in self.servers]
        self.servers = []
        if self.dir is not None:
            _drop_dir(self.dir)
        return all(clean)

    def _create(self):
        masters = self.servers[: self.master_count]
        for i, server in enumerate(masters):
            first, last = SLOTS * i // len(masters), SLOTS * (i + 1) // len(masters) - 1
            server.command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for i, server in enumerate(self.servers):
            # Without epochs of their own the nodes would first have to settle a dispute.
            server.command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        self._meet(self.servers)
        for i, replica in enumerate(self.servers[self.master_count :]):
            self._replicate(replica, masters[i % len(masters)])

    def _meet(self, newcomers):
        known = [server for server in self.live() if server not in newcomers]
        for server in newcomers:
            for other in known:
                server.command("CLUSTER", "MEET", HOST, other.port)
            known.append(server)
        ids = {server.node_id for server in self.live()}
        for server in self.live():
            wait_until(lambda server=server: ids <= _connected_ids(server), CLUSTER_S, f"{server} knowing all nodes")

    def _replicate(self, replica, master):
        def told():
            return replica.command("CLUSTER", "REPLICATE", master.node_id) == b"OK"

        wait_until(told, CLUSTER_S, f"{replica} following {master}")
        replica._is_master = False

    # --- looking at it -------------------------------------------------------------------------------------

    def live(self):
        return [server for server in self.servers if server.alive()]

    def masters(self):
        return [server for server in self.live() if server.is_master()]

    def replicas(self):
        return [server for server in self.live() if not server.is_master()]

    def client(self, i=0, **kw):
        return self.servers[i].client(**kw)

    def cluster_client(self, **kw):
        kw.setdefault("protocol", 2)
        kw.setdefault("socket_timeout", None)
        kw.setdefault("password", self.servers[0].password)
        nodes = [ClusterNode(HOST, server.port) for server in self._answering()]
        return RedisCluster(startup_nodes=nodes, **kw)

    def _answering(self):
        return [server for server in self.live() if not server.paused()]

    def owner(self, key):
        """The master that serves the key."""
        slot = key_slot(key if isinstance(key, bytes) else str(key).encode())
        for first, last, port, _ in _slot_rows(self._answering()[0]):
            if first <= slot <= last:
                return self.by_port(port)
        raise LookupError(f"nobody serves slot {slot}")

    def by_port(self, port):
        return next(server for server in self.servers if server.port == port)

    def wait_cluster_ok(self, timeout=CLUSTER_S):
        """Returns when all slots are served, all nodes see the same owners and every replica is in step."""
        servers = self._answering()

        def agreed():
            views = {tuple(_slot_rows(server)) for server in servers}
            return len(views) == 1 and all(_is_settled(server) for server in servers)

        wait_until(agreed, timeout, "the cluster agreeing on its slots")

    def wait_mesh(self, timeout=CLUSTER_S):
        """Returns when every master that serves slots has a connection to every other one, by RG.INFOCLUSTER."""
        rows = _slot_rows(self._answering()[0])
        wanted = {node_id for _, _, _, node_id in rows}
        serving = [self.by_port(port) for port in sorted({row[2] for row in rows})]

        def meshed(server):
            reply = server.command("RG.INFOCLUSTER")
            if len(wanted) == 1:
                return reply == b"no cluster mode"
            if not isinstance(reply, list):
                return False
            shards = [dict(zip(shard[::2], shard[1::2], strict=True)) for shard in reply[4]]
            return {shard[b"id"].decode() for shard in shards} == wanted and all(
                shard[b"runid"] is not None for shard in shards
            )

        for server in serving:
            wait_until(lambda server=server: meshed(server), timeout, f"the mesh of {server}")

    # --- changing it ---------------------------------------------------------------------------------------

    def add_node(self, with_slots=False):
        """Adds a master, on request with its fair share of the slots and the keys in them."""
        server = self._start(1)[0]
        self.servers.append(server)
        self._meet([server])
        self.wait_cluster_ok()
        if with_slots:
            self._give_share(server)
            self.wait_cluster_ok()
        return server

    def add_replica(self, master):
        server = self.add_node()
        self._replicate(server, master)
        self.wait_cluster_ok()
        return server

    def _give_share(self, target):
        owned = {}
        for first, last, port, _ in _slot_rows(self._answering()[0]):
            owned.setdefault(port, []).extend(range(first, last + 1))
        for port, slots in owned.items():
            share = len(slots) // (len(owned) + 1)
            self.move_slots(slots[len(slots) - share :], self.by_port(port), target)

    def move_slots(self, slots, source, target):
        """Moves slots with their keys, as `redis-cli --cluster reshard` does."""
        slots = list(slots)
        others = [server for server in self.masters() if server not in (source, target)]
        with source.client(socket_timeout=CLUSTER_S) as giver, target.client(socket_timeout=CLUSTER_S) as taker:
            _set_slots(taker, slots, "IMPORTING", source.node_id)
            _set_slots(giver, slots, "MIGRATING", target.node_id)
            for slot in slots:
                while keys := giver.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                    giver.execute_command("MIGRATE", HOST, target.port, "", 0, 60000, "REPLACE", "KEYS", *keys)
            # The new owner first: it takes the epoch by which the others believe it.
            _set_slots(taker, slots, "NODE", target.node_id)
            _set_slots(giver, slots, "NODE", target.node_id)
        for other in others:
            if not other.paused():
                with other.client(socket_timeout=CLUSTER_S) as client:
                    _set_slots(client, slots, "NODE", target.node_id)

    # --- handing it on to another process ------------------------------------------------------------------

    def save_state(self):
        """Writes what `load_state` needs into the directory of the cluster."""
        kept = ("master_count", "replicas_per_master", "options")
        state = {name: getattr(self, name) for name in kept}
        state["made"] = self._made
        state["servers"] = [server.state() for server in self.servers]
        path = Path(self.dir) / STATE_FILE
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(state, indent=1))
        draft.replace(path)

    @classmethod
    def load_state(cls, dir):
        """The cluster that another process started as `detached` and saved."""
        state = json.loads((Path(dir) / STATE_FILE).read_text())
        cluster = cls(state["master_count"], state["replicas_per_master"], dir=dir, **state["options"])
        cluster.servers = [Server.from_state(one) for one in state["servers"]]
        cluster._made = state["made"]
        return cluster


def _set_slots(client, slots, verb, node_id):
    pipe = client.pipeline(transaction=False)
    for slot in slots:
        pipe.execute_command("CLUSTER", "SETSLOT", slot, verb, node_id)
    pipe.execute()


def _slot_rows(server):
    """(first, last, port, node id) of each range, in order, as this server sees it."""
    rows = server.command("CLUSTER", "SLOTS")
    return sorted((first, last, owner[1], owner[2].decode()) for first, last, owner, *_ in rows)


def _connected_ids(server):
    lines = server.command("CLUSTER", "NODES").decode().splitlines()
    rows = [line.split() for line in lines]
    return {row[0] for row in rows if "handshake" not in row[2] and row[7] == "connected"}


def _is_settled(server):
    info = server.command("CLUSTER", "INFO").decode()
    if "cluster_state:ok" not in info or f"cluster_slots_assigned:{SLOTS}" not in info:
        return False
    role = server.command("ROLE")
    return role[0] == b"master" or role[3] == b"connected"


if __name__ == "__main__":
    sys.exit("a library: deploy/cluster.py is the tool")
