//! Send WQEs of rdma-core's provider and of the kernel.

use mlx4_wire::ctx::path::{PathSource, TrafficClass};
use mlx4_wire::wqe::{
    AtomicSeg, AvPort, ByteCount, Completion, CtrlFlags, CtrlOpcode, CtrlSeg, CtrlSize, DataSeg, DatagramSeg,
    MlxCtrlFlags, MlxCtrlSeg, Opcode, RemoteAddressSeg,
};
use mlx4_wire::{Number24, U16, U64};
use zerocopy::FromZeros;

use crate::fixture::{all, find, first, read, same};

/// A control segment in the first pass over a queue, with completion.
fn control(opcode: Opcode, bytes: usize) -> CtrlSeg {
    let mut control = CtrlSeg::new_zeroed();
    control.opcode = CtrlOpcode::new().with_opcode(opcode);
    control.size = CtrlSize::new().with_units(u32::try_from(bytes / 16).unwrap());
    control.flags = CtrlFlags::new().with_completion(Completion::ALWAYS);
    control
}

fn pointer(bytes: &[u8], length: u32) {
    let taken: DataSeg = read(bytes);
    let mut expected = DataSeg::new_zeroed();
    expected.byte_count = ByteCount::new().with_count(length);
    (expected.lkey, expected.address) = (taken.lkey, taken.address);
    same(bytes, &expected);
    assert_ne!((taken.lkey.get() >> 8, taken.address), (0, U64::ZERO));
}

fn remote(bytes: &[u8]) {
    let taken: RemoteAddressSeg = read(bytes);
    let mut expected = RemoteAddressSeg::new_zeroed();
    (expected.address, expected.rkey) = (taken.address, taken.rkey);
    same(bytes, &expected);
    assert_ne!((taken.rkey.get() >> 8, taken.address), (0, U64::ZERO));
}

/// ibv_rc_pingpong and ibv_uc_pingpong: messages of 4096 bytes by pointer.
#[test]
fn sends_have_their_bytes() {
    for service in ["wqe RC", "wqe UC"] {
        let wqe = find(service, |wqe| wqe.bytes[3] == Opcode::SEND.0 && wqe.bytes.len() == 32).bytes;
        same(&wqe[..16], &control(Opcode::SEND, 32));
        pointer(&wqe[16..], 4096);
    }
}

/// ib_write_lat: 8 bytes inline.
#[test]
fn inline_write_has_its_bytes() {
    let wqe = find("wqe RC", |wqe| wqe.bytes[3] == Opcode::RDMA_WRITE.0).bytes;
    same(&wqe[..16], &control(Opcode::RDMA_WRITE, 48));
    remote(&wqe[16..32]);
    same(&wqe[32..36], &ByteCount::new().with_inline(true).with_count(8));
}

/// ib_read_lat: 8 bytes.
#[test]
fn read_has_its_bytes() {
    let wqe = find("wqe RC", |wqe| wqe.bytes[3] == Opcode::RDMA_READ.0).bytes;
    same(&wqe[..16], &control(Opcode::RDMA_READ, 48));
    remote(&wqe[16..32]);
    pointer(&wqe[32..], 8);
}

/// ib_atomic_lat: fetch and add of 1.
#[test]
fn fetch_and_add_has_its_bytes() {
    let wqe = find("wqe RC", |wqe| wqe.bytes[3] == Opcode::ATOMIC_FA.0).bytes;
    same(&wqe[..16], &control(Opcode::ATOMIC_FA, 64));
    remote(&wqe[16..32]);
    let mut atomic = AtomicSeg::new_zeroed();
    atomic.swap_add = U64::new(1);
    same(&wqe[32..48], &atomic);
    pointer(&wqe[48..], 8);
}

/// ib_ipoib: a multicast packet, which has a GRH, for QPN ffffff with the Q_Key of the group.
#[test]
fn multicast_datagram_of_ip_over_infiniband_has_its_bytes() {
    let wqe = find("wqe UD", |wqe| wqe.bytes[0x20] == 0xff).bytes;
    same(&wqe[..16], &control(Opcode::SEND, wqe.len()));
    let taken: DatagramSeg = read(&wqe[16..]);
    let mut expected = DatagramSeg::new_zeroed();
    expected.av.port = AvPort::new().with_port(1).with_pd(taken.av.port.pd());
    expected.av.source = PathSource::new().with_grh(true);
    expected.av.remote_lid = taken.av.remote_lid;
    assert!(taken.av.remote_lid.get() >= 0xc000);
    // A code of Linux (`IB_RATE_*` plus 5), by the rate of the group; and the group's flow and hop limit.
    (expected.av.static_rate, expected.av.hop_limit) = (taken.av.static_rate, taken.av.hop_limit);
    expected.av.traffic_class = TrafficClass::new();
    expected.av.remote_gid = taken.av.remote_gid;
    assert_eq!(taken.av.remote_gid[..2], [0xff, 0x12]);
    expected.remote_qpn = Number24::wrapping(Number24::MAX);
    expected.qkey.set(0x0b1b);
    same(&wqe[16..64], &expected);
}

/// QP0: a directed-route answer, from and to the permissive LID on VL 15. The headers lie inline in two
/// pieces, since no piece crosses a chunk; the ICRC is made by the device.
#[test]
fn management_packet_of_qp0_has_its_bytes() {
    let wqe = find("wqe MLX", |wqe| wqe.bytes.len() == 96).bytes;
    let mut expected = MlxCtrlSeg::new_zeroed();
    expected.opcode = CtrlOpcode::new().with_opcode(Opcode::SEND);
    expected.size = CtrlSize::new().with_units(6);
    expected.flags =
        MlxCtrlFlags::new().with_vl15(true).with_header_slid(true).with_completion(Completion::ALWAYS);
    expected.remote_lid = U16::new(0xffff);
    same(&wqe[..16], &expected);
    // LRH, BTH and DETH are 28 bytes. The LRH says VL 15, LNH 2 (BTH follows), and a length of 72 words.
    same(&wqe[16..20], &ByteCount::new().with_inline(true).with_count(28));
    assert_eq!(wqe[20..28], [0xf0, 0x02, 0xff, 0xff, 0x00, 0x48, 0xff, 0xff]);
    // The BTH: UD SEND only, default P_Key, for QP0.
    assert_eq!(wqe[28..36], [0x64, 0x00, 0xff, 0xff, 0, 0, 0, 0]);
    // MAD header and data, then four bytes of room for the ICRC.
    pointer(&wqe[48..64], 24);
    pointer(&wqe[64..80], 232);
    same(&wqe[80..84], &ByteCount::new().with_inline(true).with_count(4));
}

#[test]
fn every_service_has_wqes() {
    for service in ["MLX", "UD", "RC", "UC"] {
        assert!(!first(&format!("wqe {service}")).bytes.is_empty());
    }
    for wqe in all("wqe RC") {
        let control: CtrlSeg = read(&wqe.bytes);
        assert_eq!((control.size.bytes() as usize, control.opcode.owner()), (wqe.bytes.len(), false));
    }
}
