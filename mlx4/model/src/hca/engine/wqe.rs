//! Send WQEs: taken from the ring once, checked, and kept in a form of their own while they execute.
//!
//! Whatever doesn't add up (size, opcode that the service doesn't have, segments that are cut off or cross a
//! chunk) is [`Taken::Malformed`]; the queue pair completes it with a local operation error.

use mlx4_wire::ctx::qp::ServiceType;
use mlx4_wire::wqe::{
    AtomicSeg, BYTE_COUNT_BYTES, BindSeg, ByteCount, Completion, CtrlOpcode, CtrlSeg, CtrlSize, DataSeg,
    DatagramSeg, FastRegisterSeg, LocalInvalidateSeg, LsoHeader, MaskedAtomicSeg, MlxCtrlSeg, Opcode,
    RemoteAddressSeg, WQE_CHUNK_BYTES, WQE_MAX_BYTES, WQE_UNIT_BYTES,
};
use mlx4_wire::{U32, U64};
use vm_memory::VolatileSlice;
use zerocopy::FromBytes;

use super::lso::Segments;
use super::sg::{Element, SgList};
use super::side::Side;
use crate::hca::burst::Burst;
use crate::hca::qp::Attrs;
use crate::hca::ring::RingFault;

const CTRL_BYTES: usize = size_of::<CtrlSeg>();

/// Memory of the far queue pair that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) va: u64,
    pub(super) rkey: u32,
}

/// An atomic operation, with its operands as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtomicOp {
    /// Where the masked bits equal those of `compare`, those of the other mask become those of `swap`.
    CompareSwap { compare: Masked, swap: Masked },
    /// Adds fields; each set bit of `tops` is the top bit of one, out of which nothing is carried.
    FetchAdd { add: u64, tops: u64 },
}

/// Bits of a number: those that a mask has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Masked {
    pub(super) value: u64,
    pub(super) mask: u64,
}

impl Masked {
    fn all(value: u64) -> Self {
        Self { value, mask: u64::MAX }
    }
}

impl AtomicOp {
    /// What takes the place of `before`; `None` if that stays.
    pub(super) fn apply(self, before: u64) -> Option<u64> {
        match self {
            Self::CompareSwap { compare, swap } => {
                let equal = (before ^ compare.value) & compare.mask == 0;
                equal.then_some(before & !swap.mask | swap.value & swap.mask)
            }
            Self::FetchAdd { add, tops } => {
                let carried = (before & !tops).wrapping_add(add & !tops);
                Some(carried ^ (before ^ add) & tops)
            }
        }
    }
}

/// What a WQE asks for, besides its scatter/gather list.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request {
    Nop,
    Send,
    Write(Remote),
    Read(Remote),
    Atomic(Remote, AtomicOp),
    Datagram(DatagramSeg),
    /// Datagrams to one destination.
    Segmented(DatagramSeg, Segments),
    Special(MlxCtrlSeg),
    Bind(BindSeg),
    /// Of this key.
    LocalInvalidate(u32),
    FastRegister(FastRegisterSeg),
}

impl Request {
    /// Whether it is a read or an atomic, for which the other end needs resources.
    pub(super) fn takes_resources(&self) -> bool {
        matches!(self, Self::Read(_) | Self::Atomic(..))
    }
}

/// The fields that all WQEs have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) opcode: Opcode,
    pub(super) signalled: bool,
    pub(super) solicited: bool,
    pub(super) force_loopback: bool,
    /// XRC: the SRQ at the other end.
    pub(super) remote_srqn: u32,
    /// Immediate data, where the opcode has some.
    pub(super) immediate: Option<[u8; 4]>,
    /// Key that the other end shall invalidate, where the opcode has one.
    pub(super) invalidate: Option<u32>,
    pub(super) request: Request,
}

/// What was found at a slot of the send queue.
#[derive(Clone, Copy, Debug)]
pub(super) enum Taken {
    /// The slot is software's.
    Nothing,
    Wqe(Header),
    /// A WQE that can't be executed.
    Malformed,
}

/// A copy of a WQE, and its scatter/gather list.
#[derive(Default)]
pub(super) struct WqeCopy {
    /// Room, which only grows, and how much of it the copy takes.
    room: Vec<u8>,
    len: usize,
    list: SgList,
}

/// Whether the slot of a counter holds a WQE: its owner bit has the parity of the counter's pass. Returns
/// the word that holds the bit.
pub(super) fn owned(burst: &Burst, attrs: &Attrs, counter: u16) -> Result<Option<[u8; 4]>, RingFault> {
    let word = attrs.memory.load_acquire(burst, attrs.sq.slot(counter))?;
    Ok(is_owned(attrs, counter, word).then_some(word))
}

