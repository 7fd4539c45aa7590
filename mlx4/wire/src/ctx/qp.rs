//! QP context, and the mailbox of the QP transitions and `QUERY_QP`.
//!
//! The send and the receive queue share one buffer and one range of the MTT. No field says which comes
//! first: it is the queue of the larger stride, or the send queue when the strides are equal. A QP without
//! a receive queue of its own (SRQ, XRC) may carry anything in `rq_size`.
//!
//! Sources: Linux `struct mlx4_qp_context` and `drivers/infiniband/hw/mlx4/qp.c`; iPXE
//! `hermonprm_queue_pair_ee_context_entry`.

use core::mem::offset_of;

use super::RingPages;
use super::path::AddressPath;
use crate::{Number24, U16, U32, U64};

mod transition;

pub use transition::{OptPar, QpMailbox};

open_enum! {
    /// State of a QP (4 bits).
    pub enum QpState: u8 {
        /// Reset.
        RST = 0,
        /// Initialized.
        INIT = 1,
        /// Ready to receive.
        RTR = 2,
        /// Ready to send.
        RTS = 3,
        /// Send queue error.
        SQER = 4,
        /// Send queue drained.
        SQD = 5,
        /// Error.
        ERR = 6,
        /// Send queue draining.
        SQ_DRAINING = 7,
    }
}

open_enum! {
    /// Transport service of a QP (4 bits).
    pub enum ServiceType: u8 {
        /// Reliable connection.
        RC = 0,
        /// Unreliable connection.
        UC = 1,
        /// Reliable datagram; no driver uses it.
        RD = 2,
        /// Unreliable datagram.
        UD = 3,
        /// Fibre Channel command.
        FCMND = 4,
        /// Fibre Channel exchange.
        FEXCH = 5,
        /// Extended reliable connection.
        XRC = 6,
        /// QP0, QP1 and raw packets: the headers are in the WQE.
        MLX = 7,
    }
}

open_enum! {
    /// Path migration state (2 bits).
    pub enum PathMigration: u8 {
        /// An alternate path is armed.
        ARMED = 0,
        /// The other end is asked to arm.
        REARM = 1,
        /// The primary path is in use, and no other.
        MIGRATED = 3,
    }
}

open_enum! {
    /// Path MTU (3 bits).
    pub enum Mtu: u8 {
        /// 256 bytes.
        MTU_256 = 1,
        /// 512 bytes.
        MTU_512 = 2,
        /// 1024 bytes.
        MTU_1024 = 3,
        /// 2048 bytes.
        MTU_2048 = 4,
        /// 4096 bytes.
        MTU_4096 = 5,
        /// Raw packets.
        RAW = 7,
    }
}

impl Mtu {
    /// Payload of the largest packet in bytes; `None` for a code that isn't an InfiniBand MTU.
    pub const fn bytes(self) -> Option<u32> {
        match self.0 {
            1..=5 => Some(128 << self.0),
            _ => None,
        }
    }
}

bits! {
    /// First word of a QP context.
    pub struct QpFlags: u32 {
        /// State. In a transition the driver repeats the state that the command leads to.
        #[bits(4)]
        pub state: QpState,
        #[bits(8)]
        __: u32,
        /// Transport service.
        #[bits(4)]
        pub service: ServiceType,
        #[bits(2)]
        __: u32,
        /// The QP spreads what arrives over others.
        pub rss: bool,
        /// Path migration state.
        #[bits(2)]
        pub path_migration: PathMigration,
        #[bits(11)]
        __: u32,
    }
}

bits! {
    /// Path MTU and greatest message of a QP.
    pub struct MtuMessage: u8 {
        /// Path MTU.
        #[bits(3)]
        pub mtu: Mtu,
        /// log2 of the greatest message in bytes.
        #[bits(5)]
        pub log2_max_message: u8,
    }
}

bits! {
    /// Size and stride of a work queue.
    pub struct WqSize: u8 {
        /// The device doesn't prefetch; send queue only.
        pub no_prefetch: bool,
        /// log2 of the number of WQEs.
        #[bits(4)]
        pub log2_entries: u8,
        /// log2 of the stride in bytes, less 4.
        #[bits(3)]
        pub log2_stride_less_4: u8,
    }
}

impl WqSize {
    /// Number of WQEs: 1 to 32768.
    pub const fn entries(self) -> u32 {
        1 << self.log2_entries()
    }

    /// log2 of the stride in bytes: 4 to 11.
    pub const fn log2_stride(self) -> u8 {
        self.log2_stride_less_4() + 4
    }

    /// Stride in bytes: 16 to 2048.
    pub const fn stride(self) -> u32 {
        1 << self.log2_stride()
    }

    /// Size of the queue in bytes: 16 to 2^26.
    pub const fn bytes(self) -> u32 {
        self.entries() << self.log2_stride()
    }
}

