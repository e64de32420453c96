//! Whole engines in one process, joined by a transport that a test can break: epochs, losses, aborts, lists.

mod fired;
mod waiting;

use std::{
    any::Any,
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
    time::Instant,
};

use super::*;
use crate::{
    codec::{RecordBatch, put_int},
    execution::Phase,
    plan::{Mode, Op, Output, Reader},
    stage::{Input, Route, RunState, Source, SourceState, StageRunner, StageSink, Waker},
    topology::{Shard, Slot},
};

/// Behind the border between two shards, and before it when the border is moved by 100.
const ROUTED_SLOT: Slot = 8200;

type Network = Arc<Mutex<Vec<Arc<Engine>>>>;

/// The server and the language of one shard.
struct FakeHost {
    start: Instant,
    number: usize,
    max_executions: AtomicI64,
    /// Records that the reader gives, one a batch; it waits while the gate is closed.
    records: usize,
    gate: Arc<Gate>,
    is_interruptible: AtomicBool,
    refreshed: AtomicUsize,
    /// Index of the registry that is active here, and the plans that are registered.
    active: Mutex<u64>,
    activated: parking_lot::Condvar,
    registered: Mutex<HashMap<String, Arc<Plan>>>,
    idle_limit_ms: AtomicU64,
    /// The stage that postpones its records, and how many at most.
    later: Mutex<Option<(usize, usize, Arc<waiting::Later>)>>,
}

#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: parking_lot::Condvar,
}

impl Gate {
    fn close(&self) {
        *self.closed.lock() = true;
    }

    fn open(&self) {
        *self.closed.lock() = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let mut closed = self.closed.lock();
        while *closed {
            self.opened.wait(&mut closed);
        }
    }
}

/// Opens the gate, if that is wanted.
struct FakeInterrupt(Option<Arc<Gate>>);

