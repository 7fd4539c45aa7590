//! The event queue: asynchronous events, from the device to whoever asks for them.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_rdma::event::{AsyncEvent as Wire, EventSubject, EventType as Code};
use virtio_rdma::queue::EVENT;
use zerocopy::FromBytes;

use super::rings::Inbox;
use crate::arena::Arena;
use crate::error::Result;
use crate::event::{Acks, AsyncEvent, EventElement, EventType};
use crate::event_fd::Event;
use crate::signal::{Deadline, Loss, wait};
use crate::transport::Transport;

/// Buffers that the device has for events.
const BUFFERS: u16 = 64;
/// Events that are kept for a program that doesn't take them.
const MOST_KEPT: usize = 1024;

/// Kinds of objects that events are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ObjectKind {
    Cq,
    Qp,
    Srq,
}

impl ObjectKind {
    /// The object of the kind with one of the HCA's numbers.
    fn element(self, number: u32) -> EventElement {
        match self {
            Self::Cq => EventElement::Cq(number),
            Self::Qp => EventElement::Qp(number),
            Self::Srq => EventElement::Srq(number),
        }
    }
}

/// An event that waits for the program.
#[derive(Debug)]
struct Waiting {
    event_type: EventType,
    element: EventElement,
    /// Of the object that it is about.
    acks: Option<Arc<Acks>>,
}

/// An object that events may be about.
#[derive(Debug)]
struct Watched {
    /// The HCA's number of it.
    number: u32,
    acks: Arc<Acks>,
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Waiting>,
    /// Events that there was no room for.
    dropped: u32,
    /// The program knows that the device is lost.
    loss_told: bool,
}

