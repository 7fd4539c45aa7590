//! Sweeps: the switch is set up once, and its ports are looked at when it says that something changed.

use std::time::Duration;

use mlx4_wire::mad::attr::{GuidInfo, NodeDescription, NodeInfo, NodeType, PKeyTable, SwitchInfo};
use mlx4_wire::mad::header::Status;
use mlx4_wire::mad::portinfo::{PhysState, PortInfo, PortState};
use mlx4_wire::mad::smp::{Smp, SmpAttribute};
use mlx4_wire::{U16, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::bring_up::BringUp;
use super::lids::Lids;
use super::manager::{Manager, Purpose};
use super::requests::Question;
use super::subnet::End;
use super::tables::Tables;

/// Sweeps start no sooner after one another, however often something changes.
const SWEEP_GAP: Duration = Duration::from_millis(10);
/// Packets live in the switch for 4.096 µs × 2^n.
const SWITCH_LIFE_TIME: u8 = 18;

/// What a sweep asks of the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SweepAsk {
    NodeInfo,
    Description,
    SwitchInfo,
    Guids,
    PKeys,
    OwnPort,
    SetPKeys,
    SetOwnPort,
    /// SwitchInfo, to see whether a port changed.
    Look,
    /// SwitchInfo is set: the change is noted, and the tables' top.
    Acknowledge,
    /// PortInfo of an external port.
    Port(u8),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Between sweeps.
    #[default]
    Idle,
    /// The switch is asked who it is.
    Identify,
    /// The switch is asked for the rest.
    Inspect,
    /// The switch is told its LID.
    Configure,
    /// The switch is asked whether a port changed.
    Look,
    /// The ports are looked at.
    Survey,
}

/// Where the sweep stands.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    phase: Phase,
    pending: u32,
    failed: bool,
    started: Duration,
    /// When the next periodic sweep starts.
    periodic: Duration,
    /// When all ports are to be looked at, whatever the switch says.
    requested: Option<Duration>,
    /// Port 0, until it is set up.
    own: Option<End>,
    switch_info: Option<SwitchInfo>,
    /// The highest LID that the switch was told.
    told_top: u16,
}

impl Sweep {
    /// When the next sweep starts; while one runs its SMPs have deadlines of their own.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let requested = self.requested.map_or(self.periodic, |at| at.max(self.started + SWEEP_GAP));
        (self.phase == Phase::Idle).then_some(requested.min(self.periodic))
    }
}

impl Manager {
    /// Something changed, or may have after a pause: looks at all ports then.
    pub(super) fn request_sweep(&mut self, pause: Duration) {
        let at = self.now + pause;
        self.sweep.requested = Some(self.sweep.requested.map_or(at, |earlier| earlier.min(at)));
    }

    /// Starts a sweep if one is due.
    pub(super) fn poll_sweep(&mut self) {
        if self.sweep.deadline().is_none_or(|at| self.now < at) {
            return;
        }
        self.sweep.started = self.now;
        self.sweep.failed = false;
        self.tables.retry();
        if self.subnet.switch_info.is_none() {
            self.sweep.phase = Phase::Identify;
            self.ask_switch(Question::get(SmpAttribute::NODE_INFO, 0), SweepAsk::NodeInfo);
        } else if self.sweep.requested.take_if(|at| *at <= self.now).is_some() {
            self.survey();
        } else {
            self.sweep.phase = Phase::Look;
            self.ask_switch(Question::get(SmpAttribute::SWITCH_INFO, 0), SweepAsk::Look);
        }
    }

