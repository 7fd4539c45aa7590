//! The rig itself: VMs boot, run commands side by side, and leave nothing behind.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use integration::{Rig, VmConfig, stock};

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

#[test]
fn vm_runs_several_commands_at_once() {
    let rig = Rig::prepare().unwrap();
    let vm = rig.boot(VmConfig::new("plain")).unwrap();

    let server = vm.spawn("echo listening; cat /tmp/never 2>/dev/null || sleep 1000").unwrap();
    server.wait_for("listening", Duration::from_secs(20)).unwrap();
    assert_eq!(vm.check("echo beside").unwrap(), "beside\n");
    assert!(server.is_running());
    let output = server.kill().unwrap();
    assert_eq!((output.status, output.stdout.as_str()), (128 + 9, "listening\n"));

    // What a killed command had started goes with it.
    let count = "ps | grep -c '[s]leep 1000' || true";
    assert_eq!(vm.check(count).unwrap(), "0\n");
    let start = Instant::now();
    let error = vm.run_within(Duration::from_millis(500), "echo first; sleep 1000").unwrap_err();
    assert!(format!("{error:#}").contains("first"), "{error:#}");
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(vm.check(&format!("sleep 0.5; {count}")).unwrap(), "0\n");

    // A command that ends is over, whatever it leaves in the background.
    assert_eq!(vm.check("sleep 1000 & echo done").unwrap(), "done\n");
    let silent = vm.spawn("true").unwrap().wait_for("never said", Duration::from_secs(20)).unwrap_err();
    assert!(silent.to_string().contains("ended"), "{silent}");
}

#[test]
fn vms_run_side_by_side() {
    let rig = Rig::prepare().unwrap();
    let [a, b] = thread::scope(|scope| {
        ["a", "b"]
            .map(|name| scope.spawn(|| rig.boot(VmConfig::new(name)).unwrap()))
            .map(|t| t.join().unwrap())
    });
    let [first, second] = [&a, &b].map(|vm| vm.spawn("sleep 1; hostname").unwrap());
    assert_eq!(second.wait(Duration::from_secs(20)).unwrap().stdout, "b\n");
    assert_eq!(first.wait(Duration::from_secs(20)).unwrap().stdout, "a\n");
    drop(a);
    assert_eq!(b.check("hostname").unwrap(), "b\n");
}

#[test]
fn dropped_vm_leaves_no_process() {
    let rig = Rig::prepare().unwrap();
    let vm = rig.boot(VmConfig::new("plain")).unwrap();
    let process = PathBuf::from(format!("/proc/{}", vm.pid()));
    assert!(process.exists());
    drop(vm);
    assert!(!process.exists());
}

#[test]
fn vm_whose_guest_dies_tells_so() {
    let rig = Rig::prepare().unwrap();
    let vm = rig.boot(VmConfig::new("plain")).unwrap();
    let start = Instant::now();
    let error = vm.run("echo c > /proc/sysrq-trigger; sleep 1000").unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(40), "{error:#}");
    let text = format!("{error:#}");
    // The console's end has the crash's first line or, if more of it came out, its trace.
    let crash = ["sysrq triggered crash", "sysrq_handle_crash"];
    assert!(text.contains("closed the channel") && crash.iter().any(|line| text.contains(line)), "{text}");
}

#[test]
fn vm_that_does_not_come_up_shows_its_console() {
    let rig = Rig::prepare().unwrap();
    let config = VmConfig::new("broken").kernel_args("rdinit=/nothing").boot_limit(Duration::from_secs(60));
    let error = rig.boot(config).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("broken") && text.contains("Kernel panic"), "{text}");
}

#[test]
fn guest_has_the_stock_driver_and_programs_and_a_quiet_kernel() {
    let rig = Rig::prepare().unwrap();
    let vm = rig.boot(VmConfig::new("plain").cpus(2).memory_mib(1024)).unwrap();
    assert_eq!(vm.check("nproc").unwrap(), "2\n");
    stock::load(&vm).unwrap();
    vm.check("modprobe -a rdma_ucm vfio-pci && ls /dev/infiniband/rdma_cm /dev/vfio/vfio").unwrap();
    for program in ["ibv_devinfo -h", "ibstat -V", "ib_write_bw --version", "rping -h", "ip -V", "strace -V"]
    {
        let output = vm.run(program).unwrap();
        assert!(!format!("{output}").contains("not found"), "{program}: {output}");
    }
    assert_eq!(vm.dmesg().unwrap().problems(stock::LOG_NAMES), [""; 0]);
    assert!(vm.check("ibv_devices").unwrap().contains("device"));
    vm.check("modprobe -r rdma_ucm").unwrap();
    stock::unload(&vm).unwrap();
}

#[test]
fn guest_with_an_iommu_uses_it() {
    let rig = Rig::prepare().unwrap();
    let vm = rig.boot(VmConfig::new("plain").iommu()).unwrap();
    assert!(!vm.check("ls /sys/class/iommu").unwrap().is_empty());
    assert_eq!(vm.dmesg().unwrap().problems(&["DMAR"]), [""; 0]);
}
