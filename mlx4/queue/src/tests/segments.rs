//! WQEs of the less common operations, byte by byte as `docs/mlx4-data.md` has them.

use mlx4_wire::wqe::{Av, BindAccess, Opcode, RegisterAccess};
use zerocopy::FromZeros;

use crate::geometry::{MASKED_SWAP_RESERVE, SendGeometry, SendSize, Service, lso_reserve};
use crate::request::{
    Bind, Data, Destination, Operation, PostError, Register, Remote, SendFlags, SendRequest, Sge,
};
use crate::testing::{LIMITS, TestDoorbell, TestMemory};
use crate::{Place, PostedSend, SendQueue};

const REMOTE: Remote = Remote { address: 0x1112_1314_1516_1718, rkey: 0x191a_1b1c };
const EIGHT: Sge = Sge { address: 0x2122_2324_2526_2728, length: 8, lkey: 0x292a_2b2c };

struct Bench {
    queue: SendQueue<TestMemory, TestDoorbell>,
    memory: TestMemory,
}

impl Bench {
    fn new(service: Service, reserve: u32) -> Self {
        let size = SendSize { requests: 4, sges: 1, inline: 0 };
        let geometry = SendGeometry::reserving(service, size, reserve, &LIMITS).unwrap();
        let memory = TestMemory::new(geometry.bytes() as usize);
        let place = Place { memory: memory.clone(), offset: 0 };
        let mut queue = SendQueue::new(place, geometry, 0x40, TestDoorbell::default()).unwrap();
        queue.reset();
        Self { queue, memory }
    }

    /// The bytes of the first WQE, which is as long as it says.
    fn wqe(&self) -> Vec<u8> {
        self.memory.get(0, (self.memory.word(4) & 0x3f) as usize * 16)
    }
}

fn request<'a>(operation: Operation, data: Data<'a>, to: Option<&'a Destination>) -> SendRequest<'a> {
    let flags = SendFlags { signalled: true, ..SendFlags::default() };
    SendRequest { wr_id: 7, operation, data, flags, destination: to }
}

/// The WQE of an RC request without or with one piece of data.
fn rc(operation: Operation, pieces: &[Sge]) -> Vec<u8> {
    let mut bench = Bench::new(Service::Rc, MASKED_SWAP_RESERVE);
    bench.queue.post(&request(operation, Data::Pieces(pieces), None)).unwrap();
    bench.wqe()
}

const REMOTE_BYTES: [u8; 16] =
    [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0, 0, 0, 0];
const EIGHT_BYTES: [u8; 16] =
    [0, 0, 0, 8, 0x29, 0x2a, 0x2b, 0x2c, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28];

