//! Which events the usual commands raise: so that a registration for `hset` costs a SET nothing.
//!
//! Only commands that are fully known are listed, and only for events that no other cause can raise; everything else counts
//! as possible. If a server raised more than is told here, its sync handlers would run a moment after the command.

use std::sync::LazyLock;

use hashbrown::HashMap;

/// Commands and all events that they raise on keys that exist before or after (Redis documentation, "Keyspace
/// notifications", for versions 7.0 to 8.2 and Valkey 9).
const RAISED: [(&str, &[&str]); 43] = [
    ("append", &["append"]),
    ("decr", &["incrby"]),
    ("decrby", &["incrby"]),
    ("del", &["del"]),
    ("expire", &["expire", "del"]),
    ("expireat", &["expire", "del"]),
    ("getset", &["set"]),
    ("hdel", &["hdel", "del"]),
    ("hincrby", &["hincrby"]),
    ("hincrbyfloat", &["hincrbyfloat"]),
    ("hmset", &["hset"]),
    ("hset", &["hset"]),
    ("hsetnx", &["hset"]),
    ("incr", &["incrby"]),
    ("incrby", &["incrby"]),
    ("incrbyfloat", &["incrbyfloat"]),
    ("linsert", &["linsert"]),
    ("lpop", &["lpop", "del"]),
    ("lpush", &["lpush"]),
    ("lpushx", &["lpush"]),
    ("lrem", &["lrem", "del"]),
    ("lset", &["lset"]),
    ("ltrim", &["ltrim", "del"]),
    ("mset", &["set"]),
    ("msetnx", &["set"]),
    ("persist", &["persist"]),
    ("pexpire", &["expire", "del"]),
    ("pexpireat", &["expire", "del"]),
    ("psetex", &["set", "expire", "del"]),
    ("rpop", &["rpop", "del"]),
    ("rpush", &["rpush"]),
    ("rpushx", &["rpush"]),
    ("sadd", &["sadd"]),
    ("set", &["set", "expire", "del"]),
    ("setex", &["set", "expire", "del"]),
    ("setnx", &["set"]),
    ("setrange", &["setrange"]),
    ("srem", &["srem", "del"]),
    ("unlink", &["del"]),
    ("xadd", &["xadd", "xtrim"]),
    ("zadd", &["zadd", "zincr"]),
    ("zincrby", &["zincr"]),
    ("zrem", &["zrem", "del"]),
];

/// A set of events: a bit for each that is listed, and one for all others.
pub type Events = u64;

/// Events that any write can raise: a key that is new, expired, missed, overwritten.
const OTHERS: Events = 1 << 63;

#[derive(Default)]
struct Known {
    events: HashMap<&'static str, Events>,
    commands: HashMap<&'static str, Events>,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let mut known = Known::default();
    for (command, own) in RAISED {
        let mut all = OTHERS;
        for event in own {
            let next = 1 << known.events.len();
            all |= *known.events.entry(event).or_insert(next);
        }
        known.commands.insert(command, all);
    }
    known
});

/// The set of these events, whose names are in any case.
pub fn of_events(names: &[String]) -> Events {
    let bit = |name: &String| KNOWN.events.get(&*name.to_ascii_lowercase()).copied();
    names.iter().fold(0, |all, name| all | bit(name).unwrap_or(OTHERS))
}

/// Those that could come from this command.
pub fn of_command(command: &str) -> Events {
    KNOWN.commands.get(command).copied().unwrap_or(Events::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_possible() {
        let may_raise = |command: &str, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            of_command(command) & of_events(&names) != 0
        };
        assert!(may_raise("set", &["SET"]) && !may_raise("set", &["hset"]));
        assert!(may_raise("set", &["expired"]) && may_raise("set", &["new"]) && may_raise("set", &["made-up"]));
        assert!(may_raise("sort", &["hset"]) && may_raise("module.command", &["hset"]));
        assert!(may_raise("set", &["hset", "del"]));
        assert!(!may_raise("set", &[]) && !may_raise("sort", &[]));
        assert!(KNOWN.events.len() < 63);
    }
}
