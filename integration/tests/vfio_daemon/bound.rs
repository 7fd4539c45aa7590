//! The card moves from the kernel's driver to VFIO, and back.

use integration::patience::until;

use crate::scene::{ADDRESS, LIMIT, Scene, passed};

pub(crate) fn card_moves_to_vfio(scene: &Scene) {
    let vm = &scene.vm;
    vm.check_within(LIMIT, "modprobe -a mlx4_ib ib_uverbs ib_ipoib").unwrap();
    scene.kernel_s_port_is_active();
    scene.fails(
        "doctor",
        &[
            "ok      card      0000:01:00.0 is 15b3:1003",
            "ok      iommu     on",
            "FAILED  driver    bound to mlx4_core, not to vfio-pci",
            "modprobe vfio-pci; paraverbs bind 0000:01:00.0",
            "ok      group     viable",
            "FAILED  files     /dev/vfio/vfio does not exist",
            "-       firmware",
        ],
    );
    passed("doctor", "what a card of the kernel's driver lacks is found");

    scene.fails("bind", &["the driver vfio-pci is not loaded; run as root: modprobe vfio-pci"]);
    vm.check("modprobe -a vfio-pci vfio_iommu_type1").unwrap();
    vm.check("ip link set ib0 up").unwrap();
    let reader = vm.spawn("exec sleep 1000 < /dev/infiniband/uverbs0").unwrap();
    let open = "ls -l /proc/*/fd/0 | grep -q /dev/infiniband/uverbs0";
    until("the open file", || Ok(vm.run(open)?.status == 0)).unwrap();
    scene.fails("bind", &["ib0 is up", "sleep (process ", "has /dev/infiniband/uverbs0 open"]);
    reader.kill().unwrap();
    vm.check("ip link set ib0 down").unwrap();
    scene.kernel_s_port_is_active();
    passed("users", "a card in use stays where it is, and who uses it is named");

    assert_eq!(scene.succeeds("bind"), format!("{ADDRESS} moved from mlx4_core to vfio-pci\n"));
    assert!(scene.is_untouched());
    passed("bind", "moved to vfio-pci");
    configuration_is_checked(scene);
}

/// What `paraverbs doctor` says of a configuration that asks for more memory than the user may lock, and as root.
fn configuration_is_checked(scene: &Scene) {
    let config = format!(
        "device = \"vfio:{ADDRESS}\"\n[[guest]]\nname = \"a\"\nsocket = \"/run/a\"\nkind = \"process\"\n\
         [guest.limits]\nregistered_bytes = {}\n",
        768 << 20
    );
    scene.vm.put("/run/paraverbsd.toml", 0o644, config.as_bytes()).unwrap();
    let doctor = "paraverbs doctor --config /run/paraverbsd.toml";
    let lacking = scene.vm.run_within(LIMIT, &format!("rig-guest confined 1 {doctor}")).unwrap();
    assert_eq!(lacking.status, 1, "{lacking}");
    for words in [
        "FAILED  memlock   this user may lock 1 MiB; the configured guests may register 768 MiB, and the driver needs",
        "set LimitMEMLOCK=infinity for the service, or `ulimit -l unlimited`",
        "FAILED  firmware",
        "-       ports",
    ] {
        assert!(lacking.stdout.contains(words), "{words} in {lacking}");
    }
    assert!(scene.is_untouched());
    let text = scene.vm.check_within(LIMIT, doctor).unwrap();
    for words in [
        "ok      driver    bound to vfio-pci",
        "ok      memlock   this user may lock any amount of memory; the configured guests may register 768 MiB",
        "hugepages",
        "ok      firmware",
        "its link is up",
        "is ACTIVE",
        "alias GUIDs, and none is assigned",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }
    assert!(scene.is_untouched());
    passed("doctor", "of a configuration: what it may not lock is found; as root nothing is lacking");
}

pub(crate) fn card_moves_back(scene: &Scene) {
    assert_eq!(scene.succeeds("unbind"), format!("{ADDRESS} moved from vfio-pci to mlx4_core\n"));
    scene.kernel_s_port_is_active();
    passed("unbind", "moved back to mlx4_core, whose port is ACTIVE");
    scene.vm.check_within(LIMIT, "modprobe -r ib_ipoib mlx4_ib mlx4_core").unwrap();
    assert!(scene.is_untouched());
    assert_eq!(scene.count("refused_accesses"), 1);
}
