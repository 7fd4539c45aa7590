//! A virtual machine: QEMU as a child of this process, and the agent in its guest.

mod client;
mod config;
mod shell;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use vmm_config::{Boot, Device, Machine, Serial};

use crate::agent::CHANNEL;
use crate::dmesg::Dmesg;
use crate::process::{Child, tail};
use crate::{Rig, paths};
use client::Client;
pub use client::{Output, Process};
pub use config::VmConfig;
pub use shell::Shell;

/// The time limit of [`Vm::run`].
pub const RUN_LIMIT: Duration = Duration::from_secs(60);
/// How long a guest may take to stop when asked to.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(60);
/// How many lines of the console go into a message.
const TAIL: usize = 40;

/// A virtual machine that runs. Dropping it kills QEMU at once.
pub struct Vm {
    name: String,
    qemu: Child,
    client: Client,
    console: PathBuf,
    _sockets: TempDir,
}

impl Vm {
    /// Boots a VM; returns when its agent answers.
    ///
    /// # Errors
    /// QEMU ends early, or the guest doesn't come up in time. The message has the end of its console.
    pub fn boot(rig: &Rig, config: VmConfig) -> Result<Self> {
        let name = config.name.clone();
        Self::start(rig, config).with_context(|| format!("boot VM {name}"))
    }

    fn start(rig: &Rig, config: VmConfig) -> Result<Self> {
        let deadline = Instant::now() + config.boot_limit;
        let logs = Logs::new(rig, &config.name)?;
        let sockets = tempfile::Builder::new().prefix("rig-").tempdir().context("create a folder")?;
        let channel = sockets.path().join("agent");
        let listener = UnixListener::bind(&channel).context("listen for the agent")?;
        listener.set_nonblocking(true)?;

        let mut devices = vec![Device::Channel { name: CHANNEL.to_owned(), socket: channel }];
        devices.extend(config.devices.iter().cloned());
        let machine = machine(rig, &config, devices, Serial::File(logs.console.clone()))?;
        let mut qemu = Child::spawn(&config.name, &qemu(rig, &machine), &logs.qemu)?;
        let stream = accept(&listener, &mut qemu, deadline)
            .with_context(|| format!("QEMU says: {}", qemu.tail(TAIL)))?;
        let client = Client::start(&config.name, stream).context("talk to the agent")?;
        let vm = Self { name: config.name, qemu, client, console: logs.console, _sockets: sockets };
        vm.client
            .wait_for_hello(deadline.saturating_duration_since(Instant::now()))
            .with_context(|| format!("QEMU says: {}\n{}", vm.qemu.tail(TAIL), vm.console_report()))?;
        Ok(vm)
    }

