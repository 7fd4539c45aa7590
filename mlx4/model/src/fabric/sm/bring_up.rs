//! One port of the switch and the node behind it, from INIT to ACTIVE (IBTA vol. 1, 14.4).
//!
//! Each port goes its way alone, so a node that doesn't answer keeps nobody else from coming up. It stays
//! in INIT itself, and is asked again from time to time.

use std::time::Duration;

use mlx4_wire::U16;
use mlx4_wire::mad::attr::{NodeDescription, NodeInfo, NodeType, PKeyTable};
use mlx4_wire::mad::header::Status;
use mlx4_wire::mad::portinfo::{PortInfo, PortState};
use mlx4_wire::mad::smp::{Smp, SmpAttribute};

use super::manager::{Manager, Purpose};
use super::requests::Question;
use super::subnet::End;
use super::sweep::set;

/// P_Key table entries in a block.
const PKEYS_PER_BLOCK: usize = 32;
/// P_Key table entries of a node that are managed.
const MAX_PKEYS: usize = 256;
/// The first pause before a node is asked again; each one is twice as long, up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// What is asked about a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortAsk {
    NodeInfo,
    PortInfo,
    PKeys(u16),
    SetPKeys(u16),
    /// P_Keys that the switch's side lets pass.
    SetPKeysHere,
    /// PortInfo of the node: LID and all else that doesn't change the state.
    Configure,
    /// PortInfo of the switch's side, likewise.
    ConfigureHere,
    Arm,
    ArmHere,
    Activate,
    ActivateHere,
    // What follows is asked of a port that is up; nothing waits for it.
    /// NodeInfo once more: whether it is still the same node.
    Verify,
    Description,
    Guids(u8),
    SetGuids(u8),
    /// PortInfo once more.
    Refresh,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Down,
    Identify,
    Inspect,
    Configure,
    Arm,
    ActivateHere,
    Activate,
    Active,
    /// Didn't come up; a later sweep tries again.
    Failed,
}

/// Where a port stands.
#[derive(Debug, Default)]
pub(super) struct BringUp {
    stage: Stage,
    /// Answers to questions of an earlier epoch are void.
    pub(super) epoch: u32,
    pending: u32,
    failed: bool,
    /// A change was seen on the way: the node is asked once more who it is.
    recheck: bool,
    pause: Duration,
    end: Option<End>,
    here: Option<PortInfo>,
}

impl BringUp {
    fn state_here(&self) -> PortState {
        self.here.map_or(PortState::DOWN, |info| info.link.port_state())
    }

    fn state_there(&self) -> PortState {
        self.end.as_ref().map_or(PortState::DOWN, |end| end.port_info.link.port_state())
    }
}

impl Manager {
    /// A sweep found a link at the port.
    pub(super) fn port_is_up(&mut self, port: u8) {
        let Some(&here) = self.subnet.switch_ports.get(usize::from(port)) else { return };
        let Some(bring_up) = self.ports.get_mut(usize::from(port)) else { return };
        let bounced = here.link.port_state() < PortState::ARMED;
        match bring_up.stage {
            Stage::Active if !bounced => (),
            Stage::Identify | Stage::Inspect | Stage::Configure | Stage::Arm => bring_up.recheck = true,
            Stage::ActivateHere | Stage::Activate if !bounced => bring_up.recheck = true,
            _ => self.start_port(port),
        }
    }

    /// A sweep found no link at the port.
    pub(super) fn port_is_down(&mut self, port: u8) {
        let Some(bring_up) = self.ports.get_mut(usize::from(port)) else { return };
        if bring_up.stage == Stage::Down {
            return;
        }
        bring_up.stage = Stage::Down;
        bring_up.pause = Duration::ZERO;
        self.requests.be_impatient(port);
        self.reset_port(port);
    }

    /// Takes in an answer about a port, or that there is none.
    pub(super) fn port_answered(&mut self, port: u8, ask: PortAsk, answer: Option<&Smp>) {
        if self.ports[usize::from(port)].stage == Stage::Active {
            self.active_port_answered(port, ask, answer);
            return;
        }
        let bring_up = &mut self.ports[usize::from(port)];
        bring_up.pending = bring_up.pending.saturating_sub(1);
        let accepted =
            answer.is_some_and(|smp| bring_up.accept(ask, smp, &mut self.subnet.switch_ports, port));
        if !accepted {
            log::debug!("port {port}: {ask:?} failed: {:?}", answer.map(Smp::status));
            bring_up.failed = true;
        }
    }

