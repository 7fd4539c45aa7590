//! A queue pair of the stock verbs in a guest, which a test drives from the host.
//!
//! The program behind it, `verbs-peer`, is compiled with Debian's header and linked with the guest's own
//! libibverbs, so that what runs is the stock library with its stock provider on the stock kernel.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Atomic, Endpoint, Message, Notify, Peer, Route, Service, Status, Stretch, Terms, Told, Way};
use crate::Rig;
use crate::fetch::Tree;
use crate::process;
use crate::vm::{Output, Process, Vm};

/// The program's files.
const SOURCES: [(&str, &str); 5] = [
    ("peer.h", include_str!("verbs-peer/peer.h")),
    ("main.c", include_str!("verbs-peer/main.c")),
    ("objects.c", include_str!("verbs-peer/objects.c")),
    ("way.c", include_str!("verbs-peer/way.c")),
    ("work.c", include_str!("verbs-peer/work.c")),
];
/// Where the program is in a guest.
const PROGRAM: &str = "/usr/bin/verbs-peer";
/// Compiling it on a busy machine.
const COMPILE_LIMIT: Duration = Duration::from_secs(120);
/// A command moves and looks at megabytes on a translated processor; the program itself gives up sooner.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// A [`Peer`] of the stock verbs in a guest. Dropping it kills its program.
#[derive(Debug)]
pub struct StockPeer {
    process: Process,
    endpoint: Endpoint,
}

impl StockPeer {
    /// Opens the HCA `device` (`mlx4_0`, say) in a guest, registers `bytes` bytes, and takes a queue pair
    /// to INIT.
    ///
    /// # Errors
    /// The guest can't run the program, or a verb fails.
    pub fn start(rig: &Rig, vm: &Vm, device: &str, bytes: usize, service: Service) -> Result<Self> {
        if vm.run(&format!("test -x {PROGRAM}"))?.status != 0 {
            let program = rig.verbs_peer();
            let file = fs::read(program).with_context(|| format!("read {}", program.display()))?;
            vm.put(PROGRAM, 0o755, &file)?;
        }
        let mut process = vm.spawn(&format!("exec {PROGRAM} {device} {bytes} {}", service.name()))?;
        let line = process.line(ANSWER_LIMIT)?;
        let endpoint = endpoint(&line).with_context(|| format!("verbs-peer says {line:?}"))?;
        Ok(Self { process, endpoint })
    }

    /// Has the program give everything back and end.
    ///
    /// # Errors
    /// A verb fails, or it doesn't end in time.
    pub fn stop(mut self) -> Result<()> {
        self.process.feed(&[])?;
        let Output { status, stderr, .. } = self.process.wait(ANSWER_LIMIT)?;
        ensure!(status == 0, "verbs-peer ended with status {status}: {stderr}");
        Ok(())
    }

    /// Gives a command, and its answer.
    fn ask(&mut self, command: &str) -> Result<Answer> {
        self.process.write(format!("{command}\n").as_bytes())?;
        let line = self.process.line(ANSWER_LIMIT)?;
        answer(&line).with_context(|| format!("verbs-peer answers `{command}` with: {line}"))
    }

    /// Gives a command that is about no completion.
    fn done(&mut self, command: &str) -> Result<String> {
        match self.ask(command)? {
            Answer::Ok(rest) => Ok(rest),
            Answer::Completion(status) => bail!("`{command}` ends in {status:?}"),
        }
    }

    /// Gives a command that ends in a completion.
    fn complete(&mut self, command: &str) -> Result<Status> {
        match self.ask(command)? {
            Answer::Ok(_) => Ok(Status::SUCCESS),
            Answer::Completion(status) => Ok(status),
        }
    }
}

impl Peer for StockPeer {
    fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    fn connect(&mut self, to: &Endpoint, terms: &Terms) -> Result<()> {
        let Endpoint { lid, qpn, psn, requester, srqn, .. } = to;
        let Terms { mtu, timeout, retries, rnr_retries } = terms;
        let mtu = mtu.ilog2() - 7;
        let command =
            format!("connect {lid} {qpn} {psn} {mtu} {timeout} {retries} {rnr_retries} {requester} {srqn}");
        self.done(&command).map(drop)
    }

