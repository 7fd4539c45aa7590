//! A queue pair that this process posts to.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_pci::DoorbellKind;
use mlx4_queue::geometry::{QpLayout, ReceiveGeometry, SendGeometry, SendSize, Service, lso_reserve};
use mlx4_queue::request::{PostError, SendRequest, Sge};
use mlx4_queue::{Place, PostedReceive, PostedSend, ReceiveQueue, SendQueue, WqeWriter};
use mlx4_wire::ctx::qp::{QpState, ServiceType};

use super::cq::{CompletionQueue, Poller};
use super::memory::{Bell, Memory};
use super::srq::{SharedReceiveQueue, SharedRing};
use crate::error::Result;
use crate::numbers::Number;
use crate::object::{Pd, Uar};
use crate::qp::{Attributes, Qp, QpConfig, QpRights, QpStatus};
use crate::shared::Shared;

/// Longest header of messages that the device cuts into datagrams, in bytes.
const LSO_HEADER: u16 = 124;

type SendRing = SendQueue<Arc<Memory>, Bell>;

/// Where the receive requests of a queue pair come from.
enum Receives {
    Own(Mutex<ReceiveQueue<Arc<Memory>>>),
    Shared(Arc<SharedRing>),
    /// It sends only.
    Nowhere,
}

/// The queues of a queue pair: what posting and polling work with.
pub(crate) struct Work {
    qpn: u32,
    send: Mutex<SendRing>,
    receive: Receives,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The rings change their indexes last.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Work {
    pub(super) fn qpn(&self) -> u32 {
        self.qpn
    }

    pub(super) fn send_completed(&self, wqe_index: u16) -> Option<PostedSend> {
        lock(&self.send).complete(wqe_index)
    }

    pub(super) fn receive_completed(&self, wqe_index: u16) -> Option<PostedReceive> {
        match &self.receive {
            Receives::Own(queue) => lock(queue).complete(wqe_index),
            Receives::Shared(ring) => ring.completed(wqe_index),
            Receives::Nowhere => None,
        }
    }

    /// A receive completion is dropped that nobody will poll: an SRQ has its slot back.
    pub(super) fn dropped(&self, wqe_index: u16) {
        if let Receives::Shared(ring) = &self.receive {
            ring.completed(wqe_index);
        }
    }

    fn reset(&self) {
        lock(&self.send).reset();
        if let Receives::Own(queue) = &self.receive {
            lock(queue).reset();
        }
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("qpn", &self.qpn).finish_non_exhaustive()
    }
}

/// What a queue pair shall be.
#[derive(Clone, Copy, Debug)]
pub struct QueuePairConfig<'a> {
    /// Its service.
    pub service: Service,
    /// Its domain.
    pub pd: &'a Pd,
    /// UAR page of its doorbell.
    pub uar: &'a Uar,
    /// Where its send requests complete.
    pub send_cq: &'a CompletionQueue,
    /// Where its receive requests complete.
    pub receive_cq: &'a CompletionQueue,
    /// What its send queue shall hold.
    pub send: SendSize,
    /// Receive requests that may be outstanding; no matter with an SRQ.
    pub receives: u32,
    /// Pieces of a receive request.
    pub receive_sges: u32,
    /// The SRQ that its receive requests come from.
    pub srq: Option<&'a SharedReceiveQueue>,
}

/// A queue pair with queues in memory of the driver.
pub struct QueuePair {
    qp: Qp,
    shared: Arc<Shared>,
    memory: Arc<Memory>,
    work: Arc<Work>,
    pollers: [Arc<Poller>; 2],
}

impl QueuePair {
    pub(crate) fn new(shared: &Arc<Shared>, config: &QueuePairConfig<'_>, rights: QpRights) -> Result<Self> {
        let number = shared.numbers.qps.take()?;
        Self::with_number(shared, number, config, rights)
    }

    /// The same as the QP0 of its port.
    pub(crate) fn into_qp0(self) -> Self {
        Self { qp: self.qp.into_qp0(), ..self }
    }

