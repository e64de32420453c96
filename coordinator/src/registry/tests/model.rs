//! Random commands against a naive model: plain maps, no sharing, everything written out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    session: String,
    trigger: Option<String>,
    stream: bool,
    paused: bool,
}

#[derive(Clone, Default)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    sessions: BTreeMap<String, Vec<u64>>,
    gone: VecDeque<(u64, bool)>,
    epoch: u64,
    highest: u64,
}

impl Model {
    fn remove(&mut self, number: u64, abort: bool) {
        let Some(entry) = self.entries.remove(&number) else {
            return;
        };
        self.gone.push_back((number, abort));
        let listed = self.sessions.get_mut(&entry.session).expect("its session");
        listed.retain(|n| *n != number);
        if listed.is_empty() {
            self.sessions.remove(&entry.session);
        }
    }

    fn change(&mut self, asked: &Asked) -> Result<(), String> {
        let exists = self.sessions.contains_key(&asked.name);
        let old = if asked.join {
            None
        } else if let Some(old) = &asked.replace {
            if exists {
                return Err("ReplaceExisting".into());
            }
            if !self.sessions.contains_key(old) {
                return Err("NothingToReplace".into());
            }
            Some(old.clone())
        } else if exists && !asked.upgrade {
            return Err("SessionExists".into());
        } else {
            Some(asked.name.clone())
        };
        if asked.registrations.is_empty() {
            return Err("NoRegistrations".into());
        }
        for number in old.and_then(|old| self.sessions.get(&old).cloned()).unwrap_or_default() {
            self.remove(number, true);
        }
        let mut fresh = BTreeSet::new();
        for (number, trigger, stream) in &asked.registrations {
            let used = self.entries.contains_key(number) || self.gone.iter().any(|(n, _)| n == number);
            if used {
                return Err("IdUsed".into());
            }
            if let Some(trigger) = trigger {
                let holder = self.entries.iter().find(|(_, e)| e.trigger.as_ref() == Some(trigger));
                if let Some((holder, _)) = holder {
                    let twice = fresh.contains(holder);
                    return Err(if twice { "TriggerTwice" } else { "TriggerTaken" }.into());
                }
            }
            fresh.insert(*number);
            self.highest = self.highest.max(*number);
            let entry = Entry {
                session: asked.name.clone(),
                trigger: trigger.clone(),
                stream: *stream,
                paused: false,
            };
            self.entries.insert(*number, entry);
            self.sessions.entry(asked.name.clone()).or_default().push(*number);
        }
        Ok(())
    }

