//! The life of an HCA under the stock driver: loading and unloading again and again, function-level reset, and a
//! guest that resets itself with everything in use. Each time both ports come up, and nothing is left in the model.
//!
//! `PARAVERBS_ALL=1` loads and unloads 20 times; otherwise it is 3 times.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::Duration;

use integration::{Kernel, Model, Rig, Vm, VmConfig, all, passed, patience, stock};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);
const PCI_DEVICE: &str = "/sys/bus/pci/devices/0000:01:00.0";

fn rounds() -> usize {
    if all() { 20 } else { 3 }
}

/// Loads the driver and waits for both ports.
fn bring_up(vm: &Vm) {
    stock::bring_up(vm).unwrap();
    stock::wait_for_active(vm, "mlx4_0", 2, LIMIT).unwrap();
    let devinfo = vm.check("ibv_devinfo").unwrap();
    assert_eq!(devinfo.matches("PORT_ACTIVE (4)").count(), 2, "{devinfo}");
}

fn comes_and_goes(vm: &Vm, model: &Model, untouched: &Value) {
    bring_up(vm);
    assert_ne!(model.dump().unwrap(), *untouched);
    stock::unload(vm).unwrap();
    assert_eq!(model.dump().unwrap(), *untouched);
}

fn function_resets(model: &Model) -> usize {
    model.trace().unwrap().lines().filter(|line| line.ends_with(" function reset")).count()
}

/// Function-level reset is the way by which the kernel resets the idle function, it reaches the model, and
/// leaves a function that the driver can use.
fn function_level_reset(vm: &Vm, model: &Model, untouched: &Value) {
    let methods = vm.check(&format!("cat {PCI_DEVICE}/reset_method")).unwrap();
    assert_eq!(methods.split_whitespace().next(), Some("flr"), "{methods}");
    let before = function_resets(model);
    vm.check(&format!("echo 1 > {PCI_DEVICE}/reset")).unwrap();
    assert_eq!(function_resets(model), before + 1);
    assert_eq!(model.dump().unwrap(), *untouched);
    comes_and_goes(vm, model, untouched);
}

/// A guest that resets itself while the driver holds the HCA, with a program and IP over InfiniBand in the
/// midst of it, finds the HCA as new.
fn reboot(vm: &Vm, model: &Model, untouched: &Value) {
    bring_up(vm);
    for interface in ["ib0", "ib1"] {
        vm.check(&format!("ip link set {interface} up")).unwrap();
    }
    let server = vm.spawn("ibv_rc_pingpong -d mlx4_0").unwrap();
    vm.check_within(LIMIT, "until ss -ltn | grep -q ':18515 '; do sleep 0.1; done").unwrap();
    server.forget();
    assert_eq!(stock::problems(vm).unwrap(), [""; 0]);
    let before = function_resets(model);
    vm.reboot(LIMIT).unwrap();
    assert!(function_resets(model) > before);
    assert_eq!(model.dump().unwrap(), *untouched);
    comes_and_goes(vm, model, untouched);
}

#[test]
fn nothing_is_left_by_unloading_or_resetting_or_rebooting() {
    let rig = Rig::prepare().unwrap();
    let model = Model::start(&rig, 1, &["--ports", "2"]).unwrap();
    let vm = rig.boot(VmConfig::new("a").reboots().hca(model.socket(0))).unwrap();
    let untouched = model.dump().unwrap();
    for round in 1..=rounds() {
        comes_and_goes(&vm, &model, &untouched);
        passed(format_args!("driver loaded, both ports active, unloaded: time {round}"));
    }
    function_level_reset(&vm, &model, &untouched);
    passed("function-level reset");
    reboot(&vm, &model, &untouched);
    passed("reboot with the driver in use");
    assert_eq!(stock::problems(&vm).unwrap(), [""; 0]);

    // Powered off with the driver loaded, and another guest with the newest kernel in its place.
    bring_up(&vm);
    vm.shutdown().unwrap();
    patience::until("the model has let go of the guest", || Ok(model.dump()? == untouched)).unwrap();
    let newest = VmConfig::new("newest").kernel(Kernel::Newest).hca(model.socket(0));
    let vm = rig.boot(newest).unwrap();
    comes_and_goes(&vm, &model, &untouched);
    assert_eq!(stock::problems(&vm).unwrap(), [""; 0]);
    passed("powered off with the driver in use; the newest kernel's driver loaded and unloaded");
    vm.shutdown().unwrap();
    model.stop().unwrap();
}
