//! Completion queues as the device has them: a context, and a ring and a doorbell record in memory that may
//! be anybody's. For a queue that this process polls itself see [`CompletionQueue`](crate::CompletionQueue).

use std::sync::Arc;

use mlx4_wire::U64;
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::misc::Hw2SwOp;
use mlx4_wire::cqe::CQE_BYTES;
use mlx4_wire::ctx::cq::{CqContext, CqEqn, CqStatus};
use mlx4_wire::ctx::{RingPages, RingSize};
use zerocopy::FromZeros;

use crate::cmd::{Command, Ends};
use crate::error::{Error, Result};
use crate::icm::{Kind, MttRange, Pages};
use crate::numbers::Number;
use crate::object::{Live, Uar};
use crate::shared::{CompletionSink, Shared};

/// The memory of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingMemoryPages<'a> {
    /// Bus addresses of the pages, each a multiple of the page's size. The ring starts at the first.
    pub pages: &'a [u64],
    /// log2 of the page's size in bytes, 12 to 31.
    pub log2_page: u8,
}

impl RingMemoryPages<'_> {
    /// Checks that the pages hold `bytes`.
    pub(crate) fn check(&self, bytes: u64) -> Result<()> {
        if !(12..=31).contains(&self.log2_page) {
            return Err(Error::argument("log2 of the page size", self.log2_page));
        }
        let page = 1u64 << self.log2_page;
        if bytes.div_ceil(page) != self.pages.len() as u64 {
            return Err(Error::argument("number of pages of a ring", self.pages.len() as u64));
        }
        match self.pages.iter().find(|address| !address.is_multiple_of(page)) {
            Some(address) => Err(Error::argument("page address of a ring", *address)),
            None => Ok(()),
        }
    }
}

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

/// A completion queue of the device.
#[derive(Debug)]
pub struct Cq {
    live: Live,
    _uar: Uar,
    mtt: MttRange,
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
    /// `notify` is called for each completion event, from a thread of the driver's.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        mut number: Number,
        config: &CqConfig<'_>,
        notify: Box<dyn Fn() + Send + Sync>,
    ) -> Result<Self> {
        if config.log2_entries > shared.caps.queues.log2_max_cqes.min(LOG2_MAX_CQES) {
            return Err(Error::argument("log2 of the entries of a completion queue", config.log2_entries));
        }
        config.ring.check(u64::from(CQE_BYTES) << config.log2_entries)?;
        if !config.record.is_multiple_of(8) {
            return Err(Error::argument("address of a doorbell record", config.record));
        }
        let cqn = number.get();
        shared.icm.get(&shared.commands, Kind::Cq, cqn)?;
        shared.completions.insert(cqn, Arc::new(CompletionSink { notify }));
        match Self::enter(shared, cqn, config) {
            Ok(mtt) => {
                let live = Live::new(shared, "completion queue", number);
                Ok(Self { live, _uar: config.uar.clone(), mtt })
            }
            Err(error) => {
                shared.completions.remove(cqn);
                if error.is_unanswered() {
                    number.lose();
                } else {
                    shared.icm.put(&shared.commands, Kind::Cq, cqn)?;
                }
                Err(error)
            }
        }
    }

    fn enter(shared: &Arc<Shared>, number: u32, config: &CqConfig<'_>) -> Result<MttRange> {
        let pages = Pages::List(config.ring.pages);
        // One entry behind the ring that isn't present.
        let mtt = shared.icm.translate(&shared.commands, &pages, 1)?;
        let context = context(shared, config, &mtt)?;
        match shared.commands.give(Opcode::SW2HW_CQ, number, &context) {
            Ok(()) => Ok(mtt),
            Err(error) => {
                if error.status().is_some() {
                    shared.icm.forget(&shared.commands, mtt)?;
                }
                Err(error.into())
            }
        }
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.live.number()
    }

    /// How it is.
    ///
    /// # Errors
    /// The device doesn't tell.
    pub fn query(&self) -> Result<CqState> {
        let context: CqContext = self.live.shared.commands.query(Opcode::QUERY_CQ, self.number())?;
        Ok(CqState {
            status: context.flags.status(),
            consumer: context.consumer_index.number(),
            producer: context.producer_index.number(),
        })
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
        let mut ends = Ends::default();
        ends.note(shared.icm.forget(&shared.commands, self.mtt));
        ends.note(shared.icm.put(&shared.commands, Kind::Cq, cqn));
        self.live.end();
        ends.result()
    }
}

fn context(shared: &Shared, config: &CqConfig<'_>, mtt: &MttRange) -> Result<CqContext> {
    let eqns = &shared.completion_eqns;
    let eqn = eqns.get(config.vector % eqns.len().max(1)).ok_or(Error::Exhausted("completion EQ"))?;
    let eqn = u16::try_from(*eqn).map_err(|_| Error::argument("EQ number", *eqn))?;
    let mut context = CqContext::new_zeroed();
    context.flags.set_overrun_ignore(config.ignore_overrun);
    context.size = RingSize::new().with_log2_entries(config.log2_entries).with_uar_page(config.uar.index());
    context.completion_eq =
        CqEqn::new().with_eqn_checked(eqn).map_err(|()| Error::argument("EQ number", eqn))?;
    context.pages = RingPages::new(config.ring.log2_page, mtt.offset())
        .ok_or(Error::argument("MTT offset", mtt.offset()))?;
    context.record_address = U64::new(config.record);
    Ok(context)
}
