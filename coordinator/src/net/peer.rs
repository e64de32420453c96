//! What this node knows about one peer, and when the two are up together.
//!
//! Two links make a pair: ours to the peer and the peer's to us. The pair is up when both have been authenticated
//! by both ends, and both ends with the same run of the peer. When one of them ends the whole pair is given up, so
//! that no message that was taken for sending vanishes without `on_peer_lost`.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use super::{Core, LogLevel, PeerAddress, PeerStatus, SendError, Transport, announce::Announcement};
use crate::{
    limits::{LINK_QUEUE_MESSAGES, REPEAT_LOG_EVERY},
    message::Message,
    topology::NodeId,
};

/// Our link to the peer, authenticated by both sides.
pub(super) struct Outgoing {
    pub queue: mpsc::Sender<Message>,
    pub run_id: String,
    pub transport: Transport,
}

/// The peer's link to us, whose caller has proved that it is the peer.
pub(super) struct Incoming {
    pub generation: u64,
    pub run_id: String,
    /// The peer has checked our proof as well, and has its end of the pair ready.
    pub live: bool,
    /// Dropping it, or a reason sent, ends the link.
    pub end: oneshot::Sender<String>,
}

#[derive(Default)]
struct State {
    /// Only members have one.
    address: Option<PeerAddress>,
    announcement: Option<Announcement>,
    /// The announcement was refused at the peer's door.
    stale: bool,
    /// The peer has our announcement.
    has_ours: bool,
    has_task: bool,
    outgoing: Option<Outgoing>,
    incoming: Option<Incoming>,
    /// Generation of the incoming link that the pair is up with.
    up: Option<u64>,
    /// The handler knows that the pair is up.
    told: bool,
    /// Since when a member that is not up has been so.
    down_since: Option<Instant>,
    last_error: Option<String>,
    logged: Option<(String, Instant)>,
    /// Taken out of the table.
    forgotten: bool,
}

/// One peer.
pub(super) struct Peer {
    pub id: NodeId,
    /// Something has changed that the link's task wants to see.
    pub wake: Notify,
    /// The handler knows that the pair is up: the peer's messages may come.
    pub opened: Notify,
    state: Mutex<State>,
}

/// Where and as whom to open a link.
pub(super) struct Target {
    pub address: PeerAddress,
    pub announcement: Announcement,
}

/// What the link's task should do.
pub(super) enum Errand {
    Open(Box<Target>),
    Wait,
    Stop,
}

impl State {
    /// Makes the pair up if it is complete; true if the link's task should hear of a change.
    fn pair(&mut self) -> bool {
        let (Some(outgoing), Some(incoming)) = (&self.outgoing, &self.incoming) else {
            return false;
        };
        if self.up.is_some() || !incoming.live || incoming.run_id != outgoing.run_id {
            return false;
        }
        self.up = Some(incoming.generation);
        self.last_error = None;
        self.logged = None;
        true
    }
}

impl Peer {
    pub(super) fn new(id: NodeId) -> Arc<Peer> {
        Arc::new(Peer {
            id,
            wake: Notify::new(),
            opened: Notify::new(),
            state: Mutex::new(State::default()),
        })
    }

    /// Makes it a member (true if it has no link task yet) or no member.
    pub(super) fn set_address(&self, address: Option<PeerAddress>) -> bool {
        let mut state = self.state.lock();
        let is_member = address.is_some();
        if is_member && state.address.is_none() {
            state.down_since = Some(Instant::now());
        }
        state.address = address;
        if !is_member && state.up.is_none() {
            // Else the link's task gives up the whole pair.
            state.incoming = None;
        }
        let needs_task = is_member && !mem::replace(&mut state.has_task, true);
        drop(state);
        self.wake.notify_one();
        needs_task
    }

    pub(super) fn is_member(&self) -> bool {
        self.state.lock().address.is_some()
    }

    /// The link's task is to end.
    pub(super) fn forget(&self) {
        self.state.lock().forgotten = true;
        self.wake.notify_one();
    }

    /// Takes an announcement; true if the peer lacks ours.
    pub(super) fn announced(&self, announcement: Announcement, own_run: &str) -> bool {
        let mut state = self.state.lock();
        state.has_ours = announcement.knows.as_deref() == Some(own_run);
        let lacks_ours = !state.has_ours;
        state.stale = false;
        state.announcement = Some(announcement);
        drop(state);
        self.wake.notify_one();
        lacks_ours
    }

