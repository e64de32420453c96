"""Another module for servers under test, built from other_module.c where it is needed first."""

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("other_module.c")


def build(folder):
    """The path of the module, which is built in this folder."""
    target = Path(folder) / "other.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", target, SOURCE], check=True)
    return target
