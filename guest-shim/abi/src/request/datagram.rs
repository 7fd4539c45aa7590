//! Address handles and multicast groups.

use super::queue_pair::AhAttributes;
use crate::{Reserved, U16, U32};

layout! {
    size = 48;
    /// `CREATE_AH`: what a UD work request needs to reach a port. The device keeps nothing of it.
    pub struct CreateAh {
        /// Its PD.
        pub pd: U32,
        /// Zero.
        pub reserved: Reserved<4>,
        /// The path.
        pub attributes: AhAttributes,
    }
}

layout! {
    size = 48;
    /// Reply to `CREATE_AH`.
    pub struct AddressVector {
        /// The address part of a UD work request, in the queue format. `MLX4`: the datagram segment, in which
        /// the driver fills in destination QP and Q_Key for each work request.
        pub vector: [u8; 48],
    }
}

layout! {
    size = 24;
    /// `ATTACH_MCAST`: messages to the group reach the queue pair.
    pub struct AttachMcast {
        /// The queue pair, of type UD.
        pub qp: U32,
        /// LID of the group.
        pub mlid: U16,
        /// Zero.
        pub reserved: Reserved<2>,
        /// GID of the group.
        pub mgid: [u8; 16],
    }
}

layout! {
    size = 24;
    /// `DETACH_MCAST`.
    pub struct DetachMcast {
        /// The queue pair.
        pub qp: U32,
        /// LID of the group.
        pub mlid: U16,
        /// Zero.
        pub reserved: Reserved<2>,
        /// GID of the group.
        pub mgid: [u8; 16],
    }
}