    /// The run id of the peer that we have a good announcement of.
    pub(super) fn known_run(&self) -> Option<String> {
        let state = self.state.lock();
        if state.stale {
            None
        } else {
            state.announcement.as_ref().map(|a| a.run_id.clone())
        }
    }

    pub(super) fn wants_announcement(&self) -> bool {
        let state = self.state.lock();
        state.announcement.is_none() || state.stale || !state.has_ours
    }

    /// What to do while there is no link.
    pub(super) fn errand(&self) -> Errand {
        let mut state = self.state.lock();
        if state.forgotten {
            return Errand::Stop;
        }
        match (&state.address, &state.announcement) {
            (Some(address), Some(announcement)) => Errand::Open(Box::new(Target {
                address: address.clone(),
                announcement: announcement.clone(),
            })),
            (Some(_), None) => {
                state.last_error = Some("the peer has not announced itself yet".into());
                Errand::Wait
            }
            (None, _) => Errand::Wait,
        }
    }

    /// An attempt to open a link has failed; the same failure is not logged all the time.
    pub(super) fn failed(&self, core: &Core, reason: String, refused: bool) {
        let mut state = self.state.lock();
        state.stale |= refused;
        let repeated = matches!(&state.logged, Some((r, at)) if *r == reason && at.elapsed() < REPEAT_LOG_EVERY);
        let line = state
            .address
            .as_ref()
            .filter(|_| !repeated)
            .map(|address| disconnected(address, &reason));
        if line.is_some() {
            state.logged = Some((reason.clone(), Instant::now()));
        }
        state.last_error = Some(reason);
        drop(state);
        if let Some(line) = line {
            core.log(LogLevel::Warning, &line);
        }
    }

    /// Our link is authenticated. Messages that are sent from now on arrive, or the peer is reported lost.
    pub(super) fn set_outgoing(&self, outgoing: Outgoing) {
        let mut state = self.state.lock();
        state.outgoing = Some(outgoing);
        if !state.pair() {
            state.last_error = Some("the peer has not opened its own link yet".into());
        }
    }

    /// The peer's link is authenticated; an older one gives way. False if the peer is no member.
    pub(super) fn set_incoming(&self, incoming: Incoming) -> bool {
        let mut state = self.state.lock();
        if state.address.is_none() {
            return false;
        }
        // It has come in with the token of our announcement.
        state.has_ours = true;
        let old = state.incoming.replace(incoming);
        drop(state);
        if let Some(old) = old {
            let _ = old.end.send("a newer link of the same peer has taken its place".into());
        }
        self.wake.notify_one();
        true
    }

    /// The peer's link has brought its first frame.
    pub(super) fn incoming_is_live(&self, generation: u64) {
        let mut state = self.state.lock();
        if let Some(incoming) = state.incoming.as_mut().filter(|i| i.generation == generation) {
            incoming.live = true;
            if state.pair() {
                self.wake.notify_one();
            }
        }
    }

    /// The peer's link has ended.
    pub(super) fn incoming_ended(&self, generation: u64, reason: String) {
        let mut state = self.state.lock();
        if state.incoming.as_ref().is_some_and(|i| i.generation == generation) {
            state.incoming = None;
            state.last_error = Some(reason);
            self.wake.notify_one();
        }
    }

    /// A look at the pair while our link holds: why it has to be given up, if so. Tells the handler that it is up.
    pub(super) fn look(&self, core: &Core) -> Option<String> {
        let mut state = self.state.lock();
        let Some(address) = state.address.clone() else {
            return Some("it has left the cluster".into());
        };
        let run = state.outgoing.as_ref().map(|o| o.run_id.clone());
        if state.announcement.as_ref().map(|a| &a.run_id) != run.as_ref() {
            return Some("it has been restarted".into());
        }
        state.pair();
        let up = state.up?;
        match &state.incoming {
            Some(incoming) if incoming.generation == up => {}
            Some(_) => return Some("it has opened its link anew".into()),
            None => {
                let reason = state.last_error.take();
                return Some(reason.unwrap_or_else(|| "its link to this shard has ended".into()));
            }
        }
        if !mem::replace(&mut state.told, true) {
            drop(state);
            core.log(
                LogLevel::Notice,
                &format!("connected : {}:{}, status = 0", address.host, address.redis_port),
            );
            core.tell(|handler| handler.on_peer_up(&self.id));
            self.opened.notify_one();
        }
        None
    }

