//! The registry on its own: each rule, each refusal.

mod hostile;
mod model;

use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::{
    limits,
    plan::{Mode, Op, Plan, Reader},
};

fn plan_with(functions: usize) -> Bytes {
    let plan = Plan {
        reader: Reader::ShardsId,
        ops: vec![Op::ToStr],
        mode: Mode::Async,
        function_names: vec!["f".into(); functions],
        code: vec![7; 40],
        session: "s".into(),
        user: None,
    };
    plan.encode().unwrap().into()
}

fn id(number: u64) -> RegistrationId {
    format!("{:040}-{number}", 0).into()
}

fn command_source(trigger: &str) -> EventSource {
    EventSource::Command {
        trigger: Bytes::copy_from_slice(trigger.as_bytes()),
        inorder: false,
    }
}

fn stream_source(prefix: &str) -> EventSource {
    EventSource::Stream {
        prefix: Bytes::copy_from_slice(prefix.as_bytes()),
        batch: 1,
        duration_ms: 0,
        on_failed: FailurePolicy::Continue,
        retry_interval_s: 1,
        trim: true,
        more: StreamOptions::default(),
    }
}

fn keys_source(prefix: &str) -> EventSource {
    EventSource::Keys {
        prefix: Bytes::copy_from_slice(prefix.as_bytes()),
        event_types: Some(vec!["set".into()]),
        key_types: None,
        read_value: true,
        commands: None,
        all_types: false,
    }
}

fn new(number: u64, source: EventSource) -> NewRegistration {
    NewRegistration {
        id: id(number),
        source,
        mode: RegisterMode::Async,
        description: None,
        plan: plan_with(1),
        on_registered: None,
        on_unregistered: None,
    }
}

fn change(name: &str, registrations: Vec<NewRegistration>) -> SessionChange {
    SessionChange {
        name: name.into(),
        description: Some("d".into()),
        user: None,
        requirements: vec!["numpy".into()],
        upgrade: false,
        replace: None,
        join: false,
        registrations,
    }
}

fn triggers(name: &str, of: &[(u64, &str)]) -> SessionChange {
    let registrations = of.iter().map(|(number, trigger)| new(*number, command_source(trigger)));
    change(name, registrations.collect())
}

fn requirement(name: &str) -> Requirement {
    Requirement {
        name: name.into(),
        digest: [3; 32],
        compiled_os: "linux".into(),
        wheels: vec!["a-1.0.whl".into()],
    }
}

/// Applies as the next command, under a request of its own.
fn apply(state: &mut Registry, command: Command) -> Result<(), Refusal> {
    let index = state.index() + 1;
    let proposal = Proposal {
        request: RequestId(u128::from(index) << 64 | 0xabcd),
        basis: state.index(),
        command,
    };
    let before = state.clone();
    let outcome = state.apply(index, &proposal);
    assert_eq!(state.index(), index);
    assert_eq!(before.check(&proposal.command), outcome, "check and apply agree");
    if outcome.is_err() {
        let difference = Difference::between(&before, state);
        assert!(difference.is_empty(), "refused, but {difference:?}");
        assert_eq!(before.highest_number(), state.highest_number());
    }
    outcome
}

fn make(state: &mut Registry, change: SessionChange) -> Result<(), Refusal> {
    apply(state, Command::ChangeSession(change))
}

fn held(state: &Registry) -> Vec<String> {
    let number = |r: &Arc<Registration>| r.id.rsplit('-').next().unwrap_or_default().to_owned();
    state.registrations().iter().map(number).collect()
}

