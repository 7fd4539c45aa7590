//! Completion queues.

mod resize;
mod works;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_queue::geometry::CqGeometry;
use mlx4_queue::{CompletionQueue, Notify, Place};
use virtio_rdma::request::completion::{CqCreated, CqFlags, CreateCq, DestroyCq, ModifyCq};
use virtio_rdma::{Reserved, U16, U32, U64};

use self::works::Works;

use crate::arena::{Block, PAGE};
use crate::channel::CompChannel;
use crate::device::{Bell, ObjectKind, Open, Subscriber, Vector};
use crate::error::{Error, Result};
use crate::memory::Span;
use crate::mw::Windows;
use crate::qp::Work;
use crate::srq::SharedRing;
use crate::wr::{Wc, WcStatus};

/// Size and alignment of memory for a record, in bytes: a cache line.
pub(crate) const RECORD_BYTES: usize = 64;

/// A completion queue (`ibv_cq`).
#[derive(Debug)]
pub struct Cq(Arc<Queue>);

#[derive(Debug)]
struct State {
    ring: CompletionQueue<Span, Bell>,
    works: Works,
    /// A completion that couldn't be, to be told by the next poll.
    failed: Option<Error>,
}

/// The queue, which its queue pairs keep.
#[derive(Debug)]
pub(crate) struct Queue {
    open: Arc<Open>,
    handle: u32,
    cqn: u32,
    state: Mutex<State>,
    vector: Option<Arc<Vector>>,
    /// Locked before the state; held while it is resized.
    ring: Mutex<Block>,
    record: Block,
    ended: bool,
}

impl State {
    fn poll(&mut self, wcs: &mut [Wc], windows: &Windows) -> Result<usize> {
        let Self { ring, works, failed } = self;
        if let Some(error) = failed.take() {
            return Err(error);
        }
        let mut count = 0;
        for wc in wcs {
            match ring.poll(works) {
                Some(Ok(completion)) => {
                    *wc = Wc::from(completion);
                    works.ended(wc.status == WcStatus::Success);
                    if let Some(rkey) = wc.invalidated_rkey {
                        windows.invalidated(rkey, &mut works.released);
                    }
                }
                Some(Err(error)) => {
                    works.ended(false);
                    *failed = Some(error.into());
                    break;
                }
                None => break,
            }
            count += 1;
        }
        if count != 0 || failed.is_some() {
            ring.commit();
        }
        match failed.take_if(|_| count == 0) {
            Some(error) => Err(error),
            None => Ok(count),
        }
    }
}

/// The ring for at least `cqe` completions.
fn geometry(open: &Open, cqe: u32) -> Result<CqGeometry> {
    let most = open.attributes().max_cqe.get();
    if cqe == 0 || cqe > most {
        return Err(Error::Invalid(format!("a CQ holds 1 to {most} completions, not {cqe}")));
    }
    Ok(CqGeometry::new(cqe, open.limits())?.with_wide_entries(open.wide_completions()))
}

/// Where a block's memory starts.
fn place(block: &Block) -> Place<Span> {
    Place { memory: block.span().clone(), offset: 0 }
}

