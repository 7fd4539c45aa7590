//! An open device: its queues, its doorbell areas, and what all objects share.

mod asynchronous;
mod control;
mod doorbell;
mod rings;
mod service;
mod vector;

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use mlx4_queue::geometry::QueueLimits;
use mlx4_wire::wqe::SQ_PREFETCH_BYTES;
use virtio_rdma::Verb;
use virtio_rdma::config::{Config, DeviceState, Mlx4Format};
use virtio_rdma::memory::Segment;
use virtio_rdma::queue::{FIRST_KICK, FIRST_VECTOR, MAD_RECEIVE, MAD_SEND};
use virtio_rdma::request::query::{DeviceAttributes, QueryDevice};

use self::asynchronous::Asynchronous;
use self::control::Control;
use self::rings::Ring;
use self::service::Service;
use crate::arena::{Arena, Block};
use crate::error::{Error, Result};
use crate::event::AsyncEvent;
use crate::event_fd::Event;
use crate::mw::Windows;
use crate::signal::{Deadline, Loss};
use crate::transport::Transport;
use crate::virtqueue::Layout;

pub(crate) use asynchronous::ObjectKind;
pub use doorbell::Doorbells;
pub(crate) use doorbell::{Bell, Uar};
pub(crate) use vector::{Pending, Subscriber, Vector};

/// What the thread of events needs too.
#[derive(Debug)]
struct Device {
    transport: Arc<dyn Transport>,
    loss: Arc<Loss>,
    control: Control,
    asynchronous: Asynchronous,
}

/// An open device. Its objects keep it open.
#[derive(Debug)]
pub(crate) struct Open {
    /// Stops first.
    _service: Service,
    device: Arc<Device>,
    arena: Arc<Arena>,
    vectors: Vec<Arc<Vector>>,
    /// Queues that the specification asks for and nobody uses.
    _idle: Vec<Ring>,
    config: Config,
    limits: QueueLimits,
    attributes: DeviceAttributes,
    /// Held while an object is taken from the device or becomes known here: a handle or number may be given out
    /// again as soon as the device has destroyed what had it.
    turnover: Mutex<()>,
    uars: Mutex<Vec<Weak<Uar>>>,
    windows: Windows,
}

/// Descriptors of queues that nobody uses.
const IDLE: Layout = Layout { size: 2 };

impl Open {
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Result<Arc<Self>> {
        let config = transport.config()?;
        let limits = limits(&config.format)?;
        if config.state == DeviceState::FAILED {
            return Err(Error::Lost("the daemon could not bring the HCA up again"));
        }
        let generation = config.generation.get();
        let news = Arc::new(Event::new().map_err(Error::system("an event descriptor"))?);
        let loss = Loss::new(&news)?;
        let arena = Arena::new(Arc::clone(&transport));
        let control = Control::start(&transport, &arena, &loss, generation)?;
        let asynchronous = Asynchronous::start(&transport, &arena, &loss, news, generation)?;
        let vectors = u16::from(config.completion_vectors);
        let idle = [MAD_RECEIVE, MAD_SEND]
            .into_iter()
            .chain(FIRST_KICK..FIRST_VECTOR)
            .map(|queue| Ring::start(&transport, &arena, queue, IDLE))
            .collect::<Result<_>>()?;
        let vectors = (0..vectors)
            .map(|vector| Vector::start(&transport, &arena, &loss, generation, vector).map(Arc::new))
            .collect::<Result<_>>()?;
        let device = Arc::new(Device { transport, loss, control, asynchronous });
        let service = Service::start(Arc::clone(&device))?;
        let attributes = device.control.call(&QueryDevice {}, &[])?;
        Ok(Arc::new(Self {
            _service: service,
            device,
            arena,
            vectors,
            _idle: idle,
            config,
            limits,
            attributes,
            turnover: Mutex::default(),
            uars: Mutex::default(),
            windows: Windows::default(),
        }))
    }

    /// Carries out a verb.
    pub(crate) fn call<V: Verb>(&self, body: &V) -> Result<V::Answer> {
        self.device.control.call(body, &[])
    }

    /// Carries out a verb that makes an object in memory: the first block is what the segments describe, the
    /// others are what the body names.
    pub(crate) fn make<V: Verb>(&self, body: &V, memory: &[&Block]) -> Result<V::Answer> {
        let segment = memory.first().map(|block| Segment {
            address: block.guest_address().into(),
            length: block.page_bytes().into(),
        });
        self.keep_if_unsure(self.device.control.call(body, segment.as_slice()), memory)
    }

