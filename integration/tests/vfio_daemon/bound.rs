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
    let text = scene.succeeds("doctor");
    for words in ["ok      driver    bound to vfio-pci", "ok      firmware", "its link is up", "is ACTIVE"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    assert!(scene.is_untouched());
    passed("doctor", "nothing is lacking: firmware, link and subnet manager are there");
}

pub(crate) fn card_moves_back(scene: &Scene) {
    assert_eq!(scene.succeeds("unbind"), format!("{ADDRESS} moved from vfio-pci to mlx4_core\n"));
    scene.kernel_s_port_is_active();
    passed("unbind", "moved back to mlx4_core, whose port is ACTIVE");
    scene.vm.check_within(LIMIT, "modprobe -r ib_ipoib mlx4_ib mlx4_core").unwrap();
    assert!(scene.is_untouched());
    assert_eq!(scene.count("refused_accesses"), 1);
}
