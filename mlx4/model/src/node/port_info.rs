//! Set of PortInfo: which fields of which kind of port take a value, and the state transitions (IBTA vol. 1,
//! 14.2.5.6 and 7.2.7). A field with a value that isn't valid keeps its own; the others are set all the
//! same, and the response says "invalid value" and shows what holds now.

use mlx4_wire::mad::LID_MULTICAST_FIRST;
use mlx4_wire::mad::header::Status;
use mlx4_wire::mad::portinfo::{
    Mtu, PhysState, PortInfo, PortState as LogicalState, VlCap, link_speed, link_speed_ext, link_width,
};

use super::port::{self, PortKind, PortState};
use super::{LinkRequest, PortChanges};

impl PortState {
    /// Sets what the request asks for and the port has.
    pub(super) fn set_port_info(&self, request: &PortInfo, changes: &mut PortChanges) -> Status {
        let mut settings = self.settings();
        let was_active = settings.info.link.port_state() == LogicalState::ACTIVE;
        let mut setter =
            Setter { kind: self.kind(), info: &mut settings.info, request, changes, valid: true };
        setter.addresses();
        setter.keys();
        setter.link_parameters();
        setter.limits();
        setter.link_state();
        let valid = setter.valid;
        let active = settings.info.link.port_state() == LogicalState::ACTIVE;
        changes.became_active = active && !was_active;
        changes.left_active = was_active && !active;
        self.clear_violations(request);
        self.publish(&settings.info);
        if valid { Status::GOOD } else { Status::INVALID_VALUE }
    }

    /// A zero clears a counter of violations; anything else leaves it.
    fn clear_violations(&self, request: &PortInfo) {
        if self.kind().is_addressed() {
            if request.m_key_violations.get() == 0 {
                self.m_key_violations.clear();
            }
            if request.q_key_violations.get() == 0 {
                self.q_key_violations.clear();
            }
        }
        if request.p_key_violations.get() == 0 {
            self.p_key_violations.clear();
        }
    }
}

struct Setter<'a> {
    kind: PortKind,
    info: &'a mut PortInfo,
    request: &'a PortInfo,
    changes: &'a mut PortChanges,
    valid: bool,
}