fn numbers(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

#[test]
fn send_with_invalidate_has_the_rkey_in_its_control_segment() {
    let wqe = rc(Operation::SendInvalidate(0x0102_0304), &[]);
    assert_eq!(wqe, [0, 0, 0, 0x01, 0, 0, 0, 1, 0, 0, 0, 0x0c, 1, 2, 3, 4]);
}

#[test]
fn compare_and_swap_has_the_swap_first() {
    let wqe = rc(Operation::CompareSwap { remote: REMOTE, compare: 5, swap: 6 }, &[EIGHT]);
    assert_eq!(wqe[..16], [0, 0, 0, 0x11, 0, 0, 0, 4, 0, 0, 0, 0x0c, 0, 0, 0, 0]);
    assert_eq!(wqe[16..32], REMOTE_BYTES);
    assert_eq!(wqe[32..48], numbers(&[6, 5]));
    assert_eq!(wqe[48..], EIGHT_BYTES);
}

#[test]
fn fetch_and_add_has_no_second_operand() {
    let wqe = rc(Operation::FetchAdd { remote: REMOTE, add: 5 }, &[EIGHT]);
    assert_eq!((wqe[3], wqe[7]), (0x12, 4));
    assert_eq!(wqe[32..48], numbers(&[5, 0]));
}

#[test]
fn masked_compare_and_swap_has_values_before_masks_and_takes_five_units() {
    let operation =
        Operation::MaskedCompareSwap { remote: REMOTE, compare: 5, swap: 6, compare_mask: 7, swap_mask: 8 };
    let wqe = rc(operation, &[EIGHT]);
    assert_eq!((wqe[3], wqe[7], wqe.len()), (0x14, 5, 80));
    assert_eq!(wqe[16..32], REMOTE_BYTES);
    assert_eq!(wqe[32..64], numbers(&[6, 5, 8, 7]));
    assert_eq!(wqe[64..], EIGHT_BYTES);
}

#[test]
fn masked_fetch_and_add_has_the_boundary_behind_the_value() {
    let wqe = rc(Operation::MaskedFetchAdd { remote: REMOTE, add: 5, boundary: 1 << 31 }, &[EIGHT]);
    assert_eq!((wqe[3], wqe[7]), (0x15, 4));
    assert_eq!(wqe[32..48], numbers(&[5, 1 << 31]));
}

#[test]
fn masked_compare_and_swap_does_not_fit_where_no_room_was_reserved() {
    let mut bench = Bench::new(Service::Rc, 0);
    let operation =
        Operation::MaskedCompareSwap { remote: REMOTE, compare: 5, swap: 6, compare_mask: 7, swap_mask: 8 };
    let posted = bench.queue.post(&request(operation, Data::Pieces(&[EIGHT]), None));
    assert_eq!(posted, Err(PostError::TooLarge(64)));
    assert_eq!(bench.queue.free(), bench.queue.geometry().requests());
}

#[test]
fn bind_of_either_type_is_strongly_ordered_and_has_its_segment() {
    let access = BindAccess::new().with_remote_write(true).with_remote_read(true);
    let window = Bind {
        type_2: true,
        access,
        zero_based: false,
        rkey: 0x0102_0304,
        lkey: 0x0506_0708,
        address: 0x9000,
        length: 0x1000,
    };
    let wqe = rc(Operation::Bind(window), &[EIGHT]);
    assert_eq!(wqe[..16], [0, 0, 0, 0x18, 0, 0, 0, 3, 0, 0, 0, 0x8c, 0, 0, 0, 0]);
    assert_eq!(wqe[16..32], [0x60, 0, 0, 0, 0x80, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(wqe[32..], numbers(&[0x9000, 0x1000]));
    let access = BindAccess::new().with_remote_atomic(true);
    let wqe = rc(Operation::Bind(Bind { type_2: false, access, zero_based: true, ..window }), &[]);
    assert_eq!(wqe[16..24], [0x80, 0, 0, 0, 0x40, 0, 0, 0]);
}

#[test]
fn local_invalidate_is_strongly_ordered_and_has_the_key_at_8() {
    let wqe = rc(Operation::LocalInvalidate(0x0102_0304), &[]);
    assert_eq!(wqe[..16], [0, 0, 0, 0x1b, 0, 0, 0, 3, 0, 0, 0, 0x8c, 0, 0, 0, 0]);
    assert_eq!(wqe[16..32], [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0]);
    assert_eq!(wqe[32..], [0; 16]);
}

#[test]
fn fast_register_is_strongly_ordered_and_has_its_segment() {
    let register = Register {
        access: RegisterAccess::new().with_remote_read(true).with_local_read(true),
        key: 0x0102_0304,
        page_list: 0x1_0000_0040,
        address: 0x9000,
        length: 0x3000,
        log2_page: 12,
    };
    let wqe = rc(Operation::FastRegister(register), &[]);
    assert_eq!(wqe[..16], [0, 0, 0, 0x19, 0, 0, 0, 4, 0, 0, 0, 0x8c, 0, 0, 0, 0]);
    assert_eq!(wqe[16..24], [0x28, 0, 0, 0, 1, 2, 3, 4]);
    assert_eq!(wqe[24..48], numbers(&[0x1_0000_0040, 0x9000, 0x3000]));
    assert_eq!(wqe[48..], [0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn large_send_has_its_header_between_datagram_and_data() {
    let to = Destination { av: Av::new_zeroed(), qpn: 0x12_3456, qkey: 0x0102_0304 };
    let header: Vec<u8> = (1..=54).collect();
    let mut bench = Bench::new(Service::Ud, lso_reserve(54));
    let data = Data::Segmented { header: &header, segment: 2044, pieces: &[EIGHT] };
    bench.queue.post(&request(Operation::Send, data, Some(&to))).unwrap();
    let wqe = bench.wqe();
    assert_eq!(wqe[..16], [0, 0, 0, 0x0e, 0, 0, 0, 9, 0, 0, 0, 0x3c, 0, 0, 0, 0]);
    assert_eq!(wqe[48..56], [0, 0x12, 0x34, 0x56, 1, 2, 3, 4]);
    assert_eq!(wqe[64..68], [0x07, 0xfc, 0, 54]);
    assert_eq!(wqe[68..122], header);
    assert_eq!(wqe[122..128], [0; 6]);
    assert_eq!(wqe[128..], EIGHT_BYTES);
    let opcode = Opcode::LSO;
    assert_eq!(bench.queue.complete(0), Some(PostedSend { wr_id: 7, opcode, room: 0 }));
}

#[test]
fn header_longer_than_a_chunk_is_marked() {
    let to = Destination { av: Av::new_zeroed(), qpn: 1, qkey: 1 };
    for (bytes, marked) in [(60, 0), (61, 0x40)] {
        let mut bench = Bench::new(Service::Ud, lso_reserve(61));
        let data = Data::Segmented { header: &vec![1; bytes], segment: 1, pieces: &[] };
        bench.queue.post(&request(Operation::Send, data, Some(&to))).unwrap();
        assert_eq!(bench.wqe()[3], 0x0e | marked, "{bytes}");
    }
}

#[test]
fn only_a_send_of_ud_is_cut_into_packets_and_with_a_header() {
    let to = Destination { av: Av::new_zeroed(), qpn: 1, qkey: 1 };
    let mut ud = Bench::new(Service::Ud, lso_reserve(16));
    let mut post = |operation, header: &[u8], segment| {
        let data = Data::Segmented { header, segment, pieces: &[] };
        ud.queue.post(&request(operation, data, Some(&to)))
    };
    assert_eq!(post(Operation::SendImm([0; 4]), &[1], 1), Err(PostError::Segmented));
    assert_eq!(post(Operation::Send, &[], 1), Err(PostError::Segmented));
    assert_eq!(post(Operation::Send, &[1], 0), Err(PostError::Segmented));
    assert_eq!(post(Operation::Send, &[1; 0x1_0000], 1), Err(PostError::Segmented));
    assert_eq!(post(Operation::Send, &[1; 0xffff], 1), Err(PostError::TooLarge(128)));
    assert_eq!(post(Operation::Send, &[1; 16], 1), Ok(()));
    let data = Data::Segmented { header: &[1], segment: 1, pieces: &[] };
    let posted = Bench::new(Service::Rc, 64).queue.post(&request(Operation::Send, data, None));
    assert_eq!(posted, Err(PostError::Segmented));
}

#[test]
fn xrc_request_names_the_srq_at_the_other_end() {
    let mut bench = Bench::new(Service::Xrc, 0);
    let send = request(Operation::SendImm([1, 2, 3, 4]), Data::Pieces(&[EIGHT]), None);
    assert_eq!(bench.queue.post(&send), Err(PostError::RemoteSrq));
    bench.queue.post_xrc(&send, 0xff12_3456).unwrap();
    assert_eq!(bench.wqe()[..16], [0, 0, 0, 0x0b, 0, 0, 0, 2, 0x12, 0x34, 0x56, 0x0c, 1, 2, 3, 4]);
    assert_eq!(Bench::new(Service::Rc, 0).queue.post_xrc(&send, 1), Err(PostError::RemoteSrq));
}

#[test]
fn operations_are_of_their_services() {
    let bind = Operation::Bind(Bind {
        type_2: false,
        access: BindAccess::new(),
        zero_based: false,
        rkey: 1,
        lkey: 2,
        address: 0,
        length: 0,
    });
    let masked = Operation::MaskedFetchAdd { remote: REMOTE, add: 1, boundary: 0 };
    let uc = |operation, pieces| {
        Bench::new(Service::Uc, 0).queue.post(&request(operation, Data::Pieces(pieces), None))
    };
    assert_eq!(uc(bind, &[]), Ok(()));
    assert_eq!(uc(Operation::LocalInvalidate(1), &[]), Ok(()));
    assert_eq!(uc(Operation::SendInvalidate(1), &[]), Err(PostError::Operation));
    assert_eq!(uc(masked, &[EIGHT]), Err(PostError::Operation));
    let xrc = |operation, pieces| {
        Bench::new(Service::Xrc, 0).queue.post_xrc(&request(operation, Data::Pieces(pieces), None), 1)
    };
    assert_eq!(xrc(Operation::FetchAdd { remote: REMOTE, add: 1 }, &[EIGHT]), Ok(()));
    assert_eq!(xrc(bind, &[]), Err(PostError::Operation));
    assert_eq!(xrc(masked, &[EIGHT]), Err(PostError::Operation));
}
