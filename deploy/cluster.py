"""A Redis Cluster on 127.0.0.1 with OxiGears in every shard, from the command line.

The cluster goes on running between the commands. What belongs to it is noted in its directory, and only that is ever
ended or removed.
"""

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

import redis

sys.path.insert(0, str(Path(__file__).resolve().parent))
import localcluster
from localcluster import LocalCluster, Server

REPO = Path(__file__).resolve().parent.parent
DEFAULT_DIR = REPO / ".cluster"
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP, "cont": signal.SIGCONT}


class ClusterError(RuntimeError):
    """A sentence for the user."""


# --- what the commands and the demo share ------------------------------------------------------------------------


def exists(directory: Path) -> bool:
    return (directory / localcluster.STATE_FILE).exists()


def load(directory: Path) -> LocalCluster:
    if not exists(directory):
        raise ClusterError(f"there is no cluster in {directory}: start one with 'up', or name its --dir")
    try:
        return LocalCluster.load_state(directory.resolve())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{directory / localcluster.STATE_FILE} cannot be read: {error!r}") from None


def up(
    directory: Path,
    masters: int = 3,
    replicas: int = 0,
    module: Path | str | None = localcluster.DEFAULT_MODULE,
    module_args: list[str] | tuple = (),
) -> LocalCluster:
    """Starts a cluster that outlives this process; `replicas` counts those of each master."""
    if exists(directory):
        if load(directory).live():
            raise ClusterError(f"a cluster runs in {directory} already: 'status' shows it, 'down' ends it")
        down(directory)
    if directory.exists() and any(directory.iterdir()):
        raise ClusterError(f"{directory} is not empty and no cluster: name another --dir")
    if module and not Path(module).is_file():
        raise ClusterError(f"there is no module at {module}: build it with 'make build', or name one with --module")
    if not shutil.which(localcluster.DEFAULT_REDIS_SERVER):
        raise ClusterError(f"{localcluster.DEFAULT_REDIS_SERVER} is not installed: deploy/setup.sh demo does it")
    directory.mkdir(parents=True, exist_ok=True)
    module = Path(module).resolve() if module else None
    cluster = LocalCluster(masters, replicas, module, module_args, dir=directory.resolve(), detached=True)
    try:
        cluster.start()
        cluster.save_state()
        if module:
            cluster.wait_mesh()
    except BaseException as error:
        cluster.stop()
        remove_files(directory)
        if isinstance(error, (RuntimeError, TimeoutError, OSError)):
            raise ClusterError(f"the cluster did not start: {error}") from None
        raise
    return cluster


def down(directory: Path) -> int:
    """Ends the cluster of this directory, if there is one, and removes its files. Gives the number of servers ended."""
    if not exists(directory):
        return 0
    cluster = load(directory)
    running = len(cluster.live())
    cluster.stop()
    remove_files(directory)
    return running


def remove_files(directory: Path) -> None:
    for node in directory.glob("node-*"):
        shutil.rmtree(node, ignore_errors=True)
    (directory / localcluster.STATE_FILE).unlink(missing_ok=True)
    if directory.exists() and not any(directory.iterdir()):
        directory.rmdir()


def find(cluster: LocalCluster, node: str) -> Server:
    """A node by its number in `status` or by its port."""
    if node.isdigit():
        if int(node) < len(cluster.servers):
            return cluster.servers[int(node)]
        for server in cluster.servers:
            if server.port == int(node):
                return server
    raise ClusterError(f"no node '{node}': give a number or a port that 'status' shows")


def first_live(cluster: LocalCluster) -> Server:
    for server in cluster.live():
        if not server.paused():
            return server
    raise ClusterError("no node of the cluster answers: 'down' removes what is left of it")


# --- commands ----------------------------------------------------------------------------------------------------


def cmd_up(options: argparse.Namespace) -> None:
    module = None if options.no_module else options.module
    cluster = up(options.dir, options.masters, options.replicas, module, options.module_args)
    print("running on 127.0.0.1 ports " + ", ".join(str(server.port) for server in cluster.servers))
    print(f"redis-cli -c -p {cluster.servers[0].port}")


def cmd_down(options: argparse.Namespace) -> None:
    if not exists(options.dir):
        print(f"there is no cluster in {options.dir}")
        return
    print(f"{down(options.dir)} servers ended")


def slots_of(server: Server) -> int:
    """Slots that the server itself claims."""
    for line in server.command("CLUSTER", "NODES").decode().splitlines():
        fields = line.split()
        if "myself" in fields[2]:
            ranges = [text.split("-") for text in fields[8:] if not text.startswith("[")]
            return sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges)
    return 0