#[test]
fn a_session_comes_with_its_registrations_and_goes_with_the_last() {
    let mut state = Registry::default();
    assert!(state.is_empty());
    make(&mut state, triggers("s", &[(7, "a"), (5, "b")])).unwrap();
    assert!(!state.is_empty());
    assert_eq!(held(&state), ["7", "5"], "the order is that of the change");
    assert_eq!(state.highest_number(), 7);
    assert_eq!(state.trigger(b"b").map(|r| r.id.clone()), Some(id(5)));
    assert!(state.trigger(b"A").is_none());
    let session = state.session("s").unwrap();
    assert_eq!(session.registrations, [id(7), id(5)]);
    assert_eq!(session.requirements, ["numpy"]);
    for (number, abort_pending) in [(7, false), (5, true)] {
        assert!(state.session("s").is_some());
        let id = id(number);
        apply(
            &mut state,
            Command::Unregister {
                id: id.clone(),
                abort_pending,
            },
        )
        .unwrap();
        let tombstone = state.tombstone(&id).unwrap();
        assert_eq!(
            (tombstone.abort_pending, tombstone.index),
            (abort_pending, state.index())
        );
    }
    assert!(state.session("s").is_none() && state.trigger(b"a").is_none());
    assert_eq!((state.bytes, state.registration_count()), (0, 0));
    assert!(!state.is_empty(), "numbers are never given again");
    let again = Command::Unregister {
        id: id(5),
        abort_pending: false,
    };
    assert_eq!(
        apply(&mut state, again).unwrap_err().to_string(),
        "execution is not registered"
    );
    assert!(matches!(
        make(&mut state, triggers("s", &[(5, "b")])),
        Err(Refusal::IdUsed(_))
    ));
}

#[test]
fn names_of_sessions_are_judged_in_the_order_that_clients_know() {
    let mut state = Registry::default();
    make(&mut state, triggers("s", &[(1, "a")])).unwrap();
    make(&mut state, triggers("other", &[(2, "b")])).unwrap();
    let refused = |state: &mut Registry, name: &str, upgrade: bool, replace: Option<&str>| {
        let mut change = triggers(name, &[(9, "a")]);
        (change.upgrade, change.replace) = (upgrade, replace.map(Into::into));
        make(state, change).unwrap_err().to_string()
    };
    assert_eq!(refused(&mut state, "s", false, None), "Session s already exists");
    assert_eq!(
        refused(&mut state, "s", true, Some("nobody")),
        "Can not replace an existing session s with nobody"
    );
    assert_eq!(
        refused(&mut state, "new", true, Some("nobody")),
        "Can not replace with nobody, session does not exists."
    );
    assert_eq!(refused(&mut state, "new", true, None), "trigger already registered");
    assert_eq!(
        refused(&mut state, "new", true, Some("other")),
        "trigger already registered"
    );
    let twice = triggers("t", &[(3, "x"), (4, "x")]);
    assert_eq!(
        make(&mut state, twice).unwrap_err().to_string(),
        "trigger already registered in this session"
    );
    let empty = change("s", vec![]);
    assert!(matches!(make(&mut state, empty), Err(Refusal::SessionExists(_))));
    let empty = change("e", vec![]);
    assert_eq!(make(&mut state, empty), Err(Refusal::NoRegistrations));
}

fn hooks(name: &str, of: &[(u64, &str, RegisterMode)]) -> SessionChange {
    let one = |&(number, command, mode): &(u64, &str, RegisterMode)| NewRegistration {
        mode,
        ..new(
            number,
            EventSource::Hook {
                command: command.into(),
                key_prefix: None,
                inorder: false,
            },
        )
    };
    change(name, of.iter().map(one).collect())
}

#[test]
fn no_hook_comes_upon_one_that_is_not_sync() {
    use RegisterMode::{Async, AsyncLocal, Sync};
    let mut state = Registry::default();
    make(
        &mut state,
        hooks("a", &[(1, "set", Sync), (2, "set", Sync), (3, "set", Async)]),
    )
    .unwrap();
    assert_eq!(
        make(&mut state, hooks("b", &[(4, "set", Sync)])),
        Err(Refusal::HookTaken)
    );
    assert_eq!(
        make(&mut state, hooks("b", &[(4, "set", Async)])),
        Err(Refusal::HookTaken)
    );
    let twice = hooks("b", &[(4, "get", AsyncLocal), (5, "get", Sync)]);
    assert_eq!(make(&mut state, twice), Err(Refusal::HookTwice));
    make(&mut state, hooks("b", &[(4, "get", AsyncLocal)])).unwrap();
    let decoded = Registry::decode(&state.encode()).unwrap();
    assert!(decoded == state && decoded.last_hook("set").is_some() && decoded.last_hook("get").is_some());
    // An upgrade frees the command for its own hooks.
    let mut upgrade = hooks("a", &[(6, "set", AsyncLocal)]);
    upgrade.upgrade = true;
    make(&mut state, upgrade).unwrap();
    let gone = Command::Unregister {
        id: id(6),
        abort_pending: false,
    };
    apply(&mut state, gone).unwrap();
    assert!(state.last_hook("set").is_none());
    make(&mut state, hooks("c", &[(7, "set", Sync), (8, "set", Sync)])).unwrap();
}

