//! Reading what the server says about slots: CLUSTER SLOTS and CLUSTER NODES. Pure functions over replies.

use std::{collections::BTreeMap, sync::OnceLock};

use oxigears_coordinator::topology::{NodeId, SLOTS, Shard, Slot, key_slot};
use thiserror::Error;

use super::value::Reply;

/// An answer that can not be used.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the server's answer to {command} can not be read: {what}")]
pub struct SlotsError {
    command: &'static str,
    what: String,
}

fn unreadable(what: impl Into<String>) -> SlotsError {
    SlotsError {
        command: "CLUSTER SLOTS",
        what: what.into(),
    }
}

/// The masters with slots of a CLUSTER SLOTS reply. `address_of` finds the IP address of a node whose endpoint the
/// server does not tell (`NULL`, empty or `?`).
pub fn read_slots(reply: &Reply, mut address_of: impl FnMut(&str) -> Option<String>) -> Result<Vec<Shard>, SlotsError> {
    let ranges = reply.array().ok_or_else(|| unreadable("no array"))?;
    let mut shards: BTreeMap<String, Shard> = BTreeMap::new();
    for range in ranges {
        let [first, last, master, ..] = range.array().unwrap_or(&[]) else {
            return Err(unreadable("a range without master"));
        };
        let (first, last) = slot(first)
            .zip(slot(last))
            .filter(|(a, b)| a <= b)
            .ok_or_else(|| unreadable("a bad slot"))?;
        let [endpoint, port, id, rest @ ..] = master.array().unwrap_or(&[]) else {
            return Err(unreadable("a node without endpoint, port and id"));
        };
        let id = id
            .text()
            .filter(|id| !id.is_empty())
            .ok_or_else(|| unreadable("a node without id"))?;
        let port = port
            .int()
            .and_then(|p| u16::try_from(p).ok())
            .ok_or_else(|| unreadable("a bad port"))?;
        let shard = shards.entry(id.to_owned()).or_insert_with(|| Shard {
            id: NodeId::new(id),
            host: endpoint_of(endpoint, rest.first())
                .or_else(|| address_of(id))
                .unwrap_or_default(),
            port,
            ranges: Vec::new(),
        });
        shard.ranges.push((first, last));
    }
    let mut shards: Vec<Shard> = shards.into_values().collect();
    for shard in &mut shards {
        shard.ranges = merged(std::mem::take(&mut shard.ranges));
    }
    Ok(shards)
}

fn slot(reply: &Reply) -> Option<Slot> {
    reply
        .int()
        .filter(|&n| (0..SLOTS as i64).contains(&n))
        .map(|n| n as Slot)
}

/// The preferred endpoint, or the IP address or host name in the networking metadata.
fn endpoint_of(endpoint: &Reply, metadata: Option<&Reply>) -> Option<String> {
    let usable = |text: &str| !text.is_empty() && text != "?";
    if let Some(host) = endpoint.text().filter(|t| usable(t)) {
        return Some(host.to_owned());
    }
    let metadata = metadata?.pairs();
    ["ip", "hostname"].iter().find_map(|wanted| {
        let (_, value) = metadata.iter().find(|(name, _)| name.text() == Some(wanted))?;
        value.text().filter(|t| usable(t)).map(str::to_owned)
    })
}

/// Ascending ranges without gaps of zero: servers cut ranges differently while replicas differ, the owner does not.
fn merged(mut ranges: Vec<(Slot, Slot)>) -> Vec<(Slot, Slot)> {
    ranges.sort_unstable();
    let mut out: Vec<(Slot, Slot)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match out.last_mut() {
            Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out
}

/// The slots that this node migrates or imports now, from the `myself` line of CLUSTER NODES.
pub fn read_migrating(nodes: &str) -> impl Iterator<Item = Slot> + '_ {
    let mine = nodes.lines().find(|line| {
        let flags = line.split(' ').nth(2).unwrap_or("");
        flags.split(',').any(|flag| flag == "myself")
    });
    // id address flags master ping pong epoch link slots...; `[93-<-id]` imports, `[77->-id]` migrates.
    mine.unwrap_or("").split(' ').skip(8).filter_map(|word| {
        let inner = word.strip_prefix('[')?;
        let (number, _) = inner.split_once("-<-").or_else(|| inner.split_once("->-"))?;
        number.parse().ok()
    })
}

