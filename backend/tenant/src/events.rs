//! Events on their way to a guest: asynchronous ones in a bounded queue, completion events as one mark a CQ.
//!
//! The HCA puts in ([`EventSink`]), the device takes out ([`Events::deliver`], [`Events::deliver_completions`])
//! and is told by [`Notify`]. An object's events are counted while it lives; when it is gone those that wait are
//! dropped.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_rdma::event::{AsyncEvent, CompletionEvent, EventType};
use virtio_rdma::request::Destroyed;
use virtio_rdma::{Reserved, U32};

use crate::hca::{AsyncKind, Cookie, EventSink, HcaEvent, PortChange};
use crate::stats::Counters;

/// Who is told that there is something to deliver. Called on the HCA's event threads: it only wakes someone.
pub trait Notify: Send + Sync + std::fmt::Debug {
    /// There are asynchronous events.
    fn events(&self);

    /// There are completion events for a vector.
    fn completions(&self, vector: u16);
}

/// Kind of an object that events are about; handles are counted for each kind apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    Cq,
    Srq,
    Qp,
}

impl Subject {
    fn of(kind: AsyncKind) -> Self {
        match kind {
            AsyncKind::CqError => Self::Cq,
            AsyncKind::SrqError | AsyncKind::SrqLimitReached => Self::Srq,
            _ => Self::Qp,
        }
    }
}

#[derive(Debug, Default)]
struct Object {
    vector: u16,
    due: bool,
    delivered: Delivered,
}

#[derive(Clone, Copy, Debug, Default)]
struct Delivered {
    completions: u32,
    asynchronous: u32,
}

#[derive(Debug)]
struct Waiting {
    event: AsyncEvent,
    subject: Option<Subject>,
}

#[derive(Debug, Default)]
struct State {
    generation: u32,
    objects: HashMap<(Subject, u32), Object>,
    due: Vec<VecDeque<u32>>,
    waiting: VecDeque<Waiting>,
    lost: u32,
}

/// The events of one guest.
#[derive(Debug)]
pub struct Events {
    state: Mutex<State>,
    max_waiting: usize,
    notify: Arc<dyn Notify>,
    counters: Arc<Counters>,
}

impl Events {
    pub(crate) fn new(
        generation: u32,
        vectors: u16,
        max_waiting: u32,
        notify: Arc<dyn Notify>,
        counters: Arc<Counters>,
    ) -> Self {
        let due = (0..vectors).map(|_| VecDeque::new()).collect();
        Self {
            state: Mutex::new(State { generation, due, ..State::default() }),
            max_waiting: usize::try_from(max_waiting).unwrap_or(usize::MAX),
            notify,
            counters,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on events of the object are taken. `vector` is that of a CQ.
    pub(crate) fn open(&self, subject: Subject, handle: u32, vector: u16) {
        self.lock().objects.insert((subject, handle), Object { vector, ..Object::default() });
    }

    /// From now on none are; those that wait are dropped. Answers how many were delivered.
    pub(crate) fn close(&self, subject: Subject, handle: u32) -> Destroyed {
        let mut state = self.lock();
        let delivered = state.objects.remove(&(subject, handle)).unwrap_or_default().delivered;
        state
            .waiting
            .retain(|waiting| waiting.subject != Some(subject) || waiting.event.handle.get() != handle);
        if subject == Subject::Cq {
            state.due.iter_mut().for_each(|due| due.retain(|cq| *cq != handle));
        }
        Destroyed {
            completion_events: U32::new(delivered.completions),
            async_events: U32::new(delivered.asynchronous),
        }
    }

    /// The objects are gone, and every event that waits.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        state.objects.clear();
        state.waiting.clear();
        state.due.iter_mut().for_each(VecDeque::clear);
        state.lost = 0;
    }

    /// Everything was lost with the HCA; the guest is told, with the new generation.
    pub(crate) fn device_lost(&self, generation: u32) {
        self.clear();
        self.lock().generation = generation;
        self.push_device(EventType::DEVICE_FATAL);
    }

    /// The HCA works again; the guest is told.
    pub(crate) fn device_ready(&self) {
        self.push_device(EventType::DEVICE_READY);
    }

    /// Puts in an event about the device, which is never dropped.
    fn push_device(&self, event_type: EventType) {
        let mut state = self.lock();
        let event = event(event_type, state.generation, 0);
        state.waiting.push_back(Waiting { event, subject: None });
        drop(state);
        self.notify.events();
    }

    fn push(&self, event_type: EventType, subject: Option<Subject>, handle: u32, port: u8, syndrome: u8) {
        let mut state = self.lock();
        if subject.is_some_and(|subject| !state.objects.contains_key(&(subject, handle))) {
            return;
        }
        if state.waiting.len() >= self.max_waiting {
            self.lose(&mut state);
        } else {
            let event = AsyncEvent { port, syndrome, ..event(event_type, state.generation, handle) };
            state.waiting.push_back(Waiting { event, subject });
        }
        drop(state);
        self.notify.events();
    }

    fn lose(&self, state: &mut State) {
        state.lost = state.lost.saturating_add(1);
        Counters::add(&self.counters.async_events_lost, 1);
    }

    /// Gives waiting events to `put`, oldest first, until it has no room (and says `false`).
    ///
    /// `put` has delivered an event when it returns `true`; meanwhile no reply to the object's destruction can
    /// overtake it. It must not call back.
    pub fn deliver(&self, mut put: impl FnMut(&AsyncEvent) -> bool) {
        let mut state = self.lock();
        while let Some(next) = state.next_event() {
            if !put(&next) {
                return;
            }
            state.delivered();
            Counters::add(&self.counters.async_events, 1);
        }
    }

    /// Gives the due completion events of a vector to `put`, as [`Events::deliver`] does.
    pub fn deliver_completions(&self, vector: u16, mut put: impl FnMut(&CompletionEvent) -> bool) {
        let mut state = self.lock();
        while let Some(cq) = state.due.get(usize::from(vector)).and_then(|due| due.front().copied()) {
            if !put(&CompletionEvent { cq: U32::new(cq), generation: U32::new(state.generation) }) {
                return;
            }
            state.completion_delivered(vector, cq);
            Counters::add(&self.counters.completion_events, 1);
        }
    }
}

impl State {
    /// The next event, with the number of those lost before it.
    fn next_event(&self) -> Option<AsyncEvent> {
        let lost = U32::new(self.lost);
        match self.waiting.front() {
            Some(waiting) => Some(AsyncEvent { lost, ..waiting.event }),
            None if self.lost != 0 => {
                Some(AsyncEvent { lost, ..event(EventType::EVENTS_LOST, self.generation, 0) })
            }
            None => None,
        }
    }