    /// Carries out a verb that ends an object in memory. Of a device that is lost nothing is asked any more.
    ///
    /// # Errors
    /// The device has not given it back.
    pub(crate) fn end<V: Verb>(&self, body: &V, memory: &[&Block]) -> Result<()> {
        if self.device.loss.is_lost() {
            return Ok(());
        }
        let result = self.call(body);
        if matches!(result, Err(Error::Refused { .. })) {
            memory.iter().for_each(|block| block.keep());
        }
        result.map(|_| ())
    }

    /// Keeps memory aside if a request's result leaves open whether the HCA uses it.
    pub(crate) fn keep_if_unsure<T>(&self, result: Result<T>, memory: &[&Block]) -> Result<T> {
        let unsure = |error: &Error| matches!(error.errno(), libc::EIO | libc::ETIMEDOUT);
        if result.as_ref().is_err_and(unsure) {
            memory.iter().for_each(|block| block.keep());
        }
        result
    }

    /// The right to let objects come and go; see `turnover`.
    pub(crate) fn turnover(&self) -> MutexGuard<'_, ()> {
        self.turnover.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object is there, of which there may be events.
    pub(crate) fn watch(&self, kind: ObjectKind, handle: u32, number: u32) {
        self.device.asynchronous.watch(kind, handle, number);
    }

    /// An object is gone: so are its events.
    pub(crate) fn forget(&self, kind: ObjectKind, handle: u32) {
        self.device.asynchronous.forget(kind, handle);
    }

    /// Ends an object when all events about it are acknowledged; those that are taken meanwhile are waited for too.
    pub(crate) fn after_acks<T>(&self, kind: ObjectKind, handle: u32, end: impl FnOnce() -> T) -> T {
        let acks = self.device.asynchronous.acks(kind, handle);
        acks.iter().for_each(|acks| acks.wait());
        let ended = end();
        acks.iter().for_each(|acks| acks.wait());
        ended
    }

    pub(crate) fn get_async_event(&self, deadline: Deadline) -> Result<Option<AsyncEvent>> {
        self.device.asynchronous.get(deadline)
    }

    pub(crate) fn async_fd(&self) -> BorrowedFd<'_> {
        self.device.asynchronous.fd()
    }

    pub(crate) fn loss(&self) -> &Loss {
        &self.device.loss
    }

    pub(crate) fn windows(&self) -> &Windows {
        &self.windows
    }

    pub(crate) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    pub(crate) fn vectors(&self) -> &[Arc<Vector>] {
        &self.vectors
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn limits(&self) -> &QueueLimits {
        &self.limits
    }

    /// Whether completions have 64 bytes; 32 otherwise.
    pub(crate) fn wide_completions(&self) -> bool {
        self.config.format.cqe_bytes.get() == 64
    }

    pub(crate) fn attributes(&self) -> &DeviceAttributes {
        &self.attributes
    }
}

/// The limits of rings, if the library's way to build them fits the device.
fn limits(format: &Mlx4Format) -> Result<QueueLimits> {
    let fits = [
        ("completions of other than 32 or 64 bytes", matches!(format.cqe_bytes.get(), 32 | 64)),
        ("WQEs read farther ahead", u32::from(format.headroom_bytes.get()) <= SQ_PREFETCH_BYTES),
        ("more headroom", format.headroom_wqes <= 1),
        ("larger send WQEs", format.log2_min_send_stride <= 6),
        ("larger receive WQEs", format.log2_min_receive_stride <= 4),
    ];
    if let Some((what, _)) = fits.iter().find(|(_, fits)| !fits) {
        return Err(Error::Device(format!("it has {what}")));
    }
    Ok(QueueLimits {
        log2_max_wqes: format.log2_max_wqes,
        log2_max_srq_wqes: format.log2_max_srq_wqes,
        log2_max_cqes: format.log2_max_cqes,
        max_send_wqe: format.max_send_wqe_bytes.get().into(),
        max_receive_wqe: format.max_receive_wqe_bytes.get().into(),
        max_send_sges: format.max_send_sge.get().into(),
        max_receive_sges: format.max_receive_sge.get().into(),
    })
}

#[cfg(test)]
mod tests;
