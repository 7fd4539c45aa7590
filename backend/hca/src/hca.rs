//! The card as a whole: bring-up, end, and what happens when it fails. What guests do with it is in `control`.

use std::fmt;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use mlx4::{CompletionEvents, EventPoller, MadSink, Profile, Timeouts};
use mlx4_pci::PciDevice;
use paraverbs_tenant::LogLimit;
use paraverbs_tenant::hca::{Cookie, DeviceInfo, GuestId, HcaError};

use crate::completion::Eqs;
use crate::error::told;
use crate::events::{DriverEvents, Router};
use crate::geometry::QueueLimits;
use crate::groups::{Answers, Card, Groups, Unsent, Worker};
use crate::mappings::Mappings;
use crate::objects::{Objects, Owner};
use crate::table::{LifeTag, sole};

/// How a card is to be used.
#[derive(Clone)]
pub struct Mlx4Config {
    /// How many objects of each kind there may be.
    pub profile: Profile,
    /// Event queues for completions of guests; at least one.
    pub completion_eqs: u16,
    /// Whether each has a thread, or they are polled by [`paraverbs_tenant::hca::Hca::poll_events`].
    pub completion_events: CompletionEvents,
    /// How long commands may take.
    pub timeouts: Timeouts,
    /// How often the card is looked at for a failure.
    pub health_interval: Duration,
    /// Who takes datagrams that the firmware doesn't answer.
    pub mads: Arc<dyn MadSink>,
    /// Whether ports are brought up.
    pub ports: bool,
}

impl Default for Mlx4Config {
    /// As the driver's.
    fn default() -> Self {
        let driver = mlx4::Config::default();
        Self {
            profile: driver.profile,
            completion_eqs: driver.completion_eqs,
            completion_events: driver.completion_events,
            timeouts: driver.timeouts,
            health_interval: driver.health_interval,
            mads: driver.mads,
            ports: driver.ports,
        }
    }
}

impl fmt::Debug for Mlx4Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mlx4Config")
            .field("profile", &self.profile)
            .field("completion_eqs", &self.completion_eqs)
            .field("completion_events", &self.completion_events)
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

impl Mlx4Config {
    fn driver(&self, events: Arc<dyn mlx4::EventSink>, groups: &Arc<Groups>) -> mlx4::Config {
        mlx4::Config {
            profile: self.profile,
            completion_eqs: self.completion_eqs,
            completion_events: self.completion_events,
            timeouts: self.timeouts,
            health_interval: self.health_interval,
            events,
            mads: Arc::new(Answers { groups: Arc::clone(groups), others: Arc::clone(&self.mads) }),
            ports: self.ports,
        }
    }
}

/// A card between bring-up and reset.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) driver: mlx4::Hca,
    pub(crate) life: LifeTag,
    pub(crate) eqs: Arc<Eqs>,
    pub(crate) next_mr: AtomicU32,
    /// For what goes wrong with guests' objects.
    pub(crate) log: LogLimit,
    router: Arc<Router>,
}

impl Running {
    pub(crate) fn objects(&self) -> &Objects {
        &self.router.objects
    }

    pub(crate) fn groups(&self) -> &Groups {
        &self.router.groups
    }

    pub(crate) fn limits(&self) -> QueueLimits {
        QueueLimits::of(&self.driver)
    }

    /// Who has the events of a guest's object.
    pub(crate) fn owner(&self, guest: GuestId, cookie: Cookie) -> Result<Owner, HcaError> {
        let guest = self.objects().guests.get(guest.0).ok_or(HcaError::Refused)?;
        Ok(Owner { guest, cookie })
    }

    /// What a failure of the driver means. If the card is lost, it is told.
    ///
    /// A card that has not answered once is given up: or each of a guest's objects would be waited for in turn when
    /// it goes.
    pub(crate) fn fail(&self, error: &mlx4::Error) -> HcaError {
        let error = told(error);
        if error == HcaError::TimedOut {
            self.driver.give_up();
        }
        if matches!(error, HcaError::TimedOut | HcaError::Lost) {
            self.router.failed();
        }
        error
    }
}

/// Where a card is while it is up.
type Place = Arc<RwLock<Option<Running>>>;

impl Card for Place {
    fn with(&self, work: &mut dyn FnMut(&mlx4::Hca) -> Result<(), Unsent>) -> Result<(), Unsent> {
        let running = self.read().unwrap_or_else(PoisonError::into_inner);
        work(&running.as_ref().ok_or(Unsent::NoCard)?.driver)
    }
}

/// The HCA that guests share, on a card of the mlx4 family.
///
/// Dropped without [`Mlx4Hca::close`], it closes.
pub struct Mlx4Hca {
    device: Arc<dyn PciDevice>,
    config: Mlx4Config,
    pub(crate) router: Arc<Router>,
    pub(crate) mappings: Mappings,
    info: ArcSwap<DeviceInfo>,
    running: Place,
    _groups: Worker,
    poller: ArcSwapOption<EventPoller>,
    /// Held while the card is brought up or ended; counts its lives.
    lives: Mutex<u8>,
}

