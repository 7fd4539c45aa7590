//! What queue pairs are asked for, and how they are changed.

use virtio_rdma::request::queue_pair::{
    MigState as MigStateCode, QpState as QpStateCode, QpType as QpTypeCode,
};

use crate::access::Access;
use crate::attr::{Gid, Mtu, verbs_enum};
use crate::cq::Cq;
use crate::srq::Srq;

/// Type of a queue pair (`ibv_qp_type`). The receiving end of XRC is a type of its own,
/// [`XrcRecvQp`](crate::XrcRecvQp).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QpType {
    /// Reliable connection.
    Rc,
    /// Unreliable connection.
    Uc,
    /// Unreliable datagram.
    Ud,
    /// The sending end of an extended reliable connection.
    XrcSend,
}

impl QpType {
    pub(super) const fn code(self) -> QpTypeCode {
        match self {
            Self::Rc => QpTypeCode::RC,
            Self::Uc => QpTypeCode::UC,
            Self::Ud => QpTypeCode::UD,
            Self::XrcSend => QpTypeCode::XRC_SEND,
        }
    }
}

verbs_enum! {
    /// State of a queue pair (`ibv_qp_state`).
    pub enum QpState of QpStateCode {
        /// Nothing may be posted.
        Reset = RESET,
        /// Receives may be posted.
        Init = INIT,
        /// Ready to receive.
        Rtr = RTR,
        /// Ready to send.
        Rts = RTS,
        /// Send queue drained.
        Sqd = SQD,
        /// Send queue error.
        Sqe = SQE,
        /// Error: everything that is posted is flushed.
        Err = ERR,
    }
}

verbs_enum! {
    /// Path migration state (`ibv_mig_state`).
    pub enum MigState of MigStateCode {
        /// Migrated.
        Migrated = MIGRATED,
        /// To be armed.
        Rearm = REARM,
        /// Armed.
        Armed = ARMED,
    }
}

/// What a queue pair can hold (`ibv_qp_cap`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpCap {
    /// Send requests that may be outstanding.
    pub max_send_wr: u32,
    /// Receive requests that may be outstanding.
    pub max_recv_wr: u32,
    /// Pieces of a send request.
    pub max_send_sge: u32,
    /// Pieces of a receive request.
    pub max_recv_sge: u32,
    /// Bytes of inline data of a send request.
    pub max_inline_data: u32,
}

/// What a queue pair shall be (`ibv_qp_init_attr`).
#[derive(Clone, Copy, Debug)]
pub struct QpInit<'a> {
    /// Its type.
    pub qp_type: QpType,
    /// Where its send requests complete.
    pub send_cq: &'a Cq,
    /// Where its receive requests complete; may be the same. Doesn't count for [`QpType::XrcSend`], which has none.
    pub recv_cq: &'a Cq,
    /// The SRQ that it receives by, in place of a receive queue of its own.
    pub srq: Option<&'a Srq>,
    /// What it shall be able to hold, at least. With an SRQ the receive numbers don't count.
    pub cap: QpCap,
    /// Whether every send request is signalled.
    pub sq_sig_all: bool,
    /// Whether its send requests have room for masked compare and swap.
    pub masked_atomics: bool,
    /// UD: longest header of messages that are cut into packets, in bytes; 0: none are.
    pub max_lso_header: u16,
    /// UD: its own multicast messages don't come back to it (`IBV_QP_CREATE_BLOCK_SELF_MCAST_LB`).
    pub block_self_mcast_lb: bool,
}

impl<'a> QpInit<'a> {
    /// RC, with one CQ for both queues, and room for 64 requests of one piece in each.
    pub const fn new(cq: &'a Cq) -> Self {
        Self {
            qp_type: QpType::Rc,
            send_cq: cq,
            recv_cq: cq,
            srq: None,
            cap: QpCap {
                max_send_wr: 64,
                max_recv_wr: 64,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: 0,
            },
            sq_sig_all: false,
            masked_atomics: false,
            max_lso_header: 0,
            block_self_mcast_lb: false,
        }
    }
}

/// The global part of a path (`ibv_global_route`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Grh {
    /// Destination GID.
    pub dgid: Gid,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Index of the source GID.
    pub sgid_index: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Traffic class.
    pub traffic_class: u8,
}

/// A path to another port (`ibv_ah_attr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct AhAttr {
    /// Destination LID.
    pub dlid: u16,
    /// Service level, 0 to 15.
    pub sl: u8,
    /// Low bits of the source LID.
    pub src_path_bits: u8,
    /// Static rate (`ibv_rate`); 0: the port's.
    pub static_rate: u8,
    /// Port that it leaves by, from 1.
    pub port_num: u8,
    /// The global part, if packets shall have a GRH.
    pub grh: Option<Grh>,
}

impl AhAttr {
    /// The path to a LID of the same subnet, from a port.
    pub fn to_lid(dlid: u16, port_num: u8) -> Self {
        Self { dlid, port_num, ..Self::default() }
    }
}

/// The alternate path of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AltPath {
    /// The path.
    pub ah_attr: AhAttr,
    /// Index of its P_Key.
    pub pkey_index: u16,
    /// Its local ACK timeout: 4.096 µs × 2^n.
    pub timeout: u8,
}

