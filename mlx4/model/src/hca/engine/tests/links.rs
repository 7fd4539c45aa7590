//! Links that go down and come up, two ports, and packets with wrong keys.

use mlx4_wire::U32;
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::ServiceType;
use mlx4_wire::eqe::{Eqe, EventType, PortChangeEvent, PortChangeSubtype};
use mlx4_wire::mad::notice::{BadKeyDetails, Notice, Trap};
use mlx4_wire::wqe::{DatagramSeg, Opcode};
use zerocopy::{FromBytes, FromZeros};

use super::connections::{good, one_sided, remote};
use super::lab::{End, Lab};
use super::machine::PD;
use super::queues::{Done, QpConfig, ctrl, inline, units, whole};

fn rc() -> QpConfig {
    QpConfig::new(ServiceType::RC)
}

/// Ports that the events say have gone down or become ACTIVE, in order.
fn port_changes(eqes: &[Eqe]) -> Vec<(PortChangeSubtype, u8)> {
    let changes = eqes.iter().filter(|eqe| eqe.event_type() == EventType::PORT_CHANGE);
    changes.map(|eqe| (PortChangeSubtype(eqe.subtype), PortChangeEvent::from(eqe.data).port.port())).collect()
}

#[test]
fn link_down_costs_retries_and_link_up_goes_on_with_what_is_left() {
    let lab = Lab::new(2);
    let (near, far) = (&lab.machines[0], &lab.machines[1]);
    // One gives up soon; the other's timeouts are of half a second, and there are many.
    let patient = QpConfig { ack_timeout: 17, retries: 7, ..rc() };
    let (hasty, _) = lab.connect((0, rc()), (1, rc()));
    let (a, b) = lab.connect((0, patient), (1, patient));
    let uc = QpConfig::new(ServiceType::UC);
    let (lossy, deaf) = lab.connect((0, uc), (1, uc));
    far.hca.plug(1).unwrap().set_link(false);
    assert_eq!(port_changes(&far.take_eqes()), [(PortChangeSubtype::DOWN, 1)]);
    let (from, to) = (near.buffer(64), far.buffer(64));
    let write = one_sided(&remote(&to, 0), &[whole(&from)]);
    for end in [&hasty, &a] {
        end.qp.post(near, ctrl(Opcode::RDMA_WRITE), &write);
    }
    deaf.qp.post_receive(far, &[]);
    lossy.qp.post(near, ctrl(Opcode::SEND), &[]);
    assert_eq!(lossy.sent(&lab), good(Opcode::SEND, 0));
    assert_eq!(hasty.sent(&lab), Done::Failed(Syndrome::TRANSPORT_RETRY_EXC_ERR));
    assert!(deaf.receive.peek(far).is_none());
    far.hca.plug(1).unwrap().set_link(true);
    lab.until("the port to become ACTIVE again", || far.port().is_active());
    assert_eq!(port_changes(&far.take_eqes()), [(PortChangeSubtype::ACTIVE, 1)]);
    // The subnet manager gives the port its LID again, so the connection is the one it was.
    assert_eq!(a.sent(&lab), good(Opcode::RDMA_WRITE, 0));
    b.qp.post(far, ctrl(Opcode::RDMA_WRITE), &one_sided(&remote(&from, 0), &[whole(&to)]));
    assert_eq!(b.sent(&lab), good(Opcode::RDMA_WRITE, 0));
    lossy.qp.post(near, ctrl(Opcode::SEND), &[]);
    assert_eq!(
        (lossy.sent(&lab), deaf.received(&lab)),
        (good(Opcode::SEND, 0), Done::Good { opcode: 1, bytes: 0 })
    );
}

#[test]
fn ports_have_links_addresses_and_queue_pairs_of_their_own() {
    let lab = Lab::with_ports(1, 2, false);
    let machine = &lab.machines[0];
    let ports = [1, 2].map(|port| machine.port_number(port));
    assert_ne!(ports[0].lid(), ports[1].lid());
    let join = |a: &End, b: &End, (from, to): (u8, u8)| {
        a.qp.to_rtr(machine, b.qp.qpn, lab.path_between(from, 0, to), 3);
        b.qp.to_rtr(machine, a.qp.qpn, lab.path_between(to, 0, from), 3);
        a.qp.to_rts(machine, 3);
        b.qp.to_rts(machine, 3);
    };
    let end = |port| lab.end(0, QpConfig { port, ..rc() });
    let (a, b) = (end(1), end(2));
    join(&a, &b, (1, 2));
    let (c, d) = (end(1), end(1));
    join(&c, &d, (1, 1));
    // A queue pair of port 1 doesn't hear what comes in by port 2.
    let (e, f) = (end(1), end(1));
    e.qp.to_rtr(machine, f.qp.qpn, lab.path_between(1, 0, 2), 3);
    f.qp.to_rtr(machine, e.qp.qpn, lab.path_between(1, 0, 1), 3);
    e.qp.to_rts(machine, 3);
    let to = machine.buffer(64);
    let send = |from: &End| from.qp.post(machine, ctrl(Opcode::SEND), &inline(16, b"port"));
    b.qp.post_receive(machine, &[whole(&to)]);
    send(&a);
    assert_eq!((a.sent(&lab), b.received(&lab)), (good(Opcode::SEND, 0), Done::Good { opcode: 1, bytes: 4 }));
    send(&e);
    assert_eq!(e.sent(&lab), Done::Failed(Syndrome::TRANSPORT_RETRY_EXC_ERR));
    machine.take_eqes();
    machine.hca.plug(2).unwrap().set_link(false);
    assert_eq!(port_changes(&machine.take_eqes()), [(PortChangeSubtype::DOWN, 2)]);
    assert_eq!((ports[0].is_active(), ports[1].is_active()), (true, false));
    send(&a);
    assert_eq!(a.sent(&lab), Done::Failed(Syndrome::TRANSPORT_RETRY_EXC_ERR));
    d.qp.post_receive(machine, &[whole(&to)]);
    send(&c);
    assert_eq!((c.sent(&lab), d.received(&lab)), (good(Opcode::SEND, 0), Done::Good { opcode: 1, bytes: 4 }));
}

