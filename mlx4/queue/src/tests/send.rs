//! The send queue against a device that reads WQEs as the hardware does: by owner bit, headers and sizes.

use mlx4_wire::wqe::{
    AtomicSeg, Av, BindAccess, ByteCount, CtrlSeg, DataSeg, DatagramSeg, MaskedAtomicSeg, Opcode,
    RegisterAccess, RemoteAddressSeg, WQE_STAMP,
};
use proptest::prelude::*;
use zerocopy::{FromBytes, FromZeros};

use crate::geometry::{SendGeometry, SendSize, Service};
use crate::request::{
    Bind, Data, Destination, Operation, PostError, Register, Remote, SendFlags, SendRequest, Sge,
};
use crate::testing::{LIMITS, TestDoorbell, TestMemory};
use crate::{Place, PostedSend, SendQueue};

const OFFSET: usize = 4096;

fn queue(
    service: Service,
    size: SendSize,
) -> (SendQueue<TestMemory, TestDoorbell>, TestMemory, TestDoorbell) {
    let geometry = SendGeometry::new(service, size, &LIMITS).unwrap();
    let memory = TestMemory::new(OFFSET + geometry.bytes() as usize);
    let doorbell = TestDoorbell::default();
    let place = Place { memory: memory.clone(), offset: OFFSET };
    let mut queue = SendQueue::new(place, geometry, 0x12_3456, doorbell.clone()).unwrap();
    queue.reset();
    (queue, memory, doorbell)
}

/// A WQE as the device reads it.
#[derive(Debug, PartialEq, Eq)]
struct Wqe {
    ctrl: CtrlSeg,
    datagram: Option<DatagramSeg>,
    remote: Option<RemoteAddressSeg>,
    atomic: Option<AtomicSeg>,
    masked: Option<MaskedAtomicSeg>,
    /// The segment of a request that changes keys.
    keys: Vec<u8>,
    pieces: Vec<Sge>,
    inline: Vec<u8>,
}

/// Operations whose one segment is no data.
const KEYS: [Opcode; 3] = [Opcode::BIND_MW, Opcode::LOCAL_INVALIDATE, Opcode::FAST_REGISTER];

struct Device {
    memory: TestMemory,
    geometry: SendGeometry,
    counter: u32,
}

impl Device {
    /// The WQE that the device's counter stands at, if it is the device's.
    fn fetch(&mut self) -> Option<Wqe> {
        let stride = self.geometry.stride() as usize;
        let slot = OFFSET + (self.counter % self.geometry.entries()) as usize * stride;
        let bytes = self.memory.get(slot, stride);
        let (ctrl, _) = CtrlSeg::read_from_prefix(&bytes).unwrap();
        let pass = self.counter & self.geometry.entries() != 0;
        if ctrl.opcode.owner() != pass {
            return None;
        }
        self.counter += 1;
        let size = ctrl.size.bytes() as usize;
        assert!((16..=stride).contains(&size), "size {size}");
        Some(parse(self.geometry.service(), ctrl, &bytes[..size]))
    }
}

fn take<T: FromBytes>(bytes: &[u8], at: &mut usize) -> T {
    let (value, _) = T::read_from_prefix(&bytes[*at..]).unwrap();
    *at += size_of::<T>();
    value
}

fn parse(service: Service, ctrl: CtrlSeg, bytes: &[u8]) -> Wqe {
    let opcode = ctrl.opcode.opcode();
    let mut at = 16;
    let (keys, pieces, inline) = (vec![], vec![], vec![]);
    let mut wqe =
        Wqe { ctrl, datagram: None, remote: None, atomic: None, masked: None, keys, pieces, inline };
    if service == Service::Ud && opcode != Opcode::NOP {
        wqe.datagram = Some(take(bytes, &mut at));
    }
    let atomic = [Opcode::ATOMIC_CS, Opcode::ATOMIC_FA, Opcode::MASKED_ATOMIC_FA].contains(&opcode);
    let masked = opcode == Opcode::MASKED_ATOMIC_CS;
    let writes = [Opcode::RDMA_WRITE, Opcode::RDMA_WRITE_IMM, Opcode::RDMA_READ].contains(&opcode);
    if atomic || masked || writes {
        wqe.remote = Some(take(bytes, &mut at));
    }
    wqe.atomic = atomic.then(|| take(bytes, &mut at));
    wqe.masked = masked.then(|| take(bytes, &mut at));
    if KEYS.contains(&opcode) {
        wqe.keys = bytes[at..].to_vec();
        return wqe;
    }
    while at < bytes.len() {
        let count: ByteCount = take(bytes, &mut { at });
        if count.inline() {
            let n = count.inline_count() as usize;
            assert!(at % 64 + 4 + n <= 64, "inline data crosses a chunk");
            wqe.inline.extend_from_slice(&bytes[at + 4..at + 4 + n]);
            at += count.inline_segment_bytes() as usize;
        } else {
            let data: DataSeg = take(bytes, &mut at);
            wqe.pieces.push(Sge {
                address: data.address.get(),
                length: data.byte_count.count(),
                lkey: data.lkey.get(),
            });
        }
    }
    assert_eq!(at, bytes.len(), "the size isn't that of the segments");
    wqe
}

