//! EQ context, the mailbox of `SW2HW_EQ`, `HW2SW_EQ` and `QUERY_EQ`.
//!
//! Sources: Linux `struct mlx4_eq_context` and `eq.c`; iPXE `hermonprm_eqc`.

use core::mem::offset_of;

use super::{RingOffset, RingPages, RingSize};
use crate::{Number24, U16};

open_enum! {
    /// Whether an EQ works (4 bits).
    pub enum EqStatus: u8 {
        /// It does.
        OK = 0,
        /// An entry could not be written.
        WRITE_FAILURE = 0xa,
    }
}

open_enum! {
    /// Whether an EQ raises its interrupt (4 bits).
    pub enum EqState: u8 {
        /// With the next entry.
        ARMED = 9,
        /// Not before it is armed again.
        FIRED = 0xa,
        /// With every entry.
        ALWAYS_ARMED = 0xb,
    }
}

bits! {
    /// First word of an EQ context.
    pub struct EqFlags: u32 {
        /// Whether the EQ works.
        #[bits(4)]
        pub status: EqStatus,
        #[bits(9)]
        __: u32,
        /// All entries go to the first slot ("EC").
        pub collapse: bool,
        /// The consumer index is not checked ("OI").
        pub overrun_ignore: bool,
        #[bits(5)]
        __: u32,
        /// Whether the EQ is armed. The stock driver creates it armed.
        #[bits(4)]
        pub state: EqState,
        #[bits(8)]
        __: u32,
    }
}

bits! {
    /// The interrupt of an EQ.
    pub struct EqInterrupt: u32 {
        #[bits(22)]
        __: u32,
        /// MSI-X vector; zero for every EQ with INTx. Linux writes the low byte only.
        #[bits(10)]
        pub vector: u16,
    }
}

wire! {
    size = 0x40;
    /// Context of an EQ.
    pub struct EqContext {
        /// Status and state.
        pub flags: EqFlags,
        __0: [u8; 4],
        /// Offset of the ring in its first page.
        pub page_offset: RingOffset,
        /// Number of entries.
        pub size: RingSize,
        /// Moderation: period in µs. Linux names the low byte only.
        pub period: U16,
        /// Moderation: number of entries. Linux names the low byte only.
        pub max_count: U16,
        /// Interrupt vector.
        pub interrupt: EqInterrupt,
        /// Pages of the ring.
        pub pages: RingPages,
        __1: [u8; 8],
        /// Consumer index, free running.
        pub consumer_index: Number24,
        /// Producer index, free running.
        pub producer_index: Number24,
        __2: [u8; 16],
    }
}

const _: () = {
    assert!(offset_of!(EqContext, page_offset) == 0x08);
    assert!(offset_of!(EqContext, size) == 0x0c);
    assert!(offset_of!(EqContext, period) == 0x10);
    assert!(offset_of!(EqContext, interrupt) == 0x14);
    assert!(offset_of!(EqContext, pages) == 0x18);
    assert!(offset_of!(EqContext, consumer_index) == 0x28);
    assert!(offset_of!(EqContext, producer_index) == 0x2c);
};

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    /// The asynchronous EQ as the stock driver creates it: 512 entries, vector 0, armed.
    #[test]
    fn context_of_the_stock_driver_has_its_bytes() {
        let mut eq = EqContext::new_zeroed();
        eq.flags = EqFlags::new().with_status(EqStatus::OK).with_state(EqState::ARMED);
        eq.size = RingSize::new().with_log2_entries(9);
        eq.interrupt = EqInterrupt::new().with_vector(0x103);
        eq.pages = RingPages::new(12, 0x02_0000_0108).unwrap();
        eq.consumer_index = Number24::wrapping(0x11_2233);
        eq.producer_index = Number24::wrapping(0x44_5566);

        let bytes = eq.as_bytes();
        assert_eq!(bytes[0x00..0x04], [0, 0, 0x09, 0]);
        assert_eq!(bytes[0x0c..0x10], [9, 0, 0, 0]);
        assert_eq!(bytes[0x14..0x18], [0, 0, 1, 3]);
        assert_eq!(bytes[0x18..0x20], [0, 0, 0, 2, 0, 0, 1, 8]);
        assert_eq!(bytes[0x28..0x30], [0, 0x11, 0x22, 0x33, 0, 0x44, 0x55, 0x66]);
    }

    #[test]
    fn flags_are_at_their_places() {
        let flags = EqFlags::new()
            .with_status(EqStatus::WRITE_FAILURE)
            .with_collapse(true)
            .with_overrun_ignore(true)
            .with_state(EqState::FIRED);
        assert_eq!(flags.as_bytes(), [0xa0, 0x06, 0x0a, 0]);
    }
}
