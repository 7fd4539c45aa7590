//! Packets through the switch: who gets them, and who doesn't.

use std::sync::Arc;
use std::time::Duration;

use mlx4_wire::mad::header::{MadHeader, Method, MgmtClass};
use mlx4_wire::mad::portinfo::PortState;
use mlx4_wire::{U16, U32};
use zerocopy::{FromZeros, IntoBytes};

use super::{Adapter, Lab, SmConfig};
use crate::fabric::Endpoint;
use crate::fabric::datagram::Datagram;
use crate::fabric::packet::Headers;
use crate::fabric::plug::Plug;
use crate::fabric::{Fabric, FabricConfig, FabricError};
use crate::node::counters::{Counter, View};

fn datagram(from: &Adapter, dlid: u16) -> Datagram {
    let headers = Headers {
        slid: from.lid(),
        dlid,
        src_qp: 0x40,
        dest_qp: 0x41,
        pkey: 0xffff,
        qkey: 0x1234,
        ..Headers::default()
    };
    Datagram { headers, mad: [3; 256] }
}

#[test]
fn unicast_reaches_its_lid_only() {
    let (_lab, adapters) = Lab::with_adapters(3);
    let sent = datagram(&adapters[0], adapters[2].lid());
    adapters[0].send(&sent);
    assert!(adapters[0].received().is_empty() && adapters[1].received().is_empty());
    assert_eq!(adapters[2].received(), [sent]);
}

#[test]
fn packet_without_a_route_is_counted_and_dropped() {
    let (lab, adapters) = Lab::with_adapters(2);
    for lid in [0, 9, 0xbfff, 0xc010] {
        adapters[0].send(&datagram(&adapters[0], lid));
    }
    assert!(adapters.iter().all(|adapter| adapter.received().is_empty()));
    let counters = &lab.switch.node().port(1).unwrap().counters;
    assert_eq!(counters.get(View::Classic, Counter::RcvSwitchRelay), 3);
}

#[test]
fn data_does_not_pass_before_the_ports_are_active() {
    let mut lab = Lab::new(SmConfig::default());
    let (a, b) = (lab.plug(1), lab.plug(2));
    b.set_silent(true);
    lab.settle();
    assert_eq!((a.state(), b.state()), (PortState::ACTIVE, PortState::INIT));
    let forged = Datagram { headers: Headers { dlid: a.lid(), ..datagram(&b, 0).headers }, mad: [1; 256] };
    b.send(&forged);
    assert!(a.received().is_empty());
    assert!(a.plug().route(a.lid(), 3, 0).is_none());
    assert!(b.plug().route(3, a.lid(), 0).is_none());
}

#[test]
fn route_leads_to_the_endpoint_that_packets_reach() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let plug = adapters[0].plug();
    let far = plug.route(adapters[0].lid(), adapters[1].lid(), 0).unwrap();
    let expected: Arc<dyn Endpoint> = adapters[1].clone();
    assert!(std::ptr::addr_eq(Arc::as_ptr(&far), Arc::as_ptr(&expected)));
    for (slid, dlid, sl) in
        [(0, adapters[1].lid(), 0), (2, 9, 0), (2, 1, 0), (2, 0xc000, 0), (2, 0xffff, 0), (2, 3, 16)]
    {
        assert!(plug.route(slid, dlid, sl).is_none(), "{slid} {dlid} {sl}");
    }
    adapters[1].plug().set_link(false);
    assert!(plug.route(adapters[0].lid(), adapters[1].lid(), 0).is_none());
    lab.advance(Duration::from_millis(50));
    assert!(plug.route(adapters[0].lid(), adapters[1].lid(), 0).is_none());
}

#[test]
fn counters_count_what_crosses() {
    let (lab, adapters) = Lab::with_adapters(2);
    let (from, to) = (lab.switch.node().port(1).unwrap(), lab.switch.node().port(2).unwrap());
    from.counters.reset();
    to.counters.reset();
    for _ in 0..3 {
        adapters[0].send(&datagram(&adapters[0], adapters[1].lid()));
    }
    assert_eq!(from.counters.get(View::Extended, Counter::UnicastRcvPkts), 3);
    assert_eq!(to.counters.get(View::Extended, Counter::UnicastXmitPkts), 3);
    assert_eq!(to.counters.get(View::Classic, Counter::XmitData), 3 * 72);
    adapters[0].plug().count_direct(adapters[1].lid(), 500, 10);
    adapters[0].plug().count_direct(0x99, 500, 10);
    assert_eq!(from.counters.get(View::Classic, Counter::RcvPkts), 13);
    assert_eq!(to.counters.get(View::Classic, Counter::XmitData), 3 * 72 + 500);
}