#[test]
fn upgrade_replaces_in_one_step_and_frees_triggers() {
    let mut state = Registry::default();
    make(&mut state, triggers("s", &[(1, "a"), (2, "b")])).unwrap();
    let before = state.clone();
    let mut upgrade = triggers("s", &[(3, "b"), (4, "c")]);
    upgrade.upgrade = true;
    upgrade.description = None;
    make(&mut state, upgrade).unwrap();
    assert_eq!(held(&state), ["3", "4"]);
    assert_eq!(state.trigger(b"b").unwrap().id, id(3));
    assert!(state.tombstone(&id(1)).unwrap().abort_pending);
    let difference = Difference::between(&before, &state);
    let removed: Vec<_> = difference
        .removed
        .iter()
        .map(|(r, abort)| (r.id.clone(), *abort))
        .collect();
    assert_eq!(removed, [(id(1), true), (id(2), true)]);
    let added: Vec<_> = difference.added.iter().map(|r| r.id.clone()).collect();
    assert_eq!(added, [id(3), id(4)]);
    assert_eq!(difference.sessions_removed, [before.session("s").unwrap()]);
    assert_eq!(difference.sessions_changed, [state.session("s").unwrap()]);
    assert_eq!(state.session("s").unwrap().description, None);
    assert_eq!(before.registration_count(), 2, "a published state does not change");

    let mut replace = triggers("t", &[(5, "b")]);
    replace.replace = Some("s".into());
    make(&mut state, replace).unwrap();
    assert_eq!(held(&state), ["5"]);
    assert!(state.session("s").is_none() && state.session("t").is_some());
    let mut upgrade = triggers("u", &[(6, "u")]);
    upgrade.upgrade = true;
    make(&mut state, upgrade).unwrap();
    assert_eq!(held(&state), ["5", "6"], "an upgrade of nothing is a plain create");
}

#[test]
fn joining_adds_to_a_session_or_makes_it() {
    let mut state = Registry::default();
    let join = |of: &[(u64, &str)]| {
        let mut change = triggers("s", of);
        (change.join, change.description) = (true, Some("another".into()));
        change
    };
    make(&mut state, join(&[(1, "a")])).unwrap();
    let before = state.clone();
    make(&mut state, join(&[(2, "b")])).unwrap();
    assert_eq!(make(&mut state, join(&[(3, "a")])), Err(Refusal::TriggerTaken));
    let session = state.session("s").unwrap();
    assert_eq!(session.registrations, [id(1), id(2)]);
    assert_eq!(session.sequence, before.session("s").unwrap().sequence);
    let difference = Difference::between(&before, &state);
    assert!(difference.sessions_removed.is_empty() && difference.removed.is_empty());
    assert_eq!(difference.sessions_changed, [session]);
}

