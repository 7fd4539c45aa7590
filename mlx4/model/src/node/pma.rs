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

#[cfg(test)]
mod tests {
    use mlx4_wire::mad::header::MgmtClass;

    use super::super::testing::{ca, switch};
    use super::super::{MadInput, NodeState};
    use super::*;

    fn perf(method: Method, attribute: PerfAttribute) -> PerfMad {
        let mut perf = PerfMad::new_zeroed();
        perf.header.base_version = 1;
        perf.header.class_version = 1;
        perf.header.mgmt_class = MgmtClass::PERF_MGT;
        perf.header.method = method;
        perf.header.attribute_id.set(attribute.0);
        perf
    }

    fn ask(node: &NodeState, port: u8, perf: &PerfMad) -> (Status, PerfMad) {
        let reply = node.process_mad(port, &perf.to_mad(), &MadInput::default()).reply.expect("reply");
        let reply = PerfMad::from_mad(&reply);
        assert_eq!(reply.header.method, Method::GET_RESP);
        (Status(reply.header.status.get()), reply)
    }

    fn classic(node: &NodeState, method: Method, request: PortCounters) -> PortCounters {
        let mut mad = perf(method, PerfAttribute::PORT_COUNTERS);
        mad.set_attribute(&request);
        let (status, reply) = ask(node, 1, &mad);
        assert_eq!(status, Status::GOOD);
        reply.attribute()
    }

    fn of_port(port: u8) -> PortCounters {
        PortCounters { port_select: port, ..PortCounters::new_zeroed() }
    }

    #[test]
    fn counters_stop_at_their_width() {
        let node = ca();
        let counters = &node.port(1).expect("port").counters;
        counters.sent(u64::from(u32::MAX) + 5, 7, false);
        for counter in [Counter::SymbolError, Counter::LinkDowned, Counter::LocalLinkIntegrity] {
            counters.add(counter, 70_000);
        }
        let shown = classic(&node, Method::GET, of_port(1));
        assert_eq!((shown.port_xmit_data.get(), shown.port_xmit_pkts.get()), (u32::MAX, 7));
        assert_eq!((shown.symbol_error_counter.get(), shown.link_downed_counter), (u16::MAX, u8::MAX));
        assert_eq!((shown.small.local_link_integrity_errors(), shown.port_select), (0xf, 1));
        assert_eq!(shown.small.excessive_buffer_overrun_errors(), 0);
    }

    #[test]
    fn every_counter_is_shown_in_its_place_and_cleared_by_its_bit() {
        for (counter, bit) in CLASSIC {
            let node = ca();
            let counters = &node.port(1).expect("port").counters;
            counters.sent(3, 3, false);
            counters.received(3, 3, false);
            for (counter, _) in CLASSIC {
                counters.add(counter, 3);
            }
            let before = classic(&node, Method::GET, of_port(1));
            let mut request = of_port(1);
            request.counter_select.set(u16::try_from(bit & 0xffff).expect("16 bits"));
            request.counter_select2 = u8::try_from(bit >> 16).expect("8 bits");
            let after = classic(&node, Method::SET, request);
            for (other, _) in CLASSIC {
                assert_eq!(classic_value(&before, other), 3, "{other:?}");
                let expected = if other == counter { 0 } else { 3 };
                assert_eq!(classic_value(&after, other), expected, "{other:?} after clearing {counter:?}");
            }
        }
    }

    #[test]
    fn selected_counters_take_the_value_written() {
        let node = ca();
        let mut request = of_port(1);
        request.counter_select.set(PortCounters::SELECT_RCV_PKTS);
        request.port_rcv_pkts.set(10);
        request.port_rcv_data.set(10);
        classic(&node, Method::SET, request);
        node.port(1).expect("port").counters.received(5, 1, false);
        let shown = classic(&node, Method::GET, of_port(1));
        assert_eq!((shown.port_rcv_pkts.get(), shown.port_rcv_data.get()), (11, 5));
    }

