//! Rings in a guest's memory, written and read by hand: no library stands between a test and the HCA.

use mlx4_pci::HostMemory;
use mlx4_wire::cqe::{CQE_BYTES, CQE_OWNER, Cqe};
use mlx4_wire::wqe::{
    ByteCount, Completion, CtrlFlags, CtrlOpcode, CtrlSeg, CtrlSize, DataSeg, Opcode, RemoteAddressSeg,
};
use mlx4_wire::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Bytes of a slot of a connection's send queue.
pub const SEND_STRIDE: usize = 64;
/// The same of datagrams, whose requests carry the address.
pub const DATAGRAM_STRIDE: usize = 128;
/// Offset of the syndrome in a completion with an error.
const SYNDROME: usize = 0x1b;
/// First word of a slot that isn't posted: the owner bit of the pass before the first.
const NOT_POSTED: u32 = 0x8000_0000;

/// A data segment.
pub fn data(lkey: u32, address: u64, count: u32) -> Vec<u8> {
    let mut data = DataSeg::new_zeroed();
    data.byte_count = ByteCount::new().with_count(count);
    (data.lkey, data.address) = (U32::new(lkey), U64::new(address));
    data.as_bytes().to_vec()
}

/// A datagram segment: an address vector, and the queue pair and Q_Key at its end.
pub fn datagram(vector: &[u8; 48], qpn: u32, qkey: u32) -> Vec<u8> {
    let mut segment = *vector;
    segment[32..36].copy_from_slice(&qpn.to_be_bytes());
    segment[36..40].copy_from_slice(&qkey.to_be_bytes());
    segment.to_vec()
}

/// A remote address segment.
pub fn remote(rkey: u32, address: u64) -> Vec<u8> {
    let mut remote = RemoteAddressSeg::new_zeroed();
    (remote.rkey, remote.address) = (U32::new(rkey), U64::new(address));
    remote.as_bytes().to_vec()
}

/// A send queue.
pub struct SendRing {
    pub offset: usize,
    pub entries: usize,
    stride: usize,
    head: usize,
}

impl SendRing {
    pub fn new(memory: &HostMemory, offset: usize, entries: usize, stride: usize) -> Self {
        for slot in 0..entries {
            memory.store_be32(offset + slot * stride, NOT_POSTED).unwrap();
        }
        Self { offset, entries, stride, head: 0 }
    }

    /// Posts a request with a completion: the control segment and what follows it.
    pub fn post(&mut self, memory: &HostMemory, opcode: Opcode, body: &[u8]) {
        // At most 63.
        let units = u32::try_from((16 + body.len()) / 16).unwrap();
        self.post_as(memory, opcode, body, units);
    }

    /// Posts a request of an extended connection to a shared receive queue.
    pub fn post_to(&mut self, memory: &HostMemory, opcode: Opcode, body: &[u8], srqn: u32) {
        let units = u32::try_from((16 + body.len()) / 16).unwrap();
        self.write(memory, (opcode, units), body, srqn);
    }

    /// Posts a request that says to be of so many units.
    pub fn post_as(&mut self, memory: &HostMemory, opcode: Opcode, body: &[u8], units: u32) {
        self.write(memory, (opcode, units), body, 0);
    }

    fn write(&mut self, memory: &HostMemory, (opcode, units): (Opcode, u32), body: &[u8], srqn: u32) {
        let slot = self.offset + (self.head % self.entries) * self.stride;
        let mut ctrl = CtrlSeg::new_zeroed();
        ctrl.opcode = CtrlOpcode::new().with_owner(self.head & self.entries != 0).with_opcode(opcode);
        ctrl.size = CtrlSize::new().with_units(units);
        ctrl.flags = CtrlFlags::new().with_completion(Completion::ALWAYS).with_remote_srqn(srqn);
        memory.write(slot + 16, body).unwrap();
        memory.write(slot + 4, &ctrl.as_bytes()[4..]).unwrap();
        memory.store_be32(slot, ctrl.opcode.into_bits().get()).unwrap();
        self.head += 1;
    }
}

