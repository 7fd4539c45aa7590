//! CQE: an entry of a completion queue.
//!
//! An entry is 32 bytes. Devices that report the capability can be set to 64-byte entries, which carry these
//! 32 bytes in their second half; that mode is told at `INIT_HCA`. With time stamps on, bytes 0c to 0f and 1d
//! to 1e are the stamp (47:16 and 15:0) in place of SL, SLID and reserved bytes.
//!
//! What has a meaning: of a send CQE QPN, WQE index, byte count (reads and atomics) and the last byte; of a
//! receive CQE also immediate and byte count; of a UD receive CQE everything.
//!
//! Sources: Linux `include/linux/mlx4/cq.h` and `drivers/infiniband/hw/mlx4/cq.c`; rdma-core
//! `providers/mlx4/mlx4dv.h`; iPXE `hermonprm_completion_queue_entry`, whose opcodes of errors are those of
//! an earlier generation.

use core::mem::offset_of;

use crate::wqe::Opcode;
use crate::{U16, U32};

/// Size of a CQE in bytes.
pub const CQE_BYTES: u32 = 32;

/// Offset of the owner byte in a CQE, written last.
pub const CQE_OWNER: u64 = 0x1f;

/// The byte that a new ring is filled with, by the device at `SW2HW_CQ` or by the driver: owner bit 1, and an
/// opcode that is none.
pub const CQE_FILL: u8 = 0xcc;

open_enum! {
    /// Opcode of a CQE of either kind (5 bits). Without an error it is the WQE's [`Opcode`] in a send CQE and
    /// a [`ReceiveOpcode`] in a receive CQE.
    pub enum CqeOpcode: u8 {
        /// The mark that ends a ring that was resized.
        RESIZE = 0x16,
        /// The entry is an [`ErrorCqe`].
        ERROR = 0x1e,
    }
}

impl From<Opcode> for CqeOpcode {
    fn from(opcode: Opcode) -> Self {
        Self(opcode.0)
    }
}

impl From<ReceiveOpcode> for CqeOpcode {
    fn from(opcode: ReceiveOpcode) -> Self {
        Self(opcode.0)
    }
}

open_enum! {
    /// Opcode of a receive CQE (5 bits).
    pub enum ReceiveOpcode: u8 {
        /// RDMA write with immediate.
        RDMA_WRITE_IMM = 0,
        /// SEND.
        SEND = 1,
        /// SEND with immediate.
        SEND_IMM = 2,
        /// SEND with invalidate.
        SEND_INVALIDATE = 3,
    }
}

bits! {
    /// First word of a CQE.
    pub struct CqeQp: u32 {
        /// VLAN and tunnel bits (Ethernet).
        #[bits(8)]
        pub ethernet: u8,
        /// Number of the QP; of an XRC target with bit 23 set.
        #[bits(24)]
        pub qpn: u32,
    }
}

bits! {
    /// Third word of a receive CQE.
    pub struct CqeSource: u32 {
        /// The packet had a GRH.
        pub grh: bool,
        /// Low bits of the destination LID.
        #[bits(7)]
        pub path_bits: u8,
        /// Source QP; of an XRC target the number of the SRQ.
        #[bits(24)]
        pub remote_qpn: u32,
    }
}

bits! {
    /// Service level or VLAN of a receive CQE.
    pub struct CqeSl: u16 {
        /// Service level.
        #[bits(4)]
        pub sl: u8,
        /// VLAN (Ethernet).
        #[bits(12)]
        pub vlan: u16,
    }
}

bits! {
    /// What a receive CQE says about an IP packet (IPoIB and Ethernet); zero without checksum offload.
    pub struct CqeStatus: u16 {
        #[bits(3)]
        __: u16,
        /// The checksum of the IP header is right.
        pub ip_ok: bool,
        /// UDP.
        pub udp: bool,
        /// TCP.
        pub tcp: bool,
        /// IPv4 options are present.
        pub ipv4_options: bool,
        /// IPv6.
        pub ipv6: bool,
        /// IPv4 fragment.
        pub ipv4_fragment: bool,
        /// IPv4.
        pub ipv4: bool,
        #[bits(6)]
        __: u16,
    }
}

bits! {
    /// More about the packet of a receive CQE.
    pub struct CqePacket: u8 {
        #[bits(3)]
        __: u8,
        /// Bad frame check sequence (Ethernet).
        pub bad_fcs: bool,
        #[bits(1)]
        __: u8,
        /// The layer 4 checksum is right.
        pub l4_ok: bool,
        /// SNAP encapsulation (Ethernet).
        pub snap: bool,
        /// LLC encapsulation (Ethernet).
        pub llc: bool,
    }
}

