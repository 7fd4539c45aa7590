//! One device: what its virtqueues do. Knows no transport.
//!
//! - [`Device`]: control queue, event queue, completion vectors, kick queues, MAD queues, configuration space
//! - [`Ring`]: a virtqueue, as the transport has it
//! - `chain`: descriptor chains, checked
//!
//! A transport calls [`Device::control`] and the others when a queue may have something new; calls for one queue
//! never overlap, and those for different queues may.

mod chain;
mod queue;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use paraverbs_tenant::{Counters, TeardownReport, Tenant};
use virtio_rdma::doorbell::DoorbellMode;
use virtio_rdma::mad::MadSent;
use virtio_rdma::request::{Body, HEADER_BYTES, MAX_ANSWER_BYTES, Request};
use virtio_rdma::{Reason, Reserved};
use zerocopy::IntoBytes;

use crate::relay::{Exposure, RelayHandle};
use chain::Chain;
use queue::Next;
pub(crate) use queue::{Queue, Ring};

/// Room for the longest reply.
const REPLY_BYTES: usize = HEADER_BYTES + MAX_ANSWER_BYTES;

/// Chains that are filled before a queue is let go of.
const CHAINS_AT_ONCE: usize = 32;

/// Chains, and how often a queue is let go of, after which other queues of the same thread have their turn.
const CHAINS_IN_A_TURN: usize = 1024;
const TIMES_IN_A_TURN: usize = CHAINS_IN_A_TURN / CHAINS_AT_ONCE;

/// The device of one guest.
#[derive(Debug)]
pub(crate) struct Device {
    tenant: Arc<Tenant>,
    relay: RelayHandle,
    /// How it has its region mapped, if it has one.
    exposure: Option<Arc<dyn Exposure>>,
    /// Longest request in bytes.
    max_request: usize,
    /// Nothing more is done for the guest.
    closing: AtomicBool,
    /// Everything was lost since the event queue was started last.
    unannounced: AtomicBool,
}

impl Device {
    /// The device of a guest that was just admitted.
    pub(crate) fn new(tenant: Arc<Tenant>, relay: RelayHandle, exposure: Option<Arc<dyn Exposure>>) -> Self {
        let max_request =
            usize::try_from(tenant.config_space().max_request_bytes.get()).unwrap_or(usize::MAX);
        Self {
            tenant,
            relay,
            exposure,
            max_request,
            closing: AtomicBool::new(false),
            unannounced: AtomicBool::new(true),
        }
    }

    /// The guest.
    pub(crate) fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// `length` bytes of the configuration space.
    pub(crate) fn config_space(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.tenant.config_space().copy_to(offset, &mut bytes);
        bytes
    }

    fn refuse_chain(&self) {
        Counters::add(&self.tenant.counters().chains_refused, 1);
    }

    /// Carries out what is in the control queue.
    pub(crate) fn control(&self, ring: &impl Ring) {
        while self.drain(ring, |chain| self.carry_out(ring, chain)) {}
    }

    /// Carries out one request; answers the length of its reply.
    fn carry_out(&self, ring: &impl Ring, chain: &Chain) -> Option<u32> {
        // One byte more than there may be, so that the tenant sees that it is too long.
        let request = ring.with(|queue| chain.read(queue.memory(), self.max_request.saturating_add(1)))?;
        if let Some(exposure) = &self.exposure
            && wants_region(&request)
        {
            // Before the tenant is locked: the VMM may want something of it first.
            exposure.map();
        }
        let mut reply = [0; REPLY_BYTES];
        let room = chain.room().min(REPLY_BYTES);
        let length = self.tenant.handle(&request, reply.get_mut(..room)?)?;
        let reply = reply.get(..length)?;
        ring.with(|queue| chain.write_all(queue.memory(), reply))
    }

    /// Answers what is in the MAD send queue: no device offers it. Answers whether there may be more.
    pub(crate) fn mad_send(&self, ring: &impl Ring) -> bool {
        let reason = Reason::NOT_OFFERED;
        let sent = MadSent { status: reason.status(), reason, reserved: Reserved::ZERO };
        self.drain(ring, |chain| ring.with(|queue| chain.write_all(queue.memory(), sent.as_bytes())))
    }

    /// Uses each chain with what `serve` has written, or as one whose form is wrong, until there is none left or
    /// its turn ends. Answers whether there may be more.
    fn drain(&self, ring: &impl Ring, serve: impl Fn(&Chain) -> Option<u32>) -> bool {
        for _ in 0..CHAINS_IN_A_TURN {
            if self.is_closing() {
                return false;
            }
            let (head, written) = match ring.with(|queue| queue.next()) {
                Next::Chain(chain) => (chain.head(), serve(&chain)),
                Next::Bad(head) => (head, None),
                Next::None if ring.with(|queue| queue.wait_for_more()) => continue,
                Next::None => return false,
                Next::Nonsense => {
                    self.refuse_chain();
                    return false;
                }
            };
            if written.is_none() {
                self.refuse_chain();
            }
            let signal = ring.with(|queue| {
                queue.used(head, written.unwrap_or(0));
                queue.must_signal()
            });
            if signal {
                ring.signal();
            }
        }
        true
    }

