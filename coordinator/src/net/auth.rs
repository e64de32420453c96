//! Who may come in: node secrets, pairwise tokens, and the two proofs of a link's handshake.
//!
//! A node gives each peer a token of its own over the cluster bus, which only members can read. Whoever opens a
//! link to the node proves with it that he is that peer, and the node proves that it gave the token. Neither the
//! token nor the secrets ever cross a link.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::{limits::NODE_ID_BYTES, topology::NodeId};

/// Secrets, tokens, nonces and proofs have this length.
pub(super) const KEY_BYTES: usize = 32;
/// A secret, token, nonce or proof.
pub(super) type Key = [u8; KEY_BYTES];

/// Unpredictable bytes.
pub(super) fn random_key() -> Key {
    rand::random()
}

/// A random run id, 40 hex digits as Redis's own.
pub(super) fn random_run_id() -> String {
    hex(&rand::random::<[u8; 20]>())
}

fn hmac(key: &[u8]) -> Hmac<Sha256> {
    // HMAC takes keys of every length.
    Hmac::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes keys of every length"))
}

/// The token that the owner of `secret` gives to `peer`.
pub(super) fn token(secret: &Key, peer: &NodeId) -> Key {
    hmac(secret).chain_update(peer.as_str()).finalize().into_bytes().into()
}

/// The key of a handshake: the token, and the cluster's secret where there is one.
pub(super) fn link_key(token: &Key, cluster_secret: Option<&[u8]>) -> Key {
    match cluster_secret {
        None => *token,
        Some(secret) => hmac(secret).chain_update(token).finalize().into_bytes().into(),
    }
}

/// What both sides of a handshake state; a proof covers all of it.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    pub from: NodeId,
    pub to: NodeId,
    pub from_run: String,
    pub to_run: String,
    pub versions: String,
    pub server_nonce: Key,
    pub client_nonce: Key,
}

/// Which side proves.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Client,
    Server,
}

impl Statement {
    fn mac(&self, key: &Key, side: Side) -> Hmac<Sha256> {
        let mut mac = hmac(key);
        mac.update(match side {
            Side::Client => b"client",
            Side::Server => b"server",
        });
        mac.update(&self.server_nonce);
        mac.update(&self.client_nonce);
        for text in [
            self.from.as_str(),
            self.to.as_str(),
            &self.from_run,
            &self.to_run,
            &self.versions,
        ] {
            // With its length in front no field can borrow from its neighbour.
            mac.update(&(text.len() as u64).to_le_bytes());
            mac.update(text.as_bytes());
        }
        mac
    }

    /// The proof of one side.
    pub(super) fn proof(&self, key: &Key, side: Side) -> Key {
        self.mac(key, side).finalize().into_bytes().into()
    }

    /// Checks a proof in constant time.
    pub(super) fn proves(&self, key: &Key, side: Side, proof: &[u8]) -> bool {
        self.mac(key, side).verify_slice(proof).is_ok()
    }
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, b| {
            let _ = write!(text, "{b:02x}");
            text
        })
}

/// Reads the hex form of a key.
pub(super) fn parse_key(text: &str) -> Option<Key> {
    let text = text.as_bytes();
    if text.len() != KEY_BYTES * 2 {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    let mut key = [0; KEY_BYTES];
    for (byte, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(key)
}

/// A text that may stand in a header: short, visible ASCII and blanks.
pub(super) fn is_header_text(text: &str, most: usize) -> bool {
    !text.is_empty() && text.len() <= most && text.bytes().all(|b| (0x20..0x7f).contains(&b))
}

/// A node id that may stand in a header.
pub(super) fn is_node_id(text: &str) -> bool {
    is_header_text(text, NODE_ID_BYTES)
}

/// Forty hex digits.
pub(super) fn is_run_id(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Python's major and minor version in a text like `oxigears 0.1.0 python 3.11.2`.
fn python_of(versions: &str) -> Option<(&str, &str)> {
    let mut words = versions.split_whitespace();
    words.find(|word| *word == "python")?;
    let mut parts = words.next()?.split('.');
    Some((parts.next()?, parts.next()?))
}

/// Whether two nodes can run the same functions: bytecode travels only between equal minor versions of Python.
pub(super) fn compatible(mine: &str, theirs: &str) -> Result<(), String> {
    match (python_of(mine), python_of(theirs)) {
        (Some(a), Some(b)) if a != b => Err(format!(
            "the Python versions differ: this shard runs {mine:?}, the peer {theirs:?}; \
             give all shards the same minor version"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement() -> Statement {
        Statement {
            from: NodeId::new("a"),
            to: NodeId::new("b"),
            from_run: "r".into(),
            to_run: "s".into(),
            versions: "v".into(),
            server_nonce: [1; KEY_BYTES],
            client_nonce: [2; KEY_BYTES],
        }
    }

    #[test]
    fn a_proof_covers_every_field() {
        let key = link_key(&token(&[7; KEY_BYTES], &NodeId::new("a")), Some(b"secret"));
        let good = statement();
        let proof = good.proof(&key, Side::Client);
        assert!(good.proves(&key, Side::Client, &proof));
        assert!(!good.proves(&key, Side::Server, &proof));
        assert!(!good.proves(&key, Side::Client, &proof[..31]));
        assert!(!good.proves(&key, Side::Client, b""));
        let other_keys = [
            link_key(&token(&[7; KEY_BYTES], &NodeId::new("a")), None),
            link_key(&token(&[7; KEY_BYTES], &NodeId::new("a")), Some(b"Secret")),
            link_key(&token(&[7; KEY_BYTES], &NodeId::new("c")), Some(b"secret")),
            link_key(&token(&[8; KEY_BYTES], &NodeId::new("a")), Some(b"secret")),
        ];
        for other in other_keys {
            assert!(!good.proves(&other, Side::Client, &proof));
        }
        let changes: [fn(&mut Statement); 7] = [
            |s| s.from = NodeId::new("x"),
            |s| s.to = NodeId::new("x"),
            |s| s.from_run = "x".into(),
            |s| s.to_run = "x".into(),
            |s| s.versions = "x".into(),
            |s| s.server_nonce[0] ^= 1,
            |s| s.client_nonce[31] ^= 1,
        ];
        for change in changes {
            let mut other = statement();
            change(&mut other);
            assert!(!other.proves(&key, Side::Client, &proof));
        }
        // Moving a character from one field to the next is another statement.
        let mut moved = statement();
        (moved.from, moved.to) = (NodeId::new("ab"), NodeId::new(""));
        assert!(!moved.proves(&key, Side::Client, &proof));
    }

    #[test]
    fn keys_are_read_back_from_hex_and_nothing_else() {
        let key = random_key();
        assert_eq!(parse_key(&hex(&key)), Some(key));
        for bad in ["", "00", &"0".repeat(63), &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(parse_key(bad), None);
        }
        assert!(is_run_id(&random_run_id()));
        assert_ne!(random_run_id(), random_run_id());
    }

    #[test]
    fn only_another_python_minor_is_refused() {
        let mine = "oxigears 0.1.0 python 3.11";
        for good in [mine, "oxigears 0.2.0 python 3.11.9", "", "oxigears 1"] {
            assert_eq!(compatible(mine, good), Ok(()));
        }
        for bad in ["oxigears 0.1.0 python 3.12", "python 4.11"] {
            assert!(compatible(mine, bad).unwrap_err().contains("Python versions differ"));
        }
    }
}
