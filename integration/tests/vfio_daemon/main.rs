//! The daemon on a card behind a real kernel's VFIO: a guest with a virtual IOMMU, in which the model's card is
//! bound to vfio-pci, `paraverbsd` drives it, and processes exchange data through the daemon.
//!
//! The card outside counts what it did itself: work requests, payload, and accesses to memory that the IOMMU
//! refused it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::{Duration, Instant};

use integration::patience::until;
use integration::{Model, Process, Rig, Vm, VmConfig};
use serde_json::Value;

/// Where the card is in the guest.
const ADDRESS: &str = "0000:01:00.0";
const LIMIT: Duration = Duration::from_secs(120);
/// Within this time a daemon serves after another one was killed.
const RESTART: Duration = Duration::from_secs(10);
const SIGTERM: i32 = 15;

/// The VM, the card, and how the card is when nobody uses it.
struct Scene {
    vm: Vm,
    model: Model,
    untouched: Value,
}

/// A daemon in the VM.
struct Daemon(Process);

impl Scene {
    fn new(rig: &Rig) -> Self {
        let model = Model::start(rig, 1, &[]).unwrap();
        let vm = rig.boot(VmConfig::new("a").memory_mib(1024).iommu().hca(model.socket(0))).unwrap();
        for (package, name) in [
            ("integration", "rig-driver"),
            ("paraverbs-cli", "paraverbs"),
            ("paraverbsd", "paraverbsd"),
            ("paraverbs-verbs", "pverbs"),
        ] {
            let program = integration::program(package, name).unwrap();
            vm.put(&format!("/bin/{name}"), 0o755, &std::fs::read(program).unwrap()).unwrap();
        }
        vm.check("ip link set lo up").unwrap();
        let untouched = model.dump().unwrap();
        Self { vm, model, untouched }
    }

    /// Runs `paraverbs` with the card's address; gives its exit status and all its output.
    fn tool(&self, command: &str) -> (i32, String) {
        let output = self.vm.run_within(LIMIT, &format!("paraverbs {command} {ADDRESS}")).unwrap();
        (output.status, output.stdout + &output.stderr)
    }

    /// Runs `paraverbs`, which must fail and say certain words.
    fn fails(&self, command: &str, words: &[&str]) {
        let (status, text) = self.tool(command);
        assert_eq!(status, 1, "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text}");
    }

    /// Runs `paraverbs`, which must succeed, and gives what it says.
    fn succeeds(&self, command: &str) -> String {
        let (status, text) = self.tool(command);
        assert_eq!(status, 0, "{text}");
        text
    }

    /// Waits until the port is ACTIVE in the kernel's own driver.
    fn kernel_s_port_is_active(&self) {
        let state = "cat /sys/class/infiniband/*/ports/1/state";
        until("the kernel's port", || Ok(self.vm.run(state)?.stdout.trim() == "4: ACTIVE")).unwrap();
    }

    /// Starts the daemon with guests a and b; returns when it serves both.
    fn daemon(&self, limit: Duration) -> Daemon {
        let mut process = self
            .vm
            .spawn(&format!(
                "exec paraverbsd --device vfio:{ADDRESS} --kind process --guest a=/run/a --guest b=/run/b"
            ))
            .unwrap();
        for guest in ["a", "b"] {
            assert_eq!(process.line(limit).unwrap(), format!("serving guest {guest} on /run/{guest}"));
        }
        Daemon(process)
    }

    /// Guest a waits for guest b, and both have such options.
    fn ping(&self, options: &str) -> [Process; 2] {
        let mut server = self.vm.spawn(&format!("exec pverbs ping --socket /run/a {options}")).unwrap();
        server.line(LIMIT).unwrap();
        let client = self.vm.spawn(&format!("exec pverbs ping --socket /run/b {options} localhost")).unwrap();
        [server, client]
    }

    fn count(&self, name: &str) -> u64 {
        self.model.count(0, name).unwrap()
    }

    /// The interrupts of the card that came, by vector.
    fn interrupts(&self) -> Vec<u64> {
        let text = self.vm.check("cat /proc/interrupts").unwrap();
        let of_card = text.lines().filter(|line| line.contains("vfio-msix") && line.contains(ADDRESS));
        of_card.map(|line| line.split_whitespace().nth(1).unwrap().parse().unwrap()).collect()
    }

    fn is_untouched(&self) -> bool {
        self.model.dump().unwrap() == self.untouched
    }
}

impl Daemon {
    fn stop(self) {
        self.0.signal(SIGTERM).unwrap();
        let output = self.0.wait(LIMIT).unwrap();
        assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{output}");
    }
}

fn passed(name: &str, what: &str) {
    println!("ok     {name:<13} {what}");
}