#[test]
fn switch_drops_foreign_partitions_if_it_can() {
    for (partition_enforcement_cap, passes) in [(0, true), (64, false)] {
        let mut config = SmConfig::default();
        config.port_pkeys.insert(0x2001, vec![0xffff, 0x8005]);
        let subnet_manager = Some(config);
        let fabric = FabricConfig { partition_enforcement_cap, subnet_manager, ..FabricConfig::default() };
        let mut lab = Lab::with_fabric(&fabric);
        let (a, b) = (lab.plug(1), lab.plug(2));
        lab.settle();
        a.send(&datagram(&a, b.lid()));
        assert_eq!(b.received().len(), 1);
        let mut foreign = datagram(&b, a.lid());
        foreign.headers.pkey = 0x8005;
        b.send(&foreign);
        assert_eq!(a.received().len(), usize::from(passes));
        foreign.headers.pkey = 0x8006;
        b.send(&foreign);
        assert_eq!(a.received().len(), usize::from(passes));
        let count =
            |port: u8, counter| lab.switch.node().port(port).unwrap().counters.get(View::Classic, counter);
        assert_eq!(count(1, Counter::XmitConstraint), u64::from(!passes));
        assert_eq!(count(2, Counter::RcvConstraint), u64::from(!passes));
    }
}

#[test]
fn performance_management_of_the_switch_answers_at_its_lid() {
    let (_lab, adapters) = Lab::with_adapters(1);
    let mut mad = [0; 256];
    let header = MadHeader {
        base_version: 1,
        mgmt_class: MgmtClass::PERF_MGT,
        class_version: 1,
        method: Method::GET,
        attribute_id: U16::new(0x12),
        attribute_modifier: U32::new(0),
        ..MadHeader::new_zeroed()
    };
    mad[..24].copy_from_slice(header.as_bytes());
    mad[0x41] = 1;
    let request = Datagram { headers: adapters[0].gmp_headers(1), mad };
    adapters[0].send(&request);
    let answers = adapters[0].received();
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].mad[3], answers[0].mad[0x41]), (0x81, 1));
    let mut wrong_key = request;
    wrong_key.headers.qkey = 1;
    adapters[0].send(&wrong_key);
    assert!(adapters[0].received().is_empty());
}

#[test]
fn switch_without_free_ports_says_so() {
    let config = FabricConfig { ports: 2, subnet_manager: None, ..FabricConfig::default() };
    let fabric = Fabric::new(config).unwrap();
    let endpoint = || -> Arc<dyn Endpoint> { Arc::new(Adapter::new(0x1000)) };
    let first = fabric.plug(endpoint()).unwrap();
    assert!(matches!(fabric.plug_at(1, endpoint()), Err(FabricError::PortTaken(1))));
    let second = fabric.plug(endpoint()).unwrap();
    assert_eq!((first.switch_port(), second.switch_port()), (1, 2));
    assert!(matches!(fabric.plug(endpoint()), Err(FabricError::NoFreePort(2))));
    drop(first);
    assert_eq!(fabric.plug(endpoint()).unwrap().switch_port(), 1);
    assert!(matches!(
        Fabric::new(FabricConfig { ports: 0, ..FabricConfig::default() }),
        Err(FabricError::Switch(_))
    ));
}

#[test]
fn unplugged_endpoint_is_let_go() {
    let lab = Lab::new(SmConfig::default());
    let adapter = Arc::new(Adapter::new(0x1000));
    let endpoint: Arc<dyn Endpoint> = adapter.clone();
    assert!(lab.switch.plug_at(5, &endpoint));
    drop(endpoint);
    drop(Plug::new(lab.switch.clone(), 5, std::time::Duration::ZERO));
    assert_eq!(Arc::strong_count(&adapter), 1);
}
