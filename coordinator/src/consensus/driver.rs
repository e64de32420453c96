//! The thread around a member: clock, queue, disk, and what the service shows.
//!
//! The only place here that reads a clock. Never runs Python and never takes the server lock, so a commit waits for the
//! disk and the network alone.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{
    ClusterView, ProposeError,
    disk::FileDisk,
    member::{Member, Output},
    service::{Done, GroupConfig, Shared},
};
use crate::{
    engine::panic_text,
    limits,
    message::RegistryMessage,
    net::LogLevel,
    registry::Command,
    topology::NodeId,
};

/// What the thread is told.
pub(super) enum Event {
    Message(NodeId, RegistryMessage),
    Peer(NodeId, bool),
    View(ClusterView),
    Propose(Command, Done),
    Recover(Box<dyn FnOnce(Result<(), String>) + Send>),
}

#[derive(Default)]
struct Inbox {
    events: VecDeque<Event>,
    /// Bytes of the messages among them.
    bytes: usize,
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

    /// Takes what is there, waiting for something until `deadline`.
    fn take(&self, deadline: Instant) -> VecDeque<Event> {
        let mut inbox = self.inbox.lock();
        while inbox.events.is_empty() && !self.filled.wait_until(&mut inbox, deadline).timed_out() {}
        inbox.bytes = 0;
        std::mem::take(&mut inbox.events)
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
}

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
    };
    driver.open(FileDisk::new(&driver.config.dir.clone()));
    driver.turn(VecDeque::new());
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

    fn open(&mut self, disk: FileDisk) {
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
                let events = self.queue.take(next_tick);
                if !events.is_empty() {
                    self.guarded(events);
                }
            }
            self.guarded(VecDeque::new());
        }
    }

    /// One turn; a panic in it costs this node's part in the group a moment, and nobody else anything.
    fn guarded(&mut self, events: VecDeque<Event>) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.turn(events)));
        if let Err(panic) = outcome {
            let text = format!("registry: internal error, the log is opened again: {}", panic_text(panic.as_ref()));
            self.shared.host.log(LogLevel::Warning, &text);
            for (_, done) in self.waiting.drain() {
                done(Err(ProposeError::Unknown(Duration::ZERO)));
            }
            std::thread::sleep(limits::DISK_RETRY);
            // The files say what is true.
            self.member = None;
            self.open(FileDisk::new(&self.config.dir.clone()));
        }
        if self.status_at.elapsed() >= limits::RAFT_TICK {
            self.show_status();
        }
    }

    fn turn(&mut self, events: VecDeque<Event>) {
        let now_ms = self.now_ms();
        let shared = self.shared.clone();
        let mut bound = shared.bound();
        let Some(member) = &mut self.member else { return };
        if !*bound {
            // What was loaded meanwhile is what a founder brings.
            member.set_alone(shared.state());
        }
        let is_tick = events.is_empty();
        for event in events {
            match event {
                Event::Message(from, message) => member.on_message(&from, message),
                Event::Peer(peer, up) => {
                    member.on_peer(&peer, up);
                    self.peers.insert(peer, up);
                }
                Event::View(view) => {
                    self.peers.retain(|peer, _| view.nodes.iter().any(|node| node.id == *peer));
                    member.set_view(view.clone());
                    self.view = Some(view);
                }
                Event::Propose(command, done) => {
                    self.next_ticket += 1;
                    self.waiting.insert(self.next_ticket, done);
                    member.propose(self.next_ticket, command, now_ms);
                }
                Event::Recover(done) => done(member.recover()),
            }
        }
        if is_tick {
            member.tick(now_ms);
        }
        member.flush();
        *bound |= member.is_bound();
        if *bound {
            // Changes past the group are refused from now on: nothing waits for this lock while the disk is written.
            drop(bound);
        }
        self.carry_out();
    }

    fn carry_out(&mut self) {
        loop {
            let Some(member) = &mut self.member else { return };
            let outputs = member.take_outputs();
            if outputs.is_empty() {
                return;
            }
            let mut unsent = Vec::new();
            for output in outputs {
                match output {
                    Output::Send(to, message) => {
                        if self.shared.host.send(&to, message).is_err() {
                            unsent.push(to);
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
            unsent.dedup();
            for to in unsent {
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
