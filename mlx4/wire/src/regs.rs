//! What software sees of a ConnectX on PCI: identities, the two BARs, and the host command register (HCR).
//!
//! BAR0 holds registers, BAR2 the user access region (UAR): pages of 4 KiB with doorbells, then BlueFlame
//! pages. Every register is big endian. Offsets are in bytes from the start of the BAR. What is inside a UAR
//! page is in [`doorbell`].
//!
//! Registers whose place the firmware chooses (interrupt clear, error buffer, clock) are not here: their
//! offsets are in the answer of QUERY_FW, [`QueryFw`](crate::cmd::fw::QueryFw).

use core::mem::offset_of;

use crate::cmd::{Opcode, Status};
use crate::doorbell::{self, UAR_PAGE_BYTES, eq_doorbell_uar, eqn_at};
use crate::{U16, U32, U64};

/// PCI vendor id of Mellanox Technologies.
pub const VENDOR_ID: u16 = 0x15b3;

open_enum! {
    /// PCI device ids of the family (Linux `mlx4_pci_table`).
    pub enum DeviceId: u16 {
        /// ConnectX, SDR InfiniBand.
        MT25408_SDR = 0x6340,
        /// ConnectX, DDR InfiniBand.
        MT25408_DDR = 0x634a,
        /// ConnectX, QDR InfiniBand.
        MT25408_QDR = 0x6354,
        /// ConnectX or ConnectX-2, DDR InfiniBand, PCIe 2.
        MT26418 = 0x6732,
        /// ConnectX or ConnectX-2, QDR InfiniBand, PCIe 2.
        MT26428 = 0x673c,
        /// Virtual function of a ConnectX-2.
        MT25400_VF = 0x1002,
        /// ConnectX-3.
        MT27500 = 0x1003,
        /// Virtual function of a ConnectX-3 or ConnectX-3 Pro.
        MT27500_VF = 0x1004,
        /// ConnectX-3 Pro.
        MT27520 = 0x1007,
    }
}

/// PCI class code of an InfiniBand controller: class 02, subclass 07, interface 00.
pub const CLASS_INFINIBAND: u32 = 0x02_07_00;

/// PCI subsystem id of a dual-port ConnectX-3 card (CX354A).
pub const SUBSYSTEM_CX354A: u16 = 0x0050;

/// PCI subsystem id of a single-port ConnectX-3 card (CX353A).
pub const SUBSYSTEM_CX353A: u16 = 0x0051;

/// Size of BAR0 in bytes.
pub const BAR0_BYTES: u64 = 1 << 20;

/// Size of BAR2 in bytes, as ConnectX-3 cards are delivered. Firmware configuration can enlarge it.
pub const BAR2_BYTES: u64 = 8 << 20;

/// MSI-X table in BAR0.
pub const MSIX_TABLE_OFFSET: u64 = 0x7c000;

/// MSI-X pending bit array in BAR0.
pub const MSIX_PBA_OFFSET: u64 = 0x7d000;

/// Vectors of the MSI-X table on a ConnectX-3 without SR-IOV.
pub const MSIX_VECTORS: u16 = 128;

/// Host command register in BAR0, a [`Hcr`].
pub const HCR_OFFSET: u64 = 0x80680;

/// Size of the host command register in bytes.
pub const HCR_BYTES: u64 = size_of::<Hcr>() as u64;

/// Ownership word in BAR0. A read that returns zero claims the function, any other value says that a driver
/// owns it; writing zero releases it.
pub const OWNER_OFFSET: u64 = 0x8069c;

/// Software reset register in BAR0.
pub const RESET_OFFSET: u64 = 0xf0010;

/// Bit 0 of the word at [`RESET_OFFSET`]: writing one resets the device. Linux writes this value, iPXE
/// writes `0x0100_0001`.
pub const RESET_BIT: u32 = 1;

/// Reset semaphore in BAR0: reading zero takes it, a reset releases it.
pub const SEMAPHORE_OFFSET: u64 = 0xf03fc;

/// Size in bytes of the interrupt clear register, two words, at `clr_int_base` of QUERY_FW.
pub const CLR_INT_BYTES: u64 = 8;

/// UAR pages at the start of BAR2 that hold EQ doorbells and nothing else; contexts name later pages.
pub const EQ_UAR_PAGES: u32 = 128;

/// Offset in BAR2 of the doorbell of event queue `eqn`.
pub const fn eq_doorbell_offset(eqn: u32) -> u64 {
    eq_doorbell_uar(eqn) as u64 * UAR_PAGE_BYTES as u64 + doorbell::eq_doorbell_offset(eqn) as u64
}

