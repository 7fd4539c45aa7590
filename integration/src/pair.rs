//! Two VMs, each with an HCA of the model on one fabric, and what tests do with both: boot them at once, give their
//! interfaces addresses, and run a program as a server in the one and as its client in the other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{Model, Process, Rig, Vm, VmConfig, stock};

/// Guest code is translated, and two guests share the machine's processors with the model.
const LIMIT: Duration = Duration::from_secs(120);

/// The VMs `a` and `b`.
#[derive(Debug)]
pub struct Pair {
    /// What their HCAs are made of.
    pub model: Model,
    /// `a`, with the model's first HCA, and `b`, with its second.
    pub vms: [Vm; 2],
}

impl Pair {
    /// Boots both at once, on a fabric that `paraverbs model` makes with such options. `configure` gets the
    /// configuration of each, with its HCA, and its place (0 or 1), and may add to it.
    ///
    /// # Errors
    /// As for [`Model::start`] and [`Rig::boot`].
    pub fn boot<C>(rig: &Rig, model_args: &[&str], configure: C) -> Result<Self>
    where
        C: Fn(VmConfig, usize) -> VmConfig + Sync,
    {
        let model = Model::start(rig, 2, model_args)?;
        let boot = |name, hca| rig.boot(configure(VmConfig::new(name).hca(model.socket(hca)), hca));
        let vms = std::thread::scope(|scope| -> Result<[Vm; 2]> {
            let other = scope.spawn(|| boot("b", 1));
            let one = boot("a", 0);
            let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok([one?, other?])
        })?;
        Ok(Self { model, vms })
    }

    /// Loads the stock drivers, and waits until both ports are ACTIVE.
    ///
    /// # Errors
    /// As for [`stock::bring_up`].
    pub fn bring_up(&self) -> Result<()> {
        self.vms.iter().try_for_each(stock::bring_up)
    }

    /// Gives an interface of each VM its address (of a network of 24 bits), and waits until `a` reaches `b`.
    ///
    /// # Errors
    /// There is no such interface, or the other isn't reached in time.
    pub fn address(&self, interface: &str, addresses: [&str; 2]) -> Result<()> {
        for (vm, address) in self.vms.iter().zip(addresses) {
            vm.check(&format!("ip link set {interface} up && ip addr add {address}/24 dev {interface}"))?;
        }
        reach(&self.vms[0], addresses[1])
    }

    /// Pings all nodes of an interface's link from each VM. Its own kernel answers too, so the other VM's address must
    /// be among the answers, both ways.
    ///
    /// # Errors
    /// The other one doesn't answer.
    pub fn ping_all_nodes(&self, interface: &str) -> Result<()> {
        let find =
            format!("ip -6 -o addr show dev {interface} scope link | sed 's/.*inet6 \\([^/]*\\).*/\\1/'");
        for (from, to) in [(0, 1), (1, 0)] {
            let address = self.vms[to].check(&find)?;
            let ping = format!("ping -6 -c 4 -i 0.5 -I {interface} ff02::1");
            let answers = self.vms[from].check(&ping)?;
            let wanted = format!("bytes from {}%", address.trim());
            ensure!(answers.contains(&wanted), "no {address} in {answers}");
        }
        Ok(())
    }

    /// Starts a server in `a`; returns when the shell's test `listening` holds there.
    ///
    /// # Errors
    /// The server ends before, or it doesn't hold in time; the message has what the server printed.
    pub fn serve(&self, program: &str, listening: &str) -> Result<Process> {
        let server = self.vms[0].spawn(program)?;
        let end = Instant::now() + LIMIT;
        while self.vms[0].run(listening)?.status != 0 {
            let waits = server.is_running() && Instant::now() < end;
            ensure!(waits, "{program} doesn't listen: {:?}", server.output());
        }
        Ok(server)
    }

    /// Runs a server's client in `b`, which must succeed; gives what it prints.
    ///
    /// # Errors
    /// It fails, or doesn't end in time; the message has what the server printed, too.
    pub fn connect(&self, program: &str, server: &Process) -> Result<String> {
        let output = self.vms[1].check_within(LIMIT, program);
        output.with_context(|| format!("the server: {:?}", server.output()))
    }

    /// Runs a server and its client, which must both end with success; gives what they print.
    ///
    /// # Errors
    /// As for [`Pair::serve`] and [`Pair::connect`], or the server fails.
    pub fn both(&self, server: &str, listening: &str, client: &str) -> Result<[String; 2]> {
        let process = self.serve(server, listening)?;
        let client = self.connect(client, &process)?;
        let served = process.wait(LIMIT)?;
        ensure!(served.status == 0, "{server}: {served}");
        Ok([served.stdout, client])
    }

    /// Expects that the stock drivers had no trouble, and unloads them.
    ///
    /// # Errors
    /// They had: the message has the lines of the kernels' logs. Or a module is in use.
    pub fn unload(&self) -> Result<()> {
        for vm in &self.vms {
            let problems = stock::problems(vm)?;
            ensure!(problems.is_empty(), "on {}: {problems:?}", vm.name());
            stock::unload(vm)?;
        }
        Ok(())
    }
}

/// The shell's test for a program that listens on a TCP port.
pub fn listens(port: u16) -> String {
    format!("ss -ltn | grep -q ':{port} '")
}

/// Waits until a VM reaches an address by ICMP.
///
/// # Errors
/// It doesn't within two minutes.
pub fn reach(vm: &Vm, address: &str) -> Result<()> {
    let ping = format!("until ping -c 1 -W 1 {address} >/dev/null; do sleep 0.1; done");
    vm.check_within(LIMIT, &ping).map(drop)
}
