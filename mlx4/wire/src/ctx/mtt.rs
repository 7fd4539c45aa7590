//! MTT entry: the bus address of one page of a region or a ring.
//!
//! Sources: Linux `mr.c` (entries as it writes them into ICM memory); iPXE `hermonprm_mtt`.

use crate::U64;

/// Size of an MTT entry in bytes.
pub const MTT_ENTRY_BYTES: u64 = 8;

/// Bit 0 of an entry: the page is present.
const PRESENT: u64 = 1;

/// Bits 2:0 are flags, the rest is the address.
const FLAGS: u64 = 7;

wire! {
    size = 8;
    /// One entry of the MTT table.
    pub struct MttEntry {
        /// Bits 63:3 bus address of the page, bit 0 present.
        pub raw: U64,
    }
}

impl MttEntry {
    /// The entry of a page that is present; the low three bits of `address` (bytes) are dropped.
    pub const fn present(address: u64) -> Self {
        Self { raw: U64::new((address & !FLAGS) | PRESENT) }
    }

    /// Whether the page is present.
    pub const fn is_present(&self) -> bool {
        self.raw.get() & PRESENT != 0
    }

    /// Bus address of the page in bytes, with no flags. The driver aligns it to the page size; a reader
    /// that relies on that masks it.
    pub const fn address(&self) -> u64 {
        self.raw.get() & !FLAGS
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn present_entry_is_the_address_with_bit_0() {
        let entry = MttEntry::present(0x12_3456_7000);
        assert_eq!(entry.as_bytes(), [0, 0, 0, 0x12, 0x34, 0x56, 0x70, 0x01]);
        assert!(entry.is_present());
        assert_eq!(entry.address(), 0x12_3456_7000);
    }

    #[test]
    fn zero_entry_is_not_present() {
        assert!(!MttEntry::new_zeroed().is_present());
    }
}
