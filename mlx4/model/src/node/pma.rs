//! The performance management agent: ClassPortInfo, PortCounters, PortCountersExtended (IBTA vol. 1, 16.1).
//!
//! Does not: sample counters (PortSamplesControl is refused).

use mlx4_wire::U16;
use mlx4_wire::mad::header::{ClassCapability2, ClassPortInfo, MadHeader, Method, Status};
use mlx4_wire::mad::pma::{
    ALL_PORTS, PerfAttribute, PerfMad, PortCounters, PortCountersExtended, SmallCounters, capability,
};
use zerocopy::FromZeros;

use super::NodeState;
use super::counters::{Counter, Counters, View};

/// Counters of PortCounters with the bits that select them for a Set: CounterSelect, then CounterSelect2
/// from bit 16.
const CLASSIC: [(Counter, u32); 18] = [
    (Counter::SymbolError, PortCounters::SELECT_SYMBOL_ERROR as u32),
    (Counter::LinkErrorRecovery, PortCounters::SELECT_LINK_ERROR_RECOVERY as u32),
    (Counter::LinkDowned, PortCounters::SELECT_LINK_DOWNED as u32),
    (Counter::RcvErrors, PortCounters::SELECT_RCV_ERRORS as u32),
    (Counter::RcvRemotePhysical, PortCounters::SELECT_RCV_REMOTE_PHYSICAL as u32),
    (Counter::RcvSwitchRelay, PortCounters::SELECT_RCV_SWITCH_RELAY as u32),
    (Counter::XmitDiscards, PortCounters::SELECT_XMIT_DISCARDS as u32),
    (Counter::XmitConstraint, PortCounters::SELECT_XMIT_CONSTRAINT as u32),
    (Counter::RcvConstraint, PortCounters::SELECT_RCV_CONSTRAINT as u32),
    (Counter::LocalLinkIntegrity, PortCounters::SELECT_LOCAL_LINK_INTEGRITY as u32),
    (Counter::ExcessiveBufferOverrun, PortCounters::SELECT_EXCESSIVE_BUFFER_OVERRUN as u32),
    (Counter::Vl15Dropped, PortCounters::SELECT_VL15_DROPPED as u32),
    (Counter::XmitData, PortCounters::SELECT_XMIT_DATA as u32),
    (Counter::RcvData, PortCounters::SELECT_RCV_DATA as u32),
    (Counter::XmitPkts, PortCounters::SELECT_XMIT_PKTS as u32),
    (Counter::RcvPkts, PortCounters::SELECT_RCV_PKTS as u32),
    (Counter::XmitWait, (PortCounters::SELECT2_XMIT_WAIT as u32) << 16),
    (Counter::Qp1Dropped, (PortCounters::SELECT2_QP1_DROPPED as u32) << 16),
];

/// Counters of PortCountersExtended in their order, which is that of the bits that select them.
const EXTENDED: [Counter; 8] = [
    Counter::XmitData,
    Counter::RcvData,
    Counter::XmitPkts,
    Counter::RcvPkts,
    Counter::UnicastXmitPkts,
    Counter::UnicastRcvPkts,
    Counter::MulticastXmitPkts,
    Counter::MulticastRcvPkts,
];

impl NodeState {
    /// The response to a Get or Set of performance management.
    pub(super) fn process_perf(&self, port: u8, mad: &[u8; 256]) -> [u8; 256] {
        let mut perf = PerfMad::from_mad(mad);
        let status = self.perf_status(port, &mut perf);
        perf.header.method = Method::GET_RESP;
        perf.set_status(status);
        perf.to_mad()
    }

    fn perf_status(&self, port: u8, perf: &mut PerfMad) -> Status {
        let header = &perf.header;
        if header.base_version != MadHeader::BASE_VERSION || header.class_version != PerfMad::CLASS_VERSION {
            return Status::BAD_VERSION;
        }
        let set = match header.method {
            Method::GET => false,
            Method::SET => true,
            _ => return Status::UNSUPPORTED_METHOD,
        };
        match perf.attribute_id() {
            PerfAttribute::CLASS_PORT_INFO if !set => {
                perf.set_attribute(&self.perf_class_port_info());
                Status::GOOD
            }
            PerfAttribute::PORT_COUNTERS => self.port_counters(port, perf, set),
            PerfAttribute::PORT_COUNTERS_EXTENDED => self.port_counters_extended(port, perf, set),
            _ => Status::UNSUPPORTED_METHOD_ATTRIBUTE,
        }
    }

    fn perf_class_port_info(&self) -> ClassPortInfo {
        let all_ports = if self.switch().is_some() { capability::ALL_PORT_SELECT } else { 0 };
        ClassPortInfo {
            base_version: MadHeader::BASE_VERSION,
            class_version: PerfMad::CLASS_VERSION,
            capability_mask: U16::new(all_ports | capability::EXTENDED_WIDTH | capability::PORT_XMIT_WAIT),
            capability2: ClassCapability2::new().with_resp_time_value(18),
            ..ClassPortInfo::new_zeroed()
        }
    }

    /// The ports that PortSelect names: on a channel adapter the receiving one, on a switch any, or all.
    fn selected(&self, receiver: u8, select: u8) -> Option<Vec<&Counters>> {
        let counters = |number| Some(&self.port(number)?.counters);
        match self.switch() {
            None => (select == receiver).then(|| counters(select).into_iter().collect()),
            Some(_) if select == ALL_PORTS => Some(self.ports.iter().map(|port| &port.counters).collect()),
            Some(_) => Some(vec![counters(select)?]),
        }
    }

