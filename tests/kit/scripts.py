"""Batch runs in tests: sending a script, reading the pair, and tables of programs with what they must give."""

import ast
import collections
import dataclasses
import re
import textwrap
from pathlib import Path

import pytest
import redis

# How the order of results is compared.
ALWAYS, SINGLE, NEVER = "always", "on a single server", "never"
# Where the data of a program is, when it runs on a cluster.
INITIATOR_ONLY = "if hashtag() == HERE:\n        "


@dataclasses.dataclass(frozen=True)
class Refused:
    """An error reply, also as an element of a list. Its text has lost a leading `ERR `."""

    text: str


@dataclasses.dataclass(frozen=True)
class Pair:
    results: list
    errors: list


def plain(value):
    """Bulk and simple strings as text, or as bytes if they are not UTF-8."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, redis.ResponseError):
        return Refused(str(value))
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value


def execute(client, script, *options):
    """The reply of RG.PYEXECUTE, or Refused."""
    try:
        return plain(client.execute_command("RG.PYEXECUTE", script, *options))
    except redis.ResponseError as error:
        return plain(error)


def run(client, script, *options):
    """The pair of a script that calls run()."""
    reply = execute(client, script, *options)
    assert isinstance(reply, list) and len(reply) == 2, f"not a pair: {reply!r}"
    results, errors = reply
    assert isinstance(results, list) and isinstance(errors, list), f"not a pair: {reply!r}"
    assert not any(isinstance(error, Refused) for error in errors), f"errors are bulk strings: {errors!r}"
    return Pair(results, errors)


def results(client, script):
    """The results of a script whose run makes no errors."""
    pair = run(client, script)
    assert pair.errors == []
    return pair.results


def result(client, script):
    """The single result of a script."""
    (one,) = results(client, script)
    return one


def on_shard(expression, prelude=""):
    """A script that evaluates an expression in a step on the contacted shard and gives the repr of a tuple of it."""
    # The bare repr of a negative number would be an error reply.
    return f"{prelude}\nGB('ShardsIDReader').map(lambda x: repr(({expression},))).run(mode='async_local')"


def evaluate(client, expression, prelude=""):
    """The value of an expression in a step, read back from its repr."""
    (value,) = eval(result(client, on_shard(expression, prelude)))
    return value


def refusal(client, script, *options):
    """The error text of a script that fails as a whole."""
    reply = execute(client, script, *options)
    assert isinstance(reply, Refused), f"{script!r} answered {reply!r}"
    return reply.text


def last_line(error):
    """The last entry of a traceback list: `Class: text`."""
    lines = ast.literal_eval(error)
    assert isinstance(lines, list) and lines[0] == "Traceback (most recent call last):\n", error
    return lines[-1].rstrip("\n")


def same_items(found, wanted):
    def countable(items):
        return collections.Counter(map(repr, items))

    return countable(found) == countable(wanted)


def check_errors(found, wanted):
    """Each wanted text is in an error of its own and no error is left over; in any order."""
    left = list(found)
    for text in wanted:
        match = next((error for error in left if text in error), None)
        assert match is not None, f"no error with {text!r} in {found!r}"
        left.remove(match)
    assert left == [], f"unexpected errors {left!r}"


def check(client, script, wanted, errors=(), ordered=True):
    """Runs a script and compares its results, and its errors by parts of their texts."""
    pair = run(client, script)
    check_errors(pair.errors, errors)
    if ordered:
        assert pair.results == list(wanted)
    else:
        assert same_items(pair.results, wanted), f"{pair.results!r} has other items than {wanted!r}"


def source(values, name="src", where=""):
    """A generator function of that name that yields the values, which are given as Python text."""
    return f"def {name}():\n    {where}for v in [{values}]:\n        {'    ' if where else ''}yield v\n"


def with_source(values, program, where=""):
    """A script that defines `PR` and `src` and then runs the program."""
    head = "HERE = hashtag()\n" if where else ""
    return f"{head}PR = GB('PythonReader')\n{source(values, where=where)}{textwrap.dedent(program)}"


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: a program over values made by Python, or over keys, and what it gives.

    `values` is Python text, `data` a tuple of commands. Rows that are no `on_cluster` depend on the number of shards.
    """

    id: str
    program: str
    results: tuple | list
    values: str | None = None
    data: tuple = ()
    errors: tuple = ()
    order: str = ALWAYS
    on_cluster: bool = True

    def script(self, where=""):
        return self.program if self.values is None else with_source(self.values, self.program, where)

    def check_single(self, client):
        for command in self.data:
            client.execute_command(*command)
        check(client, self.script(), self.results, self.errors, self.order != NEVER)

    def check_cluster(self, cluster, client):
        load(cluster, self.data)
        check(client, self.script(INITIATOR_ONLY), self.results, self.errors, self.order == ALWAYS)


def load(cluster, commands):
    """Sends each command to the shard that serves its first argument."""
    for command in commands:
        with cluster.owner(command[1]).client() as client:
            client.execute_command(*command)


def table(rows, wanted=lambda row: True):
    """The rows as parameters of a test, under their ids."""
    chosen = [row for row in rows if wanted(row)]
    ids = [row.id for row in chosen]
    assert len(set(ids)) == len(ids), f"an id is used twice: {ids}"
    return pytest.mark.parametrize("case", [pytest.param(row, id=row.id) for row in chosen])


def sections(name, fields):
    """The sections of a data file: tuples of the fields of the heading and the text below it."""
    path = Path(__file__).resolve().parents[1] / "batch" / "data" / name
    found = []
    for section in re.split(r"^=== ", path.read_text(), flags=re.MULTILINE)[1:]:
        heading, body = section.split("\n", 1)
        parts = [part.strip() for part in heading.split("=>")]
        assert len(parts) == fields, f"{name}: {heading}"
        found.append((*parts, body.strip("\n")))
    return found


def refusals(rows):
    """Parameters of a test of scripts that fail: (id, script, part of the error text)."""
    return pytest.mark.parametrize(("script", "text"), [pytest.param(row[1], row[2], id=row[0]) for row in rows])
