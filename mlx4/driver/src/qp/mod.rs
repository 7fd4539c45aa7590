//! Queue pairs as the device has them: a context, queues and a doorbell record in memory that may be
//! anybody's. For one that this process posts to itself see [`QueuePair`](crate::QueuePair).

mod attributes;
mod context;
mod status;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_wire::Number24;
use mlx4_wire::cmd::misc::SqdModifier;
use mlx4_wire::cmd::{Opcode, Status};
use mlx4_wire::ctx::path::{FORCE_SGID, SchedQueue};
use mlx4_wire::ctx::qp::{QpMailbox, QpState, ServiceType, WqSize};

pub use attributes::{AlternatePath, Attributes};
pub use status::QpStatus;

use crate::claim::{Claim, RingMemoryPages, give_back};
use crate::cmd::Command;
use crate::cq::Cq;
use crate::error::{Error, Result};
use crate::icm::{Kind, MttRange};
use crate::numbers::Number;
use crate::object::{Live, Pd, Uar};
use crate::queues::EmptyQueue;
use crate::region::Access;
use crate::shared::Shared;
use crate::srq::Srq;
use crate::xrc::{XRC_TARGET, Xrcd, XrcdUse};
use attributes::state_name;
use context::{Change, Fixed, Limits};

/// Operation modifier of 2RST: without a mailbox, as the stock driver has it.
const TO_RST_MODIFIER: u8 = 2;

/// log2 of the smallest stride of a send queue in bytes.
const LOG2_SEND_STRIDE: u8 = 6;

/// What a queue pair shall be.
#[derive(Clone, Copy, Debug)]
pub struct QpConfig<'a> {
    /// Its service: RC, UC, UD, or XRC for the end of an extended connection that sends.
    pub service: ServiceType,
    /// Its send queue: a stride of 64 bytes or more.
    pub send: WqSize,
    /// Its receive queue; `None` with an SRQ, and of XRC. The queue with the larger stride is first in the buffer, the
    /// send queue if they are equal.
    pub receive: Option<WqSize>,
    /// Its domain.
    pub pd: &'a Pd,
    /// UAR page through which its doorbell comes.
    pub uar: &'a Uar,
    /// Where its send requests complete.
    pub send_cq: &'a Cq,
    /// Where its receive requests complete.
    pub receive_cq: &'a Cq,
    /// The SRQ that its receive requests come from, if it has no receive queue.
    pub srq: Option<&'a Srq>,
    /// The buffer with its queues.
    pub buffer: RingMemoryPages<'a>,
    /// Bus address of the receive queue's doorbell record of 4 bytes, a multiple of 4; 0 without a queue.
    pub record: u64,
    /// What its requests may do that is not for everybody.
    pub rights: QpRights,
}

/// What requests of a queue pair may do that is not for everybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QpRights {
    /// They may register memory by its bus addresses. Never for a queue pair that somebody else posts to.
    pub fast_register: bool,
    /// UD: they may be messages that the device cuts into datagrams.
    pub lso: bool,
    /// UD: all datagrams have this source GID, by its index in the port's table, whatever their address vector
    /// says.
    pub forced_gid: Option<u8>,
}

/// What changes of a queue pair.
#[derive(Debug)]
struct Progress {
    /// The state that it was taken to last; the device may have taken it to an error state since.
    state: QpState,
    access: Access,
    /// Whether there are resources to answer reads and atomics with.
    responds: bool,
    port: u8,
    /// A transition wasn't answered, so the state may be another.
    uncertain: bool,
}

impl Progress {
    const NEW: Self = Self {
        state: QpState::RST,
        access: Access { local_write: false, remote_read: false, remote_write: false, remote_atomic: false },
        responds: false,
        port: 1,
        uncertain: false,
    };
}

/// A queue pair of the device.
#[derive(Debug)]
pub struct Qp {
    live: Live,
    _pd: Pd,
    _uar: Uar,
    _xrcd: Option<XrcdUse>,
    mtt: MttRange,
    fixed: Fixed,
    progress: Mutex<Progress>,
}

