//! The rings of a queue pair: what posting and polling work with.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_queue::geometry::QpLayout;
use mlx4_queue::request::{
    Data, Destination, Operation, PostError, Remote, SendFlags, SendRequest, Sge as Piece,
};
use mlx4_queue::{Place, PostedReceive, PostedSend, ReceiveQueue, SendQueue};

use super::QpState;
use crate::arena::Block;
use crate::device::Bell;
use crate::error::{Error, Result};
use crate::memory::Span;
use crate::mw::{Bound, MwBind, Released};
use crate::srq::{Shared, SharedRing};
use crate::wr::{RecvWr, SendData, SendFlags as Flags, SendOp, SendWr, Sge, UdDest};

/// More pieces than any request can have, which a WQE of 1008 bytes bounds.
const MOST_PIECES: usize = 64;
/// Pieces of most requests.
const FEW_PIECES: usize = 4;

#[derive(Debug)]
pub(super) struct Gate<R> {
    ring: R,
    /// Whether the queue pair's state allows posting.
    open: bool,
}

#[derive(Debug)]
struct Sends {
    gate: Gate<SendQueue<Span, Bell>>,
    /// Binds of windows that are under way, oldest first, by the counters of their requests.
    binds: VecDeque<(u16, Bound)>,
}

/// Where receive requests are.
#[derive(Debug)]
pub(super) enum Receives {
    Own(Mutex<Gate<ReceiveQueue<Span>>>),
    Shared(Arc<SharedRing>),
    None,
}

/// Where a send request goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    /// To the other end of the connection.
    Peer,
    Datagram(Destination),
    /// To the other end of the connection, and the SRQ there.
    Srq(u32),
}

impl To {
    pub(super) fn of(to: &UdDest<'_>) -> Self {
        Self::Datagram(Destination { av: to.ah.av(), qpn: to.remote_qpn, qkey: to.remote_qkey })
    }
}

/// The rings of a queue pair.
#[derive(Debug)]
pub(crate) struct Work {
    qpn: u32,
    sq_sig_all: bool,
    send: Mutex<Sends>,
    receive: Receives,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The rings change their indexes last.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place(block: &Block, offset: usize) -> Place<Span> {
    Place { memory: block.span().clone(), offset }
}

/// Where a queue pair's receive requests are; `ring` and `record` are its memory.
pub(super) fn receives(
    layout: &QpLayout,
    ring: &Block,
    record: Option<&Block>,
    srq: Option<&Arc<Shared>>,
) -> Result<Receives> {
    if let Some(srq) = srq {
        return Ok(Receives::Shared(Arc::clone(srq.ring())));
    }
    let (Some(geometry), Some(record)) = (layout.receive, record) else { return Ok(Receives::None) };
    let ring = ReceiveQueue::new(place(ring, layout.receive_offset()), place(record, 0), geometry)?;
    Ok(Receives::Own(Mutex::new(Gate { ring, open: false })))
}

impl Work {
    /// The rings of a queue pair in RESET; `ring` is its memory.
    pub(super) fn new(
        qpn: u32,
        layout: &QpLayout,
        ring: &Block,
        receive: Receives,
        doorbell: Bell,
        sq_sig_all: bool,
    ) -> Result<Arc<Self>> {
        let send = SendQueue::new(place(ring, layout.send_offset()), layout.send, qpn, doorbell)?;
        let sends = Sends { gate: Gate { ring: send, open: false }, binds: VecDeque::new() };
        Ok(Arc::new(Self { qpn, sq_sig_all, send: Mutex::new(sends), receive }))
    }

    pub(crate) fn qpn(&self) -> u32 {
        self.qpn
    }

    /// A send request is done, and all before it; if it was a bind, what remembers it too: how it ended the
    /// completion tells.
    pub(crate) fn send_completed(
        &self,
        wqe_index: u16,
        released: &mut Released,
    ) -> Option<(PostedSend, Option<Bound>)> {
        let mut sends = lock(&self.send);
        let posted = sends.gate.ring.complete(wqe_index)?;
        let mut last = None;
        while let Some((_, bound)) = sends.binds.pop_front_if(|(at, _)| is_done(*at, wqe_index)) {
            // A later one was done, so this one had ended well.
            if let Some(before) = last.replace(bound) {
                Bound::ended(before, true, released);
            }
        }
        if posted.opcode != mlx4_wire::wqe::Opcode::BIND_MW
            && let Some(bound) = last.take()
        {
            bound.ended(true, released);
        }
        Some((posted, last))
    }

