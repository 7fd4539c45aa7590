//! Segments that change memory regions and windows.

use core::mem::offset_of;

use crate::{U32, U64};

bits! {
    /// Rights of a window.
    pub struct BindAccess: u32 {
        /// Remote atomics.
        pub remote_atomic: bool,
        /// Remote writes.
        pub remote_write: bool,
        /// Remote reads.
        pub remote_read: bool,
        #[bits(29)]
        __: u32,
    }
}

bits! {
    /// Kind of a window.
    pub struct BindKind: u32 {
        /// Type 2: bound to a QP.
        pub type_2: bool,
        /// Addresses of the window count from zero.
        pub zero_based: bool,
        #[bits(30)]
        __: u32,
    }
}

wire! {
    size = 32;
    /// Bind segment.
    pub struct BindSeg {
        /// Rights.
        pub access: BindAccess,
        /// Kind of the window.
        pub kind: BindKind,
        /// Rkey of the window from now on.
        pub new_rkey: U32,
        /// Lkey of the region.
        pub lkey: U32,
        /// First virtual address.
        pub start: U64,
        /// Length in bytes; 0 unbinds.
        pub length: U64,
    }
}

wire! {
    size = 32;
    /// Local invalidate segment.
    pub struct LocalInvalidateSeg {
        __0: [u8; 8],
        /// Lkey or rkey.
        pub key: U32,
        __1: [u8; 20],
    }
}

bits! {
    /// Rights of a region.
    pub struct RegisterAccess: u32 {
        /// Remote atomics.
        pub remote_atomic: bool,
        /// Remote writes.
        pub remote_write: bool,
        /// Remote reads.
        pub remote_read: bool,
        /// Local writes.
        pub local_write: bool,
        /// Local reads.
        pub local_read: bool,
        #[bits(27)]
        __: u32,
    }
}

wire! {
    size = 48;
    /// Fast register segment.
    pub struct FastRegisterSeg {
        /// Rights.
        pub access: RegisterAccess,
        /// Lkey and rkey of the region from now on.
        pub key: U32,
        /// Bus address of the page list, a multiple of 64: one [`MttEntry`](crate::ctx::mtt::MttEntry) for
        /// each page.
        pub page_list: U64,
        /// First virtual address.
        pub start: U64,
        /// Length in bytes.
        pub length: U64,
        /// Offset of the first byte in the first page, in bytes; Linux leaves it zero.
        pub first_byte_offset: U32,
        /// log2 of the page size in bytes.
        pub log2_page: U32,
        __0: [u8; 8],
    }
}

const _: () = {
    assert!(offset_of!(BindSeg, kind) == 0x04);
    assert!(offset_of!(BindSeg, new_rkey) == 0x08);
    assert!(offset_of!(BindSeg, lkey) == 0x0c);
    assert!(offset_of!(BindSeg, start) == 0x10);
    assert!(offset_of!(BindSeg, length) == 0x18);
    assert!(offset_of!(LocalInvalidateSeg, key) == 0x08);
    assert!(offset_of!(FastRegisterSeg, key) == 0x04);
    assert!(offset_of!(FastRegisterSeg, page_list) == 0x08);
    assert!(offset_of!(FastRegisterSeg, start) == 0x10);
    assert!(offset_of!(FastRegisterSeg, length) == 0x18);
    assert!(offset_of!(FastRegisterSeg, first_byte_offset) == 0x20);
    assert!(offset_of!(FastRegisterSeg, log2_page) == 0x24);
};

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn bind_has_its_bytes() {
        let segment = BindSeg {
            access: BindAccess::new().with_remote_atomic(true).with_remote_read(true),
            kind: BindKind::new().with_type_2(true).with_zero_based(true),
            new_rkey: U32::new(0x0102_0304),
            lkey: U32::new(0x0506_0708),
            start: U64::new(9),
            length: U64::new(10),
        };
        let bytes = segment.as_bytes();
        assert_eq!(bytes[0x00..0x08], [0xa0, 0, 0, 0, 0xc0, 0, 0, 0]);
        assert_eq!(bytes[0x08..0x10], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!((bytes[0x17], bytes[0x1f]), (9, 10));
        assert_eq!(BindAccess::new().with_remote_write(true).as_bytes(), [0x40, 0, 0, 0]);
    }

    #[test]
    fn local_invalidate_has_the_key_at_08() {
        let mut segment = LocalInvalidateSeg::new_zeroed();
        segment.key = U32::new(0x0102_0304);
        assert_eq!(segment.as_bytes()[0x08..0x0c], [1, 2, 3, 4]);
    }

    #[test]
    fn fast_register_has_its_bytes() {
        let mut segment = FastRegisterSeg::new_zeroed();
        segment.access =
            RegisterAccess::new().with_remote_write(true).with_local_write(true).with_local_read(true);
        segment.key = U32::new(0x0102_0304);
        segment.page_list = U64::new(0x1_0000_0040);
        segment.start = U64::new(5);
        segment.length = U64::new(6);
        segment.first_byte_offset = U32::new(7);
        segment.log2_page = U32::new(12);
        let bytes = segment.as_bytes();
        assert_eq!(bytes[0x00..0x08], [0x58, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(bytes[0x08..0x10], [0, 0, 0, 1, 0, 0, 0, 0x40]);
        assert_eq!((bytes[0x17], bytes[0x1f], bytes[0x23], bytes[0x27]), (5, 6, 7, 12));
        let access = RegisterAccess::new().with_remote_atomic(true).with_remote_read(true);
        assert_eq!(access.as_bytes(), [0xa0, 0, 0, 0]);
    }
}