bits! {
    /// Last byte of a CQE.
    pub struct CqeOwner: u8 {
        /// Owner bit. The entry is the driver's when the bit equals the parity of the driver's pass over
        /// the ring, 0 in the first.
        pub owner: bool,
        /// The CQE of a send WQE; of a receive WQE otherwise.
        pub is_send: bool,
        /// The data is in the receive WQE.
        pub inline_scatter: bool,
        /// Opcode.
        #[bits(5)]
        pub opcode: CqeOpcode,
    }
}

/// The bits of an opcode.
const OPCODE_MASK: u8 = 0x1f;

impl CqeOwner {
    /// The last byte of a send CQE, with owner bit 0; only the low 5 bits of the opcode are used.
    pub const fn send(opcode: Opcode) -> Self {
        Self::new().with_is_send(true).with_opcode(CqeOpcode(opcode.0 & OPCODE_MASK))
    }

    /// The last byte of a receive CQE, with owner bit 0; only the low 5 bits of the opcode are used.
    pub const fn receive(opcode: ReceiveOpcode) -> Self {
        Self::new().with_opcode(CqeOpcode(opcode.0 & OPCODE_MASK))
    }

    /// The last byte of a CQE with an error, with owner bit 0.
    pub const fn error(is_send: bool) -> Self {
        Self::new().with_is_send(is_send).with_opcode(CqeOpcode::ERROR)
    }

    /// Whether the CQE is an [`ErrorCqe`].
    pub const fn is_error(self) -> bool {
        self.opcode().0 == CqeOpcode::ERROR.0
    }

    /// Whether the CQE is the mark that ends a ring that was resized.
    pub const fn is_resize(self) -> bool {
        self.opcode().0 == CqeOpcode::RESIZE.0
    }
}

wire! {
    size = 32;
    /// An entry of a completion queue.
    pub struct Cqe {
        /// Number of the QP.
        pub qp: CqeQp,
        /// By opcode: immediate data, whose bytes are as they came; the rkey that was invalidated; of QP1
        /// the P_Key index in bits 6:0.
        pub immediate: U32,
        /// Source QP, path bits and GRH.
        pub source: CqeSource,
        /// Service level.
        pub sl: CqeSl,
        /// Source LID.
        pub slid: U16,
        /// IP packet.
        pub status: CqeStatus,
        /// IPv6 extension headers.
        pub ipv6_extensions: u8,
        /// More about the packet.
        pub packet: CqePacket,
        /// Bytes received (UD: with 40 for the GRH), or read.
        pub byte_count: U32,
        /// Send: counter of the WQE in strides, modulo 65536. Receive: counter of the WQE. SRQ: index of
        /// the WQE.
        pub wqe_index: U16,
        /// Checksum of the packet's payload (IPoIB and Ethernet).
        pub checksum: U16,
        __0: [u8; 3],
        /// Owner and opcode.
        pub owner: CqeOwner,
    }
}

impl Cqe {
    /// The opcode: whether the entry is an error or a mark, or else what has completed.
    pub const fn opcode(&self) -> CqeOpcode {
        self.owner.opcode()
    }

    /// Sets the opcode, of which the low 5 bits are used.
    pub const fn set_opcode(&mut self, opcode: CqeOpcode) {
        self.owner = self.owner.with_opcode(CqeOpcode(opcode.0 & OPCODE_MASK));
    }

    /// Sets the owner bit.
    pub const fn set_owner(&mut self, owner: bool) {
        self.owner = self.owner.with_owner(owner);
    }
}

open_enum! {
    /// What went wrong, byte 1b of a CQE with an error (IBTA 11.6.2).
    pub enum Syndrome: u8 {
        /// Local length error.
        LOCAL_LENGTH_ERR = 0x01,
        /// Local QP operation error.
        LOCAL_QP_OP_ERR = 0x02,
        /// Local EE context operation error.
        LOCAL_EEC_OP_ERR = 0x03,
        /// Local protection error.
        LOCAL_PROT_ERR = 0x04,
        /// Work request flushed.
        WR_FLUSH_ERR = 0x05,
        /// Memory window bind error.
        MW_BIND_ERR = 0x06,
        /// Bad response.
        BAD_RESP_ERR = 0x10,
        /// Local access error.
        LOCAL_ACCESS_ERR = 0x11,
        /// Remote invalid request error.
        REMOTE_INVAL_REQ_ERR = 0x12,
        /// Remote access error.
        REMOTE_ACCESS_ERR = 0x13,
        /// Remote operation error.
        REMOTE_OP_ERR = 0x14,
        /// Transport retries exceeded.
        TRANSPORT_RETRY_EXC_ERR = 0x15,
        /// RNR retries exceeded.
        RNR_RETRY_EXC_ERR = 0x16,
        /// Local RDD violation.
        LOCAL_RDD_VIOL_ERR = 0x20,
        /// Remote invalid RD request.
        REMOTE_INVAL_RD_REQ_ERR = 0x21,
        /// Remote aborted.
        REMOTE_ABORTED_ERR = 0x22,
        /// Invalid EE context number.
        INVALID_EECN_ERR = 0x23,
        /// Invalid EE context state.
        INVALID_EEC_STATE_ERR = 0x24,
    }
}

