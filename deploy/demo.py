"""The demo: counts the words of a text inside the shards of a Redis Cluster and checks the answer.

The cluster keeps running afterwards, for you to play with. `make demo-stop` ends it.
"""

import argparse
import collections
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import redis

sys.path.insert(0, str(Path(__file__).resolve().parent))
import cluster
import localcluster
from localcluster import LocalCluster

KEYS_PER_ROUND_TRIP = 500
TOP_WORDS = 20

# What counts as a word. The script takes it along to the shards; the check below runs the same lines here.
WORDS = r"""
import re

def words(text):
    return re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text.lower())
"""

WORD_COUNT = """
GB('KeysReader')                                      \\
    .flatmap(lambda record: words(record['value']))   \\
    .countby()                                        \\
    .map(lambda word: [word['key'], word['value']])   \\
    .run('{pattern}', convertToStr=False)
"""

# The books in the order of the text, which knows them by abbreviations.
BOOKS = """
Genesis Exodus Leviticus Numbers Deuteronomy Joshua Judges Ruth 1Samuel 2Samuel 1Kings 2Kings 1Chronicles
2Chronicles Ezra Nehemiah Esther Job Psalms Proverbs Ecclesiastes SongOfSolomon Isaiah Jeremiah Lamentations
Ezekiel Daniel Hosea Joel Amos Obadiah Jonah Micah Nahum Habakkuk Zephaniah Haggai Zechariah Malachi Matthew Mark
Luke John Acts Romans 1Corinthians 2Corinthians Galatians Ephesians Philippians Colossians 1Thessalonians
2Thessalonians 1Timothy 2Timothy Titus Philemon Hebrews James 1Peter 2Peter 1John 2John 3John Jude Revelation
""".split()


class DemoError(RuntimeError):
    """A sentence for the user."""


