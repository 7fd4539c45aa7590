//! Send WQEs: taken from the ring once, checked, and kept in a form of their own while they execute.
//!
//! Whatever doesn't add up (size, opcode that the service doesn't have, segments that are cut off or cross a
//! chunk) is [`Taken::Malformed`]; the queue pair completes it with a local operation error.

use mlx4_wire::U32;
use mlx4_wire::ctx::qp::ServiceType;
use mlx4_wire::wqe::{
    AtomicSeg, BYTE_COUNT_BYTES, ByteCount, Completion, CtrlOpcode, CtrlSeg, DataSeg, DatagramSeg,
    MlxCtrlSeg, Opcode, RemoteAddressSeg, WQE_CHUNK_BYTES, WQE_MAX_BYTES, WQE_UNIT_BYTES,
};
use vm_memory::VolatileSlice;
use zerocopy::FromBytes;

use super::sg::{Element, SgList};
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
    CompareSwap { compare: u64, swap: u64 },
    FetchAdd(u64),
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
    Special(MlxCtrlSeg),
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
    bytes: Vec<u8>,
    list: SgList,
}

/// Whether the slot of a counter holds a WQE: its owner bit has the parity of the counter's pass. Returns
/// the word that holds the bit.
pub(super) fn owned(burst: &Burst, attrs: &Attrs, counter: u16) -> Result<Option<[u8; 4]>, RingFault> {
    let word = attrs.memory.load_acquire(burst, attrs.sq.slot(counter))?;
    let odd_pass = u32::from(counter) & attrs.sq.entries != 0;
    let owner = CtrlOpcode::from_bits(U32::from_bytes(word)).owner();
    Ok((owner == odd_pass).then_some(word))
}

impl WqeCopy {
    /// Takes the WQE at a counter's slot, if there is one.
    ///
    /// # Errors
    /// The ring can't be read.
    pub(super) fn take(&mut self, burst: &Burst, attrs: &Attrs, counter: u16) -> Result<Taken, RingFault> {
        let Some(first) = owned(burst, attrs, counter)? else { return Ok(Taken::Nothing) };
        let slot = attrs.sq.slot(counter);
        let stride = usize::try_from(attrs.sq.stride.min(WQE_MAX_BYTES)).unwrap_or(0);
        let start = stride.min(WQE_CHUNK_BYTES as usize);
        self.list.clear();
        self.bytes.resize(start, 0);
        attrs.memory.read(burst, slot, &mut self.bytes)?;
        self.bytes[..4].copy_from_slice(&first);
        let Ok((ctrl, _)) = CtrlSeg::read_from_prefix(&self.bytes) else { return Ok(Taken::Malformed) };
        let size = ctrl.size.bytes() as usize;
        if size < CTRL_BYTES || size > stride {
            return Ok(Taken::Malformed);
        }
        self.bytes.resize(size, 0);
        if size > start {
            attrs.memory.read(burst, slot + start as u64, &mut self.bytes[start..])?;
        }
        Ok(self.decode(attrs.service, &ctrl).map_or(Taken::Malformed, Taken::Wqe))
    }

