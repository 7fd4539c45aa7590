//! Windows of messages for a tool that counts instructions: many are posted at once, and their completions taken
//! when they are there. Only the two functions here that post and poll are to be counted, not who waits.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::end::End;
use crate::bench::plan::Operation;

/// Messages of a window, each with a doorbell and a completion of its own.
pub(crate) const WINDOW: u32 = 64;
/// Bytes of a message.
const BYTES: u32 = 64;

/// Posts so many windows of messages, and takes their completions; `wait` gives the engine time.
pub(super) fn windows<E: End>(
    end: &mut E,
    operation: Operation,
    windows: u32,
    mut wait: impl FnMut(),
) -> Result<()> {
    for _ in 0..windows {
        bench_counted_post(end, operation)?;
        let last = end.posted();
        let mut done = 0;
        // Bounded by patience: a pause is a millisecond.
        for _ in 0..100_000 {
            wait();
            done = bench_counted_poll(end)?.max(done);
            if done == last {
                break;
            }
        }
        ensure!(done == last, "the completions of a window don't come");
    }
    Ok(())
}

/// Gives another thread time.
pub(super) fn pause() {
    thread::sleep(Duration::from_millis(1));
}

/// Posts a window. Its name is known to `tools`.
#[inline(never)]
fn bench_counted_post<E: End>(end: &mut E, operation: Operation) -> Result<()> {
    for _ in 0..WINDOW {
        end.post(operation, BYTES, true)?;
    }
    Ok(())
}

/// Takes what is there; answers how far requests are done. Its name is known to `tools`.
#[inline(never)]
fn bench_counted_poll<E: End>(end: &mut E) -> Result<u64> {
    let mut done = 0;
    loop {
        let polled = end.poll()?;
        if polled.sent == 0 {
            return Ok(done);
        }
        done = polled.sent;
    }
}
