//! The state machines of all shards on a simulated network: lost, late, repeated and reordered messages, dead peers.
//!
//! Every run has a seed, which a failure prints; `OXIGEARS_SIM_SEED=<n>` replays one run.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Command, Machine, Phase, Setup};
use crate::{
    codec::{Cursor, Item, RecordBatch, put_bytes, put_int, tag},
    limits::{CREDIT_STEP_BYTES, WINDOW_BYTES},
    message::{ExecutionId, ExecutionMessage, Work},
    plan::{Mode, Op, Plan, Reader},
    stage::Route,
    topology::NodeId,
};

const IDLE_LIMIT_MS: u64 = 5000;

/// What the network does to a message, in percent.
#[derive(Clone, Copy, Default)]
struct Faults {
    lose: u32,
    repeat: u32,
    late: u32,
    /// A shard dies at about this time.
    kill_at_ms: Option<u64>,
    /// A worker's network stands still from then on, silently.
    mute_at_ms: Option<u64>,
    /// A shard's worker threads are busy with other executions until then.
    busy_until_ms: u64,
    /// Every stage behind an exchange is done after so many batches.
    enough: Option<usize>,
}

struct Shard {
    machine: Machine,
    /// Records that the reader has not given yet.
    left: u64,
    next: u64,
    done: Vec<bool>,
    /// Batches that each stage has taken.
    taken: Vec<usize>,
    /// A batch that a stage has taken and not handed on yet.
    held: Option<(usize, RecordBatch)>,
    alive: bool,
    muted: bool,
    runnable: bool,
}

struct Cluster {
    rng: StdRng,
    seed: u64,
    now_ms: u64,
    shards: Vec<Shard>,
    nodes: Vec<NodeId>,
    /// Delivery time -> (from, to, message); the key's second part keeps entries apart.
    wire: BTreeMap<(u64, u64), (usize, usize, ExecutionMessage)>,
    sent: u64,
    faults: Faults,
    records: u64,
    /// Records are about as large as the bounds of the flow control.
    large: bool,
}

fn record(n: u64, size: usize) -> RecordBatch {
    let mut bytes = Vec::with_capacity(size + 32);
    put_int(&mut bytes, n as i64);
    bytes.push(tag::BYTES);
    put_bytes(&mut bytes, &vec![0; size]);
    RecordBatch {
        bytes: bytes.into(),
        records: 2,
    }
}

fn number(batch: &RecordBatch) -> u64 {
    match Cursor::new(&batch.bytes).next_item() {
        Ok(Item::Int(n)) => n as u64,
        other => panic!("no record: {other:?}"),
    }
}

fn input(machine: &mut Machine, stage: usize) -> Option<RecordBatch> {
    if stage > 0 { machine.take_input(stage) } else { None }
}

impl Cluster {
    fn new(seed: u64, size: usize, records: u64, faults: Faults) -> Cluster {
        let mut ops = vec![Op::Map(0), Op::Repartition(0), Op::Map(0), Op::Collect];
        if faults.enough.is_some() {
            // Only a stage with steps can have enough.
            ops.push(Op::Map(0));
        }
        let plan = Plan {
            reader: Reader::ShardsId,
            ops,
            mode: Mode::Async,
            function_names: vec!["f".into()],
            code: Vec::new(),
            session: String::new(),
            user: None,
        };
        let nodes: Vec<NodeId> = (0..size).map(|n| NodeId::new(&format!("{n:040}"))).collect();
        let shards = (0..size).map(|me| {
            let setup = Setup {
                id: ExecutionId::new(&nodes[0], 7),
                participants: nodes.as_slice().into(),
                me,
                initiator: 0,
                epoch: 1,
                stages: plan.stages(true),
                idle_limit_ms: IDLE_LIMIT_MS,
            };
            let (left, next) = (records, me as u64 * records);
            let work = (me == 0).then(|| Work::Plan(vec![1].into()));
            let machine = Machine::new(Arc::new(setup), work, 0);
            Shard {
                machine,
                left,
                next,
                done: vec![false; 3],
                taken: vec![0; 3],
                held: None,
                alive: true,
                muted: false,
                runnable: false,
            }
        });
        let shards = shards.collect();
        let rng = StdRng::seed_from_u64(seed);
        Cluster {
            rng,
            seed,
            now_ms: 0,
            shards,
            nodes,
            wire: BTreeMap::new(),
            sent: 0,
            faults,
            records,
            large: false,
        }
    }

