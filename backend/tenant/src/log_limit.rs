//! Lines of the log that a guest can bring about: a few in each interval, so that it doesn't fill the host's disk.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::Level;

/// Lines that are let through in an interval.
const LINES: u32 = 20;
const INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Interval {
    since: Option<Instant>,
    lines: u32,
}

/// Lets 20 lines a minute through; the others are for debugging.
#[derive(Debug)]
pub struct LogLimit(Mutex<Interval>);

impl Default for LogLimit {
    fn default() -> Self {
        Self::new()
    }
}

impl LogLimit {
    /// A limit that has let nothing through.
    pub const fn new() -> Self {
        Self(Mutex::new(Interval { since: None, lines: 0 }))
    }

    /// The level of a line that would be one of `level`: that, or debug where there were too many.
    pub fn level(&self, level: Level) -> Level {
        self.level_at(level, Instant::now())
    }

    fn level_at(&self, level: Level, now: Instant) -> Level {
        let mut interval = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if interval.since.is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL) {
            if let Some(left_out) = interval.lines.checked_sub(LINES).filter(|left_out| *left_out != 0) {
                log::warn!("{left_out} lines like the next one were left out");
            }
            *interval = Interval { since: Some(now), lines: 0 };
        }
        interval.lines = interval.lines.saturating_add(1);
        if interval.lines <= LINES { level } else { Level::Debug.max(level) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_for_debugging_until_the_interval_ends() {
        let limit = LogLimit::new();
        let start = Instant::now();
        for _ in 0..LINES {
            assert_eq!(limit.level_at(Level::Warn, start), Level::Warn);
        }
        assert_eq!(limit.level_at(Level::Warn, start), Level::Debug);
        assert_eq!(limit.level_at(Level::Trace, start), Level::Trace);
        assert_eq!(limit.level_at(Level::Info, start + INTERVAL), Level::Info);
    }
}
