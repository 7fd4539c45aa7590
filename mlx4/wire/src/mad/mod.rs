//! Management datagrams: the 256-byte packets by which InfiniBand is managed (IBTA vol. 1, ch. 13 to 16).
//!
//! - [`header`]: what all MADs start with: classes, methods, status; ClassPortInfo
//! - [`smp`]: subnet management packets, LID routed and directed route, and their attribute ids
//! - [`attr`], [`portinfo`], [`notice`]: attributes of subnet management
//! - [`pma`]: performance management, the port counters
//! - [`sa`]: subnet administration: header, records, component masks
//!
//! Offsets in the text are hexadecimal and count from the start of the structure.

/// Asserts where fields of a structure lie.
macro_rules! offsets {
    ( $name:ident { $( $field:ident: $offset:literal ),* $(,)? } ) => {
        $( const _: () = assert!(::core::mem::offset_of!($name, $field) == $offset); )*
    };
}

/// Copies the attribute that starts a MAD's data; too large an attribute doesn't compile.
macro_rules! read_attribute {
    ( $type:ty, $data:expr, $size:literal ) => {{
        const { assert!(size_of::<$type>() <= $size) };
        let mut value = <$type>::new_zeroed();
        value.as_mut_bytes().copy_from_slice(&$data[..size_of::<$type>()]);
        value
    }};
}

/// Fills a MAD's data with an attribute and zeros; too large an attribute doesn't compile.
macro_rules! write_attribute {
    ( $type:ty, $value:expr, $data:expr, $size:literal ) => {{
        const { assert!(size_of::<$type>() <= $size) };
        let (head, tail) = $data.split_at_mut(size_of::<$type>());
        head.copy_from_slice($value.as_bytes());
        tail.fill(0);
    }};
}

/// Names the bits of a record's component mask.
macro_rules! components {
    ( $name:ident { $( $component:ident: $bit:literal ),* $(,)? } ) => {
        /// Bits of the component mask.
        #[allow(missing_docs)]
        impl $name {
            $( pub const $component: u64 = 1 << $bit; )*
        }
    };
}

pub mod attr;
pub mod header;
pub mod notice;
pub mod pma;
pub mod portinfo;
pub mod sa;
pub mod smp;

/// Bytes of a MAD.
pub const MAD_SIZE: usize = 256;

/// The permissive LID: whoever receives the packet takes it.
pub const LID_PERMISSIVE: u16 = 0xffff;
/// First multicast LID. Unicast LIDs are 1 to one less than this.
pub const LID_MULTICAST_FIRST: u16 = 0xc000;
/// Last multicast LID.
pub const LID_MULTICAST_LAST: u16 = 0xfffe;

/// The subnet prefix of a port that no subnet manager has configured.
pub const DEFAULT_GID_PREFIX: u64 = 0xfe80_0000_0000_0000;
/// The P_Key of the default partition, full member.
pub const DEFAULT_PKEY: u16 = 0xffff;
/// The Q_Key of QP1, well known.
pub const QP1_QKEY: u32 = 0x8001_0000;
