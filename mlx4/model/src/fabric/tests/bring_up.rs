//! Ports come up, stay down, go away and come back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mlx4_wire::mad::LID_PERMISSIVE;
use mlx4_wire::mad::attr::NodeInfo;
use mlx4_wire::mad::header::{Method, MgmtClass, Status};
use mlx4_wire::mad::notice::LocalChanges;
use mlx4_wire::mad::portinfo::{Mtu, PhysState, PortInfo, PortState, VlCap};
use mlx4_wire::mad::smp::{Smp, SmpAttribute};
use mlx4_wire::{U16, U32, U64};
use zerocopy::FromZeros;

use super::{Adapter, Lab, SWITCH_GUID};
use crate::fabric::datagram::Datagram;
use crate::fabric::packet::Packet;
use crate::fabric::sm::SmConfig;
use crate::fabric::{Endpoint, Fabric, FabricConfig};
use crate::node::trap;

#[test]
fn ports_come_up_with_lids_of_their_own() {
    let (lab, adapters) = Lab::with_adapters(3);
    for (adapter, port) in adapters.iter().zip(1..) {
        assert_eq!(adapter.state(), PortState::ACTIVE);
        assert_eq!(lab.state(port), PortState::ACTIVE);
        let info = adapter.node.port(1).unwrap();
        assert_eq!(info.sm_lid(), lab.manager.subnet().manager_lid());
        assert_eq!(info.subnet_timeout(), 18);
    }
    let lids: BTreeSet<_> = adapters.iter().map(|adapter| adapter.lid()).collect();
    assert_eq!(lids, BTreeSet::from([2, 3, 4]));
    assert_eq!(lab.switch.node().port(0).unwrap().lid(), 1);
}

#[test]
fn silent_node_stays_in_init_until_it_answers() {
    let mut lab = Lab::new(SmConfig::default());
    let (silent, other) = (lab.plug(1), lab.plug(2));
    silent.set_silent(true);
    lab.advance(Duration::from_secs(20));
    assert_eq!((silent.state(), lab.state(1)), (PortState::INIT, PortState::INIT));
    assert_eq!((other.state(), lab.state(2)), (PortState::ACTIVE, PortState::ACTIVE));
    silent.set_silent(false);
    lab.advance(SmConfig::default().sweep_interval * 2);
    assert_eq!((silent.state(), lab.state(1)), (PortState::ACTIVE, PortState::ACTIVE));
}

#[test]
fn node_that_falls_silent_on_the_way_comes_up_later() {
    let mut lab = Lab::new(SmConfig { sweep_interval: Duration::from_secs(1), ..SmConfig::default() });
    let adapter = lab.plug(1);
    adapter.set_silent(true);
    lab.settle();
    // Answers come only to the third try.
    lab.advance(SmConfig::default().smp_timeout);
    adapter.set_silent(false);
    lab.advance(SmConfig::default().smp_timeout);
    assert_eq!(adapter.state(), PortState::ACTIVE);
}

#[test]
fn port_that_comes_back_keeps_its_lid() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let lids = [adapters[0].lid(), adapters[1].lid()];
    adapters[0].plug().set_link(false);
    lab.advance(Duration::from_millis(50));
    assert_eq!((adapters[0].state(), lab.state(1)), (PortState::DOWN, PortState::DOWN));
    assert!(lab.manager.subnet().end(1).is_none());
    assert_eq!(lab.switch.node().switch().unwrap().unicast_port(lids[0]), None);
    adapters[0].plug().set_link(true);
    lab.advance(Duration::from_millis(50));
    assert_eq!((adapters[0].state(), lab.state(1)), (PortState::ACTIVE, PortState::ACTIVE));
    assert_eq!([adapters[0].lid(), adapters[1].lid()], lids);
}