    /// Moves every port on that isn't waiting for an answer.
    pub(super) fn advance_ports(&mut self) {
        for port in 1..=u8::MAX {
            if usize::from(port) >= self.ports.len() {
                return;
            }
            self.advance_port(port);
        }
    }

    /// The port on its way up that has been given this LID.
    pub(super) fn coming_port(&self, lid: u16) -> Option<u8> {
        let has_lid =
            |bring_up: &BringUp| bring_up.end.as_ref().is_some_and(|end| end.lid == lid && lid != 0);
        self.ports.iter().position(has_lid).and_then(|port| u8::try_from(port).ok())
    }

    /// Reads again what a node says of itself: it has changed.
    pub(super) fn refresh_port(&mut self, port: u8) {
        let Some(end) = self.subnet.end(port) else { return };
        let number = end.node_info.local_port_vendor.local_port_num();
        self.ask_port(port, port, Question::get(SmpAttribute::NODE_DESCRIPTION, 0), PortAsk::Description);
        self.ask_port(port, port, Question::get(SmpAttribute::PORT_INFO, number), PortAsk::Refresh);
    }

    fn start_port(&mut self, port: u8) {
        self.reset_port(port);
        let bring_up = &mut self.ports[usize::from(port)];
        bring_up.stage = Stage::Identify;
        bring_up.here = self.subnet.switch_ports.get(usize::from(port)).copied();
        self.ask_port(port, port, Question::get(SmpAttribute::NODE_INFO, 0), PortAsk::NodeInfo);
    }

    /// Forgets what is under way, and the node if there was one.
    fn reset_port(&mut self, port: u8) {
        let bring_up = &mut self.ports[usize::from(port)];
        bring_up.epoch = bring_up.epoch.wrapping_add(1);
        bring_up.pending = 0;
        bring_up.failed = false;
        bring_up.recheck = false;
        let unfinished = bring_up.end.take();
        self.requests.forget(port);
        let gone = self.subnet.ends.get_mut(usize::from(port)).and_then(Option::take);
        if let Some(end) = &gone {
            self.administrator.port_is_gone(port, end, &self.subnet);
        }
        if let Some(end) = gone.or(unfinished).filter(|end| end.lid != 0) {
            self.tables.set_unicast(end.lid, None);
        }
        self.release_held(port);
    }

    fn advance_port(&mut self, port: u8) {
        loop {
            let bring_up = &mut self.ports[usize::from(port)];
            let resting = matches!(bring_up.stage, Stage::Down | Stage::Active | Stage::Failed);
            if resting || bring_up.pending != 0 {
                return;
            }
            if bring_up.failed {
                self.fail_port(port);
                return;
            }
            let stage = bring_up.stage;
            let next = match stage {
                Stage::Identify => self.inspect(port),
                Stage::Inspect => self.configure(port),
                Stage::Configure if !self.is_routed(port) => return,
                Stage::Configure => self.arm(port),
                Stage::Arm => self.activate_here(port),
                Stage::ActivateHere => self.activate(port),
                _ => self.finish(port),
            };
            match next {
                Some(stage) => self.ports[usize::from(port)].stage = stage,
                None => self.ports[usize::from(port)].failed = true,
            }
        }
    }

    fn fail_port(&mut self, port: u8) {
        self.reset_port(port);
        let bring_up = &mut self.ports[usize::from(port)];
        let pause = (2 * bring_up.pause).clamp(FIRST_PAUSE, LAST_PAUSE);
        bring_up.pause = pause;
        bring_up.stage = Stage::Failed;
        self.requests.be_patient(port);
        self.request_sweep(pause);
    }

