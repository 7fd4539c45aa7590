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
        let mut setter = Setter {
            kind: self.kind(),
            enforces_partitions: self.kind() == PortKind::SwitchExternal && self.pkey_count() != 0,
            info: &mut settings.info,
            request,
            changes,
            valid: true,
        };
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
    enforces_partitions: bool,
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
            let enforces = self.enforces_partitions;
            info.set_partition_enforcement_inbound(enforces && request.partition_enforcement_inbound());
            info.set_partition_enforcement_outbound(enforces && request.partition_enforcement_outbound());
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

#[cfg(test)]
mod tests {
    use mlx4_wire::mad::header::Method;
    use mlx4_wire::mad::smp::SmpAttribute;
    use zerocopy::FromZeros;

    use super::super::testing::{active_ca, ask, ca, port_info, set, set_ok, smp, switch};
    use super::super::{LinkEffect, NodeState};
    use super::*;

    fn state(node: &NodeState, port: u8) -> LogicalState {
        node.port(port).expect("port").state()
    }

    fn shown(node: &NodeState, port: u8) -> PortInfo {
        ask(node, port, &smp(Method::GET, SmpAttribute::PORT_INFO, 0)).attribute()
    }

    #[test]
    fn port_info_of_a_new_port_is_a_connectx3_without_a_cable() {
        let info = shown(&ca(), 1);
        assert_eq!(info.capability_mask.into_bits().get(), 0x0251_4868);
        assert_eq!(info.link.port_state(), LogicalState::DOWN);
        assert_eq!(info.link.port_physical_state(), PhysState::POLLING);
        assert_eq!((info.link_width_supported, info.link.link_speed_supported()), (3, 7));
        assert_eq!(info.extended_speed.link_speed_ext_supported(), link_speed_ext::FDR);
        assert_eq!(info.limits.mtu_cap(), Mtu::B4096);
        assert_eq!(info.lanes.vl_cap(), VlCap::VL0_7);
        assert_eq!((info.guid_cap, info.local_port_num, info.lid.get()), (128, 1, 0));
        assert_eq!(info.gid_prefix.get(), 0xfe80_0000_0000_0000);
    }

    #[test]
    fn link_comes_up_in_init_at_full_speed() {
        let node = ca();
        assert_eq!(node.link_up(1), LinkEffect { changed: true, left_active: false });
        assert_eq!(node.link_up(1), LinkEffect::default());
        let info = shown(&node, 1);
        assert_eq!(info.link.port_state(), LogicalState::INIT);
        assert_eq!(info.link.port_physical_state(), PhysState::LINK_UP);
        assert_eq!(info.link_width_active, link_width::X4);
        assert_eq!((info.link.link_speed_active(), info.extended_speed.link_speed_ext_active()), (4, 1));
        assert_eq!(info.lanes.neighbor_mtu(), Mtu::B4096);
        assert_eq!(info.limits.operational_vls(), VlCap::VL0_7);
    }

    #[test]
    fn port_goes_from_init_over_armed_to_active_only() {
        let node = ca();
        let refused = |to| {
            let before = state(&node, 1);
            assert_eq!(set(&node, 1, &port_info(to)).0.status(), Status::INVALID_VALUE, "{before} to {to}");
            assert_eq!(state(&node, 1), before);
        };
        refused(LogicalState::ARMED);
        node.link_up(1);
        refused(LogicalState::INIT);
        refused(LogicalState::ACTIVE);
        assert!(!set_ok(&node, 1, &port_info(LogicalState::ARMED)).became_active);
        refused(LogicalState::ARMED);
        refused(LogicalState::INIT);
        assert!(set_ok(&node, 1, &port_info(LogicalState::ACTIVE)).became_active);
        refused(LogicalState::ACTIVE);
        refused(LogicalState::ARMED);
        refused(LogicalState::ACTIVE_DEFER);
        assert_eq!(state(&node, 1), LogicalState::ACTIVE);
    }

    #[test]
    fn no_change_leaves_the_state_and_sets_the_rest() {
        let node = ca();
        node.link_up(1);
        let changes = set_ok(&node, 1, &port_info(LogicalState::NO_CHANGE));
        assert!(changes.lid && changes.sm_lid && !changes.sm_sl && !changes.gid_prefix);
        assert_eq!(state(&node, 1), LogicalState::INIT);
        let again = set_ok(&node, 1, &port_info(LogicalState::NO_CHANGE));
        assert_eq!(again, PortChanges { port: 1, ..PortChanges::default() });
    }

