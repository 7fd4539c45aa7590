//! The rig: virtual machines with a stock kernel and stock RDMA programs, and the processes they are
//! plugged into, for tests and for people.
//!
//! [`Rig::prepare`] brings everything that a VM needs into `target/rig` (QEMU, a kernel and a guest's
//! programs, from Debian's archive, with signatures checked) and builds an initial file system from it.
//! [`Rig::boot`] starts a [`Vm`]; [`Model::start`] starts the software HCA that VMs are plugged into.
//! Everything has a time limit, and everything that was started ends when its handle is dropped, or
//! when the process that holds the handle dies.
//!
//! Needs apt, dpkg and Debian's archive keyring on the host; needs neither root nor a chroot.

#![forbid(unsafe_code)]

pub mod agent;
mod cargo;
pub mod daemon;
pub mod dmesg;
pub mod fetch;
pub mod image;
pub mod load;
pub mod model;
pub mod pair;
mod paths;
pub mod patience;
pub mod peer;
pub mod process;
mod rig;
pub mod stock;
pub mod trace;
pub mod vm;

pub use cargo::{program, test_program};
pub use daemon::Daemon;
pub use model::Model;
pub use pair::Pair;
pub use peer::StockPeer;
pub use rig::{Kernel, Rig};
pub use vm::{Output, Process, Vm, VmConfig};

/// Whether tests should repeat what is slow as often as it ought to be (`PARAVERBS_ALL=1`, which `cargo xtask test --all`
/// sets).
pub fn all() -> bool {
    std::env::var("PARAVERBS_ALL").is_ok_and(|value| value == "1")
}

/// Tells that a check has passed, in the line that `cargo xtask test` prints for it.
pub fn passed(check: impl std::fmt::Display) {
    println!("ok     {check}");
}
