//! SRQ context, the mailbox of `SW2HW_SRQ`, `HW2SW_SRQ` and `QUERY_SRQ`.
//!
//! Sources: Linux `struct mlx4_srq_context` and `srq.c`; iPXE `hermonprm_srq_context`.

use core::mem::offset_of;

use super::RingPages;
use crate::{Number24, U16, U64};

open_enum! {
    /// State of an SRQ (4 bits).
    pub enum SrqState: u8 {
        /// It works.
        OK = 0,
        /// It has failed.
        ERROR = 1,
        /// Owned by software.
        SOFTWARE = 0xf,
    }
}

bits! {
    /// First word of an SRQ context.
    pub struct SrqSize: u32 {
        /// State; output only.
        #[bits(4)]
        pub state: SrqState,
        /// log2 of the number of WQEs.
        #[bits(4)]
        pub log2_entries: u8,
        /// Number of the SRQ.
        #[bits(24)]
        pub srqn: u32,
    }
}

impl SrqSize {
    /// Number of WQEs: 1 to 32768.
    pub const fn entries(self) -> u32 {
        1 << self.log2_entries()
    }
}

bits! {
    /// Stride of an SRQ.
    pub struct SrqStride: u8 {
        #[bits(5)]
        __: u8,
        /// log2 of the stride in bytes, less 4.
        #[bits(3)]
        pub log2_stride_less_4: u8,
    }
}

impl SrqStride {
    /// Stride in bytes: 16 to 2048; drivers use 32 and more.
    pub const fn bytes(self) -> u32 {
        16 << self.log2_stride_less_4()
    }
}

bits! {
    /// Offset of the buffer, and CQ of an XRC SRQ.
    pub struct SrqCq: u32 {
        #[bits(2)]
        __: u32,
        /// Offset of the buffer in its first page, in units of 64 bytes; drivers leave it zero.
        #[bits(6)]
        pub page_offset_64: u32,
        /// CQ for what arrives through XRC QPs.
        #[bits(24)]
        pub cqn: u32,
    }
}

wire! {
    size = 0x30;
    /// Context of an SRQ.
    pub struct SrqContext {
        /// State, number of WQEs, number of the SRQ.
        pub size: SrqSize,
        /// Stride.
        pub stride: SrqStride,
        __0: u8,
        /// XRC domain; a reserved one for a plain SRQ.
        pub xrcd: U16,
        /// Offset of the buffer and CQ.
        pub cq: SrqCq,
        __1: [u8; 4],
        /// Pages of the buffer.
        pub pages: RingPages,
        /// Protection domain.
        pub pd: Number24,
        /// Limit below which an event is raised; 0 when none is armed. Output only.
        pub limit: U16,
        /// Number of WQEs that are free to take; output only.
        pub wqe_count: U16,
        __2: [u8; 2],
        /// Count of the WQEs taken, modulo 65536; output only.
        pub wqe_counter: U16,
        __3: [u8; 4],
        /// Bus address of the [`RqRecord`](crate::doorbell::RqRecord), a multiple of 4.
        pub record_address: U64,
    }
}

const _: () = {
    assert!(offset_of!(SrqContext, stride) == 0x04);
    assert!(offset_of!(SrqContext, xrcd) == 0x06);
    assert!(offset_of!(SrqContext, cq) == 0x08);
    assert!(offset_of!(SrqContext, pages) == 0x10);
    assert!(offset_of!(SrqContext, pd) == 0x18);
    assert!(offset_of!(SrqContext, limit) == 0x1c);
    assert!(offset_of!(SrqContext, wqe_count) == 0x1e);
    assert!(offset_of!(SrqContext, wqe_counter) == 0x22);
    assert!(offset_of!(SrqContext, record_address) == 0x28);
};

impl SrqContext {
    /// Bus address of the doorbell record in bytes; bits 1:0 are not part of it.
    pub const fn record_base(&self) -> u64 {
        self.record_address.get() & !3
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn context_of_the_stock_driver_has_its_bytes() {
        let mut srq = SrqContext::new_zeroed();
        srq.size = SrqSize::new().with_state(SrqState::SOFTWARE).with_log2_entries(8).with_srqn(0x41);
        srq.stride = SrqStride::new().with_log2_stride_less_4(1);
        srq.xrcd = U16::new(0x0102);
        srq.cq = SrqCq::new().with_page_offset_64(0x3f).with_cqn(0x83);
        srq.pages = RingPages::new(13, 0x4_0000_0018).unwrap();
        srq.pd = Number24::wrapping(0x05);
        srq.limit = U16::new(0x0607);
        srq.wqe_count = U16::new(0x0809);
        srq.wqe_counter = U16::new(0x0a0b);
        srq.record_address = U64::new(0x7f01_0204);

        let bytes = srq.as_bytes();
        assert_eq!(bytes[0x00..0x04], [0xf8, 0, 0, 0x41]);
        assert_eq!(bytes[0x04..0x0c], [1, 0, 1, 2, 0x3f, 0, 0, 0x83]);
        assert_eq!(bytes[0x10..0x18], [1, 0, 0, 4, 0, 0, 0, 0x18]);
        assert_eq!(bytes[0x18..0x20], [0, 0, 0, 5, 6, 7, 8, 9]);
        assert_eq!(bytes[0x20..0x24], [0, 0, 0x0a, 0x0b]);
        assert_eq!(bytes[0x28..0x30], [0, 0, 0, 0, 0x7f, 1, 2, 4]);
        assert_eq!((srq.size.entries(), srq.stride.bytes()), (256, 32));
    }
}
