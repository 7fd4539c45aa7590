//! The capability lists of the card, at the offsets of a CX354A.
//!
//! Register values follow the PCI Express Base Specification 3.0, chapter 7; what is optional is as on a
//! ConnectX-3: PCIe 3.0 x8, payloads of up to 512 bytes, function-level reset.

use mlx4_wire::regs::{MSIX_PBA_OFFSET, MSIX_TABLE_OFFSET};

use super::config::{ConfigParams, Layout};

/// Offset of the first capability.
pub(super) const FIRST: u8 = PM;

const PM: u8 = 0x40;
const VPD: u8 = 0x48;
const PCIE: u8 = 0x60;
const MSIX: u8 = 0x9c;
const VENDOR: u8 = 0xc0;
const VENDOR_BYTES: u8 = 0x18;

/// Power-management control and status.
pub(super) const PM_CONTROL: usize = PM as usize + 4;
/// VPD address; the data follow.
pub(super) const VPD_ADDRESS: usize = VPD as usize + 2;
/// MSI-X message control.
pub(super) const MSIX_CONTROL: usize = MSIX as usize + 2;
/// Device control of the PCI Express capability.
pub(super) const PCIE_DEVICE_CONTROL: usize = PCIE as usize + 8;

const ARI: u16 = 0x100;
const SERIAL: u16 = 0x148;
const AER: u16 = 0x154;
const SECONDARY: u16 = 0x18c;

/// Lays out every capability.
pub(super) fn lay_out(layout: &mut Layout, params: &ConfigParams) {
    power_management(layout);
    capability(layout, VPD, 0x03, MSIX);
    layout.word(VPD_ADDRESS, 0, 0xffff);
    layout.dword(VPD_ADDRESS + 2, 0, 0xffff_ffff);
    msix(layout, params.msix_vectors);
    express(layout);
    capability(layout, VENDOR, 0x09, 0);
    layout.fixed(usize::from(VENDOR) + 2, &[VENDOR_BYTES]);
    extended(layout, ARI, 0x000e, 1, SERIAL);
    extended(layout, SERIAL, 0x0003, 1, AER);
    layout.fixed(usize::from(SERIAL) + 4, &params.node_guid.to_le_bytes());
    error_reporting(layout);
    // Lane equalization and lane errors, which a link of software doesn't have.
    extended(layout, SECONDARY, 0x0019, 1, 0);
}

fn capability(layout: &mut Layout, at: u8, id: u8, next: u8) {
    layout.fixed(usize::from(at), &[id, next]);
}

fn extended(layout: &mut Layout, at: u16, id: u16, version: u16, next: u16) {
    layout.word(usize::from(at), id, 0);
    layout.word(usize::from(at) + 2, next << 4 | version, 0);
}

/// Version 3, D0 and D3hot only, no PME; D3hot to D0 keeps the function's state.
fn power_management(layout: &mut Layout) {
    const VERSION: u16 = 3;
    const NO_SOFT_RESET: u16 = 1 << 3;
    capability(layout, PM, 0x01, VPD);
    layout.word(usize::from(PM) + 2, VERSION, 0);
    layout.word(PM_CONTROL, NO_SOFT_RESET, 0x0003);
}

fn msix(layout: &mut Layout, vectors: u16) {
    const ENABLE_AND_MASK: u16 = 0xc000;
    capability(layout, MSIX, 0x11, PCIE);
    layout.word(MSIX_CONTROL, vectors - 1, ENABLE_AND_MASK);
    // The low three bits name the BAR, which is 0. Both offsets are below 1 MiB.
    let places = [(4, MSIX_TABLE_OFFSET), (8, MSIX_PBA_OFFSET)];
    for (offset, place) in places {
        layout.fixed(usize::from(MSIX) + offset, &place.to_le_bytes()[..4]);
    }
}

/// Version 2, endpoint.
fn express(layout: &mut Layout) {
    const AT: usize = PCIE as usize;
    const PAYLOAD_512: u32 = 2;
    const EXTENDED_TAG: u32 = 1 << 5;
    const ROLE_BASED_ERRORS: u32 = 1 << 15;
    const FLR: u32 = 1 << 28;
    const SPEED_8GT: u16 = 3;
    const WIDTH_8: u16 = 8 << 4;
    capability(layout, PCIE, 0x10, VENDOR);
    layout.word(AT + 0x02, 0x0002, 0);
    layout.dword(AT + 0x04, PAYLOAD_512 | EXTENDED_TAG | ROLE_BASED_ERRORS | FLR, 0);
    // Relaxed ordering, no-snoop, and read requests of 512 bytes; all but phantom functions can be set.
    layout.word(PCIE_DEVICE_CONTROL, 0x2810, 0xfdff);
    layout.status(AT + 0x0a, &[0x0f, 0]);
    // ASPM optionality, port number 8, no ASPM.
    layout.dword(AT + 0x0c, 8 << 24 | 1 << 22 | u32::from(WIDTH_8 | SPEED_8GT), 0);
    layout.word(AT + 0x10, 0, 0x00cb);
    // Slot clock.
    layout.word(AT + 0x12, 1 << 12 | WIDTH_8 | SPEED_8GT, 0);
    // Completion timeouts of all ranges, which can be disabled.
    layout.dword(AT + 0x24, 0x001f, 0);
    layout.word(AT + 0x28, 0, 0x001f);
    // 2.5, 5 and 8 GT/s; equalization complete.
    layout.dword(AT + 0x2c, 0x000e, 0);
    layout.word(AT + 0x30, SPEED_8GT, 0x000f);
    layout.word(AT + 0x32, 0x001e, 0);
}

/// Version 2, without ECRC and TLP prefix log.
fn error_reporting(layout: &mut Layout) {
    const AT: usize = AER as usize;
    const UNCORRECTABLE: u32 = 0x007f_f030;
    const CORRECTABLE: u32 = 0x0000_f1c1;
    extended(layout, AER, 0x0001, 2, SECONDARY);
    layout.status(AT + 0x04, &UNCORRECTABLE.to_le_bytes());
    layout.dword(AT + 0x08, 0, UNCORRECTABLE);
    layout.dword(AT + 0x0c, 0x0046_2030, UNCORRECTABLE);
    layout.status(AT + 0x10, &CORRECTABLE.to_le_bytes());
    layout.dword(AT + 0x14, 0x0000_2000, CORRECTABLE);
}
