//! Kernels' consumers of fast registration on the model: NFS over RDMA and NVMe over RDMA between two guests with
//! stock drivers, of two kernels. Guest `a` serves, guest `b` is its client; what is written at one end is read at the
//! other, and compared.
//!
//! Memory windows have no consumer in a kernel (docs/witnesses.md).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod nfs;
mod nvme;

use std::time::Duration;

use integration::{Kernel, Pair, Rig, Vm, passed, stock};

/// Guest code is translated, and two guests share the machine's processors with the model.
const LIMIT: Duration = Duration::from_secs(180);
/// Of ib0 in the two guests.
const ADDRESSES: [&str; 2] = ["10.9.8.1", "10.9.8.2"];
/// What the kernel asks the HCA to do with keys, as the model counts it.
const KEY_COUNTERS: [&str; 3] = ["fast_registers", "local_invalidates", "remote_invalidates"];

fn run(vm: &Vm, command: &str) -> String {
    vm.check_within(LIMIT, command).unwrap()
}

/// The checksum of a file, or of its first `mib` MiB, past any cache of this guest.
fn checksum(vm: &Vm, file: &str, mib: Option<u32>) -> String {
    let read = match mib {
        Some(mib) => format!("dd if={file} bs=1M count={mib} iflag=direct 2>/dev/null"),
        None => format!("cat {file}"),
    };
    let sum = run(vm, &format!("sync; echo 3 > /proc/sys/vm/drop_caches; {read} | sha256sum"));
    sum.split(' ').next().unwrap().to_owned()
}

/// Makes a file of random content in a guest's own memory; gives its checksum.
fn random_file(vm: &Vm, file: &str, bytes: u64) -> String {
    run(vm, &format!("head -c {bytes} /dev/urandom > {file}"));
    checksum(vm, file, None)
}

/// What the HCA of the client has done with keys.
fn key_counts(pair: &Pair) -> [u64; 3] {
    KEY_COUNTERS.map(|name| pair.model.count(1, name).unwrap())
}

/// Expects that the client registered memory by work requests since `before`, and that keys were invalidated again
/// by the server, and by itself where it does so.
fn keys_came_and_went(pair: &Pair, before: [u64; 3], what: &str, itself: bool) {
    let now = key_counts(pair);
    let [registered, local, remote] = [0, 1, 2].map(|index| now[index] - before[index]);
    assert!(
        registered > 0 && remote > 0 && (local > 0 || !itself),
        "{what}: {registered} registered, {local} + {remote} gone"
    );
    passed(format_args!(
        "{what}: {registered} regions registered by work requests, {local} invalidated locally, {remote} by the server"
    ));
}

#[test]
fn storage_over_rdma_keeps_its_data() {
    let rig = Rig::prepare().unwrap();
    let kernels = [Kernel::Stable, Kernel::Newest];
    let pair = Pair::boot(&rig, &[], |config, place| config.memory_mib(1024).cpus(2).kernel(kernels[place]))
        .unwrap();
    let untouched = pair.model.dump().unwrap();
    pair.bring_up().unwrap();
    pair.address("ib0", ADDRESSES).unwrap();

    nfs::check(&pair);
    nvme::check(&pair);

    assert_eq!([0, 1].map(|hca| pair.model.count(hca, "refused_accesses").unwrap()), [0, 0]);
    for vm in &pair.vms {
        let problems = stock::problems(vm).unwrap();
        assert!(problems.iter().all(|line| line.contains(nvme::JOIN_WITHOUT_CABLE)), "{problems:?}");
        stock::unload(vm).unwrap();
    }
    assert_eq!(pair.model.dump().unwrap(), untouched);
    passed("nothing is left in the HCAs, and no access was refused");
}
