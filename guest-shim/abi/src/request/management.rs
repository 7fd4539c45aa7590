//! Who gets which management datagrams: service IDs and MAD agents.

use crate::{Reserved, U32, U64};

layout! {
    size = 24;
    /// `REGISTER_SERVICE_ID`: connection requests for these service IDs come to this guest, where a port's GID
    /// doesn't tell the guests apart.
    pub struct RegisterServiceId {
        /// The service ID, as a number.
        pub service_id: U64,
        /// Bits of it that count; all ones: this one only.
        pub mask: U64,
        /// The port, from 1; 0: every port.
        pub port: u8,
        /// Zero.
        pub reserved: Reserved<7>,
    }
}

layout! {
    size = 8;
    /// Reply to `REGISTER_SERVICE_ID`.
    pub struct ServiceIdRegistered {
        /// Handle of the registration.
        pub registration: U32,
        /// Must be ignored.
        pub reserved: Reserved<4>,
    }
}

layout! {
    size = 8;
    /// `UNREGISTER_SERVICE_ID`.
    pub struct UnregisterServiceId {
        /// The registration.
        pub registration: U32,
        /// Zero.
        pub reserved: Reserved<4>,
    }
}

flags! {
    /// How a MAD agent works.
    pub struct MadAgentFlags: U32 as u32 {
        /// The guest does RMPP itself: each MAD comes as it is.
        USER_RMPP = 1 << 0,
    }
}

layout! {
    size = 32;
    /// `REGISTER_MAD_AGENT`: the right to send MADs, and which MADs are received.
    pub struct RegisterMadAgent {
        /// The port, from 1.
        pub port: u8,
        /// The special queue pair: 0 or 1.
        pub qp: u8,
        /// Management class of unsolicited MADs to receive; 0: only replies.
        pub mgmt_class: u8,
        /// Version of the class.
        pub class_version: u8,
        /// Version of RMPP; 0: none.
        pub rmpp_version: u8,
        /// OUI of a vendor class. Else 0.
        pub oui: [u8; 3],
        /// How it works.
        pub flags: MadAgentFlags,
        /// Zero.
        pub reserved: Reserved<4>,
        /// Methods of unsolicited MADs to receive: bit `m % 8` of byte `m / 8`.
        pub method_mask: [u8; 16],
    }
}

layout! {
    size = 8;
    /// Reply to `REGISTER_MAD_AGENT`.
    pub struct MadAgentRegistered {
        /// Handle of the agent.
        pub agent: U32,
        /// Must be ignored.
        pub reserved: Reserved<4>,
    }
}

layout! {
    size = 8;
    /// `UNREGISTER_MAD_AGENT`.
    pub struct UnregisterMadAgent {
        /// The agent.
        pub agent: U32,
        /// Zero.
        pub reserved: Reserved<4>,
    }
}