impl Qp {
    /// A queue pair in RESET. Its queues' memory need not be ready before it goes to INIT.
    pub(crate) fn new(shared: &Arc<Shared>, number: Number, config: &QpConfig<'_>) -> Result<Self> {
        check(shared, config)?;
        Self::made(shared, number, config, None)
    }

    /// The end of extended connections of a domain that receives.
    pub(crate) fn xrc_target(shared: &Arc<Shared>, number: Number, xrcd: &Xrcd) -> Result<Self> {
        let config = QpConfig {
            service: ServiceType::XRC,
            send: EmptyQueue::size(),
            receive: None,
            pd: xrcd.pd(),
            uar: xrcd.uar(),
            send_cq: xrcd.cq(),
            receive_cq: xrcd.cq(),
            srq: None,
            buffer: xrcd.queue().pages(),
            record: 0,
            rights: QpRights::default(),
        };
        Self::made(shared, number, &config, Some(xrcd))
    }

    fn made(
        shared: &Arc<Shared>,
        number: Number,
        config: &QpConfig<'_>,
        xrcd: Option<&Xrcd>,
    ) -> Result<Self> {
        let claim = Claim::ring(shared, (Kind::Qp, number), &config.buffer)?;
        let fixed = match fixed(&claim, config, xrcd) {
            Ok(fixed) => fixed,
            Err(error) => {
                claim.give_back(shared)?;
                return Err(error);
            }
        };
        let (live, mtt) = claim.keep(shared, "queue pair");
        let (pd, uar) = (config.pd.clone(), config.uar.clone());
        let xrcd = xrcd.map(Xrcd::held);
        Ok(Self { live, _pd: pd, _uar: uar, _xrcd: xrcd, mtt, fixed, progress: Mutex::new(Progress::NEW) })
    }

    /// The same as the QP0 of its port, whose packets have a virtual lane of their own.
    pub(crate) fn into_qp0(mut self) -> Self {
        self.fixed.sched_queue = SchedQueue::BASE_QP0;
        self
    }

    /// Its number; of an XRC target with [`XRC_TARGET`](crate::XRC_TARGET).
    pub fn number(&self) -> u32 {
        self.fixed.qpn
    }

    /// Its service.
    pub fn service(&self) -> ServiceType {
        self.fixed.service
    }

    /// The state that it was taken to last. The device may have taken it to an error state since.
    pub fn state(&self) -> QpState {
        self.progress().state
    }

    /// Takes the queue pair to a state.
    ///
    /// # Errors
    /// There is no such transition, an attribute is missing, not taken or out of range, or the device refuses
    /// it. The queue pair is then as before.
    pub fn modify(&self, to: QpState, attributes: &Attributes) -> Result<()> {
        let mut progress = self.progress();
        match self.attempt(&mut progress, to, attributes) {
            // The device has taken it elsewhere by itself.
            Err(error) if error.status() == Some(Status::BAD_QP_STATE) => {
                let now = self.query()?.state;
                if now == progress.state {
                    return Err(error);
                }
                progress.state = now;
                self.attempt(&mut progress, to, attributes)
            }
            other => other,
        }
    }

    fn attempt(&self, progress: &mut Progress, to: QpState, attributes: &Attributes) -> Result<()> {
        let from = progress.state;
        let opcode =
            transition(from, to).ok_or(Error::Transition { from: state_name(from), to: state_name(to) })?;
        attributes.check(self.fixed.role(), from, to)?;
        let change = Change {
            from,
            to,
            attributes,
            access: attributes.access.unwrap_or(progress.access),
            responds: match attributes.responder_reads {
                Some(reads) => reads != 0,
                None => progress.responds && to != QpState::INIT,
            },
            port: attributes.path.map(|path| path.port).or(attributes.port).unwrap_or(progress.port),
        };
        if let Err(error) = self.command(opcode, &change) {
            progress.uncertain |= error.leaves_open();
            return Err(error);
        }
        *progress = if to == QpState::RST {
            Progress::NEW
        } else {
            let Change { access, responds, port, .. } = change;
            Progress { state: to, access, responds, port, uncertain: progress.uncertain }
        };
        Ok(())
    }

