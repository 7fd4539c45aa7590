//! Commands of the host command register: opcodes, status codes and the layouts of their mailboxes.
//!
//! A mailbox is a page of [`MAILBOX_BYTES`] bytes, aligned to its size, that the driver names by bus
//! address; a structure here is the part of it that carries meaning. Contexts that commands move (QP, CQ,
//! EQ, SRQ, MPT, MCG) are not here but in modules of their own.

/// Size and alignment of a command mailbox in bytes.
pub const MAILBOX_BYTES: usize = 4096;

/// Asserts at compile time at which byte each named field of a structure starts.
macro_rules! offsets {
    ( $name:ident: $( $field:ident = $offset:literal, )* ) => {
        const _: () = { $( assert!(::core::mem::offset_of!($name, $field) == $offset); )* };
    };
}

pub mod dev_cap;
pub mod diag;
pub mod fw;
pub mod hca;
pub mod mad_ifc;
pub mod misc;
pub mod port;

mod opcode;
mod status;

pub use opcode::Opcode;
pub use status::Status;

#[cfg(test)]
pub(crate) mod testing {
    use std::fmt::Debug;

    use zerocopy::{FromZeros, Immutable, IntoBytes};

    /// Sets one field of a zeroed structure and expects `bytes` at `offset` and zeros everywhere else.
    #[track_caller]
    pub(crate) fn golden<T>(set: impl FnOnce(&mut T), offset: usize, bytes: &[u8])
    where
        T: FromZeros + IntoBytes + Immutable + Debug,
    {
        let mut value = T::new_zeroed();
        set(&mut value);
        let mut expected = std::vec![0; size_of::<T>()];
        expected[offset..offset + bytes.len()].copy_from_slice(bytes);
        assert_eq!(value.as_bytes(), expected, "{value:?}");
    }
}
