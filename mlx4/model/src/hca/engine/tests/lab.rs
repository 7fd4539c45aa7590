//! Machines on a fabric whose subnet manager has made their ports ACTIVE, by SMPs that went through QP0.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mlx4_wire::U16;
use mlx4_wire::cqe::Cqe;
use mlx4_wire::ctx::path::{AddressPath, SchedQueue};
use mlx4_wire::ctx::qp::ServiceType;
use mlx4_wire::mad::notice::Notice;
use zerocopy::FromZeros;

use super::machine::Machine;
use super::management::Agent;
use super::queues::{Done, QpConfig, TestCq, TestQp, done};
use crate::fabric::{Fabric, FabricConfig};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Lab {
    pub(super) machines: Vec<Machine>,
    /// Of each machine, by port.
    agents: Vec<Vec<Agent>>,
    _fabric: Arc<Fabric>,
}

/// The first PSN of the first of two ends.
pub(super) const FIRST_PSN: u32 = 0xff_fffe;

impl Lab {
    /// Machines with node GUIDs 0x1000, 0x2000, ...
    pub(super) fn new(count: u64) -> Self {
        Self::with_ports(count, 1, false)
    }

    /// Machines of one or two ports, whose CQEs and EQEs have 64 bytes if asked for.
    pub(super) fn with_ports(count: u64, ports: u8, large_entries: bool) -> Self {
        let fabric = Fabric::new(FabricConfig::default()).unwrap();
        let new = |n| Machine::new(&fabric, 0x1000 * n, ports, large_entries);
        let machines: Vec<_> = (1..=count).map(new).collect();
        let agents = machines.iter().map(|machine| Agent::all(machine, ports)).collect();
        let lab = Self { machines, agents, _fabric: fabric };
        for (machine, port) in lab.machines.iter().flat_map(|m| (1..=ports).map(move |port| (m, port))) {
            machine.hca.plug(port).unwrap().set_link(true);
        }
        let active = |m: &Machine| (1..=ports).all(|port| m.port_number(port).is_active());
        lab.until("ports to become active", || lab.machines.iter().all(active));
        for machine in &lab.machines {
            machine.take_events();
        }
        lab
    }

    /// Lets the engines and the agents work once.
    pub(super) fn work(&self) -> bool {
        let mut worked = false;
        for (machine, agents) in self.machines.iter().zip(&self.agents) {
            worked |= machine.hca.run().worked;
            for agent in agents {
                worked |= agent.serve(machine);
            }
        }
        worked
    }

    /// The traps that the driver of a machine was given to forward, from its first port.
    pub(super) fn traps(&self, machine: usize) -> Vec<Notice> {
        self.agents[machine][0].traps()
    }

    /// Works until something is true.
    pub(super) fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
            if !self.work() {
                std::thread::yield_now();
            }
        }
    }

    /// Works for as long as there is something to do at once.
    pub(super) fn settle(&self) {
        while self.work() {}
    }

    /// Works for a time.
    pub(super) fn pass(&self, time: Duration) {
        let start = Instant::now();
        self.until("time to pass", || start.elapsed() >= time);
    }

    /// The next completion of a queue of a machine.
    pub(super) fn cqe(&self, machine: usize, cq: &TestCq) -> Cqe {
        let mut found = None;
        self.until("a completion", || {
            found = cq.poll(&self.machines[machine]);
            found.is_some()
        });
        found.unwrap()
    }

    /// What the next completion says.
    pub(super) fn done(&self, machine: usize, cq: &TestCq) -> Done {
        done(&self.cqe(machine, cq))
    }

    /// The path from one machine to another.
    pub(super) fn path(&self, to: usize) -> AddressPath {
        self.path_between(1, to, 1)
    }

    /// The path from a port of a machine to that of another.
    pub(super) fn path_between(&self, from_port: u8, to: usize, to_port: u8) -> AddressPath {
        let mut path = AddressPath::new_zeroed();
        path.remote_lid = U16::new(self.machines[to].port_number(to_port).lid());
        path.sched_queue = SchedQueue::BASE.with_port_index(from_port - 1);
        path
    }

    /// A queue pair with two CQs of its own, in INIT.
    pub(super) fn end(&self, machine: usize, config: QpConfig) -> End {
        let m = &self.machines[machine];
        let (send, receive) = (TestCq::new(m, 6), TestCq::new(m, 6));
        let qp = TestQp::new(m, &send, &receive, config);
        End { machine, qp, send, receive }
    }

    /// Two connected queue pairs in RTS, of machines that may be the same.
    pub(super) fn connect(&self, a: (usize, QpConfig), b: (usize, QpConfig)) -> (End, End) {
        let (a, b) = (self.end(a.0, a.1), self.end(b.0, b.1));
        self.join(&a, &b);
        (a, b)
    }

    /// Connects two queue pairs that are in INIT. The PSNs wrap soon.
    pub(super) fn join(&self, a: &End, b: &End) {
        let (psn_a, psn_b) = (FIRST_PSN, 0x12_3456);
        a.qp.to_rtr(&self.machines[a.machine], b.qp.qpn, self.path(b.machine), psn_b);
        b.qp.to_rtr(&self.machines[b.machine], a.qp.qpn, self.path(a.machine), psn_a);
        a.qp.to_rts(&self.machines[a.machine], psn_a);
        b.qp.to_rts(&self.machines[b.machine], psn_b);
    }

    /// Two machines, and a pair of queue pairs of a service between them.
    pub(super) fn pair(service: ServiceType) -> (Self, End, End) {
        let lab = Self::new(2);
        let config = QpConfig::new(service);
        let (a, b) = lab.connect((0, config), (1, config));
        (lab, a, b)
    }

    pub(super) fn machine(&self, end: &End) -> &Machine {
        &self.machines[end.machine]
    }
}

/// A queue pair with its CQs.
pub(super) struct End {
    pub(super) machine: usize,
    pub(super) qp: TestQp,
    pub(super) send: TestCq,
    pub(super) receive: TestCq,
}

impl End {
    /// What the next send completion says.
    pub(super) fn sent(&self, lab: &Lab) -> Done {
        lab.done(self.machine, &self.send)
    }

    /// What the next receive completion says.
    pub(super) fn received(&self, lab: &Lab) -> Done {
        lab.done(self.machine, &self.receive)
    }
}
