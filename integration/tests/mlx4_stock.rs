//! The model, judged by the stock Linux driver: it comes up, says what it is, and goes without a trace.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::Duration;

use integration::{Model, Rig, Vm, VmConfig, passed, stock};

/// The value behind `key:` in the output of `ibv_devinfo` or `ibstat`.
fn field<'a>(text: &'a str, key: &str) -> &'a str {
    let lines = || text.lines().filter_map(|line| line.trim().split_once(':'));
    let found = lines().find(|(name, _)| name.trim() == key);
    found.unwrap_or_else(|| panic!("no {key} in {text}")).1.trim()
}

/// The states that the driver has reported for its port: PortState of every PortInfo that it got from the
/// firmware, by IBTA 14.2.5.6 (1 DOWN, 2 INIT, 3 ARMED, 4 ACTIVE), repetitions left out.
fn reported_states(trace: &str) -> Vec<u8> {
    const GET_RESP: u8 = 0x81;
    const PORT_INFO: [u8; 2] = [0x00, 0x15];
    const PORT_STATE: usize = 64 + 32;
    let mut states = Vec::new();
    for hex in trace.lines().filter_map(|line| line.trim().strip_prefix("out hex ")) {
        let mad: Vec<u8> =
            (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect();
        if mad.len() == 256 && mad[3] == GET_RESP && mad[16..18] == PORT_INFO {
            states.push(mad[PORT_STATE] & 0xf);
        }
    }
    states.dedup();
    states
}

#[test]
fn stock_driver_brings_the_port_up_and_describes_the_hca() {
    let rig = Rig::prepare().unwrap();
    let model = Model::start(&rig, 1, &[]).unwrap();
    let vm = rig.boot(VmConfig::new("a").hca(model.socket(0))).unwrap();
    stock::bring_up(&vm).unwrap();

    let devinfo = vm.check("ibv_devinfo -v").unwrap();
    assert_eq!(field(&devinfo, "hca_id"), "mlx4_0");
    assert_eq!(field(&devinfo, "transport"), "InfiniBand (0)");
    assert_eq!(field(&devinfo, "vendor_id"), "0x02c9");
    assert_eq!(field(&devinfo, "vendor_part_id"), "4099");
    assert_eq!(field(&devinfo, "state"), "PORT_ACTIVE (4)");
    assert_eq!(field(&devinfo, "link_layer"), "InfiniBand");
    assert_ne!(field(&devinfo, "port_lid"), "0");

    let ibstat = vm.check("ibstat mlx4_0 1").unwrap();
    assert_eq!(field(&ibstat, "State"), "Active");
    assert_eq!(field(&ibstat, "Physical state"), "LinkUp");
    assert_ne!(field(&ibstat, "SM lid"), "0");
    vm.check("ip link show ib0").unwrap();

    // The subnet manager took the port through the states, by MADs that the driver answered.
    let states = reported_states(&model.trace().unwrap());
    assert!(states.ends_with(&[2, 3, 4]), "{states:?}");
    passed("stock driver: the port goes from INIT to ACTIVE; ibv_devinfo and ibstat describe it");

    assert_eq!(stock::problems(&vm).unwrap(), [""; 0]);
    becomes_no_ethernet_port(&vm);
    vm.shutdown().unwrap();
    model.stop().unwrap();
}

/// The port stays an InfiniBand one, and says why.
fn becomes_no_ethernet_port(vm: &Vm) {
    const TYPE: &str = "/sys/bus/pci/devices/0000:01:00.0/mlx4_port1";
    for kind in ["eth", "auto"] {
        let refused = vm.run(&format!("bash -c 'echo {kind} > {TYPE}'")).unwrap();
        assert!(refused.status != 0 && refused.stderr.contains("Operation not supported"), "{refused}");
        assert_eq!(vm.check(&format!("cat {TYPE}")).unwrap().trim(), "ib");
    }
    let problems = stock::problems(vm).unwrap();
    let reason = "Requested port type for port 1 is not supported on this HCA";
    assert!(problems.len() == 2 && problems.iter().all(|line| line.contains(reason)), "{problems:?}");
    let devinfo = vm.check("ibv_devinfo").unwrap();
    assert_eq!([field(&devinfo, "state"), field(&devinfo, "link_layer")], ["PORT_ACTIVE (4)", "InfiniBand"]);
}

#[test]
fn stock_driver_of_two_ports_unloaded_and_loaded_again_leaves_nothing_behind() {
    let rig = Rig::prepare().unwrap();
    let model = Model::start(&rig, 1, &["--ports", "2"]).unwrap();
    let vm = rig.boot(VmConfig::new("a").hca(model.socket(0))).unwrap();
    let untouched = model.dump().unwrap();
    for _ in 0..2 {
        stock::bring_up(&vm).unwrap();
        stock::wait_for_active(&vm, "mlx4_0", 2, Duration::from_secs(60)).unwrap();
        assert_ne!(model.dump().unwrap(), untouched);
        vm.check("ibv_devinfo").unwrap();
        stock::unload(&vm).unwrap();
        assert_eq!(model.dump().unwrap(), untouched);
    }
    passed("stock driver: two ports, loaded and unloaded twice, nothing left in the model");
    assert_eq!(stock::problems(&vm).unwrap(), [""; 0]);
}

#[test]
fn stock_driver_comes_up_behind_an_iommu() {
    let rig = Rig::prepare().unwrap();
    let model = Model::start(&rig, 1, &[]).unwrap();
    let vm = rig.boot(VmConfig::new("a").memory_mib(1024).iommu().hca(model.socket(0))).unwrap();
    stock::bring_up(&vm).unwrap();
    assert_eq!(stock::problems(&vm).unwrap(), [""; 0]);
    passed("stock driver: ACTIVE behind a virtual IOMMU");
}
