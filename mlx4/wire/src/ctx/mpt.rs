//! dMPT entry: a memory region or window, with its rights, range and translation.
//!
//! The first 64 bytes of a slot of the dMPT table (the slot's size is a device capability), the mailbox of
//! `SW2HW_MPT`, and the outbox of `QUERY_MPT` and `HW2SW_MPT`.
//!
//! Sources: Linux `struct mlx4_mpt_entry` and `mr.c`; iPXE `hermonprm_mpt`. Bit names that only iPXE has
//! are kept where Linux is silent.

use core::mem::offset_of;

use crate::{Number24, U32, U64};

open_enum! {
    /// Who owns an entry, and whether it is usable (4 bits).
    pub enum MptStatus: u8 {
        /// Owned by hardware and usable.
        VALID = 0,
        /// Owned by hardware, to be made valid by a fast register or bind WQE.
        FREE = 3,
        /// Owned by software.
        SOFTWARE = 0xf,
    }
}

bits! {
    /// First word of an entry: status and rights.
    pub struct MptFlags: u32 {
        /// Ownership.
        #[bits(4)]
        pub status: MptStatus,
        #[bits(8)]
        __: u32,
        /// Accesses are made with no snoop.
        pub no_snoop: bool,
        #[bits(1)]
        __: u32,
        /// MIO (Linux sets it in every entry); iPXE's header calls it "ATC translated".
        pub mio: bool,
        /// ATC request (iPXE's header).
        pub atc_request: bool,
        /// Windows may be bound to the region.
        pub bind: bool,
        /// Remote atomics are allowed.
        pub remote_atomic: bool,
        /// Remote writes are allowed.
        pub remote_write: bool,
        /// Remote reads are allowed.
        pub remote_read: bool,
        /// Local writes are allowed.
        pub local_write: bool,
        /// Local reads are allowed.
        pub local_read: bool,
        /// Addresses are bus addresses: no MTT.
        pub physical: bool,
        /// The entry is a region; a window otherwise.
        pub region: bool,
        #[bits(8)]
        __: u32,
    }
}

bits! {
    /// The QP to which a window of type 2 is bound.
    pub struct MptQp: u32 {
        /// Number of the QP.
        #[bits(24)]
        pub qpn: u32,
        /// The window belongs to a QP (type 2).
        pub bound_to_qp: bool,
        #[bits(7)]
        __: u32,
    }
}

bits! {
    /// The protection domain, and which work requests may change the entry.
    pub struct MptPd: u32 {
        #[bits(1)]
        __: u32,
        /// `m_dif` of iPXE's header: data integrity field in memory.
        pub dif_memory: bool,
        /// `w_dif` of iPXE's header: data integrity field on the wire.
        pub dif_wire: bool,
        /// A fast register WQE may give remote rights (Linux sets it with `fast_register`).
        pub remote_access_enable: bool,
        /// A fast register WQE may change the entry.
        pub fast_register: bool,
        /// `nce` of iPXE's header.
        pub nce: bool,
        /// A local invalidate WQE may free the entry.
        pub invalidate: bool,
        /// A remote SEND with invalidate may free the entry.
        pub remote_invalidate: bool,
        /// Protection domain. The driver uses 17 bits, and bits 23:17 for the virtual function.
        #[bits(24)]
        pub pd: u32,
    }
}

bits! {
    /// Options of the translation.
    pub struct MptOptions: u32 {
        #[bits(8)]
        __: u32,
        /// The offset in the first page is taken from `first_byte_offset`, not from the address.
        pub first_byte_offset_enable: bool,
        /// Bit 64 of the length: the region is the whole address space.
        pub length_64: bool,
        /// `log2_page` is the size of a block in bytes, which need be no power of two (iPXE's header).
        pub block_mode: bool,
        #[bits(17)]
        __: u32,
        /// log2 of the number of replicas of the MTT.
        #[bits(4)]
        pub log2_mtt_replicas: u8,
    }
}

bits! {
    /// A 21-bit value in the low bits of a word: page size or offset.
    pub struct Number21: u32 {
        #[bits(11)]
        __: u32,
        /// The value.
        #[bits(21)]
        pub number: u32,
    }
}

wire! {
    size = 64;
    /// An entry of the dMPT table.
    pub struct MptEntry {
        /// Status and rights.
        pub flags: MptFlags,
        /// QP of a window.
        pub qp: MptQp,
        /// The key in index form: [`key_to_mpt_index`] of the lkey or rkey.
        pub key: U32,
        /// Protection domain and kinds of change.
        pub pd: MptPd,
        /// First virtual address.
        pub start: U64,
        /// Length in bytes; all ones with a start of zero is the whole address space.
        pub length: U64,
        /// Lkey of the region to which a window is bound, in index form; output only.
        pub lkey: U32,
        /// How many windows are bound to the region; output only.
        pub window_count: Number24,
        /// Options of the translation.
        pub options: MptOptions,
        /// Bits 39:0: byte offset of the first entry in the MTT table, a multiple of 8.
        pub mtt_address: U64,
        /// Number of MTT entries of a fast-register region; not to be relied on otherwise.
        pub mtt_entries: U32,
        /// log2 of the page size in bytes.
        pub log2_page: Number21,
        /// Offset of the first byte in the first page, in bytes; see [`MptOptions`].
        pub first_byte_offset: Number21,
    }
}

