//! One connection as the mesh sees it: when it last spoke, what it has proved, and a way to cut it.
//!
//! Knows nothing of messages. A connection that proves nothing in time is cut, so that strangers hold no places.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
    time::Sleep,
};
use tonic::transport::server::Connected;

use super::auth::{Key, random_key};
use crate::limits::{
    CHALLENGE_LIFE, CONNECTIONS_PER_ADDRESS, HANDSHAKE_TIMEOUT, LINK_FAREWELL, OPEN_CHALLENGES, PEER_SILENCE,
    SILENCE_CHECK,
};

/// How a connection runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A Unix socket on the same machine.
    Unix,
    /// Plain TCP.
    Tcp,
    /// TCP with mutual TLS.
    Tls,
}

/// What is known about a connection.
pub(super) struct Conn {
    /// The other end, for the log.
    pub address: String,
    bytes: AtomicU64,
    proven: AtomicBool,
    nonce: Mutex<Option<(Key, Instant)>>,
    seat: Mutex<Option<Seat>>,
    cut: Mutex<Option<oneshot::Sender<()>>>,
}

impl Conn {
    fn new(address: String, seat: Option<Seat>) -> (Arc<Conn>, oneshot::Receiver<()>) {
        let (cut, is_cut) = oneshot::channel();
        let conn = Conn {
            address,
            bytes: AtomicU64::new(0),
            proven: AtomicBool::new(false),
            nonce: Mutex::new(None),
            seat: Mutex::new(seat),
            cut: Mutex::new(Some(cut)),
        };
        (Arc::new(conn), is_cut)
    }

    /// A fresh nonce; the one before it, if any, is void.
    pub(super) fn challenge(&self) -> Key {
        let nonce = random_key();
        *self.nonce.lock() = Some((nonce, Instant::now()));
        nonce
    }

    /// The outstanding nonce, which is void from now on.
    pub(super) fn take_nonce(&self) -> Option<Key> {
        let (nonce, since) = self.nonce.lock().take()?;
        (since.elapsed() < CHALLENGE_LIFE).then_some(nonce)
    }

    /// The other end has proved who it is: it counts as a stranger no more.
    pub(super) fn prove(&self) {
        self.proven.store(true, Ordering::Relaxed);
        self.seat.lock().take();
    }

    /// Ends the connection at once.
    pub(super) fn cut(&self) {
        if let Some(cut) = self.cut.lock().take() {
            let _ = cut.send(());
        }
    }

    /// Ends the connection after its last words have had time to leave.
    pub(super) fn cut_later(self: Arc<Conn>) {
        tokio::spawn(async move {
            tokio::time::sleep(LINK_FAREWELL).await;
            self.cut();
        });
    }

    #[cfg(test)]
    pub(super) fn expire_nonce(&self) {
        if let Some((_, since)) = self.nonce.lock().as_mut() {
            *since = Instant::now().checked_sub(CHALLENGE_LIFE).unwrap_or(*since);
        }
    }
}

/// Tells when a connection has been silent for too long.
///
/// Counts its own looks instead of reading the clock: after this process itself has been stopped, the bytes that
/// wait in the socket are seen before anybody is called silent. Bytes count, not messages: one may be large.
pub(super) struct Silence {
    conn: Arc<Conn>,
    seen: u64,
    silent: Duration,
}

impl Silence {
    pub(super) fn of(conn: Arc<Conn>) -> Silence {
        Silence {
            conn,
            seen: 0,
            silent: Duration::ZERO,
        }
    }

    /// To be called every `SILENCE_CHECK`.
    pub(super) fn is_too_long(&mut self) -> bool {
        let bytes = self.conn.bytes.load(Ordering::Relaxed);
        if bytes != self.seen {
            self.seen = bytes;
            self.silent = Duration::ZERO;
        } else {
            self.silent += SILENCE_CHECK;
        }
        self.silent >= PEER_SILENCE
    }
}

/// Anything that a connection can run over.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A byte stream with its `Conn`.
pub(super) struct Tracked {
    io: Box<dyn Io>,
    conn: Arc<Conn>,
    cut: oneshot::Receiver<()>,
    /// Only for strangers.
    deadline: Option<Pin<Box<Sleep>>>,
    dead: bool,
}

impl Tracked {
    /// A connection that somebody has opened to this node.
    pub(super) fn accepted(io: Box<dyn Io>, address: String, seat: Seat) -> Tracked {
        let (conn, cut) = Conn::new(address, Some(seat));
        let deadline = Some(Box::pin(tokio::time::sleep(HANDSHAKE_TIMEOUT)));
        Tracked {
            io,
            conn,
            cut,
            deadline,
            dead: false,
        }
    }

