//! Work requests as bytes: segments of any content, and whole requests that the HCA would carry out but for what the
//! input changes in them.

use arbitrary::Arbitrary;
use mlx4_wire::wqe::{
    BindAccess, BindKind, BindSeg, ByteCount, DataSeg, LocalInvalidateSeg, LsoHeader, MaskedAtomicSeg,
    Opcode, RemoteAddressSeg,
};
use mlx4_wire::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::guest::{ADDRESS, DATA_BYTES, DATAGRAMS, Guest, Keys, QKEY, QPS};
use crate::input::one;

/// What the guest knows of others, and where he is.
#[derive(Clone, Copy, Debug)]
pub(super) struct World {
    pub(super) victims: Keys,
    pub(super) lid: u16,
    /// The bus address that the guest's memory begins at.
    pub(super) window: u64,
}

#[derive(Arbitrary, Debug)]
pub(super) enum Key {
    Own,
    Victims,
    /// Of a number near one's own.
    Near(i8),
    /// Of a memory window, with these low bits.
    Window(u8, u8),
    Reserved,
    Any(u32),
}

impl Key {
    fn value(&self, guest: &Guest, world: &World, remote: bool) -> u32 {
        let of = |keys: &Keys| if remote { keys.rkey } else { keys.lkey };
        match *self {
            Self::Own => of(&guest.keys),
            Self::Victims => of(&world.victims),
            Self::Near(by) => of(&guest.keys).wrapping_add_signed(by.into()),
            Self::Window(which, low) => one(&guest.windows(), which) & !0xff | u32::from(low % 4),
            Self::Reserved => 0x100,
            Self::Any(key) => key,
        }
    }
}

#[derive(Arbitrary, Debug)]
pub(super) enum Address {
    /// In the region, from its start or back from its end.
    Inside(u16),
    End(u8),
    /// From the bus address that the guest's memory begins at.
    Bus(u32),
    Any(u64),
}

impl Address {
    fn value(&self, world: &World) -> u64 {
        match *self {
            Self::Inside(offset) => ADDRESS + u64::from(offset),
            Self::End(before) => ADDRESS + DATA_BYTES as u64 - u64::from(before),
            Self::Bus(offset) => world.window.wrapping_add(offset.into()),
            Self::Any(address) => address,
        }
    }
}

#[derive(Arbitrary, Debug)]
pub(super) enum Segment {
    Data {
        key: Key,
        address: Address,
        count: u16,
    },
    LongData {
        key: Key,
        address: Address,
        count: u32,
    },
    Remote {
        key: Key,
        address: Address,
    },
    Atomic {
        swap: u64,
        compare: u64,
    },
    Masked([u64; 4]),
    Bind {
        key: Key,
        region: Key,
        access: u32,
        kind: u32,
        address: Address,
        length: u64,
    },
    Invalidate(Key),
    Header {
        bytes: u16,
        mss: u16,
    },
    Raw([u8; 16]),
    Inline(u16),
    /// An address vector to a queue pair of one's own.
    Vector {
        qp: u8,
        qkey: u32,
        port: u8,
        lid: Option<u16>,
        flags: u8,
    },
}

fn data(key: u32, address: u64, count: u32) -> Vec<u8> {
    let mut data = DataSeg::new_zeroed();
    data.byte_count = ByteCount::from_bits(U32::new(count));
    data.lkey = U32::new(key);
    data.address = U64::new(address);
    data.as_bytes().to_vec()
}

fn remote(key: u32, address: u64) -> Vec<u8> {
    let mut remote = RemoteAddressSeg::new_zeroed();
    remote.rkey = U32::new(key);
    remote.address = U64::new(address);
    remote.as_bytes().to_vec()
}

/// The head of a large send: what is in front of each packet, zeroes.
fn header(bytes: u16, mss: u16) -> Vec<u8> {
    let head = LsoHeader::new().with_segment_size(mss).with_header_bytes(bytes);
    let mut segment = head.as_bytes().to_vec();
    segment.resize((4 + usize::from(bytes % 256)).next_multiple_of(16), 0);
    segment
}

