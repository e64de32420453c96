//! Records that come back later: who is woken, what goes on meanwhile, what the others hear.

use std::collections::VecDeque;

use super::*;

/// The records of a stage that come back when the test says so.
#[derive(Default)]
pub(super) struct Later {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: VecDeque<RecordBatch>,
    back: VecDeque<RecordBatch>,
    waker: Option<Waker>,
    /// Slices of the stage.
    runs: usize,
    dropped: bool,
}

impl Later {
    /// So many come back.
    fn release(&self, count: usize) {
        let mut state = self.state.lock();
        let count = count.min(state.held.len());
        let back: Vec<RecordBatch> = state.held.drain(..count).collect();
        state.back.extend(back);
        let waker = state.waker.clone();
        drop(state);
        waker.expect("the stage has a waker")();
    }

    fn held(&self) -> usize {
        self.state.lock().held.len()
    }

    fn runs(&self) -> usize {
        self.state.lock().runs
    }

    fn has_waker(&self) -> bool {
        self.state.lock().waker.is_some()
    }
}

/// Postpones every batch, up to a bound.
pub(super) struct Postponing {
    pub later: Arc<Later>,
    pub inner: PassOn,
    pub bound: usize,
}

impl StageRunner for Postponing {
    fn feed(&mut self, batch: RecordBatch) {
        self.later.state.lock().held.push_back(batch);
    }

    fn close(&mut self) {
        self.inner.closed = true;
    }

    fn run(&mut self, sink: &mut dyn StageSink) -> RunState {
        let mut state = self.later.state.lock();
        state.runs += 1;
        while let Some(batch) = state.back.pop_front() {
            self.inner.batch = Some(batch);
            self.inner.run(sink);
        }
        match (state.held.len(), self.inner.closed) {
            (0, true) => RunState::Done,
            (held, false) if held < self.bound => RunState::NeedInput,
            _ => RunState::Waiting,
        }
    }

    fn is_pending(&self) -> bool {
        !self.later.state.lock().held.is_empty()
    }

    fn set_waker(&mut self, waker: Waker) {
        let mut state = self.later.state.lock();
        assert!(state.waker.is_none(), "a waker is given once");
        state.waker = Some(waker);
    }

    fn satisfied(&self) -> bool {
        false
    }

    fn read_ns(&self) -> u64 {
        0
    }

    fn durations_ns(&self) -> Vec<u64> {
        Vec::new()
    }
}

impl Drop for Postponing {
    fn drop(&mut self) {
        self.later.state.lock().dropped = true;
    }
}

/// A cluster in which a stage of one shard postpones.
fn postponing(size: usize, records: usize, shard: usize, stage: usize, bound: usize) -> (Cluster, Arc<Later>) {
    let c = cluster(size, records);
    let later: Arc<Later> = Arc::default();
    *c.hosts[shard].later.lock() = Some((stage, bound, later.clone()));
    (c, later)
}

fn ends(execution: &Arc<Execution>, results: usize) {
    assert_eq!(finish(execution), (Phase::Done, results, vec![]));
}

#[test]
fn an_execution_waits_without_a_thread() {
    let (c, later) = postponing(1, 5, 0, 0, 1000);
    let execution = start(&c.engines[0]);
    wait("the postponing", || later.held() == 5 && c.engines[0].pending() == 1);
    wait("the thread", || !execution.is_on_thread());
    let runs = later.runs();
    // Both threads are there for others.
    *c.hosts[0].later.lock() = None;
    ends(&start(&c.engines[0]), 5);
    assert_eq!((execution.phase(), later.runs()), (Phase::Running, runs));
    later.release(2);
    wait("the first ones", || execution.with_outcome(|o| o.results.len()) == 2);
    later.release(3);
    ends(&execution, 5);
    wait("the count", || c.engines[0].pending() == 0);
}

#[test]
fn a_bound_stops_the_reader_and_not_for_ever() {
    let (c, later) = postponing(1, 50, 0, 0, 7);
    let execution = start(&c.engines[0]);
    let mut back = 0;
    while back < 50 {
        wait("the next ones", || {
            later.has_waker() && (later.held() == 7 || later.held() == 50 - back)
        });
        assert!(later.held() <= 7);
        later.release(3);
        back += 3;
    }
    ends(&execution, 50);
}