    fn fill(&mut self, at: Stretch, seed: u32) -> Result<()> {
        self.done(&format!("fill {} {} {seed}", at.offset, at.bytes())).map(drop)
    }

    fn verify(&mut self, at: Stretch, seed: u32) -> Result<()> {
        self.done(&format!("verify {} {} {seed}", at.offset, at.bytes())).map(drop)
    }

    fn post_recv(&mut self, at: Stretch) -> Result<()> {
        self.done(&format!("recv {} {} {}", at.offset, at.length, at.count)).map(drop)
    }

    fn received(&mut self, at: Stretch) -> Result<Status> {
        self.complete(&format!("received {} {}", at.length, at.count))
    }

    fn send(&mut self, at: Stretch) -> Result<Status> {
        self.complete(&format!("send {} {} {}", at.offset, at.length, at.count))
    }

    fn write(&mut self, at: Stretch, address: u64, rkey: u32) -> Result<Status> {
        self.complete(&format!("write {} {} {} {address} {rkey}", at.offset, at.length, at.count))
    }

    fn read(&mut self, at: Stretch, address: u64, rkey: u32) -> Result<Status> {
        self.complete(&format!("read {} {} {} {address} {rkey}", at.offset, at.length, at.count))
    }

    fn atomic(&mut self, result: usize, address: u64, rkey: u32, operation: Atomic) -> Result<Status> {
        match operation {
            Atomic::FetchAdd { add } => self.complete(&format!("fetch_add {result} {address} {rkey} {add}")),
            Atomic::CompareSwap { compare, swap } => {
                self.complete(&format!("compare_swap {result} {address} {rkey} {compare} {swap}"))
            }
        }
    }

    fn put_word(&mut self, at: usize, value: u64) -> Result<()> {
        self.done(&format!("put {at} {value}")).map(drop)
    }

    fn word(&mut self, at: usize) -> Result<u64> {
        let word = self.done(&format!("get {at}"))?;
        word.parse().with_context(|| format!("the word at {at} is {word:?}"))
    }

    fn state(&mut self) -> Result<String> {
        self.done("state")
    }
}

impl Notify for StockPeer {
    fn post(&mut self, at: Stretch, message: Message) -> Result<()> {
        let place = format!("{} {}", at.offset, at.length);
        let command = match message {
            Message::Send => format!("post_send {place}"),
            Message::SendImmediate(immediate) => format!("post_send_imm {place} {immediate}"),
            Message::SendInvalidate(key) => format!("post_send_inv {place} {key}"),
            Message::WriteImmediate { address, rkey, immediate } => {
                format!("post_write_imm {place} {immediate} {address} {rkey}")
            }
        };
        self.done(&command).map(drop)
    }

    fn sent(&mut self, count: usize) -> Result<Status> {
        self.complete(&format!("sent {count}"))
    }

    fn told(&mut self, length: usize) -> Result<Told> {
        told(&self.done(&format!("told {length}"))?)
    }

    fn bind(&mut self, at: Stretch) -> Result<u32> {
        let key = self.done(&format!("bind {} {}", at.offset, at.length))?;
        key.parse().with_context(|| format!("the window's key is {key:?}"))
    }
}

impl Route for StockPeer {
    fn route(&mut self, way: &Way) -> Result<()> {
        let [high, low] = halves(way.gid.unwrap_or_default());
        self.done(&format!("route {} {} {} {high} {low}", way.lid, way.qpn, way.qkey)).map(drop)
    }

    fn attach(&mut self, gid: [u8; 16], lid: u16) -> Result<()> {
        let [high, low] = halves(gid);
        self.done(&format!("attach {lid} {high} {low}")).map(drop)
    }
}

/// A GID as two numbers.
fn halves(gid: [u8; 16]) -> [u64; 2] {
    let gid = u128::from_be_bytes(gid);
    [gid >> 64, gid & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or_default())
}

