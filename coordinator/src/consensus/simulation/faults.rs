//! What goes wrong in a run: one fault at a time, of the run's kind of trouble.

use rand::RngExt;

use super::{
    cluster::Role,
    disk::Crash,
    net::Place,
    scenario::{Run, Trouble},
    world::Timer,
};

impl Run {
    /// Something goes wrong.
    pub(super) fn fault(&mut self) {
        use Trouble::*;
        let kind = match self.trouble {
            Everything => [Network, Crashes, Disks, Elections, Membership][self.world.rng.random_range(0..5)],
            Merge => [Network, Crashes, Merge][self.world.rng.random_range(0..3)],
            other => other,
        };
        match kind {
            Network => self.network(),
            Crashes => self.crash(),
            Disks => self.disk(),
            Elections => self.election(),
            Membership => self.membership(),
            Merge => self.merge(),
            Damage => self.damage(),
            Founding => self.founding(),
            Quiet | Everything => {}
        }
    }

    /// Any node that was not removed.
    fn any(&mut self) -> Place {
        let places: Vec<Place> = (0..self.world.nodes.len())
            .filter(|p| !self.world.nodes[*p].dead)
            .collect();
        places[self.world.rng.random_range(0..places.len())]
    }

    fn network(&mut self) {
        let count = self.world.nodes.len();
        let kind = self.world.rng.random_range(0..6);
        self.world.note(|| format!("network trouble {kind}"));
        let one = self.any();
        match kind {
            // One is isolated, in one direction perhaps.
            0 | 1 => {
                for other in (0..count).filter(|other| *other != one) {
                    self.world.net.block(one, other);
                    if kind == 0 {
                        self.world.net.block(other, one);
                    }
                }
            }
            // Two halves.
            2 => {
                let side: Vec<bool> = (0..count).map(|_| self.world.rng.random()).collect();
                for a in 0..count {
                    for b in (0..count).filter(|b| side[*b] != side[a]) {
                        self.world.net.block(a, b);
                    }
                }
            }
            // Some pairs, in some direction.
            3 => {
                for _ in 0..count {
                    let (a, b) = (self.any(), self.any());
                    self.world.net.block(a, b);
                }
            }
            // Links break and come back.
            4 => {
                for _ in 0..count {
                    let (a, b, now_ms) = (self.any(), self.any(), self.world.now_ms);
                    self.world.net.flap(a, b, now_ms);
                }
            }
            _ => self.world.net.delay_ms = [2, 20, 150][self.world.rng.random_range(0..3)],
        }
        let pause = self.world.rng.random_range(200..8000);
        self.world.timer(pause, Timer::Heal);
    }

    fn crash(&mut self) {
        let place = self.any();
        if !self.world.alive(place) {
            return;
        }
        let pause = self.world.rng.random_range(50..5000);
        match self.world.rng.random_range(0..5) {
            0 => self.pause(place, pause),
            1 => {
                let crash = self.crash_kind();
                self.world.crash(place, crash);
                self.world.timer(pause, Timer::Start(place));
            }
            2 => {
                // All at once.
                let crash = self.crash_kind();
                for place in 0..self.world.nodes.len() {
                    if self.world.nodes[place].member.is_some() {
                        self.world.crash(place, crash);
                        let pause = self.world.rng.random_range(50..2000);
                        self.world.timer(pause, Timer::Start(place));
                    }
                }
            }
            _ => {
                // Within one of its next steps; after that, leaders are likely victims.
                let leader = (0..self.world.nodes.len()).find(|p| self.world.nodes[*p].leads());
                let place = leader.filter(|_| self.world.rng.random()).unwrap_or(place);
                let count = self.world.rng.random_range(1..40);
                self.world.nodes[place].disk.stop_in(count);
            }
        }
    }

    fn crash_kind(&mut self) -> Crash {
        [Crash::Kill, Crash::LoseAll, Crash::LoseSome][self.world.rng.random_range(0..3)]
    }

    fn election(&mut self) {
        let Some(leader) = (0..self.world.nodes.len()).find(|p| self.world.nodes[*p].leads()) else {
            return;
        };
        self.world.net.delay_ms = self.world.rng.random_range(50..200);
        if self.world.rng.random() {
            self.world.nodes[leader].paused = true;
            let pause = self.world.rng.random_range(2000..4000);
            self.world.timer(pause, Timer::Resume(leader));
        } else {
            self.world.crash(leader, Crash::Kill);
            self.world.timer(3000, Timer::Start(leader));
        }
        self.world.note(|| format!("n{leader} leads no more"));
        self.world.restart_ms = 30;
        for place in (0..self.world.nodes.len()).filter(|place| *place != leader) {
            if self.world.rng.random() {
                let count = self.world.rng.random_range(2..12);
                self.world.nodes[place].disk.stop_in(count);
            }
        }
    }

