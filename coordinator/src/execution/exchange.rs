//! One exchange (shuffle or collect) of an execution as one shard sees it: windows, sequence numbers, inbox.
//!
//! Flow control is by cumulative credit: the receiver tells how many bytes it has used up in all, the sender keeps
//! what is under way below the window (see `may_go`). Repeated or reordered credits and batches change nothing.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    codec::RecordBatch,
    limits::{CREDIT_STEP_BYTES, REORDER_BATCHES, SMALL_BATCH_BYTES, WINDOW_BYTES},
    message::{BatchKind, ExecutionMessage},
};

/// What an exchange does with records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeKind {
    /// To the owner of the key's slot.
    Shuffle,
    /// To the initiator.
    Collect,
}

/// Sender's side towards one destination.
#[derive(Debug, Default)]
struct Outgoing {
    /// Batches that got a number so far.
    sequence: u64,
    sent_bytes: u64,
    credited_bytes: u64,
    queue: VecDeque<(BatchKind, RecordBatch)>,
    /// The stage before the exchange is complete.
    ended: bool,
    end_sent: bool,
}

/// Receiver's side from one source.
#[derive(Debug, Default)]
struct Incoming {
    next: u64,
    early: BTreeMap<u64, (BatchKind, RecordBatch)>,
    end: Option<u64>,
    consumed_bytes: u64,
    told_bytes: u64,
}

/// One exchange on one shard.
#[derive(Debug)]
pub(super) struct Exchange {
    pub kind: ExchangeKind,
    number: u32,
    me: usize,
    out: Vec<Outgoing>,
    incoming: Vec<Incoming>,
    /// This shard receives records here.
    pub receives: bool,
    inbox: VecDeque<(usize, RecordBatch)>,
    /// The stage behind wants nothing more: what still comes is used up at once.
    discards: bool,
}

/// A batch's size for flow control: empty ones count too.
fn weight(batch: &RecordBatch) -> u64 {
    batch.bytes.len() as u64 + 16
}

/// A batch of `size` may follow what is under way. One that does not fit into the window waits until nothing else is
/// there. Less than a step counts as nothing: so much may be used up without having been told, and would never be told
/// while the sender waits. Under way are at most a window, or one batch and less than a step.
fn may_go(under_way: u64, size: u64) -> bool {
    under_way < CREDIT_STEP_BYTES || under_way + size <= WINDOW_BYTES
}

/// Messages to send: destination and body.
pub(super) type Sends = Vec<(usize, ExecutionMessage)>;

impl Exchange {
    pub fn new(kind: ExchangeKind, number: usize, me: usize, initiator: usize, participants: usize) -> Exchange {
        Exchange {
            kind,
            number: number as u32,
            me,
            out: (0..participants).map(|_| Outgoing::default()).collect(),
            incoming: (0..participants).map(|_| Incoming::default()).collect(),
            receives: kind == ExchangeKind::Shuffle || me == initiator,
            inbox: VecDeque::new(),
            discards: false,
        }
    }

    /// The stage behind the exchange has seen enough.
    pub fn discard(&mut self, sends: &mut Sends) {
        self.discards = true;
        while self.take(sends).is_some() {}
    }

    /// Every window has room.
    pub fn has_room(&self) -> bool {
        self.out
            .iter()
            .all(|o| o.queue.is_empty() && o.sent_bytes - o.credited_bytes < WINDOW_BYTES)
    }

    /// Takes a batch for a destination; it waits here while the window is used up.
    pub fn emit(&mut self, to: usize, kind: BatchKind, batch: RecordBatch, sends: &mut Sends) {
        self.out[to].queue.push_back((kind, batch));
        self.flush(to, sends);
    }

    fn flush(&mut self, to: usize, sends: &mut Sends) {
        let out = &mut self.out[to];
        while let Some((_, batch)) = out.queue.front() {
            let under_way = out.sent_bytes - out.credited_bytes;
            let size = weight(batch);
            if !may_go(under_way, size) {
                return;
            }
            let Some((kind, batch)) = out.queue.pop_front() else {
                return;
            };
            out.sent_bytes += size;
            let sequence = out.sequence;
            out.sequence += 1;
            if to == self.me && self.discards {
                out.credited_bytes += size;
            } else if to == self.me {
                self.inbox.push_back((to, batch));
            } else {
                sends.push((
                    to,
                    ExecutionMessage::Batch {
                        exchange: self.number,
                        sequence,
                        kind,
                        batch,
                    },
                ));
            }
        }
        if out.ended && !out.end_sent {
            out.end_sent = true;
            if to == self.me {
                self.incoming[to].next = out.sequence;
                self.incoming[to].end = Some(out.sequence);
            } else {
                sends.push((
                    to,
                    ExecutionMessage::EndOfInput {
                        exchange: self.number,
                        sequence: out.sequence,
                    },
                ));
            }
        }
    }

