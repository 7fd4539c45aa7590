//! The other records of the administrator: nodes, services, alias GUIDs, subscriptions.

use std::time::Duration;

use mlx4_wire::mad::header::{Method, Status};
use mlx4_wire::mad::notice::{ReportedNotice, Trap};
use mlx4_wire::mad::sa::path::{McMemberRecord, PathRecord, ScopeJoin};
use mlx4_wire::mad::sa::record::{
    GuidInfoRecord, InformInfo, InformInfoRecord, LinkRecord, NodeRecord, PKeyTableRecord, PortInfoRecord,
    ServiceRecord, SmInfoRecord, SwitchInfoRecord,
};
use mlx4_wire::mad::sa::{SaAttribute, SaMad};
use mlx4_wire::{U16, U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::{Adapter, Lab, SWITCH_GUID, SmConfig};
use crate::fabric::datagram::Datagram;
use crate::fabric::sm::subnet::make_gid;

const PREFIX: u64 = 0xfe80_0000_0000_0000;

fn one<R: IntoBytes + Immutable>(
    lab: &mut Lab,
    from: &Adapter,
    method: Method,
    attribute: SaAttribute,
    mask: u64,
    record: &R,
) -> SaMad {
    let answers = from.ask(lab, method, attribute, mask, record);
    assert_eq!(answers.len(), 1, "{attribute}");
    answers[0]
}

/// Number of records in a table of one or more segments, of which only the first is looked at.
fn count(answer: &SaMad, segments: usize) -> usize {
    let stride = usize::from(answer.attribute_offset.get()) * 8;
    (answer.rmpp.length_or_window.get() as usize - 20 * segments).checked_div(stride).unwrap_or(0)
}

#[test]
fn tables_list_nodes_ports_and_links() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let from = &adapters[0];
    let table = Method::GET_TABLE;
    let nodes = one(&mut lab, from, table, SaAttribute::NODE_RECORD, 0, &NodeRecord::new_zeroed());
    assert_eq!(count(&nodes, 2), 3);
    let ports = one(&mut lab, from, table, SaAttribute::PORT_INFO_RECORD, 0, &PortInfoRecord::new_zeroed());
    assert_eq!(count(&ports, (39 * 72usize).div_ceil(200)), 39);
    let links = one(&mut lab, from, table, SaAttribute::LINK_RECORD, 0, &LinkRecord::new_zeroed());
    assert_eq!(count(&links, 1), 4);
    let switches =
        one(&mut lab, from, table, SaAttribute::SWITCH_INFO_RECORD, 0, &SwitchInfoRecord::new_zeroed());
    assert_eq!(count(&switches, 1), 1);
    let pkeys =
        one(&mut lab, from, table, SaAttribute::P_KEY_TABLE_RECORD, 0, &PKeyTableRecord::new_zeroed());
    assert_eq!(count(&pkeys, 2), 4);
}

#[test]
fn queries_pick_by_component() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let (from, far) = (&adapters[0], &adapters[1]);
    let mut node = NodeRecord::new_zeroed();
    node.node_info.port_guid = U64::new(0x2001);
    let answer =
        one(&mut lab, from, Method::GET, SaAttribute::NODE_RECORD, NodeRecord::MASK_PORT_GUID, &node);
    let found = answer.attribute::<NodeRecord>();
    assert_eq!((found.lid.get(), found.node_info.node_guid.get()), (far.lid(), 0x2000));
    assert!(found.node_description.starts_with(b"lab adapter"));
    let mut link = LinkRecord::new_zeroed();
    link.from_lid = U16::new(far.lid());
    let answer = one(&mut lab, from, Method::GET, SaAttribute::LINK_RECORD, LinkRecord::MASK_FROM_LID, &link);
    let found = answer.attribute::<LinkRecord>();
    assert_eq!((found.from_port, found.to_port, found.to_lid.get()), (1, 2, 1));
    let none = LinkRecord { from_lid: U16::new(0x99), ..link };
    let answer = one(&mut lab, from, Method::GET, SaAttribute::LINK_RECORD, LinkRecord::MASK_FROM_LID, &none);
    assert_eq!(answer.status(), Status::SA_NO_RECORDS);
    let answer =
        one(&mut lab, from, Method::GET, SaAttribute::SM_INFO_RECORD, 0, &SmInfoRecord::new_zeroed());
    assert_eq!(answer.attribute::<SmInfoRecord>().sm_info.guid.get(), SWITCH_GUID);
}