const _: () = {
    assert!(offset_of!(MptEntry, key) == 0x08);
    assert!(offset_of!(MptEntry, pd) == 0x0c);
    assert!(offset_of!(MptEntry, start) == 0x10);
    assert!(offset_of!(MptEntry, length) == 0x18);
    assert!(offset_of!(MptEntry, lkey) == 0x20);
    assert!(offset_of!(MptEntry, options) == 0x28);
    assert!(offset_of!(MptEntry, mtt_address) == 0x2c);
    assert!(offset_of!(MptEntry, mtt_entries) == 0x34);
    assert!(offset_of!(MptEntry, log2_page) == 0x38);
    assert!(offset_of!(MptEntry, first_byte_offset) == 0x3c);
};

impl MptEntry {
    /// Byte offset of the first entry in the MTT table, rounded down to a whole entry.
    pub const fn mtt_base(&self) -> u64 {
        self.mtt_address.get() & 0xff_ffff_fff8
    }
}

/// The index form of an lkey or rkey: index in bits 23:0, variable byte in bits 31:24.
///
/// The slot in the table is this modulo the number of entries.
pub const fn key_to_mpt_index(key: u32) -> u32 {
    key.rotate_right(8)
}

/// The lkey or rkey of an index form; inverse of [`key_to_mpt_index`].
pub const fn mpt_index_to_key(index: u32) -> u32 {
    index.rotate_left(8)
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    /// A region as the stock driver enters it: local write, remote read and write, 4 KiB pages.
    #[test]
    fn region_of_the_stock_driver_has_its_bytes() {
        let mut entry = MptEntry::new_zeroed();
        entry.flags = MptFlags::new()
            .with_status(MptStatus::SOFTWARE)
            .with_mio(true)
            .with_remote_write(true)
            .with_remote_read(true)
            .with_local_write(true)
            .with_local_read(true)
            .with_region(true);
        entry.key = U32::new(key_to_mpt_index(0x0080_0111));
        entry.pd = MptPd::new().with_invalidate(true).with_remote_invalidate(true).with_pd(0x1_0203);
        entry.start = U64::new(0x7f00_0000_1000);
        entry.length = U64::new(0x2345);
        entry.mtt_address = U64::new(0x01_0000_0040);
        entry.mtt_entries = U32::new(4);
        entry.log2_page = Number21::new().with_number(12);

        let bytes = entry.as_bytes();
        assert_eq!(bytes[0x00..0x04], [0xf0, 0x02, 0x3d, 0x00]);
        assert_eq!(bytes[0x08..0x0c], [0x11, 0x00, 0x80, 0x01]);
        assert_eq!(bytes[0x0c..0x10], [0x03, 0x01, 0x02, 0x03]);
        assert_eq!(bytes[0x10..0x18], [0, 0, 0x7f, 0, 0, 0, 0x10, 0]);
        assert_eq!(bytes[0x18..0x20], [0, 0, 0, 0, 0, 0, 0x23, 0x45]);
        assert_eq!(bytes[0x2c..0x34], [0, 0, 0, 1, 0, 0, 0, 0x40]);
        assert_eq!(bytes[0x34..0x3c], [0, 0, 0, 4, 0, 0, 0, 12]);
        assert_eq!(entry.mtt_base(), 0x01_0000_0040);
    }

    #[test]
    fn fast_register_and_window_bits_are_at_their_places() {
        let pd = MptPd::new().with_fast_register(true).with_remote_access_enable(true);
        assert_eq!(pd.as_bytes(), [0x18, 0, 0, 0]);
        let qp = MptQp::new().with_bound_to_qp(true).with_qpn(0x40);
        assert_eq!(qp.as_bytes(), [0, 0, 0x40, 0x80]);
        let flags = MptFlags::new().with_status(MptStatus::FREE).with_bind(true).with_physical(true);
        assert_eq!(flags.as_bytes(), [0x30, 0, 0x82, 0]);
        let flags = MptFlags::new().with_no_snoop(true).with_atc_request(true).with_remote_atomic(true);
        assert_eq!(flags.as_bytes(), [0, 0x09, 0x40, 0]);
    }

    #[test]
    fn options_are_at_their_places() {
        let options = MptOptions::new()
            .with_first_byte_offset_enable(true)
            .with_length_64(true)
            .with_block_mode(true)
            .with_log2_mtt_replicas(5);
        assert_eq!(options.as_bytes(), [0, 0xe0, 0, 5]);
    }

    #[test]
    fn key_and_index_are_inverse() {
        assert_eq!(key_to_mpt_index(0x100), 1);
        assert_eq!(key_to_mpt_index(0x1234_56ab), 0xab12_3456);
        assert_eq!(mpt_index_to_key(0xab12_3456), 0x1234_56ab);
    }
}