/// Attributes of a queue pair (`ibv_qp_attr`): in a change those that shall change, which is verbs' mask; in an
/// answer those that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct QpAttr {
    /// The state to go to; in answers, the state.
    pub qp_state: Option<QpState>,
    /// The state that the queue pair is assumed in.
    pub cur_qp_state: Option<QpState>,
    /// Whether an event shall tell that the send queue is drained (to [`QpState::Sqd`] only).
    pub en_sqd_async_notify: Option<bool>,
    /// Remote operations that are allowed.
    pub qp_access_flags: Option<Access>,
    /// Index of the P_Key.
    pub pkey_index: Option<u16>,
    /// Primary port, from 1.
    pub port_num: Option<u8>,
    /// Q_Key.
    pub qkey: Option<u32>,
    /// Primary path.
    pub ah_attr: Option<AhAttr>,
    /// Path MTU.
    pub path_mtu: Option<Mtu>,
    /// Local ACK timeout: 4.096 µs × 2^n; 0: none.
    pub timeout: Option<u8>,
    /// Retries, 0 to 7.
    pub retry_cnt: Option<u8>,
    /// Retries after RNR NAKs; 7: without end.
    pub rnr_retry: Option<u8>,
    /// PSN of the receive queue, 24 bits.
    pub rq_psn: Option<u32>,
    /// Reads and atomics under way as requester.
    pub max_rd_atomic: Option<u8>,
    /// Alternate path.
    pub alt_path: Option<AltPath>,
    /// Code of the least RNR NAK timer (IBTA 9.7.5.2.8).
    pub min_rnr_timer: Option<u8>,
    /// PSN of the send queue, 24 bits.
    pub sq_psn: Option<u32>,
    /// Reads and atomics under way as responder.
    pub max_dest_rd_atomic: Option<u8>,
    /// Path migration state.
    pub path_mig_state: Option<MigState>,
    /// Number of the remote queue pair, 24 bits.
    pub dest_qp_num: Option<u32>,
    /// Answers only: the send queue is being drained.
    pub sq_draining: Option<bool>,
}

impl QpAttr {
    /// To a state, with nothing else.
    pub fn state(state: QpState) -> Self {
        Self { qp_state: Some(state), ..Self::default() }
    }
}

/// What an RC queue pair needs to become ready to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtrAttr {
    /// The path to the other side.
    pub ah_attr: AhAttr,
    /// The other side's queue pair.
    pub dest_qp_num: u32,
    /// The PSN that the other side starts with.
    pub rq_psn: u32,
    /// Path MTU, the same at both sides.
    pub path_mtu: Mtu,
    /// Reads and atomics under way as responder.
    pub max_dest_rd_atomic: u8,
    /// Code of the least RNR NAK timer; 12: 0.64 ms.
    pub min_rnr_timer: u8,
}

impl RtrAttr {
    /// With one read or atomic under way, and an RNR NAK timer of 0.64 ms.
    pub const fn new(ah_attr: AhAttr, dest_qp_num: u32, rq_psn: u32, path_mtu: Mtu) -> Self {
        Self { ah_attr, dest_qp_num, rq_psn, path_mtu, max_dest_rd_atomic: 1, min_rnr_timer: 12 }
    }
}

impl From<RtrAttr> for QpAttr {
    fn from(from: RtrAttr) -> Self {
        Self {
            qp_state: Some(QpState::Rtr),
            ah_attr: Some(from.ah_attr),
            dest_qp_num: Some(from.dest_qp_num),
            rq_psn: Some(from.rq_psn),
            path_mtu: Some(from.path_mtu),
            max_dest_rd_atomic: Some(from.max_dest_rd_atomic),
            min_rnr_timer: Some(from.min_rnr_timer),
            ..Self::default()
        }
    }
}

/// What an RC queue pair needs to become ready to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtsAttr {
    /// The PSN that this side starts with.
    pub sq_psn: u32,
    /// Local ACK timeout: 4.096 µs × 2^n.
    pub timeout: u8,
    /// Retries, 0 to 7.
    pub retry_cnt: u8,
    /// Retries after RNR NAKs; 7: without end.
    pub rnr_retry: u8,
    /// Reads and atomics under way as requester.
    pub max_rd_atomic: u8,
}

impl RtsAttr {
    /// With a timeout of 67 ms, 7 retries, RNR retries without end, and one read or atomic under way.
    pub const fn new(sq_psn: u32) -> Self {
        Self { sq_psn, timeout: 14, retry_cnt: 7, rnr_retry: 7, max_rd_atomic: 1 }
    }
}

impl From<RtsAttr> for QpAttr {
    fn from(from: RtsAttr) -> Self {
        Self {
            qp_state: Some(QpState::Rts),
            sq_psn: Some(from.sq_psn),
            timeout: Some(from.timeout),
            retry_cnt: Some(from.retry_cnt),
            rnr_retry: Some(from.rnr_retry),
            max_rd_atomic: Some(from.max_rd_atomic),
            ..Self::default()
        }
    }
}
