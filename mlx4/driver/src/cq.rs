//! Completion queues as the device has them: a context, and a ring and a doorbell record in memory that may
//! be anybody's. For a queue that this process polls itself see [`CompletionQueue`](crate::CompletionQueue).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_pci::{Doorbell, DoorbellKind};
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::misc::{Hw2SwOp, ModifyCqOp};
use mlx4_wire::ctx::RingSize;
use mlx4_wire::ctx::cq::{CqContext, CqEqn, CqStatus};
use mlx4_wire::{Number24, U16, U64};
use zerocopy::{FromZeros, IntoBytes};

use crate::claim::{Claim, RingMemoryPages, give_back};
use crate::cmd::{Command, Input};
use crate::error::{Error, FieldError, Fields, Result};
use crate::icm::{Kind, MttRange, Pages};
use crate::numbers::Number;
use crate::object::{Live, Uar};
use crate::shared::{CompletionSink, Shared};

/// log2 of the most entries that 24-bit indexes can tell apart.
const LOG2_MAX_CQES: u8 = 23;

/// What a completion queue shall be.
#[derive(Clone, Copy, Debug)]
pub struct CqConfig<'a> {
    /// log2 of its entries.
    pub log2_entries: u8,
    /// Its ring, which the device fills with entries of its own first.
    pub ring: RingMemoryPages<'a>,
    /// Bus address of its doorbell record of 8 bytes, a multiple of 8.
    pub record: u64,
    /// UAR page through which it is armed.
    pub uar: &'a Uar,
    /// Completions that weren't taken may be overwritten.
    pub ignore_overrun: bool,
    /// Which of the event queues for completions it uses; modulo their number.
    pub vector: usize,
}

/// The ring that a completion queue has now.
#[derive(Debug)]
struct Ring {
    /// log2 of the entries of the largest ring so far: the consumer index that the device tells is the one that it
    /// needed last, maybe of that ring.
    log2_largest: u8,
    mtt: MttRange,
}

/// A completion queue of the device.
#[derive(Debug)]
pub struct Cq {
    live: Live,
    uar: Uar,
    eqn: u32,
    ring: Mutex<Ring>,
}

/// How a completion queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CqState {
    /// Whether it works.
    pub status: CqStatus,
    /// Consumer index, as the device saw it last.
    pub consumer: u32,
    /// Producer index.
    pub producer: u32,
}