    /// The bytes of the WQE that was taken last.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
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
            request,
        })
    }

    /// The request of an opcode, where the service has it, and the offset of its data segments.
    fn request(&self, service: ServiceType, opcode: Opcode) -> Option<(Request, usize)> {
        let reliable = [ServiceType::RC, ServiceType::XRC].contains(&service);
        let connected = reliable || service == ServiceType::UC;
        let after = self.bytes.get(CTRL_BYTES..)?;
        match opcode {
            Opcode::NOP => Some((Request::Nop, CTRL_BYTES)),
            Opcode::SEND if service == ServiceType::MLX => {
                let (ctrl, _) = MlxCtrlSeg::read_from_prefix(&self.bytes).ok()?;
                Some((Request::Special(ctrl), CTRL_BYTES))
            }
            Opcode::SEND | Opcode::SEND_IMM if service == ServiceType::UD => {
                let (datagram, _) = DatagramSeg::read_from_prefix(after).ok()?;
                Some((Request::Datagram(datagram), CTRL_BYTES + size_of::<DatagramSeg>()))
            }
            Opcode::SEND | Opcode::SEND_IMM if connected => Some((Request::Send, CTRL_BYTES)),
            Opcode::RDMA_WRITE | Opcode::RDMA_WRITE_IMM if connected => {
                let (remote, data) = self.remote()?;
                Some((Request::Write(remote), data))
            }
            Opcode::RDMA_READ if reliable => {
                let (remote, data) = self.remote()?;
                Some((Request::Read(remote), data))
            }
            Opcode::ATOMIC_CS | Opcode::ATOMIC_FA if reliable => {
                let (remote, at) = self.remote()?;
                let (seg, _) = AtomicSeg::read_from_prefix(self.bytes.get(at..)?).ok()?;
                let op = match opcode {
                    Opcode::ATOMIC_FA => AtomicOp::FetchAdd(seg.swap_add.get()),
                    _ => AtomicOp::CompareSwap { compare: seg.compare.get(), swap: seg.swap_add.get() },
                };
                Some((Request::Atomic(remote, op), at + size_of::<AtomicSeg>()))
            }
            _ => None,
        }
    }

    fn remote(&self) -> Option<(Remote, usize)> {
        let (seg, _) = RemoteAddressSeg::read_from_prefix(self.bytes.get(CTRL_BYTES..)?).ok()?;
        let remote = Remote { va: seg.address.get(), rkey: seg.rkey.get() };
        Some((remote, CTRL_BYTES + size_of::<RemoteAddressSeg>()))
    }

    /// Reads data segments from `at` to the end of the WQE.
    fn data(&mut self, mut at: usize) -> Option<()> {
        while at < self.bytes.len() {
            let (head, _) = ByteCount::read_from_prefix(self.bytes.get(at..)?).ok()?;
            if head.inline() {
                let start = at + BYTE_COUNT_BYTES as usize;
                let len = head.inline_count();
                let end = start + len as usize;
                let chunk_end = (at + 1).next_multiple_of(WQE_CHUNK_BYTES as usize);
                if end > chunk_end || end > self.bytes.len() {
                    return None;
                }
                self.list.push(Element::Inline { at: start, len });
                at = end.next_multiple_of(WQE_UNIT_BYTES as usize);
            } else {
                let (seg, _) = DataSeg::read_from_prefix(self.bytes.get(at..)?).ok()?;
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

    /// The list, and the memory that its inline entries lie in.
    pub(super) fn parts(&mut self) -> (&SgList, VolatileSlice<'_>) {
        (&self.list, VolatileSlice::from(&mut self.bytes[..]))
    }
}

/// The entry of a data segment that is a pointer.
pub(super) fn pointer(seg: &DataSeg) -> Element {
    Element::Pointer { key: seg.lkey.get(), va: seg.address.get(), len: seg.byte_count.count() }
}

impl std::fmt::Debug for WqeCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WqeCopy").field("bytes", &self.bytes.len()).field("list", &self.list).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(service: ServiceType, units: &[[u8; 16]]) -> (Option<Header>, WqeCopy) {
        let mut copy = WqeCopy { bytes: units.concat(), list: SgList::default() };
        let (ctrl, _) = CtrlSeg::read_from_prefix(&copy.bytes).unwrap();
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
        assert!(decode(ServiceType::RC, &[ctrl(Opcode::SEND_INVALIDATE), [0; 16]]).0.is_none());
        assert!(decode(ServiceType::MLX, &[ctrl(Opcode::SEND_IMM), [0; 16]]).0.is_none());
        assert!(decode(ServiceType::RC, &[ctrl(Opcode(0x1d)), [0; 16]]).0.is_none());
    }

    #[test]
    fn segments_that_are_cut_off_are_malformed() {
        assert!(decode(ServiceType::RC, &[ctrl(Opcode::RDMA_WRITE)]).0.is_none());
        assert!(decode(ServiceType::UD, &[ctrl(Opcode::SEND), [0; 16], [0; 16]]).0.is_none());
        assert!(decode(ServiceType::RC, &[ctrl(Opcode::ATOMIC_CS), [0; 16]]).0.is_none());
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