def bible() -> dict[str, str]:
    """`kjv:<book>:<chapter>:<verse>` and its text, as the program of the Debian package bible-kjv prints it."""
    if not shutil.which("bible"):
        raise DemoError("the program 'bible' is missing: run deploy/setup.sh demo, or name a text with FILE=")
    argv = ["bible", "-f", "gen1:1-rev22:21"]
    output = subprocess.run(argv, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    verses, names = {}, {}
    for line in output.splitlines():
        place, text = line.split(" ", 1)
        book, chapter, verse = re.fullmatch(r"(\d?[A-Za-z]+)(\d+):(\d+)", place).groups()
        name = names.setdefault(book, BOOKS[min(len(names), len(BOOKS) - 1)])
        verses[f"kjv:{name}:{chapter}:{verse}"] = text
    return verses


def lines_of(path: Path) -> dict[str, str]:
    """`text:<line number>` and the line, for every line that is not empty."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DemoError(f"cannot read {path}: {error.strerror}") from None
    return {f"text:{number}": line for number, line in enumerate(lines, 1) if line.strip()}


class Progress:
    """A bar that fills on a terminal; elsewhere the last line only, without control characters."""

    WIDTH = 30

    def __init__(self, label: str, total: int):
        self.label, self.total, self.start = label, total, time.monotonic()
        self.live = sys.stdout.isatty()

    def show(self, done: int) -> None:
        last = done == self.total
        if not self.live and not last:
            return
        full = self.WIDTH * done // self.total
        bar = fill(full) + "." * (self.WIDTH - full)
        seconds = f"  {time.monotonic() - self.start:.1f} s" if last else ""
        head, end = ("\r", "\n" if last else "") if self.live else ("", "\n")
        print(f"{head}{self.label} [{bar}] {done:,}/{self.total:,}{seconds}", end=end, flush=True)


def fill(cells: int) -> str:
    try:
        "█".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#" * cells
    return "█" * cells


def load(running: LocalCluster, texts: dict[str, str]) -> None:
    progress = Progress("loading", len(texts))
    items = list(texts.items())
    with running.cluster_client() as client:
        for start in range(0, len(items), KEYS_PER_ROUND_TRIP):
            pipeline = client.pipeline()
            for key, text in items[start : start + KEYS_PER_ROUND_TRIP]:
                pipeline.set(key, text)
            pipeline.execute()
            progress.show(min(start + KEYS_PER_ROUND_TRIP, len(items)))


def count_in_cluster(running: LocalCluster, script: str) -> tuple[dict[str, int], float]:
    with running.client() as client:
        start = time.perf_counter()
        results, errors = client.execute_command("RG.PYEXECUTE", script)
        seconds = time.perf_counter() - start
    if errors:
        raise DemoError(f"the word count failed: {errors[0].decode(errors='replace')}")
    counts = {word.decode(): count for word, count in results}
    if len(counts) != len(results):
        raise DemoError("the cluster gave a word twice")
    return counts, seconds


def count_here(texts: dict[str, str]) -> dict[str, int]:
    namespace = {}
    exec(WORDS, namespace)
    return collections.Counter(word for text in texts.values() for word in namespace["words"](text))


def chart(counts: dict[str, int]) -> None:
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TOP_WORDS]
    if not top:
        print("  (no words)")
        return
    name_width = max(len(word) for word, _ in top)
    count_width = len(f"{top[0][1]:,}")
    space = max(10, min(shutil.get_terminal_size().columns, 100) - name_width - count_width - 6)
    for word, count in top:
        cells = max(1, round(space * count / top[0][1]))
        print(f"  {word:>{name_width}} {count:>{count_width},} {fill(cells)}")


def check(found: dict[str, int], expected: dict[str, int]) -> bool:
    if found == expected:
        words = sum(expected.values())
        print(f"\nChecked: all {len(expected):,} words and their counts ({words:,} in all) equal a count made here.")
        return True
    wrong = sorted(word for word in found.keys() | expected.keys() if found.get(word) != expected.get(word))
    print(f"\nFAILED: {len(wrong):,} of {len(expected):,} words have another count than here:", file=sys.stderr)
    for word in wrong[:10]:
        print(f"  {word}: {found.get(word, 0):,} in the cluster, {expected.get(word, 0):,} here", file=sys.stderr)
    return False


def say_how_to_go_on(running: LocalCluster, directory: Path, key: str) -> None:
    port = running.servers[0].port
    print(f"""
The cluster keeps running. Go on with
  redis-cli -c -p {port} GET {key}
  redis-cli -p {port} RG.PYEXECUTE "GB().count().run()"
  redis-cli -p {port} RG.PYEXECUTE "GB().map(lambda r: len(r['value'])).avg().run()"
  .venv/bin/python deploy/cluster.py status --dir {directory}
and stop it with
  make demo-stop""")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, default=cluster.REPO / ".demo", help="folder of the cluster")
    parser.add_argument("--file", type=Path, help="a text to count instead of the King James Bible, one key per line")
    parser.add_argument("--module", type=Path, default=localcluster.DEFAULT_MODULE, help="the module to load")
    return parser.parse_args()


def main(options: argparse.Namespace) -> int:
    # A text may hold letters that the terminal has not.
    sys.stdout.reconfigure(errors="replace")
    texts, pattern = (lines_of(options.file), "text:*") if options.file else (bible(), "kjv:*")
    if not texts:
        raise DemoError(f"{options.file} has no line with text")
    # A cluster of an earlier run holds an older module and other keys: a new one is as quick as asking.
    cluster.down(options.dir)
    print("starting a Redis Cluster of 3 shards ...", flush=True)
    running = cluster.up(options.dir, masters=3, module=options.module)
    print("shards on 127.0.0.1 ports " + ", ".join(str(server.port) for server in running.servers))
    load(running, texts)

    script = WORDS + WORD_COUNT.format(pattern=pattern)
    print(f"\nRG.PYEXECUTE{script}".replace("\n", "\n    "), flush=True)
    counts, seconds = count_in_cluster(running, script)
    print(f"\n{len(counts):,} different words in {len(texts):,} keys on 3 shards, counted in {seconds:.2f} s.")
    print("The most frequent:\n")
    chart(counts)
    right = check(counts, count_here(texts))
    say_how_to_go_on(running, options.dir, next(iter(texts)))
    return 0 if right else 1


def fail(directory: Path, reason: str) -> int:
    print(f"\ndemo: {reason}", file=sys.stderr)
    if cluster.exists(directory):
        print(f"The cluster still runs; its logs are {directory}/node-*/server.log.", file=sys.stderr)
        print("`make demo-stop` ends it and removes them.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    options = parse()
    try:
        sys.exit(main(options))
    except KeyboardInterrupt:
        sys.exit(fail(options.dir, "interrupted"))
    except (DemoError, cluster.ClusterError, redis.RedisError, TimeoutError, OSError) as error:
        sys.exit(fail(options.dir, str(error)))