#[test]
fn managers_are_found_by_capability() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let mut wanted = PortInfoRecord::new_zeroed();
    wanted.port_info.capability_mask.set_is_sm(true);
    let mask = PortInfoRecord::MASK_CAPABILITY_MASK;
    let mut request = adapters[0].request(Method::GET_TABLE, SaAttribute::PORT_INFO_RECORD, mask, &wanted);
    request.mad[0x14] = 0x80;
    adapters[0].send(&request);
    lab.settle();
    let answer = SaMad::from_mad(&adapters[0].received()[0].mad);
    assert_eq!(count(&answer, 1), 1);
    assert_eq!(answer.attribute::<PortInfoRecord>().lid.get(), 1);
}

#[test]
fn ports_of_other_partitions_are_not_shown() {
    let mut config = SmConfig::default();
    config.port_pkeys.insert(0x2001, vec![0x8005]);
    let mut lab = Lab::new(config);
    let (own, _fenced) = (lab.plug(1), lab.plug(2));
    lab.settle();
    let nodes =
        one(&mut lab, &own, Method::GET_TABLE, SaAttribute::NODE_RECORD, 0, &NodeRecord::new_zeroed());
    assert_eq!(count(&nodes, 2), 2);
}

fn service(from: &Adapter, id: u64) -> ServiceRecord {
    ServiceRecord {
        service_id: U64::new(id),
        service_gid: from.gid(),
        service_lease: U32::new(60),
        service_key: [9; 16],
        ..ServiceRecord::new_zeroed()
    }
}

#[test]
fn service_is_found_until_its_lease_ends() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let own = ServiceRecord::MASK_SERVICE_ID | ServiceRecord::MASK_SERVICE_GID;
    let record = service(&adapters[0], 7);
    let set = one(
        &mut lab,
        &adapters[0],
        Method::SET,
        SaAttribute::SERVICE_RECORD,
        own | ServiceRecord::MASK_SERVICE_LEASE,
        &record,
    );
    assert_eq!((set.status(), set.header.method), (Status::GOOD, Method::GET_RESP));
    lab.advance(Duration::from_secs(20));
    let find = |lab: &mut Lab| {
        let wanted = ServiceRecord::MASK_SERVICE_ID;
        one(lab, &adapters[1], Method::GET, SaAttribute::SERVICE_RECORD, wanted, &record)
    };
    let found = find(&mut lab).attribute::<ServiceRecord>();
    assert_eq!((found.service_gid, found.service_key), (adapters[0].gid(), [0; 16]));
    assert_eq!((found.service_lease.get(), found.service_p_key.get()), (40, 0xffff));
    lab.advance(Duration::from_secs(41));
    assert_eq!(find(&mut lab).status(), Status::SA_NO_RECORDS);
}

#[test]
fn service_belongs_to_its_port() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let own = ServiceRecord::MASK_SERVICE_ID | ServiceRecord::MASK_SERVICE_GID;
    let record = service(&adapters[0], 7);
    let mut ask = |from: &Adapter, method, mask| {
        one(&mut lab, from, method, SaAttribute::SERVICE_RECORD, mask, &record).status()
    };
    assert_eq!(ask(&adapters[0], Method::SET, ServiceRecord::MASK_SERVICE_ID), Status::SA_REQ_INVALID);
    assert_eq!(ask(&adapters[1], Method::SET, own), Status::SA_REQ_DENIED);
    assert_eq!(ask(&adapters[0], Method::SET, own), Status::GOOD);
    assert_eq!(ask(&adapters[1], Method::DELETE, own), Status::SA_REQ_DENIED);
    assert_eq!(ask(&adapters[0], Method::DELETE, own), Status::GOOD);
    assert_eq!(ask(&adapters[0], Method::DELETE, own), Status::SA_NO_RECORDS);
}

#[test]
fn one_port_cannot_take_all_services() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let own = ServiceRecord::MASK_SERVICE_ID | ServiceRecord::MASK_SERVICE_GID;
    let mut set = |from: &Adapter, id| {
        one(&mut lab, from, Method::SET, SaAttribute::SERVICE_RECORD, own, &service(from, id)).status()
    };
    let last = (0..100).map(|id| set(&adapters[0], id)).last();
    assert_eq!(last, Some(Status::SA_NO_RESOURCES));
    assert_eq!(set(&adapters[1], 1), Status::GOOD);
    adapters[0].plug().set_link(false);
    adapters[0].plug().set_link(true);
    lab.advance(Duration::from_millis(50));
    let again = service(&adapters[0], 1);
    let answer = one(&mut lab, &adapters[0], Method::SET, SaAttribute::SERVICE_RECORD, own, &again);
    assert_eq!(answer.status(), Status::GOOD);
}

fn guids(from: &Adapter, block: u8, guid: u64) -> GuidInfoRecord {
    let mut record = GuidInfoRecord::new_zeroed();
    record.lid = U16::new(from.lid());
    record.block_num = block;
    record.guid_info.guids[3] = U64::new(guid);
    record
}

