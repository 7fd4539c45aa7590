//! One guest's socket: its device for one connection after the other.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use log::Level;
use paraverbs_tenant::{GuestConfig, LogLimit, TeardownReport, Tenant};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use virtio_rdma::request::query::Stats;
use vm_memory::GuestMemoryAtomic;

use super::connection::{Connection, chain_of};
use super::listen::{ListenError, SocketFile};
use super::shared::SharedRegion;
use super::wake::Wake;
use crate::device::Device;
use crate::host::RdmaHost;
use crate::memory::Memory;
use crate::relay::{Direct, Exposure, RegionMemory};

/// Longest name of a thread in bytes.
const MAX_THREAD_NAME: usize = 15;

/// How long to wait after a connection could not be taken, so that a lack of something is not asked for without
/// end.
const AFTER_FAILURE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How often a guest is hung up on that is to be gone and isn't.
const HANG_UP_AGAIN: Duration = Duration::from_millis(10);

/// How a guest's doorbells may reach the HCA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Doorbells {
    /// Through areas in the guest's memory only.
    #[default]
    Relayed,
    /// Through areas of the device's, too, where the VMM maps them.
    Auto,
    /// The same; a VMM that doesn't map them is told of in the log.
    Direct,
}

/// What a guest's socket is to be.
#[derive(Clone, Debug)]
pub struct GuestSocketConfig {
    /// The guest's name, for logs and status.
    pub name: String,
    /// Where to listen.
    pub path: PathBuf,
    /// What the guest is granted. Its generation is replaced by one of the host's.
    pub guest: GuestConfig,
    /// Whether memory is refused that the guest could shorten (lacks F_SEAL_SHRINK).
    pub require_seals: bool,
    /// How its doorbells may reach the HCA.
    pub doorbells: Doorbells,
}

/// How a guest's socket is at the moment.
#[derive(Clone, Debug)]
pub struct GuestStatus {
    /// The guest's name.
    pub name: String,
    /// Where it listens.
    pub path: PathBuf,
    /// Whether the guest is connected.
    pub connected: bool,
    /// Connections so far.
    pub connections: u64,
    /// Generation of the device; of a guest that is connected.
    pub generation: Option<u32>,
    /// Counters and objects, as the guest itself sees them; of a guest that is connected.
    pub stats: Option<Stats>,
    /// How the last connection's end went.
    pub last_teardown: Option<TeardownReport>,
}

/// What the socket's thread and its owner share.
#[derive(Debug)]
struct Shared {
    host: Arc<RdmaHost>,
    config: GuestSocketConfig,
    name: Arc<str>,
    log: Arc<LogLimit>,
    stopped: AtomicBool,
    stop: OwnedFd,
    connection: Mutex<Option<Arc<Connection>>>,
    connections: AtomicU64,
    last_teardown: Mutex<Option<TeardownReport>>,
    ended: Mutex<bool>,
    end: Condvar,
}

/// The thread of a socket, until this is dropped.
struct Serving(Arc<Shared>);

impl Drop for Serving {
    fn drop(&mut self) {
        *lock(&self.0.ended) = true;
        self.0.end.notify_all();
    }
}