fn remote() -> impl Strategy<Value = Remote> {
    (any::<u64>(), any::<u32>()).prop_map(|(address, rkey)| Remote { address, rkey })
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        Just(Operation::Send),
        any::<[u8; 4]>().prop_map(Operation::SendImm),
        any::<u32>().prop_map(Operation::SendInvalidate),
        remote().prop_map(Operation::Write),
        (remote(), any::<[u8; 4]>()).prop_map(|(to, imm)| Operation::WriteImm(to, imm)),
        remote().prop_map(Operation::Read),
        (remote(), any::<u64>(), any::<u64>()).prop_map(|(remote, compare, swap)| Operation::CompareSwap {
            remote,
            compare,
            swap
        }),
        (remote(), any::<u64>()).prop_map(|(remote, add)| Operation::FetchAdd { remote, add }),
        (remote(), any::<[u64; 4]>()).prop_map(|(remote, [compare, swap, compare_mask, swap_mask])| {
            Operation::MaskedCompareSwap { remote, compare, swap, compare_mask, swap_mask }
        }),
        (remote(), any::<u64>(), any::<u64>())
            .prop_map(|(remote, add, boundary)| Operation::MaskedFetchAdd { remote, add, boundary }),
        (any::<bool>(), any::<[u32; 2]>(), any::<[u64; 2]>()).prop_map(
            |(type_2, [rkey, lkey], [address, length])| {
                let access = BindAccess::new().with_remote_write(true);
                Operation::Bind(Bind { type_2, access, zero_based: !type_2, rkey, lkey, address, length })
            }
        ),
        any::<u32>().prop_map(Operation::LocalInvalidate),
        (any::<u32>(), any::<[u64; 3]>()).prop_map(|(key, [page_list, address, length])| {
            let access = RegisterAccess::new().with_local_write(true);
            Operation::FastRegister(Register { access, key, page_list, address, length, log2_page: 12 })
        }),
        Just(Operation::Nop),
    ]
}

fn sge() -> impl Strategy<Value = Sge> {
    (any::<u64>(), prop_oneof![Just(0), Just(8), 0u32..1 << 31], any::<u32>())
        .prop_map(|(address, length, lkey)| Sge { address, length, lkey })
}

fn flags() -> impl Strategy<Value = SendFlags> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(signalled, solicited, fence)| SendFlags {
        signalled,
        solicited,
        fence,
    })
}

#[derive(Clone, Debug)]
enum Step {
    Post { operation: Operation, pieces: Vec<Sge>, flags: SendFlags },
    PostInline { operation: Operation, data: Vec<Vec<u8>>, flags: SendFlags },
    Work(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let post = (operation(), prop::collection::vec(sge(), 0..5), flags());
    let data = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 0..4);
    prop_oneof![
        4 => post.prop_map(|(operation, pieces, flags)| Step::Post { operation, pieces, flags }),
        2 => (operation(), data, flags())
            .prop_map(|(operation, data, flags)| Step::PostInline { operation, data, flags }),
        2 => (0usize..6).prop_map(Step::Work),
    ]
}

fn expected(request: &SendRequest<'_>) -> (Vec<Sge>, Vec<u8>) {
    match request.data {
        _ if !request.operation.takes_data() => (vec![], vec![]),
        Data::Pieces(pieces) | Data::Segmented { pieces, .. } => {
            (pieces.iter().copied().filter(|p| p.length != 0).collect(), vec![])
        }
        Data::Inline(pieces) => (vec![], pieces.concat()),
    }
}

