"""Servers whose time of day can be changed while they run, by a library that is built where it is needed first."""

import subprocess
from pathlib import Path

from replies import wait_until

SOURCE = Path(__file__).with_name("shifted_clock.c")


def build(folder):
    """The path of the library, which is built in this folder."""
    target = Path(folder) / "shifted_clock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", target, SOURCE, "-ldl"], check=True)
    return target


class ShiftedClock:
    """That of one server, which is started with this environment."""

    def __init__(self, library, folder):
        self.path = Path(folder) / "seconds"
        self.path.write_text("0")
        self.environment = {"LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(self.path)}

    def shift(self, wire, seconds):
        """Returns when the server's time of day is that many seconds later, or earlier."""

        def now():
            return int(wire.ok("TIME")[0])

        before = now()
        draft = self.path.with_suffix(".new")
        draft.write_text(str(seconds))
        draft.replace(self.path)
        wait_until(lambda: abs(now() - before) > abs(seconds) / 2, "the new time of day")