    fn command(&self, opcode: Opcode, change: &Change<'_>) -> Result<()> {
        let commands = &self.live.shared.commands;
        let qpn = self.number();
        match opcode {
            Opcode::TO_RST_QP => {
                commands.run(&Command { opmod: TO_RST_MODIFIER, ..Command::new(opcode, qpn) })?;
            }
            Opcode::TO_ERR_QP => commands.simple(opcode, qpn)?,
            _ => {
                let mailbox = self.fixed.mailbox(&self.limits(), change)?;
                let event = opcode == Opcode::RTS2SQD_QP && change.attributes.drained_event;
                let modifier = SqdModifier::new().with_event(event).with_qpn(qpn & Number24::MAX);
                commands.give(opcode, modifier.into_bits().get(), &mailbox)?;
            }
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        let shared = &self.live.shared;
        Limits {
            // At most 2.
            ports: u8::try_from(shared.caps.ports.len()).unwrap_or(0),
            log2_max_message: shared.caps.log2_max_message,
            log2_max_lso: shared.caps.log2_max_lso,
            log2_requester_reads: shared.caps.log2_max_requester_reads,
            log2_responder_reads: shared.layout.profile.log2_reads,
        }
    }

    /// How it is.
    ///
    /// # Errors
    /// The device doesn't tell.
    pub fn query(&self) -> Result<QpStatus> {
        let shared = &self.live.shared;
        let mailbox: QpMailbox = shared.commands.query(Opcode::QUERY_QP, self.number())?;
        Ok(QpStatus::read(&mailbox.context, &shared.caps.ports, &self.limits())?)
    }

    /// Its number will not be used again before the next reset, also when the queue pair is destroyed: a
    /// multicast group may still name it.
    pub fn keep_number(&mut self) {
        self.live.keep_number();
    }

    /// Takes the queue pair to RESET and back: when this returns, the device doesn't use its memory any more.
    ///
    /// # Errors
    /// The device doesn't give it back. The memory must stay mapped until the next reset.
    pub fn destroy(self) -> Result<()> {
        self.destroy_and(|| ())
    }

    /// As [`Qp::destroy`]; `clean` is called in between: the device doesn't use the queue pair any more, and its number
    /// is nobody else's yet.
    pub(crate) fn destroy_and(self, clean: impl FnOnce()) -> Result<()> {
        let shared = Arc::clone(&self.live.shared);
        let qpn = self.number();
        let in_use = {
            let progress = self.progress();
            progress.state != QpState::RST || progress.uncertain
        };
        if in_use {
            let command = Command::new(Opcode::TO_RST_QP, qpn);
            shared.commands.run(&Command { opmod: TO_RST_MODIFIER, ..command })?;
        }
        clean();
        let given_back = give_back(&shared, Kind::Qp, self.live.number(), self.mtt);
        self.live.end();
        given_back
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // It is replaced as a whole.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of a queue pair never changes.
fn fixed(claim: &Claim, config: &QpConfig<'_>, xrcd: Option<&Xrcd>) -> Result<Fixed> {
    let QpRights { fast_register, lso, forced_gid } = config.rights;
    Ok(Fixed {
        service: config.service,
        qpn: claim.number() | if xrcd.is_some() { XRC_TARGET } else { 0 },
        pd: config.pd.number(),
        uar: config.uar.index(),
        send_cqn: config.send_cq.number(),
        receive_cqn: config.receive_cq.number(),
        srqn: config.srq.map(Srq::number),
        send: config.send,
        receive: config.receive.unwrap_or_default(),
        pages: config.buffer.context(claim.mtt())?,
        record: config.record,
        xrcd: xrcd.map(Xrcd::number),
        fast_register,
        lso,
        forced_gid,
        sched_queue: SchedQueue::BASE,
    })
}

fn check(shared: &Shared, config: &QpConfig<'_>) -> Result<()> {
    let limits = &shared.caps.queues;
    for size in [Some(config.send), config.receive].into_iter().flatten() {
        if size.log2_entries() > limits.log2_max_wqes {
            return Err(Error::argument("entries of a work queue", size.entries()));
        }
    }
    if config.send.log2_stride() < LOG2_SEND_STRIDE || config.send.no_prefetch() {
        return Err(Error::argument("size of a send queue", config.send.into_bits()));
    }
    let bytes = config.send.bytes() + config.receive.map_or(0, |receive| receive.bytes());
    config.buffer.check(bytes.into())?;
    let own = config.receive.is_some();
    let sources = u64::from(own) + u64::from(config.srq.is_some());
    if sources != u64::from(config.service != ServiceType::XRC) {
        return Err(Error::argument("number of receive queues and SRQs", sources));
    }
    check_rights(shared, config)?;
    if !config.record.is_multiple_of(4) || own != (config.record != 0) {
        return Err(Error::argument("address of a doorbell record", config.record));
    }
    Ok(())
}

fn check_rights(shared: &Shared, config: &QpConfig<'_>) -> Result<()> {
    let QpRights { fast_register, lso, forced_gid } = config.rights;
    let datagrams = config.service == ServiceType::UD;
    if fast_register && !shared.caps.has_fast_registration {
        return Err(Error::argument("fast registration", 1u64));
    }
    if lso && !(datagrams && shared.caps.log2_max_lso != 0) {
        return Err(Error::argument("segmentation of long messages", 1u64));
    }
    match forced_gid {
        Some(index) if !datagrams || index >= FORCE_SGID => Err(Error::argument("forced source GID", index)),
        _ => Ok(()),
    }
}

/// The command of a transition.
fn transition(from: QpState, to: QpState) -> Option<Opcode> {
    use QpState as S;
    Some(match (from, to) {
        (_, S::RST) => Opcode::TO_RST_QP,
        (_, S::ERR) => Opcode::TO_ERR_QP,
        (S::RST, S::INIT) => Opcode::RST2INIT_QP,
        (S::INIT, S::INIT) => Opcode::INIT2INIT_QP,
        (S::INIT, S::RTR) => Opcode::INIT2RTR_QP,
        (S::RTR, S::RTS) => Opcode::RTR2RTS_QP,
        (S::RTS, S::RTS) => Opcode::RTS2RTS_QP,
        (S::SQER, S::RTS) => Opcode::SQERR2RTS_QP,
        (S::RTS, S::SQD) => Opcode::RTS2SQD_QP,
        (S::SQD | S::SQ_DRAINING, S::SQD) => Opcode::SQD2SQD_QP,
        (S::SQD | S::SQ_DRAINING, S::RTS) => Opcode::SQD2RTS_QP,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transitions_are_those_of_the_architecture() {
        use QpState as S;
        let states = [S::RST, S::INIT, S::RTR, S::RTS, S::SQER, S::SQD, S::ERR];
        let legal =
            |from| states.into_iter().filter(|to| transition(from, *to).is_some()).collect::<Vec<_>>();
        assert_eq!(legal(S::RST), [S::RST, S::INIT, S::ERR]);
        assert_eq!(legal(S::INIT), [S::RST, S::INIT, S::RTR, S::ERR]);
        assert_eq!(legal(S::RTR), [S::RST, S::RTS, S::ERR]);
        assert_eq!(legal(S::RTS), [S::RST, S::RTS, S::SQD, S::ERR]);
        assert_eq!(legal(S::SQER), [S::RST, S::RTS, S::ERR]);
        assert_eq!(legal(S::SQD), [S::RST, S::RTS, S::SQD, S::ERR]);
        assert_eq!(legal(S::ERR), [S::RST, S::ERR]);
    }
}
