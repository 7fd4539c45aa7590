//! The subnet manager as a state machine: (time, MAD that came in) -> MADs to send.
//!
//! It knows no threads and no clock: time is the time since it started, as its caller tells it. What it
//! does is spread over its neighbours: [`super::sweep`] finds changes, [`super::bring_up`] takes each port
//! from INIT to ACTIVE, [`super::notices`] answers what others ask of a manager.

use std::time::Duration;

use mlx4_wire::mad::header::Method;
use mlx4_wire::mad::smp::Smp;

use super::SmConfig;
use super::bring_up::{BringUp, PortAsk};
use super::lids::Lids;
use super::requests::Requests;
use super::subnet::Subnet;
use super::sweep::{Sweep, SweepAsk};
use super::tables::{Block, Tables};
use crate::fabric::datagram::Datagram;
use crate::fabric::sa::Administrator;

/// Requests that are kept until their port is ACTIVE.
const MAX_HELD: usize = 64;

/// What an SMP of the manager is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// The switch itself, and the state of its ports.
    Sweep(SweepAsk),
    /// The node behind a port, or the switch's side of that port. Outlived if the epoch isn't current.
    Port { port: u8, epoch: u32, ask: PortAsk },
    /// A block of a forwarding table.
    Table(Block),
}

/// The subnet manager, with the administrator.
pub(crate) struct Manager {
    pub(super) config: SmConfig,
    pub(super) now: Duration,
    pub(super) requests: Requests<Purpose>,
    pub(super) subnet: Subnet,
    pub(super) lids: Lids,
    pub(super) tables: Tables,
    pub(super) sweep: Sweep,
    /// By port of the switch; index 0 isn't used.
    pub(super) ports: Vec<BringUp>,
    pub(super) administrator: Administrator,
    pub(super) act_count: u32,
    /// Requests to the administrator from ports that are about to be ACTIVE, with the switch's port.
    held: Vec<(u8, Datagram)>,
    pub(super) out: Vec<Datagram>,
}

impl Manager {
    /// A manager that knows nothing of its subnet yet.
    pub(crate) fn new(config: SmConfig) -> Self {
        Self {
            now: Duration::ZERO,
            requests: Requests::new(config.smp_timeout, config.smp_tries),
            subnet: Subnet { gid_prefix: config.gid_prefix, priority: config.priority, ..Subnet::default() },
            lids: Lids::new(0),
            tables: Tables::default(),
            sweep: Sweep::default(),
            ports: Vec::new(),
            administrator: Administrator::new(config.subnet_timeout.min(0x1f)),
            act_count: 0,
            held: Vec::new(),
            out: Vec::new(),
            config,
        }
    }

    /// Takes in a MAD; answers and more come out of [`take_out`](Self::take_out).
    pub(crate) fn receive(&mut self, now: Duration, datagram: &Datagram) {
        self.set_time(now);
        if datagram.headers.vl15 {
            self.receive_smp(datagram);
        } else {
            self.receive_request(datagram);
        }
        self.settle();
    }

    /// Does what is due by now.
    pub(crate) fn poll(&mut self, now: Duration) {
        self.set_time(now);
        let out = &mut self.out;
        for purpose in self.requests.expire(now, |smp| out.push(Datagram::directed(smp.to_mad()))) {
            self.take_in(purpose, None);
        }
        self.poll_sweep();
        self.administrator.poll();
        self.settle();
    }

    /// When [`poll`](Self::poll) has something to do next.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        [self.requests.deadline(), self.sweep.deadline(), self.administrator.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The MADs to send, in order.
    pub(crate) fn take_out(&mut self) -> Vec<Datagram> {
        std::mem::take(&mut self.out)
    }

    /// What is known of the subnet.
    #[cfg(test)]
    pub(crate) fn subnet(&self) -> &Subnet {
        &self.subnet
    }

    fn set_time(&mut self, now: Duration) {
        self.now = now;
        self.administrator.set_time(now);
    }

    fn receive_smp(&mut self, datagram: &Datagram) {
        let smp = Smp::from_mad(&datagram.mad);
        match smp.header.method {
            Method::GET_RESP => {
                if let Some((_, purpose)) = self.requests.answered(&smp) {
                    self.take_in(purpose, Some(&smp));
                }
            }
            Method::TRAP => self.take_trap(datagram, &smp),
            Method::GET | Method::SET => self.answer_sm_info(datagram, smp),
            _ => (),
        }
    }

    /// A node asks as soon as it is ACTIVE, which may be before its answer to the SMP that made it so.
    fn receive_request(&mut self, datagram: &Datagram) {
        let slid = datagram.headers.slid;
        if self.subnet.by_lid(slid).is_some() {
            self.administrator.receive(&self.subnet, datagram);
        } else if let Some(port) = self.coming_port(slid).filter(|_| self.held.len() < MAX_HELD) {
            self.held.push((port, *datagram));
        }
    }

    /// Hands on the requests of a port that came up, or drops those of one that didn't.
    pub(super) fn release_held(&mut self, port: u8) {
        for (from, datagram) in std::mem::take(&mut self.held) {
            if from != port {
                self.held.push((from, datagram));
            } else if self.subnet.end(port).is_some() {
                self.administrator.receive(&self.subnet, &datagram);
            }
        }
    }

    /// Takes in the answer to an SMP of ours, or that there is none.
    fn take_in(&mut self, purpose: Purpose, answer: Option<&Smp>) {
        match purpose {
            Purpose::Sweep(ask) => self.swept(ask, answer),
            Purpose::Port { port, epoch, ask } => {
                if self.ports.get(usize::from(port)).is_some_and(|bring_up| bring_up.epoch == epoch) {
                    self.port_answered(port, ask, answer);
                }
            }
            Purpose::Table(block) => {
                let accepted = answer.is_some_and(|smp| smp.status() == mlx4_wire::mad::header::Status::GOOD);
                self.tables.finish(block, accepted);
            }
        }
    }

    /// Brings everything as far as it comes without another answer; SMPs go out before other MADs, so that
    /// who has joined a group is in the tables before hearing of it.
    fn settle(&mut self) {
        self.advance_sweep();
        self.advance_ports();
        self.administrator.report_groups(&self.subnet);
        self.write_guids();
        for mlid in self.administrator.take_changed_groups() {
            let ports = self.administrator.ports_of(mlid, &self.subnet);
            self.tables.set_multicast(mlid, ports);
        }
        for (block, question) in self.tables.take_dirty() {
            self.requests.ask(0, question, Purpose::Table(block));
        }
        let out = &mut self.out;
        self.requests.flush(self.now, |smp| out.push(Datagram::directed(smp.to_mad())));
        self.out.append(&mut self.administrator.take_out());
    }
}
