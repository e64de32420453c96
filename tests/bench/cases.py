"""What is measured: each case as an OxiGears script, a client-side script and a Lua script per shard.

The two rivals are written as a careful programmer would write them: SCAN with COUNT 1000, one pipeline per
page of keys, a connection and a thread per shard; in Lua one call per shard on all shards at once and one
JSON text as the reply, which the client merges. Where there were variants (HMGET or HGETALL, JSON or a flat
array), the faster one stands here. All three ways end with the same Python object in the client.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from datasets import AMOUNT, FEW, MANY, PREFIX, slot_of

PAGE = 1000  # SCAN COUNT, and commands per pipeline
LUA_SLICE = 10_000  # keys that leave a shard in one reply, where Lua has to ship the records themselves


@dataclass(frozen=True)
class Case:
    name: str
    dataset: str
    shards: int
    script: str  # for RG.PYEXECUTE
    decode: Callable  # reply's results -> the answer
    client: Callable  # (client, fleet) -> this shard's part
    lua: str
    lua_part: Callable  # (script, client, fleet) -> this shard's part
    merge: Callable  # parts -> the answer
    placement: str = ""  # repartition only: a script that counts the records on the shards where they arrived


# ---- helpers of the client-side way


def pages(client):
    """Pages of key names of one shard."""
    cursor = 0
    while True:
        cursor, keys = client.scan(cursor, count=PAGE)
        if keys:
            yield keys
        if cursor == 0:
            return


def values(client):
    """Pages of values of string keys of one shard."""
    for keys in pages(client):
        pipe = client.pipeline(transaction=False)
        for key in keys:
            pipe.get(key)
        yield pipe.execute()


def client_wordcount(client, _fleet):
    counts = Counter()
    for page in values(client):
        for value in page:
            counts.update(value.split())
    return counts


def client_hashes(client, _fleet):
    found = 0
    for keys in pages(client):
        pipe = client.pipeline(transaction=False)
        for key in keys:
            pipe.hmget(key, "country", "category", "price", "qty", "discount")
        for country, category, price, qty, discount in pipe.execute():
            if country != b"de" and category != b"food" and int(price) * int(qty) - int(discount) > 500:
                found += 1
    return found


def client_repartition(client, fleet):
    """Takes every record to the shard (here: the list) that owns its prefix."""
    owners = fleet.owners
    targets = defaultdict(list)
    for page in values(client):
        for value in page:
            targets[owners[slot_of(value[PREFIX])]].append(value)
    return Counter({owner: len(moved) for owner, moved in targets.items()})


def client_groupby(field):
    def part(client, _fleet):
        totals = Counter()
        for page in values(client):
            for value in page:
                totals[value[field]] += int(value[AMOUNT])
        return totals

    return part


def client_count(client, _fleet):
    return sum(map(len, pages(client)))


# ---- helpers of the Lua way

LUA_SCAN = """
local call, cursor = redis.call, '0'
%(setup)s
repeat
  local page = call('SCAN', cursor, 'COUNT', 1000)
  cursor = page[1]
  %(body)s