bits! {
    /// Reserved lkey and RoCE mode of a QP.
    pub struct QpMode: u8 {
        /// RoCE mode; 0 is version 1.
        #[bits(2)]
        pub roce: u8,
        #[bits(1)]
        __: u8,
        /// WQEs may use the reserved lkey.
        pub reserved_lkey: bool,
        #[bits(4)]
        __: u8,
    }
}

bits! {
    /// Parameters of the requester (`params1`).
    pub struct RequesterParams: u32 {
        /// log2 of the packets from one ACK request to the next.
        #[bits(4)]
        pub log2_ack_request: u8,
        #[bits(4)]
        __: u32,
        /// log2 of the RDMA reads and atomics under way at once ("SRA max").
        #[bits(3)]
        pub log2_max_reads: u8,
        #[bits(2)]
        __: u32,
        /// Retries after a timeout or sequence NAK.
        #[bits(3)]
        pub retry_count: u8,
        /// Retries after an RNR NAK; 7 is without end.
        #[bits(3)]
        pub rnr_retry: u8,
        #[bits(1)]
        __: u32,
        /// Fast register WQEs are allowed.
        pub fast_register: bool,
        /// RNR retries left; output only.
        #[bits(3)]
        pub current_rnr_retry: u8,
        /// Retries left; output only.
        #[bits(3)]
        pub current_retry_count: u8,
        #[bits(5)]
        __: u32,
    }
}

bits! {
    /// Parameters of the responder (`params2`).
    pub struct ResponderParams: u32 {
        #[bits(8)]
        __: u32,
        /// log2 of the RDMA reads and atomics that the other end may have under way ("RRA max").
        #[bits(3)]
        pub log2_max_reads: u8,
        #[bits(5)]
        __: u32,
        /// Remote reads are allowed ("RRE").
        pub remote_read: bool,
        /// Remote writes are allowed ("RWE").
        pub remote_write: bool,
        /// Remote atomics are allowed ("RAE").
        pub remote_atomic: bool,
        #[bits(1)]
        __: u32,
        /// Offset of the buffer in its first page, in units of 64 bytes; drivers leave it zero.
        #[bits(6)]
        pub page_offset_64: u32,
        #[bits(1)]
        __: u32,
        /// ACKs carry "invalid credits"; set with an SRQ ("RIC").
        pub invalid_credits: bool,
        /// FPP of Linux's header.
        pub fpp: bool,
        #[bits(3)]
        __: u32,
    }
}

bits! {
    /// Minimum RNR timer, and the PSN that the responder expects.
    pub struct RnrNextPsn: u32 {
        #[bits(3)]
        __: u32,
        /// Code of the minimum RNR NAK timer (IBTA table 45).
        #[bits(5)]
        pub min_rnr_timer: u8,
        /// Next PSN to be received.
        #[bits(24)]
        pub next_receive_psn: u32,
    }
}

bits! {
    /// The SRQ of a QP.
    pub struct QpSrq: u32 {
        #[bits(7)]
        __: u32,
        /// Receive WQEs come from the SRQ.
        pub enable: bool,
        /// Number of the SRQ.
        #[bits(24)]
        pub srqn: u32,
    }
}

bits! {
    /// Options of a QP (`param3`).
    pub struct QpOptions: u32 {
        /// `mkey_rmp` of iPXE's header.
        pub mkey_remap: bool,
        /// Strip the VLAN (Ethernet).
        pub strip_vlan: bool,
        /// Scatter the frame check sequence (Ethernet).
        pub scatter_fcs: bool,
        #[bits(3)]
        __: u32,
        /// Small receives may be put into the WQE itself.
        pub inline_receive: bool,
        /// Headers go to the first scatter entry.
        pub header_separation: bool,
        #[bits(24)]
        __: u32,
    }
}

bits! {
    /// Domain of an XRC QP.
    pub struct QpXrcd: u32 {
        #[bits(16)]
        __: u32,
        /// Number of the XRC domain.
        #[bits(16)]
        pub xrcd: u16,
    }
}