/// Other stages and shards go on; wherever the records wait, all are there in the end.
#[test]
fn stages_before_and_behind_an_exchange() {
    for shuffles in [false, true] {
        for (shard, stage) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            if !shuffles && (shard, stage) != (0, 0) && (shard, stage) != (1, 0) {
                continue;
            }
            let (c, later) = postponing(2, 6, shard, stage, 1000);
            let mut its = plan();
            if shuffles {
                its.ops = vec![Op::Repartition(0), Op::Map(0), Op::Collect];
            }
            let execution = c.engines[0].create(order(its), None).unwrap();
            // The routed slot belongs to shard 1: a second stage on shard 0 gets nothing.
            let waits = match (shuffles, shard, stage) {
                (true, 0, 1) => 0,
                (true, 1, 1) => 12,
                _ => 6,
            };
            if waits > 0 {
                wait("the postponing", || later.held() == waits && later.has_waker());
                assert_eq!(execution.phase(), Phase::Running);
                for _ in 0..waits {
                    later.release(1);
                }
            }
            ends(&execution, 12);
        }
    }
}

#[test]
fn the_idle_limit_does_not_count_anywhere() {
    let (c, later) = postponing(3, 1, 1, 0, 1000);
    c.hosts
        .iter()
        .for_each(|host| host.idle_limit_ms.store(200, Ordering::Relaxed));
    let execution = start(&c.engines[0]);
    wait("the postponing", || later.held() == 1 && later.has_waker());
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        c.engines.iter().for_each(|engine| engine.on_tick());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(
        execution.phase(),
        Phase::Running,
        "{:?}",
        execution.with_outcome(|o| o.errors.clone())
    );
    later.release(1);
    ends(&execution, 3);
}

/// What comes behind the question may end the execution before a thread is free to answer.
#[test]
fn a_question_finds_what_was_there_when_it_came() {
    let (c, later) = postponing(2, 2, 1, 0, 1000);
    let execution = start(&c.engines[0]);
    wait("the postponing", || later.held() == 2 && c.engines[1].pending() == 1);
    let busy = Arc::new(std::sync::Barrier::new(3));
    for _ in 0..2 {
        let busy = busy.clone();
        c.engines[1].manage(move || {
            busy.wait();
        });
    }
    let (sender, answers) = std::sync::mpsc::channel();
    let argument = bytes::Bytes::copy_from_slice(execution.id.as_str().as_bytes());
    let then = move |all| sender.send(all).unwrap();
    c.engines[0].ask(vec![node(1)], question::ABORT, argument, Box::new(then));
    let there = c.engines[1].find(&execution.id).unwrap();
    abort(&c.engines[0], &execution.id).unwrap();
    wait("the word", || there.phase().is_over());
    c.engines[1].forget(&execution.id);
    assert!(c.engines[1].find(&execution.id).is_none());
    busy.wait();
    assert_eq!(answers.recv().unwrap(), [(node(1), Ok(bytes::Bytes::new()))]);
}

#[test]
fn an_abort_drops_what_waits_and_late_wakes_do_nothing() {
    let (c, later) = postponing(2, 2, 1, 0, 1000);
    let execution = start(&c.engines[0]);
    wait("the postponing", || later.held() == 2 && c.engines[1].pending() == 1);
    abort(&c.engines[0], &execution.id).unwrap();
    let (phase, _, errors) = finish(&execution);
    assert_eq!((phase, errors), (Phase::Aborted, vec![]));
    wait("the drop", || later.state.lock().dropped && c.engines[1].pending() == 0);
    later.release(2);
    later.release(0);
    c.engines[0].forget_everywhere(&execution);
    wait("forgetting", || c.engines.iter().all(|engine| engine.executions() == 0));
    drop(execution);
    later.release(0);
}

#[test]
fn a_lost_peer_ends_what_waits() {
    let (c, later) = postponing(2, 2, 0, 0, 1000);
    let execution = start(&c.engines[0]);
    wait("the postponing", || later.held() == 2);
    c.engines[0].on_peer_lost(&node(1), "gone");
    let (phase, _, errors) = finish(&execution);
    assert_eq!(phase, Phase::Aborted);
    assert!(errors[0].contains("was lost (gone)"), "{errors:?}");
    wait("the drop", || later.state.lock().dropped && c.engines[0].pending() == 0);
}
