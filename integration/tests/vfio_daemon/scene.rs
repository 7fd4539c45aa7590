//! The VM, the card outside it, and what runs in the VM.

use std::time::Duration;

use integration::patience::until;
use integration::{Model, Process, Rig, Vm, VmConfig};
use serde_json::Value;

/// Where the card is in the guest.
pub(crate) const ADDRESS: &str = "0000:01:00.0";
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// Within this time a daemon serves after another one was killed.
pub(crate) const RESTART: Duration = Duration::from_secs(10);
pub(crate) const SIGTERM: i32 = 15;

/// The VM, the card, and how the card is when nobody uses it.
pub(crate) struct Scene {
    pub(crate) vm: Vm,
    pub(crate) model: Model,
    untouched: Value,
}

/// A daemon in the VM.
pub(crate) struct Daemon(pub(crate) Process);

impl Scene {
    pub(crate) fn new(rig: &Rig) -> Self {
        let model = Model::start(rig, 1, &[]).unwrap();
        let vm = rig.boot(VmConfig::new("a").memory_mib(1024).iommu().hca(model.socket(0))).unwrap();
        for (package, name) in [
            ("integration", "rig-guest"),
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
    pub(crate) fn tool(&self, command: &str) -> (i32, String) {
        let output = self.vm.run_within(LIMIT, &format!("paraverbs {command} {ADDRESS}")).unwrap();
        (output.status, output.stdout + &output.stderr)
    }

    /// Runs `paraverbs`, which must fail and say certain words.
    pub(crate) fn fails(&self, command: &str, words: &[&str]) {
        let (status, text) = self.tool(command);
        assert_eq!(status, 1, "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text}");
    }

    /// Runs `paraverbs`, which must succeed, and gives what it says.
    pub(crate) fn succeeds(&self, command: &str) -> String {
        let (status, text) = self.tool(command);
        assert_eq!(status, 0, "{text}");
        text
    }

    /// Waits until the port is ACTIVE in the kernel's own driver.
    pub(crate) fn kernel_s_port_is_active(&self) {
        let state = "cat /sys/class/infiniband/*/ports/1/state";
        until("the kernel's port", || Ok(self.vm.run(state)?.stdout.trim() == "4: ACTIVE")).unwrap();
    }

    /// Starts the daemon with guests a and b; returns when it serves both.
    pub(crate) fn daemon(&self, limit: Duration) -> Daemon {
        self.daemon_of("", &["a", "b"], limit)
    }

    /// Starts the daemon by a program that becomes it, with these guests; returns when it serves all.
    pub(crate) fn daemon_of(&self, by: &str, guests: &[&str], limit: Duration) -> Daemon {
        let mut process = self.vm.spawn(&command(by, guests)).unwrap();
        for guest in guests {
            assert_eq!(process.line(limit).unwrap(), format!("serving guest {guest} on /run/{guest}"));
        }
        Daemon(process)
    }

    /// Does something while the memory of new processes' guests is of pages of 2 MiB: in those of 4 KiB the VM's IOMMU
    /// takes seconds for what they register.
    pub(crate) fn in_large_pages(&self, run: impl FnOnce()) {
        let pages = |which| {
            let file = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
            self.vm.check(&format!("echo {which} > {file}")).unwrap();
        };
        pages("always");
        run();
        pages("never");
    }

    /// Guests a and b begin to exchange data.
    pub(crate) fn play(&self) -> Players {
        let mut process = self.vm.spawn("exec rig-guest playing /run/a /run/b").unwrap();
        assert_eq!(process.line(LIMIT).unwrap(), "playing");
        Players(process)
    }

    /// Waits until so many more requests have gone through the card.
    pub(crate) fn data_flow(&self, requests: u64) {
        let before = self.count("send_wqes");
        until("requests", || Ok(self.model.count(0, "send_wqes")? >= before + requests)).unwrap();
    }

    /// Guest a waits for guest b, and both have such options.
    pub(crate) fn ping(&self, options: &str) -> [Process; 2] {
        let mut server = self.vm.spawn(&format!("exec pverbs ping --socket /run/a {options}")).unwrap();
        server.line(LIMIT).unwrap();
        let client = self.vm.spawn(&format!("exec pverbs ping --socket /run/b {options} localhost")).unwrap();
        [server, client]
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        self.model.count(0, name).unwrap()
    }

    /// The interrupts of the card that came, by vector.
    pub(crate) fn interrupts(&self) -> Vec<u64> {
        let text = self.vm.check("cat /proc/interrupts").unwrap();
        let of_card = text.lines().filter(|line| line.contains("vfio-msix") && line.contains(ADDRESS));
        of_card.map(|line| line.split_whitespace().nth(1).unwrap().parse().unwrap()).collect()
    }

    pub(crate) fn is_untouched(&self) -> bool {
        self.model.dump().unwrap() == self.untouched
    }
}

impl Daemon {
    pub(crate) fn stop(self) {
        self.0.signal(SIGTERM).unwrap();
        let output = self.0.wait(LIMIT).unwrap();
        assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{output}");
    }
}

/// Guests a and b, which exchange data.
pub(crate) struct Players(Process);

impl Players {
    /// Ends it: no data were wrong, and no request has failed. Answers what they say of it.
    pub(crate) fn stop(mut self) -> String {
        self.0.write(b"\n").unwrap();
        let said = self.0.line(LIMIT).unwrap();
        let output = self.0.wait(LIMIT).unwrap();
        assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{output}");
        said
    }
}

/// The command that becomes the daemon.
pub(crate) fn command(by: &str, guests: &[&str]) -> String {
    let guests: String = guests.iter().map(|guest| format!(" --guest {guest}=/run/{guest}")).collect();
    format!("exec {by} paraverbsd --device vfio:{ADDRESS} --kind process{guests}")
}

/// Tells that a check has passed.
pub(crate) fn passed(name: &str, what: &str) {
    integration::passed(format_args!("{name:<13} {what}"));
}