#[test]
fn bounce_between_two_sweeps_is_seen() {
    let (mut lab, adapters) = Lab::with_adapters(1);
    for _ in 0..5 {
        adapters[0].plug().set_link(false);
        adapters[0].plug().set_link(true);
    }
    assert_eq!(adapters[0].state(), PortState::INIT);
    lab.advance(Duration::from_millis(50));
    assert_eq!((adapters[0].state(), lab.state(1)), (PortState::ACTIVE, PortState::ACTIVE));
}

#[test]
fn node_that_moves_to_another_port_takes_its_lid_along() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let lid = adapters[0].lid();
    adapters[0].disconnect();
    let moved = lab.plug_with_guid(7, 0x1000);
    lab.advance(Duration::from_millis(100));
    assert_eq!((moved.state(), moved.lid()), (PortState::ACTIVE, lid));
    assert_eq!(lab.switch.node().switch().unwrap().unicast_port(lid), Some(7));
}

#[test]
fn second_port_with_the_same_guid_stays_in_init() {
    let (mut lab, adapters) = Lab::with_adapters(1);
    let twin = lab.plug_with_guid(2, 0x1000);
    lab.advance(Duration::from_secs(10));
    assert_eq!((adapters[0].state(), twin.state()), (PortState::ACTIVE, PortState::INIT));
    adapters[0].disconnect();
    lab.advance(Duration::from_secs(10));
    assert_eq!(twin.state(), PortState::ACTIVE);
}

#[test]
fn both_ends_get_the_smaller_mtu_and_fewer_lanes() {
    let mut lab = Lab::new(SmConfig::default());
    let adapter = Arc::new(Adapter::new(0x1000));
    assert!(adapter.node.port(1).unwrap().set_caps(Mtu::B2048, VlCap::VL0_3));
    let endpoint: Arc<dyn Endpoint> = adapter.clone();
    assert!(lab.switch.plug_at(1, &endpoint));
    adapter.connect(crate::fabric::plug::Plug::new(lab.switch.clone(), 1, std::time::Duration::ZERO));
    lab.settle();
    for port in [adapter.node.port(1).unwrap(), lab.switch.node().port(1).unwrap()] {
        assert_eq!(
            (port.state(), port.mtu(), port.operational_vls()),
            (PortState::ACTIVE, Mtu::B2048, VlCap::VL0_3)
        );
    }
}

#[test]
fn partitions_are_written_by_port_guid() {
    let mut config = SmConfig::default();
    config.port_pkeys.insert(0x1001, vec![0xffff, 0x8005]);
    let mut lab = Lab::new(config);
    let (special, other) = (lab.plug(1), lab.plug(2));
    lab.settle();
    let pkeys = |adapter: &Adapter| {
        (0..3).map(|at| adapter.node.port(1).unwrap().pkey(at).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(pkeys(&special), [0xffff, 0x8005, 0]);
    assert_eq!(pkeys(&other), [0xffff, 0, 0]);
    assert_eq!(lab.manager.subnet().end(1).unwrap().pkeys[..3], [0xffff, 0x8005, 0]);
}

#[test]
fn second_manager_takes_over_a_subnet_that_is_up() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let lids: Vec<_> = adapters.iter().map(|adapter| adapter.lid()).collect();
    lab.manager = crate::fabric::sm::manager::Manager::new(SmConfig::default());
    lab.settle();
    assert_eq!(adapters.iter().map(|adapter| adapter.lid()).collect::<Vec<_>>(), lids);
    assert_eq!(lab.manager.subnet().iter().count(), 3);
}

#[test]
fn request_that_overtakes_the_last_smp_is_answered() {
    let mut lab = Lab::new(SmConfig::default());
    let adapter = Arc::new(Adapter::new(0x1000));
    adapter.set_eager();
    let endpoint: Arc<dyn Endpoint> = adapter.clone();
    assert!(lab.switch.plug_at(1, &endpoint));
    adapter.connect(crate::fabric::plug::Plug::new(lab.switch.clone(), 1, std::time::Duration::ZERO));
    lab.settle();
    let answers = adapter.received();
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].mad[1], answers[0].mad[3]), (0x03, 0x81));
}

