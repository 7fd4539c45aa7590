//! CQ context, the mailbox of `SW2HW_CQ`, `HW2SW_CQ`, `QUERY_CQ` and `MODIFY_CQ`.
//!
//! `MODIFY_CQ` with operation modifier 0 (resize) reads size, page offset and pages; with 1 (moderation)
//! period and count.
//!
//! Sources: Linux `struct mlx4_cq_context` and `cq.c`; iPXE `hermonprm_cqc`. iPXE has another layout for
//! resizing; the stock driver's is this one.

use core::mem::offset_of;

use super::{RingOffset, RingPages, RingSize};
use crate::{Number24, U16, U64};

open_enum! {
    /// Whether a CQ works (4 bits).
    pub enum CqStatus: u8 {
        /// It does.
        OK = 0,
        /// A CQE found no free entry.
        OVERFLOW = 9,
        /// A CQE could not be written.
        WRITE_FAILURE = 0xa,
    }
}

open_enum! {
    /// What the CQ notifies about (4 bits); zero as the stock driver creates it is not armed either.
    pub enum CqState: u8 {
        /// The next solicited or error CQE.
        ARMED_SOLICITED = 6,
        /// The next CQE.
        ARMED = 9,
        /// Nothing before it is armed again.
        FIRED = 0xa,
    }
}

bits! {
    /// First word of a CQ context.
    pub struct CqFlags: u32 {
        /// Whether the CQ works.
        #[bits(4)]
        pub status: CqStatus,
        #[bits(8)]
        __: u32,
        /// CQEs carry a time stamp in place of SL and SLID.
        pub timestamp: bool,
        /// All CQEs go to the first entry ("CC").
        pub collapse: bool,
        /// The consumer index is not checked ("OI").
        pub overrun_ignore: bool,
        #[bits(5)]
        __: u32,
        /// What the CQ notifies about.
        #[bits(4)]
        pub state: CqState,
        #[bits(8)]
        __: u32,
    }
}

bits! {
    /// The EQ of a CQ.
    pub struct CqEqn: u32 {
        #[bits(23)]
        __: u32,
        /// Number of the EQ for completion events. Linux writes the low byte only.
        #[bits(9)]
        pub eqn: u16,
    }
}

wire! {
    size = 0x40;
    /// Context of a CQ.
    pub struct CqContext {
        /// Status and state.
        pub flags: CqFlags,
        __0: [u8; 4],
        /// Offset of the ring in its first page.
        pub page_offset: RingOffset,
        /// Number of entries and UAR page.
        pub size: RingSize,
        /// Moderation: period in µs.
        pub period: U16,
        /// Moderation: number of CQEs.
        pub max_count: U16,
        /// EQ for completion events.
        pub completion_eq: CqEqn,
        /// Pages of the ring.
        pub pages: RingPages,
        /// Producer index at the last event.
        pub last_notified_index: Number24,
        /// Producer index after the last solicited CQE.
        pub solicited_producer_index: Number24,
        /// Consumer index, free running.
        pub consumer_index: Number24,
        /// Producer index, free running.
        pub producer_index: Number24,
        __1: [u8; 8],
        /// Bus address of the [`CqRecord`](crate::doorbell::CqRecord), a multiple of 8.
        pub record_address: U64,
    }
}

const _: () = {
    assert!(offset_of!(CqContext, page_offset) == 0x08);
    assert!(offset_of!(CqContext, size) == 0x0c);
    assert!(offset_of!(CqContext, period) == 0x10);
    assert!(offset_of!(CqContext, max_count) == 0x12);
    assert!(offset_of!(CqContext, completion_eq) == 0x14);
    assert!(offset_of!(CqContext, pages) == 0x18);
    assert!(offset_of!(CqContext, last_notified_index) == 0x20);
    assert!(offset_of!(CqContext, solicited_producer_index) == 0x24);
    assert!(offset_of!(CqContext, consumer_index) == 0x28);
    assert!(offset_of!(CqContext, producer_index) == 0x2c);
    assert!(offset_of!(CqContext, record_address) == 0x38);
};

impl CqContext {
    /// Bus address of the doorbell record in bytes; bits 2:0 are not part of it.
    pub const fn record_base(&self) -> u64 {
        self.record_address.get() & !7
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn context_of_the_stock_driver_has_its_bytes() {
        let mut cq = CqContext::new_zeroed();
        cq.flags = CqFlags::new().with_timestamp(true).with_collapse(true);
        cq.size = RingSize::new().with_log2_entries(14).with_uar_page(0x85);
        cq.period = U16::new(0x0102);
        cq.max_count = U16::new(0x0304);
        cq.completion_eq = CqEqn::new().with_eqn(0x141);
        cq.pages = RingPages::new(21, 0x8_0000).unwrap();
        cq.record_address = U64::new(0x1_2345_6788);

        let bytes = cq.as_bytes();
        assert_eq!(bytes[0x00..0x04], [0, 0x0c, 0, 0]);
        assert_eq!(bytes[0x0c..0x10], [14, 0, 0, 0x85]);
        assert_eq!(bytes[0x10..0x18], [1, 2, 3, 4, 0, 0, 1, 0x41]);
        assert_eq!(bytes[0x18..0x20], [9, 0, 0, 0, 0, 8, 0, 0]);
        assert_eq!(bytes[0x38..0x40], [0, 0, 0, 1, 0x23, 0x45, 0x67, 0x88]);
    }

    #[test]
    fn flags_and_indexes_are_at_their_places() {
        let mut cq = CqContext::new_zeroed();
        cq.flags = CqFlags::new()
            .with_status(CqStatus::OVERFLOW)
            .with_overrun_ignore(true)
            .with_state(CqState::ARMED_SOLICITED);
        cq.last_notified_index = Number24::wrapping(1);
        cq.solicited_producer_index = Number24::wrapping(2);
        cq.consumer_index = Number24::wrapping(3);
        cq.producer_index = Number24::wrapping(4);
        assert_eq!(cq.as_bytes()[..4], [0x90, 0x02, 0x06, 0]);
        assert_eq!(cq.as_bytes()[0x20..0x30], [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4]);
    }

    #[test]
    fn record_base_drops_the_low_bits() {
        let mut cq = CqContext::new_zeroed();
        cq.record_address = U64::new(0x100f);
        assert_eq!(cq.record_base(), 0x1008);
    }
}
