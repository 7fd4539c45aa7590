//! The data of each event type: bytes 04 to 1b of an EQE.

use super::{CqErrorSyndrome, LocalCatastrophe};
#[cfg(doc)]
use super::{EventType, PortManagementSubtype};
use crate::{Number24, U16, U32, U64};

/// Declares the data of an event (bytes 04 to 1b of the EQE) with its conversions.
macro_rules! event_data {
    ( $(#[$meta:meta])* pub struct $name:ident { $($body:tt)* } ) => {
        wire! {
            size = 24;
            $(#[$meta])*
            pub struct $name { $($body)* }
        }

        impl From<[u8; 24]> for $name {
            fn from(data: [u8; 24]) -> Self {
                zerocopy::transmute!(data)
            }
        }

        impl From<$name> for [u8; 24] {
            fn from(event: $name) -> Self {
                zerocopy::transmute!(event)
            }
        }
    };
}

event_data! {
    /// Data of [`EventType::COMPLETION`].
    pub struct CqEvent {
        /// Number of the CQ.
        pub cqn: Number24,
        __0: [u8; 20],
    }
}

impl CqEvent {
    /// The data that names CQ `cqn`, of which the low 24 bits are used.
    pub const fn new(cqn: u32) -> Self {
        Self { cqn: Number24::wrapping(cqn), __0: [0; 20] }
    }
}

event_data! {
    /// Data of an event of a QP.
    pub struct QpEvent {
        /// Number of the QP.
        pub qpn: Number24,
        __0: [u8; 20],
    }
}

impl QpEvent {
    /// The data that names QP `qpn`, of which the low 24 bits are used.
    pub const fn new(qpn: u32) -> Self {
        Self { qpn: Number24::wrapping(qpn), __0: [0; 20] }
    }
}

event_data! {
    /// Data of an event of an SRQ.
    pub struct SrqEvent {
        /// Number of the SRQ.
        pub srqn: Number24,
        __0: [u8; 20],
    }
}

impl SrqEvent {
    /// The data that names SRQ `srqn`, of which the low 24 bits are used.
    pub const fn new(srqn: u32) -> Self {
        Self { srqn: Number24::wrapping(srqn), __0: [0; 20] }
    }
}

event_data! {
    /// Data of [`EventType::CQ_ERROR`].
    pub struct CqErrorEvent {
        /// Number of the CQ.
        pub cqn: Number24,
        __0: [u8; 7],
        syndrome: u8,
        __1: [u8; 12],
    }
}

impl CqErrorEvent {
    /// The data for an error of CQ `cqn`, of which the low 24 bits are used.
    pub const fn new(cqn: u32, syndrome: CqErrorSyndrome) -> Self {
        Self { cqn: Number24::wrapping(cqn), __0: [0; 7], syndrome: syndrome.0, __1: [0; 12] }
    }

    /// What went wrong.
    pub const fn syndrome(&self) -> CqErrorSyndrome {
        CqErrorSyndrome(self.syndrome)
    }
}

event_data! {
    /// Data of [`EventType::LOCAL_CATASTROPHIC`].
    pub struct LocalCatastrophicEvent {
        __0: [u8; 11],
        catastrophe: u8,
        /// More about it.
        pub detail: U32,
        __1: [u8; 8],
    }
}

impl LocalCatastrophicEvent {
    /// The data for a failure of the device.
    pub const fn new(catastrophe: LocalCatastrophe, detail: u32) -> Self {
        Self { __0: [0; 11], catastrophe: catastrophe.0, detail: U32::new(detail), __1: [0; 8] }
    }

    /// What failed.
    pub const fn catastrophe(&self) -> LocalCatastrophe {
        LocalCatastrophe(self.catastrophe)
    }
}

bits! {
    /// Port of [`EventType::PORT_CHANGE`].
    pub struct EventPort: u32 {
        /// Port number, from 1.
        #[bits(4)]
        pub port: u8,
        #[bits(28)]
        __: u32,
    }
}

event_data! {
    /// Data of [`EventType::PORT_CHANGE`].
    pub struct PortChangeEvent {
        __0: [u8; 8],
        /// The port.
        pub port: EventPort,
        __1: [u8; 12],
    }
}

impl PortChangeEvent {
    /// The data that names `port` (1 to 15; bits above 3 are dropped).
    pub const fn new(port: u8) -> Self {
        Self { __0: [0; 8], port: EventPort::new().with_port(port & 0xf), __1: [0; 12] }
    }
}

event_data! {
    /// Data of [`EventType::COMMAND`].
    pub struct CommandEvent {
        __0: [u8; 2],
        /// Token of the HCR with which the command was posted.
        pub token: U16,
        __1: [u8; 7],
        /// Status code of the command.
        pub status: u8,
        /// Output parameter of the command.
        pub out_param: U64,
        __2: [u8; 4],
    }
}

impl CommandEvent {
    /// The data for the end of a command.
    pub const fn new(token: u16, status: u8, out_param: u64) -> Self {
        Self {
            __0: [0; 2],
            token: U16::new(token),
            __1: [0; 7],
            status,
            out_param: U64::new(out_param),
            __2: [0; 4],
        }
    }
}

bits! {
    /// What changed in a PortInfo.
    pub struct PortInfoChange: u32 {
        #[bits(27)]
        __: u32,
        /// SL of the master subnet manager.
        pub sm_sl: bool,
        /// The subnet manager asks clients to register again.
        pub client_reregister: bool,
        /// LID of the port.
        pub lid: bool,
        /// GID prefix.
        pub gid_prefix: bool,
        /// LID of the master subnet manager.
        pub sm_lid: bool,
    }
}

event_data! {
    /// Data of [`PortManagementSubtype::PORT_INFO`].
    pub struct PortInfoEvent {
        __0: [u8; 3],
        /// Port number, from 1.
        pub port: u8,
        /// LID of the master subnet manager.
        pub sm_lid: U16,
        /// LID of the port.
        pub lid: U16,
        /// What changed.
        pub changed: PortInfoChange,
        __1: [u8; 3],
        /// SL of the master subnet manager, bits 3:0.
        pub sm_sl: u8,
        /// GID prefix.
        pub gid_prefix: U64,
    }
}

event_data! {
    /// Data of [`PortManagementSubtype::GUID_INFO`] and [`PortManagementSubtype::PKEY_TABLE`].
    pub struct TableChangeEvent {
        __0: [u8; 3],
        /// Port number, from 1.
        pub port: u8,
        /// Index of the block that changed.
        pub block: U32,
        /// Which entries of the block changed, bit 0 the first.
        pub entries: U32,
        __1: [u8; 12],
    }
}

event_data! {
    /// Data of [`PortManagementSubtype::SL_TO_VL`].
    pub struct SlToVlEvent {
        __0: [u8; 3],
        /// Port number, from 1.
        pub port: u8,
        /// The table, two SLs in a byte, the lower SL in the upper half.
        pub table: [u8; 8],
        __1: [u8; 12],
    }
}

event_data! {
    /// Data of [`EventType::FATAL_WARNING`], subtype 0.
    pub struct TemperatureEvent {
        /// Temperature in degrees Celsius.
        pub current: U16,
        /// Threshold in degrees Celsius.
        pub threshold: U16,
        __0: [u8; 20],
    }
}

event_data! {
    /// Data of [`EventType::RECOVERABLE_ERROR`].
    pub struct CableEvent {
        __0: [u8; 3],
        /// Port number, from 1.
        pub port: u8,
        __1: [u8; 20],
    }
}
