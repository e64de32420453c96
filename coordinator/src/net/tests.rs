//! Two and three meshes that talk, stop, fall silent and come back.

use std::{os::unix::fs::PermissionsExt, sync::atomic::Ordering};

use super::{MeshError, PeerAddress, SendError, Transport, convert::FRAME_OVERHEAD_BYTES, testing::*};
use crate::{
    limits::{LINK_QUEUE_MESSAGES, MESSAGE_BYTES, MESSAGE_HEAD_BYTES, SOCKET_PATH_BYTES, STRANGE_ANNOUNCEMENTS},
    message::Message,
    topology::NodeId,
};

#[test]
fn messages_arrive_in_order_in_both_directions() {
    let (a, b) = (start('a', |_| {}), start('b', |_| {}));
    assert!(matches!(a.mesh.send(&b.id, query(0)), Err(SendError::UnknownPeer(_))));
    connect(&[&a, &b]);
    assert_eq!(a.mesh.transport(&b.id), Some(Transport::Tcp));
    for id in 0..5000 {
        a.mesh.send(&b.id, query(id)).unwrap();
        b.mesh.send(&a.id, query(id + 10_000)).unwrap();
    }
    let large = batch(32 << 20, 3);
    a.mesh.send(&b.id, large.clone()).unwrap();
    a.mesh.send(&b.id, query(5000)).unwrap();
    until("all has arrived", &[&a, &b], || {
        b.messages(&a.id).len() == 5002 && a.messages(&b.id).len() == 5000
    });
    let at_b = b.messages(&a.id);
    assert_eq!(ids(&at_b), (0..=5000).collect::<Vec<_>>());
    assert!(at_b[5000] == large, "the large batch has changed on its way");
    assert_eq!(ids(&a.messages(&b.id)), (10_000..15_000).collect::<Vec<_>>());
    for (node, peer) in [(&a, &b), (&b, &a)] {
        assert_eq!(node.turns(&peer.id), ["up"]);
        assert!(
            matches!(node.heard.events.lock()[0], Event::Up(_)),
            "a message came before the peer was up"
        );
        let status = &node.mesh.peers()[0];
        assert_eq!(
            (status.connected, status.run_id.as_deref()),
            (true, Some(peer.mesh.run_id()))
        );
        assert_eq!(status.last_error, None);
        assert!(node.logged("connected : 127.0.0.1:7000, status = 0"));
    }
}

#[test]
fn three_nodes_and_one_leaves() {
    let (a, b, c) = (start('a', |_| {}), start('b', |_| {}), start('c', |_| {}));
    connect(&[&a, &b, &c]);
    for (from, to) in [(&a, &b), (&b, &c), (&c, &a)] {
        from.mesh.send(&to.id, query(1)).unwrap();
        until("it has arrived", &[&a, &b, &c], || ids(&to.messages(&from.id)) == [1]);
    }
    let members = vec![a.address(), b.address()];
    a.mesh.set_peers(members.clone());
    b.mesh.set_peers(members);
    until("c is gone", &[&a, &b, &c], || {
        a.turns(&c.id) == ["up", "lost"] && b.turns(&c.id) == ["up", "lost"] && c.turns(&a.id) == ["up", "lost"]
    });
    assert!(matches!(a.mesh.send(&c.id, query(2)), Err(SendError::UnknownPeer(_))));
    // c still counts the others as members, but is let in nowhere.
    until("c is refused", &[&a, &b, &c], || {
        c.last_error(&a.id).contains("refuses this node's proof")
    });
    assert!(c.mesh.wants_announcement_to(&a.id));
    assert_eq!(a.turns(&b.id), ["up"]);
    assert_eq!(a.mesh.peers().len(), 1);
    connect(&[&a, &b, &c]);
    assert_eq!(a.turns(&c.id), ["up", "lost", "up"]);
    assert_eq!(a.turns(&b.id), ["up"]);
}