    /// The stage before the exchange is complete here.
    pub fn end(&mut self, initiator: usize, sends: &mut Sends) {
        for to in 0..self.out.len() {
            if self.kind == ExchangeKind::Shuffle || to == initiator {
                self.out[to].ended = true;
                self.flush(to, sends);
            }
        }
    }

    /// Everything of this shard has been handed to the network.
    pub fn is_flushed(&self) -> bool {
        self.out.iter().all(|o| o.queue.is_empty() && (o.end_sent || !o.ended))
    }

    /// The receiver has used up `bytes` in all.
    pub fn on_credit(&mut self, from: usize, bytes: u64, sends: &mut Sends) {
        let out = &mut self.out[from];
        // A credit beyond what was sent is a broken peer's; it gets no more room than there is.
        out.credited_bytes = out.credited_bytes.max(bytes.min(out.sent_bytes));
        self.flush(from, sends);
    }

    /// A batch arrives. Error batches, ready at once, are given back; `Err` says why the execution must fail.
    pub fn on_batch(
        &mut self,
        from: usize,
        sequence: u64,
        kind: BatchKind,
        batch: RecordBatch,
        sends: &mut Sends,
    ) -> Result<Vec<RecordBatch>, &'static str> {
        let side = &mut self.incoming[from];
        if !self.receives {
            return Err("records were sent to a shard that does not take part in the collect");
        }
        if sequence < side.next || side.early.contains_key(&sequence) {
            return Ok(Vec::new());
        }
        if side.end.is_some_and(|end| sequence >= end) {
            return Err("records arrived behind the end of their input");
        }
        if side.early.len() >= REORDER_BATCHES {
            return Err("too many records arrived out of order");
        }
        side.early.insert(sequence, (kind, batch));
        let mut errors = Vec::new();
        while let Some((kind, batch)) = side.early.remove(&side.next) {
            side.next += 1;
            match kind {
                BatchKind::Records if self.discards => side.consumed_bytes += weight(&batch),
                BatchKind::Records => self.inbox.push_back((from, batch)),
                BatchKind::Errors => {
                    side.consumed_bytes += weight(&batch);
                    errors.push(batch);
                }
            }
        }
        self.give_credit(from, sends);
        Ok(errors)
    }

    /// The source has sent `sequence` batches and sends no more.
    pub fn on_end(&mut self, from: usize, sequence: u64) {
        self.incoming[from].end.get_or_insert(sequence);
    }

    /// The next batch and its source, if it is small.
    pub fn take_small(&mut self, sends: &mut Sends) -> Option<(usize, RecordBatch)> {
        let (from, batch) = self.inbox.front()?;
        let from = *from;
        if batch.bytes.len() > SMALL_BATCH_BYTES {
            return None;
        }
        self.take(sends).map(|batch| (from, batch))
    }

    /// The next batch for the stage behind the exchange.
    pub fn take(&mut self, sends: &mut Sends) -> Option<RecordBatch> {
        let (from, batch) = self.inbox.pop_front()?;
        let size = weight(&batch);
        if from == self.me {
            self.out[from].credited_bytes += size;
            self.flush(from, sends);
        } else {
            self.incoming[from].consumed_bytes += size;
            self.give_credit(from, sends);
        }
        Some(batch)
    }

    fn give_credit(&mut self, from: usize, sends: &mut Sends) {
        let side = &mut self.incoming[from];
        if side.consumed_bytes - side.told_bytes >= CREDIT_STEP_BYTES && side.end.is_none() {
            side.told_bytes = side.consumed_bytes;
            let credit = ExecutionMessage::Credit {
                exchange: self.number,
                bytes: side.consumed_bytes,
            };
            sends.push((from, credit));
        }
    }

    /// There is a batch to take.
    pub fn has_input(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// All sources have ended and everything has been taken.
    pub fn is_complete(&self) -> bool {
        self.inbox.is_empty() && self.missing().next().is_none()
    }

    /// Sources that have not delivered everything.
    pub fn missing(&self) -> impl Iterator<Item = usize> + '_ {
        let sides = self
            .incoming
            .iter()
            .enumerate()
            .filter(|(_, side)| side.end != Some(side.next));
        sides.map(|(from, _)| from).filter(|_| self.receives)
    }

    /// Frees the records.
    pub fn clear(&mut self) {
        self.inbox.clear();
        for out in &mut self.out {
            out.queue.clear();
        }
        for side in &mut self.incoming {
            side.early.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    /// Both sides of every pair of shards, and messages that have not arrived: (from, to, message).
    struct Shards {
        exchanges: Vec<Exchange>,
        wire: VecDeque<(usize, usize, ExecutionMessage)>,
        /// Batches that are to be emitted.
        left: u32,
        /// Bytes of the largest batch, and of all.
        largest: u64,
        bytes: u64,
        credits: u64,
        seed: u64,
    }

    impl Shards {
        fn new(kind: ExchangeKind, count: usize, seed: u64) -> Shards {
            Shards {
                exchanges: (0..count).map(|me| Exchange::new(kind, 0, me, 0, count)).collect(),
                wire: VecDeque::new(),
                left: 60,
                largest: 0,
                bytes: 0,
                credits: 0,
                seed,
            }
        }

        fn act<T>(&mut self, at: usize, f: impl FnOnce(&mut Exchange, &mut Sends) -> T) -> T {
            let mut sends = Vec::new();
            let given = f(&mut self.exchanges[at], &mut sends);
            self.wire
                .extend(sends.into_iter().map(|(to, message)| (at, to, message)));
            self.check_bound();
            given
        }

        fn deliver(&mut self) -> bool {
            let Some((from, to, message)) = self.wire.pop_front() else {
                return false;
            };
            self.credits += u64::from(matches!(message, ExecutionMessage::Credit { .. }));
            self.act(to, |e, sends| match message {
                ExecutionMessage::Batch {
                    sequence, kind, batch, ..
                } => {
                    e.on_batch(from, sequence, kind, batch, sends).expect("in order");
                }
                ExecutionMessage::EndOfInput { sequence, .. } => e.on_end(from, sequence),
                ExecutionMessage::Credit { bytes, .. } => e.on_credit(from, bytes, sends),
                other => panic!("unexpected {other:?}"),
            });
            true
        }

        /// What a receiver has to hold: a window, or one batch with less than a step.
        fn check_bound(&self) {
            let bound = WINDOW_BYTES.max(self.largest + CREDIT_STEP_BYTES);
            for (from, source) in self.exchanges.iter().enumerate() {
                for (to, sink) in self.exchanges.iter().enumerate().filter(|&(to, _)| to != from) {
                    let held = source.out[to].sent_bytes - sink.incoming[from].consumed_bytes;
                    assert!(held <= bound, "{held} of {bound} under way, seed {}", self.seed);
                }
            }
        }
    }

    /// Sizes about every bound of the flow control, and any others.
    fn size(rng: &mut StdRng) -> usize {
        let (step, window) = (CREDIT_STEP_BYTES as usize, WINDOW_BYTES as usize);
        let bounds = [0, 64 * 1024, 128 * 1024, step, window - step, window, window + step];
        match rng.random_range(0..10) {
            n @ 0..7 => (bounds[n] + rng.random_range(0..64)).saturating_sub(40),
            7 => rng.random_range(0..window * 2),
            _ => rng.random_range(0..2000),
        }
    }

    impl Shards {
        /// A record batch, or an error batch now and then, if shard `from` has room for it.
        fn emit(&mut self, from: usize, rng: &mut StdRng, zeros: &Bytes) -> bool {
            let exchange = &self.exchanges[from];
            if self.left == 0 || !exchange.has_room() {
                return false;
            }
            let to = match exchange.kind {
                ExchangeKind::Collect => 0,
                ExchangeKind::Shuffle => rng.random_range(0..self.exchanges.len()),
            };
            let batch = RecordBatch {
                bytes: zeros.slice(..size(rng)),
                records: 1,
            };
            self.largest = self.largest.max(weight(&batch));
            self.bytes += weight(&batch);
            self.left -= 1;
            let is_error = to != from && rng.random_range(0..10) == 0;
            let kind = if is_error {
                BatchKind::Errors
            } else {
                BatchKind::Records
            };
            self.act(from, |e, sends| e.emit(to, kind, batch, sends));
            true
        }

        /// One of the things that may happen; true if something has.
        fn step(&mut self, what: usize, at: usize, rng: &mut StdRng, zeros: &Bytes) -> bool {
            match what {
                0 => self.emit(at, rng, zeros),
                1 => self.deliver(),
                _ => self.act(at, |e, sends| e.take(sends)).is_some(),
            }
        }
    }

    #[test]
    fn batches_of_every_size_arrive_within_the_bound() {
        let zeros = Bytes::from(vec![0; 3 * WINDOW_BYTES as usize]);
        for seed in 0..1000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let count = rng.random_range(2..5);
            let kind = [ExchangeKind::Shuffle, ExchangeKind::Collect][rng.random_range(0..2)];
            let mut shards = Shards::new(kind, count, seed);
            for _ in 0..200 {
                let (what, at) = (rng.random_range(0..3), rng.random_range(0..count));
                shards.step(what, at, &mut rng, &zeros);
            }
            let mut moves = true;
            while moves {
                moves = false;
                for (what, at) in (0..3 * count).map(|n| (n / count, n % count)) {
                    moves |= shards.step(what, at, &mut rng, &zeros);
                }
            }
            assert_eq!(shards.left, 0, "stuck, seed {seed}");
            for at in 0..count {
                shards.act(at, |e, sends| e.end(0, sends));
            }
            while shards.deliver() {}
            for exchange in &shards.exchanges {
                assert!(exchange.is_flushed() && exchange.is_complete(), "stuck, seed {seed}");
            }
            assert!(
                shards.credits <= shards.bytes / CREDIT_STEP_BYTES,
                "credits, seed {seed}"
            );
        }
    }
}
