//! The link to one peer: opens it, keeps it, opens it again. The peer's only task, so its events have one order.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use oxigears_proto::{ChallengeRequest, Frame, LinkEvent, door_client::DoorClient, mesh_client::MeshClient};
use parking_lot::Mutex;
use tokio::{
    net::{TcpStream, UnixStream, lookup_host},
    sync::{mpsc, oneshot},
    time::Interval,
};
use tokio_stream::Stream;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use super::{
    Core, Transport,
    auth::{self, Key, Side, Statement},
    conn::{Conn, Io, Silence, Tracked},
    convert,
    fragment::Cutter,
    peer::{Backoff, Errand, Outgoing, Peer, Target},
    server::{beat, describe, header, silence_tick},
    tls,
};
use crate::{
    limits::{
        CONNECTION_WINDOW_BYTES, DOOR_MESSAGE_BYTES, FRAME_BYTES, HANDSHAKE_TIMEOUT, HEADER_BYTES, HTTP_FRAME_BYTES,
        LINK_QUEUE_MESSAGES, LINK_WINDOW_BYTES,
    },
    message::Message,
};

/// Why a link could not be opened.
struct Failure {
    reason: String,
    /// The proof was not accepted, or the peer's was wrong: a fresh announcement is needed.
    refused: bool,
}

impl From<String> for Failure {
    fn from(reason: String) -> Failure {
        Failure { reason, refused: false }
    }
}

/// An authenticated link that carries nothing yet.
struct Session {
    connection: Connection,
    queue: mpsc::Sender<Message>,
    /// Lets the first frame go.
    gate: oneshot::Sender<()>,
    events: Streaming<LinkEvent>,
    transport: Transport,
}

/// Cuts the connection when dropped, so that none outlives its use.
struct Connection(Arc<Conn>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.cut();
    }
}

/// Keeps a link to the peer for as long as it is a member.
pub(super) async fn run(core: Arc<Core>, peer: Arc<Peer>) {
    // A panic may have ended this task's predecessor in the middle of a link.
    peer.give_up(&core, "an internal error");
    let mut backoff = Backoff::new();
    loop {
        let target = match peer.errand() {
            Errand::Open(target) => target,
            Errand::Wait => {
                peer.wake.notified().await;
                continue;
            }
            Errand::Stop => return,
        };
        match open(&core, &peer, &target).await {
            Ok(session) => {
                let reason = hold(&core, &peer, &target, session).await;
                if peer.give_up(&core, &reason) {
                    backoff = Backoff::new();
                } else {
                    peer.failed(&core, reason, false);
                }
            }
            Err(failure) => peer.failed(&core, failure.reason, failure.refused),
        }
        let pause = tokio::time::sleep(backoff.next());
        tokio::select! {
            _ = pause => {}
            // News of the peer: it may work now.
            _ = peer.wake.notified() => {}
        }
    }
}

/// Opens a link by the best way that works.
async fn open(core: &Arc<Core>, peer: &Peer, target: &Target) -> Result<Session, Failure> {
    let announced = &target.announcement;
    auth::compatible(&core.versions, &announced.versions)?;
    let is_here = !core.host.is_empty() && announced.host == core.host && !core.tls.is_on();
    if is_here && let Some(path) = &announced.unix {
        // Containers may share a machine but not its files.
        match within_time(over_unix(core, peer, target, Path::new(path))).await {
            Err(failure) if announced.port == 0 => return Err(failure),
            Err(_) => {}
            opened => return opened,
        }
    }
    within_time(over_tcp(core, peer, target)).await
}

async fn within_time(opening: impl Future<Output = Result<Session, Failure>>) -> Result<Session, Failure> {
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, opening).await {
        Ok(opened) => opened,
        Err(_) => Err("no answer in time".to_owned().into()),
    }
}

async fn over_unix(core: &Core, peer: &Peer, target: &Target, path: &Path) -> Result<Session, Failure> {
    let stream = UnixStream::connect(path)
        .await
        .map_err(|e| format!("connecting to its Unix socket failed: {e}"))?;
    let io = Tracked::opened(Box::new(stream), path.display().to_string());
    authenticate(core, peer, target, io, Transport::Unix).await
}

async fn over_tcp(core: &Core, peer: &Peer, target: &Target) -> Result<Session, Failure> {
    let (host, port) = (target.address.host.as_str(), target.announcement.port);
    let address = format!("{host}:{port}");
    let tls = core.tls.get().await?;
    let stream = connect_tcp(host, port)
        .await
        .map_err(|e| format!("connecting to {address} failed: {e}"))?;
    let (io, transport): (Box<dyn Io>, _) = match tls {
        None => (Box::new(stream), Transport::Tcp),
        Some(tls) => {
            let stream = tls.connector.connect(tls::server_name(), stream).await;
            (
                Box::new(stream.map_err(|e| format!("TLS with {address} failed: {e}"))?),
                Transport::Tls,
            )
        }
    };
    authenticate(core, peer, target, Tracked::opened(io, address), transport).await
}