/// The event queue whose doorbell is at `offset` in BAR2, if one is there.
pub const fn eqn_of_doorbell(offset: u64) -> Option<u32> {
    if offset >= EQ_UAR_PAGES as u64 * UAR_PAGE_BYTES as u64 {
        return None;
    }
    // The comparison has shown that it fits.
    #[allow(clippy::cast_possible_truncation)]
    let offset = offset as u32;
    eqn_at(offset / UAR_PAGE_BYTES, offset % UAR_PAGE_BYTES)
}

bits! {
    /// Last word of the host command register, at 0x18. Writing it with `go` set posts the command.
    ///
    /// PRM `hca_command_register` dword 6.
    pub struct HcrControl: u32 {
        /// Result of the command, valid when `go` is clear.
        #[bits(8)]
        pub status: Status,
        /// The device owns the register: set by the driver, cleared when the command is done (or, with
        /// `event`, accepted).
        pub go: bool,
        /// Report completion by an event on the asynchronous EQ, not in this register.
        pub event: bool,
        /// Alternates from post to post; the first command after a reset carries one.
        pub toggle: bool,
        #[bits(5)]
        __: u32,
        /// Opcode modifier, meaning by opcode.
        #[bits(4)]
        pub opmod: u8,
        /// The command.
        #[bits(12)]
        pub opcode: Opcode,
    }
}

wire! {
    size = 0x1c;
    /// Host command register, at [`HCR_OFFSET`] of BAR0 (PRM `hca_command_register`, Linux `HCR_*`).
    ///
    /// Accessed in words of 32 bits.
    pub struct Hcr {
        /// 00: input: an immediate value, or the bus address of the input mailbox.
        pub in_param: U64,
        /// 08: input modifier, meaning by opcode.
        pub in_modifier: U32,
        /// 0c: bus address of the output mailbox; the immediate result once the command is done.
        pub out_param: U64,
        /// 14: chosen by the driver, returned in the completion event.
        pub token: U16,
        _reserved16: U16,
        /// 18: status, ownership, modifier and opcode.
        pub control: HcrControl,
    }
}

const _: () = assert!(
    offset_of!(Hcr, in_modifier) == 0x08
        && offset_of!(Hcr, out_param) == 0x0c
        && offset_of!(Hcr, token) == 0x14
        && offset_of!(Hcr, control) == 0x18
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::testing::golden;

    #[test]
    fn hcr_control_bits_are_where_linux_writes_them() {
        let at = 0x18;
        golden(|h: &mut Hcr| h.control.set_status(Status::BAD_OP), at, &[0x02, 0, 0, 0]);
        golden(|h: &mut Hcr| h.control.set_go(true), at, &[0, 0x80, 0, 0]);
        golden(|h: &mut Hcr| h.control.set_event(true), at, &[0, 0x40, 0, 0]);
        golden(|h: &mut Hcr| h.control.set_toggle(true), at, &[0, 0x20, 0, 0]);
        golden(|h: &mut Hcr| h.control.set_opmod(0xf), at, &[0, 0, 0xf0, 0]);
        golden(|h: &mut Hcr| h.control.set_opcode(Opcode::MAP_FA), at, &[0, 0, 0x0f, 0xff]);
    }

    #[test]
    fn hcr_words_are_where_linux_writes_them() {
        golden(|h: &mut Hcr| h.in_param.set(1), 0x07, &[1]);
        golden(|h: &mut Hcr| h.in_modifier.set(0x0102_0304), 0x08, &[1, 2, 3, 4]);
        golden(|h: &mut Hcr| h.out_param.set(0x0102_0304_0506_0708), 0x0c, &[1, 2, 3, 4, 5, 6, 7, 8]);
        golden(|h: &mut Hcr| h.token.set(0xabcd), 0x14, &[0xab, 0xcd]);
    }

    #[test]
    fn eq_doorbell_is_four_to_a_page() {
        assert_eq!(eq_doorbell_offset(0), 0x800);
        assert_eq!(eq_doorbell_offset(7), 0x1818);
        assert_eq!(eq_doorbell_offset(8), 0x2800);
    }

    #[test]
    fn eqn_of_doorbell_is_the_inverse_and_refuses_the_rest() {
        for eqn in 0..512 {
            assert_eq!(eqn_of_doorbell(eq_doorbell_offset(eqn)), Some(eqn));
        }
        for offset in [0x7f8, 0x804, 0x820, 0x0, 128 * 0x1000 + 0x800, u64::MAX] {
            assert_eq!(eqn_of_doorbell(offset), None, "{offset:#x}");
        }
    }
}