fn check_operands(wqe: &Wqe, operation: &Operation) {
    let at = wqe.remote.map(|seg| Remote { address: seg.address.get(), rkey: seg.rkey.get() });
    let immediate = wqe.ctrl.immediate.to_bytes();
    let operands = wqe.atomic.map(|seg| (seg.swap_add.get(), seg.compare.get()));
    let (opcode, to, imm, atomic) = match *operation {
        Operation::Send => (Opcode::SEND, None, [0; 4], None),
        Operation::SendImm(imm) => (Opcode::SEND_IMM, None, imm, None),
        Operation::SendInvalidate(key) => (Opcode::SEND_INVALIDATE, None, key.to_be_bytes(), None),
        Operation::Write(to) => (Opcode::RDMA_WRITE, Some(to), [0; 4], None),
        Operation::WriteImm(to, imm) => (Opcode::RDMA_WRITE_IMM, Some(to), imm, None),
        Operation::Read(to) => (Opcode::RDMA_READ, Some(to), [0; 4], None),
        Operation::CompareSwap { remote, compare, swap } => {
            (Opcode::ATOMIC_CS, Some(remote), [0; 4], Some((swap, compare)))
        }
        Operation::FetchAdd { remote, add } => (Opcode::ATOMIC_FA, Some(remote), [0; 4], Some((add, 0))),
        Operation::MaskedFetchAdd { remote, add, boundary } => {
            (Opcode::MASKED_ATOMIC_FA, Some(remote), [0; 4], Some((add, boundary)))
        }
        Operation::MaskedCompareSwap { remote, compare, swap, compare_mask, swap_mask } => {
            let masked = wqe.masked.expect("a masked segment");
            let values = [masked.swap, masked.compare, masked.swap_mask, masked.compare_mask];
            assert_eq!(values.map(|value| value.get()), [swap, compare, swap_mask, compare_mask]);
            (Opcode::MASKED_ATOMIC_CS, Some(remote), [0; 4], None)
        }
        Operation::Bind(bind) => {
            assert_eq!(wqe.keys[8..12], bind.rkey.to_be_bytes());
            (Opcode::BIND_MW, None, [0; 4], None)
        }
        Operation::LocalInvalidate(key) => {
            assert_eq!(wqe.keys[8..12], key.to_be_bytes());
            (Opcode::LOCAL_INVALIDATE, None, [0; 4], None)
        }
        Operation::FastRegister(register) => {
            assert_eq!(wqe.keys[4..8], register.key.to_be_bytes());
            (Opcode::FAST_REGISTER, None, [0; 4], None)
        }
        Operation::Nop => (Opcode::NOP, None, [0; 4], None),
    };
    assert_eq!((wqe.ctrl.opcode.opcode(), at, immediate, operands), (opcode, to, imm, atomic));
}

fn check_headroom(memory: &TestMemory, geometry: &SendGeometry, next: u32) {
    let invalid = next & geometry.entries() == 0;
    for slot in next..next + geometry.spare() {
        let at = OFFSET + (slot % geometry.entries() * geometry.stride()) as usize;
        let wrapped = slot / geometry.entries() != next / geometry.entries();
        assert_eq!(memory.word(at) >> 31 != 0, invalid != wrapped, "owner bit of slot {slot}");
        for chunk in (64..geometry.stride() as usize).step_by(64) {
            let word = memory.word(at + chunk);
            assert!(word == WQE_STAMP || !used(memory, at, chunk), "stamp of slot {slot}");
        }
    }
}

