//! Events: from the driver to the guests that they are for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use mlx4::{Event, PortEvent, QpEventKind};
use mlx4_wire::eqe::CqErrorSyndrome;
use paraverbs_tenant::hca::{AsyncKind, EventSink, HcaEvent, PortChange};

use crate::groups::Groups;
use crate::objects::{Objects, Owner};
use crate::share::Share;
use crate::table::{LifeTag, sole};

/// A guest that is attached.
#[derive(Debug)]
pub(crate) struct Guest {
    id: u32,
    pub(crate) sink: Arc<dyn EventSink>,
    /// What it has of the translation table.
    pub(crate) share: Arc<Share>,
}

/// All guests.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    all: ArcSwap<Vec<Arc<Guest>>>,
    /// Held while the guests change; counts them.
    count: Mutex<u32>,
}

impl Guests {
    /// A guest begins.
    pub(crate) fn attach(&self, life: LifeTag, sink: Arc<dyn EventSink>, share: Arc<Share>) -> u32 {
        let mut count = self.changing();
        let all = self.all.load();
        let id = loop {
            *count = count.wrapping_add(1);
            let id = life.id(*count);
            if all.iter().all(|guest| guest.id != id) {
                break id;
            }
        };
        let guest = Arc::new(Guest { id, sink, share });
        let next = all.iter().cloned().chain([guest]).collect();
        drop(all);
        self.replace(next);
        id
    }

    /// A guest ends. When this returns no event of a port is on its way to him.
    pub(crate) fn detach(&self, id: u32) {
        let _changing = self.changing();
        let next = self.all.load().iter().filter(|guest| guest.id != id).cloned().collect();
        self.replace(next);
    }

    pub(crate) fn get(&self, id: u32) -> Option<Arc<Guest>> {
        self.all.load().iter().find(|guest| guest.id == id).cloned()
    }

    /// All guests end.
    pub(crate) fn clear(&self) {
        let _changing = self.changing();
        self.replace(Vec::new());
    }

    fn tell_all(&self, event: HcaEvent) {
        for guest in self.all.load().iter() {
            guest.sink.raise(event);
        }
    }

    /// Puts other guests in place, and waits until nobody sees the ones before.
    fn replace(&self, next: Vec<Arc<Guest>>) {
        drop(sole(self.all.swap(Arc::new(next))));
    }

    fn changing(&self) -> MutexGuard<'_, u32> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is called when the HCA has failed.
type OnFatal = Box<dyn Fn() + Send + Sync>;

/// Takes the driver's events to the guests.
#[derive(Default)]
pub(crate) struct Router {
    pub(crate) objects: Objects,
    pub(crate) groups: Arc<Groups>,
    fatal: AtomicBool,
    on_fatal: ArcSwapOption<OnFatal>,
}

impl Router {
    /// From now on `call` is told of a failure; at once if there was one already.
    pub(crate) fn on_fatal(&self, call: OnFatal) {
        self.on_fatal.store(Some(Arc::new(call)));
        if self.fatal.load(Ordering::SeqCst) {
            self.call();
        }
    }

    /// The HCA has failed. Only the first failure of a life is told.
    pub(crate) fn failed(&self) {
        if !self.fatal.swap(true, Ordering::SeqCst) {
            self.call();
        }
    }

    /// Whether failures are told from now on.
    pub(crate) fn listen(&self, listen: bool) {
        self.fatal.store(!listen, Ordering::SeqCst);
    }

    fn call(&self) {
        if let Some(call) = self.on_fatal.load_full() {
            call();
        }
    }

    fn route(&self, event: &Event) {
        let objects = &self.objects;
        let unknown = match *event {
            Event::Qp { qpn, event } => {
                objects.qps.with_number(qpn, |qp| raise(&qp.owner, qp_event(event), 0)).is_none()
            }
            Event::Srq { srqn, limit } => {
                let kind = if limit { AsyncKind::SrqLimitReached } else { AsyncKind::SrqError };
                objects.srqs.with_number(srqn, |srq| raise(&srq.owner, kind, 0)).is_none()
            }
            Event::CqError { cqn, overrun } => {
                let syndrome =
                    if overrun { CqErrorSyndrome::OVERRUN } else { CqErrorSyndrome::ACCESS_VIOLATION };
                let raise = |cq: &crate::objects::Cq| raise(&cq.owner, AsyncKind::CqError, syndrome.0);
                objects.cqs.with_number(cqn, raise).is_none()
            }
            Event::Port { port, event } => {
                self.groups.changed(port, event);
                if let Some(change) = port_change(event) {
                    objects.guests.tell_all(HcaEvent::Port { port, change });
                }
                false
            }
            Event::Lost => {
                self.groups.lost();
                objects.guests.tell_all(HcaEvent::Lost);
                false
            }
            Event::Fatal => {
                self.failed();
                false
            }
        };
        if unknown {
            log::debug!("{event:?}, but it is no guest's");
        }
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").field("objects", &self.objects).finish_non_exhaustive()
    }
}

/// The driver's end of the router.
#[derive(Debug)]
pub(crate) struct DriverEvents(pub(crate) Arc<Router>);

impl mlx4::EventSink for DriverEvents {
    fn event(&self, event: &Event) {
        self.0.route(event);
    }
}

fn raise(owner: &Owner, kind: AsyncKind, syndrome: u8) {
    owner.guest.sink.raise(HcaEvent::Object { cookie: owner.cookie, kind, syndrome });
}

fn qp_event(event: QpEventKind) -> AsyncKind {
    match event {
        QpEventKind::PathMigrated => AsyncKind::PathMigrated,
        QpEventKind::PathMigrationFailed => AsyncKind::PathMigrationError,
        QpEventKind::CommunicationEstablished => AsyncKind::CommunicationEstablished,
        QpEventKind::SendDrained => AsyncKind::SendQueueDrained,
        QpEventKind::Fatal => AsyncKind::QpFatal,
        QpEventKind::InvalidRequest => AsyncKind::QpRequestError,
        QpEventKind::AccessError => AsyncKind::QpAccessError,
        QpEventKind::LastWqe => AsyncKind::LastWqeReached,
    }
}

/// What guests are told of a port's event; which lanes service levels have is not theirs to know.
fn port_change(event: PortEvent) -> Option<PortChange> {
    Some(match event {
        PortEvent::Active => PortChange::Active,
        PortEvent::Down => PortChange::Down,
        PortEvent::Lid => PortChange::Lid,
        PortEvent::Sm => PortChange::SubnetManager,
        PortEvent::Reregister => PortChange::ClientReregister,
        PortEvent::Pkeys => PortChange::Pkey,
        PortEvent::Gids => PortChange::Gid,
        PortEvent::VirtualLanes => return None,
    })
}
