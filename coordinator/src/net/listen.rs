//! The sockets that peers connect to, and the way from an accepted connection to the services.
//!
//! Accepting is our own, so that strangers are counted, TLS has a time limit, and nothing waits for one of them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener},
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Core, LogLevel, MeshConfig, MeshError, MeshHandler,
    conn::{Io, Seat, Tracked},
    server,
};
use crate::limits::{ACCEPT_PAUSE, ACCEPTED_WAITING, HANDSHAKE_TIMEOUT, LISTEN_BACKLOG, SOCKET_PATH_BYTES};

/// How often another port is tried until one is free on all addresses.
const PORT_ATTEMPTS: usize = 16;

/// Linux's number of "address family not supported".
const EAFNOSUPPORT: i32 = 97;

/// Bound sockets.
pub(super) struct Listeners {
    tcp: Vec<std::net::TcpListener>,
    port: u16,
    unix: Option<(std::os::unix::net::UnixListener, PathBuf)>,
}

impl Listeners {
    /// Binds all addresses to the preferred port, or to another one.
    pub(super) fn bind(config: &MeshConfig, handler: &dyn MeshHandler) -> Result<Listeners, MeshError> {
        let mut bound = bind_all(&config.listen, config.port);
        let is_taken = |e: &MeshError| {
            matches!(e, MeshError::Listen { error, .. }
                if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied))
        };
        for _ in 0..PORT_ATTEMPTS {
            if !bound.as_ref().is_err_and(is_taken) {
                break;
            }
            bound = bind_all(&config.listen, 0);
        }
        let (tcp, port, skipped) = bound?;
        for line in skipped {
            handler.log(LogLevel::Notice, &line);
        }
        if config.port != 0 && port != 0 && port != config.port {
            let line = format!("the mesh port {} is not free: the mesh uses port {port}", config.port);
            handler.log(LogLevel::Notice, &line);
        }
        let unix = match config.unix_dir.as_ref().map(|dir| bind_unix(dir, config)) {
            None => None,
            Some(Ok(unix)) => Some(unix),
            Some(Err(reason)) => {
                // Peers on this machine come over TCP then.
                handler.log(
                    LogLevel::Notice,
                    &format!("the mesh does without a Unix socket: {reason}"),
                );
                None
            }
        };
        Ok(Listeners { tcp, port, unix })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn unix_path(&self) -> Option<&Path> {
        self.unix.as_ref().map(|(_, path)| path.as_path())
    }
}

type Bound = (Vec<std::net::TcpListener>, u16, Vec<String>);