#[test]
fn new_description_is_read_after_trap_144() {
    let (mut lab, adapters) = Lab::with_adapters(1);
    let node = &adapters[0].node;
    assert!(node.set_description(&crate::node::node_description("renamed")));
    let port = node.port(1).unwrap();
    let notice = node.local_changes(port, LocalChanges::new().with_node_description(true));
    let trap = trap::trap(port, &notice, 5).unwrap();
    adapters[0].send(&Datagram::lid_routed(port.lid(), port.sm_lid(), trap.to_mad()));
    lab.settle();
    assert!(lab.manager.subnet().end(1).unwrap().description.starts_with(b"renamed\0"));
}

#[test]
fn trap_is_repressed_by_its_transaction_id() {
    let (mut lab, adapters) = Lab::with_adapters(1);
    let port = adapters[0].node.port(1).unwrap();
    let notice = adapters[0].node.local_changes(port, LocalChanges::new());
    let trap = trap::trap(port, &notice, 0x99).unwrap();
    let mut seen = None;
    let datagram = Datagram::lid_routed(port.lid(), port.sm_lid(), trap.to_mad());
    adapters[0].send(&datagram);
    lab.manager.receive(lab.now, &lab.collector.0.lock().unwrap().pop_front().unwrap());
    for out in lab.manager.take_out() {
        let smp = Smp::from_mad(&out.mad);
        if smp.header.method == Method::TRAP_REPRESS {
            seen = Some((out.headers.dlid, smp.header.transaction_id.get()));
        }
    }
    assert_eq!(seen, Some((port.lid(), 0x99)));
}

#[test]
fn idle_subnet_costs_one_smp_for_each_sweep() {
    let (mut lab, _adapters) = Lab::with_adapters(2);
    lab.advance(Duration::from_secs(30));
    lab.sent = 0;
    lab.advance(Duration::from_secs(30));
    assert_eq!(lab.sent, 10);
}

#[test]
fn sm_info_is_answered_on_both_routes() {
    let (mut lab, adapters) = Lab::with_adapters(1);
    let mut smp = Smp::new_zeroed();
    smp.header.base_version = 1;
    smp.header.mgmt_class = MgmtClass::SUBN_LID_ROUTED;
    smp.header.class_version = Smp::CLASS_VERSION;
    smp.header.method = Method::GET;
    smp.header.attribute_id = U16::new(SmpAttribute::SM_INFO.0);
    adapters[0].send(&Datagram::lid_routed(adapters[0].lid(), 1, smp.to_mad()));
    smp.header.mgmt_class = MgmtClass::SUBN_DIRECTED_ROUTE;
    (smp.dr_slid, smp.dr_dlid) = (U16::new(LID_PERMISSIVE), U16::new(LID_PERMISSIVE));
    smp.set_hop_count(1);
    smp.set_hop_pointer(1);
    smp.initial_path[1] = 1;
    adapters[0].send(&Datagram::directed(smp.to_mad()));
    lab.settle();
    let answers = adapters[0].received();
    assert_eq!(answers.len(), 2);
    for answer in &answers {
        let smp = Smp::from_mad(&answer.mad);
        assert_eq!((smp.header.method, smp.status()), (Method::GET_RESP, Status::GOOD));
        assert_eq!(smp.data[..8], SWITCH_GUID.to_be_bytes());
        assert_eq!(smp.data[20] & 0xf, 3);
    }
    assert!(Smp::from_mad(&answers[1].mad).is_returning());
}

#[test]
fn disabled_switch_port_takes_the_far_end_down_and_back() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    set_phys_state(&lab, &adapters[1], 1, PhysState::DISABLED);
    lab.advance(Duration::from_millis(50));
    assert_eq!((adapters[0].state(), lab.state(1)), (PortState::DOWN, PortState::DOWN));
    set_phys_state(&lab, &adapters[1], 1, PhysState::POLLING);
    lab.advance(Duration::from_millis(50));
    assert_eq!((adapters[0].state(), lab.state(1)), (PortState::ACTIVE, PortState::ACTIVE));
}