    #[test]
    fn set_down_retrains_to_init_and_keeps_the_lid() {
        let node = active_ca();
        let changes = set_ok(&node, 1, &port_info(LogicalState::DOWN));
        assert!(changes.left_active);
        assert_eq!(changes.link, Some(LinkRequest::Retrain));
        assert_eq!(state(&node, 1), LogicalState::INIT);
        assert_eq!(node.port(1).expect("port").lid(), 7);
    }

    #[test]
    fn disabled_port_has_no_link_until_it_polls_again() {
        let node = active_ca();
        let port = node.port(1).expect("port");
        let mut info = port_info(LogicalState::NO_CHANGE);
        info.link.set_port_physical_state(PhysState::DISABLED);
        let changes = set_ok(&node, 1, &info);
        assert!(changes.left_active);
        assert_eq!(changes.link, Some(LinkRequest::Stop));
        assert_eq!((port.state(), port.phys_state()), (LogicalState::DOWN, PhysState::DISABLED));
        assert!(!port.can_train());
        assert_eq!(node.link_up(1), LinkEffect::default());
        info.link.set_port_physical_state(PhysState::POLLING);
        assert_eq!(set_ok(&node, 1, &info).link, Some(LinkRequest::Retrain));
        assert_eq!((port.state(), port.phys_state()), (LogicalState::DOWN, PhysState::POLLING));
        assert!(node.link_up(1).changed);
    }

    #[test]
    fn physical_states_that_cannot_be_asked_for_are_refused() {
        let node = ca();
        node.link_up(1);
        for (to, phys_state) in [
            (LogicalState::ARMED, PhysState::POLLING),
            (LogicalState::DOWN, PhysState::TRAINING),
            (LogicalState::NO_CHANGE, PhysState::LINK_UP),
            (LogicalState::NO_CHANGE, PhysState(15)),
        ] {
            let mut info = port_info(to);
            info.link.set_port_physical_state(phys_state);
            assert_eq!(set(&node, 1, &info).0.status(), Status::INVALID_VALUE);
            assert_eq!(state(&node, 1), LogicalState::INIT);
        }
    }

    #[test]
    fn lids_that_are_not_unicast_are_refused_and_the_rest_is_set() {
        let node = active_ca();
        let port = node.port(1).expect("port");
        for bad in [0, 0xc000, 0xffff] {
            let mut info = port_info(LogicalState::NO_CHANGE);
            info.lid.set(bad);
            info.lanes.set_master_sm_sl(3);
            let (reply, _) = set(&node, 1, &info);
            assert_eq!(reply.status(), Status::INVALID_VALUE);
            assert_eq!(reply.attribute::<PortInfo>().lid.get(), 7);
            assert_eq!((port.lid(), port.sm_sl()), (7, 3));
            let mut info = port_info(LogicalState::NO_CHANGE);
            info.master_sm_lid.set(bad);
            assert_eq!(set(&node, 1, &info).0.status(), Status::INVALID_VALUE);
            assert_eq!(port.sm_lid(), 1);
        }
    }

    #[test]
    fn lmc_gives_the_port_more_lids() {
        let node = ca();
        node.link_up(1);
        let mut info = port_info(LogicalState::NO_CHANGE);
        info.lid.set(8);
        info.link.set_lmc(2);
        assert!(set_ok(&node, 1, &info).lid);
        let port = node.port(1).expect("port");
        assert_eq!(port.lid_and_lmc(), (8, 2));
        assert!(port.has_lid(8) && port.has_lid(11) && !port.has_lid(12) && !port.has_lid(7));
        assert!(!node.port(2).expect("port").has_lid(0));
    }

    #[test]
    fn client_reregister_is_echoed_once() {
        let node = active_ca();
        let mut info = port_info(LogicalState::NO_CHANGE);
        info.timeout.set_client_reregister(true);
        info.timeout.set_subnet_timeout(18);
        let (reply, changes) = set(&node, 1, &info);
        assert!(changes.client_reregister);
        assert!(reply.attribute::<PortInfo>().timeout.client_reregister());
        assert!(!shown(&node, 1).timeout.client_reregister());
        assert_eq!(shown(&node, 1).timeout.subnet_timeout(), 18);
        assert_eq!(node.port(1).expect("port").subnet_timeout(), 18);
    }

