//! Paths, and answers of several packets.

use mlx4_wire::mad::header::{ClassPortInfo, Method, Status};
use mlx4_wire::mad::portinfo::Mtu;
use mlx4_wire::mad::sa::path::{PathCount, PathRecord, Rate, Selected, Selector};
use mlx4_wire::mad::sa::{RmppFlags, RmppStatus, RmppType, SaAttribute, SaMad};
use mlx4_wire::{U16, U32};
use zerocopy::FromZeros;

use super::{Adapter, Lab, SmConfig};
use crate::fabric::datagram::Datagram;

/// What ib_ipoib names in a path query.
const IPOIB: u64 = 0x340c;

fn query(from: &Adapter, to: &Adapter) -> PathRecord {
    PathRecord {
        dgid: to.gid(),
        sgid: from.gid(),
        count: PathCount::new().with_numb_path(1),
        p_key: U16::new(0xffff),
        ..PathRecord::new_zeroed()
    }
}

fn get(lab: &mut Lab, from: &Adapter, mask: u64, record: &PathRecord) -> SaMad {
    let answers = from.ask(lab, Method::GET, SaAttribute::PATH_RECORD, mask, record);
    assert_eq!(answers.len(), 1);
    answers[0]
}

#[test]
fn path_between_two_ports_has_their_lids_and_link() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let record = query(&adapters[0], &adapters[1]);
    let answer = get(&mut lab, &adapters[0], IPOIB, &record);
    assert_eq!((answer.header.method, answer.status()), (Method::GET_RESP, Status::GOOD));
    assert!(!answer.rmpp.flags.active());
    assert_eq!(answer.header.transaction_id.get(), 0x77_0000_0001);
    let path = answer.attribute::<PathRecord>();
    assert_eq!((path.slid.get(), path.dlid.get()), (adapters[0].lid(), adapters[1].lid()));
    assert_eq!((path.sgid, path.dgid), (adapters[0].gid(), adapters[1].gid()));
    assert_eq!((path.flow.hop_limit(), path.sl.sl(), path.p_key.get()), (0, 0, 0xffff));
    assert_eq!((path.mtu.selector(), path.mtu.value()), (Selector::EXACTLY, Mtu::B4096.0));
    assert_eq!((path.rate.selector(), path.rate.value()), (Selector::EXACTLY, Rate::G56.0));
    assert_eq!(path.packet_life_time.into_bits(), 0x92);
    assert!(path.count.reversible() && path.count.numb_path() == 0);
}

#[test]
fn path_to_nobody_or_across_partitions_is_no_record() {
    let mut config = SmConfig::default();
    config.port_pkeys.insert(0x2001, vec![0x8005]);
    let mut lab = Lab::new(config);
    let (own, fenced, other) = (lab.plug(1), lab.plug(2), lab.plug(3));
    lab.settle();
    let mut nobody = query(&own, &other);
    nobody.dgid[15] = 0x99;
    assert_eq!(get(&mut lab, &own, IPOIB, &nobody).status(), Status::SA_NO_RECORDS);
    let across = query(&own, &fenced);
    assert_eq!(get(&mut lab, &own, IPOIB, &across).status(), Status::SA_NO_RECORDS);
    assert_eq!(get(&mut lab, &own, 0xc, &across).status(), Status::SA_NO_RECORDS);
    let mut foreign = query(&own, &other);
    foreign.p_key = U16::new(0x8005);
    assert_eq!(get(&mut lab, &own, IPOIB, &foreign).status(), Status::SA_NO_RECORDS);
    assert_eq!(get(&mut lab, &own, 0xc, &query(&own, &other)).status(), Status::GOOD);
}

#[test]
fn query_by_lids_and_with_selectors() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let mut record = query(&adapters[0], &adapters[1]);
    record.slid = U16::new(adapters[0].lid());
    record.dlid = U16::new(adapters[1].lid());
    record.mtu = Selected::new().with_selector(Selector::EXACTLY).with_value(Mtu::B1024.0);
    let by_lid = PathRecord::MASK_SLID | PathRecord::MASK_DLID;
    let mtu = PathRecord::MASK_MTU_SELECTOR | PathRecord::MASK_MTU;
    let path = get(&mut lab, &adapters[0], by_lid | mtu, &record).attribute::<PathRecord>();
    assert_eq!((path.dgid, path.mtu.value()), (adapters[1].gid(), Mtu::B1024.0));
    record.mtu.set_selector(Selector::GREATER_THAN);
    record.mtu.set_value(Mtu::B4096.0);
    assert_eq!(get(&mut lab, &adapters[0], by_lid | mtu, &record).status(), Status::SA_NO_RECORDS);
    record.dlid = U16::new(adapters[0].lid());
    let contradiction = get(&mut lab, &adapters[0], by_lid | PathRecord::MASK_DGID, &record);
    assert_eq!(contradiction.status(), Status::SA_REQ_INVALID);
}

