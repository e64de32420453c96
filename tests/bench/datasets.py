"""The benchmark's data: made from a seed, written straight into the shards.

Each data set is a generator of (key, command) pairs, where the command is ready RESP. The same seed, size
and slot layout give the same bytes, so a run can be repeated. Loading goes through one raw socket per shard
with one batch in flight on each, so that the shards work while the next batch is made.
"""

import itertools
import random
import socket
import string
from binascii import crc_hqx  # CRC16/XMODEM, the cluster's key hash

SLOTS = 16384
SEED = "oxigears-bench"
VOCABULARY = 100_000
WORDS_PER_KEY = 10
CHUNK_KEYS = 1_000
BATCH_BYTES = 256 * 1024

# Layout of the 100-byte record: routing prefix, few-group, many-group, amount, padding.
PREFIX = slice(0, 8)
FEW = slice(8, 10)
MANY = slice(10, 18)
AMOUNT = slice(18, 21)
RECORD_BYTES = 100
FEW_GROUPS = 10
RECORDS_PER_MANY_GROUP = 10

COUNTRIES = ("at", "ch", "de", "es", "fr", "it", "nl", "pl", "se", "uk")
CATEGORIES = ("books", "food", "games", "music", "tools")


def slot_of(key):
    """Cluster slot of a key without a hash tag."""
    return crc_hqx(key, 0) % SLOTS


def _rng(*parts):
    return random.Random(":".join([SEED, *map(str, parts)]))


def _resp(*args):
    out = [b"*%d\r\n" % len(args)]
    for arg in args:
        out.append(b"$%d\r\n%s\r\n" % (len(arg), arg))
    return b"".join(out)


def vocabulary():
    """Distinct lower-case words of 3 to 12 letters, most frequent first."""
    rng = _rng("vocabulary")
    words = {}
    while len(words) < VOCABULARY:
        length = min(12, max(3, round(rng.gauss(7, 2))))
        words["".join(rng.choices(string.ascii_lowercase, k=length)).encode()] = None
    return list(words)


def words(n, _owners):
    """n string keys of ten words each, Zipf over the vocabulary (rank r has the weight 1/r)."""
    vocab = vocabulary()
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(vocab) + 1)))
    rng = _rng("words", n)
    for start in range(0, n, CHUNK_KEYS):
        count = min(CHUNK_KEYS, n - start)
        picks = rng.choices(vocab, cum_weights=weights, k=count * WORDS_PER_KEY)
        for i in range(count):
            key = b"line:%d" % (start + i)
            yield key, _resp(b"SET", key, b" ".join(picks[i * WORDS_PER_KEY : (i + 1) * WORDS_PER_KEY]))


def hashes(n, _owners):
    """n hashes of five fields each: an order."""
    rng = _rng("hashes", n)
    for i in range(n):
        key = b"order:%d" % i
        yield key, _resp(
            b"HSET", key,
            b"country", rng.choice(COUNTRIES).encode(),
            b"category", rng.choice(CATEGORIES).encode(),
            b"price", b"%d" % rng.randrange(1, 500),
            b"qty", b"%d" % rng.randrange(1, 10),
            b"discount", b"%d" % rng.randrange(0, 50),
        )  # fmt: skip


def records(n, owners):
    """n strings of 100 bytes. The prefix of each belongs to another shard than its key, so that all cross."""
    rng = _rng("records", n)
    padding = "".join(rng.choices(string.ascii_letters + string.digits, k=4096)).encode()
    tail = RECORD_BYTES - AMOUNT.stop
    many_groups = max(1, n // RECORDS_PER_MANY_GROUP)
    alone = len(set(owners)) == 1
    for i in range(n):
        key = b"record:%d" % i
        home = owners[slot_of(key)]
        prefix = b"%08x" % rng.getrandbits(32)
        while not alone and owners[slot_of(prefix)] == home:
            prefix = b"%08x" % rng.getrandbits(32)
        at = rng.randrange(len(padding) - tail)
        value = b"%s%02d%08d%03d%s" % (
            prefix,
            rng.randrange(FEW_GROUPS),
            rng.randrange(many_groups),
            rng.randrange(1000),
            padding[at : at + tail],
        )
        yield key, _resp(b"SET", key, value)


def strings(n, _owners):
    """n strings of 60 bytes, for the bare count."""
    rng = _rng("strings", n)
    padding = "".join(rng.choices(string.ascii_letters, k=4096)).encode()
    for i in range(n):
        at = rng.randrange(len(padding) - 60)
        key = b"string:%d" % i
        yield key, _resp(b"SET", key, padding[at : at + 60])


DATASETS = {"words": words, "hashes": hashes, "records": records, "strings": strings}


class _Loader:
    """One raw connection with at most one batch in flight."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.buffer = bytearray()
        self.queued = 0
        self.in_flight = 0

    def add(self, command):
        self.buffer += command
        self.queued += 1
        if len(self.buffer) >= BATCH_BYTES:
            self.flush()

    def flush(self):
        self.drain()
        self.socket.sendall(self.buffer)
        self.buffer.clear()
        self.in_flight, self.queued = self.queued, 0

    def drain(self):
        """Reads one reply line (+OK or :5) for each command in flight."""
        line_start = True
        while self.in_flight:
            data = self.socket.recv(1 << 20)
            if not data:
                raise ConnectionError("the server closed the connection while data was loaded")
            if (line_start and data.startswith(b"-")) or b"\n-" in data:
                raise RuntimeError(f"loading failed: {data[:200]!r}")
            line_start = data.endswith(b"\n")
            self.in_flight -= data.count(b"\n")

    def close(self):
        self.flush()
        self.drain()
        self.socket.close()


def load(dataset, n, ports, owners):
    """Writes the data set. `owners` is a list of 16384 indexes into `ports`."""
    loaders = [_Loader(port) for port in ports]
    for key, command in DATASETS[dataset](n, owners):
        loaders[owners[slot_of(key)]].add(command)
    for loader in loaders:
        loader.close()