/// What the program says of a receive.
fn told(words: &str) -> Result<Told> {
    match words.split_once(' ') {
        None if words == "nothing" => Ok(Told::Nothing),
        Some(("imm", immediate)) => Ok(Told::Immediate(immediate.parse()?)),
        Some(("inv", key)) => Ok(Told::Invalidated(key.parse()?)),
        _ => bail!("a receive tells {words:?}"),
    }
}

/// What the program says to a command.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Ok(String),
    Completion(Status),
}

fn answer(line: &str) -> Result<Answer> {
    let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
    match kind {
        "ok" => Ok(Answer::Ok(rest.to_owned())),
        "wc" => {
            let number = rest.split(' ').next().unwrap_or_default();
            Ok(Answer::Completion(Status(number.parse().context("the status is no number")?)))
        }
        _ => bail!("it could not do that"),
    }
}

/// What the program says of itself when it is ready.
fn endpoint(line: &str) -> Result<Endpoint> {
    let words: Vec<&str> = line.split(' ').collect();
    let ["ok", lid, qpn, psn, address, rkey, requester, srqn] = words[..] else {
        bail!("that isn't where it can be reached");
    };
    Ok(Endpoint {
        lid: lid.parse()?,
        qpn: qpn.parse()?,
        psn: psn.parse()?,
        address: address.parse()?,
        rkey: rkey.parse()?,
        requester: requester.parse()?,
        srqn: srqn.parse()?,
    })
}

/// Compiles the program, if it isn't there, with Debian's header and the guest's library; gives its path.
///
/// # Errors
/// There is no C compiler, or it finds an error.
pub(crate) fn compile(guest: &Tree, headers: &Tree, folder: &Path) -> Result<PathBuf> {
    let mut key = DefaultHasher::new();
    (SOURCES, guest.manifest(), headers.manifest()).hash(&mut key);
    let program = folder.join(format!("verbs-peer-{:016x}", key.finish()));
    if program.is_file() {
        return Ok(program);
    }
    let stage = tempfile::tempdir_in(folder)?;
    for (name, text) in SOURCES {
        fs::write(stage.path().join(name), text)?;
    }
    let sources = SOURCES.iter().filter(|(name, _)| name.ends_with(".c"));
    let made = stage.path().join("verbs-peer");
    let mut cc = Command::new(process::find("cc", "gcc")?);
    cc.args(["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O2", "-Wall", "-Wextra"]);
    cc.arg("-isystem").arg(headers.path("usr/include")).arg("-o").arg(&made);
    cc.args(sources.map(|(name, _)| stage.path().join(name)));
    cc.arg(guest.path("usr/lib/x86_64-linux-gnu/libibverbs.so.1"));
    // What the library needs itself is the guest's affair.
    cc.arg("-Wl,--unresolved-symbols=ignore-in-shared-libs");
    process::run(&cc, COMPILE_LIMIT).context("compile verbs-peer")?;
    fs::rename(&made, &program).context("put verbs-peer into its place")?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_of_anything_but_the_announcement_is_an_error() {
        let read = endpoint("ok 2 71 16777200 140000000000000 257 72 5").unwrap();
        let expected = Endpoint {
            lid: 2,
            qpn: 71,
            psn: 0xff_fff0,
            address: 140_000_000_000_000,
            rkey: 257,
            requester: 72,
            srqn: 5,
        };
        assert_eq!(read, expected);
        for line in [
            "error ibv_open_device: No such device",
            "ok",
            "ok 1 2 3 4 5",
            "ok 1 2 3 4 5 6 x",
            "ok 65536 2 3 4 5 6 7",
        ] {
            assert!(endpoint(line).is_err(), "{line}");
        }
    }

    #[test]
    fn answer_tells_completions_from_failures() {
        assert_eq!(answer("ok").unwrap(), Answer::Ok(String::new()));
        assert_eq!(answer("ok RTS").unwrap(), Answer::Ok("RTS".to_owned()));
        let refused = answer("wc 10 remote access error").unwrap();
        assert_eq!(refused, Answer::Completion(Status::REM_ACCESS_ERR));
        for line in ["", "wc", "wc x", "okay", "error ibv_post_send: Invalid argument"] {
            assert!(answer(line).is_err(), "{line}");
        }
    }
}