const GUID3: u64 = GuidInfoRecord::MASK_LID | GuidInfoRecord::MASK_BLOCK_NUM | GuidInfoRecord::MASK_GID0 << 3;

#[test]
fn alias_guid_is_written_and_found_by_path_queries() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let record = guids(&adapters[0], 1, 0xabcd);
    let set = one(&mut lab, &adapters[0], Method::SET, SaAttribute::GUID_INFO_RECORD, GUID3, &record);
    assert_eq!((set.status(), set.header.method), (Status::GOOD, Method::GET_RESP));
    assert_eq!(set.attribute::<GuidInfoRecord>().guid_info.guids[3].get(), 0xabcd);
    assert_eq!(adapters[0].node.port(1).unwrap().guid(8 + 3), Some(0xabcd));
    let path =
        PathRecord { sgid: adapters[1].gid(), dgid: make_gid(PREFIX, 0xabcd), ..PathRecord::new_zeroed() };
    let by_gids = PathRecord::MASK_SGID | PathRecord::MASK_DGID;
    let found = one(&mut lab, &adapters[1], Method::GET, SaAttribute::PATH_RECORD, by_gids, &path);
    let found = found.attribute::<PathRecord>();
    assert_eq!((found.dlid.get(), found.dgid), (adapters[0].lid(), path.dgid));
    let deleted = one(&mut lab, &adapters[0], Method::DELETE, SaAttribute::GUID_INFO_RECORD, GUID3, &record);
    assert_eq!((deleted.status(), deleted.header.method), (Status::GOOD, Method::DELETE_RESP));
    let gone = one(&mut lab, &adapters[1], Method::GET, SaAttribute::PATH_RECORD, by_gids, &path);
    assert_eq!(gone.status(), Status::SA_NO_RECORDS);
}

#[test]
fn administrator_chooses_a_guid() {
    let (mut lab, adapters) = Lab::with_adapters(1);
    let record = guids(&adapters[0], 0, 0);
    let set = one(&mut lab, &adapters[0], Method::SET, SaAttribute::GUID_INFO_RECORD, GUID3, &record);
    let chosen = set.attribute::<GuidInfoRecord>().guid_info.guids[3].get();
    assert_ne!(chosen, 0);
    assert_eq!(adapters[0].node.port(1).unwrap().guid(3), Some(chosen));
}

#[test]
fn alias_guid_is_refused_with_the_right_status() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let own = &adapters[0];
    let block = GuidInfoRecord::MASK_LID | GuidInfoRecord::MASK_BLOCK_NUM;
    let first = block | GuidInfoRecord::MASK_GID0;
    for (status, mask, record) in [
        (Status::SA_REQ_INSUFFICIENT_COMPONENTS, GUID3 & !1, guids(own, 0, 5)),
        (Status::SA_REQ_DENIED, GUID3, guids(&adapters[1], 0, 5)),
        (Status::SA_REQ_INVALID, first, guids(own, 0, 5)),
        (Status::SA_REQ_INVALID, GUID3, guids(own, 200, 5)),
        (Status::SA_REQ_INVALID, GUID3, guids(own, 0, 0x2001)),
        (Status::SA_REQ_INVALID, GUID3, guids(own, 0, 0x1001)),
    ] {
        let answer = one(&mut lab, own, Method::SET, SaAttribute::GUID_INFO_RECORD, mask, &record);
        assert_eq!(answer.status(), status);
    }
}