impl Cq {
    /// `notify` is called for each completion event, on whichever thread takes the events of one of these event queues.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        number: Number,
        config: &CqConfig<'_>,
        eqns: &[u32],
        notify: Box<dyn Fn() + Send + Sync>,
    ) -> Result<Self> {
        check_ring(shared, config.log2_entries, &config.ring)?;
        if !config.record.is_multiple_of(8) {
            return Err(Error::argument("address of a doorbell record", config.record));
        }
        let cqn = number.get();
        let claim = Claim::ring(shared, (Kind::Cq, number), &config.ring)?;
        shared.completions.insert(cqn, Arc::new(CompletionSink { notify }));
        let eqn = eqns.get(config.vector % eqns.len().max(1)).copied();
        let eqn = eqn.ok_or(Error::Exhausted("completion EQ"))?;
        let context = context(config, eqn, claim.mtt());
        let log2_entries = config.log2_entries;
        let made = claim.hand_over(shared, "completion queue", Opcode::SW2HW_CQ, context);
        if made.is_err() {
            shared.completions.remove(cqn);
        }
        let (live, mtt) = made?;
        let ring = Mutex::new(Ring { log2_largest: log2_entries, mtt });
        Ok(Self { live, uar: config.uar.clone(), eqn, ring })
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.live.number()
    }

    /// The event queue that its events go to.
    pub(crate) fn eqn(&self) -> u32 {
        self.eqn
    }

    /// The doorbell that arms it.
    pub(crate) fn doorbell(&self) -> Result<Arc<dyn Doorbell>> {
        self.uar.doorbell(DoorbellKind::Arm(self.number()))
    }

    /// How it is.
    ///
    /// # Errors
    /// The device doesn't tell.
    pub fn query(&self) -> Result<CqState> {
        let context: CqContext = self.live.shared.commands.query(Opcode::QUERY_CQ, self.number())?;
        Ok(state(&context, self.ring().log2_largest)?)
    }

    /// Has events wait until `count` completions are there, or the first has waited for `period_us` µs; zeros
    /// have them come at once.
    ///
    /// # Errors
    /// The device refuses it.
    pub fn moderate(&self, count: u16, period_us: u16) -> Result<()> {
        let mut context = CqContext::new_zeroed();
        (context.period, context.max_count) = (U16::new(period_us), U16::new(count));
        self.modify(ModifyCqOp::MODERATION, &context)
    }

    /// Moves the queue to another ring of `1 << log2_entries` entries, which the device makes its own first. It
    /// ends the old ring with a mark: whoever polls takes over what is in front of it, each entry one index
    /// further on.
    ///
    /// # Errors
    /// The ring isn't one of a completion queue, no memory is left, or the device refuses it: the queue is as
    /// before. If the error [leaves it open](Error::leaves_open), the device may use either ring until the
    /// next reset.
    pub fn resize(&self, log2_entries: u8, ring: &RingMemoryPages<'_>) -> Result<()> {
        let shared = &self.live.shared;
        check_ring(shared, log2_entries, ring)?;
        let mut now = self.ring();
        let mtt = shared.icm.translate(&shared.commands, &Pages::List(ring.pages), 1)?;
        let given = ring.context(&mtt).and_then(|pages| {
            let mut context = CqContext::new_zeroed();
            context.size = RingSize::new().with_log2_entries(log2_entries);
            context.pages = pages;
            self.modify(ModifyCqOp::RESIZE, &context)
        });
        match given {
            Ok(()) => {
                let log2_largest = log2_entries.max(now.log2_largest);
                let old = std::mem::replace(&mut *now, Ring { log2_largest, mtt });
                // The queue has moved, whatever becomes of the entries of the ring that it has left.
                if let Err(error) = shared.icm.forget(&shared.commands, old.mtt) {
                    log::warn!(
                        "translation entries of a ring that completion queue {:#x} has left: {error}",
                        self.number()
                    );
                }
                Ok(())
            }
            Err(error) => {
                // Else its entries stay taken.
                if !error.leaves_open()
                    && let Err(error) = shared.icm.forget(&shared.commands, mtt)
                {
                    log::warn!("translation entries of a ring that wasn't taken: {error}");
                }
                Err(error)
            }
        }
    }

    fn modify(&self, what: ModifyCqOp, context: &CqContext) -> Result<()> {
        let command = Command::new(Opcode::MODIFY_CQ, self.number());
        let input = Input::Mailbox(context.as_bytes());
        self.live.shared.commands.run(&Command { opmod: what.0, input, ..command })?;
        Ok(())
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // It is replaced as a whole.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the queue back: when this returns, the device doesn't use its memory any more. Its queue pairs
    /// must be gone.
    ///
    /// # Errors
    /// The device doesn't give it back. The memory must stay mapped until the next reset.
    pub fn destroy(self) -> Result<()> {
        let shared = Arc::clone(&self.live.shared);
        let cqn = self.number();
        let command = Command::new(Opcode::HW2SW_CQ, cqn);
        shared.commands.run(&Command { opmod: Hw2SwOp::NO_OUTPUT.0, ..command })?;
        shared.completions.remove(cqn);
        let ring = self.ring.into_inner().unwrap_or_else(PoisonError::into_inner);
        let given_back = give_back(&shared, Kind::Cq, cqn, ring.mtt);
        self.live.end();
        given_back
    }
}

fn check_ring(shared: &Shared, log2_entries: u8, ring: &RingMemoryPages<'_>) -> Result<()> {
    if log2_entries > shared.caps.queues.log2_max_cqes.min(LOG2_MAX_CQES) {
        return Err(Error::argument("log2 of the entries of a completion queue", log2_entries));
    }
    ring.check(u64::from(shared.layout.cqe_bytes) << log2_entries)
}

/// Reads the context that the device tells.
fn state(context: &CqContext, log2_entries: u8) -> Result<CqState, FieldError> {
    let fields = Fields("QUERY_CQ");
    let status = context.flags.status();
    fields.holds("status", status.0, status.name().is_some(), "a status")?;
    let (consumer, producer) = (context.consumer_index.number(), context.producer_index.number());
    let unread = producer.wrapping_sub(consumer) & Number24::MAX;
    if !context.flags.overrun_ignore() {
        let few = unread <= 1 << log2_entries;
        fields.holds("consumer_index", consumer, few, "at most a ring behind producer_index")?;
    }
    Ok(CqState { status, consumer, producer })
}

fn context(config: &CqConfig<'_>, eqn: u32, mtt: &MttRange) -> Result<CqContext> {
    let eqn = u16::try_from(eqn).map_err(|_| Error::argument("EQ number", eqn))?;
    let mut context = CqContext::new_zeroed();
    context.flags.set_overrun_ignore(config.ignore_overrun);
    context.size = RingSize::new().with_log2_entries(config.log2_entries).with_uar_page(config.uar.index());
    context.completion_eq =
        CqEqn::new().with_eqn_checked(eqn).map_err(|()| Error::argument("EQ number", eqn))?;
    context.pages = config.ring.context(mtt)?;
    context.record_address = U64::new(config.record);
    Ok(context)
}
