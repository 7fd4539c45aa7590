//! The three macros that every structure of this crate is made with.

/// Declares a structure of a fixed size: derives, the assertion of its size, and its [`Layout`](crate::Layout).
macro_rules! layout {
    (
        size = $size:literal;
        $(#[$meta:meta])*
        $vis:vis struct $name:ident { $( $(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty, )* }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable,
            ::zerocopy::KnownLayout, ::zerocopy::Unaligned,
        )]
        #[repr(C)]
        $vis struct $name { $( $(#[$field_meta])* $field_vis $field: $type, )* }

        const _: () = assert!(::core::mem::size_of::<$name>() == $size);

        impl $crate::layout::Checked for $name {
            fn check(&self) -> Result<(), $crate::Reason> {
                $( $crate::layout::Checked::check(&self.$field)?; )*
                Ok(())
            }
        }

        impl $crate::Layout for $name {
            const NAME: &'static str = stringify!($name);
            const FIELDS: &'static [$crate::Field] = &[
                $( $crate::Field {
                    name: stringify!($field),
                    offset: ::core::mem::offset_of!($name, $field),
                    bytes: ::core::mem::size_of::<$type>(),
                }, )*
            ];
        }
    };
}

/// Declares an open set of one-byte codes: a transparent newtype with one constant for each known code.
///
/// `Debug` and `Display` print the constant's name, or the number of an unknown code.
macro_rules! codes {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident { $( $(#[$code_meta:meta])* $code:ident = $value:expr, )* }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, PartialEq, Eq, Hash,
            ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable,
            ::zerocopy::KnownLayout, ::zerocopy::Unaligned,
        )]
        #[repr(transparent)]
        $vis struct $name($vis u8);

        impl $name {
            $( $(#[$code_meta])* pub const $code: Self = Self($value); )*

            /// Every known code.
            pub const KNOWN: &'static [Self] = &[ $( Self::$code, )* ];

            /// The name of a known code.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $( Self::$code => Some(stringify!($code)), )*
                    _ => None,
                }
            }
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

        impl $crate::layout::Checked for $name {}
    };
}

/// Declares a word of flags over [`U16`](crate::U16), [`U32`](crate::U32) or [`U64`](crate::U64).
///
/// In a request a bit that has no name is refused.
macro_rules! flags {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident: $repr:ident as $int:ident {
            $( $(#[$flag_meta:meta])* $flag:ident = $value:expr, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, PartialEq, Eq, Hash, Default,
            ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable,
            ::zerocopy::KnownLayout, ::zerocopy::Unaligned,
        )]
        #[repr(transparent)]
        $vis struct $name($crate::$repr);

        impl $name {
            $( $(#[$flag_meta])* pub const $flag: Self = Self::from_bits($value); )*

            /// No flag.
            pub const NONE: Self = Self::from_bits(0);

            /// Every known flag with its name.
            pub const KNOWN: &'static [(&'static str, Self)] = &[ $( (stringify!($flag), Self::$flag), )* ];

            /// The flags of a number; bits without a name are kept.
            pub const fn from_bits(bits: $int) -> Self {
                Self($crate::$repr::new(bits))
            }

            /// The flags as a number.
            pub const fn bits(self) -> $int {
                self.0.get()
            }

            /// Whether all flags of `other` are set.
            pub const fn contains(self, other: Self) -> bool {
                self.bits() & other.bits() == other.bits()
            }

            /// Whether any flag of `other` is set.
            pub const fn intersects(self, other: Self) -> bool {
                self.bits() & other.bits() != 0
            }

            /// The flags of either.
            #[must_use]
            pub const fn union(self, other: Self) -> Self {
                Self::from_bits(self.bits() | other.bits())
            }

            /// The flags that are not in `other`.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self::from_bits(self.bits() & !other.bits())
            }
        }

        impl ::core::ops::BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                self.union(other)
            }
        }

        impl ::core::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                let mut unnamed = self.bits();
                let mut separator = "";
                for (name, flag) in Self::KNOWN.iter().filter(|(_, flag)| self.contains(*flag)) {
                    write!(f, "{separator}{name}")?;
                    unnamed &= !flag.bits();
                    separator = "|";
                }
                if unnamed != 0 || separator.is_empty() { write!(f, "{separator}{unnamed:#x}") } else { Ok(()) }
            }
        }

        impl $crate::layout::Checked for $name {
            fn check(&self) -> Result<(), $crate::Reason> {
                let known = Self::KNOWN.iter().fold(0, |all, (_, flag)| all | flag.bits());
                if self.bits() & !known != 0 { Err($crate::Reason::UNKNOWN_FLAG) } else { Ok(()) }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use std::format;

    use zerocopy::{FromZeros, IntoBytes};

    use crate::layout::Checked;
    use crate::request::memory::{AccessFlags, RegMr};
    use crate::{Layout, Reason, Status, U32};

    #[test]
    fn codes_print_their_names_or_numbers() {
        assert_eq!(format!("{} {:?}", Status::BUSY, Status(0xee)), "BUSY Status(0xee)");
    }

    #[test]
    fn flags_print_their_names_and_what_has_none() {
        let flags = AccessFlags::LOCAL_WRITE | AccessFlags::REMOTE_READ | AccessFlags::from_bits(0x100);
        assert_eq!(format!("{flags:?} {:?}", AccessFlags::NONE), "LOCAL_WRITE|REMOTE_READ|0x100 0x0");
    }

    #[test]
    fn layout_lists_fields_with_their_places() {
        let access = RegMr::FIELDS.iter().find(|field| field.name == "access");
        assert_eq!(access.map(|field| (field.offset, field.bytes)), Some((4, 4)));
    }

    #[test]
    fn check_finds_unknown_flags_and_reserved_bytes() {
        let clean = RegMr { pd: U32::new(1), ..RegMr::new_zeroed() };
        assert_eq!(clean.check(), Ok(()));
        let flag = RegMr { access: AccessFlags::from_bits(1 << 31), ..clean };
        assert_eq!(flag.check(), Err(Reason::UNKNOWN_FLAG));

        let mut header = crate::request::RequestHeader::new_zeroed();
        header.as_mut_bytes()[2] = 1;
        assert_eq!(header.check(), Err(Reason::RESERVED_NOT_ZERO));
    }
}
