//! Queue pairs: state, the two halves that the engine works on, and the transitions that commands make.
//!
//! A queue pair is in the table from RST2INIT to 2RST. Its state is one atomic word, changed by commands
//! under both halves' locks and by the engine (to SQER or ERR) under one of them, so that whoever holds a
//! half's lock and finds the state good may go on with that half.

mod attrs;
mod merge;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_wire::cmd::{Opcode, Status};
use mlx4_wire::ctx::qp::{QpContext, QpMailbox, QpState};
use mlx4_wire::{Number24, U16};

use super::burst::Burst;
use super::engine::{ReceiveWork, SendWork};
use super::running::Running;
pub(crate) use attrs::{Attrs, Queue};

/// One half of a queue pair: what the engine needs to know, and where it stands.
#[derive(Debug)]
pub(crate) struct Half<W> {
    pub(crate) attrs: Arc<Attrs>,
    pub(crate) work: W,
}

/// A queue pair that isn't in RST.
pub(crate) struct Qp {
    pub(crate) qpn: u32,
    uar_page: u32,
    state: AtomicU8,
    context: Mutex<QpContext>,
    send: Mutex<Half<SendWork>>,
    receive: Mutex<Half<ReceiveWork>>,
}

impl Qp {
    /// Makes a queue pair in INIT from RST2INIT's mailbox.
    ///
    /// # Errors
    /// The status that tells the driver what was wrong with the context.
    pub(crate) fn new(
        burst: &Burst,
        running: &Running,
        qpn: u32,
        mailbox: &QpMailbox,
    ) -> Result<Self, Status> {
        let context = merge::initial(qpn, mailbox);
        let attrs = Arc::new(Attrs::decode(burst, running, qpn, &context, None)?);
        Ok(Self {
            qpn,
            uar_page: context.uar_page.number(),
            state: AtomicU8::new(QpState::INIT.0),
            context: Mutex::new(context),
            send: Mutex::new(Half { attrs: attrs.clone(), work: SendWork::default() }),
            receive: Mutex::new(Half { attrs, work: ReceiveWork::default() }),
        })
    }

    /// The state now.
    pub(crate) fn state(&self) -> QpState {
        QpState(self.state.load(Ordering::Acquire))
    }

    /// The UAR page through which its doorbells must come.
    pub(crate) fn uar_page(&self) -> u32 {
        self.uar_page
    }

    /// The send half. Locked before any receive half.
    pub(crate) fn send(&self) -> MutexGuard<'_, Half<SendWork>> {
        self.send.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The receive half.
    pub(crate) fn receive(&self) -> MutexGuard<'_, Half<ReceiveWork>> {
        self.receive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves to an error state (ERR, or SQER for a send queue of UC and UD), unless a command has taken the
    /// queue pair elsewhere meanwhile. The caller holds one half's lock. Says whether the state changed.
    pub(crate) fn fail(&self, to: QpState) -> bool {
        let change = |from| {
            let live = [QpState::RTR, QpState::RTS, QpState::SQD, QpState::SQ_DRAINING, QpState::INIT];
            let worse = to == QpState::ERR && from == QpState::SQER.0;
            (worse || live.iter().any(|state| state.0 == from)).then_some(to.0)
        };
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, change).is_ok()
    }

    /// Ends the draining of a send queue (state SQD, nothing begun is left). The caller holds the send half.
    pub(crate) fn drained(&self) {
        let from = QpState::SQ_DRAINING.0;
        let _elsewhere =
            self.state.compare_exchange(from, QpState::SQD.0, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Makes one of the transitions that start from a state other than RST.
    ///
    /// # Errors
    /// BAD_QP_STATE if the transition doesn't start from the state now; else what was wrong with the
    /// context. The queue pair is then as before.
    pub(crate) fn transition(
        &self,
        burst: &Burst,
        running: &Running,
        opcode: Opcode,
        mailbox: &QpMailbox,
        drain_event: bool,
    ) -> Result<(), Status> {
        let (mut send, mut receive) = (self.send(), self.receive());
        let mut context = self.context();
        let to = merge::target(opcode, self.state())?;
        let merged = merge::merge(opcode, &context, mailbox);
        let attrs = Arc::new(Attrs::decode(burst, running, self.qpn, &merged, Some(&send.attrs))?);
        *context = merged;
        match opcode {
            Opcode::INIT2RTR_QP => receive.work.start(merged.rnr_next_psn.next_receive_psn()),
            Opcode::RTR2RTS_QP => send.work.start(merged.next_send_psn.number()),
            Opcode::RTS2SQD_QP => send.work.drain(drain_event),
            _ => {}
        }
        send.attrs = attrs.clone();
        receive.attrs = attrs;
        self.state.store(to.0, Ordering::Release);
        Ok(())
    }

    /// Moves to ERR (2ERR). The engine flushes what is posted.
    pub(crate) fn error(&self) {
        let (_send, _receive) = (self.send(), self.receive());
        self.state.store(QpState::ERR.0, Ordering::Release);
    }

    /// Moves to RST (2RST): when this returns, the engine neither reads the queue pair's queues nor writes
    /// completions for it.
    pub(crate) fn reset(&self) {
        let (mut send, mut receive) = (self.send(), self.receive());
        self.state.store(QpState::RST.0, Ordering::Release);
        send.work = SendWork::default();
        receive.work = ReceiveWork::default();
    }

    /// The context as QUERY_QP gives it.
    pub(crate) fn query(&self) -> QpContext {
        let (send, receive) = (self.send(), self.receive());
        let mut context = *self.context();
        context.flags.set_state(self.state());
        context.next_send_psn = Number24::wrapping(send.work.psn());
        context.sq_wqe_counter = U16::new(send.work.counter());
        context.rnr_next_psn.set_next_receive_psn(receive.work.psn() & Number24::MAX);
        context.msn = Number24::wrapping(receive.work.msn());
        context.rq_wqe_counter = U16::new(receive.work.counter());
        context
    }

    fn context(&self) -> MutexGuard<'_, QpContext> {
        self.context.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Qp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qp").field("qpn", &self.qpn).field("state", &self.state()).finish_non_exhaustive()
    }
}