#[test]
fn daemon_serves_processes_through_vfio_and_the_iommu_refuses_the_card_nothing() {
    let rig = Rig::prepare().unwrap();
    let scene = Scene::new(&rig);
    card_moves_to_vfio(&scene);
    traffic_flows(&scene);
    daemon_is_killed(&scene);
    assert_eq!(scene.count("refused_accesses"), 0);
    passed("refused", "the IOMMU has refused the card no access in all of this");
    memory_is_unmapped_on_purpose(&scene);
    card_moves_back(&scene);
    scene.vm.shutdown().unwrap();
    scene.model.stop().unwrap();
}

fn card_moves_to_vfio(scene: &Scene) {
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

fn traffic_flows(scene: &Scene) {
    let daemon = scene.daemon(LIMIT);
    let devinfo = scene.vm.check("pverbs devinfo --socket /run/a").unwrap();
    assert!(devinfo.contains("PORT_ACTIVE (4)"), "{devinfo}");
    passed("active", "the daemon in the VM serves a device whose port is ACTIVE");

    for options in ["-c -n 200", "-c -e -s 100000 -n 50", "-c -g 0 -m 4096 -s 1000000 -n 5"] {
        let (requests, payload) = (scene.count("send_wqes"), scene.count("payload_bytes"));
        for process in scene.ping(options) {
            let output = process.wait(LIMIT).unwrap();
            assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{output}");
        }
        let number = |option: &str, default| {
            let mut words = options.split(' ').skip_while(|word| *word != option).skip(1);
            words.next().map_or(default, |word| word.parse::<u64>().unwrap())
        };
        let messages = 2 * number("-n", 0);
        assert_eq!(scene.count("send_wqes") - requests, messages);
        assert_eq!(scene.count("payload_bytes") - payload, messages * number("-s", 4096));
        passed("ping", &format!("{messages} messages between two processes, data checked ({options})"));
    }

    let interrupts = scene.interrupts();
    assert!(interrupts.iter().sum::<u64>() > 0, "{interrupts:?}");
    passed("msi-x", &format!("interrupts that came, by vector: {interrupts:?}"));
    scene.fails("doctor", &["FAILED  files     in use: paraverbsd (process ", "has /dev/vfio/"]);
    scene.fails("unbind", &["is in use, end that first: paraverbsd (process "]);
    passed("in use", "while the daemon runs nobody can move the card");
    daemon.stop();
    assert!(scene.is_untouched());
    passed("exit", "after the daemon's end nothing is left in the card");
}

fn daemon_is_killed(scene: &Scene) {
    let daemon = scene.daemon(LIMIT);
    let before = scene.count("send_wqes");
    let guests = scene.ping("-s 65536 -n 100000000");
    until("messages", || Ok(scene.model.count(0, "send_wqes")? > before + 100)).unwrap();
    daemon.0.kill().unwrap();
    for guest in guests {
        let output = guest.wait(LIMIT).unwrap();
        assert_eq!(output.status, 1, "{output}");
    }
    until("the kernel resets the card", || Ok(scene.is_untouched())).unwrap();
    passed("killed", "SIGKILL of the daemon while messages flow: guests end, the card is reset");
    let held_back = scene.count("held_back_accesses");
    println!("       accesses that the kernel held back when it turned bus mastering off: {held_back}");
    let killed = Instant::now();
    let daemon = scene.daemon(RESTART);
    passed("restart", &format!("the next daemon serves after {:.1} s", killed.elapsed().as_secs_f64()));
    for process in scene.ping("-c -n 200") {
        let output = process.wait(LIMIT).unwrap();
        assert_eq!(output.status, 0, "{output}");
    }
    daemon.stop();
    assert!(scene.is_untouched());
}

fn memory_is_unmapped_on_purpose(scene: &Scene) {
    let output = scene.vm.check_within(LIMIT, &format!("rig-driver vfio:{ADDRESS} unmapped")).unwrap();
    assert!(output.contains("rdma write to unmapped memory: Failed"), "{output}");
    assert_eq!(scene.count("refused_accesses"), 1, "{output}");
    assert!(scene.is_untouched());
    passed("control", "memory unmapped on purpose: the card counts 1 refused access");
}

fn card_moves_back(scene: &Scene) {
    assert_eq!(scene.succeeds("unbind"), format!("{ADDRESS} moved from vfio-pci to mlx4_core\n"));
    scene.kernel_s_port_is_active();
    passed("unbind", "moved back to mlx4_core, whose port is ACTIVE");
    scene.vm.check_within(LIMIT, "modprobe -r ib_ipoib mlx4_ib mlx4_core").unwrap();
    assert!(scene.is_untouched());
    assert_eq!(scene.count("refused_accesses"), 1);
}
