"""What the machine was doing meanwhile: processor time and memory from /proc, and signs of noise."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CORES = len(os.sched_getaffinity(0))
MIB = 1024 * 1024

# Above these shares of all cores the times are worth less; the ratios still are the better figure.
FOREIGN_LIMIT = 0.05
STEAL_LIMIT = 0.02
SPREAD_LIMIT = 0.30  # (max - min) / median of one way's runs
LATE_LIMIT_MS = 2.0  # 99 % of the pinger's ticks on an idle machine are closer than this to their time


def process_cpu_s(pid):
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def reset_peak(pid):
    """Sets VmHWM back to the present size."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@dataclass
class Cpu:
    busy: float
    steal: float
    total: float
    ours: float

    @classmethod
    def now(cls, pids):
        user, nice, system, idle, iowait, irq, softirq, steal = (
            int(field) * TICK_S for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        )
        busy = user + nice + system + irq + softirq
        return cls(busy, steal, busy + idle + iowait + steal, sum(map(process_cpu_s, pids)))

    def shares_since(self, before):
        """Shares of the whole machine that other processes and the host took."""
        total = max(self.total - before.total, TICK_S)
        foreign = (self.busy - before.busy) - (self.ours - before.ours)
        return {"foreign": max(0.0, foreign / total), "steal": (self.steal - before.steal) / total}


def describe(client):
    """One line about machine and versions, for the head of the report."""
    info = client.info()
    server = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    cpu_names = [line.split(":", 1)[1] for line in cpu_info_lines() if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": " ".join(cpu_names[0].split()) if cpu_names else platform.machine(),
        "cores": CORES,
        "memory_gib": round(pages / 1024**3, 1),
        "kernel": platform.release(),
        "server": server,
        "module": module_version(client),
        "python": platform.python_version(),
        "redis_py": client_library(),
        "load_average": os.getloadavg()[0],
    }


def cpu_info_lines():
    return Path("/proc/cpuinfo").read_text().splitlines()


def module_version(client):
    for module in client.module_list():
        pairs = {_text(name): value for name, value in module.items()}
        if _text(pairs["name"]) == "rg":
            section = {k: v for k, v in client.info("rg").items() if "version" in k or "commit" in k}
            return {"interface": pairs["ver"], **section}
    return None


def _text(value):
    return value.decode() if isinstance(value, bytes) else value


def client_library():
    import redis
    from redis.connection import DefaultParser

    return f"redis-py {redis.__version__} ({DefaultParser.__name__.strip('_')})"