impl Setter<'_> {
    /// Notes whether a value is valid.
    fn check(&mut self, valid: bool) -> bool {
        self.valid &= valid;
        valid
    }

    fn addresses(&mut self) {
        if !self.kind.is_addressed() {
            return;
        }
        let (info, request) = (&mut *self.info, self.request);
        self.changes.gid_prefix = info.gid_prefix != request.gid_prefix;
        info.gid_prefix = request.gid_prefix;

        if self.check(is_unicast(self.request.lid.get())) {
            // The base port 0 of a switch has one LID whatever the LMC.
            let lmc = if self.kind == PortKind::SwitchBase { 0 } else { self.request.link.lmc() };
            self.changes.lid = self.info.lid != self.request.lid || self.info.link.lmc() != lmc;
            self.info.lid = self.request.lid;
            self.info.link.set_lmc(lmc);
        }
        if self.check(is_unicast(self.request.master_sm_lid.get())) {
            let sl = self.request.lanes.master_sm_sl();
            self.changes.sm_lid = self.info.master_sm_lid != self.request.master_sm_lid;
            self.changes.sm_sl = self.info.lanes.master_sm_sl() != sl;
            self.info.master_sm_lid = self.request.master_sm_lid;
            self.info.lanes.set_master_sm_sl(sl);
        }
        let timeout = self.request.timeout;
        self.changes.client_reregister = timeout.client_reregister();
        self.info.timeout = timeout.with_client_reregister(false);
    }

    fn keys(&mut self) {
        if !self.kind.is_addressed() {
            return;
        }
        self.info.m_key = self.request.m_key;
        self.info.m_key_lease_period = self.request.m_key_lease_period;
        self.info.link.set_m_key_protect_bits(self.request.link.m_key_protect_bits());
    }

    /// What the next training of the link goes by.
    fn link_parameters(&mut self) {
        if !self.kind.has_link() {
            return;
        }
        let (info, request) = (&*self.info, self.request);
        let width = match request.link_width_enabled {
            link_width::NO_CHANGE => Some(info.link_width_enabled),
            link_width::SUPPORTED => Some(info.link_width_supported),
            width => subset(width, info.link_width_supported),
        };
        let speed = match request.link.link_speed_enabled() {
            link_speed::NO_CHANGE => Some(info.link.link_speed_enabled()),
            link_speed::SUPPORTED => Some(info.link.link_speed_supported()),
            speed => subset(speed, info.link.link_speed_supported()),
        };
        let extended = match request.extended_speed.link_speed_ext_enabled() {
            link_speed_ext::NO_CHANGE => Some(info.extended_speed.link_speed_ext_enabled()),
            link_speed_ext::DISABLE => Some(0),
            link_speed_ext::SUPPORTED => Some(info.extended_speed.link_speed_ext_supported()),
            speed => subset(speed, info.extended_speed.link_speed_ext_supported()),
        };
        let down_default = match request.link.link_down_default_state() {
            PhysState::NO_CHANGE => Some(info.link.link_down_default_state()),
            state @ (PhysState::SLEEP | PhysState::POLLING) => Some(state),
            _ => None,
        };
        self.check(width.is_some() && speed.is_some() && extended.is_some() && down_default.is_some());
        let info = &mut *self.info;
        if let Some(width) = width {
            info.link_width_enabled = width;
        }
        if let Some(speed) = speed {
            info.link.set_link_speed_enabled(speed);
        }
        if let Some(extended) = extended {
            info.extended_speed.set_link_speed_ext_enabled(extended);
        }
        if let Some(state) = down_default {
            info.link.set_link_down_default_state(state);
        }
    }

    fn limits(&mut self) {
        if self.kind == PortKind::SwitchBase {
            return;
        }
        let request = self.request;
        let mtu = request.lanes.neighbor_mtu();
        if self.check(mtu >= Mtu::B256 && mtu <= self.info.limits.mtu_cap()) {
            self.info.lanes.set_neighbor_mtu(mtu);
        }
        let vls = request.limits.operational_vls();
        if self.check(vls <= self.info.lanes.vl_cap()) && vls != VlCap::NO_CHANGE {
            self.info.limits.set_operational_vls(vls);
        }
        self.info.lanes.set_vl_high_limit(request.lanes.vl_high_limit());
        self.info.thresholds.set_local_phy_errors(request.thresholds.local_phy_errors());
        self.info.thresholds.set_overrun_errors(request.thresholds.overrun_errors());
        if self.kind == PortKind::SwitchExternal {
            let (info, request) = (&mut self.info.limits, request.limits);
            info.set_vl_stall_count(request.vl_stall_count());
            info.set_hoq_life(request.hoq_life());
            info.set_partition_enforcement_inbound(request.partition_enforcement_inbound());
            info.set_partition_enforcement_outbound(request.partition_enforcement_outbound());
        }
    }

    /// The link's state, last: the other parameters hold for the state that is entered.
    fn link_state(&mut self) {
        if self.kind == PortKind::SwitchBase {
            return;
        }
        let state = self.request.link.port_state();
        let phys_state = self.request.link.port_physical_state();
        match state {
            LogicalState::NO_CHANGE if phys_state == PhysState::NO_CHANGE => {}
            LogicalState::NO_CHANGE | LogicalState::DOWN => self.bring_down(phys_state),
            LogicalState::ARMED => self.advance(LogicalState::INIT, LogicalState::ARMED, phys_state),
            LogicalState::ACTIVE => self.advance(LogicalState::ARMED, LogicalState::ACTIVE, phys_state),
            _ => self.valid = false,
        }
    }

    fn advance(&mut self, from: LogicalState, to: LogicalState, phys_state: PhysState) {
        if self.check(self.info.link.port_state() == from && phys_state == PhysState::NO_CHANGE) {
            self.info.link.set_port_state(to);
        }
    }

    /// The link goes down, to come up again by itself unless it is to be disabled. Sleeping ports wake up
    /// when the far end trains, so that sleep differs from polling only without a far end.
    fn bring_down(&mut self, phys_state: PhysState) {
        let next = match phys_state {
            PhysState::NO_CHANGE => self.info.link.link_down_default_state(),
            PhysState::SLEEP | PhysState::POLLING | PhysState::DISABLED => phys_state,
            _ => PhysState::NO_CHANGE,
        };
        if !self.check(self.kind.has_link() && next != PhysState::NO_CHANGE) {
            return;
        }
        let was_up = self.info.link.port_physical_state() == PhysState::LINK_UP;
        port::go_down(self.info, next);
        if next == PhysState::DISABLED {
            self.changes.link = Some(LinkRequest::Stop);
            return;
        }
        self.changes.link = Some(LinkRequest::Retrain);
        if was_up {
            port::train(self.info);
        }
    }
}

fn is_unicast(lid: u16) -> bool {
    (1..LID_MULTICAST_FIRST).contains(&lid)
}

fn subset(value: u8, supported: u8) -> Option<u8> {
    (value & !supported == 0).then_some(value)
}
