//! Services on their real threads, clocks and disks, connected directly.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak, mpsc},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{ClusterNode, ClusterView, GroupConfig, ProposeError, RegistryHost, RegistryService};
use crate::{message::RegistryMessage, net::LogLevel, registry::Command, topology::NodeId};

type Wires = Arc<Mutex<BTreeMap<NodeId, Weak<RegistryService>>>>;

struct Host {
    me: NodeId,
    wires: Wires,
}

impl RegistryHost for Host {
    fn published(&self) {}

    fn send(&self, to: &NodeId, message: RegistryMessage) -> Result<(), String> {
        let peer = self.wires.lock().get(to).and_then(Weak::upgrade).ok_or("away")?;
        peer.on_message(&self.me, message);
        Ok(())
    }

    fn log(&self, _level: LogLevel, _text: &str) {}
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn propose(service: &RegistryService, command: Command) -> Result<u64, ProposeError> {
    let (sender, receiver) = mpsc::channel();
    service.propose(command, Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv_timeout(Duration::from_secs(30)).unwrap()
}

#[test]
fn services_form_a_group_and_their_threads_end_with_them() {
    let dir = std::env::temp_dir().join(format!("oxigears-test-{:032x}", rand::random::<u128>()));
    let names = ["a", "b", "c"].map(NodeId::new);
    let wires = Wires::default();
    let services: Vec<Arc<RegistryService>> = names
        .iter()
        .map(|me| {
            let (me, wires) = (me.clone(), wires.clone());
            RegistryService::new(Arc::new(Host { me, wires }))
        })
        .collect();
    assert_eq!([services[0].next_number(), services[0].next_number()], [0, 1]);
    assert_eq!(services[0].apply_alone(Command::ClearStatistics), Ok(1));
    for (name, service) in names.iter().zip(&services) {
        wires.lock().insert(name.clone(), Arc::downgrade(service));
        let config = GroupConfig {
            me: name.clone(),
            dir: dir.join(name.as_str()),
        };
        service.start_group(config).unwrap();
        service.set_view(ClusterView {
            nodes: names
                .iter()
                .map(|id| ClusterNode {
                    id: id.clone(),
                    master: true,
                    has_slots: true,
                    failed: false,
                })
                .collect(),
            slot_zero: Some(names[0].clone()),
        });
        names
            .iter()
            .filter(|other| *other != name)
            .for_each(|other| service.on_peer(other, true));
    }
    let voters = |service: &RegistryService| service.status().members.iter().filter(|m| m.voter).count();
    wait("three voters", || services.iter().all(|s| voters(s) == 3));
    for service in &services {
        let index = propose(service, Command::ClearStatistics).unwrap();
        assert!(service.state().index() >= index);
    }
    wait("equal states", || {
        services.iter().all(|s| s.state().statistics_epoch() == 4)
    });
    assert!(services[0].apply_alone(Command::ClearStatistics).is_err());
    drop(services);
    wait("the ends of the threads", || Arc::strong_count(&wires) == 1);
    std::fs::remove_dir_all(&dir).unwrap();
}
