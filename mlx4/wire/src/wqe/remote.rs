//! Segments that name memory at the other end.

use core::mem::offset_of;

use crate::{U32, U64};

wire! {
    size = 16;
    /// Remote address segment.
    pub struct RemoteAddressSeg {
        /// Virtual address at the other end.
        pub address: U64,
        /// Rkey.
        pub rkey: U32,
        __0: [u8; 4],
    }
}

wire! {
    size = 16;
    /// Atomic segment: operands as numbers.
    pub struct AtomicSeg {
        /// Value to swap in, or to add.
        pub swap_add: U64,
        /// Value to compare with. Masked fetch and add: field boundary mask, each set bit the top bit of a
        /// field. Fetch and add: zero.
        pub compare: U64,
    }
}

wire! {
    size = 32;
    /// Atomic segment of a masked compare and swap: operands as numbers.
    pub struct MaskedAtomicSeg {
        /// Value to swap in.
        pub swap: U64,
        /// Value to compare with.
        pub compare: U64,
        /// Which bits are swapped.
        pub swap_mask: U64,
        /// Which bits are compared.
        pub compare_mask: U64,
    }
}

const _: () = {
    assert!(offset_of!(RemoteAddressSeg, rkey) == 0x08);
    assert!(offset_of!(AtomicSeg, compare) == 0x08);
    assert!(offset_of!(MaskedAtomicSeg, swap_mask) == 0x10);
    assert!(offset_of!(MaskedAtomicSeg, compare_mask) == 0x18);
};

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn remote_address_has_its_bytes() {
        let mut segment = RemoteAddressSeg::new_zeroed();
        segment.address = U64::new(0x0102_0304_0506_0708);
        segment.rkey = U32::new(0x090a_0b0c);
        assert_eq!(segment.as_bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0]);
    }

    #[test]
    fn atomic_has_the_swap_before_the_compare() {
        let segment = AtomicSeg { swap_add: U64::new(1), compare: U64::new(2) };
        assert_eq!(segment.as_bytes(), [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn masked_atomic_has_values_before_masks() {
        let segment = MaskedAtomicSeg {
            swap: U64::new(1),
            compare: U64::new(2),
            swap_mask: U64::new(3),
            compare_mask: U64::new(4),
        };
        for (offset, value) in [(0x07, 1), (0x0f, 2), (0x17, 3), (0x1f, 4)] {
            assert_eq!(segment.as_bytes()[offset], value);
        }
    }
}
