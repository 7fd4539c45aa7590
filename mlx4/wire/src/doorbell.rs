//! Doorbells (stores into a UAR page) and doorbell records (words in host memory).
//!
//! A UAR page is 4 KiB of BAR 2. Nothing in it is ever read by a driver. All words are big endian.
//!
//! Sources: Linux `include/linux/mlx4/doorbell.h` and `cq.h`; rdma-core `providers/mlx4`; iPXE
//! `hermonprm_{send,cq,eq}_doorbell` and the doorbell records.

use crate::Number24;

/// Size of a UAR page in bytes.
pub const UAR_PAGE_BYTES: u32 = 0x1000;

/// Offset of the send doorbell in a UAR page; a [`SendDoorbell`], 4 bytes.
pub const SEND_DOORBELL: u32 = 0x14;

/// Offset of the CQ doorbell in a UAR page; a [`CqDoorbell`], 8 bytes (one store, or two of 4 bytes in
/// ascending order).
pub const CQ_DOORBELL: u32 = 0x20;

/// Offset of the first EQ doorbell in a UAR page; an [`EqDoorbell`], 4 bytes.
pub const EQ_DOORBELL: u32 = 0x800;

/// Bytes from one EQ doorbell of a page to the next.
pub const EQ_DOORBELL_STRIDE: u32 = 8;

/// How many EQs have their doorbell in one UAR page.
pub const EQS_PER_UAR: u32 = 4;

/// The UAR page in which the doorbell of EQ `eqn` lies.
pub const fn eq_doorbell_uar(eqn: u32) -> u32 {
    eqn / EQS_PER_UAR
}

/// The offset of the doorbell of EQ `eqn` in its UAR page, in bytes.
pub const fn eq_doorbell_offset(eqn: u32) -> u32 {
    EQ_DOORBELL + EQ_DOORBELL_STRIDE * (eqn % EQS_PER_UAR)
}

/// The EQ whose doorbell lies at `offset` (bytes) of UAR page `uar`; `None` if none does, also when the
/// number would not fit in 24 bits.
pub const fn eqn_at(uar: u32, offset: u32) -> Option<u32> {
    let Some(from_first) = offset.checked_sub(EQ_DOORBELL) else { return None };
    let slot = from_first / EQ_DOORBELL_STRIDE;
    if !from_first.is_multiple_of(EQ_DOORBELL_STRIDE)
        || slot >= EQS_PER_UAR
        || uar > Number24::MAX / EQS_PER_UAR
    {
        return None;
    }
    Some(uar * EQS_PER_UAR + slot)
}

bits! {
    /// The send doorbell: new WQEs may stand in the send queue of the QP.
    ///
    /// It carries neither a count nor an index.
    pub struct SendDoorbell: u32 {
        /// Number of the QP.
        #[bits(24)]
        pub qpn: u32,
        #[bits(8)]
        __: u32,
    }
}

open_enum! {
    /// What an arm request asks a CQ to notify about (3 bits).
    pub enum CqArmCommand: u8 {
        /// The next CQE that is solicited or an error.
        SOLICITED = 1,
        /// The next CQE of any kind.
        NEXT = 2,
        /// After a number of CQEs; named by iPXE's header, used by no driver.
        MULTIPLE = 3,
    }
}

bits! {
    /// The first word of a CQ doorbell: which CQ, and how it is armed.
    pub struct CqArm: u32 {
        #[bits(2)]
        __: u32,
        /// Arm sequence number, as in the doorbell record.
        #[bits(2)]
        pub sequence: u32,
        #[bits(1)]
        __: u32,
        /// What to notify about.
        #[bits(3)]
        pub command: CqArmCommand,
        /// Number of the CQ.
        #[bits(24)]
        pub cqn: u32,
    }
}

wire! {
    size = 8;
    /// The CQ doorbell, which arms a CQ.
    pub struct CqDoorbell {
        /// CQ, command and sequence number.
        pub arm: CqArm,
        /// Consumer index of the CQ, free running.
        pub consumer_index: Number24,
    }
}

