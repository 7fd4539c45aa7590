//! Queue pairs.

use super::memory::AccessFlags;
use super::query::Mtu;
use crate::doorbell::DoorbellPlace;
use crate::{Reserved, U16, U32, U64};

codes! {
    /// Type of a queue pair (`ibv_qp_type`), as far as guests may have it.
    pub enum QpType {
        /// Reliable connection.
        RC = 2,
        /// Unreliable connection.
        UC = 3,
        /// Unreliable datagram.
        UD = 4,
        /// Initiator of an extended reliable connection: it has no receive queue.
        XRC_SEND = 9,
        /// Target of an extended reliable connection: it has no rings at all.
        XRC_RECV = 10,
    }
}

flags! {
    /// How a queue pair works (`ibv_qp_create_flags`, bit 0 as in the kernel).
    pub struct QpFlags: U32 as u32 {
        /// UD: it segments long messages (LSO).
        UD_LSO = 1 << 0,
        /// Its own multicast messages don't come back to it.
        BLOCK_SELF_MCAST_LB = 1 << 1,
    }
}

layout! {
    size = 20;
    /// What a queue pair can hold (`ibv_qp_cap`).
    pub struct QpCap {
        /// Send requests that may be outstanding.
        pub max_send_wr: U32,
        /// Receive requests that may be outstanding.
        pub max_recv_wr: U32,
        /// Gather elements of a send request.
        pub max_send_sge: U32,
        /// Scatter elements of a receive request.
        pub max_recv_sge: U32,
        /// Bytes of inline data.
        pub max_inline_data: U32,
    }
}

layout! {
    size = 72;
    /// `CREATE_QP`: a queue pair whose rings are the memory of the segments.
    pub struct CreateQp {
        /// Its PD. `XRC_RECV`: 0.
        pub pd: U32,
        /// CQ of the send queue. `XRC_RECV`: 0.
        pub send_cq: U32,
        /// CQ of the receive queue. XRC: 0.
        pub recv_cq: U32,
        /// Its SRQ; 0: it has a receive queue of its own.
        pub srq: U32,
        /// `XRC_RECV`: its domain. Else 0.
        pub xrcd: U32,
        /// The UAR that its doorbell belongs to. `XRC_RECV`: 0.
        pub uar: U32,
        /// How it works.
        pub flags: QpFlags,
        /// Its type.
        pub qp_type: QpType,
        /// log2 of the number of send WQEs of the ring, headroom included.
        pub log2_send_wqes: u8,
        /// log2 of the send WQEs' stride in bytes; 0: no send queue.
        pub log2_send_stride: u8,
        /// log2 of the number of receive WQEs of the ring.
        pub log2_recv_wqes: u8,
        /// log2 of the receive WQEs' stride in bytes; 0: no receive queue.
        pub log2_recv_stride: u8,
        /// Zero.
        pub reserved: Reserved<3>,
        /// What it can hold.
        pub cap: QpCap,
        /// Address of the receive queue's doorbell record in guest memory; 0 without a receive queue.
        pub record: U64,
        /// Zero.
        pub reserved_end: Reserved<8>,
    }
}

layout! {
    size = 16;
    /// Reply to `CREATE_QP`.
    pub struct QpCreated {
        /// Handle of the queue pair.
        pub qp: U32,
        /// The HCA's number of it.
        pub qpn: U32,
        /// Where its send queue is rung.
        pub send: DoorbellPlace,
    }
}

codes! {
    /// State of a queue pair (`ibv_qp_state`).
    pub enum QpState {
        /// Reset.
        RESET = 0,
        /// Initialised: receives may be posted.
        INIT = 1,
        /// Ready to receive.
        RTR = 2,
        /// Ready to send.
        RTS = 3,
        /// Send queue drained.
        SQD = 4,
        /// Send queue error.
        SQE = 5,
        /// Error.
        ERR = 6,
    }
}

codes! {
    /// Path migration state (`ibv_mig_state`).
    pub enum MigState {
        /// Migrated.
        MIGRATED = 0,
        /// To be armed.
        REARM = 1,
        /// Armed.
        ARMED = 2,
    }
}

flags! {
    /// Attributes that `MODIFY_QP` sets (`ibv_qp_attr_mask`).
    pub struct QpAttrMask: U32 as u32 {
        /// `qp_state`.
        STATE = 1 << 0,
        /// `cur_qp_state`.
        CUR_STATE = 1 << 1,
        /// `en_sqd_async_notify`.
        EN_SQD_ASYNC_NOTIFY = 1 << 2,
        /// `qp_access_flags`.
        ACCESS_FLAGS = 1 << 3,
        /// `pkey_index`.
        PKEY_INDEX = 1 << 4,
        /// `port_num`.
        PORT = 1 << 5,
        /// `qkey`.
        QKEY = 1 << 6,
        /// `ah_attr`.
        AV = 1 << 7,
        /// `path_mtu`.
        PATH_MTU = 1 << 8,
        /// `timeout`.
        TIMEOUT = 1 << 9,
        /// `retry_cnt`.
        RETRY_CNT = 1 << 10,
        /// `rnr_retry`.
        RNR_RETRY = 1 << 11,
        /// `rq_psn`.
        RQ_PSN = 1 << 12,
        /// `max_rd_atomic`.
        MAX_QP_RD_ATOMIC = 1 << 13,
        /// `alt_ah_attr`, `alt_pkey_index`, `alt_port_num`, `alt_timeout`.
        ALT_PATH = 1 << 14,
        /// `min_rnr_timer`.
        MIN_RNR_TIMER = 1 << 15,
        /// `sq_psn`.
        SQ_PSN = 1 << 16,
        /// `max_dest_rd_atomic`.
        MAX_DEST_RD_ATOMIC = 1 << 17,
        /// `path_mig_state`.
        PATH_MIG_STATE = 1 << 18,
        /// `dest_qp_num`.
        DEST_QPN = 1 << 20,
    }
}