#[test]
fn a_restarted_peer_is_lost_once_and_comes_back_as_another_run() {
    let (a, b) = (start('a', |_| {}), start('b', |_| {}));
    connect(&[&a, &b]);
    let first_run = b.mesh.run_id().to_owned();
    b.mesh.shutdown();
    until("the loss is noticed", &[&a], || a.turns(&b.id) == ["up", "lost"]);
    let refused = a.mesh.send(&b.id, query(1)).unwrap_err();
    assert!(
        matches!(&refused, SendError::NotConnected { peer, .. } if *peer == b.id),
        "{refused}"
    );
    until("attempts fail", &[&a], || {
        a.last_error(&b.id).contains("connecting to 127.0.0.1:")
    });
    assert!(a.logged("disconnected : 127.0.0.1:7000, status : ") && a.logged(", will try to reconnect."));
    assert_eq!(a.mesh.peers()[0].run_id, None);

    let again = start('b', |_| {});
    connect(&[&a, &again]);
    assert_eq!(a.turns(&b.id), ["up", "lost", "up"]);
    assert_ne!(again.mesh.run_id(), first_run);
    assert_eq!(a.mesh.peers()[0].run_id.as_deref(), Some(again.mesh.run_id()));
    a.mesh.send(&b.id, query(7)).unwrap();
    until("it has arrived", &[&a, &again], || ids(&again.messages(&a.id)) == [7]);
    assert!(
        b.heard
            .events
            .lock()
            .iter()
            .all(|event| !matches!(event, Event::Lost(..))),
        "called after shutdown"
    );
}

#[test]
fn an_announcement_of_another_run_ends_a_link_that_looks_well() {
    let (a, b) = (start('a', |_| {}), start('b', |_| {}));
    connect(&[&a, &b]);
    // The old process is cut off from the bus but alive: what counts is the newest run.
    let again = start('b', |_| {});
    assert!(
        a.mesh
            .on_announcement(&again.id, &again.mesh.announcement(&a.id))
            .unwrap()
    );
    until("the old one is lost", &[&a, &b], || a.turns(&b.id) == ["up", "lost"]);
    connect(&[&a, &again]);
    assert_eq!(a.turns(&b.id), ["up", "lost", "up"]);
}

#[test]
fn a_silent_peer_is_lost_and_an_idle_one_is_not() {
    let (a, b, c) = (start('a', |_| {}), start('b', |_| {}), start('c', |_| {}));
    connect(&[&a, &b, &c]);
    // As after SIGSTOP: the connections stand, but b's thread does nothing.
    b.heard.is_blocked.store(true, Ordering::SeqCst);
    a.mesh.send(&b.id, query(1)).unwrap();
    until("the loss is noticed", &[&a, &b, &c], || {
        a.turns(&b.id) == ["up", "lost"] && c.turns(&b.id) == ["up", "lost"]
    });
    let silent = |event: &Event| matches!(event, Event::Lost(_, reason) if reason.contains("silent for too long"));
    assert!(a.heard.events.lock().iter().any(silent) && c.heard.events.lock().iter().any(silent));
    // a and c have said no more to each other than b to them.
    assert_eq!((a.turns(&c.id), c.turns(&a.id)), (vec!["up"], vec!["up"]));
    b.heard.is_blocked.store(false, Ordering::SeqCst);
    until("b is back", &[&a, &b, &c], || {
        introduce(&[&a, &b, &c]);
        all_up(&[&a, &b, &c]) && a.turns(&b.id).len() % 2 == 1
    });
    until("b has heard of both turns", &[&a, &b, &c], || {
        b.turns(&a.id) == ["up", "lost", "up"] && b.turns(&c.id) == ["up", "lost", "up"]
    });
    assert_eq!(a.turns(&b.id), ["up", "lost", "up"]);
}

#[test]
fn a_peer_that_does_not_read_fills_the_queue_and_no_more() {
    let (a, b) = (start('a', |_| {}), start('b', |_| {}));
    connect(&[&a, &b]);
    b.heard.is_blocked.store(true, Ordering::SeqCst);
    let message = batch(16 * 1024, 1);
    let mut sent = 0;
    let refusal = loop {
        match a.mesh.send(&b.id, message.clone()) {
            Ok(()) => sent += 1,
            Err(refusal) => break refusal,
        }
        assert!(sent < 10 * LINK_QUEUE_MESSAGES, "the queue has no end");
    };
    assert_eq!(refusal, SendError::QueueFull { peer: b.id.clone() });
    assert!(sent >= LINK_QUEUE_MESSAGES);
    assert!(a.mesh.peers()[0].pending <= LINK_QUEUE_MESSAGES);
    b.heard.is_blocked.store(false, Ordering::SeqCst);
    until("all of it has arrived", &[&a, &b], || b.messages(&a.id).len() == sent);
    assert_eq!(a.turns(&b.id), ["up"]);
}