impl Interrupt for FakeInterrupt {
    fn request(&self) {
        if let Some(gate) = &self.0 {
            gate.open();
        }
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

struct Numbers {
    left: usize,
    value: i64,
    gate: Arc<Gate>,
}

impl Source for Numbers {
    fn next_batch(&mut self) -> SourceState {
        self.gate.pass();
        if self.left == 0 {
            return SourceState::End;
        }
        self.left -= 1;
        let mut bytes = Vec::new();
        put_int(&mut bytes, self.value);
        SourceState::Batch(RecordBatch {
            bytes: bytes.into(),
            records: 1,
        })
    }
}

/// Hands every batch on.
#[derive(Default)]
struct PassOn {
    /// Records go to the owner of this slot instead of where the stage sends them by itself.
    slot: Option<Slot>,
    batch: Option<RecordBatch>,
    closed: bool,
}

impl StageRunner for PassOn {
    fn feed(&mut self, batch: RecordBatch) {
        self.batch = Some(batch);
    }

    fn close(&mut self) {
        self.closed = true;
    }

    fn run(&mut self, sink: &mut dyn StageSink) -> RunState {
        if let Some(batch) = self.batch.take() {
            let route = self
                .slot
                .map_or(Route::Default, |slot| Route::Participant(sink.owner(slot)));
            sink.emit(route, batch);
        }
        if self.closed {
            RunState::Done
        } else {
            RunState::NeedInput
        }
    }

    fn is_pending(&self) -> bool {
        false
    }

    fn set_waker(&mut self, _: Waker) {}

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

impl Host for FakeHost {
    fn new_interrupt(&self) -> Arc<dyn Interrupt> {
        let is_served = self.is_interruptible.load(Ordering::Relaxed);
        Arc::new(FakeInterrupt(is_served.then(|| self.gate.clone())))
    }

    fn prepare(&self, request: JobRequest<'_>) -> Result<Job, String> {
        let source = Numbers {
            left: self.records,
            value: self.number as i64,
            gate: self.gate.clone(),
        };
        let later = self.later.lock().clone();
        let runner = |(number, stage): (usize, &Stage)| {
            let slot = matches!(stage.output, Output::Shuffle { .. }).then_some(ROUTED_SLOT);
            let inner = PassOn {
                slot,
                ..PassOn::default()
            };
            match &later {
                Some((its, bound, later)) if *its == number => Box::new(waiting::Postponing {
                    later: later.clone(),
                    inner,
                    bound: *bound,
                }) as Box<dyn StageRunner>,
                _ => Box::new(inner),
            }
        };
        let runners = request.stages.iter().enumerate().map(runner).collect();
        if let Some(fired) = request.fired {
            let input = Input::Batch(fired.input.clone());
            return Ok(Job { input, runners });
        }
        Ok(Job {
            input: Input::Source(Box::new(source)),
            runners,
        })
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn idle_limit_ms(&self) -> u64 {
        self.idle_limit_ms.load(Ordering::Relaxed)
    }

    fn max_executions(&self) -> i64 {
        self.max_executions.load(Ordering::Relaxed)
    }

    fn refresh_topology(&self) {
        self.refreshed.fetch_add(1, Ordering::Relaxed);
    }

    fn registered(&self, registration: &str, index: u64) -> Option<RegisteredPlan> {
        if *self.active.lock() < index {
            return None;
        }
        let plan = self.registered.lock().get(registration).cloned()?;
        Some(RegisteredPlan {
            plan,
            local: Arc::new(()),
            idle_limit_ms: 5000,
        })
    }

    fn await_active(&self, index: u64, deadline_ms: u64) -> bool {
        let mut active = self.active.lock();
        while *active < index {
            let left_ms = deadline_ms.saturating_sub(self.now_ms());
            if left_ms == 0 {
                return false;
            }
            self.activated.wait_for(&mut active, Duration::from_millis(left_ms));
        }
        true
    }

    fn answer(
        &self,
        engine: &Arc<Engine>,
        what: &str,
        argument: &[u8],
        asked: Option<Arc<Execution>>,
        then: Box<dyn FnOnce(Result<Vec<u8>, String>) + Send>,
    ) {
        let id = ExecutionId::parse(argument).unwrap();
        match what {
            question::ABORT => engine.abort_here(&id, asked, |ended| then(ended.map(|()| Vec::new()))),
            _ => {
                engine.forget(&id);
                then(Ok(Vec::new()));
            }
        }
    }

    fn log_warning(&self, _text: &str) {}
}

struct FakeTransport {
    from: NodeId,
    network: Network,
    cut: Arc<Mutex<HashSet<NodeId>>>,
    crowded: Arc<Mutex<HashSet<NodeId>>>,
    sent: Arc<Mutex<Vec<Message>>>,
}

impl Transport for FakeTransport {
    fn send(&self, to: &NodeId, message: Message) -> Result<(), String> {
        if self.cut.lock().contains(to) {
            return Err("cut".into());
        }
        let target = self.network.lock().iter().find(|e| e.topology().me == *to).cloned();
        let target = target.ok_or("unknown")?;
        self.sent.lock().push(message.clone());
        let from = self.from.clone();
        // Another thread, as a network would; order per sender is kept by its one thread.
        target
            .clone()
            .replying
            .submit(move || target.on_message(&from, message));
        Ok(())
    }

    fn down_for(&self, to: &NodeId) -> Option<Duration> {
        self.cut.lock().contains(to).then_some(Duration::MAX)
    }

    fn is_crowded(&self, to: &NodeId) -> bool {
        self.crowded.lock().contains(to)
    }
}

struct Cluster {
    engines: Vec<Arc<Engine>>,
    hosts: Vec<Arc<FakeHost>>,
    cut: Arc<Mutex<HashSet<NodeId>>>,
    crowded: Arc<Mutex<HashSet<NodeId>>>,
    network: Network,
    /// All messages between the shards.
    sent: Arc<Mutex<Vec<Message>>>,
}

fn node(number: usize) -> NodeId {
    NodeId::new(&format!("{number:040}"))
}

fn topology(me: usize, size: usize, moved: u16) -> Topology {
    let step = 16384 / size as u16;
    let shards = (0..size).map(|n| {
        let first = if n == 0 { 0 } else { n as u16 * step + moved };
        let last = if n == size - 1 {
            16383
        } else {
            (n as u16 + 1) * step + moved - 1
        };
        Shard {
            id: node(n),
            host: "h".into(),
            port: 1,
            ranges: vec![(first, last)],
        }
    });
    Topology::new(node(me), shards.collect())
}

fn cluster(size: usize, records: usize) -> Cluster {
    let network = Network::default();
    let (cut, crowded) = (
        Arc::<Mutex<HashSet<NodeId>>>::default(),
        Arc::<Mutex<HashSet<NodeId>>>::default(),
    );
    let sent = Arc::new(Mutex::new(Vec::new()));
    let mut hosts = Vec::new();
    for number in 0..size {
        let host = Arc::new(FakeHost {
            start: Instant::now(),
            number,
            max_executions: AtomicI64::new(1000),
            records,
            gate: Arc::default(),
            is_interruptible: AtomicBool::new(false),
            refreshed: AtomicUsize::new(0),
            active: Mutex::new(0),
            activated: parking_lot::Condvar::new(),
            registered: Mutex::default(),
            idle_limit_ms: AtomicU64::new(5000),
            later: Mutex::default(),
        });
        let engine = Engine::start(host.clone(), 2).unwrap();
        engine.set_topology(topology(number, size, 0));
        let transport = FakeTransport {
            from: node(number),
            network: network.clone(),
            cut: cut.clone(),
            crowded: crowded.clone(),
            sent: sent.clone(),
        };
        engine.set_transport(Arc::new(transport));
        network.lock().push(engine);
        hosts.push(host);
    }
    let engines = network.lock().clone();
    Cluster {
        engines,
        hosts,
        cut,
        crowded,
        network,
        sent,
    }
}

fn plan() -> Plan {
    Plan {
        reader: Reader::ShardsId,
        ops: vec![Op::Map(0), Op::Collect],
        mode: Mode::Async,
        function_names: vec!["f".into()],
        code: Vec::new(),
        session: String::new(),
        user: None,
    }
}

fn start(engine: &Arc<Engine>) -> Arc<Execution> {
    engine.create(order(plan()), None).unwrap()
}

fn order(plan: Plan) -> Order {
    Order {
        plan: Arc::new(plan),
        local: Arc::new(()),
        nested: false,
        held: false,
        fired: None,
    }
}

/// Waits for the end; only a hang makes this fail.
fn wait(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn finish(execution: &Arc<Execution>) -> (Phase, usize, Vec<String>) {
    wait("the end", || execution.phase().is_over());
    let phase = execution.phase();
    execution.with_outcome(|o| (phase, o.results.len(), o.errors.clone()))
}

#[test]
fn every_shard_takes_part_and_finishes() {
    let c = cluster(3, 4);
    let execution = start(&c.engines[1]);
    assert_eq!(finish(&execution), (Phase::Done, 12, vec![]));
    assert_eq!(execution.counts(), (2, 2));
    for engine in &c.engines {
        wait("the end everywhere", || {
            engine.find(&execution.id).is_some_and(|e| e.phase() == Phase::Done)
        });
    }
    c.engines[1].forget_everywhere(&execution);
    for engine in &c.engines {
        wait("forgetting", || engine.executions() == 0);
    }
}

#[test]
fn a_shard_that_could_not_be_reached_drops_later() {
    let c = cluster(3, 1);
    let execution = start(&c.engines[0]);
    finish(&execution);
    wait("the end", || {
        c.engines[1].find(&execution.id).is_some_and(|e| e.phase().is_over())
    });
    c.cut.lock().insert(node(1));
    c.engines[0].forget_everywhere(&execution);
    wait("forgetting", || c.engines[2].executions() == 0);
    c.engines[0].on_tick();
    assert_eq!(c.engines[1].executions(), 1);
    c.cut.lock().clear();
    c.engines[0].on_tick();
    wait("forgetting later", || c.engines[1].executions() == 0);
    // Nothing is told twice.
    let sent = c.sent.lock().len();
    c.engines[0].on_tick();
    assert_eq!(c.sent.lock().len(), sent);
}

#[test]
fn a_shard_with_another_topology_refuses_after_looking_again() {
    let c = cluster(2, 1);
    c.engines[1].set_topology(topology(1, 2, 100));
    let (phase, results, errors) = finish(&start(&c.engines[0]));
    assert_eq!((phase, results), (Phase::Aborted, 0));
    assert!(errors[0].contains("another view of the cluster's slots"), "{errors:?}");
    assert!(errors[0].contains(node(1).as_str()));
    assert!(c.hosts[1].refreshed.load(Ordering::Relaxed) > 1);
}

#[test]
fn a_shard_that_catches_up_with_the_topology_takes_part() {
    let c = cluster(2, 1);
    c.engines[1].set_topology(topology(1, 2, 100));
    let execution = start(&c.engines[0]);
    wait("a second look", || c.hosts[1].refreshed.load(Ordering::Relaxed) > 0);
    c.engines[1].set_topology(topology(1, 2, 0));
    assert_eq!(finish(&execution), (Phase::Done, 2, vec![]));
}

#[test]
fn a_shard_that_catches_up_routes_by_the_new_owners() {
    let c = cluster(2, 1);
    // By this older topology the slot belongs to the initiator, by the execution's to the other shard.
    c.engines[1].set_topology(topology(1, 2, 100));
    let mut shuffles = plan();
    shuffles.ops = vec![Op::Repartition(0)];
    let execution = c.engines[0].create(order(shuffles), None).unwrap();
    wait("a second look", || c.hosts[1].refreshed.load(Ordering::Relaxed) > 0);
    c.engines[1].set_topology(topology(1, 2, 0));
    assert_eq!(finish(&execution), (Phase::Done, 0, vec![]));
    let there = c.engines[1].find(&execution.id).unwrap();
    assert_eq!(finish(&there), (Phase::Done, 2, vec![]));
}

#[test]
fn slots_that_move_end_the_execution_everywhere() {
    let c = cluster(3, 1);
    c.hosts[2].gate.close();
    let execution = start(&c.engines[0]);
    wait("running", || {
        c.engines[2]
            .find(&execution.id)
            .is_some_and(|e| e.phase() == Phase::Running)
    });
    c.engines[1].set_topology(topology(1, 3, 7));
    let (phase, _, errors) = finish(&execution);
    assert_eq!(phase, Phase::Aborted);
    assert!(errors[0].contains("slots of the cluster move"), "{errors:?}");
    c.hosts[2].gate.open();
    for engine in &c.engines {
        wait("the end everywhere", || {
            engine.find(&execution.id).is_some_and(|e| e.phase().is_over())
        });
    }
}

#[test]
fn a_lost_peer_is_named() {
    let c = cluster(3, 1);
    c.hosts[2].gate.close();
    let execution = start(&c.engines[0]);
    wait("running", || execution.phase() == Phase::Running);
    c.engines[0].on_peer_lost(&node(2), "connection closed");
    let (phase, _, errors) = finish(&execution);
    assert_eq!(phase, Phase::Aborted);
    for word in [node(2).as_str(), "connection closed", "step", "phase"] {
        assert!(errors[0].contains(word), "{errors:?}");
    }
    c.hosts[2].gate.open();
}

#[test]
fn a_peer_that_can_not_be_reached_fails_the_start() {
    let c = cluster(2, 1);
    c.cut.lock().insert(node(1));
    let (phase, results, errors) = finish(&start(&c.engines[0]));
    assert_eq!((phase, results), (Phase::Aborted, 0));
    assert!(
        errors[0].contains(node(1).as_str()) && errors[0].contains("cut"),
        "{errors:?}"
    );
}

#[test]
fn a_shard_that_was_restarted_uses_its_numbers_again() {
    let c = cluster(2, 1);
    let first = start(&c.engines[0]);
    assert_eq!(finish(&first).0, Phase::Done);
    wait("its end there", || {
        c.engines[1].find(&first.id).is_some_and(|e| e.phase().is_over())
    });
    let engine = Engine::start(c.hosts[0].clone(), 2).unwrap();
    engine.set_topology(topology(0, 2, 0));
    engine.set_transport(Arc::new(FakeTransport {
        from: node(0),
        network: c.network.clone(),
        cut: c.cut.clone(),
        crowded: c.crowded.clone(),
        sent: c.sent.clone(),
    }));
    c.network.lock()[0] = engine.clone();
    let again = start(&engine);
    assert_eq!(again.id, first.id);
    assert_eq!(finish(&again).0, Phase::Done);
}

#[test]
fn an_execution_begins_when_no_link_is_crowded() {
    let c = cluster(2, 1);
    c.crowded.lock().insert(node(1));
    let execution = start(&c.engines[0]);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((execution.phase(), c.sent.lock().len()), (Phase::Created, 0));
    c.crowded.lock().clear();
    assert_eq!(finish(&execution).0, Phase::Done);
}

#[test]
fn an_uncovered_slot_is_refused_only_where_it_matters() {
    let c = cluster(2, 1);
    let mut shards = topology(0, 2, 0).shards;
    shards[1].ranges = vec![(9000, 16383)];
    for (number, engine) in c.engines.iter().enumerate() {
        engine.set_topology(Topology::new(node(number), shards.clone()));
    }
    let mut reads = plan();
    reads.ops.insert(0, Op::Repartition(0));
    let refused = c.engines[0].create(order(reads), None).map(|e| e.id.to_string());
    assert!(refused.unwrap_err().to_string().contains("slot 8192"));
    assert_eq!(finish(&start(&c.engines[0])).0, Phase::Done);
}

/// A shard that has just joined knows no other one, and has no slots either: its own keys are not all there are.
#[test]
fn a_shard_that_knows_of_no_slots_refuses_to_read_keys() {
    let c = cluster(2, 1);
    let mut reads = plan();
    reads.reader = Reader::Stream {
        key: b"s".to_vec(),
        from_id: "0-0".into(),
    };
    for (shards, slot) in [
        (vec![], "slot 0 "),
        (topology(0, 2, 0).shards[..1].to_vec(), "slot 8192 "),
    ] {
        c.engines[1].set_topology(Topology::new(node(1), shards));
        let refused = c.engines[1]
            .create(order(reads.clone()), None)
            .map(|e| e.id.to_string());
        let text = refused.unwrap_err().to_string();
        assert!(text.contains(slot), "{text}");
    }
}

#[test]
fn the_list_is_bounded_and_unfinished_ones_leave_later() {
    let c = cluster(1, 1);
    let engine = &c.engines[0];
    c.hosts[0].max_executions.store(2, Ordering::Relaxed);
    c.hosts[0].gate.close();
    let first = start(engine);
    c.hosts[0].gate.open();
    finish(&first);
    c.hosts[0].gate.close();
    let (second, third, fourth) = (start(engine), start(engine), start(engine));
    assert!(engine.find(&first.id).is_none(), "the oldest finished one is gone");
    assert!(engine.find(&second.id).is_some(), "an unfinished one is still shown");
    c.hosts[0].gate.open();
    for execution in [&second, &third, &fourth] {
        finish(execution);
    }
    wait("leaving", || engine.find(&second.id).is_none());
    assert!(engine.find(&fourth.id).is_some());
}

/// Waits until the execution has left its thread.
fn abort(engine: &Arc<Engine>, id: &ExecutionId) -> Result<(), String> {
    let (sender, ended) = std::sync::mpsc::channel();
    engine.abort_here(id, None, move |result| sender.send(result).unwrap());
    ended.recv().unwrap()
}

#[test]
fn an_abort_while_others_are_awaited_ends_all_parts() {
    let c = cluster(2, 1);
    c.hosts[1].gate.close();
    let execution = start(&c.engines[0]);
    wait("waiting", || {
        execution.phase() == Phase::PendingCluster || execution.phase() == Phase::Running
    });
    abort(&c.engines[0], &execution.id).unwrap();
    let (phase, _, errors) = finish(&execution);
    assert_eq!((phase, errors), (Phase::Aborted, vec![]));
    c.hosts[1].gate.open();
    wait("the end everywhere", || {
        c.engines[1].find(&execution.id).is_none_or(|e| e.phase().is_over())
    });
    assert_eq!(abort(&c.engines[0], &execution.id), Ok(()));
    let unknown = ExecutionId::new(&node(0), 99);
    assert!(abort(&c.engines[0], &unknown).is_err());
}

/// Whoever waits for them on the threads that answer others would wait for others who do the same.
#[test]
fn aborts_that_wait_for_threads_hold_up_no_answer() {
    let c = cluster(2, 4);
    c.hosts[1].gate.close();
    let executions: Vec<_> = (0..2).map(|_| start(&c.engines[0])).collect();
    let there = |e: &Arc<Execution>| c.engines[1].find(&e.id);
    let reads = |e: &Arc<Execution>| there(e).is_some_and(|e| e.phase() == Phase::Running && e.is_on_thread());
    wait("the readers", || executions.iter().all(reads));
    let (sender, answers) = std::sync::mpsc::channel();
    let ask = |what: &'static str, id: &ExecutionId| {
        let (sender, id) = (sender.clone(), bytes::Bytes::copy_from_slice(id.as_str().as_bytes()));
        c.engines[0].ask(
            vec![node(1)],
            what,
            id,
            Box::new(move |all| sender.send((what, all)).unwrap()),
        );
    };
    executions.iter().for_each(|e| ask(question::ABORT, &e.id));
    ask(question::DROP, &ExecutionId::new(&node(0), 99));
    let answer = || answers.recv_timeout(Duration::from_secs(20)).expect("an answer");
    assert_eq!(answer(), (question::DROP, vec![(node(1), Ok(bytes::Bytes::new()))]));
    c.hosts[1].gate.open();
    for _ in &executions {
        assert_eq!(answer(), (question::ABORT, vec![(node(1), Ok(bytes::Bytes::new()))]));
    }
}

/// However it ends: a function must not run on for ever.
#[test]
fn threads_leave_what_is_over() {
    type Cause = fn(&Cluster, &Arc<Execution>);
    let causes: [Cause; 3] = [
        |c, execution| abort(&c.engines[0], &execution.id).unwrap(),
        |c, _| c.engines[0].on_peer_lost(&node(1), "connection closed"),
        |c, _| c.engines[1].set_topology(topology(1, 3, 7)),
    ];
    for cause in causes {
        let c = cluster(3, 1);
        c.hosts[2].gate.close();
        c.hosts[2].is_interruptible.store(true, Ordering::Relaxed);
        let execution = start(&c.engines[0]);
        let there = || c.engines[2].find(&execution.id).unwrap();
        wait("the reader", || {
            c.engines[2]
                .find(&execution.id)
                .is_some_and(|e| e.phase() == Phase::Running && e.is_on_thread())
        });
        cause(&c, &execution);
        assert_eq!(finish(&execution).0, Phase::Aborted);
        wait("leaving", || there().phase().is_over() && !there().is_on_thread());
    }
}

#[test]
fn an_abort_of_what_was_aborted_elsewhere_waits_for_the_thread() {
    let c = cluster(2, 1);
    c.hosts[1].gate.close();
    c.hosts[1].is_interruptible.store(true, Ordering::Relaxed);
    let execution = start(&c.engines[0]);
    let there = || c.engines[1].find(&execution.id);
    wait("the reader", || {
        there().is_some_and(|e| e.phase() == Phase::Running && e.is_on_thread())
    });
    abort(&c.engines[0], &execution.id).unwrap();
    wait("the word", || there().is_some_and(|e| e.phase().is_over()));
    abort(&c.engines[1], &execution.id).unwrap();
    assert!(!there().unwrap().is_on_thread());
    assert_eq!(there().unwrap().phase(), Phase::Aborted);
}

/// Who has done its part and waits for the last word does not end what goes on elsewhere.
#[test]
fn a_long_call_on_the_initiator_does_not_end_what_all_others_have_done() {
    let c = cluster(2, 1);
    c.hosts[0].gate.close();
    c.hosts[1].idle_limit_ms.store(100, Ordering::Relaxed);
    let execution = start(&c.engines[0]);
    let there = |phase| move |e: Arc<Execution>| e.phase() == phase;
    let reported = || {
        c.engines[1]
            .find(&execution.id)
            .is_some_and(there(Phase::PendingTermination))
    };
    wait("the report", reported);
    wait("the limit", || {
        c.engines[1].on_tick();
        c.engines[1].find(&execution.id).is_some_and(there(Phase::Aborted))
    });
    c.hosts[0].gate.open();
    let (phase, results, errors) = finish(&execution);
    assert_eq!((phase, errors), (Phase::Done, vec![]));
    assert_eq!(results, 2);
}

#[test]
fn a_shard_that_has_lost_its_slots_drops_its_part_as_well() {
    let c = cluster(3, 1);
    let execution = start(&c.engines[0]);
    assert_eq!(finish(&execution).0, Phase::Done);
    wait("the end everywhere", || {
        let there = c.engines.iter().map(|engine| engine.find(&execution.id));
        there.flatten().filter(|e| e.phase().is_over()).count() == 3
    });
    c.engines[0].set_topology(topology(0, 2, 7));
    c.engines[0].forget_everywhere(&execution);
    wait("forgetting", || c.engines.iter().all(|engine| engine.executions() == 0));
}

/// Dropped ones do not pile up behind the scenes, and do not count.
#[test]
fn dropped_executions_leave_room_for_others() {
    let c = cluster(1, 1);
    let engine = &c.engines[0];
    c.hosts[0].max_executions.store(3, Ordering::Relaxed);
    let kept = start(engine);
    finish(&kept);
    for _ in 0..500 {
        let dropped = start(engine);
        finish(&dropped);
        engine.forget_everywhere(&dropped);
    }
    assert_eq!(engine.executions(), 1);
    assert!(engine.find(&kept.id).is_some());
    assert!(engine.lists.lock().waiting_to_leave() < 100);
}