def status_row(number: int, server: Server) -> list[str]:
    row = [str(number), server.addr, str(server.pid)]
    if not server.alive():
        return [*row, "-", "-", "-", "-", "ended"]
    memory = f"{server.rss_bytes() / 1024**2:.1f} MiB"
    if server.paused():
        return [*row, "-", "-", "-", memory, "stopped"]
    try:
        role = server.command("ROLE")[0].decode()
        return [*row, role, str(slots_of(server)), str(server.command("DBSIZE")), memory, "up"]
    except (redis.RedisError, OSError) as error:
        return [*row, "-", "-", "-", memory, f"no answer ({error})"]


def mesh_state(cluster: LocalCluster) -> str:
    if not cluster.options["module"]:
        return "no module"
    try:
        cluster.wait_mesh(timeout=0)
        return "connected"
    except (TimeoutError, redis.RedisError, OSError, StopIteration):
        return "not connected"


def cmd_status(options: argparse.Namespace) -> None:
    cluster = load(options.dir)
    head = ["node", "address", "pid", "role", "slots", "keys", "memory", "state"]
    rows = [head, *(status_row(number, server) for number, server in enumerate(cluster.servers))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    info = first_live(cluster).command("CLUSTER", "INFO").decode()
    state = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)["cluster_state"]
    print(f"cluster: {state}, mesh: {mesh_state(cluster)}")


def cmd_add_node(options: argparse.Namespace) -> None:
    cluster = load(options.dir)
    first_live(cluster)
    if options.replica_of:
        server = cluster.add_replica(find(cluster, options.replica_of))
    else:
        server = cluster.add_node(with_slots=not options.empty)
    cluster.save_state()
    print(f"node {len(cluster.servers) - 1} runs on {server.addr}")


def cmd_kill_node(options: argparse.Namespace) -> None:
    server = find(load(options.dir), options.node)
    if not server.alive():
        raise ClusterError(f"{server.addr} has ended already")
    server.kill(SIGNALS[options.signal])
    print(f"signal {options.signal} sent to {server.addr} (pid {server.pid})")


def cmd_exec(options: argparse.Namespace) -> None:
    cluster = load(options.dir)
    if options.node == "all":
        for server in cluster.live():
            print(f"{server.addr}:", flush=True)
            os.spawnvp(os.P_WAIT, "redis-cli", ["redis-cli", "-p", str(server.port), *options.command])
        return
    server = find(cluster, options.node) if options.node else first_live(cluster)
    # Without a node the client follows redirections to whoever owns the key.
    follow = [] if options.node else ["-c"]
    os.execvp("redis-cli", ["redis-cli", *follow, "-p", str(server.port), *options.command])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    def command(name: str, function, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--dir", type=Path, default=DEFAULT_DIR, help="folder of the cluster (default: .cluster)")
        sub.set_defaults(run=function)
        return sub

    sub = command("up", cmd_up, "start a cluster")
    sub.add_argument("--masters", type=int, default=3, help="number of shards (default: 3)")
    sub.add_argument("--replicas", type=int, default=0, help="replicas of each shard (default: 0)")
    sub.add_argument("--module", default=localcluster.DEFAULT_MODULE, help="the module to load")
    sub.add_argument("--no-module", action="store_true", help="plain Redis")
    sub.add_argument("module_args", nargs="*", metavar="NAME VALUE", help="arguments of the module")
    command("down", cmd_down, "end the cluster and remove its files")
    command("status", cmd_status, "show the nodes")
    sub = command("add-node", cmd_add_node, "add a shard, with its fair share of the slots")
    sub.add_argument("--empty", action="store_true", help="without slots")
    sub.add_argument("--replica-of", metavar="NODE", help="a replica of this node instead")
    sub = command("kill-node", cmd_kill_node, "end a node the hard way, or send it another signal")
    sub.add_argument("node", help="its number or port, as 'status' shows it")
    sub.add_argument("--signal", choices=SIGNALS, default="kill")
    sub = command("exec", cmd_exec, "run redis-cli with a command")
    sub.add_argument("--node", help="a number or port as 'status' shows it, or 'all'; default: whoever owns the key")
    sub.add_argument("command", nargs=argparse.REMAINDER, help="for example: RG.INFOCLUSTER")
    return parser.parse_args()


def main() -> int:
    options = parse()
    try:
        options.run(options)
    except (ClusterError, localcluster.StartError, TimeoutError, redis.RedisError, OSError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
