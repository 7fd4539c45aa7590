//! Data of a WQE: pointers, inline segments, the LSO header, and the link of an SRQ WQE.

use core::mem::offset_of;

use super::{INVALID_LKEY, WQE_UNIT_BYTES};
use crate::{U16, U32, U64};

/// Size of a [`ByteCount`], the header of an inline segment, in bytes.
pub const BYTE_COUNT_BYTES: u32 = 4;

bits! {
    /// First word of a data segment: its kind and size.
    pub struct ByteCount: u32 {
        /// The data itself follows; a pointer to it otherwise.
        pub inline: bool,
        /// Bytes of data. Of an inline segment only the low 10 bits are the count.
        #[bits(31)]
        pub count: u32,
    }
}

impl ByteCount {
    /// Bytes of data in an inline segment: 0 to 1023.
    pub const fn inline_count(self) -> u32 {
        self.count() & 0x3ff
    }

    /// Bytes that an inline segment takes: this word and the data, rounded up to whole units; 16 to 1040.
    /// Data that goes on beyond the bound of a 64-byte chunk has a new header there.
    pub const fn inline_segment_bytes(self) -> u32 {
        (BYTE_COUNT_BYTES + self.inline_count()).next_multiple_of(WQE_UNIT_BYTES)
    }
}

wire! {
    size = 16;
    /// Data segment: a pointer.
    pub struct DataSeg {
        /// Bytes; not inline.
        pub byte_count: ByteCount,
        /// Lkey.
        pub lkey: U32,
        /// Virtual address.
        pub address: U64,
    }
}

impl DataSeg {
    /// What ends the list of a receive WQE that has fewer pointers than it has room for.
    pub const TERMINATOR: Self =
        Self { byte_count: ByteCount::new(), lkey: U32::new(INVALID_LKEY), address: U64::ZERO };
}

bits! {
    /// First word of an LSO segment; the header follows at once, padded to whole units.
    pub struct LsoHeader: u32 {
        /// Payload of each packet in bytes.
        #[bits(16)]
        pub segment_size: u16,
        /// Size of the header in bytes.
        #[bits(16)]
        pub header_bytes: u16,
    }
}

wire! {
    size = 16;
    /// First segment of an SRQ WQE: the link of the list of free WQEs.
    pub struct SrqNextSeg {
        __0: [u8; 2],
        /// Index of the WQE to take after this one.
        pub next_index: U16,
        __1: [u8; 12],
    }
}

const _: () = {
    assert!(offset_of!(DataSeg, lkey) == 0x04);
    assert!(offset_of!(DataSeg, address) == 0x08);
    assert!(offset_of!(SrqNextSeg, next_index) == 0x02);
};

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn pointer_has_its_bytes() {
        let mut data = DataSeg::new_zeroed();
        data.byte_count = ByteCount::new().with_count(0x1234);
        data.lkey = U32::new(0x0080_0111);
        data.address = U64::new(0x7f01_0203_0405);
        assert_eq!(
            data.as_bytes(),
            [0, 0, 0x12, 0x34, 0, 0x80, 0x01, 0x11, 0, 0, 0x7f, 0x01, 0x02, 0x03, 0x04, 0x05]
        );
    }

    #[test]
    fn terminator_has_the_invalid_lkey_and_no_bytes() {
        assert_eq!(DataSeg::TERMINATOR.as_bytes()[..8], [0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(DataSeg::TERMINATOR.as_bytes()[8..], [0; 8]);
    }

    #[test]
    fn inline_header_has_bit_31_and_ten_bits_of_count() {
        let header = ByteCount::from_bits(U32::new(0x8000_0bff));
        assert_eq!((header.inline(), header.inline_count()), (true, 0x3ff));
    }

    #[test]
    fn inline_segment_takes_header_and_data_in_whole_units() {
        for (count, bytes) in [(0, 16), (4, 16), (12, 16), (13, 32), (60, 64), (1023, 1040)] {
            let header = ByteCount::new().with_inline(true).with_count(count);
            assert_eq!(header.inline_segment_bytes(), bytes, "{count}");
        }
    }

    #[test]
    fn lso_header_has_segment_size_above_header_size() {
        let header = LsoHeader::new().with_segment_size(0x0102).with_header_bytes(0x0304);
        assert_eq!(header.as_bytes(), [1, 2, 3, 4]);
    }

    #[test]
    fn srq_link_is_at_02() {
        let mut next = SrqNextSeg::new_zeroed();
        next.next_index = U16::new(0x0102);
        assert_eq!(next.as_bytes()[..4], [0, 0, 1, 2]);
    }
}
