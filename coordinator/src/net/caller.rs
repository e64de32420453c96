//! A caller for tests: speaks the protocol of the handshake, honestly or not.

use oxigears_proto::{
    ChallengeRequest, Frame, LinkEvent, door_client::DoorClient, frame::Body, mesh_client::MeshClient,
};
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint},
};

use super::{
    PeerAddress,
    announce::Announcement,
    auth::{self, Key, Side, Statement},
    server::header,
    testing::{Node, node_id, start},
};
use crate::topology::NodeId;

pub(super) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Somebody who speaks the protocol without being a mesh.
pub(super) struct Caller {
    pub channel: Channel,
    pub to: Node,
    pub announced: Announcement,
}

/// What the caller does differently from an honest peer.
pub(super) type Twist = fn(&mut Statement, &mut Key);

impl Caller {
    /// Connects to `to` with what it announced to `from`.
    pub(super) async fn connect(to: Node, from: &NodeId) -> Caller {
        let announced = Announcement::decode(&to.mesh.announcement(from)).unwrap();
        Caller {
            channel: channel(&to).await,
            to,
            announced,
        }
    }

    pub(super) async fn challenge(&self) -> Key {
        let request = ChallengeRequest { from: "me".into() };
        let reply = DoorClient::new(self.channel.clone())
            .challenge(request)
            .await
            .unwrap()
            .into_inner();
        Key::try_from(reply.nonce.as_ref()).unwrap()
    }

    pub(super) fn statement(&self, from: &NodeId, server_nonce: Key) -> Statement {
        Statement {
            from: from.clone(),
            to: self.to.id.clone(),
            from_run: "f".repeat(40),
            to_run: self.announced.run_id.clone(),
            versions: "oxigears 0.1.0 python 3.11".into(),
            server_nonce,
            client_nonce: auth::random_key(),
        }
    }

    /// A whole handshake with a twist; the proof fits to the twisted statement.
    pub(super) async fn link(&self, from: &NodeId, twist: Twist) -> Result<Link, Status> {
        let mut statement = self.statement(from, self.challenge().await);
        let mut key = self.announced.token;
        twist(&mut statement, &mut key);
        self.link_with(
            &self.channel,
            &statement,
            &auth::hex(&statement.proof(&key, Side::Client)),
        )
        .await
    }

    pub(super) async fn link_with(
        &self,
        channel: &Channel,
        statement: &Statement,
        proof: &str,
    ) -> Result<Link, Status> {
        let (frames, queue) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(queue));
        for (name, value) in [
            (header::FROM, statement.from.as_str()),
            (header::TO, statement.to.as_str()),
            (header::FROM_RUN, &statement.from_run),
            (header::TO_RUN, &statement.to_run),
            (header::VERSIONS, &statement.versions),
            (header::NONCE, &auth::hex(&statement.client_nonce)),
            (header::PROOF, proof),
        ] {
            request.metadata_mut().insert(name, value.parse().unwrap());
        }
        let response = MeshClient::new(channel.clone()).link(request).await?;
        let proof = response.metadata().get(header::PROOF).unwrap().to_str().unwrap();
        let proof = auth::parse_key(proof).unwrap();
        assert!(
            statement.proves(&self.announced.token, Side::Server, &proof),
            "the server's proof is wrong"
        );
        Ok(Link {
            frames,
            events: response.into_inner(),
        })
    }
}

pub(super) struct Link {
    pub frames: mpsc::Sender<Frame>,
    pub events: Streaming<LinkEvent>,
}

impl Link {
    /// The status with which the link ends.
    pub(super) async fn end(&mut self) -> Status {
        loop {
            match self.events.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the link has ended without a reason"),
                Err(status) => return status,
            }
        }
    }
}

pub(super) async fn channel(to: &Node) -> Channel {
    Endpoint::from_shared(format!("http://127.0.0.1:{}", to.mesh.port()))
        .unwrap()
        .connect()
        .await
        .unwrap()
}

/// A node that counts `b` as a member.
pub(super) fn host() -> Node {
    let host = start('a', |_| {});
    host.mesh.set_peers(vec![PeerAddress {
        id: node_id('b'),
        host: "127.0.0.1".into(),
        redis_port: 1,
    }]);
    host
}

pub(super) fn frame(body: Body) -> Frame {
    Frame { body: Some(body) }
}
