//! Handshakes that must fail, and one that must not.

use std::time::Instant;

use bytes::Bytes;
use oxigears_proto::{
    ChallengeRequest, Frame, Heartbeat, Query, Start, door_client::DoorClient, frame::Body, mesh_client::MeshClient,
};
use tonic::{Code, Status};

use super::{
    auth::{self, Side},
    caller::{Caller, Link, Twist, channel, frame, host, runtime},
    testing::*,
};
use crate::{limits::REFUSAL_LOG_EVERY, topology::NodeId};

#[test]
fn who_cannot_prove_exactly_what_he_says_is_refused_without_a_word() {
    runtime().block_on(async {
        let b = node_id('b');
        let begin = Instant::now();
        let caller = Caller::connect(host(), &b).await;
        let twists: [(&str, Twist); 8] = [
            ("wrong token", |_, key| key[0] ^= 1),
            ("another token's peer", |s, _| s.from = node_id('c')),
            ("another node", |s, _| s.to = node_id('c')),
            ("another run", |s, _| s.to_run = "e".repeat(40)),
            ("another nonce", |s, _| s.server_nonce[5] ^= 1),
            ("malformed node id", |s, _| s.from = NodeId::new(&"b".repeat(65))),
            ("malformed run id", |s, _| s.from_run = "x".into()),
            ("malformed versions", |s, _| s.versions = "v".repeat(257)),
        ];
        for (what, twist) in twists {
            let status = caller
                .link(&b, twist)
                .await
                .err()
                .unwrap_or_else(|| panic!("{what}: let in"));
            assert_eq!((status.code(), status.message()), (Code::Unauthenticated, ""), "{what}");
        }
        let statement = caller.statement(&b, caller.challenge().await);
        for proof in ["", "00", &"0".repeat(64), &"z".repeat(64)] {
            let status = caller
                .link_with(&caller.channel, &statement, proof)
                .await
                .err()
                .unwrap();
            assert_eq!(status.code(), Code::Unauthenticated);
        }
        let bare = MeshClient::new(caller.channel.clone())
            .link(tokio_stream::empty::<Frame>())
            .await;
        assert_eq!(bare.unwrap_err().code(), Code::Unauthenticated);
        // The same caller gets in with the truth, and the log has told of the others, in few lines.
        assert!(caller.link(&b, |_, _| {}).await.is_ok());
        let most = 1 + begin.elapsed().as_secs() / REFUSAL_LOG_EVERY.as_secs();
        let log = caller.to.heard.log.lock();
        let refusals = log
            .iter()
            .filter(|line| line.starts_with("refused a mesh connection from 127.0.0.1:"));
        assert!((1..=most).contains(&(refusals.count() as u64)), "{log:?}");
        assert!(
            !log.iter()
                .any(|line| line.contains(&auth::hex(&caller.announced.token)))
        );
    });
}

#[test]
fn a_nonce_is_good_for_one_proof_on_one_connection() {
    runtime().block_on(async {
        let b = node_id('b');
        let caller = Caller::connect(host(), &b).await;
        let statement = caller.statement(&b, caller.challenge().await);
        let proof = auth::hex(&statement.proof(&caller.announced.token, Side::Client));
        let refused = |link: Result<Link, Status>| assert_eq!(link.err().unwrap().code(), Code::Unauthenticated);

        let other = channel(&caller.to).await;
        DoorClient::new(other.clone())
            .challenge(ChallengeRequest::default())
            .await
            .unwrap();
        refused(caller.link_with(&other, &statement, &proof).await);
        let link = caller.link_with(&caller.channel, &statement, &proof).await;
        assert!(link.is_ok());
        refused(caller.link_with(&caller.channel, &statement, &proof).await);
        refused(caller.link_with(&other, &statement, &proof).await);
        // A newer challenge voids the older one.
        let statement = caller.statement(&b, caller.challenge().await);
        let proof = auth::hex(&statement.proof(&caller.announced.token, Side::Client));
        caller.challenge().await;
        refused(caller.link_with(&caller.channel, &statement, &proof).await);
    });
}