open_enum! {
    /// The device's own code of an error, byte 1a. No driver interprets it. The first is from a published
    /// log of this family, the others are those remembered of its logs and its successor's.
    pub enum VendorError: u8 {
        /// With [`Syndrome::REMOTE_ACCESS_ERR`].
        REMOTE_ACCESS_ERR = 0x88,
        /// With [`Syndrome::TRANSPORT_RETRY_EXC_ERR`].
        TRANSPORT_RETRY_EXC_ERR = 0x81,
        /// With [`Syndrome::RNR_RETRY_EXC_ERR`].
        RNR_RETRY_EXC_ERR = 0x87,
        /// With [`Syndrome::REMOTE_OP_ERR`].
        REMOTE_OP_ERR = 0x89,
        /// With [`Syndrome::REMOTE_INVAL_REQ_ERR`].
        REMOTE_INVAL_REQ_ERR = 0x8a,
        /// With [`Syndrome::WR_FLUSH_ERR`].
        WR_FLUSH_ERR = 0xf4,
    }
}

wire! {
    size = 32;
    /// An entry of a completion queue that tells of an error.
    pub struct ErrorCqe {
        /// Number of the QP.
        pub qp: CqeQp,
        __0: [u8; 20],
        /// As in [`Cqe`].
        pub wqe_index: U16,
        vendor_error: u8,
        syndrome: u8,
        __1: [u8; 3],
        /// Owner and opcode, which is [`CqeOpcode::ERROR`].
        pub owner: CqeOwner,
    }
}

impl ErrorCqe {
    /// A CQE for an error of the WQE `wqe_index` of `qp`, with owner bit 0.
    pub const fn new(
        qp: CqeQp,
        wqe_index: u16,
        is_send: bool,
        syndrome: Syndrome,
        vendor_error: VendorError,
    ) -> Self {
        Self {
            qp,
            __0: [0; 20],
            wqe_index: U16::new(wqe_index),
            vendor_error: vendor_error.0,
            syndrome: syndrome.0,
            __1: [0; 3],
            owner: CqeOwner::error(is_send),
        }
    }

    /// What went wrong.
    pub const fn syndrome(&self) -> Syndrome {
        Syndrome(self.syndrome)
    }

    /// The device's own code.
    pub const fn vendor_error(&self) -> VendorError {
        VendorError(self.vendor_error)
    }
}

impl From<ErrorCqe> for Cqe {
    /// The same 32 bytes.
    fn from(error: ErrorCqe) -> Self {
        zerocopy::transmute!(error)
    }
}

impl From<Cqe> for ErrorCqe {
    /// The same 32 bytes; they are an error if [`CqeOwner::is_error`] says so.
    fn from(cqe: Cqe) -> Self {
        zerocopy::transmute!(cqe)
    }
}