#[test]
fn a_message_that_no_peer_would_take_is_refused_at_once() {
    let (a, b) = (start('a', |_| {}), start('b', |_| {}));
    connect(&[&a, &b]);
    // Zeroed memory that nobody touches costs nothing.
    let body = |bytes| Message::Answer {
        id: 1,
        result: Ok(vec![0; bytes].into()),
    };
    let text = |bytes| Message::Answer {
        id: 2,
        result: Err("x".repeat(bytes)),
    };
    for large in [body(MESSAGE_BYTES + 1), text(MESSAGE_HEAD_BYTES)] {
        let refused = a.mesh.send(&b.id, large).unwrap_err();
        assert!(matches!(refused, SendError::TooLarge { .. }), "{refused}");
    }
    let longest = text(MESSAGE_HEAD_BYTES - FRAME_OVERHEAD_BYTES);
    a.mesh.send(&b.id, longest.clone()).unwrap();
    until("the longest text has arrived", &[&a, &b], || {
        b.messages(&a.id) == [longest.clone()]
    });
    assert!(a.mesh.is_up(&b.id));
}

#[test]
fn a_handler_that_panics_loses_one_event() {
    let (a, b) = (start('a', |_| {}), start('b', |_| {}));
    connect(&[&a, &b]);
    b.heard.panics.store(1, Ordering::SeqCst);
    a.mesh.send(&b.id, query(1)).unwrap();
    a.mesh.send(&b.id, query(2)).unwrap();
    until("the second one has arrived", &[&a, &b], || {
        ids(&b.messages(&a.id)) == [2]
    });
    assert!(b.logged("handler has panicked"));
    assert_eq!(b.turns(&a.id), ["up"]);
}

#[test]
fn another_port_is_taken_when_the_preferred_one_is_not_free() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let both = vec!["127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap()];
    let (a, b) = (start('a', |c| (c.port, c.listen) = (port, both)), start('b', |_| {}));
    assert!(a.mesh.port() != port && a.mesh.port() != 0);
    assert!(a.logged(&format!(
        "the mesh port {port} is not free: the mesh uses port {}",
        a.mesh.port()
    )));
    assert!(std::net::TcpStream::connect(("127.0.0.2", a.mesh.port())).is_ok());
    connect(&[&a, &b]);

    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    assert_eq!(start('c', |c| c.port = free).mesh.port(), free);
}

#[test]
fn addresses_that_are_not_there_are_skipped_unless_all_are() {
    // TEST-NET-1: no machine has it.
    let absent: std::net::IpAddr = "192.0.2.1".parse().unwrap();
    let a = start('a', |c| c.listen.insert(0, absent));
    assert!(a.mesh.port() != 0 && a.logged("does not listen on 192.0.2.1"));
    let mut config = config('b');
    config.listen = vec![absent];
    let refused = super::Mesh::start(config, std::sync::Arc::new(Recorder::default()));
    assert!(matches!(refused, Err(MeshError::Listen { .. })));
}

#[test]
fn host_names_and_ipv6_are_addresses_too() {
    let (a, b) = (
        start('a', |_| {}),
        start('b', |c| c.listen.push("::1".parse().unwrap())),
    );
    let (mut by_name, mut by_v6) = (a.address(), b.address());
    by_name.host = "localhost".into();
    if !b.logged("does not listen on ::1") {
        by_v6.host = "::1".into();
    }
    a.mesh.set_peers(vec![by_v6]);
    b.mesh.set_peers(vec![by_name]);
    until("both are up", &[&a, &b], || {
        introduce(&[&a, &b]);
        all_up(&[&a, &b])
    });
}