/// Asynchronous events.
#[derive(Debug)]
pub(super) struct Asynchronous {
    transport: Arc<dyn Transport>,
    loss: Arc<Loss>,
    generation: u32,
    /// Taken before `watched` and `kept`.
    inbox: Mutex<Inbox<{ size_of::<Wire>() }>>,
    /// By kind and handle.
    watched: Mutex<HashMap<(ObjectKind, u32), Watched>>,
    kept: Mutex<Kept>,
    /// Readable while there is something to tell.
    readable: Arc<Event>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Asynchronous {
    pub(super) fn start(
        transport: &Arc<dyn Transport>,
        arena: &Arc<Arena>,
        loss: &Arc<Loss>,
        readable: Arc<Event>,
        generation: u32,
    ) -> Result<Self> {
        Ok(Self {
            transport: Arc::clone(transport),
            loss: Arc::clone(loss),
            generation,
            inbox: Mutex::new(Inbox::start(transport, arena, EVENT, BUFFERS)?),
            watched: Mutex::default(),
            kept: Mutex::default(),
            readable,
        })
    }

    /// Takes what the device has delivered.
    pub(super) fn drain(&self) {
        let mut inbox = lock(&self.inbox);
        match inbox.drain(|bytes| self.take(bytes)) {
            Ok(true) => self.transport.kick(EVENT),
            Ok(false) => {}
            Err(_) => self.loss.set("it broke the rules of the event queue"),
        }
    }

    fn take(&self, bytes: &[u8]) {
        let Ok(event) = Wire::read_from_bytes(bytes) else {
            log::warn!("event of {} bytes from the device", bytes.len());
            return;
        };
        if event.event_type == Code::DEVICE_FATAL && event.generation.get() != self.generation {
            return self.loss.set("it failed, or was reset");
        }
        if event.generation.get() != self.generation {
            return;
        }
        if event.lost.get() != 0 {
            let event_type = EventType::EventsLost(event.lost.get());
            self.keep(Waiting { event_type, element: EventElement::Device, acks: None });
        }
        let subject = self.subject(&event);
        if let (Some(event_type), Some((element, acks))) = (event_type(event.event_type), subject) {
            log::debug!("event {event_type:?} of {element:?}, syndrome {:#x}", event.syndrome);
            self.keep(Waiting { event_type, element, acks });
        }
    }

    /// What an event is about; `None` if it isn't there (any more), or unknown.
    fn subject(&self, event: &Wire) -> Option<(EventElement, Option<Arc<Acks>>)> {
        let object = |kind: ObjectKind| {
            let watched = lock(&self.watched);
            let Watched { number, acks } = watched.get(&(kind, event.handle.get()))?;
            Some((kind.element(*number), Some(Arc::clone(acks))))
        };
        match event.event_type.subject()? {
            EventSubject::Cq => object(ObjectKind::Cq),
            EventSubject::Qp => object(ObjectKind::Qp),
            EventSubject::Srq => object(ObjectKind::Srq),
            EventSubject::Port => Some((EventElement::Port(event.port), None)),
            EventSubject::Device => Some((EventElement::Device, None)),
        }
    }

    fn keep(&self, event: Waiting) {
        let mut kept = lock(&self.kept);
        if kept.events.len() < MOST_KEPT {
            kept.events.push_back(event);
        } else {
            // One that tells of lost events is as many as those.
            let lost = if let EventType::EventsLost(lost) = event.event_type { lost } else { 1 };
            kept.dropped = kept.dropped.saturating_add(lost);
        }
        self.readable.raise();
    }

    /// The next event, if there is one. The loss of the device comes last.
    fn next(&self) -> Option<AsyncEvent> {
        let of_device = |event_type| AsyncEvent::new(event_type, EventElement::Device, None);
        let mut kept = lock(&self.kept);
        let mut next = kept
            .events
            .pop_front()
            .map(|event| AsyncEvent::new(event.event_type, event.element, event.acks.as_ref()));
        if next.is_none() && kept.dropped != 0 {
            next = Some(of_device(EventType::EventsLost(std::mem::take(&mut kept.dropped))));
        }
        if next.is_none() && self.loss.is_lost() && !kept.loss_told {
            kept.loss_told = true;
            next = Some(of_device(EventType::DeviceFatal));
        }
        self.settle(&kept);
        next
    }

    /// Makes the descriptor say whether there is something to tell.
    fn settle(&self, kept: &Kept) {
        if kept.events.is_empty() && kept.dropped == 0 {
            self.readable.clear();
            // The loss may have come just before that.
            if self.loss.is_lost() && !kept.loss_told {
                self.readable.raise();
            }
        }
    }

    /// Waits for the next event.
    pub(super) fn get(&self, deadline: Deadline) -> Result<Option<AsyncEvent>> {
        loop {
            if let Some(event) = self.next() {
                return Ok(Some(event));
            }
            if lock(&self.kept).loss_told {
                self.loss.check()?;
            }
            if !wait([self.readable.as_fd()], deadline)? {
                return Ok(None);
            }
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }

    /// An object is there, of which there may be events.
    pub(super) fn watch(&self, kind: ObjectKind, handle: u32, number: u32) {
        lock(&self.watched).insert((kind, handle), Watched { number, acks: Arc::default() });
    }

    /// Counts the events of an object that aren't acknowledged.
    pub(super) fn acks(&self, kind: ObjectKind, handle: u32) -> Option<Arc<Acks>> {
        lock(&self.watched).get(&(kind, handle)).map(|watched| Arc::clone(&watched.acks))
    }

    /// An object is gone: so are its events.
    pub(super) fn forget(&self, kind: ObjectKind, handle: u32) {
        self.drain();
        let Some(Watched { number, .. }) = lock(&self.watched).remove(&(kind, handle)) else { return };
        let element = kind.element(number);
        let mut kept = lock(&self.kept);
        kept.events.retain(|event| event.element != element);
        self.settle(&kept);
    }
}

/// The type of an event for the program; `None` if it is none of its business, or unknown.
fn event_type(code: Code) -> Option<EventType> {
    Some(match code {
        Code::CQ_ERR => EventType::CqErr,
        Code::QP_FATAL => EventType::QpFatal,
        Code::QP_REQ_ERR => EventType::QpReqErr,
        Code::QP_ACCESS_ERR => EventType::QpAccessErr,
        Code::COMM_EST => EventType::CommEst,
        Code::SQ_DRAINED => EventType::SqDrained,
        Code::PATH_MIG => EventType::PathMig,
        Code::PATH_MIG_ERR => EventType::PathMigErr,
        Code::PORT_ACTIVE => EventType::PortActive,
        Code::PORT_ERR => EventType::PortErr,
        Code::LID_CHANGE => EventType::LidChange,
        Code::PKEY_CHANGE => EventType::PkeyChange,
        Code::SM_CHANGE => EventType::SmChange,
        Code::SRQ_ERR => EventType::SrqErr,
        Code::SRQ_LIMIT_REACHED => EventType::SrqLimitReached,
        Code::QP_LAST_WQE_REACHED => EventType::QpLastWqeReached,
        Code::CLIENT_REREGISTER => EventType::ClientReregister,
        Code::GID_CHANGE => EventType::GidChange,
        _ => return None,
    })
}
