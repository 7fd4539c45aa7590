//! Moving a card from one driver to another.
//!
//! The override names the one driver that may take the card, so no other can take it in between. What fails is
//! undone: the card goes back to the driver that it had.

use std::io;

use anyhow::{Context, Result, anyhow, bail};

use super::sysfs::{FAMILY, Sysfs};

/// A driver that a card can be moved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// The one that gives cards to programs.
    Vfio,
    /// The kernel's own.
    Mlx4,
}

impl Driver {
    /// Its name in sysfs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vfio => "vfio-pci",
            Self::Mlx4 => "mlx4_core",
        }
    }

    /// The override that leads a card to it: one for VFIO, none for the driver that knows the card by its number.
    fn driver_override(self) -> &'static str {
        match self {
            Self::Vfio => "vfio-pci",
            Self::Mlx4 => "",
        }
    }
}

/// What the kernel does with one card at a word.
pub(crate) trait Bus {
    /// The card's driver.
    fn driver(&self) -> Option<String>;
    /// Whether the kernel has a driver loaded.
    fn has_driver(&self, name: &str) -> bool;
    /// The one driver that may take the card; empty if any may.
    fn driver_override(&self) -> io::Result<String>;
    fn set_driver_override(&self, name: &str) -> io::Result<()>;
    /// Takes the card from its driver.
    fn unbind(&self) -> io::Result<()>;
    /// Offers the card to drivers.
    fn probe(&self) -> io::Result<()>;
}

/// Moves a card, unless somebody uses it, and says what was done.
///
/// # Errors
/// There is no such card, it is in use, the driver isn't loaded, or the kernel refuses; the card has its old
/// driver then, if the error doesn't say otherwise.
pub(crate) fn move_card(card: &Sysfs, bus: &impl Bus, target: Driver) -> Result<String> {
    let address = card.address;
    let Some((vendor, device)) = card.identity() else {
        bail!("no PCI device {address}; `lspci -D -d 15b3:` lists the cards of this host");
    };
    if !card.is_card() {
        bail!(
            "{address} is {vendor:04x}:{device:04x}, no {FAMILY}; `lspci -D -d 15b3:` lists the cards of this host"
        );
    }
    let name = target.name();
    let old = bus.driver();
    if old.as_deref() == Some(name) {
        return Ok(format!("{address} is bound to {name} already"));
    }
    if !bus.has_driver(name) {
        bail!("the driver {name} is not loaded; run as root: modprobe {name}");
    }
    let users = card.users();
    if !users.is_empty() {
        let users: Vec<_> = users.iter().map(ToString::to_string).collect();
        bail!("{address} is in use, end that first: {}", users.join("; "));
    }
    rebind(bus, target).with_context(|| format!("can't move {address} to {name}"))?;
    Ok(match old {
        Some(old) => format!("{address} moved from {old} to {name}"),
        None => format!("{address} bound to {name}"),
    })
}

/// Moves the card, or leaves it where it is.
fn rebind(bus: &impl Bus, target: Driver) -> Result<()> {
    let (old, old_override) = (bus.driver(), bus.driver_override().map_err(advise)?);
    let Err(error) = take(bus, target) else { return Ok(()) };
    let undone = give_back(bus, old.as_deref(), &old_override);
    let old = old.as_deref().unwrap_or("no driver");
    Err(match undone {
        Ok(()) => error.context(format!("undone, the card has {old} again")),
        Err(undo) => error.context(format!("and not undone, the card had {old}: {undo:#}")),
    })
}

fn take(bus: &impl Bus, target: Driver) -> Result<()> {
    bus.set_driver_override(target.driver_override()).map_err(advise)?;
    if bus.driver().is_some() {
        bus.unbind().map_err(advise)?;
    }
    bus.probe().map_err(advise)?;
    match bus.driver() {
        Some(driver) if driver == target.name() => Ok(()),
        Some(other) => Err(anyhow!("{other} has taken the card; unload that driver")),
        None => Err(anyhow!("{} doesn't take the card; the kernel's log (dmesg) says why", target.name())),
    }
}

/// Brings back what was there before.
fn give_back(bus: &impl Bus, driver: Option<&str>, driver_override: &str) -> Result<()> {
    bus.set_driver_override(driver_override).context("restore the override")?;
    if bus.driver().as_deref() == driver {
        return Ok(());
    }
    if bus.driver().is_some() {
        bus.unbind().context("take the card from its driver")?;
    }
    let Some(driver) = driver else { return Ok(()) };
    bus.probe().with_context(|| format!("offer the card to {driver}"))?;
    match bus.driver() {
        Some(now) if now == driver => Ok(()),
        _ => Err(anyhow!("{driver} doesn't take the card back; the kernel's log (dmesg) says why")),
    }
}

