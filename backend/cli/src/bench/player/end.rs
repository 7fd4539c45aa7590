//! How messages are measured, whatever they go through: [`End`] is a queue pair, with its completion queue and
//! memory, of the driver or of the guest library. The loops are the same for both.

use std::hint;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::bench::plan::{BATCHES, Operation, Quantity, Task};

/// Receive requests that are posted at most.
pub(super) const RECEIVES: u32 = 256;
/// Messages of a stream of sends that the other side answers with one of its own.
const CREDIT: u32 = 32;
/// Messages under way, in a stream of sends.
const CREDITS: u32 = 4;
/// Polls in vain before others have the core, if they want it.
const SPINS: u32 = 1 << 14;
/// No completion takes that long, not even of a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Completions that were taken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Polled {
    /// Of send requests: the number of the last one that is done is one less. 0: none.
    pub(super) sent: u64,
    /// Of receive requests.
    pub(super) received: u32,
}

/// One end of a connection.
pub(super) trait End {
    /// Posts a request for so many bytes, with the next number from 0, and rings the doorbell.
    fn post(&mut self, operation: Operation, bytes: u32, signaled: bool) -> Result<()>;

    /// Posts a receive request.
    fn post_receive(&mut self) -> Result<()>;

    /// Takes completions; all must be good.
    fn poll(&mut self) -> Result<Polled>;

    /// Requests posted so far.
    fn posted(&self) -> u64;
}

/// An end, and how far its requests are.
pub(super) struct Player<'a, E> {
    end: &'a mut E,
    /// Requests that are done.
    done: u64,
    /// Messages that came and were not taken yet.
    received: u32,
    empty: u32,
    deadline: Option<Instant>,
}

impl<'a, E: End> Player<'a, E> {
    /// With all requests that were posted done.
    pub(super) fn new(end: &'a mut E) -> Self {
        let done = end.posted();
        Self { end, done, received: 0, empty: 0, deadline: None }
    }

    /// Takes completions, if there are any.
    fn poll(&mut self) -> Result<()> {
        let polled = self.end.poll()?;
        if polled.sent == 0 && polled.received == 0 {
            return self.nothing();
        }
        self.done = self.done.max(polled.sent);
        self.received += polled.received;
        self.empty = 0;
        self.deadline = None;
        Ok(())
    }

    fn nothing(&mut self) -> Result<()> {
        self.empty += 1;
        if !self.empty.is_multiple_of(SPINS) {
            hint::spin_loop();
            return Ok(());
        }
        // The core may be wanted by whoever does the work.
        thread::yield_now();
        let now = Instant::now();
        if now > *self.deadline.get_or_insert(now + PATIENCE) {
            bail!("waited {} s in vain for a completion", PATIENCE.as_secs());
        }
        Ok(())
    }

    /// Waits until at most so many requests are not known to be done.
    fn wait_room(&mut self, outstanding: u64) -> Result<()> {
        while self.end.posted() - self.done > outstanding {
            self.poll()?;
        }
        Ok(())
    }

    /// Nanoseconds a message of a one-sided operation takes, a number for each batch.
    pub(super) fn measure(&mut self, task: &Task) -> Result<Vec<f64>> {
        match task.quantity {
            Quantity::Latency => self.latency(task),
            Quantity::Rate => self.rate(task).map(|one| vec![one]),
        }
    }

    fn latency(&mut self, task: &Task) -> Result<Vec<f64>> {
        let count = task.messages / BATCHES;
        (0..BATCHES)
            .map(|_| {
                let start = Instant::now();
                for _ in 0..count {
                    self.end.post(task.operation, task.bytes, true)?;
                    self.wait_room(0)?;
                }
                Ok(each(start, count))
            })
            .collect()
    }

    fn rate(&mut self, task: &Task) -> Result<f64> {
        let (depth, every) = (u64::from(task.depth()), task.signal_every());
        let start = Instant::now();
        for number in 1..=task.messages {
            self.wait_room(depth - 1)?;
            let signaled = number.is_multiple_of(every) || number == task.messages;
            self.end.post(task.operation, task.bytes, signaled)?;
        }
        self.wait_room(0)?;
        Ok(each(start, task.messages))
    }
}