until cursor == '0'
return %(result)s
"""

LUA_WORDCOUNT = LUA_SCAN % {
    "setup": "local counts, gmatch = {}, string.gmatch",
    "body": """for _, key in ipairs(page[2]) do
    for word in gmatch(call('GET', key), '%S+') do counts[word] = (counts[word] or 0) + 1 end
  end""",
    "result": "cjson.encode(counts)",
}

LUA_HASHES = LUA_SCAN % {
    "setup": "local found = 0",
    "body": """for _, key in ipairs(page[2]) do
    local f = call('HMGET', key, 'country', 'category', 'price', 'qty', 'discount')
    if f[1] ~= 'de' and f[2] ~= 'food' and tonumber(f[3]) * tonumber(f[4]) - tonumber(f[5]) > 500 then
      found = found + 1
    end
  end""",
    "result": "found",
}

LUA_COUNT = LUA_SCAN % {"setup": "local n = 0", "body": "n = n + #page[2]", "result": "n"}

# A script cannot reach another shard: the records leave through the client, slice by slice.
LUA_REPARTITION = """
local call, cursor, out = redis.call, ARGV[1], {}
local limit = tonumber(ARGV[2])
repeat
  local page = call('SCAN', cursor, 'COUNT', 1000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do out[#out + 1] = call('GET', key) end
until cursor == '0' or #out >= limit
return {cursor, out}
"""


def lua_groupby(field):
    return LUA_SCAN % {
        "setup": "local totals, sub = {}, string.sub",
        "body": f"""for _, key in ipairs(page[2]) do
    local value = call('GET', key)
    local group = sub(value, {field.start + 1}, {field.stop})
    totals[group] = (totals[group] or 0) + tonumber(sub(value, {AMOUNT.start + 1}, {AMOUNT.stop}))
  end""",
        "result": "cjson.encode(totals)",
    }


def lua_json(script, client, _fleet):
    return json.loads(script(client=client))


def lua_number(script, client, _fleet):
    return script(client=client)


def lua_repartition(script, client, fleet):
    owners = fleet.owners
    targets = defaultdict(list)
    cursor = b"0"
    while True:
        cursor, page = script(args=[cursor, LUA_SLICE], client=client)
        for value in page:
            targets[owners[slot_of(value[PREFIX])]].append(value)
        if cursor == b"0":
            return Counter({owner: len(moved) for owner, moved in targets.items()})


# ---- answers


def decode_pairs(results):
    """Records {'key': k, 'value': n} as they arrive after the default str(). Keys here are ASCII."""
    answer = {}
    for text in results:
        key, _, number = text[9:-1].rpartition(b"', 'value': ")
        answer[key] = int(number)
    return answer


def decode_number(results):
    (text,) = results
    return int(text)


def merge_counts(parts):
    total = Counter()
    for part in parts:
        total.update(part)
    return total


def groupby_script(field):
    group = f"lambda r: r['value'][{field.start}:{field.stop}]"
    total = f"lambda k, a, r: (a or 0) + int(r['value'][{AMOUNT.start}:{AMOUNT.stop}])"
    return f"GB().groupby({group}, {total}).run()"


def groupby_case(name, field):
    return Case(
        name=name,
        dataset="records",
        shards=3,
        script=groupby_script(field),
        decode=decode_pairs,
        client=client_groupby(field),
        lua=lua_groupby(field),
        lua_part=lua_json,
        merge=merge_counts,
    )


REPARTITION = f"GB().repartition(lambda r: r['value'][{PREFIX.start}:{PREFIX.stop}])"

CASES = {
    case.name: case
    for case in (
        Case(
            name="wordcount",
            dataset="words",
            shards=3,
            script="GB().flatmap(lambda r: r['value'].split()).countby().run()",
            decode=decode_pairs,
            client=client_wordcount,
            lua=LUA_WORDCOUNT,
            lua_part=lua_json,
            merge=merge_counts,
        ),
        Case(
            name="hashes",
            dataset="hashes",
            shards=3,
            script="""GB().map(lambda r: r['value']).filter(
    lambda v: v['country'] != 'de' and v['category'] != 'food'
    and int(v['price']) * int(v['qty']) - int(v['discount']) > 500
).count().run()""",
            decode=decode_number,
            client=client_hashes,
            lua=LUA_HASHES,
            lua_part=lua_number,
            merge=sum,
        ),
        Case(
            name="repartition",
            dataset="records",
            shards=3,
            script=f"{REPARTITION}.count().run()",
            decode=decode_number,
            client=client_repartition,
            lua=LUA_REPARTITION,
            lua_part=lua_repartition,
            merge=merge_counts,  # records per target shard; the script answers with their sum
            placement=f"{REPARTITION}.map(lambda r: hashtag()).countby().run()",
        ),
        groupby_case("groupby_many", MANY),
        groupby_case("groupby_few", FEW),
        Case(
            name="count",
            dataset="strings",
            shards=1,
            script="GB().count().run()",
            decode=decode_number,
            client=client_count,
            lua=LUA_COUNT,
            lua_part=lua_number,
            merge=sum,
        ),
    )
}

ROUND_TRIP = "roundtrip"
ROUND_TRIP_SCRIPT = "GB('ShardsIDReader').run()"
NAMES = [*CASES, ROUND_TRIP]