/// Whether the WQE that stands in a slot reaches a chunk.
fn used(memory: &TestMemory, at: usize, chunk: usize) -> bool {
    (memory.word(at + 4) & 0x3f) as usize * 16 > chunk
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is posted is what the device reads, in order, and completions give the right `wr_id`s.
    #[test]
    fn send_queue_hands_over_what_was_posted(
        steps in prop::collection::vec(step(), 1..200),
        size in (1u32..8, 1u32..5, 0u32..300),
    ) {
        let size = SendSize { requests: size.0, sges: size.1, inline: size.2 };
        let (mut queue, memory, _doorbell) = queue(Service::Rc, size);
        let mut device = Device { memory: memory.clone(), geometry: *queue.geometry(), counter: 0 };
        let mut outstanding = std::collections::VecDeque::new();
        let mut posted = 0u32;
        for (wr_id, step) in (0u64..).zip(steps) {
            let inline: Vec<&[u8]> = match &step {
                Step::PostInline { data, .. } => data.iter().map(Vec::as_slice).collect(),
                _ => vec![],
            };
            let request = match &step {
                Step::Post { operation, pieces, flags } => SendRequest {
                    wr_id, operation: *operation, data: Data::Pieces(pieces), flags: *flags, destination: None,
                },
                Step::PostInline { operation, flags, .. } => SendRequest {
                    wr_id, operation: *operation, data: Data::Inline(&inline), flags: *flags, destination: None,
                },
                Step::Work(count) => {
                    for _ in 0..*count {
                        let Some(wqe) = device.fetch() else { break };
                        if wqe.ctrl.flags.completion().0 == 3 {
                            let index = (device.counter - 1) as u16;
                            let id = queue.complete(index).unwrap().wr_id;
                            while outstanding.pop_front() != Some(id) {}
                            prop_assert_eq!(queue.complete(index), None);
                        }
                    }
                    continue;
                }
            };
            let full = queue.free() == 0;
            prop_assert_eq!(queue.free() as usize, queue.geometry().requests() as usize - outstanding.len());
            match queue.post(&request) {
                Ok(()) => {
                    outstanding.push_back(wr_id);
                    posted += 1;
                    let mut probe = Device { counter: posted - 1, memory: memory.clone(), ..device };
                    let wqe = probe.fetch().expect("a posted WQE is the device's");
                    check_operands(&wqe, &request.operation);
                    let (pieces, data) = expected(&request);
                    prop_assert_eq!(&wqe.pieces, &pieces);
                    prop_assert_eq!(&wqe.inline, &data);
                    let ctrl = (wqe.ctrl.flags.completion().0 == 3, wqe.ctrl.flags.solicited());
                    prop_assert_eq!(ctrl, (request.flags.signalled, request.flags.solicited));
                    prop_assert_eq!(wqe.ctrl.size.fence(), request.flags.fence);
                    check_headroom(&memory, queue.geometry(), posted);
                }
                Err(error) => prop_assert_eq!(error == PostError::Full, full),
            }
        }
    }

    /// As much inline data as a queue says it takes does fit, for every operation that carries some.
    #[test]
    fn inline_data_of_the_greatest_size_fits(inline in 0u32..880, service in 0usize..3, pieces in 1usize..5) {
        let service = [Service::Rc, Service::Uc, Service::Ud][service];
        let (mut queue, memory, _) = queue(service, SendSize { requests: 1, sges: 1, inline });
        let most = queue.geometry().max_inline();
        prop_assert!(most >= inline);
        let bytes: Vec<u8> = (0..most).map(|i| i as u8).collect();
        let parts: Vec<&[u8]> = bytes.chunks(bytes.len().div_ceil(pieces).max(1)).collect();
        let to = Destination { av: Av::new_zeroed(), qpn: 7, qkey: 1 };
        let (operation, destination) = match service {
            Service::Ud => (Operation::Send, Some(&to)),
            _ => (Operation::Write(Remote { address: 1, rkey: 2 }), None),
        };
        let flags = SendFlags::default();
        let request = SendRequest { wr_id: 1, operation, data: Data::Inline(&parts), flags, destination };
        prop_assert_eq!(queue.post(&request), Ok(()));
        let mut device = Device { memory, geometry: *queue.geometry(), counter: 0 };
        prop_assert_eq!(device.fetch().unwrap().inline, bytes);
    }
}

fn send(wr_id: u64, pieces: &[Sge]) -> SendRequest<'_> {
    SendRequest {
        wr_id,
        operation: Operation::Send,
        data: Data::Pieces(pieces),
        flags: SendFlags::default(),
        destination: None,
    }
}

#[test]
fn first_word_is_published_last_and_chunks_before_it() {
    let (mut queue, memory, doorbell) = queue(Service::Rc, SendSize { requests: 4, sges: 7, inline: 0 });
    let pieces = [Sge { address: 1, length: 1, lkey: 1 }; 7];
    memory.published();
    queue.post(&send(1, &pieces)).unwrap();
    let stride = queue.geometry().stride() as usize;
    assert_eq!(stride, 256);
    assert_eq!(memory.published(), [OFFSET + 64, OFFSET]);
    assert_eq!(doorbell.take(), None);
    queue.ring();
    assert_eq!(doorbell.take(), Some(0x1234_5600));
}

