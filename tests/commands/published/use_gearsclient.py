"""Run by test_published_clients.py: programs built with gearsclient, run by the server at the given port, as JSON."""

import json
import sys

import gearsclient
import redis


def builder(client, reader, argument="*"):
    # Its own requirement would be fetched from the network.
    return gearsclient.GearsRemoteBuilder(reader, argument, r=client, addClientToRequirements=False)


def main(port):
    client = redis.Redis(host="127.0.0.1", port=port)
    for i in range(5):
        client.set(f"client:{i}", i)
    keys = builder(client, "KeysReader", "client:*")
    numbers, errors = keys.map(lambda record: int(record["value"])).sort().run()
    counted, _ = builder(client, "KeysReader", "client:*").countby(lambda record: int(record["value"]) % 2).run()
    failed = builder(client, "ShardsIDReader").map(lambda record: record.nothing).run()
    suffix = "!"
    made = builder(client, "CommandReader").map(lambda record: record[1] + suffix).register(trigger="published")
    return {
        "made": made.decode(),
        "answer": [one.decode() for one in client.execute_command("RG.TRIGGER", "published", "a")],
        "numbers": numbers,
        "errors": len(errors),
        "counted": sorted([record["key"], record["value"]] for record in counted),
        "failed": [len(part) for part in failed],
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
