//! The thread around a member: clock, queue, disk, and what the service shows.
//!
//! The only place here that reads a clock. Never runs Python and never takes the server lock, so a commit waits for the
//! disk and the network alone.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use parking_lot::{Condvar, Mutex};

use super::{
    ClusterView, ProposeError, RegistryStatus,
    disk::FileDisk,
    member::{Member, Output},
    service::{Done, GroupConfig, Shared},
};
use crate::{engine::panic_text, limits, message::RegistryMessage, net::LogLevel, registry::Command, topology::NodeId};

/// What the thread is told.
pub(super) enum Event {
    Message(NodeId, RegistryMessage),
    Peer(NodeId, bool),
    View(ClusterView),
    Propose(Box<Command>, Done),
    Recover(Box<dyn FnOnce(Result<(), String>) + Send>),
}

#[derive(Default)]
struct Inbox {
    events: VecDeque<Event>,
    /// Bytes of the messages among them.
    bytes: usize,
    /// Nobody needs the thread any more.
    closed: bool,
}

/// The way to the thread.
#[derive(Default)]
pub(super) struct Queue {
    inbox: Mutex<Inbox>,
    filled: Condvar,
}

fn size(event: &Event) -> usize {
    match event {
        Event::Message(_, RegistryMessage::Raft { message, .. }) => message.len(),
        Event::Message(_, RegistryMessage::Forward { proposal, .. }) => proposal.len(),
        _ => 0,
    }
}

impl Queue {
    /// Queues an event. Messages and proposals are given back when too many wait: Raft repeats its own.
    pub fn push(&self, event: Event) -> Result<(), Event> {
        let mut inbox = self.inbox.lock();
        let bounded = matches!(event, Event::Message(..) | Event::Propose(..));
        let full = inbox.events.len() >= limits::RAFT_QUEUE || inbox.bytes >= limits::RAFT_QUEUE_BYTES;
        if bounded && full {
            return Err(event);
        }
        inbox.bytes += size(&event);
        inbox.events.push_back(event);
        drop(inbox);
        self.filled.notify_one();
        Ok(())
    }

    /// Ends the thread.
    pub fn close(&self) {
        self.inbox.lock().closed = true;
        self.filled.notify_one();
    }

    /// Takes what is there, waiting for something until `deadline`; `None` when it is closed.
    fn take(&self, deadline: Instant) -> Option<VecDeque<Event>> {
        let mut inbox = self.inbox.lock();
        while inbox.events.is_empty() && !inbox.closed && !self.filled.wait_until(&mut inbox, deadline).timed_out() {}
        if inbox.closed {
            return None;
        }
        inbox.bytes = 0;
        Some(std::mem::take(&mut inbox.events))
    }
}

/// What lives on the thread.
struct Driver {
    config: GroupConfig,
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    start: Instant,
    member: Option<Member<FileDisk>>,
    /// As last told: a member that is opened again needs them.
    view: Option<ClusterView>,
    peers: HashMap<NodeId, bool>,
    waiting: HashMap<u64, Done>,
    next_ticket: u64,
    status_at: Instant,
    /// When there is no member, because of an internal error, the log is opened again then.
    open_again: Instant,
    early: Early,
}

/// What came of messages and other outputs while the member wrote to its disk.
#[derive(Default)]
struct Early {
    outputs: Vec<Output>,
    unsent: Vec<NodeId>,
}

const RESTING: &str = "this node had an internal error and opens its log again, see the server log";

/// Opens the folder, publishes what its log holds, and starts the thread.
pub(super) fn start(config: GroupConfig, shared: Arc<Shared>, queue: Arc<Queue>) -> Result<(), String> {
    let now = Instant::now();
    let mut driver = Driver {
        config,
        shared,
        queue,
        start: now,
        member: None,
        view: None,
        peers: HashMap::new(),
        waiting: HashMap::new(),
        next_ticket: 0,
        status_at: now,
        open_again: now,
        early: Early::default(),
    };
    driver.guard(|driver| {
        driver.open();
        if let Some(member) = &mut driver.member {
            member.await_newest();
        }
        driver.turn(VecDeque::new());
    });
    driver.show_status();
    std::thread::Builder::new()
        .name("oxi-raft".into())
        .spawn(move || driver.run())
        .map_err(|e| format!("the registry's thread can not start: {e}"))?;
    Ok(())
}

impl Driver {
    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn open(&mut self) {
        let disk = FileDisk::new(&self.config.dir);
        let (me, seed, state) = (self.config.me.clone(), rand::random(), self.shared.state());
        let mut member = Member::open(me, seed, state, disk, self.now_ms());
        if let Some(view) = &self.view {
            member.set_view(view.clone());
        }
        for (peer, _) in self.peers.iter().filter(|(_, up)| **up) {
            member.on_peer(peer, true);
        }
        self.member = Some(member);
    }

