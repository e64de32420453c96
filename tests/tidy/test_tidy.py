"""The shape of the source tree, checked without a server: who may use whom, and what must never be where."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import rust_source
from rust_source import code_only

REPO = Path(__file__).resolve().parents[2]

# Every arrow between the crates that may exist.
ARROWS = {
    "oxigears-proto": set(),
    "oxigears-coordinator": {"oxigears-proto"},
    "oxigears-python-api": {"oxigears-coordinator"},
    "oxigears-shard-engine": {"oxigears-python-api", "oxigears-coordinator"},
}
# What a crate must not reach, not even through others.
UNREACHABLE = {
    "oxigears-proto": {"redis-module", "pyo3", "pyo3-ffi"},
    "oxigears-coordinator": {"redis-module", "pyo3", "pyo3-ffi"},
    "oxigears-python-api": {"redis-module"},
}

REDIS_FFI = "shard-engine/src/redis/"
UNSAFE_FOLDERS = (REDIS_FFI, "python-api/src/")
# Raw bindings, where one comment at the top speaks for all blocks. Each entry needs a reason beside it.
UNCOMMENTED_UNSAFE: dict[str, str] = {}

MAX_LINES = 800
SOURCE_SUFFIXES = {".rs", ".py", ".sh", ".proto"}
TEXT_SUFFIXES = SOURCE_SUFFIXES | {".toml", ".md", ".yaml", ".yml", ".txt", ".conf", ".service", ".pyi", ""}
# Folders that hold no source of ours, and code that came as it is from elsewhere (vendor).
IGNORED = {".git", "target", ".venv", ".demo", ".cluster", "vendor", "__pycache__", ".pytest_cache", ".ruff_cache"}


def project_files() -> list[Path]:
    found, folders = [], [REPO]
    while folders:
        for path in folders.pop().iterdir():
            if path.name in IGNORED or path.is_symlink():
                continue
            (folders if path.is_dir() else found).append(path)
    return sorted(found)


FILES = project_files()
RUST = {str(path.relative_to(REPO)): path.read_text() for path in FILES if path.suffix == ".rs"}
RUST_CODE = {name: code_only(text) for name, text in RUST.items()}


def rust_under(folder: str) -> dict[str, str]:
    """The code of one folder. A rule about a folder that is not there would hold for ever."""
    chosen = {name: code for name, code in RUST_CODE.items() if name.startswith(folder)}
    assert chosen, f"no Rust file under {folder}: the rule needs another folder"
    return chosen


def outside_tests(sources: dict[str, str]) -> dict[str, str]:
    """Without the files and modules that only tests are built with."""
    test_only = {
        f"{name.rpartition('/')[0]}/{module}"
        for name, code in sources.items()
        for module in rust_source.test_module_files(code)
    }
    return {
        name: rust_source.without_tests(code)
        for name, code in sources.items()
        if not any(name == f"{path}.rs" or name.startswith(f"{path}/") for path in test_only)
    }


def hits(pattern: str, sources: dict[str, str]) -> list[str]:
    """`file:line: text` for each line that matches."""
    regex = re.compile(pattern)
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in sources.items()
        for number, line in enumerate(text.splitlines(), 1)
        if regex.search(line)
    ]


def expect_none(found: list[str], rule: str) -> None:
    assert not found, rule + ":\n" + "\n".join(found)


# --- crates ------------------------------------------------------------------------------------------------------


def workspace_arrows() -> dict[str, set[str]]:
    argv = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--offline"]
    packages = json.loads(subprocess.run(argv, cwd=REPO, check=True, capture_output=True).stdout)["packages"]
    names = {package["name"] for package in packages}
    # Dependencies of every kind: a test or a build script must not turn an arrow round either.
    return {p["name"]: {d["name"] for d in p["dependencies"]} & names for p in packages}


def test_dependency_arrows():
    arrows = workspace_arrows()
    assert arrows.keys() == ARROWS.keys(), "a crate came or went: say in ARROWS whom it may use"
    wrong = [f"{user} -> {used}" for user, all_used in arrows.items() for used in all_used - ARROWS[user]]
    expect_none(wrong, "crates that must not use each other")


def reachable(lock: list[dict], start: str) -> set[str]:
    # An entry reads "name", "name version" or "name version (source)". Versions of one name are taken together.
    used: dict[str, set[str]] = {}
    for package in lock:
        names = {entry.split()[0] for entry in package.get("dependencies", [])}
        used.setdefault(package["name"], set()).update(names)
    seen, todo = set(), [start]
    while todo:
        new = used[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


@pytest.mark.parametrize("crate", UNREACHABLE)
def test_crate_does_not_reach(crate):
    lock = tomllib.loads((REPO / "Cargo.lock").read_text())["package"]
    wrong = reachable(lock, crate) & UNREACHABLE[crate]
    expect_none(sorted(wrong), f"libraries that {crate} must not reach")
    # The same search finds them where they belong, so it would find them here.
    assert {"redis-module", "pyo3"} <= reachable(lock, "oxigears-shard-engine")


# --- code --------------------------------------------------------------------------------------------------------


def test_redis_module_calls_stay_in_one_folder():
    rust_under(REDIS_FFI)
    elsewhere = {name: code for name, code in RUST_CODE.items() if not name.startswith(REDIS_FFI)}
    expect_none(hits(r"\bRedisModule_|\bredis_module::raw\b", elsewhere), f"Redis API used outside {REDIS_FFI}")


def test_tonic_stays_in_the_net_folder():
    rust_under("coordinator/src/net/")
    homes = ("coordinator/src/net/", "proto/")
    elsewhere = {name: code for name, code in RUST_CODE.items() if not name.startswith(homes)}
    expect_none(hits(r"\btonic(_prost)?\b", elsewhere), "tonic used outside coordinator/src/net/")


def test_state_machines_do_no_io_and_read_no_clock():
    machines = outside_tests(rust_under("coordinator/src/execution/"))
    banned = r"\bstd::(time|fs|net|io|thread|process|env)\b|\b(Instant|SystemTime|tokio|File|TcpStream|UnixStream)\b"
    expect_none(hits(banned, machines), "I/O or a clock in a state machine")


def test_coordinator_and_proto_have_no_unsafe_code():
    expect_none(hits(r"\bunsafe\b", rust_under("coordinator/")), "unsafe code in coordinator")
    expect_none(hits(r"\bunsafe\b", rust_under("proto/")), "unsafe code in proto")


def test_unsafe_only_at_the_foreign_interfaces():
    elsewhere = {name: code for name, code in RUST_CODE.items() if not name.startswith(UNSAFE_FOLDERS)}
    expect_none(hits(r"\bunsafe\b", elsewhere), "unsafe code away from the Redis API and CPython")


def undocumented_unsafe(text: str) -> list[int]:
    """Numbers of the lines with an unsafe block or impl and no reason above it."""
    lines, code = text.splitlines(), code_only(text).splitlines()
    found = []
    for index, line in enumerate(code):
        if not re.search(r"\bunsafe\s*(\{|impl\b|$)", line):
            continue
        # The statement may have begun up to three lines above; a reason may be several lines long.
        first = max(index - 3, 0)
        while first > 0 and lines[first].lstrip().startswith("//"):
            first -= 1
        if not any("SAFETY:" in above for above in lines[first : index + 1]):
            found.append(index + 1)
    return found


def test_every_unsafe_block_says_why():
    found = [
        f"{name}:{number}: {text.splitlines()[number - 1].strip()}"
        for name, text in RUST.items()
        if name not in UNCOMMENTED_UNSAFE
        for number in undocumented_unsafe(text)
    ]
    expect_none(found, "unsafe without a `// SAFETY:` comment above")
    assert set(UNCOMMENTED_UNSAFE) <= set(RUST), "an exception for a file that is gone"


def test_every_rust_file_says_what_it_is_for():
    expect_none([name for name, text in RUST.items() if not text.startswith("//!")], "files without a `//!` opening")


# --- text --------------------------------------------------------------------------------------------------------


def text_files(suffixes: set[str]) -> dict[str, str]:
    return {str(p.relative_to(REPO)): p.read_text(errors="replace") for p in FILES if p.suffix in suffixes}


def test_no_file_is_too_long():
    long = [
        f"{name} ({n} lines)" for name, t in text_files(SOURCE_SUFFIXES).items() if (n := t.count("\n")) > MAX_LINES
    ]
    expect_none(long, f"files over {MAX_LINES} lines")


def test_no_path_of_one_machine():
    # Spelled so that this line is not one of them.
    homes = "|".join(["/wo" + "rk/", "/ro" + "ot/", "/ho" + r"me/\w", "/Us" + r"ers/\w"])
    expect_none(hits(rf"(?<![\w.$}}~-])(?:{homes})", text_files(TEXT_SUFFIXES)), "paths that only one machine has")


def test_nothing_is_left_unfinished_or_switched_off():
    marks = ["TO" + "DO", "FIX" + "ME", "todo" + "!", "unimplemented" + "!", "NotImplemented" + "Error"]
    switched_off = [r"mark\.sk" + "ip", r"pytest\.sk" + "ip", r"mark\.xf" + "ail", r"#\[ig" + "nore"]
    pattern = "|".join([rf"\b{mark}" for mark in marks] + switched_off)
    expect_none(hits(pattern, text_files(SOURCE_SUFFIXES)), "unfinished or switched off")


# --- the checks themselves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("a // unsafe\nb", "a" + 10 * " " + "\nb"),
        ("a /* x /* y */ z */ b", "a" + 19 * " " + "b"),
        ('f("unsafe \\" {") + 1', "f(" + 13 * " " + ") + 1"),
        ('let s = r#"a " b"# ;', "let s = " + 10 * " " + " ;"),
        ("let c = '\"'; let d = '\\''; d", "let c =    ; let d =     ; d"),
        ("fn f<'a>(x: &'a str) // 'q'", "fn f<'a>(x: &'a str)" + 7 * " "),
        ('"a\nb" c', "  \n   c"),
    ],
)
def test_code_only(source, code):
    assert code_only(source) == code


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("// SAFETY: x is alive.\nunsafe { f(x) }", []),
        ("unsafe { f(x) }", [1]),
        ("// SAFETY: first\n// second\n// third\n// fourth\nlet a =\n    unsafe { f(x) };", []),
        ("// SAFETY: far away\na();\nb();\nc();\nd();\nunsafe { f(x) }", [6]),
        ('unsafe fn f() {}\nlet t: unsafe extern "C" fn() = f;', []),
        ("unsafe impl Send for T {}", [1]),
        ('// unsafe { }\nlet s = "unsafe { }";', []),
    ],
)
def test_undocumented_unsafe(source, lines):
    assert undocumented_unsafe(source) == lines


def test_test_modules_are_left_out():
    code = "a();\n#[cfg(test)]\nmod tests {\n    fn b() { c(); }\n}\nd();\n#[cfg(test)]\nmod sim;\nmod real;\n"
    kept = rust_source.without_tests(code)
    assert [line.strip() for line in kept.splitlines() if line.strip()] == ["a();", "d();", "mod real;"]
    assert rust_source.test_module_files(code) == {"sim"}
    files = {"x/mod.rs": code, "x/sim.rs": "b();", "x/sim/part.rs": "b();", "x/real.rs": "c();"}
    assert outside_tests(files).keys() == {"x/mod.rs", "x/real.rs"}


def test_reachable_follows_every_step():
    lock = [
        {"name": "a", "dependencies": ["b 1.0.0"]},
        {"name": "b", "dependencies": ["c"]},
        {"name": "c"},
        {"name": "d", "dependencies": ["a"]},
    ]
    assert reachable(lock, "a") == {"b", "c"}