fn is_owned(attrs: &Attrs, counter: u16, first: [u8; 4]) -> bool {
    let odd_pass = u32::from(counter) & attrs.sq.entries != 0;
    CtrlOpcode::from_bits(U32::from_bytes(first)).owner() == odd_pass
}

/// How many reads and atomics are posted right after a counter's slot, none of them fenced: up to `most`.
pub(super) fn count_reads(side: &Side<'_>, counter: u16, most: u32) -> u32 {
    use Opcode as O;
    const READS: [O; 5] =
        [O::RDMA_READ, O::ATOMIC_CS, O::ATOMIC_FA, O::MASKED_ATOMIC_CS, O::MASKED_ATOMIC_FA];
    let is_read = |counter: u16| {
        let (burst, attrs) = (side.burst, side.attrs);
        let first = owned(burst, attrs, counter).ok()??;
        let second = attrs.memory.load_acquire(burst, attrs.sq.slot(counter) + 4).ok()?;
        let opcode = CtrlOpcode::from_bits(U32::from_bytes(first)).opcode();
        let fence = CtrlSize::from_bits(U32::from_bytes(second)).fence();
        (READS.contains(&opcode) && !fence).then_some(())
    };
    let mut count = 0;
    let mut next = counter.wrapping_add(1);
    while count < most && is_read(next).is_some() {
        (count, next) = (count + 1, next.wrapping_add(1));
    }
    count
}

impl WqeCopy {
    /// Takes the WQE at a counter's slot, if there is one.
    ///
    /// # Errors
    /// The ring can't be read.
    pub(super) fn take(&mut self, burst: &Burst, attrs: &Attrs, counter: u16) -> Result<Taken, RingFault> {
        let slot = attrs.sq.slot(counter);
        let stride = usize::try_from(attrs.sq.stride.min(WQE_MAX_BYTES)).unwrap_or(0);
        let start = stride.min(WQE_CHUNK_BYTES as usize);
        self.list.clear();
        let to = self.resize(start);
        let taken = attrs.memory.read_acquire(burst, slot, to, |first| is_owned(attrs, counter, first))?;
        if !taken {
            return Ok(Taken::Nothing);
        }
        // Another core has written it, mostly: its way here takes as long as what is left to do with this one.
        attrs.memory.prefetch(burst, attrs.sq.slot(counter.wrapping_add(1)));
        let Ok((ctrl, _)) = CtrlSeg::read_from_prefix(self.bytes()) else { return Ok(Taken::Malformed) };
        let size = ctrl.size.bytes() as usize;
        if size < CTRL_BYTES || size > stride {
            return Ok(Taken::Malformed);
        }
        let to = self.resize(size);
        if size > start {
            attrs.memory.read(burst, slot + start as u64, &mut to[start..])?;
        }
        Ok(self.decode(attrs.service, &ctrl).map_or(Taken::Malformed, Taken::Wqe))
    }

    /// Makes the copy longer or shorter; what it has already stays.
    fn resize(&mut self, len: usize) -> &mut [u8] {
        if self.room.len() < len {
            self.room.resize(len, 0);
        }
        self.len = len;
        &mut self.room[..len]
    }

