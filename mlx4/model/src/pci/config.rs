//! The configuration space as a whole: header, access, and what accesses bring about.

use std::fmt;

use mlx4_wire::regs::{
    BAR0_BYTES, BAR2_BYTES, CLASS_INFINIBAND, DeviceId, MSIX_VECTORS, SUBSYSTEM_CX353A, SUBSYSTEM_CX354A,
    VENDOR_ID,
};

use super::caps::{self, PCIE_DEVICE_CONTROL, PM_CONTROL, VPD_ADDRESS};
use super::vpd::Vpd;

/// Bytes of PCI Express configuration space.
pub(super) const CONFIG_BYTES: usize = 4096;

/// Offsets in the header (type 0).
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CACHE_LINE: usize = 0x0c;
const BAR0: usize = 0x10;
const BAR2: usize = 0x18;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

/// Command register.
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_PARITY: u16 = 1 << 6;
const COMMAND_SERR: u16 = 1 << 8;
const COMMAND_INTX_OFF: u16 = 1 << 10;

/// Status register: a capability list, and the bits that a one clears.
const STATUS_CAPABILITIES: u16 = 1 << 4;
const STATUS_ERRORS: u16 = 0xf900;

/// Memory BAR: 64 bits wide; prefetchable.
const BAR_64: u64 = 0x4;
const BAR_PREFETCH: u64 = 0x8;

/// Device control of the PCI Express capability: start a function-level reset.
const DEVICE_CONTROL_FLR: u16 = 1 << 15;

/// Power-management control: the power state, of which there are 0 (D0) and 3 (D3hot).
const POWER_STATE: u16 = 0x3;

/// VPD address register: the flag that tells read from write, and done from not.
const VPD_FLAG: u16 = 1 << 15;

/// What a card is to look like.
#[derive(Clone, Debug)]
pub struct ConfigParams {
    /// Node GUID, shown as the device's serial number.
    pub node_guid: u64,
    /// Ports, 1 (CX353A) or 2 (CX354A).
    pub ports: u8,
    /// Bytes of BAR 2, a power of two from 1 MiB to 1 GiB.
    pub bar2_size: u64,
    /// MSI-X vectors, 1 to 128.
    pub msix_vectors: u16,
}

impl ConfigParams {
    /// A card as delivered: BAR 2 of 8 MiB, 128 vectors.
    pub fn new(node_guid: u64, ports: u8) -> Self {
        Self { node_guid, ports, bar2_size: BAR2_BYTES, msix_vectors: MSIX_VECTORS }
    }
}

/// There is no such card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Neither one nor two.
    #[error("a ConnectX-3 has 1 or 2 ports, not {0}")]
    Ports(u8),
    /// Not a power of two from 1 MiB to 1 GiB.
    #[error("bar 2 can't have {0:#x} bytes")]
    Bar2Size(u64),
    /// None, or more than fit.
    #[error("the msi-x table has 1 to 128 vectors, not {0}")]
    Vectors(u16),
}

/// What a write to configuration space asks the function to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigEffects {
    /// A function-level reset was started: reset the function, then call [`ConfigSpace::wipe`].
    pub flr_requested: bool,
    /// Bus mastering went on or off; see [`ConfigSpace::bus_master`].
    pub bus_master_changed: bool,
}

/// The configuration space of one card. See the [module](super).
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: Box<[u8; CONFIG_BYTES]>,
    layout: Box<Layout>,
    vpd: Vpd,
}

/// Values after reset, and which bits software may change.
#[derive(Clone)]
pub(super) struct Layout {
    reset: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    clear_by_one: [u8; CONFIG_BYTES],
}

impl Layout {
    /// Sets bytes that software can't change. Offsets are constants of this module, inside the space.
    pub(super) fn fixed(&mut self, offset: usize, value: &[u8]) {
        put(&mut self.reset, offset, value);
    }

    /// Sets a 16-bit register and the bits of it that software may change.
    pub(super) fn word(&mut self, offset: usize, reset: u16, writable: u16) {
        put(&mut self.reset, offset, &reset.to_le_bytes());
        put(&mut self.writable, offset, &writable.to_le_bytes());
    }

    /// Sets a 32-bit register and the bits of it that software may change.
    pub(super) fn dword(&mut self, offset: usize, reset: u32, writable: u32) {
        put(&mut self.reset, offset, &reset.to_le_bytes());
        put(&mut self.writable, offset, &writable.to_le_bytes());
    }

    /// Names the bits of a register that software clears by writing ones.
    pub(super) fn status(&mut self, offset: usize, bits: &[u8]) {
        put(&mut self.clear_by_one, offset, bits);
    }
}

fn put(to: &mut [u8; CONFIG_BYTES], offset: usize, value: &[u8]) {
    for (byte, new) in to.iter_mut().skip(offset).zip(value) {
        *byte = *new;
    }
}

impl ConfigSpace {
    /// A card after power-on.
    pub fn new(params: &ConfigParams) -> Result<Self, ConfigError> {
        check(params)?;
        let zero = [0; CONFIG_BYTES];
        let mut layout = Box::new(Layout { reset: zero, writable: zero, clear_by_one: zero });
        header(&mut layout, params);
        caps::lay_out(&mut layout, params);
        Ok(Self { bytes: Box::new(layout.reset), layout, vpd: Vpd::new(params) })
    }

