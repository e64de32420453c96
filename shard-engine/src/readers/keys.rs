//! KeysReader and KeysOnlyReader: every key of database 0 that fits a pattern, or one key.

use std::collections::VecDeque;

use oxigears_coordinator::{
    codec::{put_tagged, tag},
    plan::KeysArgs,
    stage::{Source, SourceState},
};

use super::{
    Check, ReaderEnv,
    batch::Batch,
    big::{BigValue, Progress},
    glob::Pattern,
    slices::{CLOCK_EVERY, Deadline, Slices},
    values,
};
use crate::redis::{
    key::{Key, Kind},
    keyspace::{ElementScan, KeyScan},
    lock::ServerLock,
    value::integer,
};

/// A single key that keeps changing while it is read is looked up at most so often.
const LOOKUPS: u32 = 8;

/// The error of a source whose result would not be complete.
type Broken = String;

/// What a record holds.
#[derive(Clone, Copy)]
enum Shape {
    /// Key, type and value.
    Value { all_types: bool },
    /// A dict of event and key.
    Name,
    /// The name alone.
    Text,
}

/// Where keys come from.
enum From {
    Scan {
        scan: KeyScan,
        pattern: Pattern,
    },
    One {
        name: Vec<u8>,
        must_exist: bool,
        lookups: u32,
    },
    Nowhere,
}

/// The source of both readers.
pub struct KeysSource {
    from: From,
    writer: Writer,
    /// A value that is read in several slices now.
    big: Option<BigValue>,
    /// One that has been read and is not in the batch yet.
    read: Option<BigValue>,
    slices: Slices,
    /// Keys to visit in one slice at most.
    slice_keys: u64,
    check: Option<(Check, u64)>,
    checked: bool,
    ended: bool,
}

/// Writes records.
struct Writer {
    shape: Shape,
    batch: Batch,
    elements: ElementScan,
    /// Keys whose values are too big for one slice.
    waiting: VecDeque<(Vec<u8>, Kind)>,
    /// See `ReaderEnv`.
    denied: Vec<(Kind, String)>,
    /// One of these was there.
    refused: Option<Broken>,
}

impl KeysSource {
    /// KeysReader.
    pub fn of_keys(args: &KeysArgs, env: &ReaderEnv) -> KeysSource {
        let shape = match args.read_value {
            true => Shape::Value {
                all_types: args.all_types,
            },
            false => Shape::Name,
        };
        let from = match args.no_scan {
            true => From::one(args.pattern.clone(), false),
            false => From::pattern(&args.pattern),
        };
        KeysSource::new(from, shape, u64::MAX, env)
    }

    /// KeysOnlyReader. `count` is checked as SCAN checks COUNT.
    pub fn of_names(pattern: &[u8], no_scan: bool, count: &str, env: &ReaderEnv) -> Result<KeysSource, String> {
        let count = integer(count.as_bytes()).ok_or("ERR value is not an integer or out of range")?;
        if count < 1 {
            return Err("ERR syntax error".into());
        }
        let from = match no_scan {
            true => From::one(pattern.to_vec(), true),
            false => From::pattern(pattern),
        };
        // Fewer keys than between two looks at the clock would only slow the reader down.
        let slice_keys = (count as u64).max(CLOCK_EVERY.into());
        Ok(KeysSource::new(from, Shape::Text, slice_keys, env))
    }

    fn new(from: From, shape: Shape, slice_keys: u64, env: &ReaderEnv) -> KeysSource {
        KeysSource {
            from,
            writer: Writer {
                shape,
                batch: Batch::new(env.count_only),
                elements: ElementScan::new(),
                waiting: VecDeque::new(),
                denied: env.denied.clone(),
                refused: None,
            },
            big: None,
            read: None,
            slices: Slices::default(),
            slice_keys,
            check: env.epoch.map(|epoch| (env.check, epoch)),
            checked: false,
            ended: false,
        }
    }

    fn check(&self, guard: &ServerLock) -> Result<(), Broken> {
        self.check.map_or(Ok(()), |(check, epoch)| check(guard, epoch))
    }

    /// Works until the slice is over, the batch is full, or all has been read.
    fn slice(&mut self, guard: &ServerLock, deadline: &mut Deadline) -> Result<(), Broken> {
        if !self.checked {
            self.check(guard)?;
            self.checked = true;
        }
        let mut visited = 0;
        loop {
            if let Some(big) = &mut self.big {
                match big.read(guard, deadline).map_err(|_| internal())? {
                    Progress::More => {}
                    Progress::Done => self.read = self.big.take(),
                    Progress::Gone => self.big = None,
                }
                if self.big.is_some() || self.read.is_some() {
                    return Ok(());
                }
            } else if let Some((name, kind)) = self.writer.waiting.pop_front() {
                self.big = Some(BigValue::new(name, kind));
            } else if self.from.is_used_up() {
                self.check(guard)?;
                self.ended = true;
                return Ok(());
            } else {
                visited += self.from.step(guard, &mut self.writer)?;
                if let Some(why) = self.writer.refused.take() {
                    return Err(why);
                }
            }
            if self.writer.batch.is_full() || visited >= self.slice_keys || deadline.is_over() {
                return Ok(());
            }
        }
    }
}