    /// The bytes of the WQE that was taken last.
    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.room[..self.len]
    }

    fn decode(&mut self, service: ServiceType, ctrl: &CtrlSeg) -> Option<Header> {
        let opcode = ctrl.opcode.opcode();
        let has_immediate = [Opcode::SEND_IMM, Opcode::RDMA_WRITE_IMM].contains(&opcode);
        let (request, data) = self.request(service, opcode)?;
        if opcode != Opcode::NOP {
            self.data(data)?;
        }
        self.check_list(&request)?;
        Some(Header {
            opcode,
            signalled: ctrl.flags.completion() == Completion::ALWAYS,
            solicited: ctrl.flags.solicited(),
            force_loopback: ctrl.flags.force_loopback(),
            remote_srqn: ctrl.flags.remote_srqn(),
            immediate: has_immediate.then(|| ctrl.immediate.to_bytes()),
            invalidate: (opcode == Opcode::SEND_INVALIDATE).then(|| ctrl.immediate.get()),
            request,
        })
    }

    /// The request of an opcode, where the service has it, and the offset of its data segments.
    fn request(&self, service: ServiceType, opcode: Opcode) -> Option<(Request, usize)> {
        let reliable = [ServiceType::RC, ServiceType::XRC].contains(&service);
        let connected = reliable || service == ServiceType::UC;
        let after = self.bytes().get(CTRL_BYTES..)?;
        match opcode {
            Opcode::NOP => Some((Request::Nop, CTRL_BYTES)),
            Opcode::SEND if service == ServiceType::MLX => {
                let (ctrl, _) = MlxCtrlSeg::read_from_prefix(self.bytes()).ok()?;
                Some((Request::Special(ctrl), CTRL_BYTES))
            }
            Opcode::SEND | Opcode::SEND_IMM if service == ServiceType::UD => {
                let (datagram, _) = DatagramSeg::read_from_prefix(after).ok()?;
                Some((Request::Datagram(datagram), CTRL_BYTES + size_of::<DatagramSeg>()))
            }
            Opcode::LSO if service == ServiceType::UD => {
                let (datagram, _) = DatagramSeg::read_from_prefix(after).ok()?;
                let (segments, data) = self.segments(CTRL_BYTES + size_of::<DatagramSeg>())?;
                Some((Request::Segmented(datagram, segments), data))
            }
            Opcode::SEND | Opcode::SEND_IMM if connected => Some((Request::Send, CTRL_BYTES)),
            Opcode::SEND_INVALIDATE if reliable => Some((Request::Send, CTRL_BYTES)),
            Opcode::RDMA_WRITE | Opcode::RDMA_WRITE_IMM if connected => {
                let (remote, data) = self.remote()?;
                Some((Request::Write(remote), data))
            }
            Opcode::RDMA_READ if reliable => {
                let (remote, data) = self.remote()?;
                Some((Request::Read(remote), data))
            }
            Opcode::ATOMIC_CS | Opcode::ATOMIC_FA | Opcode::MASKED_ATOMIC_CS | Opcode::MASKED_ATOMIC_FA
                if reliable =>
            {
                let (remote, at) = self.remote()?;
                let (op, data) = self.atomic(opcode, at)?;
                Some((Request::Atomic(remote, op), data))
            }
            _ if connected => Some((self.memory(opcode)?, self.len)),
            _ => None,
        }
    }

    /// The operation of an atomic, whose segment is at `at`, and the offset of what follows.
    fn atomic(&self, opcode: Opcode, at: usize) -> Option<(AtomicOp, usize)> {
        let rest = self.bytes().get(at..)?;
        if opcode == Opcode::MASKED_ATOMIC_CS {
            let (seg, _) = MaskedAtomicSeg::read_from_prefix(rest).ok()?;
            let masked = |value: U64, mask: U64| Masked { value: value.get(), mask: mask.get() };
            let op = AtomicOp::CompareSwap {
                compare: masked(seg.compare, seg.compare_mask),
                swap: masked(seg.swap, seg.swap_mask),
            };
            return Some((op, at + size_of::<MaskedAtomicSeg>()));
        }
        let (seg, _) = AtomicSeg::read_from_prefix(rest).ok()?;
        let (first, second) = (seg.swap_add.get(), seg.compare.get());
        let op = match opcode {
            Opcode::MASKED_ATOMIC_FA => AtomicOp::FetchAdd { add: first, tops: second },
            Opcode::ATOMIC_FA => AtomicOp::FetchAdd { add: first, tops: 0 },
            _ => AtomicOp::CompareSwap { compare: Masked::all(second), swap: Masked::all(first) },
        };
        Some((op, at + size_of::<AtomicSeg>()))
    }

    /// The LSO segment at an offset, and the offset of what follows. The device fetches a chunk for it, or more
    /// if the control segment says so.
    fn segments(&self, at: usize) -> Option<(Segments, usize)> {
        let (lso, _) = LsoHeader::read_from_prefix(self.bytes().get(at..)?).ok()?;
        let (ctrl, _) = CtrlSeg::read_from_prefix(self.bytes()).ok()?;
        let (header_at, header_bytes) = (at + size_of::<LsoHeader>(), usize::from(lso.header_bytes()));
        let end = (header_at + header_bytes).next_multiple_of(WQE_UNIT_BYTES as usize);
        let long = end - at > WQE_CHUNK_BYTES as usize;
        let cut_off = end > self.len || (long && !ctrl.opcode.large_header());
        if cut_off || header_bytes == 0 || lso.segment_size() == 0 {
            return None;
        }
        let (ip_checksum, l4_checksum) = (ctrl.flags.ip_checksum(), ctrl.flags.l4_checksum());
        let size = lso.segment_size().into();
        Some((Segments { header_at, header_bytes, size, ip_checksum, l4_checksum }, end))
    }

    /// A request about memory keys. No data follows.
    fn memory(&self, opcode: Opcode) -> Option<Request> {
        let after = self.bytes().get(CTRL_BYTES..)?;
        Some(match opcode {
            Opcode::BIND_MW => Request::Bind(BindSeg::read_from_prefix(after).ok()?.0),
            Opcode::LOCAL_INVALIDATE => {
                let (seg, _) = LocalInvalidateSeg::read_from_prefix(after).ok()?;
                Request::LocalInvalidate(seg.key.get())
            }
            Opcode::FAST_REGISTER => Request::FastRegister(FastRegisterSeg::read_from_prefix(after).ok()?.0),
            _ => return None,
        })
    }

    fn remote(&self) -> Option<(Remote, usize)> {
        let (seg, _) = RemoteAddressSeg::read_from_prefix(self.bytes().get(CTRL_BYTES..)?).ok()?;
        let remote = Remote { va: seg.address.get(), rkey: seg.rkey.get() };
        Some((remote, CTRL_BYTES + size_of::<RemoteAddressSeg>()))
    }

    /// Reads data segments from `at` to the end of the WQE.
    fn data(&mut self, mut at: usize) -> Option<()> {
        while at < self.len {
            let (head, _) = ByteCount::read_from_prefix(self.bytes().get(at..)?).ok()?;
            if head.inline() {
                let start = at + BYTE_COUNT_BYTES as usize;
                let len = head.inline_count();
                let end = start + len as usize;
                let chunk_end = (at + 1).next_multiple_of(WQE_CHUNK_BYTES as usize);
                if end > chunk_end || end > self.len {
                    return None;
                }
                self.list.push(Element::Inline { at: start, len });
                at = end.next_multiple_of(WQE_UNIT_BYTES as usize);
            } else {
                let (seg, _) = DataSeg::read_from_prefix(self.bytes().get(at..)?).ok()?;
                self.list.push(pointer(&seg));
                at += size_of::<DataSeg>();
            }
        }
        Some(())
    }

    /// Responses are scattered to memory only, and that of an atomic has eight bytes.
    fn check_list(&self, request: &Request) -> Option<()> {
        let good = match request {
            Request::Read(_) => !self.list.has_inline(),
            Request::Atomic(..) => !self.list.has_inline() && self.list.bytes() == 8,
            _ => true,
        };
        good.then_some(())
    }

    /// Bytes in the list.
    pub(super) fn len(&self) -> u64 {
        self.list.bytes()
    }

    /// Copies the header of a large send.
    pub(super) fn copy_header<'t>(&self, lso: &Segments, to: &'t mut [u8]) -> Option<&'t mut [u8]> {
        let header = self.bytes().get(lso.header_at..)?.get(..lso.header_bytes)?;
        let to = to.get_mut(..lso.header_bytes)?;
        to.copy_from_slice(header);
        Some(to)
    }

    /// The list, and the memory that its inline entries lie in.
    pub(super) fn parts(&mut self) -> (&SgList, VolatileSlice<'_>) {
        (&self.list, VolatileSlice::from(&mut self.room[..self.len]))
    }
}