    fn pause(&mut self, numbers: &[u64], paused: bool) -> Result<(), String> {
        for number in numbers {
            match self.entries.get(number) {
                None => return Err("UnknownRegistration".into()),
                Some(entry) if !entry.stream => return Err("NotPausable".into()),
                Some(_) => {}
            }
        }
        for number in numbers {
            self.entries.get_mut(number).expect("looked at").paused = paused;
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
struct Asked {
    name: String,
    upgrade: bool,
    replace: Option<String>,
    join: bool,
    registrations: Vec<(u64, Option<String>, bool)>,
}

impl Asked {
    fn random(rng: &mut StdRng, next: &mut u64) -> Asked {
        let name = |rng: &mut StdRng| format!("s{}", rng.random_range(0..12));
        let registrations = (0..rng.random_range(0..5)).map(|_| {
            *next += rng.random_range(0..3);
            let number = if rng.random_range(0..30) == 0 {
                next.saturating_sub(4)
            } else {
                *next
            };
            let trigger = rng.random_bool(0.6).then(|| format!("t{}", rng.random_range(0..60)));
            (number, trigger.clone(), trigger.is_none() && rng.random_bool(0.5))
        });
        let registrations = registrations.collect();
        Asked {
            name: name(rng),
            upgrade: rng.random_bool(0.4),
            replace: rng.random_bool(0.2).then(|| name(rng)),
            join: rng.random_bool(0.2),
            registrations,
        }
    }

    fn command(&self) -> Command {
        let registrations = self.registrations.iter().map(|(number, trigger, stream)| {
            let source = match trigger {
                Some(trigger) => command_source(trigger),
                None if *stream => stream_source("x"),
                None => keys_source("k"),
            };
            new(*number, source)
        });
        Command::ChangeSession(SessionChange {
            upgrade: self.upgrade,
            replace: self.replace.as_deref().map(Into::into),
            join: self.join,
            ..change(&self.name, registrations.collect())
        })
    }
}

/// The name of the variant.
fn word(outcome: Result<(), Refusal>) -> Result<(), String> {
    outcome.map_err(|refusal| {
        let text = format!("{refusal:?}");
        text.split(['(', ' ']).next().unwrap_or_default().to_owned()
    })
}

fn number(id: &str) -> u64 {
    rules::number_of(id).unwrap()
}

fn seen(state: &Registry) -> (BTreeMap<u64, Entry>, BTreeMap<String, Vec<u64>>) {
    let entries = state.registrations().into_iter().map(|r| {
        let trigger = match &r.source {
            EventSource::Command { trigger, .. } => Some(String::from_utf8_lossy(trigger).into_owned()),
            _ => None,
        };
        let entry = Entry {
            session: r.session.to_string(),
            trigger,
            stream: r.source.is_pausable(),
            paused: r.paused,
        };
        (number(&r.id), entry)
    });
    let sessions = state.sessions().into_iter().map(|s| {
        let numbers = s.registrations.iter().map(|id| number(id)).collect();
        (s.name.to_string(), numbers)
    });
    (entries.collect(), sessions.collect())
}

fn compare(state: &Registry, model: &Model, seed: u64) {
    let (entries, sessions) = seen(state);
    assert_eq!(entries, model.entries, "seed {seed}");
    assert_eq!(sessions, model.sessions, "seed {seed}");
    assert_eq!(state.highest_number(), model.highest, "seed {seed}");
    assert_eq!(state.statistics_epoch(), model.epoch, "seed {seed}");
    for (number, abort) in &model.gone {
        assert_eq!(
            state.tombstone(&id(*number)).map(|t| t.abort_pending),
            Some(*abort),
            "seed {seed}"
        );
    }
    for entry in 0..60 {
        let trigger = format!("t{entry}");
        let holder = model.entries.iter().find(|(_, e)| e.trigger.as_ref() == Some(&trigger));
        let found = state.trigger(trigger.as_bytes()).map(|r| number(&r.id));
        assert_eq!(found, holder.map(|(n, _)| *n), "seed {seed}");
    }
}

/// What a node that follows only by differences holds.
fn follow(view: &mut BTreeMap<u64, Entry>, old: &Registry, new: &Registry, seed: u64) {
    let difference = Difference::between(old, new);
    for (gone, _) in &difference.removed {
        assert!(view.remove(&number(&gone.id)).is_some(), "seed {seed}");
    }
    let now = seen(new).0;
    for there in difference.added.iter().chain(&difference.changed) {
        let number = number(&there.id);
        view.insert(number, now[&number].clone());
    }
    assert_eq!(*view, now, "seed {seed}");
}

fn run(seed: u64, commands: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut state, mut model, mut next) = (Registry::default(), Model::default(), 0);
    let (mut active, mut view) = (state.clone(), BTreeMap::new());
    for index in 1..=commands {
        let before = model.clone();
        let random_number = |rng: &mut StdRng, model: &Model| {
            let any = rng.random_range(0..model.entries.len().max(1));
            model
                .entries
                .keys()
                .nth(any)
                .copied()
                .filter(|_| rng.random_bool(0.9))
                .unwrap_or(7)
        };
        let (command, expected) = match rng.random_range(0..10) {
            0..5 => {
                let asked = Asked::random(&mut rng, &mut next);
                let expected = model.change(&asked);
                (asked.command(), expected)
            }
            5..7 => {
                let (number, abort_pending) = (random_number(&mut rng, &model), rng.random_bool(0.5));
                let known = model.entries.contains_key(&number);
                model.remove(number, abort_pending);
                let id = id(number);
                let expected = known.then_some(()).ok_or_else(|| "NotRegistered".to_owned());
                (Command::Unregister { id, abort_pending }, expected)
            }
            7..9 => {
                let numbers: Vec<u64> = (0..rng.random_range(0..3))
                    .map(|_| random_number(&mut rng, &model))
                    .collect();
                let paused = rng.random_bool(0.6);
                let expected = model.pause(&numbers, paused);
                let ids = numbers.into_iter().map(id).collect();
                let pause = Command::Pause {
                    ids,
                    abort_pending: false,
                };
                let command = match pause {
                    Command::Pause { ids, .. } if !paused => Command::Unpause { ids },
                    pause => pause,
                };
                (command, expected)
            }
            _ => {
                model.epoch += 1;
                (Command::ClearStatistics, Ok(()))
            }
        };
        if expected.is_err() {
            model = before;
        }
        let request = RequestId(u128::from(index) * 0x1234_5678_9abc_def1);
        let proposal = Proposal {
            request,
            basis: index - 1,
            command,
        };
        let proposal = Proposal::decode(&proposal.encode().unwrap()).unwrap();
        assert_eq!(
            word(state.check(&proposal.command)),
            expected,
            "seed {seed}, index {index}"
        );
        assert_eq!(
            word(state.apply(index, &proposal)),
            expected,
            "seed {seed}, index {index}"
        );
        if index % 16 == 0 || index == commands {
            compare(&state, &model, seed);
            follow(&mut view, &active, &state, seed);
            active = state.clone();
            let bytes = state.encode();
            let back = Registry::decode(&bytes).unwrap_or_else(|e| panic!("{e}, seed {seed}"));
            assert!(back == state && back.encode() == bytes, "seed {seed}");
            assert_eq!(back.bytes, state.bytes, "seed {seed}");
            // Goes on with what was read, now and then.
            if rng.random_bool(0.3) {
                state = back;
            }
        }
    }
}

#[test]
fn random_commands_do_what_the_model_does() {
    for seed in 0..60 {
        run(seed, 400);
    }
}
