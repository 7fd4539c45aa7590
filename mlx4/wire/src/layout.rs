//! Where the fields of every structure lie, for tests that go through all of them.
//!
//! The macros [`wire!`](crate::wire) and [`bits!`](crate::bits) make these lists from the declarations, so no
//! field can be missing.

/// A field of a structure or of a packed word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name; reserved ones start with an underscore.
    pub name: &'static str,
    /// Bits of the structure before it: the first byte's most significant bit is bit 0.
    pub offset: usize,
    /// Its bits.
    pub width: usize,
    /// If it is a structure or packed word itself: its fields, whose offsets count from its own start.
    pub inner: &'static [Field],
}

impl Field {
    /// Whether nothing is in it.
    pub fn is_reserved(&self) -> bool {
        self.name.starts_with('_')
    }
}

/// What a field can be made of.
pub trait Layout {
    /// Bits, where it is a field of a packed word without a width of its own.
    const BITS: usize;
    /// Its fields; none if it is a plain value.
    const FIELDS: &'static [Field] = &[];
}

macro_rules! plain {
    ( $( $name:ty = $bits:literal, )* ) => { $( impl Layout for $name { const BITS: usize = $bits; } )* };
}

plain! { bool = 1, u8 = 8, u16 = 16, u32 = 32, crate::U16 = 16, crate::U32 = 32, crate::U64 = 64, }

impl<T: Layout, const N: usize> Layout for [T; N] {
    const BITS: usize = T::BITS * N;
}

/// Bits of all fields together.
#[doc(hidden)]
pub const fn width(fields: &[Field]) -> usize {
    let (mut index, mut width) = (0, 0);
    while index < fields.len() {
        width += fields[index].width;
        index += 1;
    }
    width
}

/// Places fields of a packed word one behind the other.
#[doc(hidden)]
pub const fn place<const N: usize>(mut fields: [Field; N]) -> [Field; N] {
    let (mut index, mut offset) = (0, 0);
    while index < N {
        fields[index].offset = offset;
        offset += fields[index].width;
        index += 1;
    }
    fields
}
