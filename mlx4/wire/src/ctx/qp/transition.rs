//! Mailbox of the QP transitions: which optional parameters are given, and the context.

use core::mem::offset_of;

use super::QpContext;

bits! {
    /// Which optional parameters of a transition are given.
    pub struct OptPar: u32 {
        #[bits(10)]
        __: u32,
        /// Strip VLAN.
        pub vlan_stripping: bool,
        /// Counter index of the primary path.
        pub counter_index: bool,
        #[bits(3)]
        __: u32,
        /// Schedule queue of the primary path.
        pub sched_queue: bool,
        #[bits(1)]
        __: u32,
        /// Local ACK timeout of the primary path.
        pub ack_timeout: bool,
        /// RNR retries.
        pub rnr_retry: bool,
        /// Retries.
        pub retry_count: bool,
        #[bits(1)]
        __: u32,
        /// Path migration state.
        pub path_migration: bool,
        /// Reads and atomics as responder ("RRA max").
        pub responder_reads: bool,
        /// Reads and atomics as requester ("SRA max").
        pub requester_reads: bool,
        /// Primary path, less P_Key index and ACK timeout.
        pub primary_path: bool,
        /// Minimum RNR timer.
        pub min_rnr_timer: bool,
        /// Q_Key.
        pub qkey: bool,
        /// P_Key index of the primary path.
        pub pkey_index: bool,
        /// Whether remote writes are allowed ("RWE").
        pub remote_write: bool,
        /// Whether remote atomics are allowed ("RAE").
        pub remote_atomic: bool,
        /// Whether remote reads are allowed ("RRE").
        pub remote_read: bool,
        /// Alternate path.
        pub alternate_path: bool,
    }
}

wire! {
    size = 0x100;
    /// Mailbox of a QP transition, and outbox of `QUERY_QP`.
    pub struct QpMailbox {
        /// Optional parameters that are given.
        pub optional: OptPar,
        __0: [u8; 4],
        /// Context.
        pub context: QpContext,
    }
}

const _: () = assert!(offset_of!(QpMailbox, context) == 0x08);

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;
    use crate::Number24;

    #[test]
    fn mailbox_has_mask_at_00_and_context_at_08() {
        let mut mailbox = QpMailbox::new_zeroed();
        mailbox.optional = OptPar::new().with_qkey(true).with_counter_index(true);
        mailbox.context.pd = Number24::wrapping(5);
        let bytes = mailbox.as_bytes();
        assert_eq!(bytes[..4], [0, 0x10, 0, 0x20]);
        assert_eq!(bytes[0x0c..0x10], [0, 0, 0, 5]);
    }

    #[test]
    fn optional_parameters_have_their_bits() {
        let bits = [
            (0, OptPar::new().with_alternate_path(true)),
            (1, OptPar::new().with_remote_read(true)),
            (2, OptPar::new().with_remote_atomic(true)),
            (3, OptPar::new().with_remote_write(true)),
            (4, OptPar::new().with_pkey_index(true)),
            (5, OptPar::new().with_qkey(true)),
            (6, OptPar::new().with_min_rnr_timer(true)),
            (7, OptPar::new().with_primary_path(true)),
            (8, OptPar::new().with_requester_reads(true)),
            (9, OptPar::new().with_responder_reads(true)),
            (10, OptPar::new().with_path_migration(true)),
            (12, OptPar::new().with_retry_count(true)),
            (13, OptPar::new().with_rnr_retry(true)),
            (14, OptPar::new().with_ack_timeout(true)),
            (16, OptPar::new().with_sched_queue(true)),
            (20, OptPar::new().with_counter_index(true)),
            (21, OptPar::new().with_vlan_stripping(true)),
        ];
        for (bit, word) in bits {
            assert_eq!(word.into_bits().get(), 1 << bit);
        }
    }
}
