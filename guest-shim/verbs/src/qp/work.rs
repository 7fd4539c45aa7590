//! The rings of a queue pair: what posting and polling work with.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_queue::geometry::QpLayout;
use mlx4_queue::request::{Data, Operation, PostError, Remote, SendFlags, SendRequest, Sge as Piece};
use mlx4_queue::{Place, PostedReceive, PostedSend, ReceiveQueue, SendQueue};

use super::QpState;
use crate::arena::Block;
use crate::device::Bell;
use crate::error::{Error, Result};
use crate::memory::Span;
use crate::wr::{RecvWr, SendData, SendOp, SendWr, Sge};

/// More pieces than any request can have, which a WQE of 1008 bytes bounds.
const MOST_PIECES: usize = 64;
/// Pieces of most requests.
const FEW_PIECES: usize = 4;

#[derive(Debug)]
struct Gate<R> {
    ring: R,
    /// Whether the queue pair's state allows posting.
    open: bool,
}

/// The rings of a queue pair.
#[derive(Debug)]
pub(crate) struct Work {
    qpn: u32,
    sq_sig_all: bool,
    send: Mutex<Gate<SendQueue<Span, Bell>>>,
    receive: Mutex<Gate<ReceiveQueue<Span>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The rings change their indexes last.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Work {
    /// The rings of a queue pair in RESET; `ring` and `record` are its memory.
    pub(super) fn new(
        qpn: u32,
        layout: &QpLayout,
        ring: &Block,
        record: &Block,
        doorbell: Bell,
        sq_sig_all: bool,
    ) -> Result<Arc<Self>> {
        let place = |block: &Block, offset| Place { memory: block.span().clone(), offset };
        let geometry = layout.receive.ok_or_else(|| Error::Invalid("no receive queue".into()))?;
        let send = SendQueue::new(place(ring, layout.send_offset()), layout.send, qpn, doorbell)?;
        let receive = ReceiveQueue::new(place(ring, layout.receive_offset()), place(record, 0), geometry)?;
        Ok(Arc::new(Self {
            qpn,
            sq_sig_all,
            send: Mutex::new(Gate { ring: send, open: false }),
            receive: Mutex::new(Gate { ring: receive, open: false }),
        }))
    }

    pub(crate) fn qpn(&self) -> u32 {
        self.qpn
    }

    pub(crate) fn send_completed(&self, wqe_index: u16) -> Option<PostedSend> {
        lock(&self.send).ring.complete(wqe_index)
    }

    pub(crate) fn receive_completed(&self, wqe_index: u16) -> Option<PostedReceive> {
        lock(&self.receive).ring.complete(wqe_index)
    }

    /// Empties the rings, while the queue pair is in RESET.
    pub(super) fn reset(&self) {
        lock(&self.send).ring.reset();
        lock(&self.receive).ring.reset();
    }

    /// From now on requests may be posted as a state allows.
    pub(super) fn set_state(&self, state: QpState) {
        let sends = !matches!(state, QpState::Reset | QpState::Init | QpState::Rtr);
        lock(&self.send).open = sends;
        lock(&self.receive).open = state != QpState::Reset;
    }

    /// Posts requests up to one that can't be; answers how many were.
    pub(super) fn post_send(&self, wrs: &[SendWr<'_>]) -> (usize, Result<()>) {
        let mut gate = lock(&self.send);
        if !gate.open {
            return (0, Err(Error::State("send")));
        }
        let mut posted = 0;
        let mut result = Ok(());
        for wr in wrs {
            result = self.post_one(&mut gate.ring, wr);
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
    ) -> std::result::Result<(), PostError> {
        match wr.data {
            SendData::Inline(pieces) => ring.post(&self.request(wr, Data::Inline(pieces))),
            SendData::Sges(sges) => {
                with_pieces(sges, |pieces| ring.post(&self.request(wr, Data::Pieces(pieces))))
            }
        }
    }

    fn request<'a>(&self, wr: &SendWr<'_>, data: Data<'a>) -> SendRequest<'a> {
        let flags = SendFlags {
            signalled: wr.flags.signaled || self.sq_sig_all,
            solicited: wr.flags.solicited,
            fence: wr.flags.fence,
        };
        SendRequest { wr_id: wr.wr_id, operation: operation(wr.op), data, flags, destination: None }
    }

    /// Posts requests up to one that can't be; answers how many were.
    pub(super) fn post_recv(&self, wrs: &[RecvWr<'_>]) -> (usize, Result<()>) {
        let mut gate = lock(&self.receive);
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

fn operation(op: SendOp) -> Operation {
    let remote = |address, rkey| Remote { address, rkey };
    match op {
        SendOp::Send => Operation::Send,
        SendOp::SendImm(imm) => Operation::SendImm(imm.to_be_bytes()),
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
    }
}

/// Calls `post` with the pieces as the rings want them.
fn with_pieces(
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
