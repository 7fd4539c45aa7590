//! DIAG_RPRT: error counters of the transport, of CQs and EQs.

use crate::U32;

/// Opcode modifier of DIAG_RPRT that returns [`DiagCounters`] (Linux `QUERY_TRANSPORT_CI_ERRORS`).
pub const DIAG_TRANSPORT_CI_ERRORS: u8 = 2;

wire! {
    size = 0x200;
    /// Output of DIAG_RPRT (PRM `transport_and_ci_error_counters`, Linux `DIAG_COUNTER`).
    ///
    /// Counters wrap. `rq_` counts as the responder, `sq_` as the requester. The input modifier is the
    /// port, or zero for the whole device.
    pub struct DiagCounters {
        /// 000: local length errors.
        pub rq_num_lle: U32,
        /// 004: local length errors.
        pub sq_num_lle: U32,
        /// 008: local QP operation errors.
        pub rq_num_lqpoe: U32,
        /// 00c: local QP operation errors.
        pub sq_num_lqpoe: U32,
        /// 010: local EE context operation errors.
        pub rq_num_leeoe: U32,
        /// 014: local EE context operation errors.
        pub sq_num_leeoe: U32,
        /// 018: local protection errors.
        pub rq_num_lpe: U32,
        /// 01c: local protection errors.
        pub sq_num_lpe: U32,
        /// 020: CQEs with an error.
        pub rq_num_wrfe: U32,
        /// 024: CQEs with an error.
        pub sq_num_wrfe: U32,
        _reserved028: U32,
        /// 02c: memory window bind errors.
        pub sq_num_mwbe: U32,
        _reserved030: U32,
        /// 034: bad response errors.
        pub sq_num_bre: U32,
        /// 038: local access errors.
        pub rq_num_lae: U32,
        _reserved03c: [U32; 2],
        /// 044: remote invalid request errors.
        pub sq_num_rire: U32,
        /// 048: remote invalid request errors.
        pub rq_num_rire: U32,
        /// 04c: remote access errors.
        pub sq_num_rae: U32,
        /// 050: remote access errors.
        pub rq_num_rae: U32,
        /// 054: remote operation errors.
        pub sq_num_roe: U32,
        /// 058: remote operation errors.
        pub rq_num_roe: U32,
        /// 05c: transport retries exceeded.
        pub sq_num_tree: U32,
        _reserved060: U32,
        /// 064: RNR retries exceeded.
        pub sq_num_rree: U32,
        /// 068: RNR NAKs sent.
        pub rq_num_rnr: U32,
        /// 06c: RNR NAKs received.
        pub sq_num_rnr: U32,
        _reserved070: [U32; 3],
        /// 07c: remote aborted errors.
        pub sq_num_rabrte: U32,
        _reserved080: U32,
        /// 084: invalid EE context numbers.
        pub sq_num_ieecne: U32,
        _reserved088: U32,
        /// 08c: invalid EE context states.
        pub sq_num_ieecse: U32,
        _reserved090: [U32; 28],
        /// 100: requests received out of sequence.
        pub rq_num_oos: U32,
        /// 104: NAKs received for a sequence error.
        pub sq_num_oos: U32,
        /// 108: bad multicast packets received.
        pub rq_num_mce: U32,
        _reserved10c: U32,
        /// 110: resynchronisations.
        pub rq_num_rsync: U32,
        /// 114: resynchronisations.
        pub sq_num_rsync: U32,
        /// 118: UD packets dropped for lack of a receive WQE.
        pub rq_num_udsdprd: U32,
        _reserved11c: U32,
        /// 120: UC packets dropped for lack of a receive WQE.
        pub rq_num_ucsdprd: U32,
        _reserved124: [U32; 3],
        /// 130: duplicate requests received (Linux only, with per-port counters).
        pub rq_num_dup: U32,
        /// 134: timeouts (Linux only, with per-port counters).
        pub sq_num_to: U32,
        _reserved138: [U32; 26],
        /// 1a0: CQ overflows.
        pub num_cqovf: U32,
        /// 1a4: EQ overflows.
        pub num_eqovf: U32,
        /// 1a8: bad doorbells.
        pub num_baddb: U32,
        _reserved1ac: [U32; 21],
    }
}

offsets! { DiagCounters:
    rq_num_lpe = 0x018, rq_num_wrfe = 0x020, sq_num_mwbe = 0x02c, sq_num_bre = 0x034, sq_num_rire = 0x044,
    sq_num_tree = 0x05c, sq_num_rree = 0x064, sq_num_rnr = 0x06c, rq_num_oos = 0x100,
    rq_num_udsdprd = 0x118, rq_num_dup = 0x130, sq_num_to = 0x134, num_cqovf = 0x1a0,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::testing::golden as at;

    #[test]
    fn counters_are_where_linux_reads_them() {
        type D = DiagCounters;
        at(|d: &mut D| d.rq_num_lle.set(1), 0x003, &[1]);
        at(|d: &mut D| d.sq_num_lqpoe.set(1), 0x00f, &[1]);
        at(|d: &mut D| d.sq_num_lpe.set(1), 0x01f, &[1]);
        at(|d: &mut D| d.sq_num_wrfe.set(1), 0x027, &[1]);
        at(|d: &mut D| d.rq_num_rire.set(1), 0x04b, &[1]);
        at(|d: &mut D| d.sq_num_rae.set(1), 0x04f, &[1]);
        at(|d: &mut D| d.rq_num_rae.set(1), 0x053, &[1]);
        at(|d: &mut D| d.sq_num_roe.set(1), 0x057, &[1]);
        at(|d: &mut D| d.rq_num_rnr.set(1), 0x06b, &[1]);
        at(|d: &mut D| d.sq_num_oos.set(1), 0x107, &[1]);
        at(|d: &mut D| d.num_cqovf.set(0x0102_0304), 0x1a0, &[1, 2, 3, 4]);
    }
}
