//! Waiting for what must come: tests wait for the event, and give up only when a busy machine is no excuse.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Looks until something is there, without sleeping.
///
/// # Panics
/// If it isn't there within [`PATIENCE`].
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// Looks each millisecond until something is so.
///
/// # Errors
/// Those of the look; or that it isn't so within [`PATIENCE`].
pub fn until(what: &str, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !so()? {
        ensure!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
