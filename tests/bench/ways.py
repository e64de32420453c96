"""The three ways to get a case's answer. The two rivals also return the parts that it was merged from."""

from collections import Counter

from cases import decode_pairs
from datasets import slot_of

GEARS, CLIENT, LUA = "gears", "client", "lua"
WAYS = (GEARS, CLIENT, LUA)


class WrongAnswer(Exception):
    """The ways disagree, or the module reported errors."""


def execute(client, script):
    """Runs a script through the module and returns its results. Any error in the reply ends the benchmark."""
    results, errors = client.execute_command("RG.PYEXECUTE", script)
    if errors:
        raise WrongAnswer(f"RG.PYEXECUTE reported {len(errors)} errors, the first: {errors[0]!r}")
    return results


def run_gears(case, fleet):
    return case.decode(execute(fleet.clients[0], case.script)), None


def run_client(case, fleet):
    parts = fleet.on_all(lambda client: case.client(client, fleet))
    return case.merge(parts), parts


def run_lua(case, fleet):
    script = fleet.clients[0].register_script(case.lua)
    parts = fleet.on_all(lambda client: case.lua_part(script, client, fleet))
    return case.merge(parts), parts


RUN = {GEARS: run_gears, CLIENT: run_client, LUA: run_lua}


def comparable(answer):
    """Words as bytes or text, Counter or dict: the same content compares equal."""
    if isinstance(answer, dict):
        return {key.decode() if isinstance(key, bytes) else key: number for key, number in answer.items()}
    return answer


def check_equal(case, answers):
    """All answers say the same. Repartition's rivals count per target shard, the script in total."""
    answers = {way: comparable(answer) for way, answer in answers.items()}
    rivals = [answers[way] for way in (CLIENT, LUA) if way in answers]
    if len(rivals) == 2 and rivals[0] != rivals[1]:
        raise WrongAnswer(f"{case.name}: the client-side script and Lua disagree")
    if GEARS in answers and rivals:
        expected = sum(rivals[0].values()) if case.placement else rivals[0]
        if answers[GEARS] != expected:
            own, rival = short(answers[GEARS]), short(expected)
            raise WrongAnswer(f"{case.name}: OxiGears answers {own}, the rivals {rival}")


def check_placement(case, fleet, expected):
    """Not timed: after the repartition every record is on the shard that owns its new key."""
    tags = decode_pairs(execute(fleet.clients[0], case.placement))
    found = Counter()
    for tag, number in tags.items():
        found[fleet.owners[slot_of(tag)]] += number
    if found != expected:
        raise WrongAnswer(f"{case.name}: records per shard are {dict(found)}, not {dict(expected)}")


def short(answer):
    text = repr(answer)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(answer)} entries)"
