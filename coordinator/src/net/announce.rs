//! What a node tells each peer over the cluster bus: where its mesh is and the token to come in with.
//!
//! The bus carries it to members only; the bytes are still read as if anybody had written them.

use serde::{Deserialize, Serialize};

use super::auth::{self, Key};
use crate::limits::{ANNOUNCEMENT_BYTES, VERSIONS_BYTES};

/// First bytes of every announcement; the last one is the version of the mesh's protocol.
const MAGIC: &[u8; 4] = b"OXM\x01";

/// The content of an announcement.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Announcement {
    /// TCP port of the sender's mesh; 0 if it has none.
    pub port: u16,
    /// Its Unix socket.
    pub unix: Option<String>,
    /// Which machine it runs on.
    pub host: String,
    /// Versions that must fit together.
    pub versions: String,
    /// One life of the sender's process.
    pub run_id: String,
    /// What the receiver proves himself with.
    pub token: Key,
    /// "I have yours": the run id of the receiver that the sender knows.
    pub knows: Option<String>,
}

impl std::fmt::Debug for Announcement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token stays out of every log.
        f.debug_struct("Announcement")
            .field("port", &self.port)
            .field("run_id", &self.run_id)
            .finish()
    }
}

impl Announcement {
    /// The bytes to send.
    pub(super) fn encode(&self) -> Vec<u8> {
        let body = postcard::to_allocvec(self).unwrap_or_default();
        [MAGIC.as_slice(), &body].concat()
    }

    /// Reads received bytes.
    pub(super) fn decode(bytes: &[u8]) -> Result<Announcement, &'static str> {
        if bytes.len() > ANNOUNCEMENT_BYTES {
            return Err("it is too long");
        }
        let body = bytes.strip_prefix(MAGIC).ok_or("it is not of this protocol version")?;
        let (it, rest) = postcard::take_from_bytes::<Announcement>(body).map_err(|_| "it is malformed")?;
        if !rest.is_empty() {
            return Err("it has bytes after its end");
        }
        if !auth::is_run_id(&it.run_id) || it.knows.as_deref().is_some_and(|id| !auth::is_run_id(id)) {
            return Err("a run id in it is malformed");
        }
        if !auth::is_header_text(&it.versions, VERSIONS_BYTES) {
            return Err("the versions in it are malformed");
        }
        Ok(it)
    }
}

/// What tells machines apart; empty where the system does not say.
pub(super) fn host_identity() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Announcement {
        Announcement {
            port: 17001,
            unix: Some("/run/x.sock".into()),
            host: host_identity(),
            versions: "oxigears 0.1.0 python 3.11".into(),
            run_id: auth::random_run_id(),
            token: auth::random_key(),
            knows: None,
        }
    }

    #[test]
    fn survives_and_every_damage_is_an_error_or_another_announcement() {
        let good = sample();
        let bytes = good.encode();
        assert_eq!(Announcement::decode(&bytes), Ok(good.clone()));
        for cut in 0..bytes.len() {
            assert!(Announcement::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bad = bytes.clone();
                bad[at] ^= flip;
                assert_ne!(Announcement::decode(&bad), Ok(good.clone()), "byte {at}");
            }
        }
        assert!(Announcement::decode(&[bytes, vec![0]].concat()).is_err());
        assert!(Announcement::decode(&vec![0; ANNOUNCEMENT_BYTES + 1]).is_err());
    }

    #[test]
    fn texts_that_no_header_can_carry_are_refused() {
        let changes: [fn(&mut Announcement); 4] = [
            |a| a.run_id = "x".into(),
            |a| a.knows = Some("z".repeat(40)),
            |a| a.versions = "a\nb".into(),
            |a| a.versions = "v".repeat(VERSIONS_BYTES + 1),
        ];
        for change in changes {
            let mut it = sample();
            change(&mut it);
            assert!(Announcement::decode(&it.encode()).is_err());
        }
    }

    #[test]
    fn the_token_is_not_printed() {
        assert!(!format!("{:?}", sample()).contains("token"));
    }
}
