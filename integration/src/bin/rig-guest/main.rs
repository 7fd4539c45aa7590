//! What a test has processes do beside the daemon, in a VM. Each says on standard output what it has come to, a line
//! at a time, and goes on at a line of its standard input; it ends where that ends.
//!
//! - `rig-guest doorbell PID` (`doorbell`): keeps a doorbell page of a process's card mapped
//! - `rig-guest guarded SOCKET SOCKET` (`guarded`): two guests, with traffic between them, and what lies around their
//!   memory regions
//! - `rig-guest playing SOCKET SOCKET` (`playing`): two guests that exchange data
//! - `rig-guest greedy SOCKET...` (`greedy`): guests that register as much as they may
//! - `rig-guest large SOCKET` (`large`): a guest that registers more at once than it may
//! - `rig-guest changing SOCKET` (`changing`): a guest whose memory table changes
//! - `rig-guest confined MIB PROGRAM...` (`confined`): another program, with a limit of locked memory

mod changing;
mod confined;
mod doorbell;
mod greedy;
mod guarded;
mod large;
mod playing;

/// The guest written by hand is the one of the test `hostile_guest`; each binary uses a part of it.
#[path = "../../../tests/hostile_guest/guest.rs"]
#[allow(dead_code, reason = "shared with hostile_guest")]
mod guest;
#[path = "../../../tests/hostile_guest/memory.rs"]
#[allow(dead_code, reason = "shared with hostile_guest")]
mod memory;
#[path = "../../../tests/hostile_guest/objects.rs"]
#[allow(dead_code, reason = "shared with hostile_guest")]
mod objects;
#[path = "../../../tests/hostile_guest/queue.rs"]
#[allow(dead_code, reason = "shared with hostile_guest")]
mod queue;

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let what = args
        .next()
        .context("say what to do: doorbell, guarded, playing, greedy, large, changing or confined")?;
    let rest: Vec<PathBuf> = args.map(PathBuf::from).collect();
    match (what.as_str(), rest.as_slice()) {
        ("doorbell", [pid]) => doorbell::run(pid.to_string_lossy().parse().context("process")?),
        ("guarded", [one, other]) => guarded::run([one, other]),
        ("playing", [one, other]) => playing::run([one, other]),
        ("confined", [mib, command @ ..]) => {
            confined::run(mib.to_string_lossy().parse().context("limit")?, command)
        }
        ("large", [socket]) => large::run(socket),
        ("changing", [socket]) => changing::run(socket),
        ("greedy", sockets) => greedy::run(sockets),
        (what, rest) => bail!("can't do {what:?} with {rest:?}"),
    }
}

/// Says something to whoever has started this.
fn say(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Waits for a line; false if there are no more.
fn told() -> Result<bool> {
    Ok(io::stdin().read_line(&mut String::new())? != 0)
}
