//! Control segment: the first 16 bytes of a send WQE.

use core::mem::offset_of;

use super::WQE_UNIT_BYTES;
use crate::{U16, U32};

open_enum! {
    /// Operation of a send WQE (5 bits); also the opcode of its CQE.
    pub enum Opcode: u8 {
        /// No operation.
        NOP = 0x00,
        /// SEND with invalidate.
        SEND_INVALIDATE = 0x01,
        /// RDMA write.
        RDMA_WRITE = 0x08,
        /// RDMA write with immediate.
        RDMA_WRITE_IMM = 0x09,
        /// SEND.
        SEND = 0x0a,
        /// SEND with immediate.
        SEND_IMM = 0x0b,
        /// Large send: the device cuts the message to packets.
        LSO = 0x0e,
        /// RDMA read.
        RDMA_READ = 0x10,
        /// Atomic compare and swap.
        ATOMIC_CS = 0x11,
        /// Atomic fetch and add.
        ATOMIC_FA = 0x12,
        /// Masked atomic compare and swap.
        MASKED_ATOMIC_CS = 0x14,
        /// Masked atomic fetch and add.
        MASKED_ATOMIC_FA = 0x15,
        /// Bind a memory window.
        BIND_MW = 0x18,
        /// Fast register a region.
        FAST_REGISTER = 0x19,
        /// Local invalidate.
        LOCAL_INVALIDATE = 0x1b,
        /// Configuration, internal to firmware.
        CONFIG = 0x1f,
    }
}

open_enum! {
    /// When a send WQE has a CQE (2 bits).
    pub enum Completion: u8 {
        /// Only if it fails.
        ON_ERROR = 0,
        /// Always.
        ALWAYS = 3,
    }
}

bits! {
    /// First word of a control segment, which the driver writes last.
    pub struct CtrlOpcode: u32 {
        /// Owner bit. The WQE is the device's when the bit equals the parity of the pass over the queue,
        /// 0 in the first; the driver sets it to 1 before first use.
        pub owner: bool,
        #[bits(1)]
        __: u32,
        /// No completion with error for a NOP ("NEC").
        pub no_error_completion: bool,
        /// Compute the checksum of the inner IP header (tunnels).
        pub inner_ip_checksum: bool,
        /// Compute the inner layer 4 checksum (tunnels).
        pub inner_l4_checksum: bool,
        #[bits(3)]
        __: u32,
        /// Counter of the WQE, if it was copied to a BlueFlame register; a device ignores it.
        #[bits(16)]
        pub blue_flame_index: u16,
        #[bits(1)]
        __: u32,
        /// The LSO header segment is longer than a chunk.
        pub large_header: bool,
        #[bits(1)]
        __: u32,
        /// Operation.
        #[bits(5)]
        pub opcode: Opcode,
    }
}

bits! {
    /// Second word of a control segment.
    pub struct CtrlSize: u32 {
        /// Number of the QP, if the WQE was copied to a BlueFlame register; a device ignores it. Raw
        /// Ethernet has VLAN tag (bits 23:8) and insert bits (7, 6) here.
        #[bits(24)]
        pub blue_flame_qpn: u32,
        #[bits(1)]
        __: u32,
        /// Start after all earlier reads and atomics are done.
        pub fence: bool,
        /// Size of the WQE in units of 16 bytes, control included.
        #[bits(6)]
        pub units: u32,
    }
}

impl CtrlSize {
    /// Size of the WQE in bytes: 0 to 1008.
    pub const fn bytes(self) -> u32 {
        self.units() * WQE_UNIT_BYTES
    }
}

bits! {
    /// Third word of a control segment.
    pub struct CtrlFlags: u32 {
        /// XRC: number of the SRQ at the other end. Raw Ethernet: the first two bytes of the destination
        /// MAC, in bits 23:8.
        #[bits(24)]
        pub remote_srqn: u32,
        /// Start after all earlier WQEs are done ("SO").
        pub strong_order: bool,
        /// Fibre Channel over InfiniBand: compute the CRC.
        pub fcoib_crc: bool,
        /// Compute the TCP or UDP checksum.
        pub l4_checksum: bool,
        /// Compute the checksum of the IP header.
        pub ip_checksum: bool,
        /// When there is a CQE ("C").
        #[bits(2)]
        pub completion: Completion,
        /// Solicited event at the other end ("SE"). Raw Ethernet: no ICRC.
        pub solicited: bool,
        /// Loop the packets back ("FL").
        pub force_loopback: bool,
    }
}

wire! {
    size = 16;
    /// Control segment of a send WQE.
    pub struct CtrlSeg {
        /// Owner and operation.
        pub opcode: CtrlOpcode,
        /// Size and fence.
        pub size: CtrlSize,
        /// Flags.
        pub flags: CtrlFlags,
        /// Immediate data, whose bytes go out as they lie here; or the rkey to invalidate at the other end,
        /// a number. Raw Ethernet: the last four bytes of the destination MAC.
        pub immediate: U32,
    }
}

