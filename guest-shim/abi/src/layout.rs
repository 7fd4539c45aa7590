//! What every structure of the ABI has: a description of its fields, and a check of what must be zero.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Reason, U16, U32, U64};

/// A field of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Where it starts, in bytes from the start of the structure.
    pub offset: usize,
    /// Its size in bytes.
    pub bytes: usize,
}

/// A structure of the ABI.
pub trait Layout: Checked + FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Copy {
    /// Its name.
    const NAME: &'static str;

    /// Its fields in ascending order, without gaps.
    const FIELDS: &'static [Field];
}

/// Something that can hold what this version of the ABI doesn't know.
pub trait Checked {
    /// Whether reserved bytes are zero and all flags have a name. Codes and numbers are not judged.
    ///
    /// # Errors
    /// [`Reason::RESERVED_NOT_ZERO`], [`Reason::UNKNOWN_FLAG`].
    fn check(&self) -> Result<(), Reason> {
        Ok(())
    }
}

impl Checked for u8 {}
impl Checked for U16 {}
impl Checked for U32 {}
impl Checked for U64 {}
impl<const N: usize> Checked for [u8; N] {}
impl<const N: usize> Checked for [U64; N] {}

/// Reserved bytes: zero when sent; refused if not zero in a request, ignored in all else.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct Reserved<const N: usize>([u8; N]);

impl<const N: usize> Reserved<N> {
    /// As they must be sent.
    pub const ZERO: Self = Self([0; N]);
}

impl<const N: usize> Checked for Reserved<N> {
    fn check(&self) -> Result<(), Reason> {
        if self.0.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(Reason::RESERVED_NOT_ZERO) }
    }
}

impl<const N: usize> core::fmt::Debug for Reserved<N> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.check() {
            Ok(()) => write!(f, "0"),
            Err(_) => write!(f, "{:02x?}", self.0),
        }
    }
}
