//! Executions that a registration fires: on all shards, on shards that lag behind, on one shard, held, aborted.

use super::*;
use crate::message::Work;

const REGISTRATION: &str = "0000000000000000000000000000000000000000-17";
const INDEX: u64 = 5;

fn input() -> RecordBatch {
    let mut bytes = Vec::new();
    put_int(&mut bytes, 4711);
    RecordBatch {
        bytes: bytes.into(),
        records: 1,
    }
}

fn registered_plan(mode: Mode) -> Plan {
    Plan {
        reader: Reader::Command,
        mode,
        ..plan()
    }
}

/// A cluster in which the registration is active at `INDEX`.
fn active(size: usize) -> Cluster {
    let c = cluster(size, 0);
    for host in &c.hosts {
        let plan = Arc::new(registered_plan(Mode::Async));
        host.registered.lock().insert(REGISTRATION.into(), plan);
        host.activate(INDEX);
    }
    c
}

impl FakeHost {
    fn activate(&self, index: u64) {
        *self.active.lock() = index;
        self.activated.notify_all();
    }
}

fn fired(mode: Mode) -> Order {
    Order {
        fired: Some(Fired {
            registration: REGISTRATION.into(),
            index: INDEX,
            input: input(),
            here: None,
            idle_limit_ms: 5000,
            spent_ns: None,
            reads_on: None,
        }),
        ..order(registered_plan(mode))
    }
}

fn fire(engine: &Arc<Engine>) -> Arc<Execution> {
    engine.create(fired(Mode::Async), None).unwrap()
}

#[test]
fn every_shard_gets_its_own_copy_of_the_input() {
    let c = active(3);
    let execution = fire(&c.engines[1]);
    assert_eq!(finish(&execution), (Phase::Done, 3, vec![]));
    execution.with_outcome(|o| assert_eq!(o.results[..], vec![input(); 3]));
    assert_eq!(execution.registration().map(|id| &**id), Some(REGISTRATION));
    assert!(c.engines[1].listed().iter().all(|listed| listed.registered));
    // Only the initiator keeps it, until its client has the reply.
    for other in [0, 2] {
        wait("dropping", || c.engines[other].executions() == 0);
    }
    c.engines[1].forget_everywhere(&execution);
    assert_eq!(c.engines[1].executions(), 0);
}

/// What an execution costs: one message for each turn of the conversation, and no plan travels.
#[test]
fn five_messages_for_each_other_shard() {
    let c = active(3);
    let execution = fire(&c.engines[0]);
    assert_eq!(finish(&execution).0, Phase::Done);
    for other in [1, 2] {
        wait("dropping", || c.engines[other].executions() == 0);
    }
    c.engines[0].forget_everywhere(&execution);
    let sent = c.sent.lock();
    let bodies = sent.iter().map(|message| match message {
        Message::Execution { body, .. } => body,
        other => panic!("{other:?}"),
    });
    let mut counts = [0; 5];
    for body in bodies {
        let kind = match body {
            ExecutionMessage::Prepare {
                work: Work::Registered {
                    registration, index, ..
                },
                ..
            } => {
                assert_eq!((&**registration, *index), (REGISTRATION, INDEX));
                0
            }
            ExecutionMessage::Prepared { refusal: None, .. } => 1,
            ExecutionMessage::Start => 2,
            ExecutionMessage::Several(parts) => {
                assert_eq!(parts.len(), 3, "{parts:?}");
                3
            }
            ExecutionMessage::Finish => 4,
            other => panic!("{other:?}"),
        };
        counts[kind] += 1;
    }
    assert_eq!(counts, [2; 5]);
}

#[test]
fn a_shard_that_lags_behind_is_awaited() {
    let c = active(2);
    c.hosts[1].activate(INDEX - 1);
    let execution = fire(&c.engines[0]);
    wait("the arrival", || c.engines[1].arriving.count() == 1);
    assert_eq!(execution.phase(), Phase::PendingReceive);
    c.hosts[1].activate(INDEX + 1);
    assert_eq!(finish(&execution), (Phase::Done, 2, vec![]));
    wait("dropping", || c.engines[1].executions() == 0);
    assert_eq!(c.engines[1].arriving.count(), 0);
}

#[test]
fn a_shard_that_stays_behind_refuses_and_nothing_runs() {
    let c = active(3);
    c.hosts[2].activate(INDEX - 1);
    let (phase, results, errors) = finish(&fire(&c.engines[0]));
    assert_eq!((phase, results), (Phase::Aborted, 0));
    for word in [REGISTRATION, node(2).as_str(), "lags behind change 5", "try again"] {
        assert!(errors[0].contains(word), "{errors:?} lacks {word}");
    }
    for other in [1, 2] {
        wait("dropping", || c.engines[other].executions() == 0);
    }
}