    fn port_counters(&self, receiver: u8, perf: &mut PerfMad, set: bool) -> Status {
        let request: PortCounters = perf.attribute();
        let ports = self.selected(receiver, request.port_select);
        let Some(ports) = ports.filter(|_| perf.header.attribute_modifier.get() == 0) else {
            return Status::INVALID_VALUE;
        };
        if set {
            let selected = u32::from(request.counter_select.get()) | u32::from(request.counter_select2) << 16;
            for (counter, _) in CLASSIC.into_iter().filter(|(_, bit)| selected & bit != 0) {
                let value = classic_value(&request, counter);
                ports.iter().for_each(|port| port.set(View::Classic, counter, value));
            }
        }
        perf.set_attribute(&show(&ports, &request));
        Status::GOOD
    }

    fn port_counters_extended(&self, receiver: u8, perf: &mut PerfMad, set: bool) -> Status {
        let request: PortCountersExtended = perf.attribute();
        let ports = self.selected(receiver, request.port_select);
        let Some(ports) = ports.filter(|_| perf.header.attribute_modifier.get() == 0) else {
            return Status::INVALID_VALUE;
        };
        let mut reply = PortCountersExtended {
            port_select: request.port_select,
            counter_select: request.counter_select,
            ..PortCountersExtended::new_zeroed()
        };
        for (index, counter) in EXTENDED.into_iter().enumerate() {
            if set && request.counter_select.get() >> index & 1 != 0 {
                let value = request.data[index].get();
                ports.iter().for_each(|port| port.set(View::Extended, counter, value));
            }
            reply.data[index].set(sum(&ports, View::Extended, counter));
        }
        perf.set_attribute(&reply);
        Status::GOOD
    }
}

fn sum(ports: &[&Counters], view: View, counter: Counter) -> u64 {
    ports.iter().fold(0, |sum: u64, port| sum.saturating_add(port.get(view, counter)))
}

/// PortCounters of the ports together, each counter no more than its greatest value.
fn show(ports: &[&Counters], request: &PortCounters) -> PortCounters {
    let total = |counter| sum(ports, View::Classic, counter);
    let byte = |counter| u8::try_from(total(counter)).unwrap_or(u8::MAX);
    let short = |counter| u16::try_from(total(counter)).unwrap_or(u16::MAX).into();
    let word = |counter| u32::try_from(total(counter)).unwrap_or(u32::MAX).into();
    PortCounters {
        port_select: request.port_select,
        counter_select: request.counter_select,
        symbol_error_counter: short(Counter::SymbolError),
        link_error_recovery_counter: byte(Counter::LinkErrorRecovery),
        link_downed_counter: byte(Counter::LinkDowned),
        port_rcv_errors: short(Counter::RcvErrors),
        port_rcv_remote_physical_errors: short(Counter::RcvRemotePhysical),
        port_rcv_switch_relay_errors: short(Counter::RcvSwitchRelay),
        port_xmit_discards: short(Counter::XmitDiscards),
        port_xmit_constraint_errors: byte(Counter::XmitConstraint),
        port_rcv_constraint_errors: byte(Counter::RcvConstraint),
        counter_select2: request.counter_select2,
        small: SmallCounters::new()
            .with_local_link_integrity_errors(byte(Counter::LocalLinkIntegrity).min(0xf))
            .with_excessive_buffer_overrun_errors(byte(Counter::ExcessiveBufferOverrun).min(0xf)),
        qp1_dropped: short(Counter::Qp1Dropped),
        vl15_dropped: short(Counter::Vl15Dropped),
        port_xmit_data: word(Counter::XmitData),
        port_rcv_data: word(Counter::RcvData),
        port_xmit_pkts: word(Counter::XmitPkts),
        port_rcv_pkts: word(Counter::RcvPkts),
        port_xmit_wait: word(Counter::XmitWait),
        ..PortCounters::new_zeroed()
    }
}

/// What a Set writes to a counter.
fn classic_value(request: &PortCounters, counter: Counter) -> u64 {
    match counter {
        Counter::SymbolError => request.symbol_error_counter.get().into(),
        Counter::LinkErrorRecovery => request.link_error_recovery_counter.into(),
        Counter::LinkDowned => request.link_downed_counter.into(),
        Counter::RcvErrors => request.port_rcv_errors.get().into(),
        Counter::RcvRemotePhysical => request.port_rcv_remote_physical_errors.get().into(),
        Counter::RcvSwitchRelay => request.port_rcv_switch_relay_errors.get().into(),
        Counter::XmitDiscards => request.port_xmit_discards.get().into(),
        Counter::XmitConstraint => request.port_xmit_constraint_errors.into(),
        Counter::RcvConstraint => request.port_rcv_constraint_errors.into(),
        Counter::LocalLinkIntegrity => request.small.local_link_integrity_errors().into(),
        Counter::ExcessiveBufferOverrun => request.small.excessive_buffer_overrun_errors().into(),
        Counter::Vl15Dropped => request.vl15_dropped.get().into(),
        Counter::Qp1Dropped => request.qp1_dropped.get().into(),
        Counter::XmitData => request.port_xmit_data.get().into(),
        Counter::RcvData => request.port_rcv_data.get().into(),
        Counter::XmitPkts => request.port_xmit_pkts.get().into(),
        Counter::RcvPkts => request.port_rcv_pkts.get().into(),
        Counter::XmitWait => request.port_xmit_wait.get().into(),
        // Not in PortCounters.
        Counter::UnicastXmitPkts
        | Counter::UnicastRcvPkts
        | Counter::MulticastXmitPkts
        | Counter::MulticastRcvPkts => 0,
    }
}
