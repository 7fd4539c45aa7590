//! Where a function is on the PCI bus.

use std::fmt;
use std::str::FromStr;

use super::OpenError;

/// What a path of a VFIO device begins with.
const SCHEME: &str = "vfio:";

/// Address of a PCI function: `vfio:0000:01:00.0` as a path, `0000:01:00.0` in sysfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// The address that VFIO's description of a bus reset gives.
    pub(super) fn new(domain: u32, bus: u8, devfn: u8) -> Self {
        Self { domain, bus, device: devfn >> 3, function: devfn & 7 }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix(SCHEME)?.split(':');
        let (domain, bus, slot) = (parts.next()?, parts.next()?, parts.next()?);
        let (device, function) = slot.split_once('.')?;
        let widths =
            (4..=8).contains(&domain.len()) && [bus.len(), device.len(), function.len()] == [2, 2, 1];
        if parts.next().is_some() || !widths || text.contains('+') {
            return None;
        }
        let byte = |text: &str, max: u8| u8::from_str_radix(text, 16).ok().filter(|value| *value <= max);
        Some(Self {
            domain: u32::from_str_radix(domain, 16).ok()?,
            bus: byte(bus, 0xff)?,
            device: byte(device, 0x1f)?,
            function: byte(function, 7)?,
        })
    }
}

impl FromStr for PciAddress {
    type Err = OpenError;

    fn from_str(text: &str) -> Result<Self, OpenError> {
        Self::parse(text).ok_or_else(|| OpenError::Path { path: text.to_owned() })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_becomes_the_name_in_sysfs() {
        for (path, name) in [
            ("vfio:0000:01:00.0", "0000:01:00.0"),
            ("vfio:00aB:fF:1f.7", "00ab:ff:1f.7"),
            ("vfio:10000:e1:00.0", "10000:e1:00.0"),
        ] {
            assert_eq!(path.parse::<PciAddress>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        for path in [
            "",
            "vfio:",
            "0000:01:00.0",
            "vfio:01:00.0",
            "vfio:0000:01:00",
            "vfio:0000:01:20.0",
            "vfio:0000:01:00.8",
            "vfio:0000:1:00.0",
            "vfio:0000:01:00.0:1",
            "vfio:+000:01:00.0",
            "vfio:0000:01:../0.0",
        ] {
            let error = path.parse::<PciAddress>().unwrap_err().to_string();
            assert!(error.contains(path) && error.contains("vfio:0000:01:00.0"), "{error}");
        }
    }
}