    /// Takes in an answer of the switch, or that there is none.
    pub(super) fn swept(&mut self, ask: SweepAsk, answer: Option<&Smp>) {
        self.sweep.pending = self.sweep.pending.saturating_sub(1);
        let Some(smp) = answer.filter(|smp| smp.status() == Status::GOOD || tolerates_error(ask)) else {
            log::debug!("the switch doesn't answer {ask:?}");
            self.sweep.failed = true;
            return;
        };
        match ask {
            SweepAsk::NodeInfo => self.sweep.own = Some(End::new(smp.attribute::<NodeInfo>())),
            SweepAsk::SwitchInfo => self.sweep.switch_info = Some(smp.attribute()),
            SweepAsk::Look => self.looked(&smp.attribute()),
            SweepAsk::Acknowledge => self.acknowledged(&smp.attribute()),
            SweepAsk::Port(port) => self.saw_port(port, &smp.attribute()),
            _ => self.own_answered(ask, smp),
        }
    }

    fn own_answered(&mut self, ask: SweepAsk, smp: &Smp) {
        let Some(own) = &mut self.sweep.own else { return };
        match ask {
            SweepAsk::Description => own.description = smp.attribute::<NodeDescription>(),
            SweepAsk::Guids => own.guids = smp.attribute::<GuidInfo>().guids.map(U64::get).to_vec(),
            SweepAsk::PKeys | SweepAsk::SetPKeys => {
                own.pkeys = smp.attribute::<PKeyTable>().p_keys.map(U16::get).to_vec();
            }
            _ => own.port_info = smp.attribute(),
        }
    }

    /// Goes to the next phase when all answers of this one are there.
    pub(super) fn advance_sweep(&mut self) {
        while self.sweep.phase != Phase::Idle && self.sweep.pending == 0 {
            if self.sweep.failed {
                self.end_sweep();
                return;
            }
            match self.sweep.phase {
                Phase::Identify => self.inspect_switch(),
                Phase::Inspect => self.configure_switch(),
                Phase::Configure => self.switch_is_set_up(),
                Phase::Look | Phase::Survey | Phase::Idle => self.end_sweep(),
            }
        }
        self.tell_top();
    }

    fn inspect_switch(&mut self) {
        let is_switch = |own: &End| own.node_info.node_type == NodeType::SWITCH && own.guid() != 0;
        if !self.sweep.own.as_ref().is_some_and(is_switch) {
            self.sweep.failed = true;
            return;
        }
        self.sweep.phase = Phase::Inspect;
        self.ask_switch(Question::get(SmpAttribute::NODE_DESCRIPTION, 0), SweepAsk::Description);
        self.ask_switch(Question::get(SmpAttribute::SWITCH_INFO, 0), SweepAsk::SwitchInfo);
        self.ask_switch(Question::get(SmpAttribute::GUID_INFO, 0), SweepAsk::Guids);
        self.ask_switch(Question::get(SmpAttribute::P_KEY_TABLE, 0), SweepAsk::PKeys);
        self.ask_switch(Question::get(SmpAttribute::PORT_INFO, 0), SweepAsk::OwnPort);
    }

    fn configure_switch(&mut self) {
        self.sweep.phase = Phase::Configure;
        let (Some(own), Some(switch_info)) = (&mut self.sweep.own, &self.sweep.switch_info) else {
            self.sweep.failed = true;
            return;
        };
        let num_ports = own.node_info.num_ports;
        self.lids = Lids::new(switch_info.linear_fdb_cap.get());
        self.tables = Tables::new(switch_info.multicast_fdb_cap.get(), num_ports);
        self.ports.resize_with(usize::from(num_ports) + 1, BringUp::default);
        self.subnet.ends.resize_with(usize::from(num_ports) + 1, || None);
        self.subnet.switch_ports.resize_with(usize::from(num_ports) + 1, PortInfo::new_zeroed);
        let Some(lid) = self.lids.assign(own.guid(), own.port_info.lid.get(), |_| true) else {
            self.sweep.failed = true;
            return;
        };
        own.lid = lid;
        let wanted = self.config.pkey_block(own.guid(), 0);
        let info = self.config.managed(&own.port_info, lid, lid);
        let has_pkeys = own.pkeys == wanted;
        self.tables.set_unicast(lid, Some(0));
        if !has_pkeys {
            let table = PKeyTable { p_keys: wanted.map(U16::new) };
            self.ask_switch(set(SmpAttribute::P_KEY_TABLE, 0, &table), SweepAsk::SetPKeys);
        }
        self.ask_switch(set(SmpAttribute::PORT_INFO, 0, &info), SweepAsk::SetOwnPort);
    }

