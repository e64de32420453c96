//! The services that peers call: the door, and the links that they open to this node.
//!
//! Nothing of a link is decoded before its caller has proved who it is, and its messages count as that peer's only.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use oxigears_proto::{
    ChallengeReply, ChallengeRequest, Frame, LinkEvent,
    door_server::{Door, DoorServer},
    mesh_server::{Mesh, MeshServer},
};
use tokio::{
    sync::oneshot,
    time::{Interval, MissedTickBehavior, interval},
};
use tokio_stream::Stream;
use tonic::{
    Request, Response, Status, Streaming,
    metadata::MetadataMap,
    transport::{Server, server::Router},
};

use super::{
    Core, LogLevel,
    auth::{self, Side, Statement},
    conn::{Conn, Silence},
    core::Owned,
    fragment::Joiner,
    peer::{Incoming, Peer},
};
use crate::{
    limits::{
        CONNECTION_WINDOW_BYTES, DOOR_MESSAGE_BYTES, FRAME_BYTES, HEADER_BYTES, HEARTBEAT_EVERY, HTTP_FRAME_BYTES,
        LINK_WINDOW_BYTES, SILENCE_CHECK, STREAMS_PER_CONNECTION, VERSIONS_BYTES,
    },
    message::Message,
    topology::NodeId,
};

/// Names of the metadata of a handshake.
pub(super) mod header {
    pub(crate) const FROM: &str = "oxigears-from";
    pub(crate) const TO: &str = "oxigears-to";
    pub(crate) const FROM_RUN: &str = "oxigears-from-run";
    pub(crate) const TO_RUN: &str = "oxigears-to-run";
    pub(crate) const VERSIONS: &str = "oxigears-versions";
    pub(crate) const NONCE: &str = "oxigears-nonce";
    pub(crate) const PROOF: &str = "oxigears-proof";
}

/// The services, with a limit for everything.
pub(super) fn router(core: Arc<Core>) -> Router {
    let door = DoorServer::new(Services { core: core.clone() })
        .max_decoding_message_size(DOOR_MESSAGE_BYTES)
        .max_encoding_message_size(DOOR_MESSAGE_BYTES);
    let mesh = MeshServer::new(Services { core })
        .max_decoding_message_size(FRAME_BYTES)
        .max_encoding_message_size(DOOR_MESSAGE_BYTES);
    Server::builder()
        .initial_stream_window_size(LINK_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP_FRAME_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES)
        .add_service(door)
        .add_service(mesh)
}

struct Services {
    core: Arc<Core>,
}

/// Every connection comes from our own accept loop and has its `Conn`.
fn conn_of<T>(request: &Request<T>) -> Result<Arc<Conn>, Status> {
    request
        .extensions()
        .get::<Arc<Conn>>()
        .cloned()
        .ok_or_else(|| Status::internal("a connection without state"))
}

#[tonic::async_trait]
impl Door for Services {
    async fn challenge(&self, request: Request<ChallengeRequest>) -> Result<Response<ChallengeReply>, Status> {
        let nonce = conn_of(&request)?.challenge();
        Ok(Response::new(ChallengeReply {
            nonce: Bytes::copy_from_slice(&nonce),
        }))
    }
}

#[tonic::async_trait]
impl Mesh for Services {
    type LinkStream = Pulse;

    async fn link(&self, request: Request<Streaming<Frame>>) -> Result<Response<Pulse>, Status> {
        let core = &self.core;
        let conn = conn_of(&request)?;
        let (peer, statement) = check_proof(core, &conn, request.metadata()).map_err(|reason| {
            core.refused(&conn.address, reason);
            // A stranger learns nothing.
            Status::unauthenticated("")
        })?;
        if let Err(reason) = auth::compatible(&core.versions, &statement.versions) {
            core.refused(&conn.address, &reason);
            return Err(Status::failed_precondition(reason));
        }
        conn.prove();

        let (end, is_ended) = oneshot::channel();
        let incoming = Incoming {
            generation: core.next_generation(),
            run_id: statement.from_run.clone(),
            live: false,
            end,
        };
        let generation = incoming.generation;
        if !peer.set_incoming(incoming) {
            return Err(Status::unauthenticated(""));
        }
        let received = Arc::new(AtomicU64::new(0));
        let (farewell, is_over) = oneshot::channel();
        let reader = Reader {
            core: core.clone(),
            peer,
            conn,
            frames: request.into_inner(),
            is_ended,
            generation,
            received: received.clone(),
            joiner: Joiner::default(),
        };
        tokio::spawn(reader.supervised(farewell));

        let mut response = Response::new(Pulse {
            received,
            beat: beat(),
            is_over: Some(is_over),
        });
        let key = core.link_key(&core.token_for(&statement.from));
        let proof = auth::hex(&statement.proof(&key, Side::Server));
        let proof = proof
            .parse()
            .map_err(|_| Status::internal("a proof that no header can carry"))?;
        response.metadata_mut().insert(header::PROOF, proof);
        Ok(response)
    }
}

