//! Our driver on a card behind a real kernel's VFIO: in a guest with a virtual IOMMU, where the model's card
//! is bound to vfio-pci.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::Duration;

use integration::{Model, Rig, VmConfig};

/// Where the card is in the guest.
const ADDRESS: &str = "0000:01:00.0";
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn our_driver_brings_the_port_up_through_vfio_and_leaves_nothing_behind() {
    let rig = Rig::prepare().unwrap();
    let model = Model::start(&rig, 1, &[]).unwrap();
    let vm = rig.boot(VmConfig::new("a").memory_mib(1024).iommu().hca(model.socket(0))).unwrap();
    let program = integration::program("integration", "rig-driver").unwrap();
    vm.put("/bin/rig-driver", 0o755, &std::fs::read(program).unwrap()).unwrap();
    let untouched = model.dump().unwrap();

    let unbound = vm.run(&format!("rig-driver vfio:{ADDRESS}")).unwrap();
    assert_ne!(unbound.status, 0, "{unbound}");
    assert!(
        unbound.stderr.contains("vfio-pci"),
        "an unbound card's error says what to bind it to: {unbound}"
    );

    vm.check("modprobe -a vfio-pci vfio_iommu_type1").unwrap();
    let folder = format!("/sys/bus/pci/devices/{ADDRESS}");
    vm.check(&format!(
        "echo vfio-pci > {folder}/driver_override && echo {ADDRESS} > /sys/bus/pci/drivers_probe"
    ))
    .unwrap();
    for _ in 0..2 {
        let run = vm.check_within(LIMIT, &format!("RUST_LOG=info rig-driver vfio:{ADDRESS}")).unwrap();
        assert!(run.contains("port 1 ACTIVE lid "), "{run}");
        assert!(run.contains("rdma write of 65536 bytes verified"), "{run}");
        assert!(run.ends_with("closed\n"), "{run}");
        assert_eq!(model.dump().unwrap(), untouched);
    }
    vm.shutdown().unwrap();
    model.stop().unwrap();
}

/// Files of the driver's tests, and those tests in them that can't run on a card that is elsewhere, each with why.
const SUITE: &[(&str, &[(&str, &str)])] =
    &[("rc", &[]), ("uc", &[]), ("datagrams", &[]), ("completion", &[]), ("fast", &[])];

#[test]
fn driver_s_own_tests_pass_through_vfio() {
    let rig = Rig::prepare().unwrap();
    let model = Model::start(&rig, 2, &[]).unwrap();
    let config = VmConfig::new("a").memory_mib(1024).iommu().hca(model.socket(0)).hca(model.socket(1));
    let vm = rig.boot(config).unwrap();
    let untouched = model.dump().unwrap();
    vm.check("modprobe -a vfio-pci vfio_iommu_type1").unwrap();
    let cards = ["0000:01:00.0", "0000:02:00.0"];
    for card in cards {
        let folder = format!("/sys/bus/pci/devices/{card}");
        vm.check(&format!(
            "echo vfio-pci > {folder}/driver_override && echo {card} > /sys/bus/pci/drivers_probe"
        ))
        .unwrap();
    }
    let seam = format!("PARAVERBS_SEAM=vfio:{},vfio:{}", cards[0], cards[1]);
    for (file, left_out) in SUITE {
        let program = integration::test_program("driver", file).unwrap();
        vm.put("/bin/suite", 0o755, &std::fs::read(program).unwrap()).unwrap();
        let all = vm.check("suite --list").unwrap().lines().filter(|line| line.ends_with(": test")).count();
        let skips: String = left_out.iter().map(|(test, _)| format!(" --skip {test}")).collect();
        let run =
            vm.check_within(LIMIT, &format!("{seam} suite --test-threads 1 --exact{skips} 2>&1")).unwrap();
        let passed = run.lines().filter(|line| line.starts_with("test ") && line.ends_with(" ok")).count();
        assert_eq!(passed + left_out.len(), all, "{run}");
        assert_eq!(model.dump().unwrap(), untouched, "{file} left something");
        for card in 0..2 {
            assert_eq!(model.count(card, "refused_accesses").unwrap(), 0, "{file}");
        }
        println!("ok     {file}  {passed} of {all} tests");
        left_out.iter().for_each(|(test, why)| println!("not    {file}  {test}: {why}"));
    }
    vm.shutdown().unwrap();
    model.stop().unwrap();
}