#[test]
fn datagram_of_a_port_that_is_down_is_discarded_and_counted() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let a = lab.end(0, QpConfig::new(ServiceType::UD));
    a.qp.to_rtr(machine, 0, lab.path(0), 0);
    a.qp.to_rts(machine, 0);
    let mut segment = DatagramSeg::new_zeroed();
    segment.av.port.set_port(1);
    segment.av.port.set_pd(PD);
    segment.av.remote_lid = lab.path(0).remote_lid;
    segment.remote_qpn.set_number(a.qp.qpn);
    machine.hca.plug(1).unwrap().set_link(false);
    a.qp.post_receive(machine, &[whole(&machine.buffer(100))]);
    a.qp.post(machine, ctrl(Opcode::SEND), &units(&segment));
    assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
    assert!(a.receive.peek(machine).is_none());
}

/// Trap number, LIDs, key and queue pairs of a notice.
fn violation(notice: &Notice) -> (Trap, [u16; 2], u32, [u32; 2]) {
    let details = BadKeyDetails::read_from_bytes(&notice.details[..]).unwrap();
    let lids = [details.lid1.get(), details.lid2.get()];
    (Trap(notice.trap_number.get()), lids, details.key.get(), [details.qp1.qp(), details.qp2.qp()])
}

#[test]
fn subnet_manager_is_told_of_wrong_keys_once_in_a_while() {
    let lab = Lab::new(2);
    let (near, far) = (&lab.machines[0], &lab.machines[1]);
    let lids = [near.port().lid(), far.port().lid()];
    let ud = |machine, pkey_index| {
        let end = lab.end(machine, QpConfig { pkey_index, ..QpConfig::new(ServiceType::UD) });
        end.qp.to_rtr(lab.machine(&end), 0, lab.path(machine), 0);
        end.qp.to_rts(lab.machine(&end), 7);
        end
    };
    let (a, b) = (ud(0, 0), ud(1, 0));
    let mut segment = DatagramSeg::new_zeroed();
    segment.av.port.set_port(1);
    segment.av.port.set_pd(PD);
    segment.av.remote_lid = lab.path(1).remote_lid;
    segment.remote_qpn.set_number(b.qp.qpn);
    segment.qkey = U32::new(0x111);
    for _ in 0..200 {
        a.qp.post(near, ctrl(Opcode::SEND), &units(&segment));
        assert_eq!(a.sent(&lab), good(Opcode::SEND, 0));
    }
    // A connection whose ends are in different partitions; the second entry of the table is empty.
    let (c, d) = lab.connect((0, rc()), (1, QpConfig { pkey_index: 1, ..rc() }));
    c.qp.post(near, ctrl(Opcode::RDMA_WRITE), &[[0; 16]]);
    assert_eq!(c.sent(&lab), Done::Failed(Syndrome::TRANSPORT_RETRY_EXC_ERR));
    lab.until("both kinds of traps", || lab.traps(1).len() >= 2);
    assert_eq!((far.port().q_key_violations.get(), far.port().p_key_violations.get()), (200, 3));
    let traps = lab.traps(1);
    assert_eq!(violation(&traps[0]), (Trap::BAD_Q_KEY, lids, 0x111, [a.qp.qpn, b.qp.qpn]));
    let last = &traps[traps.len() - 1];
    assert_eq!(violation(last), (Trap::BAD_P_KEY, lids, 0xffff, [c.qp.qpn, d.qp.qpn]));
    assert_eq!(last.issuer_lid.get(), lids[1]);
    // A flood of packets isn't one of traps.
    assert!(traps.len() < 100, "{} traps", traps.len());
    assert!(lab.traps(0).is_empty());
}
