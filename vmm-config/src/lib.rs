//! Configuration of virtual machine monitors, from one description.
//!
//! [`Machine`] describes a virtual machine; [`Machine::qemu_args`] gives the arguments of
//! `qemu-system-x86_64` for it. Pure: nothing here looks at the file system or starts a process.
//!
//! Does not: choose a QEMU, create sockets, or wait for the other end of one.

#![forbid(unsafe_code)]

mod qemu;

use std::path::PathBuf;

/// The virtio device number of virtio-rdma.
pub const VIRTIO_ID_RDMA: u16 = 42;

/// The virtio device number under which QEMU gets a virtio-rdma device.
///
/// QEMU's generic vhost-user device aborts on a number that its table of names lacks, and
/// [`VIRTIO_ID_RDMA`] is such a number. This one is in the table and no Linux driver claims it; the
/// guest knows the device by the magic at the start of its configuration space.
pub const QEMU_VIRTIO_ID_RDMA: u16 = 38;

/// A virtual machine. Its memory is always shared (a memfd), so that devices in other processes can
/// reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The name that the VMM shows for this machine.
    pub name: String,
    /// How guest code is executed.
    pub accelerator: Accelerator,
    /// Size of the guest's memory in MiB.
    pub memory_mib: u32,
    /// Number of virtual processors.
    pub cpus: u32,
    /// The kernel to boot, and what goes with it.
    pub boot: Boot,
    /// Where the first serial port leads.
    pub serial: Serial,
    /// Whether a virtual IOMMU stands between the devices and the memory. A Linux guest uses it only
    /// with `intel_iommu=on` on its command line.
    pub iommu: bool,
    /// Whether a reset by the guest boots it again; if not, it ends the VMM, as a guest's panic then does.
    pub reboots: bool,
    /// The devices, in the order in which they are plugged in.
    pub devices: Vec<Device>,
}

/// How guest code is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// By QEMU's translator: needs nothing of the host, and is slow.
    Tcg,
    /// By the host's processor, through `/dev/kvm`.
    Kvm,
}

/// A kernel that the VMM loads itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The kernel's image (bzImage).
    pub kernel: PathBuf,
    /// The initial file system, if any.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Where a serial port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serial {
    /// Nowhere: there is no port.
    None,
    /// To the standard input and output of the VMM, where Ctrl-A X stops it.
    Stdio,
    /// To a Unix socket that the VMM listens on.
    Socket(PathBuf),
    /// Its output to a file, which is emptied first.
    File(PathBuf),
}

/// A device of a [`Machine`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// A PCI function served by another process over vfio-user, behind a PCI Express root port of its
    /// own.
    VfioUser {
        /// The server's Unix socket.
        socket: PathBuf,
    },
    /// A virtio-rdma device served by another process over vhost-user.
    VhostUserRdma {
        /// The server's Unix socket.
        socket: PathBuf,
        /// Number of virtqueues: not more than the server has.
        queues: u16,
        /// Entries of each virtqueue, a power of two up to 1024.
        queue_entries: u16,
        /// Size of the configuration space in bytes, at most 256.
        config_bytes: u16,
    },
    /// One end of an Ethernet between two VMMs of a host (virtio-net), which exchange frames as datagrams.
    Ethernet {
        /// The Unix socket on which the VMM gets frames.
        local: PathBuf,
        /// The other VMM's; frames are lost until it is there.
        remote: PathBuf,
        /// The MAC address.
        mac: [u8; 6],
    },
    /// A byte channel between guest and host (virtio-serial), which the guest finds by its name. The
    /// host listens, the VMM connects.
    Channel {
        /// The channel's name in the guest.
        name: String,
        /// The host's Unix socket.
        socket: PathBuf,
    },
}
