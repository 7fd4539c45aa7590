//! Ways of resetting a card, best first.

use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::bar::Bar;
use super::card::Card;
use super::ioctl;
use crate::ResetKind;

/// Reset register of the card in BAR0, and the value that resets it.
const RESET: u64 = 0xf0010;
const RESET_NOW: u32 = 1;
/// Semaphore of the reset register: reading 0 takes it, a reset releases it.
const SEMAPHORE: u64 = 0xf03fc;
/// How long another user may hold the semaphore.
const SEMAPHORE_WAIT: Duration = Duration::from_secs(10);
/// How long the card is left alone after a reset through the register.
const SETTLE: Duration = Duration::from_secs(1);
/// How long it may take after that to answer on the bus again.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// How often the kernel is asked again while it has other business with the device, and how long between.
const BUSY_TRIES: u32 = 100;
/// Pause between two looks.
const NAP: Duration = Duration::from_millis(1);

/// Resets a card in the best way that works; else what was tried, and what came of it. The card's interrupts
/// must be disconnected.
pub(super) fn reset(card: &Card, bar0: &Bar) -> Result<ResetKind, String> {
    let mut tried = Vec::new();
    match by_function(card) {
        Ok(()) => return Ok(ResetKind::Function),
        Err(error) => tried.push(format!("function reset: {error}")),
    }
    match by_bus(card) {
        Ok(()) => return Ok(ResetKind::Bus),
        Err(error) => tried.push(format!("bus reset: {error}")),
    }
    match by_register(card, bar0) {
        Ok(()) => {
            log::info!("{} reset through its register ({})", card.address, tried.join("; "));
            Ok(ResetKind::Register)
        }
        Err(error) => {
            tried.push(format!("reset register: {error}"));
            Err(tried.join("; "))
        }
    }
}

/// VFIO_DEVICE_RESET, which fails with EINVAL where the kernel has no way of resetting this device alone.
fn by_function(card: &Card) -> io::Result<()> {
    for _ in 1..BUSY_TRIES {
        match ioctl::reset(card.fd()) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => thread::sleep(NAP),
            result => return result,
        }
    }
    ioctl::reset(card.fd())
}

/// Reset of the card's bus, if nothing else is on it.
fn by_bus(card: &Card) -> io::Result<()> {
    let devices = ioctl::hot_reset_devices(card.fd())?;
    let others =
        devices.iter().filter(|other| **other != card.address).map(ToString::to_string).collect::<Vec<_>>();
    if devices.is_empty() || !others.is_empty() {
        return Err(io::Error::other(format!("the bus is shared with {}", others.join(", "))));
    }
    let group = card.host.group_file(card.group);
    let group = open_descriptor(&group)?.ok_or_else(|| io::Error::other("its IOMMU group is not open"))?;
    ioctl::hot_reset(card.fd(), group)
}

/// The descriptor of this process that has a device file open: vfio-ioctls keeps that of a group for itself,
/// and the kernel opens it only once.
fn open_descriptor(file: &Path) -> io::Result<Option<RawFd>> {
    let device = fs::metadata(file)?.rdev();
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(found) = fs::metadata(Path::new("/proc/self/fd").join(&name)) else { continue };
        if found.file_type().is_char_device() && found.rdev() == device {
            return Ok(Some(fd));
        }
    }
    Ok(None)
}

/// The card's own reset, which wipes configuration space as well. What is beyond VFIO's reach stays wiped:
/// the largest payload and the link's settings are then those of power-on.
fn by_register(card: &Card, bar0: &Bar) -> io::Result<()> {
    wait(SEMAPHORE_WAIT, "its reset semaphore is taken", || Ok(bar0.read32(SEMAPHORE)? == 0))?;
    bar0.write32(RESET, RESET_NOW).map_err(io::Error::other)?;
    thread::sleep(SETTLE);
    wait(ANSWER_WAIT, "it does not answer after the reset", || Ok(card.config16(0)? != u16::MAX))
}

/// Looks again and again until something is so, at most so long.
fn wait(
    most: Duration,
    otherwise: &'static str,
    done: impl Fn() -> Result<bool, crate::RegisterError>,
) -> io::Result<()> {
    let start = Instant::now();
    while !done().map_err(io::Error::other)? {
        if start.elapsed() > most {
            return Err(io::Error::other(otherwise));
        }
        thread::sleep(NAP);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn open_descriptor_finds_the_device_and_no_other() {
        let full = Path::new("/dev/full");
        assert_eq!(open_descriptor(full).unwrap(), None);
        let file = OpenOptions::new().write(true).open(full).unwrap();
        assert_eq!(open_descriptor(full).unwrap(), Some(file.as_raw_fd()));
        assert!(open_descriptor(Path::new("/dev/none")).is_err());
    }

    #[test]
    fn wait_ends_when_done_or_when_time_is_up() {
        wait(Duration::from_secs(1), "never", || Ok(true)).unwrap();
        let error = wait(Duration::ZERO, "it sleeps", || Ok(false)).unwrap_err();
        assert_eq!(error.to_string(), "it sleeps");
    }
}