async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in lookup_host((host, port)).await? {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// HTTP/2 over a connection that is there already; when it ends it is not made again.
async fn channel(io: Tracked) -> Result<Channel, Failure> {
    let io = Mutex::new(Some(TokioIo::new(io)));
    let connector = tower::service_fn(move |_| {
        let io = io.lock().take();
        async move { io.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection has ended")) }
    });
    Endpoint::from_static("http://mesh")
        .initial_stream_window_size(LINK_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP_FRAME_BYTES)
        .http2_max_header_list_size(HEADER_BYTES)
        .connect_with_connector(connector)
        .await
        .map_err(|e| Failure::from(format!("HTTP/2 failed: {e}")))
}

/// The handshake: a nonce, our proof, the peer's proof.
async fn authenticate(
    core: &Core,
    peer: &Peer,
    target: &Target,
    io: Tracked,
    transport: Transport,
) -> Result<Session, Failure> {
    let connection = Connection(io.conn());
    let channel = channel(io).await?;
    let mut door = DoorClient::new(channel.clone())
        .max_decoding_message_size(DOOR_MESSAGE_BYTES)
        .max_encoding_message_size(DOOR_MESSAGE_BYTES);
    let request = ChallengeRequest {
        from: core.node_id.as_str().to_owned(),
    };
    let reply = door.challenge(request).await.map_err(|s| failure(&s))?.into_inner();
    let server_nonce = Key::try_from(reply.nonce.as_ref()).map_err(|_| "its nonce is malformed".to_owned())?;

    let statement = Statement {
        from: core.node_id.clone(),
        to: peer.id.clone(),
        from_run: core.run_id.clone(),
        to_run: target.announcement.run_id.clone(),
        versions: core.versions.clone(),
        server_nonce,
        client_nonce: auth::random_key(),
    };
    let key = core.link_key(&target.announcement.token);
    let (queue, messages) = mpsc::channel(LINK_QUEUE_MESSAGES);
    let (gate, is_open) = oneshot::channel();
    let mut request = Request::new(Outbox {
        is_open: Some(is_open),
        messages,
        cutter: None,
        beat: beat(),
        beats: 0,
    });
    write_headers(request.metadata_mut(), &statement, &key)?;
    let mut mesh = MeshClient::new(channel)
        .max_decoding_message_size(DOOR_MESSAGE_BYTES)
        .max_encoding_message_size(FRAME_BYTES);
    let response = mesh.link(request).await.map_err(|s| failure(&s))?;

    let proof = response
        .metadata()
        .get(header::PROOF)
        .and_then(|p| p.to_str().ok())
        .and_then(auth::parse_key);
    if !proof.is_some_and(|proof| statement.proves(&key, Side::Server, &proof)) {
        return Err(Failure {
            reason: "it cannot prove its identity".into(),
            refused: true,
        });
    }
    Ok(Session {
        connection,
        queue,
        gate,
        events: response.into_inner(),
        transport,
    })
}

fn write_headers(metadata: &mut MetadataMap, statement: &Statement, key: &Key) -> Result<(), Failure> {
    let nonce = auth::hex(&statement.client_nonce);
    let proof = auth::hex(&statement.proof(key, Side::Client));
    for (name, value) in [
        (header::FROM, statement.from.as_str()),
        (header::TO, statement.to.as_str()),
        (header::FROM_RUN, &statement.from_run),
        (header::TO_RUN, &statement.to_run),
        (header::VERSIONS, &statement.versions),
        (header::NONCE, &nonce),
        (header::PROOF, &proof),
    ] {
        let value = value
            .parse()
            .map_err(|_| format!("the header {name} cannot carry its value"))?;
        metadata.insert(name, value);
    }
    Ok(())
}

fn failure(status: &Status) -> Failure {
    if status.code() == Code::Unauthenticated {
        let reason = "it refuses this node's proof of identity: it does not count this node as a member yet, \
                      has been restarted, or has another cluster secret";
        return Failure {
            reason: reason.into(),
            refused: true,
        };
    }
    describe(status).into()
}

/// Keeps the link until something ends it; the reason.
async fn hold(core: &Core, peer: &Peer, target: &Target, mut session: Session) -> String {
    let run_id = target.announcement.run_id.clone();
    let mut silence = Silence::of(session.connection.0.clone());
    let mut tick = silence_tick();
    peer.set_outgoing(Outgoing {
        queue: session.queue,
        run_id,
        transport: session.transport,
    });
    // The first frame tells the peer that our end is ready, which it is now.
    let _ = session.gate.send(());
    loop {
        if let Some(reason) = peer.look(core) {
            return reason;
        }
        tokio::select! {
            event = session.events.message() => match event {
                Ok(Some(_)) => {}
                Ok(None) => return "it has closed the link".into(),
                Err(status) => return format!("the link has broken: {}", describe(&status)),
            },
            _ = tick.tick() => {
                if silence.is_too_long() {
                    return "it has been silent for too long".into();
                }
            }
            _ = peer.wake.notified() => {}
        }
    }
}

/// The frames of a link: queued messages, and keep-alives while there are none.
struct Outbox {
    is_open: Option<oneshot::Receiver<()>>,
    messages: mpsc::Receiver<Message>,
    /// A message that has not left completely.
    cutter: Option<Cutter>,
    beat: Interval,
    beats: u64,
}

impl Stream for Outbox {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        if let Some(is_open) = self.is_open.as_mut() {
            if std::task::ready!(Pin::new(is_open).poll(cx)).is_err() {
                return Poll::Ready(None);
            }
            self.is_open = None;
            return Poll::Ready(Some(convert::heartbeat(0)));
        }
        if let Some(frame) = self.cutter.as_mut().and_then(Cutter::next) {
            return Poll::Ready(Some(frame));
        }
        match self.messages.poll_recv(cx) {
            Poll::Ready(Some(message)) => {
                let mut cutter = Cutter::new(message);
                let frame = cutter.next();
                self.cutter = Some(cutter);
                return Poll::Ready(frame);
            }
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        std::task::ready!(self.beat.poll_tick(cx));
        self.beats += 1;
        Poll::Ready(Some(convert::heartbeat(self.beats)))
    }
}