#[test]
fn a_token_without_membership_is_not_enough() {
    runtime().block_on(async {
        let c = node_id('c');
        let caller = Caller::connect(host(), &c).await;
        assert_eq!(
            caller.link(&c, |_, _| {}).await.err().unwrap().code(),
            Code::Unauthenticated
        );
        assert!(caller.to.logged("not a member of the cluster"));
        caller.to.mesh.set_peers(vec![super::PeerAddress {
            id: c.clone(),
            host: "x".into(),
            redis_port: 1,
        }]);
        let mut link = caller.link(&c, |_, _| {}).await.unwrap();
        // Once it is no member any more, its link ends.
        caller.to.mesh.set_peers(Vec::new());
        assert_eq!(link.end().await.code(), Code::Aborted);
        assert_eq!(
            caller.link(&c, |_, _| {}).await.err().unwrap().code(),
            Code::Unauthenticated
        );
    });
}

#[test]
fn another_python_is_refused_with_the_reason() {
    runtime().block_on(async {
        let b = node_id('b');
        let caller = Caller::connect(host(), &b).await;
        let status = caller
            .link(&b, |s, _| s.versions = "oxigears 0.1.0 python 3.12".into())
            .await
            .err()
            .unwrap();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("Python versions differ"));
    });
    let (a, b) = (
        start('a', |_| {}),
        start('b', |c| c.versions = "oxigears 0.1.0 python 3.9".into()),
    );
    join(&[&a, &b]);
    introduce(&[&a, &b]);
    until("both say why", &[&a, &b], || {
        a.last_error(&b.id).contains("Python versions differ") && b.last_error(&a.id).contains("Python versions differ")
    });
    assert!(!a.mesh.is_up(&b.id));
}

#[test]
fn a_link_with_a_frame_that_nobody_understands_ends() {
    runtime().block_on(async {
        let b = node_id('b');
        let caller = Caller::connect(host(), &b).await;
        for bad in [Frame { body: None }, frame(Body::Start(Start::default()))] {
            let mut link = caller.link(&b, |_, _| {}).await.unwrap();
            link.frames
                .send(frame(Body::Heartbeat(Heartbeat { sequence: 0 })))
                .await
                .unwrap();
            link.frames.send(bad).await.unwrap();
            let status = link.end().await;
            assert!(status.message().contains("it has sent a"), "{status:?}");
        }
        // Messages wait until both directions are up, and here only one is.
        let link = caller.link(&b, |_, _| {}).await.unwrap();
        let early = Query {
            id: 1,
            what: "x".into(),
            argument: Bytes::new(),
        };
        link.frames.send(frame(Body::Query(early))).await.unwrap();
        let mut newer = caller.link(&b, |_, _| {}).await.unwrap();
        let mut older = link;
        assert!(older.end().await.message().contains("a newer link of the same peer"));
        assert!(newer.events.message().await.unwrap().is_some());
        assert!(caller.to.heard.events.lock().is_empty());
    });
}

#[test]
fn cluster_secrets_must_be_equal() {
    let secret = |text: &'static str| move |c: &mut super::MeshConfig| c.cluster_secret = Some(text.into());
    let (a, b, c) = (
        start('a', secret("the first")),
        start('b', secret("the second")),
        start('c', |_| {}),
    );
    let nodes = [&a, &b, &c];
    join(&nodes);
    until("all are refused by all", &nodes, || {
        introduce(&nodes);
        nodes.iter().all(|x| {
            x.mesh
                .peers()
                .iter()
                .all(|p| p.last_error.as_deref().unwrap_or("").contains("secret"))
        })
    });
    assert!(nodes.iter().all(|x| nodes.iter().all(|y| !x.mesh.is_up(&y.id))));
    assert!(a.logged("its proof of identity is wrong") && !a.logged("the first"));
    let d = start('b', secret("the first"));
    connect(&[&a, &d]);
}