fn set_phys_state(lab: &Lab, from: &Adapter, port: u8, state: PhysState) {
    let mut info = PortInfo::new_zeroed();
    let known = lab.switch.node().port(port).unwrap().port_info();
    info.lanes = known.lanes;
    info.limits = known.limits;
    info.link.set_port_physical_state(state);
    let mut smp = Smp::new_zeroed();
    smp.header.base_version = 1;
    smp.header.mgmt_class = MgmtClass::SUBN_LID_ROUTED;
    smp.header.class_version = Smp::CLASS_VERSION;
    smp.header.method = Method::SET;
    smp.header.attribute_id = U16::new(SmpAttribute::PORT_INFO.0);
    smp.header.attribute_modifier = U32::new(u32::from(port));
    smp.set_attribute(&info);
    from.send(&Datagram::lid_routed(from.lid(), 1, smp.to_mad()));
}

#[test]
fn node_info_that_makes_no_sense_is_refused() {
    for spoil in [
        |info: &mut NodeInfo| info.port_guid = U64::new(0),
        |info: &mut NodeInfo| info.num_ports = 0,
        |info: &mut NodeInfo| info.node_type.0 = 2,
        |info: &mut NodeInfo| info.port_guid = U64::new(SWITCH_GUID),
    ] {
        let mut lab = Lab::new(SmConfig::default());
        let liar = lab.plug(1);
        liar.spoil_node_info(spoil);
        lab.advance(Duration::from_secs(5));
        assert_eq!((liar.state(), lab.state(1)), (PortState::INIT, PortState::INIT));
    }
}

#[test]
fn fabric_with_its_own_thread_brings_ports_up_and_stops() {
    let fabric = Fabric::new(FabricConfig::default()).unwrap();
    let adapters: Vec<_> = (1..=3).map(|n| Arc::new(Adapter::new(0x1000 * n))).collect();
    for adapter in &adapters {
        adapter.connect(fabric.plug(adapter.clone()).unwrap());
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while adapters.iter().any(|adapter| adapter.state() != PortState::ACTIVE) {
        assert!(Instant::now() < deadline, "{:?}", adapters.iter().map(|a| a.state()).collect::<Vec<_>>());
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(fabric);
    adapters[0].plug().set_link(false);
    assert_eq!(adapters[0].state(), PortState::DOWN);
    adapters.iter().for_each(|adapter| adapter.disconnect());
}

#[test]
fn trained_link_comes_up_late_and_not_after_it_was_taken_back() {
    let training = std::time::Duration::from_millis(100);
    let config = FabricConfig { training, subnet_manager: None, ..FabricConfig::default() };
    let fabric = Fabric::new(config).unwrap();
    let up = Arc::new(Mutex::new(Vec::new()));
    struct Far(Arc<Mutex<Vec<bool>>>);
    impl Endpoint for Far {
        fn receive(&self, _: &Packet<'_>) {}
        fn link_changed(&self, up: bool) {
            self.0.lock().unwrap().push(up);
        }
    }
    let plug = fabric.plug(Arc::new(Far(up.clone()))).unwrap();
    plug.set_link(true);
    assert!(up.lock().unwrap().is_empty());
    plug.set_link(false);
    std::thread::sleep(3 * training);
    assert!(up.lock().unwrap().is_empty());
    // A driver that asks again and again gets no more than one thread to wait for it.
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.trim() == "mlx4-train").count()
    };
    for _ in 0..1000 {
        plug.set_link(true);
    }
    assert!(threads() < 20, "{} threads", threads());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while up.lock().unwrap().is_empty() && std::time::Instant::now() < deadline {
        std::thread::sleep(training / 10);
    }
    assert_eq!(*up.lock().unwrap(), [true]);
}