    /// A queue pair of a given number, which may be a special one.
    pub(crate) fn with_number(
        shared: &Arc<Shared>,
        number: Number,
        config: &QueuePairConfig<'_>,
        rights: QpRights,
    ) -> Result<Self> {
        let limits = &shared.caps.queues;
        let receive = match config.srq {
            Some(_) => None,
            None if config.service == Service::Xrc => None,
            None => Some(ReceiveGeometry::new(config.receives, config.receive_sges, limits)?),
        };
        let reserve = if rights.lso { lso_reserve(LSO_HEADER) } else { 0 };
        let send = SendGeometry::reserving(config.service, config.send, reserve, limits)?;
        let layout = QpLayout { send, receive };
        let doorbell = config.uar.doorbell(DoorbellKind::Send(number.get()))?;
        let memory = Memory::new(shared.device.dma(), layout.bytes())?;
        let work = work(&memory, &layout, number.get(), Bell(doorbell), config.srq)?;
        let pages = memory.pages();
        let qp_config = QpConfig {
            service: match config.service {
                Service::Rc => ServiceType::RC,
                Service::Uc => ServiceType::UC,
                Service::Ud => ServiceType::UD,
                Service::Xrc => ServiceType::XRC,
                Service::Mlx => ServiceType::MLX,
            },
            send: send.wq_size(),
            receive: receive.map(|receive| receive.wq_size()),
            pd: config.pd,
            uar: config.uar,
            send_cq: config.send_cq.object(),
            receive_cq: config.receive_cq.object(),
            srq: config.srq.map(SharedReceiveQueue::object),
            buffer: Memory::ring(&pages),
            record: if receive.is_some() { memory.record() } else { 0 },
            rights,
        };
        let qp = memory.unless_kept(Qp::new(shared, number, &qp_config))?;
        let work = Arc::new(work);
        shared.queues.insert(qp.number(), Arc::clone(&work));
        let pollers = [config.send_cq, config.receive_cq].map(|cq| Arc::clone(cq.poller()));
        Ok(Self { qp, shared: Arc::clone(shared), memory, work, pollers })
    }

    /// The queue pair as the device has it.
    pub fn object(&self) -> &Qp {
        &self.qp
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.qp.number()
    }

    /// Takes it to a state. On the way out of RESET its queues are emptied; on the way back, its completions
    /// are taken out of their queues.
    ///
    /// # Errors
    /// As for [`Qp::modify`].
    pub fn modify(&self, to: QpState, attributes: &Attributes) -> Result<()> {
        if self.qp.state() == QpState::RST && to == QpState::INIT {
            self.work.reset();
        }
        self.qp.modify(to, attributes)?;
        if to == QpState::RST {
            self.clean();
        }
        Ok(())
    }

    /// How it is.
    ///
    /// # Errors
    /// The device doesn't tell.
    pub fn query(&self) -> Result<QpStatus> {
        self.qp.query()
    }

