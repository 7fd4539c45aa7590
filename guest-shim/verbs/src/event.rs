//! Asynchronous events.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What happened (`ibv_event_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// A CQ failed, or overran.
    CqErr,
    /// A queue pair failed and is in error; or it was connected, within the port, to another guest's queue pair that
    /// its owner has connected to a third.
    QpFatal,
    /// A queue pair got an invalid request and is in error.
    QpReqErr,
    /// A queue pair got a request that violated its rights, and is in error.
    QpAccessErr,
    /// The first message came in on a queue pair that was ready to receive.
    CommEst,
    /// The send queue of a queue pair is drained.
    SqDrained,
    /// A connection moved to the alternate path.
    PathMig,
    /// A connection could not move to the alternate path.
    PathMigErr,
    /// The device is lost: every verb of this context answers `EIO` from now on.
    DeviceFatal,
    /// A port became active.
    PortActive,
    /// A port is no longer active.
    PortErr,
    /// A port's LID changed.
    LidChange,
    /// A port's P_Key table changed.
    PkeyChange,
    /// A port's subnet manager changed.
    SmChange,
    /// An SRQ failed.
    SrqErr,
    /// An SRQ fell below its limit.
    SrqLimitReached,
    /// A queue pair in error has taken the last request that it takes from its SRQ.
    QpLastWqeReached,
    /// The subnet manager asks for registrations to be renewed.
    ClientReregister,
    /// A port's GID table changed.
    GidChange,
    /// So many events were lost, because nobody took them: query ports and queue pairs. Verbs has no such event.
    EventsLost(u32),
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventElement {
    /// A CQ: its number ([`Cq::cqn`](crate::Cq::cqn)).
    Cq(u32),
    /// A queue pair: its number ([`Qp::qpn`](crate::Qp::qpn)).
    Qp(u32),
    /// An SRQ: its number ([`Srq::srqn`](crate::Srq::srqn)).
    Srq(u32),
    /// A port, from 1.
    Port(u8),
    /// The device.
    Device,
}

/// An asynchronous event (`ibv_async_event`). Dropping it acknowledges it (`ibv_ack_async_event`): `destroy` of what
/// it is about waits for that, so that nobody works on it any more then. Don't keep it longer than that.
#[derive(Debug)]
pub struct AsyncEvent {
    /// What happened.
    pub event_type: EventType,
    /// To what.
    pub element: EventElement,
    _taken: Option<Taken>,
}

impl AsyncEvent {
    /// An event that is handed out; `acks` counts those of its object.
    pub(crate) fn new(event_type: EventType, element: EventElement, acks: Option<&Arc<Acks>>) -> Self {
        Self { event_type, element, _taken: acks.map(Taken::new) }
    }
}

/// Counts the events about an object that the program has and hasn't acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    outstanding: Mutex<u32>,
    none: Condvar,
}

impl Acks {
    fn lock(&self) -> MutexGuard<'_, u32> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all are acknowledged.
    pub(crate) fn wait(&self) {
        let mut outstanding = self.lock();
        while *outstanding != 0 {
            outstanding = self.none.wait(outstanding).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// An event that the program has.
#[derive(Debug)]
struct Taken(Arc<Acks>);

impl Taken {
    fn new(acks: &Arc<Acks>) -> Self {
        *acks.lock() += 1;
        Self(Arc::clone(acks))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut outstanding = self.0.lock();
        *outstanding -= 1;
        if *outstanding == 0 {
            self.0.none.notify_all();
        }
    }
}