    #[test]
    fn width_and_speed_take_subsets_and_all() {
        let node = ca();
        let mut info = port_info(LogicalState::NO_CHANGE);
        info.link_width_enabled = link_width::X1;
        info.link.set_link_speed_enabled(link_speed::SDR | link_speed::DDR);
        info.extended_speed.set_link_speed_ext_enabled(link_speed_ext::DISABLE);
        set_ok(&node, 1, &info);
        node.link_up(1);
        let port = node.port(1).expect("port");
        assert_eq!((port.link_width(), port.link_speed(), port.link_speed_ext()), (1, 2, 0));

        info.link_width_enabled = link_width::SUPPORTED;
        info.link.set_link_speed_enabled(link_speed::SUPPORTED);
        info.extended_speed.set_link_speed_ext_enabled(link_speed_ext::SUPPORTED);
        set_ok(&node, 1, &info);
        assert_eq!(port.link_width(), 1, "it holds from the next training");
        node.link_down(1);
        node.link_up(1);
        assert_eq!((port.link_width(), port.link_speed(), port.link_speed_ext()), (2, 4, 1));

        info.link_width_enabled = link_width::X12;
        assert_eq!(set(&node, 1, &info).0.status(), Status::INVALID_VALUE);
        info.link_width_enabled = link_width::NO_CHANGE;
        info.link.set_link_speed_enabled(8);
        assert_eq!(set(&node, 1, &info).0.status(), Status::INVALID_VALUE);
        info.link.set_link_speed_enabled(link_speed::NO_CHANGE);
        info.extended_speed.set_link_speed_ext_enabled(link_speed_ext::EDR);
        assert_eq!(set(&node, 1, &info).0.status(), Status::INVALID_VALUE);
        assert_eq!(shown(&node, 1).link_width_enabled, 3);
    }

    #[test]
    fn mtu_and_lanes_beyond_the_caps_are_refused() {
        let node = ca();
        let port = node.port(1).expect("port");
        assert!(port.set_caps(Mtu::B2048, VlCap::VL0_3));
        assert!(!port.set_caps(Mtu(6), VlCap::VL0) && !port.set_caps(Mtu::B256, VlCap::NO_CHANGE));
        node.link_up(1);
        assert_eq!((port.mtu(), port.operational_vls()), (Mtu::B2048, VlCap::VL0_3));
        let mut info = port_info(LogicalState::NO_CHANGE);
        assert_eq!(set(&node, 1, &info).0.status(), Status::INVALID_VALUE);
        info.lanes.set_neighbor_mtu(Mtu::B1024);
        info.limits.set_operational_vls(VlCap::VL0);
        set_ok(&node, 1, &info);
        assert_eq!((port.mtu(), port.operational_vls()), (Mtu::B1024, VlCap::VL0));
        info.lanes.set_neighbor_mtu(Mtu(0));
        assert_eq!(set(&node, 1, &info).0.status(), Status::INVALID_VALUE);
    }

    #[test]
    fn zero_clears_violations_and_other_values_keep_them() {
        let node = active_ca();
        let port = node.port(1).expect("port");
        port.p_key_violations.count();
        port.q_key_violations.count();
        let mut info = port_info(LogicalState::NO_CHANGE);
        info.p_key_violations.set(9);
        let (reply, _) = set(&node, 1, &info);
        assert_eq!(reply.attribute::<PortInfo>().p_key_violations.get(), 1);
        assert_eq!(port.q_key_violations.get(), 0);
        for _ in 0..0x1_0001 {
            port.p_key_violations.count();
        }
        assert_eq!(port.p_key_violations.get(), 0xffff);
    }

    #[test]
    fn external_port_ignores_addresses() {
        let node = switch();
        node.link_up(5);
        let mut info = port_info(LogicalState::ARMED);
        info.lid.set(0);
        info.master_sm_lid.set(0xffff);
        info.m_key.set(9);
        info.limits.set_hoq_life(17);
        info.limits.set_partition_enforcement_inbound(true);
        let changes = set_ok(&node, 5, &info);
        assert_eq!(changes, PortChanges { port: 5, ..PortChanges::default() });
        let shown: PortInfo = ask(&node, 2, &smp(Method::GET, SmpAttribute::PORT_INFO, 5)).attribute();
        assert_eq!((shown.lid.get(), shown.m_key.get(), shown.local_port_num), (0, 0, 2));
        assert_eq!((shown.limits.hoq_life(), shown.link.port_state()), (17, LogicalState::ARMED));
        assert!(!shown.limits.partition_enforcement_inbound());
    }

    #[test]
    fn base_port_0_is_active_and_takes_its_lid() {
        let node = switch();
        let mut info = PortInfo::new_zeroed();
        info.lid.set(2);
        info.master_sm_lid.set(1);
        info.link.set_lmc(3);
        info.link.set_port_state(LogicalState::INIT);
        set_ok(&node, 0, &info);
        let port = node.port(0).expect("port");
        assert_eq!((port.lid_and_lmc(), port.sm_lid(), port.state()), ((2, 0), 1, LogicalState::ACTIVE));
        assert_eq!(node.link_up(0), LinkEffect::default());
    }
}