/// Who calls; or why that is not known, which is for our own log only.
fn check_proof(core: &Core, conn: &Conn, metadata: &MetadataMap) -> Result<(Arc<Peer>, Statement), &'static str> {
    // Whatever comes of it: the nonce is used up.
    let server_nonce = conn.take_nonce().ok_or("its nonce is unknown, used or too old")?;
    let text = |name| {
        metadata
            .get(name)
            .and_then(|value| value.to_str().ok())
            .ok_or("a header is missing")
    };
    let from = text(header::FROM)?;
    let (from_run, to_run, versions) = (text(header::FROM_RUN)?, text(header::TO_RUN)?, text(header::VERSIONS)?);
    if !auth::is_node_id(from) || !auth::is_run_id(from_run) || !auth::is_header_text(versions, VERSIONS_BYTES) {
        return Err("a header is malformed");
    }
    let client_nonce = auth::parse_key(text(header::NONCE)?).ok_or("its own nonce is malformed")?;
    let proof = auth::parse_key(text(header::PROOF)?).ok_or("its proof is malformed")?;
    if text(header::TO)? != core.node_id.as_str() || to_run != core.run_id {
        return Err("it looks for another node, or for an earlier run of this one");
    }
    let statement = Statement {
        from: NodeId::new(from),
        to: core.node_id.clone(),
        from_run: from_run.to_owned(),
        to_run: core.run_id.clone(),
        versions: versions.to_owned(),
        server_nonce,
        client_nonce,
    };
    let key = core.link_key(&core.token_for(&statement.from));
    if !statement.proves(&key, Side::Client, &proof) {
        return Err("its proof of identity is wrong");
    }
    let peer = core.peer(&statement.from).filter(|peer| peer.is_member());
    Ok((peer.ok_or("it is not a member of the cluster (yet)")?, statement))
}

/// A tick for keep-alives; the first one is at once.
pub(super) fn beat() -> Interval {
    let mut beat = interval(HEARTBEAT_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat
}

/// A tick for looks at a silent peer.
pub(super) fn silence_tick() -> Interval {
    let mut tick = interval(SILENCE_CHECK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// The answer stream of a link: keep-alives until the link is over, then the reason.
pub(super) struct Pulse {
    received: Arc<AtomicU64>,
    beat: Interval,
    is_over: Option<oneshot::Receiver<String>>,
}

impl Stream for Pulse {
    type Item = Result<LinkEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(is_over) = self.is_over.as_mut() else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(reason) = Pin::new(is_over).poll(cx) {
            self.is_over = None;
            let reason = reason.unwrap_or_else(|_| "an internal error on the peer's side".into());
            return Poll::Ready(Some(Err(Status::aborted(reason))));
        }
        std::task::ready!(self.beat.poll_tick(cx));
        Poll::Ready(Some(Ok(LinkEvent {
            received: self.received.load(Ordering::Relaxed),
        })))
    }
}

/// Takes the messages from one peer's link.
struct Reader {
    core: Arc<Core>,
    peer: Arc<Peer>,
    conn: Arc<Conn>,
    frames: Streaming<Frame>,
    is_ended: oneshot::Receiver<String>,
    generation: u64,
    received: Arc<AtomicU64>,
    joiner: Joiner,
}

impl Reader {
    /// Reads to the end of the link, in a task of its own, and says why it ended: to both sides.
    async fn supervised(self, farewell: oneshot::Sender<String>) {
        let (core, peer, conn, generation) = (self.core.clone(), self.peer.clone(), self.conn.clone(), self.generation);
        let mut task = Owned(tokio::spawn(self.read()));
        let reason = (&mut task.0).await.unwrap_or_else(|_| {
            core.log(
                LogLevel::Warning,
                &format!("a panic in the link from {} was caught", peer.id),
            );
            "an internal error".into()
        });
        peer.incoming_ended(generation, reason.clone());
        let _ = farewell.send(reason);
        conn.cut_later();
    }

    async fn read(mut self) -> String {
        let mut silence = Silence::of(self.conn.clone());
        let mut tick = silence_tick();
        // A message that waits for the handler to know that the peer is up.
        let mut early: Option<Message> = None;
        let mut is_open = false;
        loop {
            tokio::select! {
                biased;
                reason = &mut self.is_ended => return reason.unwrap_or_else(|_| "it has left the cluster".into()),
                frame = self.frames.message(), if early.is_none() => match self.take(frame) {
                    Ok(message) => early = message,
                    Err(reason) => return reason,
                },
                _ = self.peer.opened.notified(), if early.is_some() => {}
                _ = tick.tick() => {
                    if silence.is_too_long() {
                        return "it has been silent for too long".into();
                    }
                }
            }
            is_open = is_open || early.is_some() && self.peer.is_open(self.generation);
            if is_open && let Some(message) = early.take() {
                self.core.tell(|handler| handler.on_message(&self.peer.id, message));
            }
        }
    }

    fn take(&mut self, frame: Result<Option<Frame>, Status>) -> Result<Option<Message>, String> {
        let frame = match frame {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err("it has closed its link to this shard".into()),
            Err(status) => return Err(format!("its link to this shard has broken: {}", describe(&status))),
        };
        if self.received.fetch_add(1, Ordering::Relaxed) == 0 {
            self.peer.incoming_is_live(self.generation);
        }
        self.joiner.take(frame).map_err(|what| format!("it has sent {what}"))
    }
}

/// A status with its causes in one line.
pub(super) fn describe(status: &Status) -> String {
    let mut text = match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    };
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