    pub(crate) fn receive_completed(&self, wqe_index: u16) -> Option<PostedReceive> {
        match &self.receive {
            Receives::Own(queue) => lock(queue).ring.complete(wqe_index),
            Receives::Shared(ring) => ring.completed(wqe_index),
            Receives::None => None,
        }
    }

    /// The completion of a receive request was dropped with the queue pair's reset. Those of an SRQ can be posted
    /// anew.
    pub(crate) fn receive_dropped(&self, wqe_index: u16) {
        if let Receives::Shared(ring) = &self.receive {
            ring.completed(wqe_index);
        }
    }

    /// Binds that are under way will never complete.
    pub(super) fn forget_binds(&self) {
        let binds = std::mem::take(&mut lock(&self.send).binds);
        binds.into_iter().for_each(|(_, bound)| bound.unknown());
    }

    /// Empties the rings, while the queue pair is in RESET.
    pub(super) fn reset(&self) {
        lock(&self.send).gate.ring.reset();
        if let Receives::Own(queue) = &self.receive {
            lock(queue).ring.reset();
        }
    }

    /// From now on requests may be posted as a state allows.
    pub(super) fn set_state(&self, state: QpState) {
        let sends = !matches!(state, QpState::Reset | QpState::Init | QpState::Rtr);
        lock(&self.send).gate.open = sends;
        if let Receives::Own(queue) = &self.receive {
            lock(queue).open = state != QpState::Reset;
        }
    }

    /// Posts requests up to one that can't be; answers how many were.
    pub(super) fn post_send<'a>(
        &self,
        wrs: impl Iterator<Item = (&'a SendWr<'a>, To)>,
    ) -> (usize, Result<()>) {
        let mut sends = lock(&self.send);
        let gate = &mut sends.gate;
        if !gate.open {
            return (0, Err(Error::State("send")));
        }
        let mut posted = 0;
        let mut result = Ok(());
        for (wr, to) in wrs {
            result = self.post_one(&mut gate.ring, wr, &to);
            if result.is_err() {
                break;
            }
            posted += 1;
        }
        if posted != 0 {
            gate.ring.ring();
        }
        (posted, result.map_err(Error::from))
    }

    fn post_one(
        &self,
        ring: &mut SendQueue<Span, Bell>,
        wr: &SendWr<'_>,
        to: &To,
    ) -> std::result::Result<(), PostError> {
        let mut post = |data: Data<'_>| {
            let request = SendRequest {
                wr_id: wr.wr_id,
                operation: operation(wr.op),
                data,
                flags: self.flags(wr.flags),
                destination: match to {
                    To::Datagram(to) => Some(to),
                    To::Peer | To::Srq(_) => None,
                },
            };
            match to {
                To::Srq(srqn) => ring.post_xrc(&request, *srqn),
                To::Peer | To::Datagram(_) => ring.post(&request),
            }
        };
        match wr.data {
            SendData::Inline(pieces) => post(Data::Inline(pieces)),
            SendData::Sges(sges) => with_pieces(sges, |pieces| post(Data::Pieces(pieces))),
            SendData::Segmented { header, mss, sges } => {
                with_pieces(sges, |pieces| post(Data::Segmented { header, segment: mss, pieces }))
            }
        }
    }

    fn flags(&self, flags: Flags) -> SendFlags {
        SendFlags {
            signalled: flags.signaled || self.sq_sig_all,
            solicited: flags.solicited,
            fence: flags.fence,
        }
    }

    /// Posts the bind of a window, which `bound` remembers until it is done.
    pub(super) fn post_bind(&self, bind: &MwBind<'_>, operation: Operation, bound: Bound) -> Result<()> {
        let mut sends = lock(&self.send);
        let Sends { gate, binds } = &mut *sends;
        if !gate.open {
            return Err(Error::State("send"));
        }
        let index = gate.ring.next_index();
        gate.ring.post(&SendRequest {
            wr_id: bind.wr_id,
            operation,
            data: Data::Pieces(&[]),
            flags: self.flags(bind.flags),
            destination: None,
        })?;
        binds.push_back((index, bound));
        gate.ring.ring();
        Ok(())
    }

    /// Posts requests up to one that can't be; answers how many were.
    pub(super) fn post_recv(&self, wrs: &[RecvWr<'_>]) -> (usize, Result<()>) {
        let Receives::Own(queue) = &self.receive else {
            return (0, Err(Error::Invalid("the queue pair has no receive queue of its own".into())));
        };
        let mut gate = lock(queue);
        if !gate.open {
            return (0, Err(Error::State("receive")));
        }
        let mut posted = 0;
        let mut result = Ok(());
        for wr in wrs {
            result = with_pieces(wr.sges, |pieces| gate.ring.post(wr.wr_id, pieces));
            if result.is_err() {
                break;
            }
            posted += 1;
        }
        if posted != 0 {
            gate.ring.commit();
        }
        (posted, result.map_err(Error::from))
    }
}

