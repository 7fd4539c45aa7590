//! The catastrophic-error buffer: the only place in which the device tells that it has failed.

use std::fmt::Write as _;
use std::sync::Arc;

use mlx4_pci::PciDevice;
use mlx4_wire::regs::OWNER_OFFSET;

use crate::caps::Firmware;
use crate::cmd::ALL_ONES;

/// Watches for a failure of the device.
#[derive(Debug)]
pub(crate) struct Health {
    device: Arc<dyn PciDevice>,
    buffer: u64,
    words: u32,
}

impl Health {
    pub(crate) fn new(device: Arc<dyn PciDevice>, firmware: &Firmware) -> Self {
        Self { device, buffer: firmware.error_buffer, words: firmware.error_words }
    }

    /// What is wrong with the device, if something is.
    pub(crate) fn check(&self) -> Option<String> {
        // The ownership word is never all ones while the device is there.
        let offset = if self.words == 0 { OWNER_OFFSET } else { self.buffer };
        match self.device.register(offset) {
            Ok(ALL_ONES) => Some(String::from("the device is gone: its registers read as all ones")),
            Ok(0) => None,
            Ok(_) if self.words == 0 => None,
            Ok(code) => Some(format!("catastrophic error {code:#x}; error buffer:{}", self.dump())),
            Err(error) => Some(error.to_string()),
        }
    }

    fn dump(&self) -> String {
        let mut text = String::new();
        for word in 0..self.words {
            if let Ok(value) = self.device.register(self.buffer + 4 * u64::from(word)) {
                // Writing to a string can't fail.
                let _infallible = write!(text, " {value:08x}");
            }
        }
        text
    }
}