#[test]
fn a_registration_that_is_not_there_is_named() {
    let c = active(2);
    c.hosts[1].registered.lock().clear();
    let (phase, _, errors) = finish(&fire(&c.engines[0]));
    assert_eq!(phase, Phase::Aborted);
    let text = format!("registration {REGISTRATION} is not registered on it");
    assert!(errors[0].contains(&text), "{errors:?}");
}

#[test]
fn a_shard_does_not_join_what_was_given_up_meanwhile() {
    let c = active(2);
    c.hosts[1].activate(0);
    let execution = fire(&c.engines[0]);
    wait("the arrival", || c.engines[1].arriving.count() == 1);
    assert_eq!(c.engines[0].abort_unstarted(REGISTRATION), 1);
    assert_eq!(finish(&execution), (Phase::Aborted, 0, vec![]));
    wait("the word", || c.engines[1].arriving.is_given_up(&execution.id));
    c.sent.lock().clear();
    c.hosts[1].activate(INDEX);
    wait("the end", || c.engines[1].arriving.count() == 0);
    // A later one goes the whole way: whatever the first one would have said is through by then.
    assert_eq!(finish(&fire(&c.engines[0])).0, Phase::Done);
    let its = |message: &Message| matches!(message, Message::Execution { execution: id, .. } if *id == execution.id);
    assert!(!c.sent.lock().iter().any(its));
}

#[test]
fn a_shard_with_another_topology_catches_up_first() {
    let c = active(2);
    c.engines[1].set_topology(topology(1, 2, 100));
    let execution = fire(&c.engines[0]);
    wait("a second look", || c.hosts[1].refreshed.load(Ordering::Relaxed) > 0);
    c.engines[1].set_topology(topology(1, 2, 0));
    assert_eq!(finish(&execution), (Phase::Done, 2, vec![]));
}

#[test]
fn what_nobody_could_have_asked_for_is_refused() {
    let c = active(2);
    let id = ExecutionId::new(&node(0), 1);
    let ask = |from: usize, id: &ExecutionId, participants: Vec<NodeId>, input: RecordBatch| {
        let body = ExecutionMessage::Prepare {
            epoch: c.engines[1].topology().epoch,
            participants,
            work: Work::Registered {
                registration: REGISTRATION.into(),
                index: INDEX,
                input,
                depth: 0,
            },
            idle_limit_ms: 5000,
        };
        c.sent.lock().clear();
        let execution = id.clone();
        c.engines[1].on_message(&node(from), Message::Execution { execution, body });
        let sent = c.sent.lock();
        match sent.as_slice() {
            [
                Message::Execution {
                    body: ExecutionMessage::Prepared { refusal, .. },
                    ..
                },
            ] => refusal.clone(),
            other => panic!("{other:?}"),
        }
    };
    let all = || vec![node(0), node(1)];
    let cut = RecordBatch {
        bytes: Bytes::from_static(&[10, 9]),
        records: 1,
    };
    assert!(ask(0, &id, all(), cut).unwrap().contains("can not be decoded"));
    assert!(ask(0, &id, vec![node(0)], input()).unwrap().contains("not among"));
    let foreign = ExecutionId::new(&node(1), 1);
    assert!(ask(0, &foreign, all(), input()).unwrap().contains("not plausible"));
    assert_eq!(c.engines[1].executions(), 0);
    assert_eq!(ask(0, &id, all(), input()), None, "and this one is good");
}

#[test]
fn on_one_shard_it_is_prepared_run_and_answered_by_one_thread() {
    let c = active(1);
    let answered: Arc<Mutex<Option<String>>> = Arc::default();
    let seen = answered.clone();
    let waiter: Waiter = Box::new(move |execution| {
        assert_eq!(execution.take_outcome().results[..], [input()]);
        *seen.lock() = std::thread::current().name().map(str::to_owned);
    });
    let execution = c.engines[0].create(fired(Mode::AsyncLocal), Some(waiter)).unwrap();
    wait("the answer", || answered.lock().is_some());
    let name = answered.lock().take().unwrap();
    assert!(name.starts_with("oxi-worker"), "{name}");
    assert_eq!(execution.phase(), Phase::Done);
    assert!(c.sent.lock().is_empty());
}

