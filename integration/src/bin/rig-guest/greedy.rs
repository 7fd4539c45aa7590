//! Guests that register memory until they may register no more, one after the other; then each gives one region back
//! and registers another.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use paraverbs_verbs::{Access, Context, Mr, Pd};

use crate::{say, told};

/// Bytes of a region: as much as is mapped at once.
const BYTES: usize = 2 << 20;

/// A guest with all that it could register.
struct Greedy {
    regions: Vec<Mr>,
    pd: Pd,
    _context: Context,
}

impl Greedy {
    /// Registers until that is refused, which must be for want of memory.
    fn new(socket: &PathBuf) -> Result<(Self, String)> {
        let context = Context::connect(socket)?;
        let mut guest = Self { regions: Vec::new(), pd: context.alloc_pd()?, _context: context };
        let refusal = loop {
            match guest.register() {
                Ok(region) => guest.regions.push(region),
                Err(refusal) => break refusal,
            }
        };
        ensure!(refusal.errno() == rustix::io::Errno::NOMEM.raw_os_error(), "not ENOMEM: {refusal}");
        Ok((guest, refusal.to_string()))
    }

    fn register(&self) -> paraverbs_verbs::Result<Mr> {
        self.pd.alloc_mr(BYTES, Access::LOCAL_WRITE)
    }
}

/// Says of each guest how many regions it has and what refused it the next, then `full`; and at a line, when all have
/// given one back and registered another, `again`.
pub(crate) fn run(sockets: &[PathBuf]) -> Result<()> {
    let mut guests = Vec::new();
    for socket in sockets {
        let (guest, refusal) = Greedy::new(socket)?;
        say(&format!("{} {refusal}", guest.regions.len()))?;
        guests.push(guest);
    }
    say("full")?;
    ensure!(told()?, "nobody listens");
    // Who came last may have got nothing.
    for guest in guests.iter_mut().filter(|guest| !guest.regions.is_empty()) {
        guest.regions.pop();
        let region = guest.register().context("deregistered memory gives no room")?;
        guest.regions.push(region);
    }
    say("again")?;
    while told()? {}
    Ok(())
}