    fn inspect(&mut self, port: u8) -> Option<Stage> {
        let info = self.ports[usize::from(port)].end.as_ref()?.node_info;
        let guid = info.port_guid.get();
        let number = info.local_port_vendor.local_port_num();
        let is_adapter = info.node_type == NodeType::CHANNEL_ADAPTER;
        if !is_adapter || guid == 0 || number == 0 || number > u32::from(info.num_ports) {
            log::debug!("port {port}: not a channel adapter's port: {info:?}");
            return None;
        }
        if self.is_taken(port, guid) {
            log::debug!("port {port}: GUID {guid:016x} is at another port, too");
            return None;
        }
        self.ask_port(port, port, Question::get(SmpAttribute::PORT_INFO, number), PortAsk::PortInfo);
        for block in 0..pkey_blocks(&info) {
            let question = Question::get(SmpAttribute::P_KEY_TABLE, u32::from(block));
            self.ask_port(port, port, question, PortAsk::PKeys(block));
        }
        Some(Stage::Inspect)
    }

    fn configure(&mut self, port: u8) -> Option<Stage> {
        let at = usize::from(port);
        let (end, here) = (self.ports[at].end.as_ref()?.clone(), self.ports[at].here?);
        let guid = end.guid();
        let (ports, own) = (&self.ports, self.subnet.end(0).map(End::guid));
        let present = |other| {
            own == Some(other)
                || ports.iter().any(|port| port.end.as_ref().is_some_and(|end| end.guid() == other))
                || self.subnet.by_guid(other).is_some()
        };
        let lid = self.lids.assign(guid, end.port_info.lid.get(), present)?;
        self.tables.set_unicast(lid, Some(port));
        if let Some(end) = &mut self.ports[at].end {
            end.lid = lid;
        }
        for (block, known) in (0..pkey_blocks(&end.node_info)).zip(end.pkeys.chunks(PKEYS_PER_BLOCK)) {
            let wanted = self.config.pkey_block(guid, block);
            if known != wanted {
                let table = PKeyTable { p_keys: wanted.map(U16::new) };
                let question = set(SmpAttribute::P_KEY_TABLE, u32::from(block), &table);
                self.ask_port(port, port, question, PortAsk::SetPKeys(block));
            }
        }
        let mut there = self.config.managed(&end.port_info, lid, self.subnet.manager_lid());
        let mut here_wanted = self.config.managed(&here, 0, 0);
        if self.states(port) == (PortState::INIT, PortState::INIT) {
            share_link_parameters(&mut there, &mut here_wanted);
        }
        there.timeout = there.timeout.with_client_reregister(there.capability_mask.client_reregistration());
        self.enforce_partitions(port, guid, &mut here_wanted);
        let number = end.node_info.local_port_vendor.local_port_num();
        self.ask_port(port, port, set(SmpAttribute::PORT_INFO, number, &there), PortAsk::Configure);
        let question = set(SmpAttribute::PORT_INFO, u32::from(port), &here_wanted);
        self.ask_port(port, 0, question, PortAsk::ConfigureHere);
        Some(Stage::Configure)
    }

    /// Has the switch drop packets of partitions that the port isn't in, if it can.
    fn enforce_partitions(&mut self, port: u8, guid: u64, here: &mut PortInfo) {
        let entries = self.subnet.switch_info.map_or(0, |info| info.partition_enforcement_cap.get());
        let enforced = entries != 0 && self.config.pkey_count(guid) <= usize::from(entries);
        here.limits.set_partition_enforcement_inbound(enforced);
        here.limits.set_partition_enforcement_outbound(enforced);
        let blocks = if enforced { usize::from(entries).min(MAX_PKEYS).div_ceil(PKEYS_PER_BLOCK) } else { 0 };
        for block in 0..u16::try_from(blocks).unwrap_or(0) {
            let table = PKeyTable { p_keys: self.config.pkey_block(guid, block).map(U16::new) };
            let modifier = u32::from(port) << 16 | u32::from(block);
            let question = set(SmpAttribute::P_KEY_TABLE, modifier, &table);
            self.ask_port(port, 0, question, PortAsk::SetPKeysHere);
        }
    }

    fn is_routed(&self, port: u8) -> bool {
        let lid = self.ports[usize::from(port)].end.as_ref().map_or(0, |end| end.lid);
        self.tables.routes(lid) && self.top_reaches(lid)
    }