    #[test]
    fn extended_counters_are_wide_and_cleared_on_their_own() {
        let node = ca();
        node.port(1).expect("port").counters.received(1 << 40, 9, true);
        let mut mad = perf(Method::SET, PerfAttribute::PORT_COUNTERS_EXTENDED);
        let mut request = PortCountersExtended { port_select: 1, ..PortCountersExtended::new_zeroed() };
        request.counter_select.set(1 << PortCountersExtended::RCV_PKTS);
        mad.set_attribute(&request);
        let (status, reply) = ask(&node, 1, &mad);
        let shown: PortCountersExtended = reply.attribute();
        assert_eq!((status, shown.data[PortCountersExtended::RCV_PKTS].get()), (Status::GOOD, 0));
        assert_eq!(shown.data[PortCountersExtended::RCV_DATA].get(), 1 << 40);
        assert_eq!(shown.data[PortCountersExtended::MULTICAST_RCV_PKTS].get(), 9);
        assert_eq!(classic(&node, Method::GET, of_port(1)).port_rcv_pkts.get(), 9);
    }

    #[test]
    fn ports_that_are_not_the_own_are_refused() {
        let node = ca();
        for select in [0, 2, ALL_PORTS] {
            for attribute in [PerfAttribute::PORT_COUNTERS, PerfAttribute::PORT_COUNTERS_EXTENDED] {
                let mut mad = perf(Method::GET, attribute);
                mad.data[1] = select;
                assert_eq!(ask(&node, 1, &mad).0, Status::INVALID_VALUE);
            }
        }
        let mut modified = perf(Method::GET, PerfAttribute::PORT_COUNTERS);
        modified.data[1] = 1;
        modified.header.attribute_modifier.set(1);
        assert_eq!(ask(&node, 1, &modified).0, Status::INVALID_VALUE);
    }

    #[test]
    fn switch_answers_for_each_port_and_for_all() {
        let node = switch();
        node.port(3).expect("port").counters.add(Counter::XmitDiscards, 2);
        node.port(36).expect("port").counters.add(Counter::XmitDiscards, 3);
        let discards = |port| classic(&node, Method::GET, of_port(port)).port_xmit_discards.get();
        assert_eq!((discards(0), discards(3), discards(36), discards(ALL_PORTS)), (0, 2, 3, 5));
        let mut clear = of_port(ALL_PORTS);
        clear.counter_select.set(PortCounters::SELECT_XMIT_DISCARDS);
        classic(&node, Method::SET, clear);
        assert_eq!((discards(3), discards(ALL_PORTS)), (0, 0));
        let mut beyond = perf(Method::GET, PerfAttribute::PORT_COUNTERS);
        beyond.data[1] = 37;
        assert_eq!(ask(&node, 1, &beyond).0, Status::INVALID_VALUE);
    }

    #[test]
    fn class_port_info_tells_of_wide_counters() {
        let get = perf(Method::GET, PerfAttribute::CLASS_PORT_INFO);
        let of = |node: &NodeState| ask(node, 1, &get).1.attribute::<ClassPortInfo>().capability_mask.get();
        assert_eq!((of(&ca()), of(&switch())), (0x1200, 0x1300));
    }

    #[test]
    fn unsupported_requests_get_their_status() {
        let node = ca();
        let status = |mad: &PerfMad| ask(&node, 1, mad).0;
        let mut version = perf(Method::GET, PerfAttribute::CLASS_PORT_INFO);
        version.header.class_version = 2;
        assert_eq!(status(&version), Status::BAD_VERSION);
        let table = perf(Method::GET_TABLE, PerfAttribute::CLASS_PORT_INFO);
        assert_eq!(status(&table), Status::UNSUPPORTED_METHOD);
        for attribute in [PerfAttribute::PORT_SAMPLES_CONTROL, PerfAttribute(0xffff)] {
            assert_eq!(status(&perf(Method::GET, attribute)), Status::UNSUPPORTED_METHOD_ATTRIBUTE);
        }
        let set = perf(Method::SET, PerfAttribute::CLASS_PORT_INFO);
        assert_eq!(status(&set), Status::UNSUPPORTED_METHOD_ATTRIBUTE);
    }
}