#[test]
fn only_streams_are_paused_and_all_or_none() {
    let mut state = Registry::default();
    let registrations = vec![
        new(1, stream_source("x")),
        new(2, stream_source("y")),
        new(3, command_source("t")),
        new(4, keys_source("k")),
    ];
    make(&mut state, change("s", registrations)).unwrap();
    let pause = |ids: &[u64]| Command::Pause {
        ids: ids.iter().map(|n| id(*n)).collect(),
        abort_pending: true,
    };
    let unpause = |ids: &[u64]| Command::Unpause {
        ids: ids.iter().map(|n| id(*n)).collect(),
    };
    let text = |r: Result<(), Refusal>| r.unwrap_err().to_string();
    assert_eq!(
        text(apply(&mut state, pause(&[1, 3]))),
        "Reader CommandReader does not support pause"
    );
    assert_eq!(
        text(apply(&mut state, unpause(&[4]))),
        "Reader KeysReader does not support unpause"
    );
    assert_eq!(
        text(apply(&mut state, pause(&[1, 9, 3]))),
        format!("Execution {} does not exists", id(9))
    );
    assert!(state.registrations().iter().all(|r| !r.paused));
    let before = state.clone();
    apply(&mut state, pause(&[2, 1, 2])).unwrap();
    let paused = state.clone();
    let changed: Vec<_> = Difference::between(&before, &paused)
        .changed
        .iter()
        .map(|r| (r.id.clone(), r.paused))
        .collect();
    assert_eq!(changed, [(id(1), true), (id(2), true)]);
    apply(&mut state, pause(&[1])).unwrap();
    assert!(Difference::between(&paused, &state).is_empty());
    apply(&mut state, unpause(&[1])).unwrap();
    assert!(!state.registration(&id(1)).unwrap().paused && state.registration(&id(2)).unwrap().paused);
    apply(&mut state, unpause(&[2])).unwrap();
    let changed = Difference::between(&before, &state).changed;
    assert!(
        changed.len() == 2 && changed.iter().all(|r| !r.paused),
        "a shard that has stopped one by itself hears of the end of the pause"
    );
}

#[test]
fn statistics_and_requirements() {
    let mut state = Registry::default();
    let before = state.clone();
    apply(&mut state, Command::ClearStatistics).unwrap();
    assert_eq!(state.statistics_epoch(), 1);
    assert!(Difference::between(&before, &state).clear_statistics);
    assert!(state.is_empty());
    apply(&mut state, Command::ImportRequirement(requirement("b"))).unwrap();
    apply(&mut state, Command::ImportRequirement(requirement("a"))).unwrap();
    let mut newer = requirement("b");
    newer.compiled_os = "another".into();
    apply(&mut state, Command::ImportRequirement(newer.clone())).unwrap();
    assert_eq!(
        state.requirements().iter().map(|r| &**r).collect::<Vec<_>>(),
        [&requirement("a"), &newer]
    );
    assert!(!state.is_empty());
    for bad in ["", "a/b", "..", ".hidden", "a\\b", "a\0"] {
        let mut requirement = requirement("c");
        requirement.wheels.push(bad.into());
        let outcome = apply(&mut state, Command::ImportRequirement(requirement));
        assert!(matches!(outcome, Err(Refusal::Malformed(_))), "{bad:?}");
    }
}

#[test]
fn a_repeated_request_answers_what_its_first_copy_answered() {
    let mut state = Registry::default();
    let proposal = |request: u128, basis: u64, command: Command| Proposal {
        request: RequestId(request),
        basis,
        command,
    };
    let create = proposal(1, 0, Command::ChangeSession(triggers("s", &[(1, "a")])));
    let refused = proposal(2, 0, Command::ChangeSession(triggers("s", &[(2, "b")])));
    let remove = proposal(
        3,
        0,
        Command::Unregister {
            id: id(1),
            abort_pending: false,
        },
    );
    assert_eq!(state.apply(1, &create), Ok(()));
    let refusal = state.apply(2, &refused).unwrap_err();
    assert_eq!(refusal, Refusal::SessionExists("s".into()));
    assert_eq!(state.apply(3, &remove), Ok(()));
    let before = state.clone();
    assert_eq!(state.apply(4, &create), Ok(()));
    assert_eq!(state.apply(5, &refused), Err(refusal.clone()), "it would succeed now");
    assert_eq!(state.apply(6, &remove), Ok(()));
    assert_eq!(state.index(), 6);
    assert!(
        Difference::between(&before, &state).is_empty(),
        "nothing is resurrected"
    );
    assert_eq!(state.outcome(RequestId(2)), Some(Err(refusal)));
    assert_eq!(state.outcome(RequestId(4)), None);
    let late = proposal(9, 0, Command::ClearStatistics);
    assert!(
        matches!(state.apply(6, &late), Err(Refusal::Malformed(_))),
        "this index is through"
    );
    assert_eq!((state.index(), state.statistics_epoch()), (6, 0));
}