    /// Reads bytes; those past the end are zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let start = usize::try_from(offset).unwrap_or(CONFIG_BYTES);
        for (byte, value) in data.iter_mut().zip(self.bytes.iter().skip(start)) {
            *byte = *value;
        }
    }

    /// Writes bytes, of which only the writable bits change.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> ConfigEffects {
        let start = usize::try_from(offset).unwrap_or(CONFIG_BYTES);
        let (master, power) = (self.bus_master(), self.word(PM_CONTROL));
        let layout = &*self.layout;
        let masks = layout.writable.iter().zip(&layout.clear_by_one);
        for ((byte, (writable, clear)), new) in self.bytes.iter_mut().zip(masks).skip(start).zip(data) {
            *byte = (*byte & !writable | new & writable) & !(new & clear);
        }
        if !matches!(self.word(PM_CONTROL) & POWER_STATE, 0 | 3) {
            self.set_word(PM_CONTROL, power);
        }
        let written = start..start.saturating_add(data.len());
        if written.contains(&(VPD_ADDRESS + 1)) {
            self.access_vpd();
        }
        let control = self.word(PCIE_DEVICE_CONTROL);
        self.set_word(PCIE_DEVICE_CONTROL, control & !DEVICE_CONTROL_FLR);
        ConfigEffects {
            flr_requested: control & DEVICE_CONTROL_FLR != 0,
            bus_master_changed: self.bus_master() != master,
        }
    }

    /// What a reset of the function does, be it FLR or the card's reset register: every register has its
    /// reset value again, so BARs and command are zero, MSI-X is off, and device control is at its default.
    pub fn wipe(&mut self) {
        *self.bytes = self.layout.reset;
    }

    /// Whether the function may access memory.
    pub fn bus_master(&self) -> bool {
        self.word(COMMAND) & COMMAND_MASTER != 0
    }

    /// Carries out what was written to the VPD address: a read of four bytes, or a write, which the
    /// read-only data ignores. The flag is turned over when it is done, which is at once.
    fn access_vpd(&mut self) {
        let address = self.word(VPD_ADDRESS);
        if address & VPD_FLAG == 0 {
            let data = self.vpd.read(address & !VPD_FLAG);
            put(&mut self.bytes, VPD_ADDRESS + 2, &data);
        }
        self.set_word(VPD_ADDRESS, address ^ VPD_FLAG);
    }

    /// A register at an offset that is a constant of this module, inside the space.
    fn word(&self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset as u64, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn set_word(&mut self, offset: usize, value: u16) {
        put(&mut self.bytes, offset, &value.to_le_bytes());
    }
}

impl fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigSpace")
            .field("command", &format_args!("{:#06x}", self.word(COMMAND)))
            .finish_non_exhaustive()
    }
}

fn check(params: &ConfigParams) -> Result<(), ConfigError> {
    let ConfigParams { ports, bar2_size, msix_vectors, .. } = *params;
    if !(1..=2).contains(&ports) {
        return Err(ConfigError::Ports(ports));
    }
    if !bar2_size.is_power_of_two() || !(1 << 20..=1 << 30).contains(&bar2_size) {
        return Err(ConfigError::Bar2Size(bar2_size));
    }
    if !(1..=MSIX_VECTORS).contains(&msix_vectors) {
        return Err(ConfigError::Vectors(msix_vectors));
    }
    Ok(())
}

fn header(layout: &mut Layout, params: &ConfigParams) {
    layout.fixed(0x00, &VENDOR_ID.to_le_bytes());
    layout.fixed(0x02, &DeviceId::MT27500.0.to_le_bytes());
    let writable = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_OFF;
    layout.word(COMMAND, 0, writable);
    layout.word(STATUS, STATUS_CAPABILITIES, 0);
    layout.status(STATUS, &STATUS_ERRORS.to_le_bytes());
    // Revision 0, then interface, subclass and class.
    layout.fixed(0x08, &(CLASS_INFINIBAND << 8).to_le_bytes());
    layout.word(CACHE_LINE, 0, 0x00ff);
    bar(layout, BAR0, BAR0_BYTES, BAR_64);
    bar(layout, BAR2, params.bar2_size, BAR_64 | BAR_PREFETCH);
    let subsystem = if params.ports == 2 { SUBSYSTEM_CX354A } else { SUBSYSTEM_CX353A };
    layout.fixed(SUBSYSTEM, &VENDOR_ID.to_le_bytes());
    layout.fixed(SUBSYSTEM + 2, &subsystem.to_le_bytes());
    layout.fixed(CAPABILITIES, &[caps::FIRST]);
    // The line is software's own note; the pin is INTA.
    layout.word(INTERRUPT_LINE, 0x0100, 0x00ff);
}

/// A 64-bit BAR, whose address bits below its size can't be set.
fn bar(layout: &mut Layout, offset: usize, size: u64, kind: u64) {
    put(&mut layout.reset, offset, &kind.to_le_bytes());
    put(&mut layout.writable, offset, &(!(size - 1)).to_le_bytes());
}