    fn switch_is_set_up(&mut self) {
        let Some(own) = self.sweep.own.take() else {
            self.sweep.failed = true;
            return;
        };
        self.subnet.switch_info = self.sweep.switch_info;
        self.subnet.ends[0] = Some(own);
        self.administrator.subnet_is_up(&self.subnet, &self.config.partitions());
        self.survey();
    }

    fn looked(&mut self, info: &SwitchInfo) {
        self.sweep.switch_info = Some(*info);
        if info.life.port_state_change() {
            self.survey();
        }
    }

    /// Notes the change, so that one from here on counts as a new one, and then looks at all ports.
    fn survey(&mut self) {
        self.sweep.phase = Phase::Survey;
        self.acknowledge(true);
        for port in 1..self.ports.len() {
            let Ok(port) = u8::try_from(port) else { break };
            let question = Question::get(SmpAttribute::PORT_INFO, u32::from(port));
            self.ask_switch(question, SweepAsk::Port(port));
        }
    }

    fn acknowledge(&mut self, change: bool) {
        let Some(mut info) = self.sweep.switch_info else { return };
        info.linear_fdb_top = U16::new(self.tables.top());
        info.life = info.life.with_life_time_value(SWITCH_LIFE_TIME).with_port_state_change(change);
        self.sweep.told_top = self.tables.top();
        self.ask_switch(set(SmpAttribute::SWITCH_INFO, 0, &info), SweepAsk::Acknowledge);
    }

    fn acknowledged(&mut self, info: &SwitchInfo) {
        self.sweep.switch_info = Some(*info);
        self.subnet.switch_info = Some(*info);
    }

    /// Tells the switch the highest LID as soon as it rises.
    fn tell_top(&mut self) {
        if self.subnet.switch_info.is_some() && self.sweep.told_top != self.tables.top() {
            self.acknowledge(false);
        }
    }

    /// Whether the switch knows that the tables reach up to this LID.
    pub(super) fn top_reaches(&self, lid: u16) -> bool {
        self.subnet.switch_info.is_some_and(|info| info.linear_fdb_top.get() >= lid)
    }

    fn saw_port(&mut self, port: u8, info: &PortInfo) {
        let Some(known) = self.subnet.switch_ports.get_mut(usize::from(port)) else { return };
        *known = *info;
        let link = info.link;
        if link.port_physical_state() == PhysState::LINK_UP && link.port_state() >= PortState::INIT {
            self.port_is_up(port);
        } else {
            self.port_is_down(port);
        }
    }

    fn end_sweep(&mut self) {
        self.sweep.phase = Phase::Idle;
        self.sweep.periodic = self.now + self.config.sweep_interval;
    }

    fn ask_switch(&mut self, question: Question, ask: SweepAsk) {
        self.sweep.pending += 1;
        self.requests.ask(0, question, Purpose::Sweep(ask));
    }
}

/// Attributes that a switch may refuse without harm.
fn tolerates_error(ask: SweepAsk) -> bool {
    matches!(ask, SweepAsk::Guids | SweepAsk::PKeys | SweepAsk::SetPKeys)
}

/// A question that writes an attribute of any size up to 64 bytes.
pub(super) fn set<T: IntoBytes + zerocopy::Immutable>(
    attribute: SmpAttribute,
    modifier: u32,
    value: &T,
) -> Question {
    let mut data = [0; 64];
    let bytes = value.as_bytes();
    data[..bytes.len()].copy_from_slice(bytes);
    Question::set(attribute, modifier, data)
}