    fn arm(&mut self, port: u8) -> Option<Stage> {
        let (here, there) = self.states(port);
        if here == PortState::INIT {
            self.set_state(port, PortState::ARMED, PortAsk::ArmHere)?;
        }
        if there == PortState::INIT {
            self.set_state(port, PortState::ARMED, PortAsk::Arm)?;
        }
        Some(Stage::Arm)
    }

    /// The switch's side first: it must forward as soon as the node sends.
    fn activate_here(&mut self, port: u8) -> Option<Stage> {
        if self.states(port).0 != PortState::ACTIVE {
            self.set_state(port, PortState::ACTIVE, PortAsk::ActivateHere)?;
        }
        Some(Stage::ActivateHere)
    }

    fn activate(&mut self, port: u8) -> Option<Stage> {
        if self.states(port).1 != PortState::ACTIVE {
            self.set_state(port, PortState::ACTIVE, PortAsk::Activate)?;
        }
        Some(Stage::Activate)
    }

    fn finish(&mut self, port: u8) -> Option<Stage> {
        let bring_up = &mut self.ports[usize::from(port)];
        let end = bring_up.end.take()?;
        bring_up.pause = Duration::ZERO;
        bring_up.stage = Stage::Active;
        self.requests.be_impatient(port);
        let recheck = std::mem::take(&mut bring_up.recheck);
        log::debug!("port {port}: GUID {:016x} is ACTIVE with LID {}", end.guid(), end.lid);
        let blocks = end.port_info.guid_cap.div_ceil(8);
        self.subnet.ends[usize::from(port)] = Some(end);
        self.administrator.port_is_up(port, &self.subnet);
        self.release_held(port);
        self.ask_port(port, port, Question::get(SmpAttribute::NODE_DESCRIPTION, 0), PortAsk::Description);
        for block in 0..blocks {
            let question = Question::get(SmpAttribute::GUID_INFO, u32::from(block));
            self.ask_port(port, port, question, PortAsk::Guids(block));
        }
        if recheck {
            self.ask_port(port, port, Question::get(SmpAttribute::NODE_INFO, 0), PortAsk::Verify);
        }
        Some(Stage::Active)
    }

    fn active_port_answered(&mut self, port: u8, ask: PortAsk, answer: Option<&Smp>) {
        let good = answer.filter(|smp| smp.status() == Status::GOOD);
        let Some(end) = self.subnet.ends.get_mut(usize::from(port)).and_then(Option::as_mut) else { return };
        match (ask, good) {
            (PortAsk::Verify, good) => {
                let guid = good.map(|smp| smp.attribute::<NodeInfo>().port_guid);
                if guid != Some(end.node_info.port_guid) {
                    self.start_port(port);
                }
            }
            (PortAsk::Description, Some(smp)) => end.description = smp.attribute::<NodeDescription>(),
            (PortAsk::Refresh, Some(smp)) => end.port_info = smp.attribute::<PortInfo>(),
            (PortAsk::Guids(block), Some(smp)) => self.learn_guids(port, block, &smp.attribute()),
            (PortAsk::SetGuids(block), good) => self.guids_written(port, block, good),
            _ => (),
        }
    }

    /// Whether the GUID belongs to another port that is up or on its way.
    fn is_taken(&self, port: u8, guid: u64) -> bool {
        let known = self.subnet.iter().any(|(other, end)| other != port && end.guid() == guid);
        let coming = |(other, bring_up): (usize, &BringUp)| {
            other != usize::from(port) && bring_up.end.as_ref().is_some_and(|end| end.guid() == guid)
        };
        known || self.ports.iter().enumerate().any(coming)
    }

    fn states(&self, port: u8) -> (PortState, PortState) {
        let bring_up = &self.ports[usize::from(port)];
        (bring_up.state_here(), bring_up.state_there())
    }