wire! {
    size = 0xf8;
    /// Context of a QP.
    pub struct QpContext {
        /// State, service and path migration.
        pub flags: QpFlags,
        /// Protection domain.
        pub pd: Number24,
        /// Path MTU and greatest message.
        pub mtu_message: MtuMessage,
        /// Receive queue.
        pub rq_size: WqSize,
        /// Send queue.
        pub sq_size: WqSize,
        /// Reserved lkey and RoCE mode.
        pub mode: QpMode,
        /// UAR page of the send doorbell.
        pub uar_page: Number24,
        /// Own number.
        pub local_qpn: Number24,
        /// Number of the QP at the other end.
        pub remote_qpn: Number24,
        /// Primary path.
        pub primary_path: AddressPath,
        /// Alternate path.
        pub alternate_path: AddressPath,
        /// Requester.
        pub requester: RequesterParams,
        __0: [u8; 4],
        /// Next PSN to be sent.
        pub next_send_psn: Number24,
        /// CQ of the send queue.
        pub send_cqn: Number24,
        /// RoCE entropy.
        pub roce_entropy: U16,
        __1: [u8; 6],
        /// Last PSN that was acknowledged; output only.
        pub last_acked_psn: Number24,
        /// Send sequence number; output only.
        pub ssn: Number24,
        /// Responder.
        pub responder: ResponderParams,
        /// Minimum RNR timer and next PSN to be received.
        pub rnr_next_psn: RnrNextPsn,
        /// XRC domain.
        pub xrcd: QpXrcd,
        /// CQ of the receive queue.
        pub receive_cqn: Number24,
        /// Bus address of the receive queue's [`RqRecord`](crate::doorbell::RqRecord), a multiple of 4.
        pub record_address: U64,
        /// Q_Key.
        pub qkey: U32,
        /// SRQ.
        pub srq: QpSrq,
        /// Message sequence number of the responder; output only.
        pub msn: Number24,
        /// Count of receive WQEs taken; output only.
        pub rq_wqe_counter: U16,
        /// Count of send WQEs taken; output only.
        pub sq_wqe_counter: U16,
        __2: [u8; 4],
        /// Rate limit.
        pub rate_limit: U16,
        __3: u8,
        /// Virtual port for quality of service.
        pub qos_vport: u8,
        /// Options.
        pub options: QpOptions,
        /// Number of multicast peers (bits 31:24) and base key.
        pub peers_base_mkey: U32,
        /// Pages of the buffer of both queues.
        pub pages: RingPages,
        __4: [u8; 40],
    }
}

const _: () = {
    assert!(offset_of!(QpContext, mtu_message) == 0x08);
    assert!(offset_of!(QpContext, uar_page) == 0x0c);
    assert!(offset_of!(QpContext, remote_qpn) == 0x14);
    assert!(offset_of!(QpContext, primary_path) == 0x18);
    assert!(offset_of!(QpContext, alternate_path) == 0x44);
    assert!(offset_of!(QpContext, requester) == 0x70);
    assert!(offset_of!(QpContext, next_send_psn) == 0x78);
    assert!(offset_of!(QpContext, send_cqn) == 0x7c);
    assert!(offset_of!(QpContext, last_acked_psn) == 0x88);
    assert!(offset_of!(QpContext, responder) == 0x90);
    assert!(offset_of!(QpContext, receive_cqn) == 0x9c);
    assert!(offset_of!(QpContext, record_address) == 0xa0);
    assert!(offset_of!(QpContext, qkey) == 0xa8);
    assert!(offset_of!(QpContext, msn) == 0xb0);
    assert!(offset_of!(QpContext, options) == 0xc0);
    assert!(offset_of!(QpContext, pages) == 0xc8);
};

impl QpContext {
    /// Bus address of the receive queue's doorbell record in bytes; bits 1:0 are not part of it.
    pub const fn record_base(&self) -> u64 {
        self.record_address.get() & !3
    }

