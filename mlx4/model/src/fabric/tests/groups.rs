//! Multicast: joining, being delivered to, leaving.

use mlx4_wire::mad::header::{Method, Status};
use mlx4_wire::mad::sa::path::{McMemberRecord, ScopeJoin, join_state};
use mlx4_wire::mad::sa::{SaAttribute, SaMad};
use mlx4_wire::{U16, U32};
use zerocopy::FromZeros;

use super::{Adapter, Lab};
use crate::fabric::datagram::Datagram;
use crate::fabric::packet::{Grh, Headers};

/// IPoIB's broadcast group of the default partition.
const BROADCAST: [u8; 16] = [0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
/// 224.0.0.1 on IPoIB.
const ALL_HOSTS: [u8; 16] = [0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

const LEAVE: u64 = 0x1_0003;
/// What ib_ipoib names when it joins the broadcast group.
const JOIN: u64 = 0x1_0083;
/// What ib_ipoib names when it joins another group.
const CREATE: u64 = 0x1_73f7;

fn record(adapter: &Adapter, mgid: [u8; 16], state: u8) -> McMemberRecord {
    McMemberRecord {
        mgid,
        port_gid: adapter.gid(),
        p_key: U16::new(0xffff),
        scope_join: ScopeJoin::new().with_join_state(state),
        ..McMemberRecord::new_zeroed()
    }
}

fn change(lab: &mut Lab, adapter: &Adapter, method: Method, mask: u64, record: &McMemberRecord) -> SaMad {
    let answers = adapter.ask(lab, method, SaAttribute::MC_MEMBER_RECORD, mask, record);
    assert_eq!(answers.len(), 1);
    answers[0]
}

/// Joins the broadcast group as ib_ipoib does.
fn join_broadcast(lab: &mut Lab, adapter: &Adapter) -> McMemberRecord {
    let wanted = record(adapter, BROADCAST, join_state::FULL_MEMBER);
    let answer = change(lab, adapter, Method::SET, JOIN, &wanted);
    assert_eq!((answer.header.method, answer.status()), (Method::GET_RESP, Status::GOOD));
    answer.attribute()
}

/// Joins 224.0.0.1 with the parameters of the broadcast group, as ib_ipoib does.
fn join_all_hosts(lab: &mut Lab, adapter: &Adapter, state: u8) -> SaMad {
    let mut wanted = join_broadcast(lab, adapter);
    wanted.mgid = ALL_HOSTS;
    wanted.scope_join = ScopeJoin::new().with_join_state(state);
    change(lab, adapter, Method::SET, CREATE, &wanted)
}

fn send_to_group(adapter: &Adapter, mlid: u16) -> Datagram {
    let grh = Grh { sgid: adapter.gid(), dgid: BROADCAST, ..Grh::default() };
    let headers = Headers {
        slid: adapter.lid(),
        dlid: mlid,
        dest_qp: 0xff_ffff,
        src_qp: 0x48,
        pkey: 0xffff,
        qkey: 0xb1b,
        grh: Some(grh),
        ..Headers::default()
    };
    let datagram = Datagram { headers, mad: [7; 256] };
    adapter.send(&datagram);
    datagram
}

#[test]
fn broadcast_group_is_there_with_the_values_of_ipoib() {
    let (mut lab, adapters) = Lab::with_adapters(1);
    let group = join_broadcast(&mut lab, &adapters[0]);
    assert_eq!((group.q_key.get(), group.mlid.get(), group.p_key.get()), (0xb1b, 0xc000, 0xffff));
    assert_eq!((group.mtu.into_bits(), group.rate.into_bits()), (0x84, 0x83));
    assert_eq!((group.flow.into_bits().get(), group.tclass), (0, 0));
    assert_eq!((group.scope_join.scope(), group.scope_join.join_state()), (2, 1));
    assert_eq!(group.port_gid, adapters[0].gid());
}

#[test]
fn packet_reaches_all_members_but_its_sender() {
    let (mut lab, adapters) = Lab::with_adapters(4);
    for adapter in &adapters[..3] {
        join_broadcast(&mut lab, adapter);
    }
    let sent = send_to_group(&adapters[0], 0xc000);
    assert!(adapters[0].received().is_empty());
    assert_eq!(adapters[1].received(), [sent]);
    assert_eq!(adapters[2].received(), [sent]);
    assert!(adapters[3].received().is_empty());
    send_to_group(&adapters[3], 0xc000);
    assert_eq!(adapters[0].received().len(), 1);
}

#[test]
fn member_that_left_or_lost_its_link_gets_nothing() {
    let (mut lab, adapters) = Lab::with_adapters(3);
    for adapter in &adapters {
        join_broadcast(&mut lab, adapter);
    }
    let wanted = record(&adapters[0], BROADCAST, join_state::FULL_MEMBER);
    let answer = change(&mut lab, &adapters[0], Method::DELETE, LEAVE, &wanted);
    assert_eq!((answer.header.method, answer.status()), (Method::DELETE_RESP, Status::GOOD));
    adapters[1].plug().set_link(false);
    lab.advance(std::time::Duration::from_millis(50));
    adapters[1].plug().set_link(true);
    lab.advance(std::time::Duration::from_millis(50));
    send_to_group(&adapters[2], 0xc000);
    assert!(adapters[0].received().is_empty() && adapters[1].received().is_empty());
    let again = change(&mut lab, &adapters[0], Method::DELETE, LEAVE, &wanted);
    assert_eq!(again.status(), Status::SA_REQ_INVALID);
}

#[test]
fn group_is_created_by_its_first_full_member_and_ends_with_the_last() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let created = join_all_hosts(&mut lab, &adapters[0], join_state::FULL_MEMBER);
    assert_eq!(created.status(), Status::GOOD);
    let created = created.attribute::<McMemberRecord>();
    assert_eq!((created.mlid.get(), created.q_key.get()), (0xc001, 0xb1b));
    let sender = join_all_hosts(&mut lab, &adapters[1], join_state::SEND_ONLY_NON_MEMBER);
    assert_eq!(sender.attribute::<McMemberRecord>().mlid.get(), 0xc001);
    send_to_group(&adapters[1], 0xc001);
    assert_eq!(adapters[0].received().len(), 1);
    send_to_group(&adapters[0], 0xc001);
    assert!(adapters[1].received().is_empty());
    let wanted = record(&adapters[0], ALL_HOSTS, join_state::FULL_MEMBER);
    assert_eq!(change(&mut lab, &adapters[0], Method::DELETE, LEAVE, &wanted).status(), Status::GOOD);
    send_to_group(&adapters[1], 0xc001);
    assert!(adapters[0].received().is_empty());
    let refused = join_all_hosts(&mut lab, &adapters[1], join_state::NON_MEMBER);
    assert_eq!(refused.status(), Status::SA_REQ_INVALID);
}

#[test]
fn send_only_full_member_creates_a_group_as_ipoib_expects() {
    let (mut lab, adapters) = Lab::with_adapters(1);
    let answer = join_all_hosts(&mut lab, &adapters[0], join_state::SEND_ONLY_FULL_MEMBER);
    assert_eq!(answer.status(), Status::GOOD);
    assert_eq!(answer.attribute::<McMemberRecord>().scope_join.join_state(), 8);
    let more = join_all_hosts(&mut lab, &adapters[0], join_state::FULL_MEMBER);
    assert_eq!(more.attribute::<McMemberRecord>().scope_join.join_state(), 9);
}

#[test]
fn join_is_refused_with_the_right_status() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let own = &adapters[0];
    let full = join_state::FULL_MEMBER;
    let mut other_prefix = record(own, BROADCAST, full);
    other_prefix.port_gid[7] = 1;
    let mut unknown = record(own, BROADCAST, full);
    unknown.port_gid[15] = 0x77;
    let mut other_qkey = record(own, BROADCAST, full);
    other_qkey.q_key = U32::new(1);
    let elsewhere = [0xff, 0x12, 0x40, 0x1b, 0x80, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    for (status, mask, wanted) in [
        (Status::SA_REQ_INSUFFICIENT_COMPONENTS, JOIN & !1, record(own, BROADCAST, full)),
        (Status::SA_REQ_INSUFFICIENT_COMPONENTS, JOIN, record(own, ALL_HOSTS, full)),
        (Status::SA_REQ_INVALID, JOIN, record(own, BROADCAST, 0)),
        (Status::SA_REQ_INVALID_GID, JOIN, other_prefix),
        (Status::SA_REQ_INVALID, JOIN, unknown),
        (Status::SA_REQ_DENIED, JOIN, record(&adapters[1], BROADCAST, full)),
        (Status::SA_REQ_INVALID, JOIN | McMemberRecord::MASK_Q_KEY, other_qkey),
        (Status::SA_REQ_INVALID, CREATE, record(own, ALL_HOSTS, join_state::NON_MEMBER)),
        (Status::SA_REQ_INVALID, CREATE, record(own, elsewhere, full)),
        (Status::SA_REQ_INVALID, CREATE, record(own, [0xfe; 16], full)),
    ] {
        assert_eq!(change(&mut lab, own, Method::SET, mask, &wanted).status(), status, "{wanted:?}");
    }
    assert!(lab.manager.take_out().is_empty());
}

#[test]
fn administrator_names_a_group_without_mgid() {
    let (mut lab, adapters) = Lab::with_adapters(1);
    let mut wanted = join_broadcast(&mut lab, &adapters[0]);
    wanted.mgid = [0; 16];
    wanted.scope_join = ScopeJoin::new().with_join_state(join_state::FULL_MEMBER);
    let first = change(&mut lab, &adapters[0], Method::SET, CREATE, &wanted).attribute::<McMemberRecord>();
    let second = change(&mut lab, &adapters[0], Method::SET, CREATE, &wanted).attribute::<McMemberRecord>();
    assert_eq!(first.mgid[..4], [0xff, 0x12, 0xa0, 0x1b]);
    assert_ne!((first.mgid, first.mlid), (second.mgid, second.mlid));
}

#[test]
fn one_port_cannot_take_all_groups() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let mut wanted = join_broadcast(&mut lab, &adapters[0]);
    wanted.mgid = [0; 16];
    let mut status = Status::GOOD;
    for _ in 0..300 {
        status = change(&mut lab, &adapters[0], Method::SET, CREATE, &wanted).status();
    }
    assert_eq!(status, Status::SA_NO_RESOURCES);
    assert_eq!(join_all_hosts(&mut lab, &adapters[1], join_state::FULL_MEMBER).status(), Status::GOOD);
    join_broadcast(&mut lab, &adapters[0]);
}

#[test]
fn table_of_groups_hides_members() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    join_all_hosts(&mut lab, &adapters[0], join_state::FULL_MEMBER);
    let answers = adapters[1].ask(
        &mut lab,
        Method::GET_TABLE,
        SaAttribute::MC_MEMBER_RECORD,
        0,
        &McMemberRecord::new_zeroed(),
    );
    assert_eq!(answers.len(), 1);
    let (rmpp, data) = (answers[0].rmpp, answers[0].data);
    assert_eq!((rmpp.segment_number.get(), rmpp.length_or_window.get()), (1, 20 + 2 * 56));
    assert_eq!((rmpp.flags.into_bits() & 7, answers[0].attribute_offset.get()), (7, 7));
    assert_eq!(data[..16], ALL_HOSTS);
    assert_eq!(data[16..32], [0; 16]);
    assert_eq!(data[56..72], BROADCAST);
}