    /// The handler knows that the pair with this incoming link is up.
    pub(super) fn is_open(&self, generation: u64) -> bool {
        let state = self.state.lock();
        state.told && state.up == Some(generation)
    }

    /// Gives the pair up. The handler hears of it exactly once, and only if the pair was up.
    pub(super) fn give_up(&self, core: &Core, reason: &str) -> bool {
        let mut state = self.state.lock();
        state.outgoing = None;
        let Some(generation) = state.up.take() else {
            drop(state);
            return false;
        };
        state.down_since = Some(Instant::now());
        let told = mem::take(&mut state.told);
        let incoming = match &state.incoming {
            Some(incoming) if incoming.generation == generation => state.incoming.take(),
            _ => None,
        };
        state.last_error = Some(reason.to_owned());
        state.logged = Some((reason.to_owned(), Instant::now()));
        let address = state.address.clone();
        drop(state);
        if let Some(incoming) = incoming {
            let _ = incoming
                .end
                .send(format!("this shard has given the pair of links up: {reason}"));
        }
        if !told {
            // Messages may have been taken in the moment between: the handler must see both turns.
            core.tell(|handler| handler.on_peer_up(&self.id));
        }
        match &address {
            Some(address) => core.log(LogLevel::Warning, &disconnected(address, reason)),
            None => core.log(LogLevel::Notice, &format!("closed the links to {}: {reason}", self.id)),
        }
        core.tell(|handler| handler.on_peer_lost(&self.id, reason));
        true
    }

    /// Queues a message.
    pub(super) fn send(&self, message: Message) -> Result<(), SendError> {
        let state = self.state.lock();
        let down = || SendError::NotConnected {
            peer: self.id.clone(),
            reason: state
                .last_error
                .clone()
                .unwrap_or_else(|| "its link is not up yet".into()),
        };
        let Some(outgoing) = state.outgoing.as_ref().filter(|_| state.up.is_some()) else {
            return Err(down());
        };
        match outgoing.queue.try_send(message) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(SendError::QueueFull { peer: self.id.clone() }),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(down()),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.state.lock().up.is_some()
    }

    /// How long it has not been up; `None` if it is.
    pub(super) fn down_for(&self) -> Option<Duration> {
        let state = self.state.lock();
        let since = state.down_since.map_or(Duration::MAX, |since| since.elapsed());
        state.up.is_none().then_some(since)
    }

    /// A quarter of the queue is used.
    pub(super) fn is_crowded(&self) -> bool {
        let state = self.state.lock();
        let room = state.outgoing.as_ref().map(|outgoing| outgoing.queue.capacity());
        room.is_some_and(|room| room < LINK_QUEUE_MESSAGES / 4 * 3)
    }

    pub(super) fn transport(&self) -> Option<Transport> {
        self.state.lock().outgoing.as_ref().map(|o| o.transport)
    }

    /// `None` if it is no member.
    pub(super) fn status(&self) -> Option<PeerStatus> {
        let state = self.state.lock();
        state.address.as_ref()?;
        let outgoing = state.outgoing.as_ref().filter(|_| state.up.is_some());
        Some(PeerStatus {
            id: self.id.clone(),
            connected: outgoing.is_some(),
            run_id: outgoing.map(|o| o.run_id.clone()),
            pending: outgoing.map_or(0, |o| LINK_QUEUE_MESSAGES - o.queue.capacity().min(LINK_QUEUE_MESSAGES)),
            last_error: state.last_error.clone(),
        })
    }
}

fn disconnected(address: &PeerAddress, reason: &str) -> String {
    format!(
        "disconnected : {}:{}, status : {reason}, will try to reconnect.",
        address.host, address.redis_port
    )
}

/// The pause between attempts: longer each time, short again after a success.
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Backoff {
        Backoff(crate::limits::RECONNECT_FIRST)
    }

    pub(super) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(crate::limits::RECONNECT_MOST);
        pause
    }
}