fn each(start: Instant, count: u32) -> f64 {
    start.elapsed().as_secs_f64() * 1e9 / f64::from(count)
}

/// One side of a measurement of sends, which goes on step by step, so that one thread can play both sides.
pub(super) struct Sends<'a, E> {
    player: Player<'a, E>,
    task: Task,
    first: bool,
    /// Messages posted, and messages that came.
    posted: u32,
    came: u32,
    start: Instant,
    taken: Vec<f64>,
}

impl<'a, E: End> Sends<'a, E> {
    /// Posts the receive requests; `first` is who measures.
    pub(super) fn new(end: &'a mut E, task: &Task, first: bool) -> Self {
        let player = Player::new(end);
        let taken = Vec::with_capacity(BATCHES as usize);
        Self { player, task: *task, first, posted: 0, came: 0, start: Instant::now(), taken }
    }

    /// Goes on until the end.
    pub(super) fn run(mut self) -> Result<Vec<f64>> {
        while !self.is_done() {
            self.step()?;
        }
        self.finish()
    }

    pub(super) fn finish(mut self) -> Result<Vec<f64>> {
        self.player.wait_room(0)?;
        Ok(self.taken)
    }

    pub(super) fn is_done(&self) -> bool {
        let whole = match self.task.quantity {
            Quantity::Latency => self.messages(),
            Quantity::Rate if self.first => self.messages() / CREDIT,
            Quantity::Rate => self.messages(),
        };
        self.came == whole && (!self.first || self.taken.len() == self.batches())
    }

    /// Messages of the first side, a whole number of batches and of credits.
    fn messages(&self) -> u32 {
        (self.task.messages / (BATCHES * CREDIT)).max(1) * BATCHES * CREDIT
    }

    fn batches(&self) -> usize {
        if self.task.quantity == Quantity::Latency { BATCHES as usize } else { 1 }
    }

    /// Does what can be done now.
    pub(super) fn step(&mut self) -> Result<()> {
        match (self.task.quantity, self.first) {
            (Quantity::Latency, true) => self.ping(),
            (Quantity::Latency, false) => self.echo(),
            (Quantity::Rate, true) => self.stream(),
            (Quantity::Rate, false) => self.absorb(),
        }
    }

    fn send(&mut self, bytes: u32, signaled: bool) -> Result<()> {
        self.player.wait_room(u64::from(self.task.depth()) - 1)?;
        self.player.end.post(Operation::Send, bytes, signaled)?;
        self.posted += 1;
        Ok(())
    }

    /// Takes what came; says whether anything did.
    fn take(&mut self) -> Result<bool> {
        self.player.poll()?;
        let came = std::mem::take(&mut self.player.received);
        for _ in 0..came {
            self.player.end.post_receive()?;
        }
        self.came += came;
        Ok(came != 0)
    }

    fn ping(&mut self) -> Result<()> {
        let batch = self.messages() / BATCHES;
        if self.posted == self.came {
            if self.posted.is_multiple_of(batch) {
                self.start = Instant::now();
            }
            return self.send(self.task.bytes, true);
        }
        if self.take()? && self.came.is_multiple_of(batch) {
            self.taken.push(each(self.start, 2 * batch));
        }
        Ok(())
    }

    fn echo(&mut self) -> Result<()> {
        if self.take()? {
            self.send(self.task.bytes, true)?;
        }
        Ok(())
    }

    fn stream(&mut self) -> Result<()> {
        let whole = self.messages();
        if self.posted == 0 {
            self.start = Instant::now();
        }
        if self.posted < whole && self.posted < (self.came + CREDITS) * CREDIT {
            let signaled = (self.posted + 1).is_multiple_of(self.task.signal_every());
            return self.send(self.task.bytes, signaled || self.posted + 1 == whole);
        }
        if self.take()? && self.came == whole / CREDIT {
            self.taken.push(each(self.start, whole));
        }
        Ok(())
    }

    fn absorb(&mut self) -> Result<()> {
        if self.take()? {
            while self.posted < self.came / CREDIT {
                self.send(0, true)?;
            }
        }
        Ok(())
    }
}