#[test]
fn several_paths_do_not_fit_a_get() {
    let (mut lab, adapters) = Lab::with_adapters(2);
    let answer = get(&mut lab, &adapters[0], 0, &PathRecord::new_zeroed());
    assert_eq!(answer.status(), Status::SA_TOO_MANY_RECORDS);
    let half = get(&mut lab, &adapters[0], PathRecord::MASK_SERVICE_ID, &PathRecord::new_zeroed());
    assert_eq!(half.status(), Status::SA_REQ_INSUFFICIENT_COMPONENTS);
}

#[test]
fn path_to_a_group_has_the_parameters_of_the_group() {
    let (mut lab, adapters) = Lab::with_adapters(1);
    let mut record = query(&adapters[0], &adapters[0]);
    record.dgid = [0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    let path = get(&mut lab, &adapters[0], IPOIB, &record).attribute::<PathRecord>();
    assert_eq!((path.dlid.get(), path.mtu.into_bits(), path.rate.into_bits()), (0xc000, 0x84, 0x83));
}

#[test]
fn class_port_info_names_the_version() {
    let (mut lab, adapters) = Lab::with_adapters(1);
    let answers =
        adapters[0].ask(&mut lab, Method::GET, SaAttribute::CLASS_PORT_INFO, 0, &ClassPortInfo::new_zeroed());
    let info = answers[0].attribute::<ClassPortInfo>();
    assert_eq!((answers[0].status(), info.base_version, info.class_version), (Status::GOOD, 1, 2));
    assert_ne!(info.capability2.capability_mask2() & 1 << 12, 0);
}

#[test]
fn unknown_methods_and_attributes_have_their_status() {
    let (mut lab, adapters) = Lab::with_adapters(1);
    for (method, attribute, status) in [
        (Method::GET, SaAttribute::TRACE_RECORD, Status::UNSUPPORTED_METHOD_ATTRIBUTE),
        (Method::SET, SaAttribute::PATH_RECORD, Status::UNSUPPORTED_METHOD_ATTRIBUTE),
        (Method::GET_MULTI, SaAttribute::MULTI_PATH_RECORD, Status::UNSUPPORTED_METHOD),
    ] {
        let answers = adapters[0].ask(&mut lab, method, attribute, 0, &[0u8; 64]);
        assert_eq!(answers[0].status(), status);
    }
    let mut old = adapters[0].request(Method::GET, SaAttribute::PATH_RECORD, 0, &[0u8; 64]);
    old.mad[2] = 1;
    adapters[0].send(&old);
    lab.settle();
    assert_eq!(SaMad::from_mad(&adapters[0].received()[0].mad).status(), Status::BAD_VERSION);
}

/// All paths of eight ports and the switch: 81 records of 64 bytes, 26 segments.
fn start_table(lab: &mut Lab, from: &Adapter) -> Vec<SaMad> {
    from.ask(lab, Method::GET_TABLE, SaAttribute::PATH_RECORD, 0, &PathRecord::new_zeroed())
}

fn ack(lab: &mut Lab, from: &Adapter, segment: u32, window: u32) -> Vec<SaMad> {
    let request = from.request(Method::GET_TABLE, SaAttribute::PATH_RECORD, 0, &[0u8; 64]);
    let mut mad = SaMad::from_mad(&request.mad);
    mad.rmpp.version = 1;
    mad.rmpp.rmpp_type = RmppType::ACK;
    mad.rmpp.flags = RmppFlags::new().with_active(true);
    mad.rmpp.segment_number = U32::new(segment);
    mad.rmpp.length_or_window = U32::new(window);
    from.send(&Datagram { headers: request.headers, mad: mad.to_mad() });
    lab.settle();
    from.received().iter().map(|datagram| SaMad::from_mad(&datagram.mad)).collect()
}

#[test]
fn long_table_comes_in_windows() {
    let (mut lab, adapters) = Lab::with_adapters(8);
    let mut segments = start_table(&mut lab, &adapters[0]);
    assert_eq!(segments.len(), 1);
    segments.extend(ack(&mut lab, &adapters[0], 1, 11));
    assert_eq!(segments.len(), 11);
    segments.extend(ack(&mut lab, &adapters[0], 11, 75));
    assert_eq!(segments.len(), 26);
    assert!(ack(&mut lab, &adapters[0], 26, 90).is_empty());
    for (segment, number) in segments.iter().zip(1..) {
        assert_eq!((segment.rmpp.segment_number.get(), segment.rmpp.rmpp_type), (number, RmppType::DATA));
        assert_eq!((segment.rmpp.flags.first(), segment.rmpp.flags.last()), (number == 1, number == 26));
        assert_eq!((segment.header.method, segment.attribute_offset.get()), (Method::GET_TABLE_RESP, 8));
    }
    assert_eq!(segments[0].rmpp.length_or_window.get(), 26 * 20 + 81 * 64);
    assert_eq!(segments[1].rmpp.length_or_window.get(), 0);
    assert_eq!(segments[25].rmpp.length_or_window.get(), 20 + (81 * 64 - 25 * 200));
    let bytes: Vec<u8> = segments.iter().flat_map(|segment| segment.data).collect();
    let lids: std::collections::BTreeSet<_> = bytes
        .chunks(64)
        .take(81)
        .map(|record| [record[0x28..0x2a].to_vec(), record[0x2a..0x2c].to_vec()])
        .collect();
    assert_eq!(lids.len(), 81);
    lab.advance(std::time::Duration::from_secs(10));
    assert!(adapters[0].received().is_empty());
}

#[test]
fn lost_segments_are_sent_again_then_given_up() {
    let (mut lab, adapters) = Lab::with_adapters(8);
    start_table(&mut lab, &adapters[0]);
    assert_eq!(ack(&mut lab, &adapters[0], 1, 3).len(), 2);
    lab.advance(std::time::Duration::from_millis(2100));
    let again: Vec<_> = adapters[0]
        .received()
        .iter()
        .map(|datagram| SaMad::from_mad(&datagram.mad).rmpp.segment_number.get())
        .collect();
    assert_eq!(again, [2, 3]);
    lab.advance(std::time::Duration::from_secs(20));
    let last = adapters[0].received().pop().unwrap();
    let last = SaMad::from_mad(&last.mad);
    assert_eq!((last.rmpp.rmpp_type, last.rmpp.status), (RmppType::ABORT, RmppStatus::TOO_MANY_RETRIES));
    assert!(ack(&mut lab, &adapters[0], 3, 9).is_empty());
}

#[test]
fn ack_that_cannot_be_ends_the_table() {
    for (segment, window, status) in [
        (1, 0, RmppStatus::NEW_WINDOW_LAST_TOO_SMALL),
        (2, 9, RmppStatus::SEGMENT_NUMBER_TOO_BIG),
        (4_000_000_000, 4_000_000_000, RmppStatus::SEGMENT_NUMBER_TOO_BIG),
    ] {
        let (mut lab, adapters) = Lab::with_adapters(8);
        start_table(&mut lab, &adapters[0]);
        let answers = ack(&mut lab, &adapters[0], segment, window);
        assert_eq!((answers[0].rmpp.rmpp_type, answers[0].rmpp.status), (RmppType::ABORT, status));
        assert!(ack(&mut lab, &adapters[0], 1, 9).is_empty());
    }
}

#[test]
fn one_requester_has_few_tables_under_way() {
    let (mut lab, adapters) = Lab::with_adapters(8);
    let mut last = Status::GOOD;
    for id in 0..20 {
        let mut request = adapters[0].request(Method::GET_TABLE, SaAttribute::PATH_RECORD, 0, &[0u8; 64]);
        request.mad[15] = id;
        adapters[0].send(&request);
        lab.settle();
        last = SaMad::from_mad(&adapters[0].received()[0].mad).status();
    }
    assert_eq!(last, Status::SA_NO_RESOURCES);
    assert_eq!(start_table(&mut lab, &adapters[1])[0].status(), Status::GOOD);
}
