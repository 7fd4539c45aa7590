//! MCG entry (Linux: MGM): a multicast group and its members; the mailbox of `READ_MCG` and `WRITE_MCG`.
//!
//! An entry is a head ([`McgHeader`]) followed by one word for each member ([`McgMember`]). Its size is set
//! at `INIT_HCA`. The first entries of the table are heads of hash chains, the rest is overflow.
//!
//! Sources: Linux `struct mlx4_mgm` and `mcg.c`; iPXE `hermonprm_mcg_entry`, whose older valid bit in the
//! member word no driver uses.

use core::mem::offset_of;

open_enum! {
    /// Protocol of a group (2 bits).
    pub enum McgProtocol: u8 {
        /// InfiniBand.
        IB = 0,
        /// Ethernet.
        ETHERNET = 1,
    }
}

bits! {
    /// Link of a hash chain.
    pub struct McgNext: u32 {
        /// Index of the next entry; 0 ends the chain.
        #[bits(26)]
        pub index: u32,
        #[bits(6)]
        __: u32,
    }
}

bits! {
    /// Protocol and number of members.
    pub struct McgMembers: u32 {
        /// Protocol.
        #[bits(2)]
        pub protocol: McgProtocol,
        #[bits(6)]
        __: u32,
        /// Number of members; 0 is an empty entry.
        #[bits(24)]
        pub count: u32,
    }
}

wire! {
    size = 0x20;
    /// Head of an MCG entry.
    pub struct McgHeader {
        /// Link of the chain.
        pub next: McgNext,
        /// Protocol and number of members.
        pub members: McgMembers,
        __0: [u8; 8],
        /// GID of the group.
        pub gid: [u8; 16],
    }
}

const _: () = assert!(offset_of!(McgHeader, gid) == 0x10);

bits! {
    /// A member of a group.
    pub struct McgMember: u32 {
        #[bits(1)]
        __: u32,
        /// What the member has sent itself is not delivered to it.
        pub block_loopback: bool,
        #[bits(6)]
        __: u32,
        /// Number of the QP.
        #[bits(24)]
        pub qpn: u32,
    }
}

/// log2 of the smallest entry in bytes.
pub const LOG2_MCG_ENTRY_MIN: u8 = 7;

/// log2 of the largest entry in bytes.
pub const LOG2_MCG_ENTRY_MAX: u8 = 12;

/// Size of the head of an entry in bytes.
pub const MCG_HEADER_BYTES: u32 = 0x20;

/// Size of a member in bytes.
pub const MCG_MEMBER_BYTES: u32 = 4;

/// How many members an entry of `entry_bytes` holds.
pub const fn mcg_capacity(entry_bytes: u32) -> u32 {
    entry_bytes.saturating_sub(MCG_HEADER_BYTES) / MCG_MEMBER_BYTES
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn head_has_its_bytes() {
        let mut head = McgHeader::new_zeroed();
        head.next = McgNext::new().with_index(0x1001);
        head.members = McgMembers::new().with_protocol(McgProtocol::ETHERNET).with_count(3);
        head.gid = *b"0123456789abcdef";
        let bytes = head.as_bytes();
        assert_eq!(bytes[0x00..0x08], [0, 0x04, 0x00, 0x40, 0x40, 0, 0, 3]);
        assert_eq!(bytes[0x10..0x20], *b"0123456789abcdef");
    }

    #[test]
    fn member_blocks_loopback_with_bit_30() {
        let member = McgMember::new().with_block_loopback(true).with_qpn(0x12_3456);
        assert_eq!(member.as_bytes(), [0x40, 0x12, 0x34, 0x56]);
    }

    #[test]
    fn capacity_is_that_of_the_stock_driver() {
        assert_eq!(mcg_capacity(1024), 248);
        assert_eq!(mcg_capacity(1 << LOG2_MCG_ENTRY_MIN), 24);
        assert_eq!(mcg_capacity(1 << LOG2_MCG_ENTRY_MAX), 1016);
        assert_eq!(mcg_capacity(16), 0);
    }
}
