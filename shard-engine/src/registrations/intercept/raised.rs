//! Which events the usual commands raise: so that a registration for `hset` costs a SET nothing.
//!
//! Only commands that are fully known are listed, and only for events that no other cause can raise; everything else counts
//! as possible. If a server raised more than is told here, its sync handlers would run a moment after the command.

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

/// Events that any write can raise: a key that is new, expired, missed, overwritten. They are not in `RAISED`.
fn is_of_some_command(event: &str) -> bool {
    RAISED.iter().any(|(_, events)| events.contains(&event))
}

/// The events, in lower case, could come from this command.
pub fn may_raise(command: &str, events: &[String]) -> bool {
    let Some((_, own)) = RAISED.iter().find(|(name, _)| *name == command) else {
        return true;
    };
    let possible = |event: &String| own.contains(&event.as_str()) || !is_of_some_command(event);
    events.iter().any(possible)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_possible() {
        let raises = |command: &str, event: &str| may_raise(command, &[event.to_owned()]);
        assert!(raises("set", "set") && !raises("set", "hset"));
        assert!(raises("set", "expired") && raises("set", "new") && raises("set", "made-up"));
        assert!(raises("sort", "hset") && raises("module.command", "hset"));
        assert!(may_raise("set", &["hset".into(), "del".into()]));
        assert!(!may_raise("set", &[]));
    }
}