/// The entry of a data segment that is a pointer.
pub(super) fn pointer(seg: &DataSeg) -> Element {
    Element::Pointer { key: seg.lkey.get(), va: seg.address.get(), len: seg.byte_count.count() }
}

impl std::fmt::Debug for WqeCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WqeCopy").field("bytes", &self.len).field("list", &self.list).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(service: ServiceType, units: &[[u8; 16]]) -> (Option<Header>, WqeCopy) {
        let mut copy = WqeCopy { room: units.concat(), len: 16 * units.len(), list: SgList::default() };
        let (ctrl, _) = CtrlSeg::read_from_prefix(copy.bytes()).unwrap();
        (copy.decode(service, &ctrl), copy)
    }

    fn ctrl(opcode: Opcode) -> [u8; 16] {
        let mut unit = [0; 16];
        unit[3] = opcode.0;
        unit
    }

    fn inline(len: u32) -> [u8; 16] {
        let mut unit = [0; 16];
        unit[..4].copy_from_slice(&(1 << 31 | len).to_be_bytes());
        unit
    }

    #[test]
    fn inline_data_inside_its_chunk_is_taken() {
        let units = [ctrl(Opcode::SEND), inline(20), [0; 16], inline(12)];
        let (header, copy) = decode(ServiceType::RC, &units);
        assert!(matches!(header.unwrap().request, Request::Send));
        let expected = [Element::Inline { at: 20, len: 20 }, Element::Inline { at: 52, len: 12 }];
        assert_eq!((copy.len(), copy.list.has_inline()), (32, true));
        let mut list = SgList::default();
        expected.into_iter().for_each(|element| list.push(element));
        assert_eq!(format!("{:?}", copy.list), format!("{list:?}"));
    }

    #[test]
    fn inline_data_across_a_chunk_or_the_end_is_malformed() {
        let units = [ctrl(Opcode::SEND), [0; 16], [0; 16], inline(13), [0; 16]];
        assert!(decode(ServiceType::RC, &units).0.is_none());
        assert!(decode(ServiceType::RC, &[ctrl(Opcode::SEND), inline(13)]).0.is_none());
    }

    #[test]
    fn opcodes_that_a_service_lacks_are_malformed() {
        let read = [ctrl(Opcode::RDMA_READ), [0; 16]];
        assert!(decode(ServiceType::RC, &read).0.is_some());
        assert!(decode(ServiceType::UC, &read).0.is_none());
        assert!(decode(ServiceType::UD, &[ctrl(Opcode::RDMA_WRITE), [0; 16]]).0.is_none());
        assert!(decode(ServiceType::RC, &[ctrl(Opcode::SEND_INVALIDATE)]).0.is_some());
        assert!(decode(ServiceType::UC, &[ctrl(Opcode::SEND_INVALIDATE)]).0.is_none());
        let bind = [ctrl(Opcode::BIND_MW), [0; 16], [0; 16]];
        assert!(decode(ServiceType::UC, &bind).0.is_some());
        assert!(decode(ServiceType::UD, &bind).0.is_none());
        assert!(decode(ServiceType::MLX, &[ctrl(Opcode::SEND_IMM), [0; 16]]).0.is_none());
        assert!(decode(ServiceType::RC, &[ctrl(Opcode(0x1d)), [0; 16]]).0.is_none());
    }

    #[test]
    fn segments_that_are_cut_off_are_malformed() {
        assert!(decode(ServiceType::RC, &[ctrl(Opcode::RDMA_WRITE)]).0.is_none());
        assert!(decode(ServiceType::UD, &[ctrl(Opcode::SEND), [0; 16], [0; 16]]).0.is_none());
        assert!(decode(ServiceType::RC, &[ctrl(Opcode::ATOMIC_CS), [0; 16]]).0.is_none());
        for (opcode, units) in [
            (Opcode::BIND_MW, 1),
            (Opcode::LOCAL_INVALIDATE, 1),
            (Opcode::FAST_REGISTER, 2),
            (Opcode::MASKED_ATOMIC_CS, 2),
        ] {
            let wqe = [&[ctrl(opcode)][..], &vec![[0; 16]; units]].concat();
            assert!(decode(ServiceType::RC, &wqe).0.is_none(), "{opcode:?}");
        }
    }

    #[test]
    fn fields_of_a_masked_addition_carry_nothing_to_each_other() {
        let add = |before, add, tops| AtomicOp::FetchAdd { add, tops }.apply(before).unwrap();
        assert_eq!(add(u64::MAX, 1, 0), 0);
        assert_eq!(add(0x00ff_00ff_00ff_00ff, 0x0001_0001_0001_0001, 0), 0x0100_0100_0100_0100);
        assert_eq!(add(0x00ff_00ff_00ff_00ff, 0x0001_0001_0001_0001, 0x0080_0080_0080_0080), 0);
        assert_eq!(add(0xffff_ffff_ffff_ffff, 0x0000_0001_0000_0001, 1 << 31), 0x0000_0000_0000_0000);
        // Every bit a field of its own: exclusive or.
        assert_eq!(add(0b1100, 0b1010, u64::MAX), 0b0110);
    }

    #[test]
    fn masked_comparison_and_swap_look_at_their_own_bits() {
        let op = AtomicOp::CompareSwap {
            compare: Masked { value: 0xabcd, mask: 0xff00 },
            swap: Masked { value: 0x1234, mask: 0x0ff0 },
        };
        assert_eq!((op.apply(0xab11), op.apply(0xac11)), (Some(0xa231), None));
    }

    #[test]
    fn responses_go_to_pointers_of_the_right_size() {
        let mut pointer = [0; 16];
        pointer[3] = 8;
        let atomic = |data| [ctrl(Opcode::ATOMIC_FA), [0; 16], [0; 16], data];
        assert!(decode(ServiceType::RC, &atomic(pointer)).0.is_some());
        assert!(decode(ServiceType::RC, &atomic(inline(8))).0.is_none());
        pointer[3] = 9;
        assert!(decode(ServiceType::RC, &atomic(pointer)).0.is_none());
        assert!(decode(ServiceType::RC, &[ctrl(Opcode::RDMA_READ), [0; 16], inline(4)]).0.is_none());
    }
}
