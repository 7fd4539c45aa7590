//! Tests of the whole fabric: adapters with the model's own agents, the switch, and the manager, which is
//! run by hand and by a clock of its own unless a test says otherwise.

mod adapter;
mod bring_up;
mod forwarding;
mod groups;
mod hostile;
mod paths;
mod records;
mod stress;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mlx4_wire::mad::portinfo::PortState;

use super::datagram::Datagram;
use super::packet::Packet;
use super::plug::Plug;
use super::sm::SmConfig;
use super::sm::manager::Manager;
use super::switch::Switch;
use super::{Endpoint, FabricConfig};
use adapter::Adapter;

/// GUID of the switch.
const SWITCH_GUID: u64 = 0x5000;

/// What arrives for the manager.
#[derive(Default)]
struct Collector(Mutex<VecDeque<Datagram>>);

impl Endpoint for Collector {
    fn receive(&self, packet: &Packet<'_>) {
        self.0.lock().unwrap().extend(Datagram::read(packet));
    }

    fn link_changed(&self, _: bool) {}
}

impl Collector {
    /// Puts a MAD before the manager that the switch wouldn't let through.
    fn receive_directly(&self, datagram: &Datagram) {
        self.0.lock().unwrap().push_back(*datagram);
    }
}

/// A switch and a manager whose clock the test holds.
struct Lab {
    switch: Arc<Switch>,
    collector: Arc<Collector>,
    manager: Manager,
    now: Duration,
    /// MADs that the manager sent.
    sent: u64,
}

impl Lab {
    fn new(config: SmConfig) -> Self {
        Self::with_fabric(&FabricConfig { subnet_manager: Some(config), ..FabricConfig::default() })
    }

    fn with_fabric(config: &FabricConfig) -> Self {
        let node = FabricConfig { switch_guid: SWITCH_GUID, ..config.clone() }.node();
        let config = config.subnet_manager.clone().unwrap_or_default();
        let switch = Arc::new(Switch::new(&node).unwrap());
        let collector = Arc::new(Collector::default());
        switch.set_manager(collector.clone());
        Self { switch, collector, manager: Manager::new(config), now: Duration::ZERO, sent: 0 }
    }

    /// A lab with adapters at ports 1, 2, ... that are ACTIVE.
    fn with_adapters(count: u8) -> (Self, Vec<Arc<Adapter>>) {
        let mut lab = Self::new(SmConfig::default());
        let adapters = (1..=count).map(|port| lab.plug(port)).collect();
        lab.settle();
        (lab, adapters)
    }

    /// Plugs an adapter into a port, polling. Its port GUID is 0x1001 at port 1, and so on.
    fn plug(&mut self, port: u8) -> Arc<Adapter> {
        self.plug_with_guid(port, 0x1000 * u64::from(port))
    }

    fn plug_with_guid(&mut self, port: u8, node_guid: u64) -> Arc<Adapter> {
        let adapter = Arc::new(Adapter::new(node_guid));
        let endpoint: Arc<dyn Endpoint> = adapter.clone();
        assert!(self.switch.plug_at(port, &endpoint));
        adapter.connect(Plug::new(self.switch.clone(), port, std::time::Duration::ZERO));
        adapter
    }

    /// Lets all that can happen without time going by happen.
    fn settle(&mut self) {
        self.manager.poll(self.now);
        loop {
            for datagram in self.manager.take_out() {
                self.sent += 1;
                self.switch.send_from_manager(&datagram);
            }
            let Some(datagram) = self.collector.0.lock().unwrap().pop_front() else { break };
            self.manager.receive(self.now, &datagram);
        }
        if self.manager.deadline().is_some_and(|at| at <= self.now) {
            self.settle();
        }
    }

    /// Lets time go by.
    fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        while let Some(at) = self.manager.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.settle();
        }
        self.now = end;
    }

    /// State of the switch's side of a link.
    fn state(&self, port: u8) -> PortState {
        self.switch.node().port(port).unwrap().state()
    }
}