    /// A voter comes back without its log, or without the end of it, while the leader is away and another one is late:
    /// the next leader is elected by those two.
    fn damage(&mut self) {
        let place = self.any();
        let others = |run: &Run| {
            (0..run.world.nodes.len())
                .filter(|p| *p != place && run.world.alive(*p))
                .collect::<Vec<_>>()
        };
        if self.world.rng.random() {
            let late = others(self);
            if let Some(late) = late.get(self.world.rng.random_range(0..late.len().max(1))).copied() {
                let pause = self.world.rng.random_range(300..1500);
                self.pause(late, pause);
            }
            return;
        }
        let leader = (0..self.world.nodes.len()).find(|p| self.world.nodes[*p].leads());
        if !self.world.may_lose(place) || self.world.nodes[place].member.is_none() || leader == Some(place) {
            return;
        }
        self.world.lost.insert(self.world.nodes[place].status.raft_id);
        self.world.crash(place, Crash::Kill);
        if self.world.rng.random() {
            self.world.note(|| format!("n{place}: its disk is wiped"));
            self.world.nodes[place].disk.wipe();
        } else {
            self.flip(place);
        }
        self.world.timer(20, Timer::Start(place));
        if let Some(leader) = leader.filter(|leader| self.world.alive(*leader)) {
            let pause = self.world.rng.random_range(2000..4000);
            self.pause(leader, pause);
        }
    }

    fn pause(&mut self, place: Place, time_ms: u64) {
        self.world.nodes[place].paused = true;
        self.world.note(|| format!("n{place} is stopped for {time_ms} ms"));
        self.world.timer(time_ms, Timer::Resume(place));
    }

    /// Slot 0 moves and the network is cut while the first group is founded.
    fn founding(&mut self) {
        match self.world.rng.random_range(0..6) {
            0 | 1 => self.network(),
            2 => self.fail_over(),
            3 => self.crash(),
            _ => self.change_role(),
        }
    }

    fn disk(&mut self) {
        let place = self.any();
        let may_lose = self.world.may_lose(place);
        let id = self.world.nodes[place].status.raft_id;
        let kind = self.world.rng.random_range(0..5);
        let disk = self.world.nodes[place].disk.clone();
        match kind {
            0 => {
                let room = self.world.rng.random_range(0..2000);
                self.world.note(|| format!("n{place}: {room} bytes left on the disk"));
                disk.set_capacity(Some(disk.used() + room));
                self.world.nodes[place].disk_full_until_ms = self.world.now_ms + 4000;
            }
            1 => {
                let sync_ms = [1, 10, 100, 400][self.world.rng.random_range(0..4)];
                self.world.note(|| format!("n{place}: a sync takes {sync_ms} ms"));
                self.world.nodes[place].sync_ms = sync_ms;
            }
            2 if may_lose => {
                self.world.note(|| format!("n{place}: a sync will fail"));
                self.world.nodes[place].sync_fails = true;
            }
            3 if may_lose && self.world.nodes[place].member.is_some() => {
                self.world.lost.insert(id);
                self.world.crash(place, Crash::Kill);
                self.world.note(|| format!("n{place}: its disk is wiped"));
                disk.wipe();
                self.world.timer(100, Timer::Start(place));
            }
            4 if may_lose && self.world.nodes[place].member.is_some() => {
                self.world.lost.insert(id);
                self.world.crash(place, Crash::Kill);
                self.flip(place);
                self.world.timer(100, Timer::Start(place));
            }
            _ => {}
        }
        let now_ms = self.world.now_ms;
        for node in &mut self.world.nodes {
            if node.disk_full_until_ms < now_ms {
                node.disk.set_capacity(None);
            }
        }
    }

    fn flip(&mut self, place: Place) {
        let name = ["log", "snapshot"][self.world.rng.random_range(0..2)];
        let disk = self.world.nodes[place].disk.clone();
        let Some(mut bytes) = disk.content(name).filter(|bytes| !bytes.is_empty()) else {
            return;
        };
        let at = self.world.rng.random_range(0..bytes.len());
        if self.world.rng.random() {
            bytes[at] ^= 1 << self.world.rng.random_range(0..8);
            self.world.note(|| format!("n{place}: a bit of {name} flips at {at}"));
        } else {
            bytes.truncate(at);
            self.world.note(|| format!("n{place}: {name} is cut at {at}"));
        }
        disk.set_content(name, Some(bytes));
    }