fn advise(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => anyhow!("{error}; run as root"),
        io::ErrorKind::NotFound => anyhow!("{error}; has the card left the bus?"),
        _ => anyhow!("the kernel refuses: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::super::stage::{CARD, Stage};
    use super::*;

    /// A kernel with one card, in which one step fails.
    struct Kernel {
        driver: RefCell<Option<&'static str>>,
        driver_override: RefCell<String>,
        /// Drivers that don't take the card.
        unwilling: Vec<&'static str>,
        /// How many calls succeed before one fails.
        calls: Cell<usize>,
    }

    impl Kernel {
        fn with(driver: Option<&'static str>) -> Self {
            Self {
                driver: driver.into(),
                driver_override: RefCell::default(),
                unwilling: Vec::new(),
                calls: usize::MAX.into(),
            }
        }

        fn step(&self) -> io::Result<()> {
            let left = self.calls.get();
            // One call fails, and those after it do not.
            self.calls.set(if left == 0 { usize::MAX } else { left - 1 });
            if left == 0 { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
        }
    }

    impl Bus for Kernel {
        fn driver(&self) -> Option<String> {
            self.driver.borrow().map(str::to_owned)
        }

        fn has_driver(&self, name: &str) -> bool {
            ["vfio-pci", "mlx4_core"].contains(&name)
        }

        fn driver_override(&self) -> io::Result<String> {
            Ok(self.driver_override.borrow().clone())
        }

        fn set_driver_override(&self, name: &str) -> io::Result<()> {
            self.step()?;
            *self.driver_override.borrow_mut() = name.to_owned();
            Ok(())
        }

        fn unbind(&self) -> io::Result<()> {
            self.step()?;
            assert!(self.driver.take().is_some(), "there is no driver to unbind");
            Ok(())
        }

        fn probe(&self) -> io::Result<()> {
            self.step()?;
            let wanted = if *self.driver_override.borrow() == "vfio-pci" { "vfio-pci" } else { "mlx4_core" };
            if self.driver.borrow().is_none() && !self.unwilling.contains(&wanted) {
                *self.driver.borrow_mut() = Some(wanted);
            }
            Ok(())
        }
    }

    fn moved(kernel: &Kernel, target: Driver) -> Result<String, String> {
        let stage = Stage::card("mlx4_core");
        move_card(&stage.sysfs(), kernel, target).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn card_goes_to_vfio_and_back() {
        let kernel = Kernel::with(Some("mlx4_core"));
        assert_eq!(moved(&kernel, Driver::Vfio).unwrap(), format!("{CARD} moved from mlx4_core to vfio-pci"));
        assert_eq!(moved(&kernel, Driver::Vfio).unwrap(), format!("{CARD} is bound to vfio-pci already"));
        assert_eq!(moved(&kernel, Driver::Mlx4).unwrap(), format!("{CARD} moved from vfio-pci to mlx4_core"));
        assert_eq!(*kernel.driver_override.borrow(), "");
        let kernel = Kernel::with(None);
        assert_eq!(moved(&kernel, Driver::Vfio).unwrap(), format!("{CARD} bound to vfio-pci"));
    }

    #[test]
    fn whichever_step_fails_the_card_has_its_old_driver_again() {
        for failing in 0..3 {
            let kernel = Kernel { calls: failing.into(), ..Kernel::with(Some("mlx4_core")) };
            let error = moved(&kernel, Driver::Vfio).unwrap_err();
            assert!(error.contains("undone, the card has mlx4_core again"), "{error}");
            assert!(error.ends_with("run as root"), "{error}");
            assert_eq!(kernel.driver().as_deref(), Some("mlx4_core"));
            assert_eq!(*kernel.driver_override.borrow(), "");
        }
    }

    #[test]
    fn card_that_the_driver_does_not_take_goes_back() {
        let kernel = Kernel { unwilling: vec!["vfio-pci"], ..Kernel::with(Some("mlx4_core")) };
        let error = moved(&kernel, Driver::Vfio).unwrap_err();
        assert!(error.contains("vfio-pci doesn't take the card") && error.contains("undone"), "{error}");
        assert_eq!(kernel.driver().as_deref(), Some("mlx4_core"));
        let kernel = Kernel { unwilling: vec!["vfio-pci", "mlx4_core"], ..kernel };
        let error = moved(&kernel, Driver::Vfio).unwrap_err();
        assert!(error.contains("not undone, the card had mlx4_core"), "{error}");
    }

    #[test]
    fn card_in_use_stays_and_its_users_are_named() {
        let flags = format!("sys/bus/pci/devices/{CARD}/net/ib0/flags");
        let stage = Stage::card("mlx4_core").file(&flags, "0x1003\n");
        let kernel = Kernel::with(Some("mlx4_core"));
        let error = move_card(&stage.sysfs(), &kernel, Driver::Vfio).unwrap_err().to_string();
        assert!(error.contains("end that first: network interface ib0 is up"), "{error}");
        assert_eq!(kernel.driver().as_deref(), Some("mlx4_core"));
    }

    #[test]
    fn what_is_no_card_and_a_driver_that_is_not_loaded_are_refused() {
        let vendor = format!("sys/bus/pci/devices/{CARD}/vendor");
        let stage = Stage::card("e1000e").file(&vendor, "0x8086\n");
        let error = move_card(&stage.sysfs(), &stage.sysfs(), Driver::Vfio).unwrap_err().to_string();
        assert!(error.contains("is 8086:1003, no ConnectX, ConnectX-2 or ConnectX-3"), "{error}");
        let device = format!("sys/bus/pci/devices/{CARD}/device");
        let stage = Stage::card("mlx5_core").file(&device, "0x1017\n");
        let error = move_card(&stage.sysfs(), &stage.sysfs(), Driver::Vfio).unwrap_err().to_string();
        assert!(error.contains("is 15b3:1017, no ConnectX, ConnectX-2 or ConnectX-3"), "{error}");
        let stage = Stage::card("mlx4_core");
        let error = move_card(&stage.sysfs(), &stage.sysfs(), Driver::Vfio).unwrap_err().to_string();
        assert_eq!(error, "the driver vfio-pci is not loaded; run as root: modprobe vfio-pci");
    }
}