const _: () = {
    assert!(offset_of!(Cqe, immediate) == 0x04);
    assert!(offset_of!(Cqe, source) == 0x08);
    assert!(offset_of!(Cqe, sl) == 0x0c);
    assert!(offset_of!(Cqe, slid) == 0x0e);
    assert!(offset_of!(Cqe, status) == 0x10);
    assert!(offset_of!(Cqe, packet) == 0x13);
    assert!(offset_of!(Cqe, byte_count) == 0x14);
    assert!(offset_of!(Cqe, wqe_index) == 0x18);
    assert!(offset_of!(Cqe, checksum) == 0x1a);
    assert!(offset_of!(Cqe, owner) as u64 == CQE_OWNER);
    assert!(offset_of!(ErrorCqe, wqe_index) == 0x18);
    assert!(offset_of!(ErrorCqe, vendor_error) == 0x1a);
    assert!(offset_of!(ErrorCqe, syndrome) == 0x1b);
    assert!(offset_of!(ErrorCqe, owner) as u64 == CQE_OWNER);
};

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn receive_of_a_datagram_has_its_bytes() {
        let mut cqe = Cqe::new_zeroed();
        cqe.qp = CqeQp::new().with_qpn(0x12_3456);
        cqe.immediate = U32::from_bytes([1, 2, 3, 4]);
        cqe.source = CqeSource::new().with_grh(true).with_path_bits(5).with_remote_qpn(0x40);
        cqe.sl = CqeSl::new().with_sl(9).with_vlan(0x123);
        cqe.slid = U16::new(0x0607);
        cqe.byte_count = U32::new(0x128);
        cqe.wqe_index = U16::new(0xfffe);
        cqe.checksum = U16::new(0x0809);
        cqe.owner = CqeOwner::receive(ReceiveOpcode::SEND_IMM).with_owner(true).with_inline_scatter(true);

        let bytes = cqe.as_bytes();
        assert_eq!(bytes[0x00..0x08], [0, 0x12, 0x34, 0x56, 1, 2, 3, 4]);
        assert_eq!(bytes[0x08..0x10], [0x85, 0, 0, 0x40, 0x91, 0x23, 6, 7]);
        assert_eq!(bytes[0x14..0x1c], [0, 0, 1, 0x28, 0xff, 0xfe, 8, 9]);
        assert_eq!(bytes[0x1f], 0xa2);
    }

    #[test]
    fn send_opcode_is_that_of_the_wqe() {
        assert_eq!(CqeOwner::send(Opcode::RDMA_READ).into_bits(), 0x50);
        assert_eq!(CqeOwner::send(Opcode(0xff)).into_bits(), 0x5f);
        assert_eq!(CqeOwner::send(Opcode::LSO).opcode(), Opcode::LSO.into());
    }

    #[test]
    fn opcode_and_owner_are_set_apart_from_the_rest_of_the_byte() {
        let mut cqe = Cqe::new_zeroed();
        cqe.owner = CqeOwner::send(Opcode::SEND);
        cqe.set_opcode(CqeOpcode(0xf6));
        cqe.set_owner(true);
        assert_eq!(cqe.as_bytes()[0x1f], 0xd6);
        assert_eq!(cqe.opcode(), CqeOpcode::RESIZE);
    }

    #[test]
    fn status_bits_of_linux_are_at_their_places() {
        let status = [
            (6, CqeStatus::new().with_ipv4(true)),
            (7, CqeStatus::new().with_ipv4_fragment(true)),
            (8, CqeStatus::new().with_ipv6(true)),
            (9, CqeStatus::new().with_ipv4_options(true)),
            (10, CqeStatus::new().with_tcp(true)),
            (11, CqeStatus::new().with_udp(true)),
            (12, CqeStatus::new().with_ip_ok(true)),
        ];
        for (bit, word) in status {
            assert_eq!(word.into_bits().get(), 1 << bit);
        }
        assert_eq!(CqePacket::new().with_l4_ok(true).into_bits(), 1 << 2);
        assert_eq!(CqePacket::new().with_bad_fcs(true).into_bits(), 1 << 4);
        assert_eq!(CqePacket::new().with_snap(true).with_llc(true).into_bits(), 3);
    }

    #[test]
    fn error_has_vendor_code_at_1a_and_syndrome_at_1b() {
        let qp = CqeQp::new().with_qpn(0x40);
        let error =
            ErrorCqe::new(qp, 0x0102, true, Syndrome::REMOTE_ACCESS_ERR, VendorError::REMOTE_ACCESS_ERR);
        let bytes = error.as_bytes();
        assert_eq!(bytes[0x00..0x04], [0, 0, 0, 0x40]);
        assert_eq!(bytes[0x18..0x20], [1, 2, 0x88, 0x13, 0, 0, 0, 0x5e]);
        assert_eq!((error.syndrome(), error.vendor_error()), (Syndrome(0x13), VendorError(0x88)));
    }

    #[test]
    fn error_is_the_same_bytes_as_an_entry() {
        let qp = CqeQp::new().with_qpn(0x40);
        let error = ErrorCqe::new(qp, 7, false, Syndrome::WR_FLUSH_ERR, VendorError::WR_FLUSH_ERR);
        let cqe = Cqe::from(error);
        assert!(cqe.owner.is_error());
        assert_eq!(ErrorCqe::from(cqe), error);
    }

    #[test]
    fn filled_entry_is_not_the_drivers_and_no_mark() {
        let fill = CqeOwner::from_bits(CQE_FILL);
        assert!(fill.owner() && !fill.is_error() && !fill.is_resize());
        assert!(CqeOwner::new().with_opcode(CqeOpcode::RESIZE).is_resize());
    }
}
