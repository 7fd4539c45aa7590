//! What the two MAD queues carry: management datagrams of the agents that a guest registered.

use crate::request::queue_pair::AhAttributes;
use crate::{Reason, Reserved, Status, U16, U32, U64};

/// Size of a MAD in bytes, without RMPP.
pub const MAD_BYTES: usize = 256;

layout! {
    size = 80;
    /// Header of a buffer of the send queue; the MAD follows.
    pub struct MadSend {
        /// The agent.
        pub agent: U32,
        /// Length of the MAD in bytes.
        pub length: U32,
        /// The driver's own, returned with the reply.
        pub cookie: U64,
        /// How long to wait for a reply, in ms; 0: none is expected.
        pub timeout_ms: U32,
        /// How often to send again after that time.
        pub retries: U32,
        /// Destination queue pair.
        pub remote_qpn: U32,
        /// Its Q_Key.
        pub remote_qkey: U32,
        /// Index of the P_Key.
        pub pkey_index: U16,
        /// Zero.
        pub reserved: Reserved<2>,
        /// The generation that the agent is of.
        pub generation: U32,
        /// The way there.
        pub path: AhAttributes,
    }
}

layout! {
    size = 8;
    /// What the device writes behind a [`MadSend`] when it has taken the MAD, or refused it.
    pub struct MadSent {
        /// Whether it was taken.
        pub status: Status,
        /// Why not.
        pub reason: Reason,
        /// Must be ignored.
        pub reserved: Reserved<6>,
    }
}

layout! {
    size = 80;
    /// Header of what the device writes into a buffer of the receive queue; the MAD follows.
    pub struct MadReceived {
        /// The agent.
        pub agent: U32,
        /// Length of the MAD in bytes; 0 if it is not there.
        pub length: U32,
        /// Of the MAD that this answers; 0 for an unsolicited one.
        pub cookie: U64,
        /// `OK`; or why there is no reply: `TIMED_OUT`, `IO`; or `NO_MEMORY`: it was longer than the buffer.
        pub status: Status,
        /// More of that.
        pub reason: Reason,
        /// Must be ignored.
        pub reserved: Reserved<2>,
        /// The device's generation.
        pub generation: U32,
        /// Length in bytes that the MAD had.
        pub full_length: U32,
        /// Queue pair it came from.
        pub remote_qpn: U32,
        /// Index of the P_Key it came with.
        pub pkey_index: U16,
        /// Must be ignored.
        pub reserved_end: Reserved<6>,
        /// The way it came: the way back to the sender.
        pub path: AhAttributes,
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn mad_headers_have_their_bytes() {
        let mut send = MadSend::new_zeroed();
        send.agent = U32::new(2);
        send.length = U32::new(256);
        send.remote_qkey = U32::new(0x8001_0000);
        send.path.dlid = U16::new(3);
        assert_eq!(send.as_bytes()[..8], [2, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(send.as_bytes()[28..32], [0, 0, 1, 0x80]);
        assert_eq!(send.as_bytes()[60..62], [3, 0]);

        let mut received = MadReceived::new_zeroed();
        received.status = Status::TIMED_OUT;
        received.full_length = U32::new(0x0102);
        received.path.port_num = 1;
        assert_eq!(received.as_bytes()[16], 9);
        assert_eq!(received.as_bytes()[24..28], [2, 1, 0, 0]);
        assert_eq!(received.as_bytes()[69], 1);
    }
}