bits! {
    /// Third word of the control segment of a special QP.
    pub struct MlxCtrlFlags: u32 {
        #[bits(14)]
        __: u32,
        /// Send on VL 15.
        pub vl15: bool,
        /// Take the source LID from the header; from the port otherwise ("SLR").
        pub header_slid: bool,
        /// Static rate.
        #[bits(4)]
        pub static_rate: u8,
        /// Service level.
        #[bits(4)]
        pub sl: u8,
        #[bits(3)]
        __: u32,
        /// Leave the last four bytes as they are; they are replaced by the ICRC otherwise.
        pub keep_icrc: bool,
        /// When there is a CQE ("C").
        #[bits(2)]
        pub completion: Completion,
        #[bits(1)]
        __: u32,
        /// Loop the packet back ("FL").
        pub force_loopback: bool,
    }
}

wire! {
    size = 16;
    /// Control segment of a send WQE of a special QP (QP0, QP1).
    pub struct MlxCtrlSeg {
        /// Owner and operation, which is SEND.
        pub opcode: CtrlOpcode,
        /// Size.
        pub size: CtrlSize,
        /// Flags.
        pub flags: MlxCtrlFlags,
        /// Destination LID, as in the header.
        pub remote_lid: U16,
        __0: [u8; 2],
    }
}

const _: () = {
    assert!(offset_of!(CtrlSeg, size) == 0x04);
    assert!(offset_of!(CtrlSeg, flags) == 0x08);
    assert!(offset_of!(CtrlSeg, immediate) == 0x0c);
    assert!(offset_of!(MlxCtrlSeg, flags) == 0x08);
    assert!(offset_of!(MlxCtrlSeg, remote_lid) == 0x0c);
};

#[cfg(test)]
mod tests {
    use zerocopy::{FromBytes, FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn control_of_a_signalled_send_has_its_bytes() {
        let mut ctrl = CtrlSeg::new_zeroed();
        ctrl.opcode = CtrlOpcode::new().with_owner(true).with_opcode(Opcode::SEND_IMM);
        ctrl.size = CtrlSize::new().with_fence(true).with_units(3);
        ctrl.flags = CtrlFlags::new()
            .with_remote_srqn(0x12_3456)
            .with_completion(Completion::ALWAYS)
            .with_solicited(true);
        ctrl.immediate = U32::from_bytes([1, 2, 3, 4]);
        assert_eq!(ctrl.as_bytes(), [0x80, 0, 0, 0x0b, 0, 0, 0, 0x43, 0x12, 0x34, 0x56, 0x0e, 1, 2, 3, 4]);
        assert_eq!(ctrl.size.bytes(), 48);
    }

    #[test]
    fn control_with_blue_flame_remnants_reads_as_without() {
        let ctrl =
            CtrlSeg::read_from_bytes(&[0x00, 0xab, 0xcd, 0x0a, 0, 0, 0x40, 0x02, 0, 0, 0, 0, 0, 0, 0, 0])
                .unwrap();
        assert_eq!((ctrl.opcode.owner(), ctrl.opcode.opcode()), (false, Opcode::SEND));
        assert_eq!((ctrl.opcode.blue_flame_index(), ctrl.size.blue_flame_qpn()), (0xabcd, 0x40));
        assert_eq!((ctrl.size.fence(), ctrl.size.units()), (false, 2));
    }

    #[test]
    fn flags_of_linux_are_at_their_places() {
        assert_eq!(CtrlOpcode::new().with_no_error_completion(true).into_bits().get(), 1 << 29);
        assert_eq!(CtrlOpcode::new().with_inner_ip_checksum(true).into_bits().get(), 1 << 28);
        assert_eq!(CtrlOpcode::new().with_inner_l4_checksum(true).into_bits().get(), 1 << 27);
        assert_eq!(CtrlOpcode::new().with_large_header(true).into_bits().get(), 1 << 6);
        assert_eq!(CtrlFlags::new().with_strong_order(true).into_bits().get(), 1 << 7);
        assert_eq!(CtrlFlags::new().with_l4_checksum(true).into_bits().get(), 1 << 5);
        assert_eq!(CtrlFlags::new().with_ip_checksum(true).into_bits().get(), 1 << 4);
        assert_eq!(CtrlFlags::new().with_force_loopback(true).into_bits().get(), 1);
    }

    #[test]
    fn control_of_a_special_qp_has_its_bytes() {
        let mut ctrl = MlxCtrlSeg::new_zeroed();
        ctrl.opcode = CtrlOpcode::new().with_opcode(Opcode::SEND);
        ctrl.size = CtrlSize::new().with_units(0x3f);
        ctrl.flags = MlxCtrlFlags::new()
            .with_vl15(true)
            .with_header_slid(true)
            .with_static_rate(2)
            .with_sl(5)
            .with_keep_icrc(true)
            .with_completion(Completion::ALWAYS)
            .with_force_loopback(true);
        ctrl.remote_lid = U16::new(0xffff);
        assert_eq!(ctrl.as_bytes(), [0, 0, 0, 0x0a, 0, 0, 0, 0x3f, 0, 0x03, 0x25, 0x1d, 0xff, 0xff, 0, 0]);
    }
}