impl Queue {
    fn new(open: &Arc<Open>, cqe: u32, channel: Option<&CompChannel>) -> Result<Self> {
        open.loss().check()?;
        if channel.is_some_and(|channel| !channel.is_of(open)) {
            return Err(Error::Invalid("the channel is of another context".into()));
        }
        let geometry = geometry(open, cqe)?;
        let ring = open.arena().allocate(geometry.bytes() as usize, PAGE)?;
        let record = open.arena().allocate(RECORD_BYTES, RECORD_BYTES)?;
        let (CqCreated { cq, cqn, arm }, uar) = open.with_uar(|uar| {
            let body = CreateCq {
                uar: U32::new(uar.handle()),
                flags: CqFlags::NONE,
                entries: U32::new(geometry.entries()),
                comp_vector: U16::new(channel.map_or(0, CompChannel::number)),
                reserved: Reserved::ZERO,
                record: U64::new(record.guest_address()),
                reserved_end: Reserved::ZERO,
            };
            open.make(&body, &[&ring, &record])
        })?;
        let (handle, cqn) = (cq.get(), cqn.get());
        let doorbell = Bell::new(&uar, &arm)?;
        let queue = CompletionQueue::new(place(&ring), place(&record), geometry, cqn, doorbell)?;
        let turnover = open.turnover();
        open.watch(ObjectKind::Cq, handle, cqn);
        if let Some(channel) = channel {
            let pending = Arc::downgrade(channel.pending());
            let subscriber = Subscriber { cqn, sequence: queue.sequence(), channel: pending };
            channel.vector().subscribe(handle, subscriber);
        }
        drop(turnover);
        Ok(Self {
            open: Arc::clone(open),
            handle,
            cqn,
            state: Mutex::new(State { ring: queue, works: Works::default(), failed: None }),
            vector: channel.map(|channel| Arc::clone(channel.vector())),
            ring: Mutex::new(ring),
            record,
            ended: false,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The ring changes its indexes last.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_of(&self, open: &Arc<Open>) -> bool {
        Arc::ptr_eq(&self.open, open)
    }

    pub(crate) fn handle(&self) -> u32 {
        self.handle
    }

    /// From now on requests of a queue pair complete here.
    pub(crate) fn attach(&self, work: &Arc<Work>) {
        self.lock().works.attach(work);
    }

    /// Takes out the completions of a queue pair that the HCA has reset.
    pub(crate) fn clean(&self, qpn: u32) {
        let State { ring, works, .. } = &mut *self.lock();
        ring.clean(qpn, |cqe| {
            if !cqe.owner.is_send() {
                works.receive_dropped(qpn, cqe.wqe_index.get());
            }
        });
    }

    /// Takes out the completions of a queue pair that is gone, and forgets it.
    pub(crate) fn detach(&self, qpn: u32) {
        self.clean(qpn);
        self.lock().works.detach(qpn);
    }

    /// From now on requests of an XRC SRQ complete here.
    pub(crate) fn attach_xrc(&self, srqn: u32, ring: &Arc<SharedRing>) {
        self.lock().works.attach_xrc(srqn, ring);
    }

    /// Takes out the completions of an XRC SRQ that is gone, and forgets it.
    pub(crate) fn detach_xrc(&self, srqn: u32) {
        let mut state = self.lock();
        state.ring.clean_xrc(srqn);
        state.works.detach_xrc(srqn);
    }

    fn poll(&self, wcs: &mut [Wc]) -> Result<usize> {
        self.open.loss().check()?;
        let mut state = self.lock();
        let result = state.poll(wcs, self.open.windows());
        let released = std::mem::take(&mut state.works.released);
        drop(state);
        drop(released);
        result
    }

    fn end(&mut self) -> Result<()> {
        self.ended = true;
        let _turnover = self.open.turnover();
        let body = DestroyCq { cq: U32::new(self.handle), reserved: Reserved::ZERO };
        let ring = self.ring.get_mut().unwrap_or_else(PoisonError::into_inner);
        let result = self.open.end(&body, &[ring, &self.record]);
        if let Some(vector) = &self.vector {
            vector.unsubscribe(self.handle);
        }
        self.open.forget(ObjectKind::Cq, self.handle);
        result
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = self.end()
        {
            log::warn!("{error}");
        }
    }
}

impl Cq {
    pub(crate) fn new(open: &Arc<Open>, cqe: u32, channel: Option<&CompChannel>) -> Result<Self> {
        Ok(Self(Arc::new(Queue::new(open, cqe, channel)?)))
    }

    pub(crate) fn queue(&self) -> &Arc<Queue> {
        &self.0
    }

    /// Its number, as events have it.
    pub fn cqn(&self) -> u32 {
        self.0.cqn
    }

    /// Completions that it can hold, at least as many as were asked for. If more come before they are polled it
    /// fails: [`EventType::CqErr`](crate::EventType::CqErr).
    pub fn cqe(&self) -> u32 {
        self.0.lock().ring.geometry().completions()
    }

    /// Makes it hold at least `cqe` completions (`ibv_resize_cq`). What is there stays; polling may go on
    /// meanwhile.
    ///
    /// # Errors
    /// It would hold none, more than a CQ can, or fewer than are there (`EINVAL`); there is no more memory
    /// (`ENOMEM`); the device can't (`EOPNOTSUPP`); the device is lost.
    pub fn resize(&self, cqe: u32) -> Result<()> {
        self.0.resize(cqe)
    }

    /// Sets that an event waits for `count` completions, but not longer than `period` µs (`ibv_modify_cq`); zeros:
    /// it waits for nothing.
    ///
    /// # Errors
    /// One is more than [`DeviceAttr::max_cq_count`](crate::DeviceAttr::max_cq_count) or
    /// [`DeviceAttr::max_cq_period`](crate::DeviceAttr::max_cq_period) (`EINVAL`); the device can't
    /// (`EOPNOTSUPP`); the device is lost.
    pub fn modify(&self, count: u16, period: u16) -> Result<()> {
        let body = ModifyCq { cq: U32::new(self.0.handle), count: U16::new(count), period: U16::new(period) };
        self.0.open.call(&body).map(|_| ())
    }

    /// Takes completions into the start of `wcs` and returns how many there were (`ibv_poll_cq`).
    ///
    /// # Errors
    /// The HCA has written a completion that can't be (`EIO`), after those that were returned before; it is
    /// passed over. The device is lost.
    pub fn poll(&self, wcs: &mut [Wc]) -> Result<usize> {
        self.0.poll(wcs)
    }

    /// Asks for one event in the channel (`ibv_req_notify_cq`) when the next completion comes, or the next one
    /// that is solicited or a failure. If a completion is there that wasn't polled, it may come at once; poll
    /// again after this, before waiting.
    ///
    /// # Errors
    /// The CQ has no channel (`EINVAL`); the device is lost.
    pub fn req_notify(&self, solicited_only: bool) -> Result<()> {
        self.0.open.loss().check()?;
        if self.0.vector.is_none() {
            return Err(Error::Invalid("the CQ has no channel for events".into()));
        }
        self.0.lock().ring.arm(if solicited_only { Notify::Solicited } else { Notify::Next });
        Ok(())
    }

    /// Ends it (`ibv_destroy_cq`): its events that are still in the channel, and asynchronous ones that nobody has
    /// taken, are gone then. Waits until those that were taken are acknowledged, which dropping it does not.
    ///
    /// # Errors
    /// Queue pairs still use it (`EBUSY`): then it ends with the last of them. The HCA doesn't give it back: its
    /// memory is then kept aside.
    pub fn destroy(self) -> Result<()> {
        match Arc::into_inner(self.0) {
            Some(mut queue) => {
                let (open, handle) = (Arc::clone(&queue.open), queue.handle);
                open.after_acks(ObjectKind::Cq, handle, || queue.end())
            }
            None => Err(Error::Busy("the CQ")),
        }
    }
}
