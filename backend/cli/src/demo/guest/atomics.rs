//! Atomic operations on a word of the other guest's memory: each must find what the last one left there.

use anyhow::{Context as _, Result, ensure};
use paraverbs_verbs::{SendFlags, SendOp};

use super::link::{Data, Link};
use crate::demo::protocol::{Answer, Side};

/// Rounds of one fetch-and-add, one compare-and-swap that fits, and one that doesn't.
const ROUNDS: u64 = 200;
/// What is added: something of every byte.
const ADD: u64 = 0x0101_0101_0101_0103;
/// What the word is swapped against is it with these bits changed.
const SWAPPED: u64 = 0xff00_ff00_00ff_00ff;
/// Bytes of the word.
const WORD: u32 = 8;
/// Where results come, in the own window.
const RESULT: usize = 64;

/// The word after a round.
fn next(word: u64) -> u64 {
    word.wrapping_add(ADD) ^ SWAPPED
}

/// Plays one side.
pub(super) fn run(link: &mut Link, side: Side) -> Result<Answer> {
    match side {
        Side::First => change(link)?,
        Side::Second => check(link)?,
    }
    Ok(Answer::Verified { messages: 3 * ROUNDS, bytes: 3 * ROUNDS * u64::from(WORD) })
}

fn change(link: &mut Link) -> Result<()> {
    let far = link.far()?.window;
    let (remote_addr, rkey) = (far.addr, far.rkey);
    let mut word = 0;
    for _ in 0..ROUNDS {
        execute(link, SendOp::FetchAdd { remote_addr, rkey, add: ADD }, word)?;
        let added = word.wrapping_add(ADD);
        let swap = |compare| SendOp::CompareSwap { remote_addr, rkey, compare, swap: added ^ SWAPPED };
        // It isn't that any more, so nothing changes.
        execute(link, swap(word), added)?;
        execute(link, swap(added), added)?;
        word = next(word);
    }
    let number = link.post(SendOp::Send, Data::Inline(&[]), SendFlags::SIGNALED)?;
    link.wait_sent(number)
}

/// Carries out an operation, which must find `expected`.
fn execute(link: &mut Link, op: SendOp, expected: u64) -> Result<()> {
    let number = link.post(op, Data::Window(RESULT, WORD), SendFlags::SIGNALED)?;
    link.wait_sent(number)?;
    let mut found = [0; WORD as usize];
    link.window.read(RESULT, &mut found).context("read the window")?;
    let found = u64::from_ne_bytes(found);
    ensure!(found == expected, "{op:?} found {found:#x} instead of {expected:#x}");
    Ok(())
}

fn check(link: &mut Link) -> Result<()> {
    let wc = link.wait_received()?;
    link.post_receive(wc.wr_id)?;
    let mut word = [0; WORD as usize];
    link.window.read(0, &mut word).context("read the window")?;
    let (word, expected) = (u64::from_ne_bytes(word), (0..ROUNDS).fold(0, |word, _| next(word)));
    ensure!(word == expected, "the word is {word:#x} instead of {expected:#x}");
    Ok(())
}