    fn delivered(&mut self) {
        self.lost = 0;
        let Some(Waiting { event, subject: Some(subject) }) = self.waiting.pop_front() else { return };
        if let Some(object) = self.objects.get_mut(&(subject, event.handle.get())) {
            object.delivered.asynchronous = object.delivered.asynchronous.wrapping_add(1);
        }
    }

    fn completion_delivered(&mut self, vector: u16, cq: u32) {
        if let Some(due) = self.due.get_mut(usize::from(vector)) {
            due.pop_front();
        }
        if let Some(object) = self.objects.get_mut(&(Subject::Cq, cq)) {
            object.due = false;
            object.delivered.completions = object.delivered.completions.wrapping_add(1);
        }
    }
}

impl EventSink for Events {
    fn completion(&self, Cookie(cq): Cookie) {
        let mut state = self.lock();
        let Some(object) = state.objects.get_mut(&(Subject::Cq, cq)) else { return };
        let (vector, was_due) = (object.vector, std::mem::replace(&mut object.due, true));
        if was_due {
            return;
        }
        if let Some(due) = state.due.get_mut(usize::from(vector)) {
            due.push_back(cq);
        }
        drop(state);
        self.notify.completions(vector);
    }

    fn raise(&self, event: HcaEvent) {
        match event {
            HcaEvent::Object { cookie, kind, syndrome } => {
                self.push(object_event(kind), Some(Subject::of(kind)), cookie.0, 0, syndrome);
            }
            HcaEvent::Port { port, change } => self.push(port_event(change), None, 0, port, 0),
            HcaEvent::Lost => {
                self.lose(&mut self.lock());
                self.notify.events();
            }
        }
    }
}

fn event(event_type: EventType, generation: u32, handle: u32) -> AsyncEvent {
    AsyncEvent {
        event_type,
        port: 0,
        syndrome: 0,
        reserved: Reserved::ZERO,
        generation: U32::new(generation),
        handle: U32::new(handle),
        lost: U32::ZERO,
        reserved_end: Reserved::ZERO,
    }
}

const fn object_event(kind: AsyncKind) -> EventType {
    match kind {
        AsyncKind::CqError => EventType::CQ_ERR,
        AsyncKind::QpFatal => EventType::QP_FATAL,
        AsyncKind::QpRequestError => EventType::QP_REQ_ERR,
        AsyncKind::QpAccessError => EventType::QP_ACCESS_ERR,
        AsyncKind::CommunicationEstablished => EventType::COMM_EST,
        AsyncKind::SendQueueDrained => EventType::SQ_DRAINED,
        AsyncKind::PathMigrated => EventType::PATH_MIG,
        AsyncKind::PathMigrationError => EventType::PATH_MIG_ERR,
        AsyncKind::LastWqeReached => EventType::QP_LAST_WQE_REACHED,
        AsyncKind::SrqError => EventType::SRQ_ERR,
        AsyncKind::SrqLimitReached => EventType::SRQ_LIMIT_REACHED,
    }
}

const fn port_event(change: PortChange) -> EventType {
    match change {
        PortChange::Active => EventType::PORT_ACTIVE,
        PortChange::Down => EventType::PORT_ERR,
        PortChange::Lid => EventType::LID_CHANGE,
        PortChange::Pkey => EventType::PKEY_CHANGE,
        PortChange::SubnetManager => EventType::SM_CHANGE,
        PortChange::ClientReregister => EventType::CLIENT_REREGISTER,
        PortChange::Gid => EventType::GID_CHANGE,
    }
}
