"""The folder in which a node keeps its log of the registry, and ways to spoil it."""

import contextlib
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path


def log_folder(server):
    """Where the node keeps its log; it may not be there."""
    return Path(server.dir) / f"oxigears-{server.node_id}"


def set_aside(server):
    """Folders of logs that were given up, oldest first, by the reason in their names."""
    pattern = re.compile(rf"{re.escape(log_folder(server).name)}\.(\w+)-\d+")
    return sorted(path.name for path in Path(server.dir).iterdir() if pattern.fullmatch(path.name))


def log_file(server):
    """The file that changes are appended to."""
    path = log_folder(server) / "log"
    assert path.stat().st_size > 0, f"{path} is empty"
    return path


def wipe(server):
    assert log_folder(server).is_dir(), f"{log_folder(server)} is not there: nothing would be wiped"
    shutil.rmtree(log_folder(server))


def flip(path, position):
    """Turns round one bit of the byte at this part (0 to 1) of the file."""
    data = bytearray(path.read_bytes())
    at = min(int(len(data) * position), len(data) - 1)
    data[at] ^= 0x10
    path.write_bytes(data)


def cut(path, count):
    """Takes so many bytes off the end of the file."""
    size = path.stat().st_size
    assert size > count, f"{path} has {size} bytes only"
    os.truncate(path, size - count)


# --- full disks --------------------------------------------------------------------------------------------------


def limit_files(server, size):
    """From now on the process can not write beyond this size in any file; None ends it."""
    size = resource.RLIM_INFINITY if size is None else size
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def ignoring_file_signals(folder, redis_server):
    """A program that starts the server so that a write beyond the limit is an error and not its end."""
    path = Path(folder) / "server-that-survives"
    path.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec {redis_server} \"$@\"\n")
    path.chmod(0o755)
    return path


def can_mount(folder):
    """Whether this process may mount file systems."""
    place = Path(folder) / "mount-trial"
    place.mkdir()
    tried = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True)
    if tried.returncode == 0:
        subprocess.run(["umount", place], check=True)
    place.rmdir()
    return tried.returncode == 0


class SmallDisk:
    """A small file system of its own in the place of a folder, with what the folder holds."""

    def __init__(self, folder, size="8m"):
        self.folder = Path(folder)
        content = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", self.folder], check=True)
        for name, data in content.items():
            (self.folder / name).write_bytes(data)

    def fill(self):
        """Leaves no byte."""
        with (self.folder / "filler").open("wb", buffering=0) as filler:
            for size in (1 << 16, 1 << 10, 1):
                with contextlib.suppress(OSError):
                    while True:
                        filler.write(b"x" * size)

    def free(self):
        (self.folder / "filler").unlink(missing_ok=True)

    def end(self):
        """Lazily: the server may have files open."""
        subprocess.run(["umount", "-l", self.folder], check=True)