    /// The size of record `n`.
    fn size(&mut self, n: u64) -> usize {
        if !self.large {
            return (n % 7 * 20_000) as usize;
        }
        let (step, window) = (CREDIT_STEP_BYTES as usize, WINDOW_BYTES as usize);
        let bounds = [0, 64 * 1024, 128 * 1024, step, window - step, window];
        let below = self.rng.random_range(0..64);
        bounds[self.rng.random_range(0..bounds.len())].saturating_sub(below)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    fn carry_out(&mut self, shard: usize) {
        for command in self.shards[shard].machine.take_commands() {
            match command {
                Command::Run => self.shards[shard].runnable = true,
                Command::Over => self.shards[shard].runnable = false,
                Command::Send(to, message) => self.transmit(shard, to, message),
            }
        }
    }

    fn transmit(&mut self, from: usize, to: usize, message: ExecutionMessage) {
        if self.shards[from].muted || self.chance(self.faults.lose) {
            return;
        }
        let copies = 1 + usize::from(self.chance(self.faults.repeat));
        for _ in 0..copies {
            let delay_ms = if self.chance(self.faults.late) {
                self.rng.random_range(0..400)
            } else {
                1
            };
            self.sent += 1;
            self.wire
                .insert((self.now_ms + delay_ms, self.sent), (from, to, message.clone()));
        }
    }

    /// One slice of a worker thread: the last stage that can do something.
    fn work(&mut self, shard: usize) {
        let size = self.shards.len();
        let record_size = self.size(self.shards[shard].next);
        let holds = self.chance(30);
        let Shard {
            machine,
            left,
            next,
            done,
            taken,
            held,
            runnable,
            ..
        } = &mut self.shards[shard];
        if machine.phase() != Phase::Running {
            return;
        }
        machine.set_parked(false, self.now_ms);
        let stage = match held {
            Some((stage, _)) => Some(*stage),
            None => (0..3).rev().find(|&s| {
                !done[s] && machine.can_emit(s) && (s == 0 || machine.has_input(s) || machine.input_complete(s))
            }),
        };
        match stage {
            None => {
                *runnable = false;
                machine.set_parked(true, self.now_ms);
            }
            Some(0) if *left > 0 => {
                *left -= 1;
                let record = record(*next, record_size);
                machine.emit(0, Route::Participant((*next % size as u64) as usize), record);
                *next += 1;
            }
            Some(s) => match held.take().map(|(_, batch)| batch).or_else(|| input(machine, s)) {
                // Messages may come before it is handed on.
                Some(batch) if holds => *held = Some((s, batch)),
                Some(batch) => {
                    machine.emit(s, Route::Default, batch);
                    taken[s] += 1;
                    if self.faults.enough == Some(taken[s]) {
                        done[s] = true;
                        machine.stage_done(s);
                    }
                }
                None => {
                    done[s] = true;
                    machine.stage_done(s);
                }
            },
        }
        machine.progress(self.now_ms);
        self.carry_out(shard);
    }

    fn deliver(&mut self) {
        while let Some((&key, _)) = self.wire.first_key_value() {
            if key.0 > self.now_ms {
                return;
            }
            let Some((from, to, message)) = self.wire.remove(&key) else {
                return;
            };
            if !self.shards[to].alive || self.shards[to].muted {
                continue;
            }
            let prepare = matches!(message, ExecutionMessage::Prepare { .. });
            let now_ms = self.now_ms;
            let machine = &mut self.shards[to].machine;
            machine.on_message(from, message, now_ms);
            if prepare && machine.phase() == Phase::Created {
                machine.local_ready(Ok(()), now_ms);
            }
            self.carry_out(to);
        }
    }

    fn kill(&mut self, victim: usize) {
        self.shards[victim].alive = false;
        self.shards[victim].runnable = false;
        let node = self.nodes[victim].clone();
        for other in 0..self.shards.len() {
            if self.shards[other].alive {
                self.shards[other].machine.on_peer_lost(&node, "connection closed");
                self.carry_out(other);
            }
        }
    }

    /// Runs until every living shard is through; panics if one hangs.
    fn run(&mut self) {
        self.shards[0].machine.begin(0);
        self.shards[0].machine.local_ready(Ok(()), 0);
        self.carry_out(0);
        let victim = self.rng.random_range(0..self.shards.len());
        let deadline_ms = 60_000;
        while self
            .shards
            .iter()
            .any(|s| s.alive && !s.muted && !s.machine.phase().is_over())
        {
            assert!(self.now_ms < deadline_ms, "hangs, seed {}", self.seed);
            self.now_ms += 1;
            if self.faults.kill_at_ms == Some(self.now_ms) {
                self.kill(victim);
            }
            if self.faults.mute_at_ms == Some(self.now_ms) {
                self.shards[victim].muted = true;
            }
            self.deliver();
            for shard in 0..self.shards.len() {
                let busy = shard == victim && self.now_ms < self.faults.busy_until_ms;
                for _ in 0..3 {
                    if self.shards[shard].alive && self.shards[shard].runnable && !busy {
                        self.work(shard);
                    }
                }
                if self.shards[shard].alive && self.now_ms.is_multiple_of(100) {
                    let now_ms = self.now_ms;
                    let in_queue = busy && self.shards[shard].runnable;
                    self.shards[shard].machine.on_tick(now_ms, in_queue);
                    self.carry_out(shard);
                }
            }
        }
    }

    /// Complete and exact, or an error; never a part shown as the whole.
    fn check(&self) -> Phase {
        let initiator = &self.shards[0];
        let outcome = initiator.machine.outcome();
        match initiator.machine.phase() {
            Phase::Done => {
                let mut seen: HashMap<u64, u32> = HashMap::new();
                for batch in &outcome.results {
                    *seen.entry(number(batch)).or_default() += 1;
                }
                let sent = self.records * self.shards.len() as u64;
                let expected = self.faults.enough.map_or(sent, |enough| sent.min(enough as u64));
                assert_eq!(outcome.errors, Vec::<String>::new(), "seed {}", self.seed);
                assert_eq!(seen.len() as u64, expected, "records lost, seed {}", self.seed);
                assert!(seen.values().all(|&n| n == 1), "records repeated, seed {}", self.seed);
            }
            Phase::Aborted => {
                let text = outcome
                    .errors
                    .first()
                    .unwrap_or_else(|| panic!("no error, seed {}", self.seed));
                for word in ["shard ", "step ", "phase "] {
                    assert!(text.contains(word), "`{text}` lacks `{word}`, seed {}", self.seed);
                }
            }
            phase => assert!(
                !initiator.alive || initiator.muted,
                "ended {phase:?}, seed {}",
                self.seed
            ),
        }
        initiator.machine.phase()
    }
}

/// Runs many seeds; gives how many were complete and how many failed.
fn many(faults: impl Fn(&mut StdRng) -> Faults) -> (u32, u32) {
    let replay = std::env::var("OXIGEARS_SIM_SEED")
        .ok()
        .and_then(|s| s.parse::<u64>().ok());
    let seeds = replay.map_or(0..300, |seed| seed..seed + 1);
    let mut counts = (0, 0);
    for seed in seeds {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
        let size = rng.random_range(2..6);
        let records = rng.random_range(0..120);
        let mut cluster = Cluster::new(seed, size, records, faults(&mut rng));
        cluster.run();
        match cluster.check() {
            Phase::Done => counts.0 += 1,
            _ => counts.1 += 1,
        }
    }
    counts
}

#[test]
fn a_quiet_network_gives_everything() {
    let (_, failed) = many(|_| Faults::default());
    assert_eq!(failed, 0);
}

/// Any sequence of batches gets through, whatever their sizes: no part of a window stays used up for good.
#[test]
fn large_records_do_not_stand_in_each_others_way() {
    for seed in 0..100 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (size, records) = (rng.random_range(2..6), rng.random_range(0..30));
        let mut cluster = Cluster::new(seed, size, records, Faults::default());
        cluster.large = true;
        cluster.run();
        assert_eq!(cluster.check(), Phase::Done, "seed {seed}");
    }
}

