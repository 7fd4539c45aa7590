//! The two macros that every structure of this crate is made with.

/// Declares an open set of codes: a transparent newtype with one constant for each known code.
///
/// `Debug` prints the constant's name, or the number of an unknown code.
#[macro_export]
macro_rules! open_enum {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident: $repr:ty {
            $( $(#[$vmeta:meta])* $variant:ident = $value:expr, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default,
        )]
        #[repr(transparent)]
        $vis struct $name(pub $repr);

        #[allow(missing_docs)]
        impl $name {
            $( $(#[$vmeta])* pub const $variant: Self = Self($value); )*

            /// The name of a known code.
            pub const fn name(self) -> Option<&'static str> {
                $( if self.0 == $value { return Some(stringify!($variant)); } )*
                None
            }

            /// The code from its bits; every value is a code. For use in [`bits!`] words.
            pub const fn from_bits(value: $repr) -> Self {
                Self(value)
            }

            /// The bits of the code. For use in [`bits!`] words.
            pub const fn into_bits(self) -> $repr {
                self.0
            }
        }

        impl $crate::layout::Layout for $name {
            const BITS: usize = 8 * ::core::mem::size_of::<$repr>();
        }

        impl ::core::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!(stringify!($name), "({:#x})"), self.0),
                }
            }
        }

        impl ::core::fmt::Display for $name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                ::core::fmt::Debug::fmt(self, f)
            }
        }
    };
}

/// Declares a big-endian word of packed fields, most significant field first.
///
/// The type is the word as it lies in memory (`repr(transparent)` over [`U32`](crate::U32) or
/// [`U16`](crate::U16)), so it can be a field of a structure. Values that come from outside are set with
/// `with_*_checked`, since `with_*` panics on a value that doesn't fit.
#[macro_export]
macro_rules! bits {
    ( $(#[$meta:meta])* $vis:vis struct $name:ident: u32 { $($body:tt)* } ) => {
        $(#[$meta])*
        #[::bitfield_struct::bitfield(u32, repr = $crate::U32, from = $crate::U32::new, into = $crate::U32::get, order = Msb)]
        #[derive(
            PartialEq, Eq,
            ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable,
            ::zerocopy::KnownLayout, ::zerocopy::Unaligned,
        )]
        $vis struct $name { $($body)* }

        $crate::bits_layout! { $name, 32, { $($body)* } }
    };
    ( $(#[$meta:meta])* $vis:vis struct $name:ident: u16 { $($body:tt)* } ) => {
        $(#[$meta])*
        #[::bitfield_struct::bitfield(u16, repr = $crate::U16, from = $crate::U16::new, into = $crate::U16::get, order = Msb)]
        #[derive(
            PartialEq, Eq,
            ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable,
            ::zerocopy::KnownLayout, ::zerocopy::Unaligned,
        )]
        $vis struct $name { $($body)* }

        $crate::bits_layout! { $name, 16, { $($body)* } }
    };
    ( $(#[$meta:meta])* $vis:vis struct $name:ident: u8 { $($body:tt)* } ) => {
        $(#[$meta])*
        #[::bitfield_struct::bitfield(u8, order = Msb)]
        #[derive(
            PartialEq, Eq,
            ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable,
            ::zerocopy::KnownLayout, ::zerocopy::Unaligned,
        )]
        $vis struct $name { $($body)* }

        $crate::bits_layout! { $name, 8, { $($body)* } }
    };
}

/// The list of fields of a [`bits!`] word.
#[doc(hidden)]
#[macro_export]
macro_rules! bits_layout {
    ( $name:ident, $bits:literal, {
        $( $(#[doc = $doc:literal])* $(#[bits($width:literal)])? $fvis:vis $field:ident: $type:ty, )*
    } ) => {
        impl $crate::layout::Layout for $name {
            const BITS: usize = $bits;
            const FIELDS: &'static [$crate::layout::Field] = &$crate::layout::place([
                $( $crate::layout::Field {
                    name: stringify!($field),
                    offset: 0,
                    width: $crate::bits_width!($($width,)? $type),
                    inner: &[],
                }, )*
            ]);
        }
        const _: () = assert!($crate::layout::width(<$name as $crate::layout::Layout>::FIELDS) == $bits);
    };
}