    fn run(mut self) {
        let mut next_tick = Instant::now();
        loop {
            next_tick = next_tick.max(Instant::now() - limits::RAFT_TICK) + limits::RAFT_TICK;
            while Instant::now() < next_tick {
                let Some(events) = self.queue.take(next_tick) else {
                    return;
                };
                if !events.is_empty() {
                    self.guard(|driver| driver.turn(events));
                }
            }
            self.guard(|driver| {
                if driver.member.is_none() && driver.open_again <= Instant::now() {
                    driver.open();
                }
                driver.turn(VecDeque::new());
            });
        }
    }

    /// A panic costs this node its part in the group for a moment, and nobody else anything.
    fn guard(&mut self, work: impl FnOnce(&mut Driver)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self))) {
            let text = panic_text(panic.as_ref());
            let line = format!("registry: internal error, the log is opened again: {text}");
            self.shared.host.log(LogLevel::Warning, &line);
            // The files say what is true.
            self.member = None;
            self.open_again = Instant::now() + limits::DISK_RETRY;
            for (_, done) in self.waiting.drain() {
                done(Err(ProposeError::Unknown(limits::PROPOSE_TIMEOUT)));
            }
            let status = RegistryStatus {
                role: "failed",
                error: Some(format!("internal error: {text}")),
                applied: self.shared.state().index(),
                ..RegistryStatus::default()
            };
            self.shared.set_status(status);
        }
        if self.status_at.elapsed() >= limits::RAFT_TICK {
            self.show_status();
        }
    }

    /// Takes events in, or a tick if there are none.
    fn turn(&mut self, events: VecDeque<Event>) {
        let shared = self.shared.clone();
        let mut bound = shared.bound();
        if *bound {
            // Changes past the group are refused: nobody has to wait for this lock while the disk is written.
            drop(bound);
            self.work(events);
        } else {
            // What was loaded meanwhile is what a founder brings; nothing more may come while it founds.
            if let Some(member) = &mut self.member {
                member.set_alone(shared.state());
            }
            self.work(events);
            *bound = self.member.as_ref().is_some_and(Member::is_bound);
        }
        // Before the state that it is about is published.
        let awaited = self.member.as_ref().map_or(0, Member::awaited_index);
        self.shared.set_awaited_index(awaited);
        self.carry_out();
    }

    fn work(&mut self, events: VecDeque<Event>) {
        let now_ms = self.now_ms();
        let is_tick = events.is_empty();
        for event in events {
            self.take_in(event, now_ms);
        }
        let Some(member) = &mut self.member else { return };
        if is_tick {
            member.tick(now_ms);
        }
        let (host, early) = (&self.shared.host, &mut self.early);
        member.flush_with(&mut |output| match output {
            Output::Send(to, message) => {
                if host.send(&to, message).is_err() {
                    early.unsent.push(to);
                }
            }
            other => early.outputs.push(other),
        });
    }

    fn take_in(&mut self, event: Event, now_ms: u64) {
        match event {
            Event::Peer(peer, up) => {
                if let Some(member) = &mut self.member {
                    member.on_peer(&peer, up);
                }
                self.peers.insert(peer, up);
            }
            Event::View(view) => {
                self.peers
                    .retain(|peer, up| *up || view.nodes.iter().any(|node| node.id == *peer));
                if let Some(member) = &mut self.member {
                    member.set_view(view.clone());
                }
                self.view = Some(view);
            }
            Event::Message(from, message) => {
                if let Some(member) = &mut self.member {
                    member.on_message(&from, message);
                }
            }
            Event::Propose(command, done) => match &mut self.member {
                Some(member) => {
                    self.next_ticket += 1;
                    self.waiting.insert(self.next_ticket, done);
                    member.propose(self.next_ticket, *command, now_ms);
                }
                None => done(Err(ProposeError::NoQuorum(RESTING.into()))),
            },
            Event::Recover(done) => done(match &mut self.member {
                Some(member) => member.recover(),
                None => Err(format!("ERR {RESTING}")),
            }),
        }
    }

    fn carry_out(&mut self) {
        loop {
            let Some(member) = &mut self.member else { return };
            let mut early = std::mem::take(&mut self.early);
            early.outputs.extend(member.take_outputs());
            if early.outputs.is_empty() && early.unsent.is_empty() {
                return;
            }
            for output in early.outputs {
                match output {
                    Output::Send(to, message) => {
                        if self.shared.host.send(&to, message).is_err() {
                            early.unsent.push(to);
                        }
                    }
                    Output::Published(state) => {
                        self.shared.set_state(state);
                        self.shared.host.published();
                    }
                    Output::Done(ticket, result) => {
                        if let Some(done) = self.waiting.remove(&ticket) {
                            done(result);
                        }
                    }
                    Output::Log(level, text) => self.shared.host.log(level, &text),
                }
            }
            early.unsent.sort();
            early.unsent.dedup();
            for to in early.unsent {
                if let Some(member) = &mut self.member {
                    member.on_send_failed(&to);
                }
            }
        }
    }

    fn show_status(&mut self) {
        self.status_at = Instant::now();
        if let Some(member) = &self.member {
            self.shared.set_status(member.status());
        }
    }
}