#[test]
fn alias_guid_in_a_group_stays_until_it_left() {
    let (mut lab, adapters) = Lab::with_adapters(1);
    let record = guids(&adapters[0], 0, 0xabcd);
    one(&mut lab, &adapters[0], Method::SET, SaAttribute::GUID_INFO_RECORD, GUID3, &record);
    let mut member = McMemberRecord::new_zeroed();
    member.mgid = [0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    member.port_gid = make_gid(PREFIX, 0xabcd);
    member.scope_join = ScopeJoin::new().with_join_state(1);
    let join = one(&mut lab, &adapters[0], Method::SET, SaAttribute::MC_MEMBER_RECORD, 0x1_0003, &member);
    assert_eq!(join.status(), Status::GOOD);
    let delete =
        |lab: &mut Lab| one(lab, &adapters[0], Method::DELETE, SaAttribute::GUID_INFO_RECORD, GUID3, &record);
    assert_eq!(delete(&mut lab).status(), Status::SA_REQ_DENIED);
    one(&mut lab, &adapters[0], Method::DELETE, SaAttribute::MC_MEMBER_RECORD, 0x1_0003, &member);
    assert_eq!(delete(&mut lab).status(), Status::GOOD);
}

fn everything() -> InformInfo {
    InformInfo {
        lid_range_begin: U16::new(InformInfo::ALL),
        is_generic: 1,
        subscribe: 1,
        notice_type: U16::new(InformInfo::ALL),
        trap_number: U16::new(InformInfo::ALL),
        producer: U32::new(InformInfo::ALL_PRODUCERS),
        ..InformInfo::new_zeroed()
    }
}

/// The traps and GIDs that were reported, without repeats.
fn reports(adapter: &Adapter) -> Vec<(Trap, [u8; 16])> {
    let mut seen = Vec::new();
    for datagram in adapter.received() {
        let mad = SaMad::from_mad(&datagram.mad);
        assert_eq!(mad.header.method, Method::REPORT);
        let reported = mad.attribute::<ReportedNotice>();
        let mut gid = [0; 16];
        gid.copy_from_slice(&reported.notice.details[6..22]);
        let mut response = mad;
        response.header.method = Method::REPORT_RESP;
        adapter.send(&Datagram { headers: adapter.gmp_headers(1), mad: response.to_mad() });
        seen.push((Trap(reported.notice.trap_number.get()), gid));
    }
    seen
}

#[test]
fn subscriber_hears_of_ports_and_groups() {
    let (mut lab, adapters) = Lab::with_adapters(1);
    let own = &adapters[0];
    let answer = one(&mut lab, own, Method::SET, SaAttribute::INFORM_INFO, 0, &everything());
    assert_eq!((answer.status(), answer.attribute::<InformInfo>()), (Status::GOOD, everything()));
    let other = lab.plug(2);
    lab.advance(Duration::from_millis(50));
    let link = (Trap::LINK_STATE_CHANGED, [0; 16]);
    assert_eq!(reports(own), [link, (Trap::GID_IN_SERVICE, other.gid())]);
    let mut wanted = McMemberRecord::new_zeroed();
    wanted.mgid = [0xff, 0x15, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
    wanted.port_gid = other.gid();
    wanted.p_key = U16::new(0xffff);
    wanted.scope_join = ScopeJoin::new().with_join_state(1);
    let created = one(&mut lab, &other, Method::SET, SaAttribute::MC_MEMBER_RECORD, 0x1_70c7, &wanted);
    assert_eq!(created.status(), Status::GOOD);
    assert_eq!(reports(own), [(Trap::MULTICAST_GROUP_CREATED, wanted.mgid)]);
    other.disconnect();
    lab.advance(Duration::from_millis(100));
    let mut heard = reports(own);
    heard.sort();
    let port = (Trap::GID_OUT_OF_SERVICE, make_gid(PREFIX, 0x2001));
    assert_eq!(heard, [port, (Trap::MULTICAST_GROUP_DELETED, wanted.mgid), link]);
    lab.advance(Duration::from_secs(10));
    assert!(own.received().is_empty());
}

#[test]
fn report_without_response_is_repeated_a_few_times() {
    let (mut lab, adapters) = Lab::with_adapters(1);
    let mut only_ports = everything();
    only_ports.trap_number = U16::new(Trap::GID_IN_SERVICE.0);
    one(&mut lab, &adapters[0], Method::SET, SaAttribute::INFORM_INFO, 0, &only_ports);
    lab.plug(2);
    lab.advance(Duration::from_secs(30));
    assert_eq!(adapters[0].received().len(), 4);
}

#[test]
fn subscription_is_listed_and_ended() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let mut info = everything();
    let set = |lab: &mut Lab, info: &InformInfo| {
        one(lab, &adapters[0], Method::SET, SaAttribute::INFORM_INFO, 0, info).status()
    };
    let security = InformInfo { trap_number: U16::new(Trap::BAD_M_KEY.0), ..info };
    assert_eq!(set(&mut lab, &security), Status::SA_REQ_DENIED);
    assert_eq!(set(&mut lab, &InformInfo { subscribe: 2, ..info }), Status::SA_REQ_INVALID);
    assert_eq!(set(&mut lab, &InformInfo { subscribe: 0, ..info }), Status::SA_REQ_INVALID);
    assert_eq!(set(&mut lab, &info), Status::GOOD);
    assert_eq!(set(&mut lab, &info), Status::GOOD);
    let list = |lab: &mut Lab, from: &Adapter| {
        let record = InformInfoRecord::new_zeroed();
        one(lab, from, Method::GET_TABLE, SaAttribute::INFORM_INFO_RECORD, 0, &record)
    };
    assert_eq!(count(&list(&mut lab, &adapters[0]), 1), 1);
    assert_eq!(count(&list(&mut lab, &adapters[1]), 1), 0);
    info.subscribe = 0;
    assert_eq!(set(&mut lab, &info), Status::GOOD);
    assert_eq!(count(&list(&mut lab, &adapters[0]), 1), 0);
}
