//! Two guests that exchange data, and compare them, until they are told to stop.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, anyhow};
use integration::load::{End, Patience, RALLY_BYTES, Side, rally};
use paraverbs_verbs::Context;

use crate::{say, told};

/// Work requests that a side has under way.
const DEPTH: u32 = 8;

/// Says `playing`, and at a line how many messages there were.
pub(crate) fn run(sockets: [&PathBuf; 2]) -> Result<()> {
    let [one, other] = sockets.map(Context::connect);
    let (one, other) = (End::new(&one?, RALLY_BYTES, DEPTH)?, End::new(&other?, RALLY_BYTES, DEPTH)?);
    let (at_one, at_other) = (one.endpoint(), other.endpoint());
    one.connect(&at_other, Patience::Long)?;
    other.connect(&at_one, Patience::Long)?;
    let stop = AtomicBool::new(false);
    let messages = thread::scope(|scope| -> Result<u64> {
        let stop = &stop;
        let players = [(&other, at_one, Side::Second), (&one, at_other, Side::First)]
            .map(|(end, to, side)| scope.spawn(move || rally(end, to, side, stop)));
        say("playing")?;
        told()?;
        stop.store(true, Ordering::Relaxed);
        let mut messages = 0;
        for player in players {
            messages += player.join().map_err(|_| anyhow!("a player has panicked"))??;
        }
        Ok(messages)
    })?;
    say(&format!("{messages} messages"))
}