#[test]
fn a_shard_with_busy_threads_is_waited_for() {
    let (_, failed) = many(|rng| Faults {
        busy_until_ms: rng.random_range(0..4 * IDLE_LIMIT_MS),
        ..Faults::default()
    });
    assert_eq!(failed, 0);
}

#[test]
fn stages_that_have_enough_hold_nobody_up() {
    let (_, failed) = many(|rng| Faults {
        enough: Some(rng.random_range(1..30)),
        ..Faults::default()
    });
    assert_eq!(failed, 0);
}

#[test]
fn late_and_repeated_messages_change_nothing() {
    let (complete, failed) = many(|_| Faults {
        repeat: 20,
        late: 10,
        ..Faults::default()
    });
    // Reordering may overrun the bound of early batches or overtake the start; then it must say so.
    assert!(complete > failed * 5, "{complete} complete, {failed} failed");
}

#[test]
fn a_lost_message_never_gives_a_part_as_the_whole() {
    let (_, failed) = many(|rng| Faults {
        lose: rng.random_range(1..10),
        repeat: 5,
        late: 5,
        ..Faults::default()
    });
    assert!(failed > 0);
}

#[test]
fn a_dead_shard_ends_the_execution_everywhere() {
    let (_, failed) = many(|rng| Faults {
        kill_at_ms: Some(rng.random_range(1..60)),
        ..Faults::default()
    });
    assert!(failed > 0);
}

#[test]
fn a_silent_shard_ends_it_by_the_idle_limit() {
    let (_, failed) = many(|rng| Faults {
        mute_at_ms: Some(rng.random_range(1..40)),
        late: 5,
        ..Faults::default()
    });
    assert!(failed > 0);
}

/// A machine that takes every batch as new would count records twice: the harness must see that.
#[test]
#[should_panic(expected = "records repeated")]
fn the_harness_sees_a_repeated_record() {
    let mut cluster = Cluster::new(1, 3, 10, Faults::default());
    cluster.run();
    let again = cluster.shards[0].machine.outcome().results[0].clone();
    cluster.shards[0].machine.force_result(again);
    cluster.check();
}