/// A number that is a hash tag of the slot.
pub fn number_in(slot: Slot) -> u32 {
    static NUMBERS: OnceLock<Vec<Option<u32>>> = OnceLock::new();
    let find_all = || {
        let (mut numbers, mut missing) = (vec![None; SLOTS], SLOTS);
        for number in 0.. {
            let known = &mut numbers[usize::from(key_slot(number.to_string().as_bytes()))];
            if known.is_none() {
                (*known, missing) = (Some(number), missing - 1);
            }
            if missing == 0 {
                break;
            }
        }
        numbers
    };
    NUMBERS.get_or_init(find_all)[usize::from(slot)].unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Reply {
        Reply::Bulk(text.as_bytes().to_vec())
    }

    fn node(endpoint: Reply, port: i64, id: &str, metadata: Vec<Reply>) -> Reply {
        Reply::Array(vec![endpoint, Reply::Int(port), bulk(id), Reply::Array(metadata)])
    }

    fn range(first: i64, last: i64, nodes: Vec<Reply>) -> Reply {
        let mut items = vec![Reply::Int(first), Reply::Int(last)];
        items.extend(nodes);
        Reply::Array(items)
    }

    #[test]
    fn masters_and_their_ranges() {
        let reply = Reply::Array(vec![
            range(
                5461,
                10922,
                vec![
                    node(bulk("10.0.0.2"), 7001, "b", vec![]),
                    node(bulk("10.0.0.9"), 7009, "r", vec![]),
                ],
            ),
            range(0, 100, vec![node(bulk("10.0.0.1"), 7000, "a", vec![])]),
            range(101, 5460, vec![node(bulk("10.0.0.1"), 7000, "a", vec![])]),
        ]);
        let shards = read_slots(&reply, |_| None).unwrap();
        let seen: Vec<_> = shards
            .iter()
            .map(|s| (s.id.as_str(), &*s.host, s.port, &*s.ranges))
            .collect();
        assert_eq!(
            seen,
            [
                ("a", "10.0.0.1", 7000, &[(0, 5460)][..]),
                ("b", "10.0.0.2", 7001, &[(5461, 10922)][..])
            ]
        );
    }

    #[test]
    fn unknown_endpoints_are_looked_up() {
        let host = |endpoint: Reply, metadata: Vec<Reply>| {
            let reply = Reply::Array(vec![range(0, 1, vec![node(endpoint, 1, "a", metadata)])]);
            read_slots(&reply, |id| Some(format!("ip-of-{id}"))).unwrap()[0]
                .host
                .clone()
        };
        assert_eq!(host(Reply::Null, vec![]), "ip-of-a");
        assert_eq!(host(bulk(""), vec![]), "ip-of-a");
        assert_eq!(host(bulk("?"), vec![bulk("ip"), bulk("10.0.0.7")]), "10.0.0.7");
        assert_eq!(
            host(Reply::Null, vec![bulk("hostname"), bulk("h.example")]),
            "h.example"
        );
        assert_eq!(host(bulk("h.example"), vec![bulk("ip"), bulk("10.0.0.7")]), "h.example");
    }

    #[test]
    fn each_slot_has_a_number() {
        for slot in 0..SLOTS as Slot {
            assert_eq!(key_slot(number_in(slot).to_string().as_bytes()), slot);
        }
    }

    #[test]
    fn odd_answers_are_errors() {
        for reply in [
            Reply::Null,
            Reply::Array(vec![Reply::Int(1)]),
            Reply::Array(vec![range(5, 4, vec![node(bulk("h"), 1, "a", vec![])])]),
            Reply::Array(vec![range(0, 16384, vec![node(bulk("h"), 1, "a", vec![])])]),
            Reply::Array(vec![range(0, 1, vec![node(bulk("h"), 70000, "a", vec![])])]),
            Reply::Array(vec![range(0, 1, vec![node(bulk("h"), 1, "", vec![])])]),
        ] {
            assert!(read_slots(&reply, |_| None).is_err(), "{reply:?}");
        }
    }

    #[test]
    fn migrating_slots_of_this_node_only() {
        let line = |flags: &str, slots: &str| format!("0af 127.0.0.1:7000@17000,h {flags} - 0 0 1 connected {slots}");
        let both = |mine: &str, other: &str| format!("{}\n{}\n", line("master", other), line("myself,master", mine));
        let read = |nodes: &str| read_migrating(nodes).collect::<Vec<Slot>>();
        assert_eq!(read(&both("0-5460", "5461-10922 [5461->-0af]")), [0; 0]);
        assert_eq!(read(&both("0-5460 [77->-292f]", "")), [77]);
        assert_eq!(read(&both("0-5460 [93-<-292f] [77->-292f]", "")), [93, 77]);
        assert_eq!(read(""), [0; 0]);
    }
}