impl Source for KeysSource {
    fn next_batch(&mut self) -> SourceState {
        self.slices.begin_batch();
        while !self.ended {
            let mut slices = std::mem::take(&mut self.slices);
            let outcome = slices.run(|guard, deadline| self.slice(guard, deadline));
            self.slices = slices;
            if let Err(reason) = outcome {
                self.ended = true;
                return SourceState::Broken(reason);
            }
            if let Some(big) = self.read.take() {
                self.from.found();
                self.writer.add_big(big);
            }
            if self.writer.batch.is_full() || self.slices.batch_is_late() {
                break;
            }
        }
        if self.ended && self.writer.batch.is_empty() {
            return SourceState::End;
        }
        // It may be empty: the worker looks whether the execution is aborted meanwhile.
        SourceState::Batch(self.writer.batch.take())
    }
}

impl From {
    fn one(name: Vec<u8>, must_exist: bool) -> From {
        From::One {
            name,
            must_exist,
            lookups: 0,
        }
    }

    fn pattern(pattern: &[u8]) -> From {
        match Pattern::compile(pattern) {
            Pattern::Exact(name) => From::one(name, true),
            pattern => From::Scan {
                scan: KeyScan::new(),
                pattern,
            },
        }
    }

    fn is_used_up(&self) -> bool {
        matches!(self, From::Nowhere)
    }

    /// The one key has its record.
    fn found(&mut self) {
        if matches!(self, From::One { .. }) {
            *self = From::Nowhere;
        }
    }

    /// Visits some keys; gives their number.
    fn step(&mut self, guard: &ServerLock, writer: &mut Writer) -> Result<u64, Broken> {
        let mut visited = 0;
        match self {
            From::Nowhere => {}
            From::Scan { scan, pattern } => {
                let more = scan.step(guard, &mut |name, key| {
                    visited += 1;
                    if pattern.matches(name) && !key.is_expired() {
                        writer.add(name, key);
                    }
                });
                if !more.map_err(|_| internal())? {
                    *self = From::Nowhere;
                }
            }
            From::One {
                name,
                must_exist,
                lookups,
            } => {
                *lookups += 1;
                let key = Key::open(guard, name).filter(|_| *lookups <= LOOKUPS);
                match key {
                    Some(key) => writer.add(name, &key),
                    None if *must_exist => {}
                    None => writer.add_missing(name),
                }
                // A big value may be gone before it is read: then the key is looked up again.
                if writer.waiting.is_empty() {
                    *self = From::Nowhere;
                }
                visited += 1;
            }
        }
        Ok(visited)
    }
}

impl Writer {
    fn add(&mut self, name: &[u8], key: &Key<'_>) {
        let all_types = match self.shape {
            Shape::Value { all_types } if !self.batch.counts_only() => all_types,
            _ => return self.add_name(name),
        };
        let kind = key.kind();
        if let Some((_, why)) = self.denied.iter().find(|(denied, _)| *denied == kind) {
            self.refused = Some(why.clone());
            return;
        }
        let start = self.batch.bytes.len();
        values::put_key_head(&mut self.batch.bytes, name, values::type_code(kind, all_types));
        if values::put_value(&mut self.batch.bytes, key, kind, all_types, &mut self.elements) {
            self.batch.add(|_| {});
        } else {
            self.batch.bytes.truncate(start);
            self.waiting.push_back((name.to_vec(), kind));
        }
    }

    fn add_name(&mut self, name: &[u8]) {
        let tag = match self.shape {
            Shape::Text => tag::TEXT,
            _ => tag::KEY_NAME_RECORD,
        };
        self.batch.add(|out| put_tagged(out, tag, name));
    }

    fn add_missing(&mut self, name: &[u8]) {
        match self.shape {
            Shape::Value { .. } => self.batch.add(|out| {
                values::put_key_head(out, name, values::type_code(Kind::Empty, false));
                out.push(tag::NONE);
            }),
            _ => self.add_name(name),
        }
    }

    fn add_big(&mut self, big: BigValue) {
        let all_types = matches!(self.shape, Shape::Value { all_types: true });
        self.batch.add(|out| {
            values::put_key_head(out, big.name(), values::type_code(big.kind(), all_types));
            big.put(out);
        });
    }
}

fn internal() -> Broken {
    "met an internal error while it read keys, see the server log".into()
}