/// A copy may come at any later index: it answers the same, or is refused as too old, and never takes effect again.
#[test]
fn a_copy_never_takes_effect_again_however_late_it_comes() {
    let most = limits::REMEMBERED_REQUESTS;
    for late in [1, 2, most - 2, most - 1, most, most + 1, most + 2, 3 * most] {
        let mut state = Registry::default();
        state.advance(10);
        let create = Proposal {
            request: RequestId(1),
            basis: 8,
            command: Command::ChangeSession(triggers("s", &[(1, "a")])),
        };
        assert_eq!(state.apply(11, &create), Ok(()));
        let remove = Proposal {
            request: RequestId(2),
            basis: 11,
            command: Command::Unregister {
                id: id(1),
                abort_pending: false,
            },
        };
        assert_eq!(state.apply(12, &remove), Ok(()));
        for index in 13..12 + late {
            let other = Proposal {
                request: RequestId(1000 + u128::from(index)),
                basis: index - 1,
                command: Command::ClearStatistics,
            };
            assert_eq!(state.apply(index, &other), Ok(()));
        }
        let outcome = state.apply(12 + late, &create);
        assert!(matches!(outcome, Ok(()) | Err(Refusal::Stale)), "{late}: {outcome:?}");
        assert_eq!(
            outcome.is_ok(),
            12 + late - 8 <= most || state.outcome(RequestId(1)) == Some(Ok(()))
        );
        assert_eq!(state.registration_count(), 0, "{late}");
        assert!(state.remembered.len() as u64 <= most + 1);
    }
}

#[test]
fn a_request_from_the_past_or_the_future_is_refused() {
    let mut state = Registry::default();
    let clear = |request: u128, basis: u64| Proposal {
        request: RequestId(request),
        basis,
        command: Command::ClearStatistics,
    };
    state.advance(10_000);
    let oldest = 10_001 - limits::REMEMBERED_REQUESTS;
    assert_eq!(state.apply(10_001, &clear(1, oldest)), Ok(()));
    assert_eq!(state.apply(10_002, &clear(2, oldest)), Err(Refusal::Stale));
    assert!(matches!(
        state.apply(10_003, &clear(3, 10_003)),
        Err(Refusal::Malformed(_))
    ));
    assert!(matches!(
        state.apply(10_004, &clear(4, u64::MAX)),
        Err(Refusal::Malformed(_))
    ));
    assert_eq!(state.statistics_epoch(), 1);
    assert_eq!(state.outcome(RequestId(2)), Some(Err(Refusal::Stale)));
}

#[test]
fn tombstones_are_bounded_and_the_oldest_go_first() {
    let mut state = Registry::default();
    let most = limits::TOMBSTONES as u64;
    for round in 0..2 {
        let first = round * 6000 + 1;
        let registrations = (first..first + 6000).map(|n| new(n, keys_source("k"))).collect();
        let mut change = change("s", registrations);
        change.upgrade = true;
        make(&mut state, change).unwrap();
    }
    let mut last = triggers("s", &[(20_000, "a")]);
    last.upgrade = true;
    make(&mut state, last).unwrap();
    assert_eq!(state.tombstones.len() as u64, most);
    assert!(state.tombstone(&id(12_000 - most)).is_none());
    assert!(state.tombstone(&id(12_000 - most + 1)).is_some() && state.tombstone(&id(12_000)).is_some());
}

#[test]
fn sizes_are_refused_with_clear_texts() {
    let mut state = Registry::default();
    let long = "n".repeat(limits::NAME_BYTES + 1);
    let refuse = |state: &mut Registry, change: SessionChange| make(state, change).unwrap_err().to_string();
    let text = refuse(&mut state, triggers(&long, &[(1, "a")]));
    assert_eq!(text, "a name has 65537 bytes, at most 65536 are allowed");
    let text = refuse(&mut state, triggers("s", &[(1, &long)]));
    assert!(text.starts_with("a name has"), "{text}");
    let mut described = triggers("s", &[(1, "a")]);
    described.registrations[0].description = Some("d".repeat(limits::DESCRIPTION_BYTES + 1));
    assert!(refuse(&mut state, described).starts_with("a description has"));
    let mut described = triggers("s", &[(1, "a")]);
    described.description = Some("d".repeat(limits::DESCRIPTION_BYTES + 1));
    assert!(refuse(&mut state, described).starts_with("a description has"));
    let many = (1..limits::REGISTRATIONS_PER_CHANGE as u64 + 2).map(|n| new(n, keys_source("k")));
    let text = refuse(&mut state, change("s", many.collect()));
    assert_eq!(
        text,
        "registrations of one change: 20001 are asked for, at most 20000 are allowed"
    );
    let mut fat = triggers("s", &[(1, "a"), (2, "b")]);
    for registration in &mut fat.registrations {
        registration.plan = vec![0; limits::PROPOSAL_BYTES / 2].into();
    }
    assert!(refuse(&mut state, fat).starts_with("the change has"));
    let ids = vec![id(1); limits::REGISTRATIONS_PER_CHANGE + 1];
    let outcome = apply(&mut state, Command::Unpause { ids });
    assert!(matches!(outcome, Err(Refusal::TooMany { .. })));
    assert!(state.registrations().is_empty() && state.highest_number() == 0);
}