    fn membership(&mut self) {
        match self.world.rng.random_range(0..6) {
            0 if self.world.nodes.len() < 12 => {
                let friend = self.any();
                let slots = self.world.rng.random();
                let place = self.add(slots, false);
                self.world.note(|| format!("n{place} meets n{friend}"));
                self.meet(friend, place);
            }
            1 | 2 => self.fail_over(),
            3 => self.forget(),
            _ => self.change_role(),
        }
    }

    /// Somebody takes over the slots of a master, perhaps of one that still runs.
    fn fail_over(&mut self) {
        let (old, new) = (self.any(), self.any());
        let nodes = &self.world.nodes;
        let belief = &nodes[new].belief;
        let has = |place: Place| belief.roles.get(&place).is_some_and(|r| r.slots);
        if old == new || !self.world.alive(new) || !has(old) || has(new) || !self.sees_most_masters(new) {
            return;
        }
        // A replica knows what its master has, even if it has not heard of that in other ways.
        let zero = [old, new]
            .into_iter()
            .any(|place| nodes[place].belief.slot_zero.is_some_and(|(_, owner)| owner == old));
        self.world.version += 1;
        let version = self.world.version;
        let role = |slots| Role {
            version,
            master: slots,
            slots,
        };
        let belief = &mut self.world.nodes[new].belief;
        belief.take_role(new, role(true));
        belief.take_role(old, role(false));
        if zero {
            belief.slot_zero = Some((version, new));
        }
        self.world.note(|| format!("n{new} takes over from n{old}"));
        self.world.push_view(new);
    }

    fn sees_most_masters(&self, place: Place) -> bool {
        let world = &self.world;
        let roles = &world.nodes[place].belief.roles;
        let masters: Vec<Place> = roles.iter().filter(|(_, r)| r.slots).map(|(p, _)| *p).collect();
        let seen = |p: &&Place| {
            **p == place || (world.alive(**p) && !world.net.is_blocked(place, **p) && !world.net.is_blocked(**p, place))
        };
        masters.iter().filter(seen).count() * 2 > masters.len()
    }

    /// A node is removed from the cluster: all others forget it; it may be replaced.
    fn forget(&mut self) {
        let place = self.any();
        let slots = self
            .world
            .nodes
            .iter()
            .any(|n| n.belief.roles.get(&place).is_some_and(|r| r.slots));
        let rest = self.world.nodes.iter().filter(|n| !n.dead).count();
        let voter = self.world.nodes.iter().any(|n| {
            n.status
                .members
                .iter()
                .any(|m| m.voter && m.node == self.world.nodes[place].id)
        });
        // Like operators do: slots are moved away first.
        if self.world.nodes[place].dead || slots || rest < 4 || (voter && !self.world.may_lose(place)) {
            return;
        }
        self.world.lost.insert(self.world.nodes[place].status.raft_id);
        self.world.note(|| format!("n{place} is removed"));
        self.world.crash(place, Crash::Kill);
        self.world.nodes[place].dead = true;
        for node in &mut self.world.nodes {
            node.belief.forget(place);
        }
        for other in 0..self.world.nodes.len() {
            self.world.push_view(other);
        }
    }

    /// A master without slots becomes a replica or the other way round; slot 0 moves.
    fn change_role(&mut self) {
        let place = self.any();
        if !self.world.alive(place) || !self.sees_most_masters(place) {
            return;
        }
        let belief = &self.world.nodes[place].belief;
        let (role, zero) = (belief.roles[&place], belief.slot_zero);
        self.world.version += 1;
        let version = self.world.version;
        let take_zero = role.slots && zero.is_some() && self.world.rng.random();
        let belief = &mut self.world.nodes[place].belief;
        if take_zero {
            belief.slot_zero = Some((version, place));
            self.world.note(|| format!("n{place} gets slot 0"));
        } else if !role.slots {
            let role = Role {
                version,
                master: !role.master,
                slots: false,
            };
            belief.take_role(place, role);
            self.world
                .note(|| format!("n{place} is a {}", if role.master { "master" } else { "replica" }));
        }
        self.world.push_view(place);
    }

    /// The two clusters meet, once each has its group.
    pub(super) fn merge(&mut self) {
        if self.merged || self.world.now_ms < 8000 {
            return;
        }
        self.merged = true;
        self.met = self.world.nodes.iter().filter_map(|n| n.last_group.clone()).collect();
        let zeros = |p: &Place| {
            self.world.nodes[*p]
                .belief
                .slot_zero
                .is_some_and(|(_, owner)| owner == *p)
        };
        let owners: Vec<Place> = (0..self.world.nodes.len()).filter(zeros).collect();
        if let [a, b] = owners[..] {
            self.world.note(|| format!("n{a} and n{b} meet"));
            // Both think that slot 0 is theirs: the newer claim wins.
            self.meet(a, b);
        }
    }
}