/// Bits of a field in a [`bits!`] word.
#[doc(hidden)]
#[macro_export]
macro_rules! bits_width {
    ( $width:literal, $type:ty ) => {
        $width
    };
    ( $type:ty ) => {
        <$type as $crate::layout::Layout>::BITS
    };
}

/// Declares a structure of a fixed size: the derives of this crate, and the assertion of its size.
#[macro_export]
macro_rules! wire {
    ( size = $size:literal; $(#[$meta:meta])* $vis:vis struct $name:ident { $($body:tt)* } ) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable,
            ::zerocopy::KnownLayout, ::zerocopy::Unaligned,
        )]
        #[repr(C)]
        $vis struct $name { $($body)* }

        const _: () = assert!(::core::mem::size_of::<$name>() == $size);

        $crate::wire_layout! { $name, { $($body)* } }
    };
}

/// The list of fields of a [`wire!`] structure.
#[doc(hidden)]
#[macro_export]
macro_rules! wire_layout {
    ( $name:ident, { $( $(#[$meta:meta])* $fvis:vis $field:ident: $type:ty, )* } ) => {
        impl $crate::layout::Layout for $name {
            const BITS: usize = 8 * ::core::mem::size_of::<$name>();
            const FIELDS: &'static [$crate::layout::Field] = &[
                $( $crate::layout::Field {
                    name: stringify!($field),
                    offset: 8 * ::core::mem::offset_of!($name, $field),
                    width: 8 * ::core::mem::size_of::<$type>(),
                    inner: <$type as $crate::layout::Layout>::FIELDS,
                }, )*
            ];
        }
    };
}

#[cfg(test)]
mod tests {
    #![allow(unreachable_pub, reason = "the macros declare public items of a type that only the tests see")]

    use zerocopy::{FromZeros, IntoBytes};

    open_enum! {
        /// A set for the test.
        pub(super) enum Colour: u8 {
            RED = 1,
            BLUE = 2,
        }
    }

    bits! {
        /// A word for the test.
        pub(super) struct Word: u32 {
            #[bits(4)]
            top: u32,
            #[bits(4)]
            __: u32,
            #[bits(24)]
            low: u32,
        }
    }

    wire! {
        size = 8;
        /// A structure for the test.
        pub(super) struct Pair {
            word: Word,
            plain: crate::U32,
        }
    }

    #[test]
    fn bits_lie_most_significant_first_and_big_endian() {
        let mut pair = Pair::new_zeroed();
        pair.word.set_top(0xf);
        pair.word.set_low(0x12_3456);
        pair.plain.set(0x0102_0304);
        assert_eq!(pair.as_bytes(), [0xf0, 0x12, 0x34, 0x56, 1, 2, 3, 4]);
    }

    #[test]
    fn unknown_code_prints_its_number() {
        assert_eq!(std::format!("{:?} {:?}", Colour::BLUE, Colour(9)), "BLUE Colour(0x9)");
        assert_eq!(Colour::from_bits(1), Colour::RED);
        assert_eq!(Colour(9).into_bits(), 9);
    }

    #[test]
    fn fields_are_listed_where_they_lie() {
        use crate::layout::Layout;
        let at = |field: &crate::layout::Field| (field.name, field.offset, field.width);
        let pair: std::vec::Vec<_> = Pair::FIELDS.iter().map(at).collect();
        assert_eq!(pair, [("word", 0, 32), ("plain", 32, 32)]);
        let word: std::vec::Vec<_> = Pair::FIELDS[0].inner.iter().map(at).collect();
        assert_eq!(word, [("top", 0, 4), ("__", 4, 4), ("low", 8, 24)]);
    }

    #[test]
    fn value_too_wide_is_refused() {
        assert!(Word::new().with_low_checked(1 << 24).is_err());
    }
}