    fn set_state(&mut self, port: u8, state: PortState, ask: PortAsk) -> Option<()> {
        let bring_up = &self.ports[usize::from(port)];
        let end = bring_up.end.as_ref()?;
        let here = matches!(ask, PortAsk::ArmHere | PortAsk::ActivateHere);
        let (path, number, info, lid, sm_lid) = if here {
            (0, u32::from(port), bring_up.here?, 0, 0)
        } else {
            let number = end.node_info.local_port_vendor.local_port_num();
            (port, number, end.port_info, end.lid, self.subnet.manager_lid())
        };
        let mut wanted = self.config.managed(&info, lid, sm_lid);
        wanted.link.set_port_state(state);
        self.ask_port(port, path, set(SmpAttribute::PORT_INFO, number, &wanted), ask);
        Some(())
    }

    pub(super) fn ask_port(&mut self, port: u8, path: u8, question: Question, ask: PortAsk) {
        let bring_up = &mut self.ports[usize::from(port)];
        bring_up.pending += 1;
        let epoch = bring_up.epoch;
        self.requests.ask(path, question, Purpose::Port { port, epoch, ask });
    }
}

impl BringUp {
    /// Takes in an answer on the way up. False if the port can't come up with it.
    fn accept(&mut self, ask: PortAsk, smp: &Smp, switch_ports: &mut [PortInfo], port: u8) -> bool {
        let good = smp.status() == Status::GOOD;
        match ask {
            PortAsk::NodeInfo if good => self.end = Some(End::new(smp.attribute())),
            PortAsk::PKeys(block) | PortAsk::SetPKeys(block) if good => {
                let Some(end) = &mut self.end else { return false };
                store(&mut end.pkeys, usize::from(block), &smp.attribute::<PKeyTable>().p_keys.map(U16::get));
            }
            PortAsk::SetPKeysHere if good => (),
            PortAsk::PortInfo if good => self.take_there(smp),
            PortAsk::Configure if good => {
                self.take_there(smp);
                return self.end.as_ref().is_some_and(|end| end.port_info.lid.get() == end.lid);
            }
            PortAsk::ConfigureHere if good => self.take_here(smp, switch_ports, port),
            PortAsk::Arm => {
                self.take_there(smp);
                return self.state_there() >= PortState::ARMED;
            }
            PortAsk::Activate => {
                self.take_there(smp);
                return self.state_there() == PortState::ACTIVE;
            }
            PortAsk::ArmHere => {
                self.take_here(smp, switch_ports, port);
                return self.state_here() >= PortState::ARMED;
            }
            PortAsk::ActivateHere => {
                self.take_here(smp, switch_ports, port);
                return self.state_here() == PortState::ACTIVE;
            }
            _ => return false,
        }
        true
    }

    fn take_there(&mut self, smp: &Smp) {
        if let Some(end) = &mut self.end {
            end.port_info = smp.attribute();
        }
    }

    fn take_here(&mut self, smp: &Smp, switch_ports: &mut [PortInfo], port: u8) {
        let info = smp.attribute();
        self.here = Some(info);
        if let Some(known) = switch_ports.get_mut(usize::from(port)) {
            *known = info;
        }
    }
}

/// P_Key blocks that are managed.
fn pkey_blocks(info: &NodeInfo) -> u16 {
    let entries = usize::from(info.partition_cap.get()).min(MAX_PKEYS);
    u16::try_from(entries.div_ceil(PKEYS_PER_BLOCK)).unwrap_or(0)
}

/// Stores a block of a table that grows as its blocks come in.
fn store(table: &mut Vec<u16>, block: usize, values: &[u16; PKEYS_PER_BLOCK]) {
    let from = block * PKEYS_PER_BLOCK;
    if table.len() < from + PKEYS_PER_BLOCK {
        table.resize(from + PKEYS_PER_BLOCK, 0);
    }
    table[from..from + PKEYS_PER_BLOCK].copy_from_slice(values);
}

/// Gives both ends of a link the largest MTU and the most lanes that both can do; may be done in INIT only.
fn share_link_parameters(there: &mut PortInfo, here: &mut PortInfo) {
    let mtu = there.limits.mtu_cap().min(here.limits.mtu_cap());
    let vls = there.lanes.vl_cap().min(here.lanes.vl_cap());
    for info in [there, here] {
        info.lanes.set_neighbor_mtu(mtu);
        info.limits.set_operational_vls(vls);
    }
}
