//! What a VM of the rig is made of.

use std::path::PathBuf;
use std::time::Duration;

use vmm_config::{Accelerator, Device};

use crate::Kernel;
use crate::image::Programs;

/// A VM to boot.
#[derive(Clone, Debug)]
pub struct VmConfig {
    pub(super) name: String,
    pub(super) accelerator: Accelerator,
    pub(super) memory_mib: u32,
    pub(super) cpus: u32,
    pub(super) kernel: Kernel,
    pub(super) programs: Programs,
    pub(super) iommu: bool,
    pub(super) reboots: bool,
    pub(super) devices: Vec<Device>,
    pub(super) kernel_args: String,
    pub(super) boot_limit: Duration,
}

impl VmConfig {
    /// A VM with 512 MiB, one processor and no device. `name` is its host name and that of its logs.
    ///
    /// Guest code is translated; `PARAVERBS_ACCEL=kvm` has the host's processor execute it.
    pub fn new(name: &str) -> Self {
        let kvm = std::env::var("PARAVERBS_ACCEL").is_ok_and(|value| value == "kvm");
        Self {
            name: name.to_owned(),
            accelerator: if kvm { Accelerator::Kvm } else { Accelerator::Tcg },
            memory_mib: 512,
            cpus: 1,
            kernel: Kernel::default(),
            programs: Programs::default(),
            iommu: false,
            reboots: false,
            devices: Vec::new(),
            kernel_args: String::new(),
            boot_limit: Duration::from_secs(180),
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets the memory's size in MiB.
    pub fn memory_mib(mut self, size: u32) -> Self {
        self.memory_mib = size;
        self
    }

    /// Sets the number of processors.
    pub fn cpus(mut self, number: u32) -> Self {
        self.cpus = number;
        self
    }

    /// Sets the kernel to boot (Debian 13's own).
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = kernel;
        self
    }

    /// Gives the guest Python, rdma-core's module for it, and that module's tests.
    pub fn python(mut self) -> Self {
        self.programs = Programs::Python;
        self
    }

    /// Puts a virtual IOMMU between devices and memory, and has the guest use it.
    pub fn iommu(mut self) -> Self {
        self.iommu = true;
        self
    }

    /// Has a reset by the guest boot it again ([`Vm::reboot`](crate::Vm::reboot)); otherwise it ends the VM.
    pub fn reboots(mut self) -> Self {
        self.reboots = true;
        self
    }

    /// Plugs in an HCA of the model, by its vfio-user socket.
    pub fn hca(self, socket: impl Into<PathBuf>) -> Self {
        self.device(Device::VfioUser { socket: socket.into() })
    }

    /// Plugs in a device.
    pub fn device(mut self, device: Device) -> Self {
        self.devices.push(device);
        self
    }

    /// Adds words to the kernel's command line.
    pub fn kernel_args(mut self, words: &str) -> Self {
        self.kernel_args = format!("{} {words}", self.kernel_args).trim().to_owned();
        self
    }

    /// Sets the time within which the agent must answer (180 s).
    pub fn boot_limit(mut self, limit: Duration) -> Self {
        self.boot_limit = limit;
        self
    }
}