fn masked([swap, compare, swap_mask, compare_mask]: [u64; 4]) -> Vec<u8> {
    let [swap, compare, swap_mask, compare_mask] = [swap, compare, swap_mask, compare_mask].map(U64::new);
    MaskedAtomicSeg { swap, compare, swap_mask, compare_mask }.as_bytes().to_vec()
}

fn bind(
    window: u32,
    region: u32,
    (access, kind): (BindAccess, BindKind),
    start: u64,
    length: u64,
) -> Vec<u8> {
    let segment = BindSeg {
        access,
        kind,
        new_rkey: U32::new(window),
        lkey: U32::new(region),
        start: U64::new(start),
        length: U64::new(length),
    };
    segment.as_bytes().to_vec()
}

fn invalidate(key: u32) -> Vec<u8> {
    let mut segment = LocalInvalidateSeg::new_zeroed();
    segment.key = U32::new(key);
    segment.as_bytes().to_vec()
}

/// An address vector of 48 bytes.
fn vector(guest: &Guest, (qp, qkey): (u8, u32), port: u8, lid: u16, flags: u8) -> Vec<u8> {
    let mut vector = [0; 48];
    let pd = guest.pd_number & 0xff_ffff | u32::from(port) << 24;
    vector[0..4].copy_from_slice(&pd.to_be_bytes());
    vector[5] = flags;
    vector[6..8].copy_from_slice(&lid.to_be_bytes());
    let qpn = guest.qps[usize::from(qp) % QPS].number;
    vector[32..36].copy_from_slice(&qpn.to_be_bytes());
    vector[36..40].copy_from_slice(&qkey.to_be_bytes());
    vector.to_vec()
}

impl Segment {
    pub(super) fn bytes(&self, guest: &Guest, world: &World) -> Vec<u8> {
        match self {
            Self::Data { key, address, count } => {
                data(key.value(guest, world, false), address.value(world), u32::from(*count))
            }
            Self::LongData { key, address, count } => {
                data(key.value(guest, world, false), address.value(world), *count)
            }
            Self::Remote { key, address } => remote(key.value(guest, world, true), address.value(world)),
            Self::Atomic { swap, compare } => [swap.to_be_bytes(), compare.to_be_bytes()].concat(),
            Self::Masked(numbers) => masked(*numbers),
            Self::Bind { key, region, access, kind, address, length } => {
                let rights = BindAccess::from_bits(U32::new(*access));
                let kind = BindKind::from_bits(U32::new(*kind));
                let keys = (key.value(guest, world, true), region.value(guest, world, false));
                bind(keys.0, keys.1, (rights, kind), address.value(world), *length)
            }
            Self::Invalidate(key) => invalidate(key.value(guest, world, true)),
            Self::Header { bytes, mss } => header(*bytes, *mss),
            Self::Raw(bytes) => bytes.to_vec(),
            Self::Inline(length) => {
                let length = u32::from(*length);
                let mut bytes = (0x8000_0000 | length).to_be_bytes().to_vec();
                bytes.resize(16 + usize::try_from(length % 128).unwrap() / 16 * 16, 0x17);
                bytes
            }
            Self::Vector { qp, qkey, port, lid, flags } => {
                vector(guest, (*qp, *qkey), *port, lid.unwrap_or(world.lid), *flags)
            }
        }
    }
}

/// What a whole request asks for. With the guest's own keys and an address in his region all of it is carried out.
#[derive(Arbitrary, Debug)]
pub(super) enum Verb {
    Send { immediate: bool },
    SendInvalidate(Key),
    Write { immediate: bool, key: Key, address: Address },
    Read { key: Key, address: Address },
    Atomic { key: Key, place: u8, add: bool, swap: u64, compare: u64 },
    MaskedAtomic { key: Key, place: u8, add: bool, numbers: [u64; 4] },
    Bind { window: u8, low: u8, access: u8, wrong_kind: bool, address: Address, length: u16 },
    Invalidate(Key),
    Datagram { qp: u8, wrong: Option<u32> },
    Large { header: u8, mss: u16 },
}