layout! {
    size = 40;
    /// A path to another port (`ibv_ah_attr`).
    pub struct AhAttributes {
        /// Destination GID, if `is_global`.
        pub dgid: [u8; 16],
        /// Flow label of the GRH, 20 bits.
        pub flow_label: U32,
        /// Destination LID.
        pub dlid: U16,
        /// Index of the source GID.
        pub sgid_index: u8,
        /// Hop limit of the GRH.
        pub hop_limit: u8,
        /// Traffic class of the GRH.
        pub traffic_class: u8,
        /// Service level, 0 to 15.
        pub sl: u8,
        /// Low bits of the source LID, below the port's LMC.
        pub src_path_bits: u8,
        /// Static rate (`ibv_rate`); 0: the port's.
        pub static_rate: u8,
        /// 1: packets have a GRH. 0: they have none.
        pub is_global: u8,
        /// Port, from 1.
        pub port_num: u8,
        /// Destination MAC address on an Ethernet port. Else 0.
        pub dmac: [u8; 6],
        /// Zero.
        pub reserved: Reserved<4>,
    }
}

layout! {
    size = 128;
    /// Attributes of a queue pair (`ibv_qp_attr`).
    pub struct QpAttributes {
        /// Primary path.
        pub ah_attr: AhAttributes,
        /// Alternate path.
        pub alt_ah_attr: AhAttributes,
        /// Q_Key; the top bit must be clear.
        pub qkey: U32,
        /// PSN of the receive queue, 24 bits.
        pub rq_psn: U32,
        /// PSN of the send queue, 24 bits.
        pub sq_psn: U32,
        /// Number of the remote queue pair, 24 bits.
        pub dest_qp_num: U32,
        /// Remote operations that are allowed.
        pub qp_access_flags: AccessFlags,
        /// Index of the P_Key.
        pub pkey_index: U16,
        /// Index of the alternate path's P_Key.
        pub alt_pkey_index: U16,
        /// State to go to; in replies the state.
        pub qp_state: QpState,
        /// State that the queue pair is assumed in.
        pub cur_qp_state: QpState,
        /// Path MTU.
        pub path_mtu: Mtu,
        /// Path migration state.
        pub path_mig_state: MigState,
        /// 1: an event tells that the send queue is drained.
        pub en_sqd_async_notify: u8,
        /// Replies only. 1: the send queue is being drained.
        pub sq_draining: u8,
        /// Reads and atomics under way as requester.
        pub max_rd_atomic: u8,
        /// Reads and atomics under way as responder.
        pub max_dest_rd_atomic: u8,
        /// Code of the least RNR NAK timer (IBTA 9.7.5.2.8).
        pub min_rnr_timer: u8,
        /// Primary port, from 1.
        pub port_num: u8,
        /// Local ACK timeout: 4.096 µs × 2^n; 0: none.
        pub timeout: u8,
        /// Retries, 0 to 7.
        pub retry_cnt: u8,
        /// Retries after RNR NAKs; 7: without end.
        pub rnr_retry: u8,
        /// Alternate port, from 1.
        pub alt_port_num: u8,
        /// Local ACK timeout of the alternate path.
        pub alt_timeout: u8,
        /// Zero.
        pub reserved: Reserved<9>,
    }
}

layout! {
    size = 136;
    /// `MODIFY_QP`. Attributes that the mask doesn't name are ignored, but for their reserved bytes.
    pub struct ModifyQp {
        /// The queue pair.
        pub qp: U32,
        /// Which attributes are set.
        pub attr_mask: QpAttrMask,
        /// The attributes.
        pub attributes: QpAttributes,
    }
}

layout! {
    size = 8;
    /// `QUERY_QP`.
    pub struct QueryQp {
        /// The queue pair.
        pub qp: U32,
        /// Zero.
        pub reserved: Reserved<4>,
    }
}

layout! {
    size = 160;
    /// Reply to `QUERY_QP`.
    pub struct QpQueried {
        /// The attributes, as the HCA has them.
        pub attributes: QpAttributes,
        /// What it can hold, as it was created.
        pub cap: QpCap,
        /// The HCA's number of it.
        pub qpn: U32,
        /// Must be ignored.
        pub reserved: Reserved<8>,
    }
}

layout! {
    size = 8;
    /// `DESTROY_QP`.
    pub struct DestroyQp {
        /// The queue pair.
        pub qp: U32,
        /// Zero.
        pub reserved: Reserved<4>,
    }
}
