//! The stock mlx4 driver in a guest: loading it, asking it, and unloading it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::Vm;

/// The modules that make up the stock driver and what stands on it, in the order of loading.
pub const MODULES: &[&str] = &["mlx4_core", "mlx4_ib", "ib_uverbs", "ib_umad", "ib_ipoib"];

/// The same in an order in which each is free when its turn comes (mlx4_ib stands on ib_uverbs), with
/// what the kernel itself may have added.
const UNLOADED: &str = "ib_ipoib ib_umad mlx4_ib mlx4_en ib_uverbs mlx4_core";

/// A part of ib_uverbs in newer kernels (7.x), which modprobe leaves behind if rdma_ucm went before.
const LEFT_BEHIND: &str = "ib_uverbs_support";

/// Whose lines in a kernel's log are the driver's.
pub const LOG_NAMES: &[&str] = &["mlx4", "ib_", "infiniband", "ib0", "ib1", "ibp", "umad", "uverbs", "vfio"];

/// Probing reads the port's tables by hundreds of commands.
const LOAD_LIMIT: Duration = Duration::from_secs(120);
/// The subnet manager sweeps, and talks to the driver, which is slow.
const ACTIVE_LIMIT: Duration = Duration::from_secs(60);

/// Loads the stock driver and what stands on it.
///
/// # Errors
/// A module isn't there, or doesn't load in time.
pub fn load(vm: &Vm) -> Result<()> {
    for module in MODULES {
        vm.check_within(LOAD_LIMIT, &format!("modprobe {module}"))?;
    }
    Ok(())
}

/// Unloads what [`load`] loaded.
///
/// # Errors
/// A module is in use, or doesn't end in time.
pub fn unload(vm: &Vm) -> Result<()> {
    vm.check_within(LOAD_LIMIT, &format!("modprobe -r -a {UNLOADED}"))?;
    vm.run(&format!("modprobe -r {LEFT_BEHIND}"))?;
    let left = vm.check("lsmod | grep -E '^(mlx4_|ib_ipoib|ib_umad|ib_uverbs)' || true")?;
    if !left.is_empty() {
        bail!("on {}: still loaded: {left}", vm.name());
    }
    Ok(())
}

/// Loads the driver and waits until the first port of `mlx4_0` is ACTIVE.
///
/// # Errors
/// As for [`load`] and [`wait_for_active`].
pub fn bring_up(vm: &Vm) -> Result<()> {
    load(vm)?;
    wait_for_active(vm, "mlx4_0", 1, ACTIVE_LIMIT)
}

/// Waits until a port of the HCA `device` (`mlx4_0`, say) is ACTIVE. Ports count from 1.
///
/// # Errors
/// It isn't within `limit`; the message has the last state.
pub fn wait_for_active(vm: &Vm, device: &str, port: u8, limit: Duration) -> Result<()> {
    let file = format!("/sys/class/infiniband/{device}/ports/{port}/state");
    let deadline = Instant::now() + limit;
    loop {
        let state = vm.run(&format!("cat {file}"))?;
        if state.stdout.trim() == "4: ACTIVE" {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("on {}: port {port} of {device} is not active after {limit:?}: {state}", vm.name());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// The lines of the guest's kernel log that tell of trouble with the driver, or of any bug at all.
///
/// # Errors
/// The log can't be read.
pub fn problems(vm: &Vm) -> Result<Vec<String>> {
    Ok(vm.dmesg()?.problems(LOG_NAMES).into_iter().map(str::to_owned).collect())
}
