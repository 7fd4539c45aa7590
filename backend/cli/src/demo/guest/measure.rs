//! Numbers: latency, and then message rate and bandwidth, of one operation with messages of one size.
//!
//! Latency of a send is half of a round trip, to the other program and back; of a write or a read it is from
//! posting to the completion. For the rate, requests are posted as fast as they complete. Both go on for a time,
//! and the last message of the first side has immediate data to tell the second.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use paraverbs_verbs::{SendFlags, SendOp, Wc};

use super::link::{DEPTH, Data, Link};
use crate::demo::protocol::{Answer, Measurement, Operation, Side};

/// How long latency is measured, and how long the rate.
const TIME: Duration = Duration::from_millis(100);
/// Least and most samples of latency; the least are taken however long it takes.
const LEAST: usize = 100;
const MOST: usize = 20_000;
/// Samples that come first and don't count.
const WARM_UP: usize = 20;
/// So many requests of a queue are one completion.
const SIGNAL_EVERY: u64 = 16;
/// Payload bytes that are under way at most, however many requests could be.
const WINDOW_BYTES: u64 = 8 << 20;
/// Messages that the second side answers with one credit. Twice as many may be under way.
const CREDIT: u64 = 64;
/// Immediate data of a credit, and of the last message.
const LAST: u32 = 1;

/// Plays one side.
pub(super) fn run(link: &mut Link, operation: Operation, bytes: u32, side: Side) -> Result<Answer> {
    let measured = match (operation, side) {
        (Operation::Send, Side::First) => Some(measure_send(link, bytes)?),
        (Operation::Send, Side::Second) => {
            echo(link, bytes)?;
            absorb(link)?;
            None
        }
        (_, Side::First) => Some(measure_one_sided(link, operation, bytes)?),
        (_, Side::Second) => None,
    };
    Ok(Answer::Measured(measured))
}

fn measure_send(link: &mut Link, bytes: u32) -> Result<Measurement> {
    let round_trips = samples(|last| {
        let start = Instant::now();
        send(link, bytes, last)?;
        let wc = link.wait_received()?;
        let taken = start.elapsed();
        link.post_receive(wc.wr_id)?;
        Ok(taken / 2)
    })?;
    link.wait_room(0)?;
    let (messages, taken) = send_stream(link, bytes)?;
    Ok(summary(round_trips, bytes, messages, taken))
}

fn measure_one_sided(link: &mut Link, operation: Operation, bytes: u32) -> Result<Measurement> {
    let op = one_sided(link, operation)?;
    let data = match operation {
        Operation::Read | Operation::FetchAdd | Operation::CompareSwap => Data::Window(0, bytes),
        _ => Data::Outbox(0, bytes),
    };
    let latencies = samples(|_| {
        let start = Instant::now();
        let number = link.post(op, data, SendFlags::SIGNALED)?;
        link.wait_sent(number)?;
        Ok(start.elapsed())
    })?;
    let depth = depth(bytes);
    let mut messages = 0;
    let start = Instant::now();
    while start.elapsed() < TIME {
        for _ in 0..signal_every(bytes) {
            link.wait_room(depth - 1)?;
            messages += 1;
            let signaled = messages % signal_every(bytes) == 0;
            link.post(op, data, SendFlags { signaled, ..SendFlags::default() })?;
        }
    }
    link.wait_room(0)?;
    Ok(summary(latencies, bytes, messages, start.elapsed()))
}

fn one_sided(link: &Link, operation: Operation) -> Result<SendOp> {
    let far = link.far()?;
    let (remote_addr, rkey) = (far.window.addr, far.window.rkey);
    Ok(match operation {
        Operation::FetchAdd => SendOp::FetchAdd { remote_addr, rkey, add: 1 },
        Operation::CompareSwap => SendOp::CompareSwap { remote_addr, rkey, compare: 0, swap: 1 },
        Operation::Read => SendOp::Read { remote_addr: far.outbox.addr, rkey: far.outbox.rkey },
        _ => SendOp::Write { remote_addr, rkey },
    })
}

/// Sends messages as fast as they complete and as the other side takes them. Answers how many, and how long it
/// took until the last was taken.
fn send_stream(link: &mut Link, bytes: u32) -> Result<(u64, Duration)> {
    let depth = depth(bytes);
    let (mut messages, mut credits) = (0, 0);
    let start = Instant::now();
    loop {
        let last = start.elapsed() >= TIME;
        while messages >= (credits + 2) * CREDIT {
            take_credit(link)?;
            credits += 1;
        }
        link.wait_room(depth - 1)?;
        let op = if last { SendOp::SendImm(LAST) } else { SendOp::Send };
        messages += 1;
        let signaled = last || messages % signal_every(bytes) == 0;
        link.post(op, Data::Outbox(0, bytes), SendFlags { signaled, ..SendFlags::default() })?;
        if last {
            break;
        }
    }
    link.wait_room(0)?;
    while credits < messages / CREDIT {
        take_credit(link)?;
        credits += 1;
    }
    Ok((messages, start.elapsed()))
}