    /// The control queue was stopped: that is the reset of the device.
    pub(crate) fn control_queue_stopped(&self) {
        let report = self.tenant.reset();
        self.unannounced.store(true, Ordering::Release);
        log::debug!("{:?} was reset: {report:?}", self.tenant.guest());
    }

    /// The event queue was started. Where it was in use already the driver doesn't know that its device began
    /// anew: it is told, in a generation that `next` gives.
    pub(crate) fn event_queue_started(&self, ring: &impl Ring, next: impl FnOnce() -> u32) {
        let in_use = ring.with(|queue| queue.was_in_use());
        if self.unannounced.swap(false, Ordering::AcqRel) && in_use {
            let report = self.tenant.renew(next());
            log::debug!("{:?} began anew behind its driver's back: {report:?}", self.tenant.guest());
        }
    }

    /// Delivers asynchronous events as far as there are buffers. Answers whether there may be more to do.
    pub(crate) fn events(&self, ring: &impl Ring) -> bool {
        self.fill(ring, |put| self.tenant.events().deliver(|event| put(event.as_bytes())))
    }

    /// Delivers completion events of a vector as far as there are buffers. Answers whether there may be more to do.
    pub(crate) fn completions(&self, vector: u16, ring: &impl Ring) -> bool {
        self.fill(ring, |put| {
            self.tenant.events().deliver_completions(vector, |event| put(event.as_bytes()));
        })
    }

    /// Lets `deliver` put messages into the queue, each into a chain of its own, until it has no more, there is no
    /// room, or its turn ends.
    fn fill(&self, ring: &impl Ring, deliver: impl Fn(&mut dyn FnMut(&[u8]) -> bool)) -> bool {
        let (mut more, mut signal) = (true, false);
        for _ in 0..TIMES_IN_A_TURN {
            // The queue is let go of now and then, for whoever wants to stop it.
            let told = ring.with(|queue| {
                more = (0..CHAINS_AT_ONCE).all(|_| self.fill_one(queue, &deliver));
                queue.must_signal()
            });
            signal |= told;
            if !more || self.is_closing() {
                break;
            }
        }
        if signal {
            ring.signal();
        }
        more
    }

    /// Puts one message into the next chain, or gives back a chain that takes none. Answers whether there may be
    /// more to do.
    ///
    /// While `deliver` runs the HCA's event threads wait, which serve all guests. So it is called for one message
    /// and a chain that is at hand: however many bad ones the driver has, nobody else waits for that.
    fn fill_one(&self, queue: &mut Queue<'_>, deliver: impl Fn(&mut dyn FnMut(&[u8]) -> bool)) -> bool {
        let mut length = None;
        deliver(&mut |message| {
            length = Some(message.len());
            false
        });
        let Some(length) = length else {
            // Chains that the driver gives back are for later: it wakes nobody for them.
            queue.needs_no_more();
            return false;
        };
        let chain = match queue.next() {
            Next::Chain(chain) if chain.room() >= length => chain,
            Next::Chain(chain) => return self.give_back(queue, chain.head()),
            Next::Bad(head) => return self.give_back(queue, head),
            Next::None => return queue.wait_for_more(),
            Next::Nonsense => {
                self.refuse_chain();
                return false;
            }
        };
        let mut written = None;
        deliver(&mut |message| {
            if written.is_some() {
                return false;
            }
            let bytes = chain.write_all(queue.memory(), message);
            // Before others may see that it was delivered.
            queue.used(chain.head(), bytes.unwrap_or(0));
            written = Some(bytes.is_some());
            bytes.is_some()
        });
        match written {
            Some(true) => {}
            Some(false) => self.refuse_chain(),
            // What there was is gone with its object.
            None => queue.untake(),
        }
        true
    }

    /// Uses a chain that takes no message.
    fn give_back(&self, queue: &mut Queue<'_>, head: u16) -> bool {
        self.refuse_chain();
        queue.used(head, 0);
        true
    }

    /// A kick queue was notified: somebody has rung while the relay slept.
    pub(crate) fn kick(&self) {
        Counters::add(&self.tenant.counters().kicks, 1);
        self.relay.kick();
    }

    /// From now on queues are left alone.
    pub(crate) fn leave_queues(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Nothing more is done for the guest, and everything of it is destroyed.
    pub(crate) fn close(&self) -> TeardownReport {
        self.leave_queues();
        self.tenant.close()
    }

    /// Whether [`Device::leave_queues`] was called.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}

/// Whether a request is for doorbells in the device's region.
fn wants_region(request: &[u8]) -> bool {
    let direct = |request: Request<'_>| matches!(request.body, Body::AllocUar(body) if body.mode == DoorbellMode::DIRECT);
    Request::parse(request).is_ok_and(direct)
}
