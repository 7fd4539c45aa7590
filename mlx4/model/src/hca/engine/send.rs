//! The send half of a queue pair: the WQE in hand, how it ends, and what is waited for.

use std::time::{Duration, Instant};

use mlx4_wire::Number24;
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::{QpState, ServiceType};
use mlx4_wire::eqe::EventType;

use super::side::Side;
use super::wqe::{Header, Taken, WqeCopy};
use super::{Next, datagram, requester};
use crate::hca::qp::Attrs;
use crate::trace::hex;

/// Where the send half of a queue pair stands.
#[derive(Debug, Default)]
pub(crate) struct SendWork {
    /// The WQE that was taken from the ring and isn't completed.
    pub(super) current: Option<Current>,
    /// Its copy.
    pub(super) wqe: WqeCopy,
    /// Next PSN.
    pub(super) psn: u32,
    /// Counter of the WQE in hand, or of the next one.
    counter: u16,
    retry: Retry,
    /// The run of reads and atomics that the WQE in hand belongs to.
    pub(super) reads: Reads,
    drain_event: bool,
}

/// A run of reads and atomics that the hardware would have under way at once.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// How many of the run come after the one in hand.
    later: u32,
    /// How many came before it.
    earlier: u32,
}

impl Reads {
    /// A read or atomic begins: the next of its run, or the first of one with as many more as `count` says.
    /// Gives how many of the run are under way already.
    pub(super) fn begin(&mut self, count: impl FnOnce() -> u32) -> u32 {
        match self.later.checked_sub(1) {
            Some(later) => *self = Self { later, earlier: self.earlier + 1 },
            None => *self = Self { later: count(), earlier: 0 },
        }
        self.earlier
    }
}

/// A WQE in hand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Current {
    pub(super) header: Header,
    /// Bytes of the message that the other side has acknowledged.
    pub(super) done: u64,
}

/// What was tried in vain since the last progress.
#[derive(Debug, Default)]
struct Retry {
    /// After timeouts and sequence errors.
    resent: u8,
    /// After receiver-not-ready NAKs.
    not_ready: u8,
    /// When to try again.
    until: Option<Instant>,
    /// The wait is for an acknowledgement that won't come.
    lost: bool,
}