/// A receive queue, whose requests have one piece each.
pub struct ReceiveRing {
    pub offset: usize,
    pub entries: usize,
    pub stride: usize,
    pub record: usize,
    pub posted: usize,
}

impl ReceiveRing {
    pub fn post(&mut self, memory: &HostMemory, piece: &[u8]) {
        let slot = self.offset + (self.posted % self.entries) * self.stride;
        memory.write(slot, piece).unwrap();
        memory.write(slot + 16, DataSeg::TERMINATOR.as_bytes()).unwrap();
        self.posted += 1;
        memory.store_be32(self.record, u32::try_from(self.posted & 0xffff).unwrap()).unwrap();
    }
}

/// What completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    pub qpn: u32,
    pub is_send: bool,
    pub bytes: u32,
    /// What went wrong, by its code.
    pub syndrome: Option<u8>,
}

/// Opcode of the mark that ends a ring.
const MARK: u8 = 0x16;

/// A completion queue.
pub struct CompletionRing {
    pub offset: usize,
    pub entries: usize,
    /// Bytes of an entry, of which the last 32 tell.
    pub stride: usize,
    pub record: usize,
    pub consumer: usize,
    /// Sequence number of arm requests: one more with each event.
    pub sequence: u32,
}

impl CompletionRing {
    /// Takes a completion, if there is one.
    pub fn poll(&mut self, memory: &HostMemory) -> Option<Done> {
        let at = self.entry(self.consumer);
        let owner = memory.load_u8(at + usize::try_from(CQE_OWNER).unwrap()).unwrap();
        if (owner & 0x80 != 0) != (self.consumer & self.entries != 0) {
            return None;
        }
        let mut bytes = [0; CQE_BYTES as usize];
        memory.read(at, &mut bytes).unwrap();
        let cqe = Cqe::read_from_bytes(&bytes).unwrap();
        if cqe.owner.opcode().0 == 0x0c {
            return None;
        }
        self.consumer += 1;
        memory.store_be32(self.record, u32::try_from(self.consumer).unwrap()).unwrap();
        Some(Done {
            qpn: cqe.qp.qpn(),
            is_send: cqe.owner.is_send(),
            bytes: cqe.byte_count.get(),
            syndrome: cqe.owner.is_error().then_some(bytes[SYNDROME]),
        })
    }

    fn entry(&self, index: usize) -> usize {
        self.offset + (index % self.entries) * self.stride + self.stride - CQE_BYTES as usize
    }

    /// Goes on in another ring, to which the HCA has moved the queue: takes over what is in front of the mark, each
    /// entry one index further on.
    pub fn moved(&mut self, memory: &HostMemory, offset: usize, entries: usize) {
        let new = Self { offset, entries, ..*self };
        let owner = |ring: &Self, index| ring.entry(index) + usize::try_from(CQE_OWNER).unwrap();
        for index in self.consumer..self.consumer + self.entries {
            let last = memory.load_u8(owner(self, index)).unwrap();
            if last & 0x1f == MARK {
                *self = Self { consumer: self.consumer + 1, ..new };
                return;
            }
            let mut bytes = [0; CQE_BYTES as usize];
            memory.read(self.entry(index), &mut bytes).unwrap();
            bytes[31] = last & 0x7f | if (index + 1) & entries != 0 { 0x80 } else { 0 };
            memory.write(new.entry(index + 1), &bytes).unwrap();
        }
        panic!("no mark");
    }

    /// Asks for the next event; what the doorbell is to carry, with a number that isn't this queue's.
    pub fn arm(&self, memory: &HostMemory) -> u64 {
        const NEXT: u32 = 2;
        let index = u32::try_from(self.consumer).unwrap() & 0xff_ffff;
        let word = self.sequence << 28 | NEXT << 24;
        memory.store_be32(self.record + 4, word | index).unwrap();
        u64::from(word | 0xab_cdef) << 32 | u64::from(index)
    }
}