fn take_credit(link: &mut Link) -> Result<()> {
    let wc = link.wait_received()?;
    ensure!(wc.byte_len == 0, "a credit of {} bytes", wc.byte_len);
    link.post_receive(wc.wr_id)
}

/// Sends back whatever comes, until the last has come.
fn echo(link: &mut Link, bytes: u32) -> Result<()> {
    loop {
        let wc = link.wait_received()?;
        link.post_receive(wc.wr_id)?;
        ensure!(wc.byte_len == bytes, "{} bytes instead of {bytes}", wc.byte_len);
        send(link, bytes, is_last(&wc))?;
        if is_last(&wc) {
            return link.wait_room(0);
        }
    }
}

/// Takes whatever comes, until the last has come, and gives credits for it.
fn absorb(link: &mut Link) -> Result<()> {
    let mut messages: u64 = 0;
    loop {
        let wc = link.wait_received()?;
        link.post_receive(wc.wr_id)?;
        messages += 1;
        if messages.is_multiple_of(CREDIT) {
            link.post(SendOp::Send, Data::Inline(&[]), SendFlags::SIGNALED)?;
            link.wait_room(u64::from(DEPTH) / 2)?;
        }
        if is_last(&wc) {
            return link.wait_room(0);
        }
    }
}

fn is_last(wc: &Wc) -> bool {
    wc.imm == Some(LAST)
}

/// Sends a message of the outbox.
fn send(link: &mut Link, bytes: u32, last: bool) -> Result<()> {
    link.wait_room(u64::from(DEPTH) / 2)?;
    let op = if last { SendOp::SendImm(LAST) } else { SendOp::Send };
    link.post(op, Data::Outbox(0, bytes), SendFlags::SIGNALED)?;
    Ok(())
}

/// Takes samples for a time; `sample` is told which is the last.
fn samples(mut sample: impl FnMut(bool) -> Result<Duration>) -> Result<Vec<Duration>> {
    for _ in 0..WARM_UP {
        sample(false)?;
    }
    let mut samples = Vec::with_capacity(MOST);
    let start = Instant::now();
    loop {
        let last = samples.len() + 1 >= MOST || (samples.len() >= LEAST && start.elapsed() > TIME);
        samples.push(sample(last)?);
        if last {
            return Ok(samples);
        }
    }
}

/// Requests under way at most.
fn depth(bytes: u32) -> u64 {
    (WINDOW_BYTES / u64::from(bytes)).clamp(1, u64::from(DEPTH))
}

/// So many requests are one completion, if as many may be under way.
fn signal_every(bytes: u32) -> u64 {
    SIGNAL_EVERY.min(depth(bytes) / 2).max(1)
}

fn summary(mut latencies: Vec<Duration>, bytes: u32, messages: u64, taken: Duration) -> Measurement {
    latencies.sort_unstable();
    let rate = messages as f64 / taken.as_secs_f64();
    Measurement {
        median: nanoseconds(&latencies, 50),
        percentile99: nanoseconds(&latencies, 99),
        rate,
        bandwidth: rate * f64::from(bytes),
    }
}

/// The sample that so many of a hundred are not above; there are some.
fn nanoseconds(sorted: &[Duration], percent: usize) -> u64 {
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).map_or(0, |sample| u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_has_median_and_percentile_of_unsorted_samples() {
        let samples = (1..=200).rev().map(Duration::from_nanos).collect();
        let seen = summary(samples, 1000, 50, Duration::from_millis(500));
        assert_eq!((seen.median, seen.percentile99), (100, 198));
        assert!((seen.rate - 100.0).abs() < 1e-9 && (seen.bandwidth - 100_000.0).abs() < 1e-6);
    }

    #[test]
    fn last_sample_is_told_and_there_are_enough() {
        let mut lasts = Vec::new();
        let samples = samples(|last| {
            lasts.push(last);
            Ok(Duration::from_nanos(1))
        })
        .unwrap();
        assert_eq!(lasts.len(), samples.len() + WARM_UP);
        assert!(samples.len() >= LEAST && samples.len() <= MOST);
        assert_eq!(lasts.iter().position(|last| *last), Some(lasts.len() - 1));
    }

    #[test]
    fn large_messages_are_fewer_under_way() {
        assert_eq!([8, 65536, 1 << 20].map(depth), [128, 128, 8]);
        assert_eq!([8, 65536, 1 << 20].map(signal_every), [16, 16, 4]);
    }
}
