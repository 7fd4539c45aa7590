//! Shared receive queues as the device has them. For one that this process posts to itself see
//! [`SharedReceiveQueue`](crate::SharedReceiveQueue).

use std::sync::Arc;

use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::misc::Hw2SwOp;
use mlx4_wire::ctx::srq::{SrqContext, SrqSize, SrqStride};
use mlx4_wire::{Number24, U16, U64};
use zerocopy::FromZeros;

use crate::claim::{Claim, RingMemoryPages, give_back};
use crate::cmd::{Command, Input};
use crate::cq::Cq;
use crate::error::{Error, Fields, Result};
use crate::icm::{Kind, MttRange};
use crate::numbers::Number;
use crate::object::{Live, Pd};
use crate::shared::Shared;
use crate::xrc::{Xrcd, XrcdUse};

/// log2 of the most slots that a context can tell.
const LOG2_MAX_WQES: u8 = 15;

/// log2 of the strides of slots, and of the unit in which a context tells them.
const LOG2_STRIDES: std::ops::RangeInclusive<u8> = 5..=11;
const LOG2_STRIDE_UNIT: u8 = 4;

/// What a shared receive queue shall be.
#[derive(Clone, Copy, Debug)]
pub struct SrqConfig<'a> {
    /// log2 of its slots, of which one is never posted.
    pub log2_entries: u8,
    /// log2 of the distance of slots in bytes, 5 to 11.
    pub log2_stride: u8,
    /// Its domain.
    pub pd: &'a Pd,
    /// Its ring, whose slots are chained.
    pub ring: RingMemoryPages<'a>,
    /// Bus address of its doorbell record of 4 bytes, a multiple of 4.
    pub record: u64,
    /// For extended connections: the domain of their queue pairs, and where requests complete.
    pub xrc: Option<(&'a Xrcd, &'a Cq)>,
}

/// A shared receive queue of the device.
#[derive(Debug)]
pub struct Srq {
    live: Live,
    _pd: Pd,
    _xrcd: Option<XrcdUse>,
    requests: u32,
    mtt: MttRange,
}

impl Srq {
    pub(crate) fn new(shared: &Arc<Shared>, number: Number, config: &SrqConfig<'_>) -> Result<Self> {
        if config.log2_entries > shared.caps.queues.log2_max_srq_wqes.min(LOG2_MAX_WQES) {
            return Err(Error::argument("log2 of the slots of an SRQ", config.log2_entries));
        }
        if !LOG2_STRIDES.contains(&config.log2_stride) {
            return Err(Error::argument("log2 of the stride of an SRQ", config.log2_stride));
        }
        config.ring.check(1 << (config.log2_entries + config.log2_stride))?;
        if !config.record.is_multiple_of(4) {
            return Err(Error::argument("address of a doorbell record", config.record));
        }
        let claim = Claim::ring(shared, (Kind::Srq, number), &config.ring)?;
        let context = context(shared, claim.number(), config, claim.mtt());
        let (live, mtt) = claim.hand_over(shared, "shared receive queue", Opcode::SW2HW_SRQ, context)?;
        let requests = (1 << config.log2_entries) - 1;
        let xrcd = config.xrc.map(|(xrcd, _)| xrcd.held());
        Ok(Self { live, _pd: config.pd.clone(), _xrcd: xrcd, requests, mtt })
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.live.number()
    }

    /// Asks for an event when fewer than `limit` requests are left; 0 asks for none.
    ///
    /// # Errors
    /// The limit is more than the queue holds, or the device refuses it.
    pub fn arm(&self, limit: u16) -> Result<()> {
        if u32::from(limit) > self.requests {
            return Err(Error::argument("SRQ limit", limit));
        }
        let input = Input::Immediate(limit.into());
        self.live.shared.commands.run(&Command { input, ..Command::new(Opcode::ARM_SRQ, self.number()) })?;
        Ok(())
    }

    /// The limit below which an event comes; 0 if none was asked for, or it has come.
    ///
    /// # Errors
    /// The device doesn't tell.
    pub fn limit(&self) -> Result<u16> {
        let context: SrqContext = self.live.shared.commands.query(Opcode::QUERY_SRQ, self.number())?;
        Ok(Fields("QUERY_SRQ").at_most("limit", context.limit.get(), self.requests.into())?)
    }

    /// Takes the queue back: when this returns, the device doesn't use its memory any more. Its queue pairs
    /// must be gone.
    ///
    /// # Errors
    /// The device doesn't give it back. The memory must stay mapped until the next reset.
    pub fn destroy(self) -> Result<()> {
        self.destroy_and(|| ())
    }

    /// As [`Srq::destroy`]; `clean` is called in between: the device doesn't use the queue any more, and its number is
    /// nobody else's yet.
    pub(crate) fn destroy_and(self, clean: impl FnOnce()) -> Result<()> {
        let shared = Arc::clone(&self.live.shared);
        let srqn = self.number();
        let command = Command::new(Opcode::HW2SW_SRQ, srqn);
        shared.commands.run(&Command { opmod: Hw2SwOp::NO_OUTPUT.0, ..command })?;
        clean();
        let given_back = give_back(&shared, Kind::Srq, srqn, self.mtt);
        self.live.end();
        given_back
    }
}

fn context(shared: &Shared, srqn: u32, config: &SrqConfig<'_>, mtt: &MttRange) -> Result<SrqContext> {
    let mut context = SrqContext::new_zeroed();
    context.size = SrqSize::new().with_log2_entries(config.log2_entries).with_srqn(srqn & Number24::MAX);
    context.stride = SrqStride::new().with_log2_stride_less_4(config.log2_stride - LOG2_STRIDE_UNIT);
    context.pages = config.ring.context(mtt)?;
    match config.xrc {
        Some((xrcd, cq)) => {
            context.xrcd = U16::new(xrcd.number());
            context.cq.set_cqn(cq.number() & Number24::MAX);
        }
        // A domain that is nobody's.
        None => {
            let reserved = shared.caps.xrcds.map_or(0, |xrcds| xrcds.reserved);
            context.xrcd = U16::new(u16::try_from(reserved).unwrap_or(0));
        }
    }
    context.pd = Number24::wrapping(config.pd.number());
    context.record_address = U64::new(config.record);
    Ok(context)
}
