//! The rig itself: VMs boot, run commands, and leave nothing behind.

use integration::{Rig, VmConfig};

#[test]
fn vm_runs_commands_and_tells_status_and_output() {
    let rig = Rig::prepare().unwrap();
    let vm = rig.boot(VmConfig::new("plain")).unwrap();

    let output = vm.run("echo out; echo err >&2; exit 3").unwrap();
    assert_eq!((output.status, output.stdout.as_str(), output.stderr.as_str()), (3, "out\n", "err\n"));
    assert_eq!(vm.run("kill -9 $$").unwrap().status, 128 + 9);
    assert_eq!(vm.check("hostname").unwrap(), "plain\n");
    assert!(vm.check("echo no >&2; false").unwrap_err().to_string().contains("no"));

    let big = vm.check("dd if=/dev/zero bs=1k count=1000 2>/dev/null | tr '\\0' x").unwrap();
    assert_eq!(big.len(), 1000 << 10);
    assert!(big.bytes().all(|byte| byte == b'x'));

    vm.put("/tmp/script", 0o755, b"#!/bin/sh\ncat /proc/meminfo\n").unwrap();
    assert!(vm.check("/tmp/script").unwrap().contains("MemTotal"));
    vm.shutdown().unwrap();
}
