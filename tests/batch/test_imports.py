"""What a script can import: the modules of the project, the standard library and C extensions."""

import sys

import pytest
from scripts import check, evaluate, execute, refusal, results

pytestmark = pytest.mark.matrix

# module -> an expression that uses its C code, and what it gives
MODULES = [
    ("redisgears", "redisgears.executeCommand('ping')", "PONG"),
    ("rg", "rg.executeCommand('ping')", "PONG"),
    ("cloudpickle", "cloudpickle.loads(cloudpickle.dumps(lambda y: y + 1))(4)", 5),
    ("ctypes", "ctypes.sizeof(ctypes.c_int64)", 8),
    ("ctypes", "ctypes.CDLL(None).abs(-3)", 3),
    ("ssl", "ssl.create_default_context() is not None", True),
    ("numpy", "int(numpy.arange(10).sum())", 45),
    ("numpy", "float(numpy.linalg.norm(numpy.array([3.0, 4.0])))", 5.0),
    ("hashlib", "hashlib.sha256(b'x').hexdigest()[:8]", "2d711642"),
    ("sqlite3", "sqlite3.connect(':memory:').execute('select 1+1').fetchone()", (2,)),
    ("zlib", "zlib.decompress(zlib.compress(b'x'))", b"x"),
    ("lzma", "lzma.decompress(lzma.compress(b'x'))", b"x"),
    ("json", "json.loads('[1]')", [1]),
    ("decimal", "str(decimal.Decimal('0.1') * 3)", "0.3"),
    ("socket", "socket.AF_INET.value", 2),
    ("asyncio", "asyncio.iscoroutinefunction(lambda: 1)", False),
    ("multiprocessing", "multiprocessing.cpu_count() > 0", True),
    ("datetime", "datetime.date(2020, 2, 29).isoformat()", "2020-02-29"),
    ("random", "random.Random(1).randint(5, 5)", 5),
    ("unicodedata", "unicodedata.name('é')", "LATIN SMALL LETTER E WITH ACUTE"),
]


@pytest.mark.parametrize(("module", "expression", "wanted"), MODULES, ids=[row[0] for row in MODULES])
def test_module(client, module, expression, wanted):
    assert execute(client, f"import {module}\nassert ({expression}) == {wanted!r}") == "OK"
    assert evaluate(client, expression, f"import {module}") == wanted


@pytest.mark.parametrize("module", ["ctypes", "ssl", "numpy", "redisgears", "rg", "cloudpickle"])
def test_a_step_imports_on_every_shard(shard, module):
    script = (
        f"def f(x):\n    import {module}\n    return {module}.__name__\nGB('ShardsIDReader').map(f).distinct().run()"
    )
    assert results(shard, script) == ["redisgears" if module == "rg" else module]


def test_modules_travel_by_name(shard):
    script = "import numpy, json\nGB('ShardsIDReader').map(lambda x: json.dumps(int(numpy.int64(3)))).run()"
    check(shard, script, ["3"] * 3)


def test_arrays_cross_shards(shard):
    script = "import numpy\nGB('ShardsIDReader').map(lambda x: numpy.arange(3)).run()"
    check(shard, script, ["[0 1 2]"] * 3)
    script = """
import numpy
b = GB('ShardsIDReader').repartition(lambda x: 'one').map(lambda x: numpy.ones(4))
b.collect().map(lambda a: float(a.sum())).run()
"""
    check(shard, script, ["4.0"] * 3)


def test_missing_modules(client):
    assert "ModuleNotFoundError: No module named 'no_such_module'" in refusal(client, "import no_such_module")


def test_an_import_that_fails_does_so_again(client):
    for _ in range(2):
        assert "ImportError" in refusal(client, "from json import no_such_name")


def test_the_version_is_that_of_debian(client):
    assert evaluate(client, "list(__import__('sys').version_info[:2])") == list(sys.version_info[:2])