#[test]
fn peers_on_one_machine_use_the_unix_socket() {
    let dir = Scratch::new();
    let with_socket = |c: &mut super::MeshConfig| c.unix_dir = Some(dir.path().into());
    let (a, b) = (start('a', with_socket), start('b', with_socket));
    let socket = a.mesh.unix_socket().unwrap().to_owned();
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    connect(&[&a, &b]);
    assert_eq!(
        (a.mesh.transport(&b.id), b.mesh.transport(&a.id)),
        (Some(Transport::Unix), Some(Transport::Unix))
    );
    let large = batch(32 << 20, 5);
    a.mesh.send(&b.id, large.clone()).unwrap();
    until("it has arrived", &[&a, &b], || b.messages(&a.id).len() == 1);
    assert!(b.messages(&a.id)[0] == large);

    // Without the file the peer comes over TCP.
    let socket_of_b = b.mesh.unix_socket().unwrap().to_owned();
    b.mesh.shutdown();
    assert!(!socket_of_b.exists());
    let again = start('b', with_socket);
    assert_eq!(again.mesh.unix_socket(), Some(socket_of_b.as_path()));
    std::fs::remove_file(&socket_of_b).unwrap();
    connect(&[&a, &again]);
    assert_eq!(
        (a.mesh.transport(&b.id), again.mesh.transport(&a.id)),
        (Some(Transport::Tcp), Some(Transport::Unix))
    );

    // What a killed process leaves behind is no obstacle, and not taken away from its successor.
    std::mem::forget(std::os::unix::net::UnixListener::bind(&socket_of_b).unwrap());
    let third = start('b', with_socket);
    assert!(third.mesh.unix_socket().is_some());
    again.mesh.shutdown();
    assert!(socket_of_b.exists());
    drop(third);
    assert!(!socket_of_b.exists() && socket.exists());
}

#[test]
fn a_socket_path_that_is_too_long_is_done_without() {
    let dir = Scratch::new();
    let long = dir.path().join("x".repeat(SOCKET_PATH_BYTES));
    let a = start('a', |c| c.unix_dir = Some(long));
    assert_eq!(a.mesh.unix_socket(), None);
    assert!(a.logged("does without a Unix socket"));
}

#[test]
fn announcements_are_answered_as_long_as_needed() {
    let (a, b) = (start('a', |_| {}), start('b', |_| {}));
    assert!(a.mesh.wants_announcement_to(&b.id));
    assert!(
        b.mesh.on_announcement(&a.id, &a.mesh.announcement(&b.id)).unwrap(),
        "a cannot have b's yet"
    );
    assert!(
        !a.mesh.on_announcement(&b.id, &b.mesh.announcement(&a.id)).unwrap(),
        "b has a's now"
    );
    assert!(!a.mesh.wants_announcement_to(&b.id));
    assert!(
        b.mesh.wants_announcement_to(&a.id),
        "b does not know yet whether its answer arrived"
    );
    assert!(!b.mesh.on_announcement(&a.id, &a.mesh.announcement(&b.id)).unwrap());
    assert!(!b.mesh.wants_announcement_to(&a.id));
}

#[test]
fn garbage_announcements_are_errors() {
    let (a, b) = (start('a', |_| {}), start('b', |_| {}));
    connect(&[&a, &b]);
    let good = b.mesh.announcement(&a.id);
    for garbage in [
        b"".as_slice(),
        b"OXM\x01",
        b"OXM\x02abcdefgh",
        &[0xff; 3000],
        &good[..good.len() / 2],
    ] {
        assert!(matches!(
            a.mesh.on_announcement(&b.id, garbage),
            Err(MeshError::Announcement { .. })
        ));
    }
    assert!(
        a.mesh.on_announcement(&a.id, &good).is_err(),
        "nobody announces himself to himself"
    );
    assert!(a.mesh.on_announcement(&NodeId::new(""), &good).is_err());
    assert!(a.mesh.on_announcement(&NodeId::new("a\nb"), &good).is_err());
    a.mesh.send(&b.id, query(1)).unwrap();
    until("the link works on", &[&a, &b], || ids(&b.messages(&a.id)) == [1]);

    let stranger = |n: usize| NodeId::new(&format!("{n:040}"));
    let taken = (0..STRANGE_ANNOUNCEMENTS + 9).filter(|n| a.mesh.on_announcement(&stranger(*n), &good).is_ok());
    assert_eq!(taken.count(), STRANGE_ANNOUNCEMENTS);
    assert_eq!(a.turns(&b.id), ["up"]);
}

#[test]
fn malformed_configurations_are_refused() {
    let try_start = |change: fn(&mut super::MeshConfig)| {
        let mut config = config('a');
        change(&mut config);
        super::Mesh::start(config, std::sync::Arc::new(Recorder::default())).err()
    };
    assert!(matches!(
        try_start(|c| c.node_id = NodeId::new("")),
        Some(MeshError::NodeId(_))
    ));
    assert!(matches!(
        try_start(|c| c.versions = "a\n".into()),
        Some(MeshError::Versions(_))
    ));
    let a = start('a', |_| {});
    a.mesh.set_peers(vec![
        PeerAddress {
            id: NodeId::new("\n"),
            host: "x".into(),
            redis_port: 1,
        },
        a.address(),
    ]);
    assert!(a.mesh.peers().is_empty());
}
