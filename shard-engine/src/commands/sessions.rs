//! RG.PYDUMPSESSIONS: the sessions that are active on this shard.

use std::sync::Arc;

use crate::{
    redis::register::Call,
    registrations::{Active, describe, registrations},
};

/// What a client asked for.
#[derive(Debug, Default, PartialEq)]
struct Options {
    verbose: bool,
    dead: bool,
    names: Option<Vec<Vec<u8>>>,
}

fn parse(args: &[Vec<u8>]) -> Result<Options, String> {
    let mut options = Options::default();
    let mut rest = args.iter();
    while let Some(word) = rest.next() {
        match word.to_ascii_uppercase().as_slice() {
            b"VERBOSE" => options.verbose = true,
            b"DEAD" => options.dead = true,
            b"SESSIONS" => {
                options.names = Some(rest.cloned().collect());
                break;
            }
            _ => return Err(format!("Unknown option {}", String::from_utf8_lossy(word))),
        }
    }
    Ok(options)
}

/// RG.PYDUMPSESSIONS [VERBOSE] [DEAD] [SESSIONS <name> ...]
pub fn pydumpsessions(call: &mut Call) {
    let options = match parse(&call.args[1..]) {
        Ok(options) => options,
        Err(text) => return call.reply().error(&text),
    };
    let table = registrations().activation.table().read();
    let find = |id: &str| -> Option<Arc<Active>> { table.get(id).cloned() };
    let detail: Option<describe::Find<'_>> = if options.verbose { Some(&find) } else { None };
    let reply = call.reply();
    let Some(names) = &options.names else {
        let views: Vec<_> = if options.dead {
            table.dead_sessions().iter().map(describe::SessionView::dead).collect()
        } else {
            // By reference: a copy of the pointer would count as a holder.
            table.sessions().map(describe::SessionView::linked).collect()
        };
        reply.array(views.len());
        for view in &views {
            describe::write_session(reply, view, detail);
        }
        return;
    };
    reply.array(names.len());
    for name in names {
        let text = String::from_utf8_lossy(name);
        match table.session(&text) {
            Some(session) => describe::write_session(reply, &describe::SessionView::linked(session), detail),
            None => reply.text(&format!("Session {text} does not exists")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Result<Options, &str>) {
        let args: Vec<Vec<u8>> = line.split_whitespace().map(|w| w.as_bytes().to_vec()).collect();
        assert_eq!(parse(&args), expected.map_err(str::to_owned), "{line}");
    }

    #[test]
    fn options_in_any_order_names_last() {
        check("", Ok(Options::default()));
        check(
            "dead Verbose sessions a VERBOSE",
            Ok(Options {
                verbose: true,
                dead: true,
                names: Some(vec![b"a".to_vec(), b"VERBOSE".to_vec()]),
            }),
        );
        check(
            "SESSIONS",
            Ok(Options {
                names: Some(Vec::new()),
                ..Options::default()
            }),
        );
        check("VERBOSE x", Err("Unknown option x"));
    }
}
