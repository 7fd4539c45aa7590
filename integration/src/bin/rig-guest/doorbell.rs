//! A process that has a doorbell page of a card mapped, and nothing of it open.
//!
//! Unsafe code: mmap, of memory that is never accessed.
#![expect(unsafe_code, reason = "mmap")]

use std::fs;
use std::ptr;

use anyhow::{Context as _, Result};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::{say, told};

/// How `/proc` shows a device of VFIO's.
const DEVICE: &str = "anon_inode:[vfio-device]";
/// Where the BAR of doorbells, BAR2, begins in a device's file.
const BAR2: u64 = 2 << 40;
const PAGE: usize = 4096;

/// Takes the card's descriptor from a process that has it, maps a page, and closes the descriptor.
pub(crate) fn run(pid: i32) -> Result<()> {
    let number = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().find_map(|entry| {
        let is_device = fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == DEVICE);
        is_device.then(|| entry.file_name().to_str()?.parse().ok())?
    });
    let number = number.with_context(|| format!("process {pid} has no device of VFIO's open"))?;
    let process = pidfd_open(Pid::from_raw(pid).context("no process")?, PidfdFlags::empty())?;
    let card = pidfd_getfd(process, number, PidfdGetfdFlags::empty())?;
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new shared mapping at an address that the kernel chooses touches no memory in use. It stays until the
    // process ends.
    let _page = unsafe { mmap(ptr::null_mut(), PAGE, prot, MapFlags::SHARED, &card, BAR2) }?;
    drop(card);
    say("mapped")?;
    while told()? {}
    Ok(())
}