/// A guest's device on a vhost-user socket, until it is stopped or dropped.
#[derive(Debug)]
pub struct GuestSocket {
    shared: Arc<Shared>,
    file: SocketFile,
    thread: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GuestSocket {
    /// Listens. A socket file that a dead process left behind is removed.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(host: &Arc<RdmaHost>, config: GuestSocketConfig) -> Result<Self, ListenError> {
        let (file, listener) = SocketFile::bind(&config.path)?;
        let system = |error: io::Error| ListenError::of(&config.path, error);
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let shared = Arc::new(Shared {
            host: Arc::clone(host),
            name: Arc::from(config.name.as_str()),
            log: Arc::default(),
            stopped: AtomicBool::new(false),
            stop: stop.map_err(|errno| system(errno.into()))?,
            connection: Mutex::default(),
            connections: AtomicU64::new(0),
            last_teardown: Mutex::default(),
            ended: Mutex::new(false),
            end: Condvar::new(),
            config: config.clone(),
        });
        let acceptor = listener.try_clone().map_err(system)?;
        let serving = Serving(Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name(thread_name(&config.name))
            .spawn(move || serving.0.serve(&listener, &mut Listener::from(acceptor)))
            .map_err(system)?;
        Ok(Self { shared, file, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The guest's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// How it is at the moment. Doesn't wait for a request that is under way.
    pub fn status(&self) -> GuestStatus {
        let shared = &self.shared;
        let connection = lock(&shared.connection).clone();
        let tenant = connection.as_ref().map(|connection| connection.device().tenant());
        GuestStatus {
            name: shared.config.name.clone(),
            path: shared.config.path.clone(),
            connected: tenant.is_some(),
            connections: shared.connections.load(Ordering::Relaxed),
            generation: tenant.map(Tenant::generation),
            stats: tenant.map(Tenant::stats),
            last_teardown: *lock(&shared.last_teardown),
        }
    }

    /// Disconnects the guest, if it is connected; it may connect again.
    pub fn disconnect(&self) {
        if let Some(connection) = &*lock(&self.shared.connection) {
            connection.end();
        }
    }

    /// Disconnects the guest and listens no more. When this returns everything of the guest is destroyed.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Only a full counter fails, and that wakes too.
        let _full = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        self.shared.host.look_again();
        self.disconnect();
        while !self.shared.wait_until_ended(HANG_UP_AGAIN) {
            self.disconnect();
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("guest {}: the thread of its socket has panicked", self.shared.name);
        }
    }
}

impl Drop for GuestSocket {
    fn drop(&mut self) {
        self.end();
    }
}

/// A name that a thread can have.
fn thread_name(guest: &str) -> String {
    let mut name = format!("rdma-{}", guest.replace('\0', "?"));
    name.truncate(name.floor_char_boundary(MAX_THREAD_NAME));
    name
}

/// Why a connection was not served.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Refused(#[from] crate::host::GuestRefused),
    #[error("no descriptors or threads for it")]
    System(#[from] io::Error),
    #[error("{0}")]
    Daemon(DaemonError),
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Waits until the thread has ended, but not for long; whether it has.
    fn wait_until_ended(&self, wait: Duration) -> bool {
        let ended = self.end.wait_timeout_while(lock(&self.ended), wait, |ended| !*ended);
        *ended.unwrap_or_else(PoisonError::into_inner).0
    }

    fn serve(&self, waiting: &UnixListener, listener: &mut Listener) {
        while self.wait_for_guest(waiting) {
            self.host.wait_until_up(|| self.is_stopped());
            if let Err(error) = self.serve_one(listener) {
                self.note(Level::Warn, format_args!("connection refused: {}", chain_of(&error)));
                self.turn_away(waiting, listener);
            }
        }
    }

    /// Waits until a guest connects; false when the socket is stopped.
    fn wait_for_guest(&self, waiting: &UnixListener) -> bool {
        let mut ready = [PollFd::new(waiting, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
        loop {
            if self.is_stopped() {
                return false;
            }
            // A signal, at most.
            let _interrupted = poll(&mut ready, None);
            let waits = ready[0].revents();
            if waits.contains(PollFlags::IN) && !self.is_stopped() {
                return true;
            }
            if waits.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
                log::error!("guest {}: its socket is broken, nobody can connect any more", self.name);
                return false;
            }
        }
    }

    /// Hangs up on a guest that can't be served now.
    fn turn_away(&self, waiting: &UnixListener, listener: &Listener) {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut ready = [PollFd::new(waiting, PollFlags::IN)];
        if poll(&mut ready, Some(&at_once)) == Ok(1) {
            // Accepted and dropped; or it has gone by itself.
            let _gone = listener.accept();
        }
        self.pause();
    }

    /// Waits a little, but not when the socket is stopped.
    fn pause(&self) {
        let mut stop = [PollFd::new(&self.stop, PollFlags::IN)];
        let _interrupted = poll(&mut stop, Some(&AFTER_FAILURE));
    }

    /// A line of the log about this guest, which can bring about some of them only.
    fn note(&self, level: Level, line: std::fmt::Arguments<'_>) {
        log::log!(self.log.level(level), "guest {}: {line}", self.name);
    }

    /// Takes the guest that waits, and serves it until it has gone.
    fn serve_one(&self, listener: &mut Listener) -> Result<(), ServeError> {
        let wake = Arc::new(Wake::new()?);
        let region = self.region()?;
        let exposure = region.clone().map(|region| region as Arc<dyn Exposure>);
        let direct = region.clone().map(|region| Direct::new(Arc::clone(region.memory()), region));
        let tenant = self.host.admit(self.config.guest.clone(), Arc::clone(&wake) as _, direct)?;
        let device = Device::new(tenant, self.host.relay(), exposure);
        let (who, host) = ((Arc::clone(&self.name), Arc::clone(&self.log)), Arc::clone(&self.host));
        let wanted = (region.clone(), self.config.doorbells == Doorbells::Direct);
        let connection = Connection::new(who, host, device, wake, self.config.require_seals, wanted);
        let served = self.converse(&connection, listener);
        // Where there was no conversation; a second time it does nothing.
        connection.device().close();
        if let Some(region) = region {
            region.end();
            region.wait_until_idle(|| self.is_stopped());
        }
        served
    }

    /// The region of a device, if it may have one: no page of it is ever another connection's.
    fn region(&self) -> io::Result<Option<Arc<SharedRegion>>> {
        if self.config.doorbells == Doorbells::Relayed {
            return Ok(None);
        }
        let limits = &self.config.guest.limits;
        let memory = Arc::new(RegionMemory::new(limits.uars, limits.slots)?);
        Ok(Some(SharedRegion::new(Arc::clone(&self.name), memory)))
    }

    /// Speaks vhost-user until the guest has gone, and tears its device down.
    fn converse(&self, connection: &Arc<Connection>, listener: &mut Listener) -> Result<(), ServeError> {
        let memory = GuestMemoryAtomic::new(Memory::new());
        let mut daemon = VhostUserDaemon::new(thread_name(&self.name), Arc::clone(connection), memory)
            .map_err(ServeError::Daemon)?;
        if let Err(error) = connection.register(&daemon) {
            self.give_up(connection, daemon);
            return Err(error.into());
        }
        let started = daemon.start(listener).map_err(ServeError::Daemon);
        if started.is_ok() {
            self.attend(connection, &mut daemon);
        }
        // Before the rings' mappings go, and while the workers can still finish what they are at.
        let report = connection.device().close();
        connection.end_workers();
        drop(daemon);
        self.tell(report);
        started
    }

    /// Ends workers that could not be told to end, as soon as they can be: or each try would leave some behind.
    fn give_up(&self, connection: &Arc<Connection>, daemon: VhostUserDaemon<Arc<Connection>>) {
        while !self.is_stopped() {
            self.pause();
            if connection.register(&daemon).is_ok() {
                connection.device().close();
                connection.end_workers();
                return;
            }
        }
        // They would be waited for without end: they stay, idle.
        std::mem::forget(daemon);
    }

    /// Waits until the guest has gone.
    fn attend(&self, connection: &Arc<Connection>, daemon: &mut VhostUserDaemon<Arc<Connection>>) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.note(Level::Info, format_args!("connected"));
        if let Some(handle) = daemon.shutdown_handle() {
            connection.connected(handle);
        }
        *lock(&self.connection) = Some(Arc::clone(connection));
        if self.is_stopped() {
            connection.end();
        }
        match daemon.wait() {
            Ok(()) => {}
            Err(DaemonError::HandleRequest(ProtocolError::Disconnected | ProtocolError::PartialMessage)) => {}
            Err(error) => self.note(Level::Warn, format_args!("{error}; disconnected")),
        }
        *lock(&self.connection) = None;
    }

    fn tell(&self, report: TeardownReport) {
        *lock(&self.last_teardown) = Some(report);
        let TeardownReport { not_given_back, bytes_left_mapped } = report;
        if not_given_back == 0 && bytes_left_mapped == 0 {
            self.note(Level::Info, format_args!("disconnected, everything was given back"));
        } else {
            let left = format_args!("{not_given_back} objects and {bytes_left_mapped} bytes of memory");
            self.note(Level::Warn, format_args!("disconnected; the HCA keeps {left} until its reset"));
        }
    }
}