impl Mlx4Hca {
    /// Resets a card and brings it up.
    ///
    /// # Errors
    /// As for [`mlx4::Hca::open`].
    pub fn open(device: Arc<dyn PciDevice>, config: Mlx4Config) -> mlx4::Result<Arc<Self>> {
        let router = Arc::new(Router::default());
        let mappings = Mappings::new(device.dma());
        let place = Place::default();
        let groups = Worker::start(&router.groups, Place::clone(&place))
            .map_err(|source| mlx4::Error::Host { what: "a thread", source })?;
        let (mut running, info) = bring_up(&device, &config, &router, LifeTag(1))?;
        let poller = running.driver.take_event_poller().map(Arc::new);
        *place.write().unwrap_or_else(PoisonError::into_inner) = Some(running);
        Ok(Arc::new(Self {
            device,
            config,
            router,
            mappings,
            info: ArcSwap::from_pointee(info),
            running: place,
            _groups: groups,
            poller: ArcSwapOption::from(poller),
            lives: Mutex::new(1),
        }))
    }

    /// `call` is called when the card has failed, once until [`Mlx4Hca::restart`]; at once if it has failed
    /// already. It runs on whichever thread has noticed, in the middle of something: it only passes the news on.
    pub fn on_fatal(&self, call: Box<dyn Fn() + Send + Sync>) {
        self.router.on_fatal(call);
    }

    /// Asks the driver something, e.g. for the firmware, ports, or the number of objects.
    ///
    /// # Errors
    /// [`HcaError::Lost`] while the card isn't up.
    pub fn driver<R>(&self, ask: impl FnOnce(&mlx4::Hca) -> R) -> Result<R, HcaError> {
        self.with(|running| Ok(ask(&running.driver)))
    }

    /// Resets the card, whether it has failed or not, and brings it up again. All guests' objects are gone, and
    /// all ids are refused from now on; mapped memory stays mapped.
    ///
    /// # Errors
    /// As for [`Mlx4Hca::open`]; the card is lost then, and this can be tried again.
    pub fn restart(&self) -> mlx4::Result<()> {
        let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.end() {
            // A failed card doesn't end in order; bring-up resets it anyway.
            log::info!("{}: {error}", self.device.identity().name);
        }
        *lives = lives.wrapping_add(1);
        let (mut running, info) = bring_up(&self.device, &self.config, &self.router, LifeTag(*lives))?;
        self.poller.store(running.driver.take_event_poller().map(Arc::new));
        self.info.store(Arc::new(info));
        *self.running.write().unwrap_or_else(PoisonError::into_inner) = Some(running);
        Ok(())
    }

    /// Stops the card. Everything is refused from now on.
    ///
    /// # Errors
    /// As for [`mlx4::Hca::close`]: also if guests still had objects. The card was reset then.
    pub fn close(&self) -> mlx4::Result<()> {
        let _lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        self.end()
    }

    /// Ends the card's life: no command of guests is under way, then no doorbell, then no event.
    fn end(&self) -> mlx4::Result<()> {
        self.router.listen(false);
        self.router.groups.finish();
        let running = {
            let mut running = self.running.write().unwrap_or_else(PoisonError::into_inner);
            self.router.objects.clear();
            self.router.groups.clear();
            running.take()
        };
        if let Some(poller) = self.poller.swap(None) {
            drop(sole(poller));
        }
        match running {
            Some(running) => running.driver.close(),
            None => Ok(()),
        }
    }

    pub(crate) fn poll(&self) -> bool {
        self.poller.load().as_ref().is_some_and(|poller| poller.poll())
    }

    pub(crate) fn device_info(&self) -> DeviceInfo {
        **self.info.load()
    }

    /// Does something with the card while it is up.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&Running) -> Result<R, HcaError>) -> Result<R, HcaError> {
        let running: RwLockReadGuard<'_, Option<Running>> =
            self.running.read().unwrap_or_else(PoisonError::into_inner);
        work(running.as_ref().ok_or(HcaError::Lost)?)
    }
}

fn bring_up(
    device: &Arc<dyn PciDevice>,
    config: &Mlx4Config,
    router: &Arc<Router>,
    life: LifeTag,
) -> mlx4::Result<(Running, DeviceInfo)> {
    // From the start, so that no failure is missed. If bring-up fails, its result says so.
    router.listen(true);
    let brought = start(device, config, router, life);
    if brought.is_err() {
        router.listen(false);
    }
    brought
}

fn start(
    device: &Arc<dyn PciDevice>,
    config: &Mlx4Config,
    router: &Arc<Router>,
    life: LifeTag,
) -> mlx4::Result<(Running, DeviceInfo)> {
    let events = Arc::new(DriverEvents(Arc::clone(router)));
    let driver = mlx4::Hca::open(Arc::clone(device), &config.driver(events, &router.groups))?;
    let eqs = Eqs::new(driver.completion_eqs(), driver.completion_eq_room());
    let (next_mr, log) = (AtomicU32::new(0), LogLimit::new());
    let running = Running { driver, life, eqs, next_mr, log, router: Arc::clone(router) };
    match running.device_info(device.identity()) {
        Ok(info) => Ok((running, info)),
        Err(error) => {
            if let Err(error) = running.driver.close() {
                log::warn!("{error}");
            }
            Err(error)
        }
    }
}

impl Drop for Mlx4Hca {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            log::error!("{}: {error}", self.device.identity().name);
        }
    }
}

impl fmt::Debug for Mlx4Hca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mlx4Hca").field("device", &self.device).finish_non_exhaustive()
    }
}