    /// A connection that this node has opened.
    pub(super) fn opened(io: Box<dyn Io>, address: String) -> Tracked {
        let (conn, cut) = Conn::new(address, None);
        Tracked {
            io,
            conn,
            cut,
            deadline: None,
            dead: false,
        }
    }

    pub(super) fn conn(&self) -> Arc<Conn> {
        self.conn.clone()
    }

    /// An error when the connection is to end.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.dead || Pin::new(&mut self.cut).poll(cx).is_ready() {
            self.dead = true;
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "this side has given the connection up",
            ));
        }
        if let Some(deadline) = self.deadline.as_mut() {
            if self.conn.proven.load(Ordering::Relaxed) {
                self.deadline = None;
            } else if deadline.as_mut().poll(cx).is_ready() {
                self.dead = true;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no proof of identity in time"));
            }
        }
        Ok(())
    }
}

impl AsyncRead for Tracked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        self.conn.bytes.fetch_add(read as u64, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.dead {
            // The other end may never take what TLS still wants to say.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl Connected for Tracked {
    type ConnectInfo = Arc<Conn>;

    fn connect_info(&self) -> Arc<Conn> {
        self.conn()
    }
}

/// Counts the strangers at the door.
#[derive(Default)]
pub(super) struct Census {
    seats: Mutex<(usize, HashMap<Option<IpAddr>, usize>)>,
}

impl Census {
    /// A place for a stranger from `address` (`None`: this machine's Unix socket), if there is one.
    pub(super) fn seat(self: &Arc<Census>, address: Option<IpAddr>) -> Option<Seat> {
        let mut seats = self.seats.lock();
        if seats.0 >= OPEN_CHALLENGES || seats.1.get(&address).is_some_and(|n| *n >= CONNECTIONS_PER_ADDRESS) {
            return None;
        }
        seats.0 += 1;
        *seats.1.entry(address).or_default() += 1;
        Some(Seat {
            census: self.clone(),
            address,
        })
    }
}

/// A stranger's place, free again when dropped.
pub(super) struct Seat {
    census: Arc<Census>,
    address: Option<IpAddr>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.census.seats.lock();
        seats.0 -= 1;
        if let Some(n) = seats.1.get_mut(&self.address) {
            *n -= 1;
            if *n == 0 {
                seats.1.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_counted_by_address_and_in_all() {
        let census = Arc::new(Census::default());
        let address = |n: u32| Some(IpAddr::V4(n.into()));
        let mut seats: Vec<Seat> = (0..CONNECTIONS_PER_ADDRESS)
            .filter_map(|_| census.seat(address(1)))
            .collect();
        assert_eq!(seats.len(), CONNECTIONS_PER_ADDRESS);
        assert!(census.seat(address(1)).is_none());
        seats.pop();
        seats.extend(census.seat(address(1)));
        assert_eq!(seats.len(), CONNECTIONS_PER_ADDRESS);
        seats.extend((2..).map_while(|n| census.seat(address(n))));
        assert_eq!(seats.len(), OPEN_CHALLENGES);
        seats.clear();
        assert!(census.seats.lock().1.is_empty() && census.seat(None).is_some());
    }

    #[test]
    fn a_nonce_is_good_once_and_for_a_while() {
        let (conn, _cut) = Conn::new(String::new(), None);
        assert_eq!(conn.take_nonce(), None);
        let (first, second) = (conn.challenge(), conn.challenge());
        assert_ne!(first, second);
        assert_eq!(conn.take_nonce(), Some(second));
        assert_eq!(conn.take_nonce(), None);
        conn.challenge();
        conn.expire_nonce();
        assert_eq!(conn.take_nonce(), None);
    }

    #[test]
    fn silence_is_measured_in_looks() {
        let (conn, _cut) = Conn::new(String::new(), None);
        let mut silence = Silence::of(conn.clone());
        let looks = (PEER_SILENCE.as_millis() / SILENCE_CHECK.as_millis()) as usize;
        for _ in 1..looks {
            assert!(!silence.is_too_long());
        }
        conn.bytes.fetch_add(1, Ordering::Relaxed);
        assert!(!silence.is_too_long());
        assert_eq!((0..).take_while(|_| !silence.is_too_long()).count(), looks - 1);
    }
}