/// A large outcome takes a while to write, and whoever aborts may hold locks: both go to another thread.
#[test]
fn large_and_aborted_ones_are_answered_elsewhere() {
    let c = active(1);
    let names: Arc<Mutex<Vec<String>>> = Arc::default();
    let waiter = || -> Waiter {
        let names = names.clone();
        Box::new(move |_| {
            names
                .lock()
                .push(std::thread::current().name().unwrap_or("").to_owned())
        })
    };
    let mut large = fired(Mode::AsyncLocal);
    if let Some(fired) = large.fired.as_mut() {
        let mut bytes = vec![crate::codec::tag::BYTES];
        crate::codec::put_bytes(&mut bytes, &vec![0; limits::SMALL_REPLY_BYTES]);
        fired.input.bytes = bytes.into();
    }
    c.engines[0].create(large, Some(waiter())).unwrap();
    wait("the answer", || names.lock().len() == 1);
    let held = Order {
        held: true,
        ..fired(Mode::AsyncLocal)
    };
    let held = c.engines[0].create(held, Some(waiter())).unwrap();
    abort(&c.engines[0], &held.id).unwrap();
    wait("the answer", || names.lock().len() == 2);
    assert!(
        names.lock().iter().all(|name| name.starts_with("oxi-reply")),
        "{names:?}"
    );
}

#[test]
fn a_held_one_is_listed_and_begins_when_it_is_released() {
    let c = active(2);
    for mode in [Mode::Async, Mode::AsyncLocal] {
        let order = || Order {
            held: true,
            ..fired(mode)
        };
        let held = c.engines[0].create(order(), None).unwrap();
        let aborted = c.engines[0].create(order(), None).unwrap();
        let listed = c.engines[0].listed();
        let created = |e: &Arc<Execution>| listed.iter().any(|l| l.id == e.id && l.status == "created");
        assert!(created(&held) && created(&aborted));
        abort(&c.engines[0], &aborted.id).unwrap();
        assert_eq!(finish(&aborted), (Phase::Aborted, 0, vec![]));
        c.engines[0].release(&aborted);
        assert_eq!(aborted.phase(), Phase::Aborted);
        assert_eq!(held.phase(), Phase::Created);
        c.engines[0].release(&held);
        c.engines[0].release(&held);
        let participants = if mode == Mode::Async { 2 } else { 1 };
        assert_eq!(finish(&held), (Phase::Done, participants, vec![]));
    }
}

#[test]
fn only_what_has_not_started_is_aborted() {
    let c = active(1);
    let engine = &c.engines[0];
    // Both worker threads are busy with executions that no registration fired.
    c.hosts[0].gate.close();
    let busy: Vec<_> = (0..2).map(|_| start(engine)).collect();
    wait("running", || busy.iter().all(|e| e.phase() == Phase::Running));
    let queued: Vec<_> = (0..3)
        .map(|_| engine.create(fired(Mode::AsyncLocal), None).unwrap())
        .collect();
    let held = Order {
        held: true,
        ..fired(Mode::AsyncLocal)
    };
    let held = engine.create(held, None).unwrap();
    let with = |change: fn(&mut Fired)| {
        let mut order = fired(Mode::AsyncLocal);
        order.fired.as_mut().map(change);
        engine.create(order, None).unwrap()
    };
    let other = with(|fired| fired.registration = "another-1".into());
    let rest = with(|fired| fired.spent_ns = Some(0));
    assert_eq!(engine.abort_unstarted(REGISTRATION), 4);
    assert_eq!(engine.abort_unstarted(REGISTRATION), 0);
    for execution in queued.iter().chain([&held]) {
        assert_eq!(finish(execution), (Phase::Aborted, 0, vec![]));
    }
    c.hosts[0].gate.open();
    for execution in [&other, &rest] {
        assert_eq!(finish(execution).0, Phase::Done);
    }
    for execution in &busy {
        assert_eq!(finish(execution).0, Phase::Done);
    }
    assert_eq!(engine.abort_unstarted("another-1"), 0);
}

/// Many at once on all shards: each is complete, nothing is left behind.
#[test]
fn many_at_once_are_all_complete() {
    let c = active(3);
    let over = Arc::new(AtomicUsize::new(0));
    let executions: Vec<_> = (0..600)
        .map(|n| {
            let over = over.clone();
            let waiter: Waiter = Box::new(move |_| {
                over.fetch_add(1, Ordering::Relaxed);
            });
            c.engines[n % 3].create(fired(Mode::Async), Some(waiter)).unwrap()
        })
        .collect();
    wait("the end", || over.load(Ordering::Relaxed) == executions.len());
    for (n, execution) in executions.iter().enumerate() {
        assert_eq!(finish(execution), (Phase::Done, 3, vec![]));
        c.engines[n % 3].forget_everywhere(execution);
    }
    for engine in &c.engines {
        wait("dropping", || engine.executions() == 0);
    }
}
