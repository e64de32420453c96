//! Impostors, garbage and silence.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use oxigears_proto::{
    ChallengeReply, ChallengeRequest, Frame, Heartbeat, LinkEvent,
    door_client::DoorClient,
    door_server::{Door, DoorServer},
    frame::Body,
    mesh_server::{Mesh, MeshServer},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Endpoint, Server},
};

use super::{
    announce::Announcement,
    auth::{self, KEY_BYTES},
    caller::{Caller, channel, frame, host, runtime},
    server::header,
    testing::*,
};
use crate::limits::{CONNECTIONS_PER_ADDRESS, DOOR_MESSAGE_BYTES};

/// Answers as a mesh would, but knows no token. Tells when a link brings a frame (true) or ends without one.
#[derive(Clone)]
struct Impostor(mpsc::UnboundedSender<bool>);

#[tonic::async_trait]
impl Door for Impostor {
    async fn challenge(&self, _: Request<ChallengeRequest>) -> Result<Response<ChallengeReply>, Status> {
        Ok(Response::new(ChallengeReply {
            nonce: vec![0; KEY_BYTES].into(),
        }))
    }
}

#[tonic::async_trait]
impl Mesh for Impostor {
    type LinkStream = ReceiverStream<Result<LinkEvent, Status>>;

    async fn link(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::LinkStream>, Status> {
        let (events, stream) = mpsc::channel(1);
        let told = self.0.clone();
        tokio::spawn(async move {
            let frame = request.into_inner().message().await;
            let _ = told.send(matches!(frame, Ok(Some(_))));
            drop(events);
        });
        let mut response = Response::new(ReceiverStream::new(stream));
        response
            .metadata_mut()
            .insert(header::PROOF, "0".repeat(64).parse().unwrap());
        Ok(response)
    }
}

#[test]
fn a_server_that_cannot_prove_itself_gets_nothing() {
    let a = host();
    let b = node_id('b');
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (told, mut frames) = mpsc::unbounded_channel();
    let impostor = Impostor(told);
    runtime.spawn(
        Server::builder()
            .add_service(DoorServer::new(impostor.clone()))
            .add_service(MeshServer::new(impostor))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let announcement = Announcement {
        port,
        unix: None,
        host: String::new(),
        versions: "oxigears 0.1.0 python 3.11".into(),
        run_id: auth::random_run_id(),
        token: auth::random_key(),
        knows: Some(a.mesh.run_id().to_owned()),
    };
    assert!(!a.mesh.on_announcement(&b, &announcement.encode()).unwrap());
    until("the impostor is seen through", &[&a], || {
        a.last_error(&b).contains("cannot prove its identity")
    });
    assert!(!a.mesh.is_up(&b) && a.mesh.wants_announcement_to(&b));
    assert_eq!(
        frames.blocking_recv(),
        Some(false),
        "a frame was sent before the proof was seen"
    );
    assert!(a.heard.events.lock().is_empty());
}

/// Reads until the other side closes; false if it does not.
fn is_closed_by_the_other_side(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn garbage_and_silence_on_the_port_are_cut_off() {
    let (a, b) = (start('a', |_| {}), start('b', |_| {}));
    connect(&[&a, &b]);
    let stranger = || TcpStream::connect(("127.0.0.1", a.mesh.port())).unwrap();
    let noise: Vec<u8> = (0..100_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    let garbage = [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        &noise,
        &[preface, &noise].concat(),
        preface,
        b"",
    ];
    let mut strangers = garbage.map(|garbage| {
        let mut stream = stranger();
        let _ = stream.write_all(garbage);
        stream
    });
    assert!(strangers.iter_mut().all(is_closed_by_the_other_side));
    // More strangers than there is room for: the last ones are turned away, the first ones do not stay for ever.
    let mut crowd: Vec<TcpStream> = (0..CONNECTIONS_PER_ADDRESS + 4).map(|_| stranger()).collect();
    until("they are counted", &[&a], || {
        a.logged("too many connections without a proof")
    });
    assert!(crowd.iter_mut().all(is_closed_by_the_other_side));
    assert_eq!((a.turns(&b.id), b.turns(&a.id)), (vec!["up"], vec!["up"]));
    a.mesh.send(&b.id, query(1)).unwrap();
    b.mesh.send(&a.id, query(2)).unwrap();
    until("the links work on", &[&a, &b], || {
        ids(&b.messages(&a.id)) == [1] && ids(&a.messages(&b.id)) == [2]
    });
}

#[test]
fn the_door_takes_small_messages_only() {
    runtime().block_on(async {
        let a = host();
        let channel = channel(&a).await;
        let ask = |bytes: usize| {
            let mut door = DoorClient::new(channel.clone());
            async move {
                door.challenge(ChallengeRequest {
                    from: "x".repeat(bytes),
                })
                .await
            }
        };
        // Three bytes of a message are the field's head.
        assert!(ask(DOOR_MESSAGE_BYTES - 3).await.is_ok());
        assert_eq!(ask(DOOR_MESSAGE_BYTES - 2).await.unwrap_err().code(), Code::OutOfRange);
        assert!(ask(1).await.is_ok());
    });
}

#[test]
fn a_link_that_falls_silent_after_its_proof_ends() {
    // A peer that is frozen right after the handshake: nothing of it comes, though its connection stands.
    let a = host();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = a.mesh.port();
    let frozen = Arc::new(AtomicBool::new(false));
    let is_frozen = frozen.clone();
    std::thread::spawn(move || {
        let (from, _) = listener.accept().unwrap();
        let to = TcpStream::connect(("127.0.0.1", target)).unwrap();
        let forward = |mut from: TcpStream, mut to: TcpStream, frozen: Arc<AtomicBool>| {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = from.read(&mut buffer) {
                    if !frozen.load(Ordering::SeqCst) && to.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            })
        };
        let never = Arc::default();
        forward(to.try_clone().unwrap(), from.try_clone().unwrap(), never);
        forward(from, to, is_frozen);
    });
    runtime().block_on(async {
        let b = node_id('b');
        let announced = Announcement::decode(&a.mesh.announcement(&b)).unwrap();
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
        let caller = Caller {
            channel: endpoint.connect().await.unwrap(),
            to: a,
            announced,
        };
        let mut link = caller.link(&b, |_, _| {}).await.unwrap();
        link.frames
            .send(frame(Body::Heartbeat(Heartbeat { sequence: 0 })))
            .await
            .unwrap();
        frozen.store(true, Ordering::SeqCst);
        let status = link.end().await;
        assert!(status.message().contains("silent for too long"), "{status:?}");
    });
}