#[test]
fn full_queue_takes_no_more_until_a_completion() {
    let (mut queue, _, _) = queue(Service::Rc, SendSize { requests: 3, sges: 1, inline: 0 });
    let most = queue.geometry().requests();
    for id in 0..u64::from(most) {
        queue.post(&send(id, &[])).unwrap();
    }
    assert_eq!(queue.post(&send(99, &[])), Err(PostError::Full));
    assert_eq!(queue.complete(2), Some(PostedSend { wr_id: 2, opcode: Opcode::SEND, room: 0 }));
    assert_eq!(queue.free(), 3);
    assert_eq!(queue.complete(2), None);
    assert_eq!(queue.complete(most as u16), None);
    queue.post(&send(99, &[])).unwrap();
    assert!(!queue.is_empty());
}

#[test]
fn request_of_another_service_is_refused() {
    let size = SendSize { requests: 4, sges: 2, inline: 16 };
    let (mut uc, _, _) = queue(Service::Uc, size);
    let (mut ud, _, _) = queue(Service::Ud, size);
    let to = Destination { av: Av::new_zeroed(), qpn: 1 << 24, qkey: 1 };
    let read = SendRequest { operation: Operation::Read(Remote { address: 0, rkey: 0 }), ..send(1, &[]) };
    assert_eq!(uc.post(&read), Err(PostError::Operation));
    assert_eq!(ud.post(&send(1, &[])), Err(PostError::Destination));
    assert_eq!(uc.post(&SendRequest { destination: Some(&to), ..send(1, &[]) }), Err(PostError::Destination));
    assert_eq!(
        ud.post(&SendRequest { destination: Some(&to), ..send(1, &[]) }),
        Err(PostError::Qpn(1 << 24))
    );
    assert_eq!(uc.free(), uc.geometry().requests());
}

#[test]
fn data_beyond_the_geometry_is_refused() {
    let (mut rc, _, _) = queue(Service::Rc, SendSize { requests: 4, sges: 1, inline: 0 });
    let piece = Sge { address: 0, length: 8, lkey: 0 };
    assert_eq!(rc.post(&send(1, &[piece; 3])), Err(PostError::TooManyPieces(3, 2)));
    let long = Sge { length: 1 << 31, ..piece };
    assert_eq!(rc.post(&send(1, &[long])), Err(PostError::PieceTooLong(1 << 31)));
    let data = [0u8; 29];
    let inline = SendRequest { data: Data::Inline(&[&data]), ..send(1, &[]) };
    assert_eq!(rc.post(&inline), Err(PostError::TooMuchInline(29, 28)));
    let remote = Remote { address: 0, rkey: 0 };
    let atomic = Operation::FetchAdd { remote, add: 1 };
    let short = SendRequest { operation: atomic, ..send(1, &[]) };
    assert_eq!(rc.post(&short), Err(PostError::AtomicData));
    let read = SendRequest { operation: Operation::Read(remote), ..inline };
    assert_eq!(rc.post(&read), Err(PostError::Inline));
}

#[test]
fn wqe_built_by_the_caller_that_does_not_fit_is_not_posted() {
    let (mut queue, memory, _) = queue(Service::Mlx, SendSize { requests: 4, sges: 1, inline: 0 });
    let before = memory.word(OFFSET);
    let stride = queue.geometry().wqe_bytes();
    let result = queue.post_with(1, |wqe| {
        wqe.segment(&CtrlSeg::new_zeroed());
        wqe.inline(&[&vec![0xee; stride as usize]]);
    });
    assert_eq!(result, Err(PostError::TooLarge(stride)));
    assert_eq!((queue.free(), memory.word(OFFSET)), (queue.geometry().requests(), before));
    assert_eq!(queue.post_with(1, |_| {}), Err(PostError::TooLarge(stride)));
}

#[test]
fn ring_outside_the_memory_is_refused() {
    let geometry =
        SendGeometry::new(Service::Rc, SendSize { requests: 1, sges: 1, inline: 0 }, &LIMITS).unwrap();
    let new = |memory, offset| {
        let place = Place { memory: TestMemory::new(memory), offset };
        SendQueue::new(place, geometry, 1, TestDoorbell::default()).is_err()
    };
    assert!(new(4095, 0) && new(4096, 64) && new(8192, 32) && new(4096, usize::MAX - 63));
    assert!(!new(4096, 0));
}
