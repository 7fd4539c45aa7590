//! The host command register: posting a command, and its completion by polling.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mlx4_pci::PciDevice;
use mlx4_wire::U32;
use mlx4_wire::cmd::Status;
use mlx4_wire::regs::{HCR_BYTES, HCR_OFFSET, Hcr, HcrControl};
use zerocopy::{FromZeros, IntoBytes};

use super::Posting;
use crate::error::CommandFailure;

const CONTROL: u64 = HCR_OFFSET + HCR_BYTES - 4;
const OUT_PARAM: u64 = HCR_OFFSET + std::mem::offset_of!(Hcr, out_param) as u64;
/// What every register of a device that is gone reads as.
pub(crate) const ALL_ONES: u32 = u32::MAX;
/// How often the register is read without a pause before it is read with pauses.
const SPINS: u32 = 100;
const PAUSE: Duration = Duration::from_micros(50);

/// The host command register. One command at a time is posted through it.
#[derive(Debug)]
pub(super) struct CommandRegister {
    device: Arc<dyn PciDevice>,
    /// The toggle of the next command.
    toggle: bool,
}

impl CommandRegister {
    /// The register of a device that was just reset.
    pub(super) fn new(device: Arc<dyn PciDevice>) -> Self {
        Self { device, toggle: true }
    }

    /// Posts a command as soon as the register is free, which may take until the deadline.
    pub(super) fn post(&mut self, posting: &Posting, wait: Duration) -> Result<(), CommandFailure> {
        self.wait(wait, |control, toggle| !control.go() && control.toggle() != toggle)?
            .ok_or(CommandFailure::Busy(wait))?;
        let mut hcr = Hcr::new_zeroed();
        hcr.in_param.set(posting.input);
        hcr.in_modifier.set(posting.modifier);
        hcr.out_param.set(posting.output);
        hcr.token.set(posting.token);
        hcr.control = HcrControl::new()
            .with_go(true)
            .with_event(posting.event)
            .with_toggle(self.toggle)
            .with_opmod(posting.opmod & 0xf)
            .with_opcode(posting.opcode);
        // The seam keeps the order, so the word that posts is last.
        for (offset, word) in (HCR_OFFSET..).step_by(4).zip(hcr.as_bytes().chunks_exact(4)) {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(word);
            self.device.set_register(offset, u32::from_be_bytes(bytes)).map_err(CommandFailure::Register)?;
        }
        self.toggle = !self.toggle;
        Ok(())
    }

    /// Waits until the command that was posted last is done: its status and immediate result.
    pub(super) fn complete(&self, wait: Duration) -> Result<(Status, u64), CommandFailure> {
        let done = self.wait(wait, |control, _| !control.go())?;
        let control = done.ok_or(CommandFailure::Timeout(wait))?;
        let high = u64::from(self.read(OUT_PARAM)?);
        let low = u64::from(self.read(OUT_PARAM + 4)?);
        Ok((control.status(), high << 32 | low))
    }

    /// Whether the device still holds a command that it hasn't accepted.
    pub(super) fn is_stuck(&self) -> bool {
        self.read(CONTROL).map_or(true, |word| HcrControl::from_bits(U32::new(word)).go())
    }

    /// Reads the control word until it is as wanted; `None` if it isn't in time.
    fn wait(
        &self,
        wait: Duration,
        wanted: impl Fn(HcrControl, bool) -> bool,
    ) -> Result<Option<HcrControl>, CommandFailure> {
        let deadline = Instant::now() + wait;
        for spins in 0.. {
            let word = self.read(CONTROL)?;
            if word == ALL_ONES {
                return Err(CommandFailure::Gone);
            }
            let control = HcrControl::from_bits(U32::new(word));
            if wanted(control, self.toggle) {
                return Ok(Some(control));
            }
            if Instant::now() >= deadline {
                break;
            }
            if spins > SPINS {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(None)
    }

    fn read(&self, offset: u64) -> Result<u32, CommandFailure> {
        self.device.register(offset).map_err(CommandFailure::Register)
    }
}