    /// Posts send requests and rings the doorbell.
    ///
    /// # Errors
    /// One of them can't be posted: those before it are.
    pub fn post_send(&self, requests: &[SendRequest<'_>]) -> Result<(), PostError> {
        let mut queue = lock(&self.work.send);
        let result = requests.iter().try_for_each(|request| queue.post(request));
        queue.ring();
        result
    }

    /// Posts requests of an extended connection to a shared receive queue at the other end, and rings the
    /// doorbell.
    ///
    /// # Errors
    /// As for [`QueuePair::post_send`].
    pub fn post_xrc(&self, requests: &[SendRequest<'_>], srqn: u32) -> Result<(), PostError> {
        let mut queue = lock(&self.work.send);
        let result = requests.iter().try_for_each(|request| queue.post_xrc(request, srqn));
        queue.ring();
        result
    }

    /// Posts a send request that the caller builds segment by segment, and rings the doorbell.
    ///
    /// # Errors
    /// The queue is full, or the request doesn't fit.
    pub(crate) fn post_with(
        &self,
        wr_id: u64,
        build: impl FnOnce(&mut WqeWriter<'_, Arc<Memory>>),
    ) -> Result<(), PostError> {
        let mut queue = lock(&self.work.send);
        queue.post_with(wr_id, build)?;
        queue.ring();
        Ok(())
    }

    /// Posts receive requests: a `wr_id` and a scatter list each.
    ///
    /// # Errors
    /// One of them can't be posted: those before it are. With an SRQ none can.
    pub fn post_receive<'a>(
        &self,
        requests: impl IntoIterator<Item = (u64, &'a [Sge])>,
    ) -> Result<(), PostError> {
        let Receives::Own(queue) = &self.work.receive else { return Err(PostError::Operation) };
        let mut queue = lock(queue);
        let result = requests.into_iter().try_for_each(|(wr_id, pieces)| queue.post(wr_id, pieces));
        queue.commit();
        result
    }

    /// What its send queue holds.
    pub fn send_geometry(&self) -> SendGeometry {
        *lock(&self.work.send).geometry()
    }

    fn clean(&self) {
        clean(self.number(), &self.pollers, &self.work);
    }

    /// Destroys the queue pair and frees its memory. Its completions are taken out of their queues.
    ///
    /// # Errors
    /// The device doesn't give it back, and the memory stays mapped until the next reset.
    pub fn destroy(self) -> Result<()> {
        let qpn = self.number();
        self.qp.destroy_and(|| {
            clean(qpn, &self.pollers, &self.work);
            self.shared.queues.remove(qpn);
        })?;
        Memory::release(self.memory);
        Ok(())
    }
}

/// Takes the completions of a queue pair out of their queues.
fn clean(qpn: u32, pollers: &[Arc<Poller>], work: &Work) {
    pollers.iter().for_each(|poller| poller.clean(qpn, work));
}

fn work(
    memory: &Arc<Memory>,
    layout: &QpLayout,
    qpn: u32,
    doorbell: Bell,
    srq: Option<&SharedReceiveQueue>,
) -> Result<Work> {
    let place = |offset| Place { memory: Arc::clone(memory), offset };
    let send = SendQueue::new(place(layout.send_offset()), layout.send, qpn, doorbell)?;
    let receive = match (layout.receive, srq) {
        (Some(geometry), _) => {
            let record = place(memory.record_offset());
            let queue = ReceiveQueue::new(place(layout.receive_offset()), record, geometry)?;
            Receives::Own(Mutex::new(queue))
        }
        (None, Some(srq)) => Receives::Shared(Arc::clone(srq.ring())),
        (None, None) => Receives::Nowhere,
    };
    Ok(Work { qpn, send: Mutex::new(send), receive })
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair").field("qp", &self.qp).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use mlx4_queue::geometry::SendSize;

    use super::*;
    use crate::Config;
    use crate::testing::Bench;

    /// Else what belongs to the next one with that number would be taken out.
    #[test]
    fn number_is_free_only_when_what_is_left_of_its_object_was_cleaned_up() {
        let bench = Bench::new(&Config { ports: false, completion_eqs: 1, ..Config::default() });
        let hca = &bench.hca;
        let (pd, uar) = (hca.pd().unwrap(), hca.uar().unwrap());
        let cq = hca.completion_queue(16, &uar, 0, || ()).unwrap();
        let config = QueuePairConfig {
            service: Service::Rc,
            pd: &pd,
            uar: &uar,
            send_cq: &cq,
            receive_cq: &cq,
            send: SendSize { requests: 8, sges: 1, inline: 0 },
            receives: 8,
            receive_sges: 1,
            srq: None,
        };
        let qp = hca.queue_pair(&config).unwrap();
        let qps = &hca.shared.numbers.qps;
        let others: Vec<_> = std::iter::from_fn(|| qps.take().ok()).collect();
        qp.qp.destroy_and(|| assert!(qps.take().is_err())).unwrap();
        assert!(qps.take().is_ok());
        Memory::release(qp.memory);
        drop((others, qp.pollers, qp.shared));
        cq.destroy().unwrap();
        bench.hca.close().unwrap();
    }
}