    /// The name given to it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.qemu.pid()
    }

    /// Runs a command with `sh -c` and waits for its end, at most [`RUN_LIMIT`].
    ///
    /// # Errors
    /// The command can't be run to its end; an exit status other than 0 is no error.
    pub fn run(&self, command: &str) -> Result<Output> {
        self.run_within(RUN_LIMIT, command)
    }

    /// Runs a command as [`Vm::run`] does, with another time limit, at which it is killed.
    ///
    /// # Errors
    /// As for [`Vm::run`].
    pub fn run_within(&self, limit: Duration, command: &str) -> Result<Output> {
        let output = self.spawn(command)?.wait(limit);
        output.with_context(|| self.console_report())
    }

    /// Runs a command that must succeed; gives its standard output.
    ///
    /// # Errors
    /// It can't be run, or its exit status isn't 0: the message has all of its output.
    pub fn check(&self, command: &str) -> Result<String> {
        self.check_within(RUN_LIMIT, command)
    }

    /// Runs a command as [`Vm::check`] does, with another time limit.
    ///
    /// # Errors
    /// As for [`Vm::check`].
    pub fn check_within(&self, limit: Duration, command: &str) -> Result<String> {
        let output = self.run_within(limit, command)?;
        if output.status != 0 {
            bail!("on {}: `{command}` {output}", self.name);
        }
        Ok(output.stdout)
    }

    /// Starts a command with `sh -c`; it runs beside others until it ends or its handle is dropped.
    ///
    /// # Errors
    /// The guest's agent can't be reached.
    pub fn spawn(&self, command: &str) -> Result<Process> {
        self.client.spawn(command).with_context(|| self.console_report())
    }

    /// Writes a file in the guest, with permissions `mode`.
    ///
    /// # Errors
    /// The guest can't write it.
    pub fn put(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let mut process = self.spawn(&format!("cat > '{path}' && chmod {mode:o} '{path}'"))?;
        process.feed(bytes)?;
        let output = process.wait(RUN_LIMIT)?;
        if output.status != 0 {
            bail!("write {path} on {}: {output}", self.name);
        }
        Ok(())
    }

    /// The kernel's log.
    ///
    /// # Errors
    /// It can't be read.
    pub fn dmesg(&self) -> Result<Dmesg> {
        Ok(Dmesg::parse(&self.check("dmesg -r")?))
    }

    /// What the console has shown so far.
    pub fn console(&self) -> String {
        tail(&self.console, usize::MAX)
    }

    /// Resets the guest by `reboot -f`, with what it holds of its devices left as it is, and waits until its agent
    /// answers again. The VM must have been configured for it.
    ///
    /// # Errors
    /// The guest doesn't come up in time, or QEMU ends.
    pub fn reboot(&self, limit: Duration) -> Result<()> {
        self.client.expect_hello();
        // The answer to this never comes.
        self.spawn("reboot -f")?.forget();
        self.client.wait_for_hello(limit).with_context(|| self.console_report())
    }

    /// Stops the guest in order, and waits for QEMU's end.
    ///
    /// # Errors
    /// The guest doesn't stop in time (it is killed then), or QEMU fails.
    pub fn shutdown(mut self) -> Result<()> {
        // The answer to this never comes.
        let process = self.spawn("sync; poweroff -f")?;
        let status = self.qemu.wait(SHUTDOWN_LIMIT).with_context(|| self.console_report());
        process.forget();
        let status = status?;
        if !status.success() {
            bail!("QEMU of {} ended with {status}: {}", self.name, self.qemu.tail(TAIL));
        }
        Ok(())
    }

    fn console_report(&self) -> String {
        format!("the console of {} ({}) ends:\n{}", self.name, self.console.display(), self.console_tail())
    }

    fn console_tail(&self) -> String {
        tail(&self.console, TAIL)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("rig: {}", self.console_report());
        }
    }
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm").field("name", &self.name).field("pid", &self.pid()).finish_non_exhaustive()
    }
}

fn machine(rig: &Rig, config: &VmConfig, devices: Vec<Device>, serial: Serial) -> Result<Machine> {
    let iommu = if config.iommu { " intel_iommu=on" } else { "" };
    // On a busy host an emulated timer can fail the kernel's test of it.
    let cmdline = format!(
        "console=ttyS0 panic=-1 quiet log_buf_len=1M no_timer_check rig.name={}{iommu} {}",
        config.name, config.kernel_args
    );
    let image = rig.image(config.kernel, config.programs)?;
    Ok(Machine {
        name: config.name.clone(),
        accelerator: config.accelerator,
        memory_mib: config.memory_mib,
        cpus: config.cpus,
        boot: Boot {
            kernel: image.kernel,
            initrd: Some(image.initrd),
            cmdline: cmdline.trim_end().to_owned(),
        },
        serial,
        iommu: config.iommu,
        reboots: config.reboots,
        devices,
    })
}

/// QEMU of the rig's own tree, with its own loader and firmware.
fn qemu(rig: &Rig, machine: &Machine) -> Command {
    let tree = rig.qemu();
    let mut command = tree.command("usr/bin/qemu-system-x86_64", "qemu-system-x86_64");
    command.env("QEMU_MODULE_DIR", tree.path("usr/lib/x86_64-linux-gnu/qemu"));
    for firmware in ["usr/share/qemu", "usr/share/seabios"] {
        command.arg("-L").arg(tree.path(firmware));
    }
    command.args(machine.qemu_args());
    command
}

/// The connection that QEMU makes when it starts.
fn accept(listener: &UnixListener, qemu: &mut Child, deadline: Instant) -> Result<UnixStream> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("accept QEMU's connection"),
        }
        if let Some(status) = qemu.status()? {
            bail!("QEMU ended with {status}");
        }
        if Instant::now() >= deadline {
            bail!("QEMU didn't connect in time");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Where the logs of one VM go: a folder for each test, which its next run writes over.
struct Logs {
    console: PathBuf,
    qemu: PathBuf,
}

impl Logs {
    fn new(rig: &Rig, name: &str) -> Result<Self> {
        let folder = paths::logs(rig.folder());
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let name = paths::unused(name);
        let file = |kind: &str| -> PathBuf { Path::new(&folder).join(format!("{name}.{kind}.log")) };
        Ok(Self { console: file("console"), qemu: file("qemu") })
    }
}