bits! {
    /// The EQ doorbell: entries up to the index are consumed.
    pub struct EqDoorbell: u32 {
        /// Request an interrupt for the next entry (at once when one is pending).
        pub arm: bool,
        #[bits(7)]
        __: u32,
        /// Consumer index of the EQ, free running.
        #[bits(24)]
        pub consumer_index: u32,
    }
}

bits! {
    /// The second word of a CQ's doorbell record: the last arm request.
    pub struct CqArmRecord: u32 {
        #[bits(2)]
        __: u32,
        /// Arm sequence number, counted modulo 4 by the driver at each completion event.
        #[bits(2)]
        pub sequence: u32,
        #[bits(1)]
        __: u32,
        /// What to notify about.
        #[bits(3)]
        pub command: CqArmCommand,
        /// Consumer index at the time of the request, free running.
        #[bits(24)]
        pub consumer_index: u32,
    }
}

wire! {
    size = 8;
    /// The doorbell record of a CQ in host memory, aligned to 8 bytes; written by the driver only.
    pub struct CqRecord {
        /// Consumer index, free running.
        pub consumer_index: Number24,
        /// The last arm request.
        pub arm: CqArmRecord,
    }
}

/// Offset of the arm word in a [`CqRecord`], in bytes.
pub const CQ_RECORD_ARM: u64 = 4;

const _: () = assert!(core::mem::offset_of!(CqRecord, arm) as u64 == CQ_RECORD_ARM);

bits! {
    /// The doorbell record of a receive queue or an SRQ in host memory, aligned to 4 bytes; written by the
    /// driver only.
    pub struct RqRecord: u32 {
        #[bits(16)]
        __: u32,
        /// Count of the receive WQEs ever posted, modulo 65536.
        #[bits(16)]
        pub posted: u16,
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn send_doorbell_has_the_number_in_its_upper_bytes() {
        assert_eq!(SendDoorbell::new().with_qpn(0x12_3456).as_bytes(), [0x12, 0x34, 0x56, 0]);
    }

    #[test]
    fn cq_doorbell_has_sequence_command_number_then_index() {
        let mut doorbell = CqDoorbell::new_zeroed();
        doorbell.arm = CqArm::new().with_sequence(3).with_command(CqArmCommand::NEXT).with_cqn(0x00_0481);
        doorbell.consumer_index = Number24::wrapping(0x0300_0005);
        assert_eq!(doorbell.as_bytes(), [0x32, 0, 0x04, 0x81, 0, 0, 0, 5]);
    }

    #[test]
    fn cq_record_has_the_index_before_the_arm_word() {
        let mut record = CqRecord::new_zeroed();
        record.consumer_index = Number24::wrapping(7);
        record.arm =
            CqArmRecord::new().with_sequence(1).with_command(CqArmCommand::SOLICITED).with_consumer_index(7);
        assert_eq!(record.as_bytes(), [0, 0, 0, 7, 0x11, 0, 0, 7]);
    }

    #[test]
    fn eq_doorbell_arms_with_the_top_bit() {
        let doorbell = EqDoorbell::new().with_arm(true).with_consumer_index(0xab_cdef);
        assert_eq!(doorbell.as_bytes(), [0x80, 0xab, 0xcd, 0xef]);
    }

    #[test]
    fn rq_record_counts_in_its_low_half() {
        assert_eq!(RqRecord::new().with_posted(0xfffe).as_bytes(), [0, 0, 0xff, 0xfe]);
    }

    #[test]
    fn eq_doorbell_address_and_number_are_inverse() {
        for eqn in [0, 1, 3, 4, 0x7f, 0x1ff] {
            assert_eq!(eqn_at(eq_doorbell_uar(eqn), eq_doorbell_offset(eqn)), Some(eqn));
        }
        assert_eq!((eq_doorbell_uar(7), eq_doorbell_offset(7)), (1, 0x818));
    }

    #[test]
    fn eqn_at_offset_of_no_eq_doorbell_is_none() {
        for offset in [0, SEND_DOORBELL, 0x7fc, 0x804, 0x820, u32::MAX] {
            assert_eq!(eqn_at(0, offset), None, "{offset:#x}");
        }
        assert_eq!(eqn_at(u32::MAX, EQ_DOORBELL), None);
    }
}
