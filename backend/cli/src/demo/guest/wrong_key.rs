//! A write with a key that isn't that of the memory.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use paraverbs_verbs::{AsyncEvent, Context, EventElement, EventType, SendFlags, SendOp, WcStatus};

use super::link::{Data, Link};
use super::state_name;
use crate::demo::protocol::{Answer, Refusal, Side};

/// Bytes that are written, and that must not arrive.
const BYTES: u32 = 4096;
/// What is written. The memory is zeroed before.
const WRITTEN: u8 = 0xa5;
/// What makes the key wrong: the part of it that the owner chooses is another one.
const WRONG: u32 = 0x2b;
/// No event takes that long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Plays one side.
pub(super) fn run(link: &mut Link, context: &Context, side: Side) -> Result<Answer> {
    let refusal = match side {
        Side::First => attack(link)?,
        Side::Second => suffer(link, context)?,
    };
    Ok(Answer::Refused(refusal))
}

fn attack(link: &mut Link) -> Result<Refusal> {
    link.outbox.fill(0, BYTES as usize, WRITTEN).context("fill the outbox")?;
    let far = link.far()?.window;
    let op = SendOp::Write { remote_addr: far.addr, rkey: far.rkey ^ WRONG };
    let number = link.post(op, Data::Outbox(0, BYTES), SendFlags::SIGNALED)?;
    link.had_wrong_key(BYTES.into());
    // Receives are flushed too, after it.
    let wc = link.wait_any()?;
    ensure!(
        !wc.opcode.is_receive() && wc.wr_id == number,
        "completion of {:?} {} instead of the write",
        wc.opcode,
        wc.wr_id
    );
    Ok(Refusal {
        status: status_name(wc.status),
        state: state_name(link.state()?),
        event: None,
        untouched: true,
    })
}

fn suffer(link: &mut Link, context: &Context) -> Result<Refusal> {
    let wc = link.wait_any()?;
    let mut memory = [0; BYTES as usize];
    link.window.read(0, &mut memory).context("read the window")?;
    Ok(Refusal {
        status: status_name(wc.status),
        state: state_name(link.state()?),
        event: access_event(context, link.qpn())?.map(|event| format!("{:?}", event.event_type)),
        untouched: memory.iter().all(|byte| *byte == 0),
    })
}

/// The event that tells the owner of the memory.
fn access_event(context: &Context, qpn: u32) -> Result<Option<AsyncEvent>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = context.get_async_event(left).context("wait for an asynchronous event")?;
        match event {
            Some(event) if event.element != EventElement::Qp(qpn) || is_begin(&event) => {}
            end => return Ok(end),
        }
    }
}

/// The event that a first message came, which may come before.
fn is_begin(event: &AsyncEvent) -> bool {
    event.event_type == EventType::CommEst
}

/// A status as verbs spells it.
fn status_name(status: WcStatus) -> String {
    match status {
        WcStatus::Success => "IBV_WC_SUCCESS".into(),
        WcStatus::RemAccessErr => "IBV_WC_REM_ACCESS_ERR".into(),
        WcStatus::WrFlushErr => "IBV_WC_WR_FLUSH_ERR".into(),
        other => format!("{other:?} ({other})"),
    }
}
