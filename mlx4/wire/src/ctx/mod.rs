//! Contexts: the state of each object, as `SW2HW_x` takes it and `QUERY_x` gives it, and as it lies in ICM.
//!
//! Every context that names a ring carries the same eight bytes about the pages of the ring
//! ([`RingPages`]), and EQ and CQ the same word of size and UAR page ([`RingSize`]).
//!
//! Sources: Linux `drivers/net/ethernet/mellanox/mlx4/mlx4.h` and `include/linux/mlx4/qp.h`; iPXE
//! `MT25408_PRM.h`. Where the two disagree the stock Linux driver's layout is used.

use crate::U32;

pub mod cq;
pub mod eq;
pub mod mcg;
pub mod mpt;
pub mod mtt;
pub mod path;
pub mod qp;
pub mod srq;

/// log2 of the smallest page the hardware knows; page sizes are stored less this.
pub const LOG2_ICM_PAGE: u8 = 12;

bits! {
    /// The page size of a ring.
    pub struct LogPage: u8 {
        #[bits(2)]
        __: u8,
        /// log2 of the page size in bytes, less 12.
        #[bits(6)]
        pub log2_less_12: u8,
    }
}

wire! {
    size = 8;
    /// Where a ring's pages are: page size and the place of the first MTT entry.
    pub struct RingPages {
        /// Page size.
        pub log_page: LogPage,
        __0: [u8; 2],
        /// Bits 39:32 of the MTT base.
        pub mtt_base_high: u8,
        /// Bits 31:0 of the MTT base; bits 2:0 are zero.
        pub mtt_base_low: U32,
    }
}

impl RingPages {
    /// The value for pages of `1 << log2_page` bytes whose first MTT entry is at byte `mtt_base` of the
    /// MTT table. `None` if the page is below 4 KiB or above the field, or the base does not fit in 40
    /// bits or is not a multiple of 8.
    pub const fn new(log2_page: u8, mtt_base: u64) -> Option<Self> {
        let Some(log2_less_12) = log2_page.checked_sub(LOG2_ICM_PAGE) else { return None };
        if log2_less_12 > 0x3f || mtt_base >> 40 != 0 || !mtt_base.is_multiple_of(mtt::MTT_ENTRY_BYTES) {
            return None;
        }
        let [.., high, b3, b2, b1, b0] = mtt_base.to_be_bytes();
        Some(Self {
            log_page: LogPage::new().with_log2_less_12(log2_less_12),
            __0: [0; 2],
            mtt_base_high: high,
            mtt_base_low: U32::from_bytes([b3, b2, b1, b0]),
        })
    }

    /// log2 of the page size in bytes: 12 to 75. More than 63 is no page size; check before shifting.
    pub const fn log2_page(&self) -> u8 {
        self.log_page.log2_less_12() + LOG2_ICM_PAGE
    }

    /// Byte offset of the ring's first entry in the MTT table, rounded down to a whole entry.
    pub const fn mtt_base(&self) -> u64 {
        let [b3, b2, b1, b0] = self.mtt_base_low.to_bytes();
        let base = u64::from_be_bytes([0, 0, 0, self.mtt_base_high, b3, b2, b1, b0]);
        base & !(mtt::MTT_ENTRY_BYTES - 1)
    }
}

bits! {
    /// The size of an EQ or CQ, and the UAR page of its doorbell.
    pub struct RingSize: u32 {
        #[bits(3)]
        __: u32,
        /// log2 of the number of entries.
        #[bits(5)]
        pub log2_entries: u8,
        /// UAR page through which the CQ's doorbell comes; zero for an EQ.
        #[bits(24)]
        pub uar_page: u32,
    }
}

impl RingSize {
    /// Number of entries: 1 to 2^31.
    pub const fn entries(self) -> u32 {
        1 << self.log2_entries()
    }
}

bits! {
    /// Where a ring starts in its first page.
    pub struct RingOffset: u32 {
        #[bits(20)]
        __: u32,
        /// Offset in units of 32 bytes; drivers leave it zero.
        #[bits(7)]
        pub units_32: u32,
        #[bits(5)]
        __: u32,
    }
}

impl RingOffset {
    /// Offset in bytes: a multiple of 32 below 4096.
    pub const fn bytes(self) -> u32 {
        self.units_32() * 32
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromBytes, IntoBytes};

    use super::*;

    #[test]
    fn ring_pages_lie_as_shift_gap_high_low() {
        let pages = RingPages::new(16, 0x12_3456_7898).unwrap();
        assert_eq!(pages.as_bytes(), [4, 0, 0, 0x12, 0x34, 0x56, 0x78, 0x98]);
        assert_eq!((pages.log2_page(), pages.mtt_base()), (16, 0x12_3456_7898));
    }

    #[test]
    fn ring_pages_out_of_range_are_refused() {
        assert_eq!(RingPages::new(11, 0), None);
        assert_eq!(RingPages::new(76, 0), None);
        assert_eq!(RingPages::new(12, 1 << 40), None);
        assert_eq!(RingPages::new(12, 4), None);
    }

    #[test]
    fn ring_pages_with_all_bits_set_read_without_overflow() {
        let pages = RingPages::read_from_bytes(&[0xff; 8]).unwrap();
        assert_eq!((pages.log2_page(), pages.mtt_base()), (75, 0xff_ffff_fff8));
    }

    #[test]
    fn ring_size_lies_above_the_uar_page() {
        let size = RingSize::new().with_log2_entries(9).with_uar_page(0x00_0102);
        assert_eq!(size.as_bytes(), [9, 0, 1, 2]);
        assert_eq!(size.entries(), 512);
    }

    #[test]
    fn ring_offset_counts_in_32_bytes() {
        assert_eq!(RingOffset::from_bits(U32::new(0xffff_ffff)).bytes(), 0xfe0);
    }
}
