//! Two guests that read and write each other's memory until their daemon is gone, and look at what lies around it.
//!
//! On either side of each guest's region is memory of a pattern that was registered and no longer is. It lies in what
//! the daemon has mapped for the card, so no IOMMU keeps the card from it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use integration::load::{End, Patience, SPAR_BYTES, SPAR_DEPTH, spar};
use paraverbs_verbs::{Access, Context, Mr};

use crate::{say, told};

/// Bytes of the pattern on either side.
const GUARD: usize = 1 << 20;
/// Room for the rings of a guest's queues, less than a region needs.
const RINGS: usize = 256 << 10;

/// A range of this process's memory that holds the pattern.
#[derive(Clone, Copy, Debug)]
struct Guard {
    address: u64,
}

/// Byte number `at` of the pattern, never 0: that is what the guests send.
fn pattern(at: usize) -> u8 {
    u8::try_from(1 + at * 7 % 251).unwrap_or(1)
}

impl Guard {
    /// Of registered memory, which is then registered no more.
    fn new(mr: Mr) -> Result<Self> {
        let bytes: Vec<u8> = (0..GUARD).map(pattern).collect();
        mr.write(0, &bytes)?;
        Ok(Self { address: mr.addr() })
    }

    /// Compares it with the pattern.
    fn check(self, own_memory: &File) -> Result<()> {
        let mut bytes = vec![0; GUARD];
        own_memory.read_exact_at(&mut bytes, self.address)?;
        let wrong = bytes.iter().enumerate().find(|(at, byte)| **byte != pattern(*at));
        ensure!(wrong.is_none(), "at {:#x}, (offset, byte) {wrong:x?} was changed", self.address);
        Ok(())
    }
}

/// An end of the connection, in memory between two guards.
fn between_guards(context: &Context) -> Result<(End, [Guard; 2])> {
    let pd = context.alloc_pd()?;
    let registered = |bytes| pd.alloc_mr(bytes, Access::LOCAL_WRITE);
    let (rings, before) = (registered(RINGS)?, registered(GUARD)?);
    let (gap, after) = (registered(SPAR_BYTES)?, registered(GUARD)?);
    // The end's rings go where the first was, and its region between the two others.
    drop((rings, gap));
    let end = End::new(context, SPAR_BYTES, SPAR_DEPTH)?;
    let region = end.endpoint().address;
    ensure!(region == before.addr() + GUARD as u64, "the region doesn't follow its guard");
    ensure!(region + SPAR_BYTES as u64 == after.addr(), "the region doesn't end at its guard");
    Ok((end, [Guard::new(before)?, Guard::new(after)?]))
}

/// Says `busy` when data flow, `ended` when they don't any more, and then at each line whether the guards are as they
/// were.
pub(crate) fn run(sockets: [&PathBuf; 2]) -> Result<()> {
    let [one, other] = sockets.map(Context::connect);
    let [one, other] = [between_guards(&one?)?, between_guards(&other?)?];
    let guards = [one.1, other.1].concat();
    let ends = [one.0, other.0];
    let [to_other, to_one] = [ends[1].endpoint(), ends[0].endpoint()];
    ends[0].connect(&to_other, Patience::Long)?;
    ends[1].connect(&to_one, Patience::Long)?;
    let (busy, all_busy) = channel();
    thread::scope(|scope| -> Result<()> {
        let sparring = [(&ends[0], to_other), (&ends[1], to_one)].map(|(end, to)| {
            let busy = busy.clone();
            scope.spawn(move || spar(end, to, || busy.send(()).unwrap_or_default()))
        });
        drop(busy);
        for _ in 0..2 {
            all_busy.recv().context("requests aren't outstanding")?;
        }
        say("busy")?;
        for end in sparring {
            let ending = end.join().map_err(|_| anyhow!("a thread has panicked"))?;
            ensure!(ending.is_err(), "the connection ended, the device didn't: {ending:?}");
        }
        say("ended")
    })?;
    let own_memory = File::open("/proc/self/mem")?;
    while told()? {
        guards.iter().try_for_each(|guard| guard.check(&own_memory))?;
        say(&format!("unchanged {}", guards.len() * GUARD))?;
    }
    Ok(())
}