/// Whether the request with counter `at` is done when that with counter `last` is: a queue holds fewer than 2^15.
fn is_done(at: u16, last: u16) -> bool {
    last.wrapping_sub(at) < 1 << 15
}

fn operation(op: SendOp) -> Operation {
    let remote = |address, rkey| Remote { address, rkey };
    match op {
        SendOp::Send => Operation::Send,
        SendOp::SendImm(imm) => Operation::SendImm(imm.to_be_bytes()),
        SendOp::SendInvalidate(rkey) => Operation::SendInvalidate(rkey),
        SendOp::Write { remote_addr, rkey } => Operation::Write(remote(remote_addr, rkey)),
        SendOp::WriteImm { remote_addr, rkey, imm } => {
            Operation::WriteImm(remote(remote_addr, rkey), imm.to_be_bytes())
        }
        SendOp::Read { remote_addr, rkey } => Operation::Read(remote(remote_addr, rkey)),
        SendOp::CompareSwap { remote_addr, rkey, compare, swap } => {
            Operation::CompareSwap { remote: remote(remote_addr, rkey), compare, swap }
        }
        SendOp::FetchAdd { remote_addr, rkey, add } => {
            Operation::FetchAdd { remote: remote(remote_addr, rkey), add }
        }
        SendOp::MaskedCompareSwap { remote_addr, rkey, compare, swap, compare_mask, swap_mask } => {
            let remote = remote(remote_addr, rkey);
            Operation::MaskedCompareSwap { remote, compare, swap, compare_mask, swap_mask }
        }
        SendOp::MaskedFetchAdd { remote_addr, rkey, add, boundary } => {
            Operation::MaskedFetchAdd { remote: remote(remote_addr, rkey), add, boundary }
        }
    }
}

/// Calls `post` with the pieces as the rings want them.
pub(crate) fn with_pieces(
    sges: &[Sge],
    post: impl FnOnce(&[Piece]) -> std::result::Result<(), PostError>,
) -> std::result::Result<(), PostError> {
    const NONE: Piece = Piece { address: 0, length: 0, lkey: 0 };
    if sges.len() <= FEW_PIECES {
        post(convert(sges, &mut [NONE; FEW_PIECES]))
    } else if sges.len() <= MOST_PIECES {
        post(convert(sges, &mut [NONE; MOST_PIECES]))
    } else {
        Err(PostError::TooManyPieces(sges.len(), u32::try_from(MOST_PIECES).unwrap_or(u32::MAX)))
    }
}

fn convert<'a>(sges: &[Sge], to: &'a mut [Piece]) -> &'a [Piece] {
    for (piece, sge) in to.iter_mut().zip(sges) {
        *piece = Piece { address: sge.addr, length: sge.length, lkey: sge.lkey };
    }
    &to[..sges.len()]
}
