//! The software HCA as a process: `paraverbs model`, one socket for each VM.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::Child;
use crate::{Rig, cargo, paths};

/// How long the model may take until its sockets are there, and to stop.
const LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to answer for its resources.
const DUMP_LIMIT: Duration = Duration::from_secs(10);
const TAIL: usize = 40;
/// The name of the control socket in the model's folder.
const CONTROL: &str = "control";

/// HCAs of the model, plugged into one fabric. Dropping it kills the process.
#[derive(Debug)]
pub struct Model {
    process: Child,
    folder: TempDir,
    sockets: Vec<PathBuf>,
    trace: PathBuf,
}

impl Model {
    /// Starts a model with `hcas` HCAs; returns when all its sockets are there. `args` are added to the
    /// command line of `paraverbs model`.
    ///
    /// # Errors
    /// The program can't be built, or ends early. The message has its output.
    pub fn start(rig: &Rig, hcas: usize, args: &[&str]) -> Result<Self> {
        let program = cargo::program("paraverbs-cli", "paraverbs")?;
        let folder = tempfile::Builder::new().prefix("rig-").tempdir().context("create a folder")?;
        let sockets: Vec<PathBuf> =
            (0..hcas).map(|index| folder.path().join(format!("hca{index}"))).collect();
        let [dump, control] = ["dump", CONTROL].map(|name| folder.path().join(name));
        let mut command = Command::new(program);
        command.arg("model");
        for socket in &sockets {
            command.arg("--socket").arg(socket);
        }
        let logs = paths::logs(rig.folder());
        fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
        let name = paths::unused("model");
        let log = logs.join(format!("{name}.log"));
        let trace = logs.join(format!("{name}.trace"));
        command.arg("--dump-socket").arg(&dump).arg("--control-socket").arg(&control);
        command.arg("--trace").arg(&trace).args(args);
        let mut process = Child::spawn("paraverbs model", &command, &log)?;
        process.wait_for_files(sockets.iter().chain([&dump, &control]), LIMIT)?;
        Ok(Self { process, folder, sockets, trace })
    }

    /// The vfio-user socket of HCA number `index`, from 0.
    ///
    /// # Panics
    /// There are not so many.
    pub fn socket(&self, index: usize) -> &Path {
        &self.sockets[index]
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The resources of every HCA, as the model itself counts them.
    ///
    /// # Errors
    /// The model doesn't answer, or with something that isn't JSON.
    pub fn dump(&self) -> Result<Value> {
        Ok(self.answer()?["cards"].take())
    }

    /// What HCA number `index`, from 0, has counted under a name since the model was started:
    /// `refused_accesses`, `held_back_accesses` (by its bus-master bit), or one of its counters; or how many bytes
    /// of memory it can reach now, `mapped_bytes`.
    ///
    /// # Errors
    /// The model doesn't answer, or has no such counter.
    pub fn count(&self, index: usize, name: &str) -> Result<u64> {
        let answer = self.answer()?;
        let count = answer["counters"][index][name].as_u64();
        count.with_context(|| format!("the model has no counter {name} for card {index}: {answer}"))
    }

    /// What the model says of its HCAs.
    fn answer(&self) -> Result<Value> {
        let mut stream =
            UnixStream::connect(self.folder.path().join("dump")).context("connect to the model's dump")?;
        stream.set_read_timeout(Some(DUMP_LIMIT))?;
        let mut text = String::new();
        stream.read_to_string(&mut text).context("read the model's dump")?;
        serde_json::from_str(&text).with_context(|| format!("the model's dump is no JSON: {text}"))
    }

    /// Pulls the cable of a port of the switch, or puts it back. The HCAs' ports are plugged in in order, from
    /// port 1.
    ///
    /// # Errors
    /// The model doesn't answer, or hasn't such a port.
    pub fn set_cable(&self, port: u8, plugged: bool) -> Result<()> {
        let mut stream =
            UnixStream::connect(self.folder.path().join(CONTROL)).context("connect to the model")?;
        stream.set_read_timeout(Some(DUMP_LIMIT))?;
        writeln!(stream, "{} {port}", if plugged { "plug" } else { "pull" })?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("read the model's answer")?;
        match answer.trim() {
            "ok" => Ok(()),
            other => bail!("the model refuses: {other}"),
        }
    }

    /// The model's log so far.
    pub fn log(&self) -> String {
        self.process.tail(usize::MAX)
    }

    /// The trace of what drivers have done with the HCAs so far.
    ///
    /// # Errors
    /// It can't be read.
    pub fn trace(&self) -> Result<String> {
        let bytes = fs::read(&self.trace).with_context(|| format!("read {}", self.trace.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Stops the model in order.
    ///
    /// # Errors
    /// It doesn't end in time, or not with success.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.terminate(LIMIT)?;
        if !status.success() {
            bail!("paraverbs model ended with {status}: {}", self.process.tail(TAIL));
        }
        Ok(())
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.process.log().display();
            eprintln!("rig: the model's log ({log}) ends:\n{}", self.process.tail(TAIL));
        }
    }
}