/// Binds every address to one port; addresses that this machine does not have are skipped if another one works.
fn bind_all(addresses: &[IpAddr], port: u16) -> Result<Bound, MeshError> {
    let (mut bound, mut port, mut skipped) = (Vec::new(), port, Vec::new());
    let mut last = None;
    for &ip in addresses {
        let address = SocketAddr::new(ip, port);
        match bind_tcp(address) {
            Ok((listener, actual)) => {
                port = actual;
                bound.push(listener);
            }
            Err(error) => {
                // IPv6 may be switched off altogether, which has no `ErrorKind` of its own.
                let is_absent =
                    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT);
                let line = format!("the mesh does not listen on {ip}: {error}");
                let failure = MeshError::Listen {
                    address: address.to_string(),
                    error,
                };
                if !is_absent {
                    return Err(failure);
                }
                skipped.push(line);
                last = Some(failure);
            }
        }
    }
    match last {
        Some(failure) if bound.is_empty() => Err(failure),
        _ => Ok((bound, if addresses.is_empty() { 0 } else { port }, skipped)),
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<(std::net::TcpListener, u16)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        // `::` and `0.0.0.0` may both be listed.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener: std::net::TcpListener = socket.into();
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

fn bind_unix(dir: &Path, config: &MeshConfig) -> Result<(std::os::unix::net::UnixListener, PathBuf), String> {
    // Part of the node id keeps the name short, and a restarted node overwrites what it left behind.
    let name: String = config
        .node_id
        .as_str()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .take(16)
        .collect();
    let path = std::path::absolute(dir)
        .unwrap_or_else(|_| dir.into())
        .join(format!("oxi-{name}.sock"));
    if path.as_os_str().len() > SOCKET_PATH_BYTES {
        return Err(format!("the path {} is too long", path.display()));
    }
    let bind = || -> io::Result<std::os::unix::net::UnixListener> {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(&path)?)?;
        // Before it listens nobody can connect: there is no moment with wider rights.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        socket.listen(LISTEN_BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    match bind() {
        Ok(listener) => Ok((listener, path)),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}

/// Accepts and serves until the mesh ends.
pub(super) async fn serve(core: Arc<Core>, listeners: Arc<Listeners>) {
    let (incoming, connections) = mpsc::channel(ACCEPTED_WAITING);
    // Dropped with this future: after a panic the next one starts with fresh tasks.
    let mut accepting = JoinSet::new();
    for listener in &listeners.tcp {
        match listener.try_clone().and_then(TcpListener::from_std) {
            Ok(listener) => {
                accepting.spawn(accept_tcp(core.clone(), listener, incoming.clone()));
            }
            Err(e) => core.log(LogLevel::Warning, &format!("the mesh cannot accept connections: {e}")),
        }
    }
    if let Some((listener, _)) = &listeners.unix {
        match listener.try_clone().and_then(UnixListener::from_std) {
            Ok(listener) => {
                accepting.spawn(accept_unix(core.clone(), listener, incoming.clone()));
            }
            Err(e) => core.log(LogLevel::Warning, &format!("the mesh cannot accept connections: {e}")),
        }
    }
    drop(incoming);
    let connections = ReceiverStream::new(connections);
    tokio::select! {
        served = server::router(core.clone()).serve_with_incoming(connections) => {
            if let Err(e) = served {
                core.log(LogLevel::Warning, &format!("the mesh server has ended: {e}"));
            }
        }
        // Accept loops end by a panic only; it goes on to the supervisor, which starts everything anew.
        Some(Err(e)) = accepting.join_next() => {
            if let Ok(panic) = e.try_into_panic() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

type Incoming = mpsc::Sender<io::Result<Tracked>>;

async fn accept_tcp(core: Arc<Core>, listener: TcpListener, incoming: Incoming) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let Some(seat) = core.census.seat(Some(from.ip())) else {
                    core.refused(&from.to_string(), "too many connections without a proof of identity");
                    continue;
                };
                let _ = stream.set_nodelay(true);
                tokio::spawn(admit(core.clone(), stream, from.to_string(), seat, incoming.clone()));
            }
            Err(e) => pause(&core, &e).await,
        }
    }
}

/// TLS, if it is on, and on to the services.
async fn admit(core: Arc<Core>, stream: TcpStream, from: String, seat: Seat, incoming: Incoming) {
    let tls = match core.tls.get().await {
        Ok(tls) => tls,
        Err(e) => return core.refused(&from, &e),
    };
    let io: Box<dyn Io> = match tls {
        None => Box::new(stream),
        Some(tls) => match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Box::new(stream),
            Ok(Err(e)) => return core.refused(&from, &format!("TLS: {e}")),
            Err(_) => return core.refused(&from, "TLS: no handshake in time"),
        },
    };
    let _ = incoming.send(Ok(Tracked::accepted(io, from, seat))).await;
}

async fn accept_unix(core: Arc<Core>, listener: UnixListener, incoming: Incoming) {
    const HERE: &str = "this machine's Unix socket";
    loop {
        match listener.accept().await {
            // TLS may have been switched on after the socket was made.
            Ok(_) if core.tls.is_on() => core.refused(HERE, "the mesh uses TLS"),
            Ok((stream, _)) => match core.census.seat(None) {
                Some(seat) => {
                    let _ = incoming
                        .send(Ok(Tracked::accepted(Box::new(stream), HERE.into(), seat)))
                        .await;
                }
                None => core.refused(HERE, "too many connections without a proof of identity"),
            },
            Err(e) => pause(&core, &e).await,
        }
    }
}

/// Most likely there are no file descriptors left: it gets better by waiting only.
async fn pause(core: &Core, error: &io::Error) {
    core.refused("somebody", &format!("accepting failed: {error}"));
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