    /// Offset of the queues' buffer in its first page in bytes: a multiple of 64 below 4096.
    pub const fn page_offset(&self) -> u32 {
        self.responder.page_offset_64() * 64
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::ctx::path::SchedQueue;

    /// The bytes of a context that `set` has filled, at their offsets in the context.
    fn bytes(set: impl FnOnce(&mut QpContext)) -> [u8; 0xf8] {
        let mut context = QpContext::new_zeroed();
        set(&mut context);
        zerocopy::transmute!(context)
    }

    #[test]
    fn rst2init_fields_have_their_bytes() {
        let qp = bytes(|qp| {
            qp.flags = QpFlags::new()
                .with_state(QpState::RTS)
                .with_service(ServiceType::UD)
                .with_path_migration(PathMigration::MIGRATED);
            qp.pd = Number24::wrapping(0x1_0203);
            qp.mtu_message = MtuMessage::new().with_mtu(Mtu::MTU_4096).with_log2_max_message(13);
            qp.rq_size = WqSize::new().with_log2_entries(9).with_log2_stride_less_4(1);
            qp.sq_size = WqSize::new().with_no_prefetch(true).with_log2_entries(7).with_log2_stride_less_4(3);
            qp.mode = QpMode::new().with_roce(2).with_reserved_lkey(true);
            qp.uar_page = Number24::wrapping(0x85);
            qp.local_qpn = Number24::wrapping(0x40);
            qp.remote_qpn = Number24::wrapping(0x12_3456);
        });
        assert_eq!(qp[0x00..0x08], [0x30, 0x03, 0x18, 0, 0, 1, 2, 3]);
        assert_eq!(qp[0x08..0x0c], [0xad, 0x49, 0xbb, 0x90]);
        assert_eq!(qp[0x0c..0x18], [0, 0, 0, 0x85, 0, 0, 0, 0x40, 0, 0x12, 0x34, 0x56]);
    }

    #[test]
    fn paths_are_at_18_and_44() {
        let qp = bytes(|qp| {
            qp.primary_path.sched_queue = SchedQueue::BASE;
            qp.alternate_path.pkey_index = 5;
        });
        assert_eq!((qp[0x38], qp[0x47]), (0x83, 5));
    }

    #[test]
    fn requester_fields_have_their_bytes() {
        let qp = bytes(|qp| {
            qp.requester = RequesterParams::new()
                .with_log2_ack_request(8)
                .with_log2_max_reads(7)
                .with_retry_count(5)
                .with_rnr_retry(6)
                .with_fast_register(true)
                .with_current_rnr_retry(3)
                .with_current_retry_count(4);
            qp.next_send_psn = Number24::wrapping(1);
            qp.send_cqn = Number24::wrapping(2);
            qp.last_acked_psn = Number24::wrapping(3);
            qp.ssn = Number24::wrapping(4);
        });
        let word: u32 = 8 << 28 | 7 << 21 | 5 << 16 | 6 << 13 | 1 << 11 | 3 << 8 | 4 << 5;
        assert_eq!(qp[0x70..0x74], word.to_be_bytes());
        assert_eq!(qp[0x78..0x80], [0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(qp[0x88..0x90], [0, 0, 0, 3, 0, 0, 0, 4]);
    }

    #[test]
    fn responder_fields_have_their_bytes() {
        let qp = bytes(|qp| {
            qp.responder = ResponderParams::new()
                .with_log2_max_reads(4)
                .with_remote_read(true)
                .with_remote_atomic(true)
                .with_page_offset_64(0x21)
                .with_invalid_credits(true);
            qp.rnr_next_psn = RnrNextPsn::new().with_min_rnr_timer(12).with_next_receive_psn(0xab_cdef);
            qp.xrcd = QpXrcd::new().with_xrcd(7);
            qp.receive_cqn = Number24::wrapping(0x86);
            qp.record_address = U64::new(0x1_0000_0abc);
            qp.qkey = U32::new(0x8001_0000);
            qp.srq = QpSrq::new().with_enable(true).with_srqn(0x41);
            qp.msn = Number24::wrapping(9);
            qp.rq_wqe_counter = U16::new(0x0102);
            qp.sq_wqe_counter = U16::new(0x0304);
        });
        let word: u32 = 4 << 21 | 1 << 15 | 1 << 13 | 0x21 << 6 | 1 << 4;
        assert_eq!(qp[0x90..0x94], word.to_be_bytes());
        assert_eq!(qp[0x94..0x98], [12, 0xab, 0xcd, 0xef]);
        assert_eq!(qp[0x98..0xa0], [0, 0, 0, 7, 0, 0, 0, 0x86]);
        assert_eq!(qp[0xa0..0xa8], [0, 0, 0, 1, 0, 0, 0x0a, 0xbc]);
        assert_eq!(qp[0xa8..0xb0], [0x80, 1, 0, 0, 1, 0, 0, 0x41]);
        assert_eq!(qp[0xb0..0xb8], [0, 0, 0, 9, 1, 2, 3, 4]);
    }

    #[test]
    fn options_and_pages_have_their_bytes() {
        let qp = bytes(|qp| {
            qp.options = QpOptions::new().with_inline_receive(true).with_strip_vlan(true);
            qp.pages = RingPages::new(12, 0x3_0000_0010).unwrap();
        });
        assert_eq!(qp[0xc0..0xc4], [0x42, 0, 0, 0]);
        assert_eq!(qp[0xc8..0xd0], [0, 0, 0, 3, 0, 0, 0, 0x10]);
    }

    #[test]
    fn work_queue_sizes_of_the_stock_driver_are_decoded() {
        let xrc_target = WqSize::from_bits(0x39);
        assert_eq!((xrc_target.entries(), xrc_target.stride()), (128, 32));
        assert_eq!(xrc_target.bytes(), 4096);
        let without_queue = WqSize::from_bits(0xfc);
        assert_eq!((without_queue.entries(), without_queue.stride()), (32768, 256));
    }

    #[test]
    fn mtu_codes_are_the_sizes_of_the_specification() {
        let sizes = [None, Some(256), Some(512), Some(1024), Some(2048), Some(4096), None, None];
        for (code, size) in (0..).zip(sizes) {
            assert_eq!(Mtu(code).bytes(), size);
        }
    }
}