/// What one queue pair may do before others have their turn.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) bytes: u64,
    wqes: u32,
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Self {
        Self { bytes, wqes: 32 }
    }

    /// Takes payload off.
    pub(super) fn spend(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Number of retries that stands for "without end".
const RNR_RETRY_ENDLESS: u8 = 7;

/// How many WQEs of a QP are traced: those below this counter.
const TRACED_WQES: u16 = 4;

impl SendWork {
    /// The queue pair goes to RTS, and `psn` is the first to be sent.
    pub(crate) fn start(&mut self, psn: u32) {
        self.psn = psn & Number24::MAX;
    }

    /// The queue pair goes to SQD: what was begun is finished, then there is an event, if `event`.
    pub(crate) fn drain(&mut self, event: bool) {
        self.drain_event = event;
    }

    /// Next PSN to be sent.
    pub(crate) fn psn(&self) -> u32 {
        self.psn
    }

    /// Counter of the next send WQE, in strides modulo 2^16.
    pub(crate) fn counter(&self) -> u16 {
        self.counter
    }

    /// Executes what is posted, within a budget. The state is RTS or SQ_DRAINING.
    pub(super) fn run(&mut self, side: &Side<'_>, budget: Budget) -> Next {
        if let Some(until) = self.retry.until {
            if Instant::now() < until {
                return Next::At(until);
            }
            self.retry.until = None;
            if std::mem::take(&mut self.retry.lost) && !self.count_timeout(side) {
                return Next::Idle;
            }
        }
        match side.attrs.service {
            ServiceType::RC | ServiceType::UC | ServiceType::XRC => requester::run(side, self, budget),
            _ => datagram::run(side, self, budget),
        }
    }

    /// Sees to it that there is a WQE in hand and budget for it.
    ///
    /// # Errors
    /// What is to become of the queue pair, if there isn't.
    pub(super) fn advance(&mut self, side: &Side<'_>, budget: &mut Budget) -> Result<(), Next> {
        let state = side.qp.state();
        if state != QpState::RTS && state != QpState::SQ_DRAINING {
            // A completion queue has failed; the engine is rung for it.
            return Err(Next::Idle);
        }
        if self.current.is_none() && state == QpState::SQ_DRAINING {
            self.drained(side);
            return Err(Next::Idle);
        }
        if side.attrs.xrcd.is_some() {
            // An XRC target has a send queue that nobody posts to.
            return Err(Next::Idle);
        }
        if budget.bytes == 0 || (self.current.is_none() && budget.wqes == 0) {
            return Err(Next::Again);
        }
        if self.current.is_some() {
            return Ok(());
        }
        budget.wqes -= 1;
        self.take(side)
    }

    fn take(&mut self, side: &Side<'_>) -> Result<(), Next> {
        match self.wqe.take(side.burst, side.attrs, self.counter) {
            Ok(Taken::Nothing) => return Err(Next::Idle),
            Ok(Taken::Wqe(header)) => {
                self.trace(side);
                self.current = Some(Current { header, done: 0 });
                return Ok(());
            }
            Ok(Taken::Malformed) => {
                log::debug!("QP {:#x}: WQE {:#x} is malformed", side.attrs.qpn, self.counter);
                self.fail(side, Syndrome::LOCAL_QP_OP_ERR);
            }
            Err(fault) => {
                log::info!("QP {:#x}: send queue can't be read: {fault}", side.attrs.qpn);
                if side.fail(QpState::ERR) {
                    side.raise(EventType::WQ_CATASTROPHIC);
                }
            }
        }
        Err(Next::Idle)
    }

    /// Shows the WQE in the trace, if it is one of the first of its QP.
    fn trace(&self, side: &Side<'_>) {
        if let Some(trace) = &side.hca.config.trace
            && self.counter < TRACED_WQES
        {
            let Attrs { qpn, service, .. } = side.attrs;
            let what = format!("wqe {service} qpn={qpn:#x} counter={}", self.counter);
            trace.record(side.hca.config.node_guid, &what, &[format!("wqe hex {}", hex(self.wqe.bytes()))]);
        }
    }

    fn drained(&mut self, side: &Side<'_>) {
        side.qp.drained();
        if std::mem::take(&mut self.drain_event) {
            side.raise(EventType::SQ_DRAINED);
        }
    }

    /// Ends the WQE in hand with success. `bytes` are those that it has read.
    pub(super) fn finish(&mut self, side: &Side<'_>, bytes: u64) {
        let Some(Current { header, .. }) = &self.current else { return };
        if header.signalled {
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            side.send_done(self.counter, header.opcode, bytes);
        }
        self.step(side);
    }

    /// Ends the WQE in hand with an error, and with it the work of the send queue.
    pub(super) fn fail(&mut self, side: &Side<'_>, syndrome: Syndrome) {
        log::debug!("QP {:#x}: WQE {:#x} fails: {syndrome:?}", side.attrs.qpn, self.counter);
        side.error(true, self.counter, syndrome);
        self.step(side);
        side.fail(if side.attrs.is_reliable() { QpState::ERR } else { QpState::SQER });
    }

    fn step(&mut self, side: &Side<'_>) {
        self.current = None;
        self.counter = self.counter.wrapping_add(1);
        self.retry = Retry::default();
        let counters = &side.hca.counters;
        if side.attrs.is_connected() { &counters.send_wqes } else { &counters.datagram_sends }.add(1);
    }

    /// Flushes a WQE: the one in hand, or the next, which is known to be there.
    pub(super) fn flush(&mut self, side: &Side<'_>) {
        side.error(true, self.counter, Syndrome::WR_FLUSH_ERR);
        side.hca.counters.flushed_wqes.add(1);
        self.current = None;
        self.retry = Retry::default();
        self.counter = self.counter.wrapping_add(1);
    }

    /// Something was acknowledged.
    pub(super) fn progress(&mut self) {
        self.retry = Retry::default();
    }

    /// There is no answer: nobody is there, or what was sent isn't what is expected. Tried again when the
    /// ACK timeout is over (IBTA 9.7.6.1.3); with a timeout of 0 when the doorbell is rung next.
    pub(super) fn lost(&mut self, side: &Side<'_>) -> Next {
        let code = side.attrs.path.timeout.ack_timeout();
        if code == 0 {
            return Next::Idle;
        }
        self.retry.lost = true;
        self.wait(Duration::from_nanos(4096 << code))
    }

    /// The other end misses packets, and has said so: they are sent again, at once.
    pub(super) fn resend(&mut self, side: &Side<'_>) -> Next {
        if self.count_retry(side) { Next::Again } else { Next::Idle }
    }

    /// Whether the WQE in hand was tried before.
    pub(super) fn retries(&self) -> bool {
        self.retry.resent != 0 || self.retry.not_ready != 0
    }

    /// Counts a timeout that is over. False if it was the last.
    fn count_timeout(&mut self, side: &Side<'_>) -> bool {
        side.hca.counters.timeouts.add(1);
        self.count_retry(side)
    }

    /// Counts a retry, after a timeout or a sequence error. False if there are none left.
    fn count_retry(&mut self, side: &Side<'_>) -> bool {
        if self.retry.resent >= side.attrs.retry_count {
            self.fail(side, Syndrome::TRANSPORT_RETRY_EXC_ERR);
            return false;
        }
        self.retry.resent += 1;
        true
    }

    /// The other side has no receive WQE, and asks to wait.
    pub(super) fn not_ready(&mut self, side: &Side<'_>, timer: u8) -> Next {
        if side.attrs.rnr_retry != RNR_RETRY_ENDLESS {
            if self.retry.not_ready >= side.attrs.rnr_retry {
                self.fail(side, Syndrome::RNR_RETRY_EXC_ERR);
                return Next::Idle;
            }
            self.retry.not_ready += 1;
        }
        self.wait(rnr_delay(timer))
    }

    fn wait(&mut self, delay: Duration) -> Next {
        let until = Instant::now() + delay;
        self.retry.until = Some(until);
        Next::At(until)
    }
}

/// Delays of the RNR NAK timer codes in units of 10 µs (IBTA vol. 1, table 45).
const RNR_DELAYS: [u32; 32] = [
    65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048,
    3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
];

fn rnr_delay(timer: u8) -> Duration {
    Duration::from_micros(10 * u64::from(RNR_DELAYS[usize::from(timer & 31)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rnr_delays_are_those_of_the_table() {
        let micros = [0, 1, 12, 25, 31].map(|code| rnr_delay(code).as_micros());
        assert_eq!(micros, [655_360, 10, 640, 61_440, 491_520]);
    }
}