#[test]
fn the_whole_registry_is_bounded() {
    let mut state = Registry::default();
    let fat = Bytes::from(
        Plan {
            reader: Reader::ShardsId,
            ops: vec![],
            mode: Mode::Async,
            function_names: vec![],
            code: vec![1; limits::PROPOSAL_BYTES - 4096],
            session: String::new(),
            user: None,
        }
        .encode()
        .unwrap(),
    );
    let fits = limits::REGISTRY_BYTES / (limits::PROPOSAL_BYTES - 4096);
    for number in 0..=fits as u64 {
        let mut registration = new(number, keys_source("k"));
        registration.plan = fat.clone();
        let outcome = state.check(&Command::ChangeSession(change(
            &number.to_string(),
            vec![registration.clone()],
        )));
        if number == fits as u64 {
            let text = outcome.unwrap_err().to_string();
            assert!(text.starts_with("the registry with this change has"), "{text}");
        } else {
            make(&mut state, change(&number.to_string(), vec![registration])).unwrap();
        }
    }
}

#[test]
fn plans_and_ids_are_looked_at() {
    let mut state = Registry::default();
    let mut bad = |edit: &dyn Fn(&mut NewRegistration)| {
        let mut change = triggers("s", &[(1, "a")]);
        edit(&mut change.registrations[0]);
        match make(&mut state, change) {
            Err(Refusal::Malformed(text)) => text,
            other => panic!("{other:?}"),
        }
    };
    assert!(bad(&|r| r.on_registered = Some(1)).contains("function 1, but its plan has only 1"));
    assert!(bad(&|r| r.on_unregistered = Some(u32::MAX)).contains("function 4294967295"));
    assert!(bad(&|r| r.plan = Bytes::from_static(b"junk")).contains(&*id(1)));
    let ids = [
        "",
        "1",
        "-1",
        "n-",
        "n-x",
        "n-+1",
        "n-01",
        "n-18446744073709551615",
        "n-9223372036854775807",
        "n- 1",
    ];
    for id in ids {
        assert!(bad(&|r| r.id = id.into()).contains("no registration id"), "{id}");
    }
    let long = format!("{}-1", "n".repeat(limits::NODE_ID_BYTES + 1));
    assert!(bad(&|r| r.id = long.as_str().into()).contains("no registration id"));
    let mut good = triggers("s", &[(1, "a")]);
    (
        good.registrations[0].on_registered,
        good.registrations[0].on_unregistered,
    ) = (Some(0), Some(0));
    make(&mut state, good).unwrap();
    let twice = change("t", vec![new(2, keys_source("k")), new(2, keys_source("k"))]);
    assert!(matches!(make(&mut state, twice), Err(Refusal::IdUsed(_))));
}

#[test]
fn another_history_with_the_same_ids_is_a_difference() {
    let (mut a, mut b) = (Registry::default(), Registry::default());
    make(&mut a, triggers("s", &[(1, "a")])).unwrap();
    make(&mut b, triggers("s", &[(1, "b")])).unwrap();
    let difference = Difference::between(&a, &b);
    assert_eq!(difference.removed, [(a.registration(&id(1)).unwrap(), false)]);
    assert_eq!(difference.added, [b.registration(&id(1)).unwrap()]);
    assert!(difference.changed.is_empty());
}
