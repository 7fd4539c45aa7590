//! Doorbells: registers in a UAR page of BAR2 that tell the device to look at a queue.

use std::fmt;

use crate::RegisterError;

/// Size of a UAR page in bytes.
const PAGE: u64 = 0x1000;
/// Offset of the send doorbell in its page.
const SEND: u64 = 0x14;
/// Offset of the CQ doorbell in its page.
const ARM: u64 = 0x20;
/// Offset of a page's first EQ doorbell, and bytes from one to the next.
const EQ: u64 = 0x800;
const EQ_STRIDE: u64 = 8;
/// EQ doorbells in a page.
const EQS: u32 = 4;

/// Which queue a doorbell is for; numbers are the device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DoorbellKind {
    /// New work requests may stand in the send queue of this queue pair. 32 bits.
    Send(u32),
    /// Arms this completion queue. 64 bits.
    Arm(u32),
    /// Consumer index, and arming, of this event queue. 32 bits.
    Eq(u32),
}

/// Where a doorbell is in BAR2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoorbellPlace {
    /// Offset in bytes.
    pub offset: u64,
    /// Whether it takes 64 bits, not 32.
    pub wide: bool,
}

impl DoorbellKind {
    /// Where the doorbell is, for whoever implements [`PciDevice`](crate::PciDevice).
    ///
    /// # Errors
    /// UAR page `uar` isn't inside the BAR, or not the event queue's.
    pub fn place(self, uar: u32, bar_bytes: u64) -> Result<DoorbellPlace, RegisterError> {
        let (inside, wide) = match self {
            Self::Send(_) => (SEND, false),
            Self::Arm(_) => (ARM, true),
            Self::Eq(eqn) if eqn / EQS != uar => return Err(RegisterError::EqPage { eqn, uar }),
            Self::Eq(eqn) => (EQ + EQ_STRIDE * u64::from(eqn % EQS), false),
        };
        let page = u64::from(uar) * PAGE;
        if page + PAGE > bar_bytes {
            return Err(RegisterError::Outside { what: "BAR2", offset: page, len: PAGE, size: bar_bytes });
        }
        Ok(DoorbellPlace { offset: page + inside, wide })
    }
}

/// One doorbell of one queue.
pub trait Doorbell: fmt::Debug + Send + Sync {
    /// Stores `value`, the register's content as a number (the seam stores it big endian): the lower 32 bits
    /// for a send or event-queue doorbell, 64 bits, arm word first, for a completion queue.
    ///
    /// What the caller has stored to DMA memory before is visible to the device when it looks. Never blocks.
    fn ring(&self, value: u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_of_send_and_arm_is_in_the_page_asked_for() {
        let place = |kind: DoorbellKind| kind.place(0x81, 8 << 20).unwrap();
        assert_eq!(place(DoorbellKind::Send(7)), DoorbellPlace { offset: 0x8_1014, wide: false });
        assert_eq!(place(DoorbellKind::Arm(7)), DoorbellPlace { offset: 0x8_1020, wide: true });
    }

    #[test]
    fn place_of_event_queue_is_four_to_a_page() {
        let place = DoorbellKind::Eq(6).place(1, 8 << 20).unwrap();
        assert_eq!(place, DoorbellPlace { offset: 0x1810, wide: false });
        let error = DoorbellKind::Eq(6).place(2, 8 << 20).unwrap_err();
        assert_eq!(error.to_string(), "doorbell of EQ 6 is not in UAR page 2, but in page 1");
    }

    #[test]
    fn place_in_page_past_the_bar_is_refused() {
        for (uar, size) in [(0, 0), (1, 0x1fff), (0x800, 8 << 20), (u32::MAX, 8 << 20)] {
            let result = DoorbellKind::Send(1).place(uar, size);
            assert!(matches!(result, Err(RegisterError::Outside { .. })), "{uar:#x}");
        }
        assert!(DoorbellKind::Send(1).place(0x7ff, 8 << 20).is_ok());
    }
}