/// A whole request.
#[derive(Arbitrary, Debug)]
pub(super) struct Whole {
    pub(super) verb: Verb,
    /// Bytes of its data, and where they are.
    pub(super) count: u16,
    pub(super) address: Address,
}

/// What becomes a WQE.
pub(super) struct Parts {
    pub(super) opcode: Opcode,
    pub(super) immediate: u32,
    pub(super) body: Vec<u8>,
}

impl Whole {
    pub(super) fn parts(&self, guest: &Guest, world: &World) -> Parts {
        let payload = data(guest.keys.lkey, self.address.value(world), u32::from(self.count));
        let parts = |opcode, segments: &[&[u8]]| Parts { opcode, immediate: 7, body: segments.concat() };
        let far = |key: &Key, address| remote(key.value(guest, world, true), address);
        match &self.verb {
            Verb::Send { immediate: false } => parts(Opcode::SEND, &[&payload]),
            Verb::Send { immediate: true } => parts(Opcode::SEND_IMM, &[&payload]),
            Verb::SendInvalidate(key) => {
                let immediate = key.value(guest, world, true);
                Parts { immediate, ..parts(Opcode::SEND_INVALIDATE, &[&payload]) }
            }
            Verb::Write { immediate, key, address } => {
                let opcode = if *immediate { Opcode::RDMA_WRITE_IMM } else { Opcode::RDMA_WRITE };
                parts(opcode, &[&far(key, address.value(world)), &payload])
            }
            Verb::Read { key, address } => {
                parts(Opcode::RDMA_READ, &[&far(key, address.value(world)), &payload])
            }
            Verb::Atomic { key, place, add, swap, compare } => {
                let opcode = if *add { Opcode::ATOMIC_FA } else { Opcode::ATOMIC_CS };
                let operands = [swap.to_be_bytes(), compare.to_be_bytes()].concat();
                self.atomic(opcode, &far(key, word(*place)), &operands, guest, world)
            }
            Verb::MaskedAtomic { key, place, add, numbers } => {
                let opcode = if *add { Opcode::MASKED_ATOMIC_FA } else { Opcode::MASKED_ATOMIC_CS };
                let operands = masked(*numbers);
                let operands = if *add { &operands[..16] } else { &operands[..] };
                self.atomic(opcode, &far(key, word(*place)), operands, guest, world)
            }
            Verb::Bind { window, low, access, wrong_kind, address, length } => {
                let second = window % 2 == 1;
                let kind = BindKind::new().with_type_2(second != *wrong_kind);
                let key = Key::Window(*window, *low).value(guest, world, true);
                let rights = BindAccess::from_bits(U32::new(u32::from(*access) << 29));
                let length = u64::from(*length);
                let segment = bind(key, guest.keys.lkey, (rights, kind), address.value(world), length);
                parts(Opcode::BIND_MW, &[&segment])
            }
            Verb::Invalidate(key) => {
                parts(Opcode::LOCAL_INVALIDATE, &[&invalidate(key.value(guest, world, true))])
            }
            Verb::Datagram { qp, wrong } => {
                let qkey = wrong.unwrap_or(QKEY);
                parts(Opcode::SEND, &[&vector(guest, (*qp, qkey), 1, world.lid, 0), &payload])
            }
            Verb::Large { header: bytes, mss } => {
                let to = vector(guest, (DATAGRAMS, QKEY), 1, world.lid, 0);
                parts(Opcode::LSO, &[&to, &header(u16::from(*bytes % 44), *mss), &payload])
            }
        }
    }

    /// An atomic operation: what it brings has eight bytes.
    fn atomic(&self, opcode: Opcode, far: &[u8], operands: &[u8], guest: &Guest, world: &World) -> Parts {
        let result = data(guest.keys.lkey, self.address.value(world), 8);
        Parts { opcode, immediate: 0, body: [far, operands, &result].concat() }
    }
}

/// The address of one of the region's first words.
fn word(place: u8) -> u64 {
    ADDRESS + 8 * u64::from(place)
}
