//! Asynchronous events that no other test is about: of ports, of queues that can't be read, and those that
//! nobody has asked for.

use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::{QpState, ServiceType};
use mlx4_wire::ctx::srq::SrqState;
use mlx4_wire::eqe::{
    EventType, PortChangeEvent, PortChangeSubtype, PortInfoChange, PortInfoEvent, PortManagementSubtype,
    SlToVlEvent, TableChangeEvent,
};
use mlx4_wire::wqe::Opcode;

use super::connections::good;
use super::lab::Lab;
use super::queues::{Done, QpConfig, TestSrq, ctrl};
use crate::node::{BlockChange, PortChanges};

#[test]
fn each_change_of_a_port_has_its_event() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let port = machine.port();
    let changes = PortChanges {
        port: 1,
        lid: true,
        sm_lid: true,
        sm_sl: true,
        gid_prefix: true,
        client_reregister: true,
        p_keys: Some(BlockChange { block: 2, entries: 0x8000_0001 }),
        guids: Some(BlockChange { block: 3, entries: 0x81 }),
        sl_to_vl: true,
        became_active: true,
        left_active: true,
        ..PortChanges::default()
    };
    machine.hca.port_changed(&changes);
    let eqes = machine.take_eqes();
    let kinds: Vec<_> = eqes.iter().map(|eqe| (eqe.event_type(), eqe.subtype)).collect();
    let management = |subtype: PortManagementSubtype| (EventType::PORT_MANAGEMENT_CHANGE, subtype.0);
    let link = |subtype: PortChangeSubtype| (EventType::PORT_CHANGE, subtype.0);
    let expected = [
        management(PortManagementSubtype::PORT_INFO),
        management(PortManagementSubtype::PKEY_TABLE),
        management(PortManagementSubtype::GUID_INFO),
        management(PortManagementSubtype::SL_TO_VL),
        link(PortChangeSubtype::DOWN),
        link(PortChangeSubtype::ACTIVE),
    ];
    assert_eq!(kinds, expected);
    let info = PortInfoEvent::from(eqes[0].data);
    assert_eq!((info.port, info.lid.get(), info.sm_lid.get()), (1, port.lid(), port.sm_lid()));
    assert_eq!((info.sm_sl, info.gid_prefix.get()), (port.sm_sl(), port.gid_prefix()));
    let all = PortInfoChange::new()
        .with_lid(true)
        .with_sm_lid(true)
        .with_sm_sl(true)
        .with_gid_prefix(true)
        .with_client_reregister(true);
    assert_eq!(info.changed, all);
    let tables = [&eqes[1], &eqes[2]].map(|eqe| TableChangeEvent::from(eqe.data));
    assert_eq!(tables.map(|t| (t.port, t.block.get(), t.entries.get())), [(1, 2, 0x8000_0001), (1, 3, 0x81)]);
    assert_eq!(SlToVlEvent::from(eqes[3].data).table, port.sl_to_vl_pairs());
    assert_eq!(PortChangeEvent::from(eqes[5].data).port.port(), 1);
}

#[test]
fn send_queue_that_cannot_be_read_is_a_catastrophe_of_its_queue_pair() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let a = lab.end(0, QpConfig { lost: true, ..QpConfig::new(ServiceType::RC) });
    a.qp.to_rtr(machine, 1, lab.path(0), 0);
    a.qp.to_rts(machine, 0);
    machine.take_events();
    machine.ring(a.qp.qpn);
    lab.settle();
    assert_eq!(a.qp.state(), QpState::ERR);
    assert_eq!(machine.take_events(), [(EventType::WQ_CATASTROPHIC, a.qp.qpn)]);
    assert!(a.send.peek(machine).is_none());
}

#[test]
fn shared_queue_that_cannot_be_read_is_in_error_for_all_and_says_so_once() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let srq = TestSrq::lost(far);
    let rc = QpConfig::new(ServiceType::RC);
    let pairs = [0, 1].map(|_| lab.connect((0, rc), (1, QpConfig { srqn: Some(srq.srqn), ..rc })));
    far.take_events();
    let events = pairs.each_ref().map(|(a, b)| {
        a.qp.post(lab.machine(a), ctrl(Opcode::SEND), &[]);
        assert_eq!(a.sent(&lab), Done::Failed(Syndrome::REMOTE_OP_ERR));
        lab.settle();
        assert_eq!(b.qp.state(), QpState::ERR);
        far.take_events()
    });
    let of_qp = |i: usize| {
        [EventType::WQ_CATASTROPHIC, EventType::SRQ_QP_LAST_WQE].map(|event| (event, pairs[i].1.qp.qpn))
    };
    assert_eq!(events[0], [&[(EventType::SRQ_CATASTROPHIC, srq.srqn)][..], &of_qp(0)].concat());
    assert_eq!(events[1], of_qp(1));
    assert_eq!(srq.srq.context(&far.burst()).size.state(), SrqState::ERROR);
}

#[test]
fn event_that_is_routed_nowhere_is_lost_and_nothing_else() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    far.running().route_events(EventType::COMMUNICATION_ESTABLISHED.mask(), None);
    let config = QpConfig::new(ServiceType::RC);
    let (a, b) = (lab.end(0, config), lab.end(1, config));
    a.qp.to_rtr(lab.machine(&a), b.qp.qpn, lab.path(1), 0);
    b.qp.to_rtr(far, a.qp.qpn, lab.path(0), 5);
    a.qp.to_rts(lab.machine(&a), 5);
    far.take_events();
    b.qp.post_receive(far, &[]);
    a.qp.post(lab.machine(&a), ctrl(Opcode::SEND), &[]);
    assert_eq!((a.sent(&lab), b.received(&lab)), (good(Opcode::SEND, 0), Done::Good { opcode: 1, bytes: 0 }));
    assert_eq!(far.take_events(), []);
}
