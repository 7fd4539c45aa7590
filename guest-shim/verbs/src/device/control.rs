//! The control queue: requests of several threads at once. A device that has requests and answers none for minutes
//! is lost, or its users would wait for ever.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use virtio_rdma::memory::Segment;
use virtio_rdma::queue::CONTROL;
use virtio_rdma::request::{HEADER_BYTES, MAX_ANSWER_BYTES, ReplyError, SegmentMode, decode, encode};
use virtio_rdma::{Reason, Verb};

use super::rings::Ring;
use crate::arena::{Arena, Block};
use crate::error::{Error, Result};
use crate::signal::Loss;
use crate::transport::Transport;
use crate::virtqueue::{Buffer, Layout};

/// Requests that may be under way.
const SLOTS: u16 = 32;
/// Room for a request, in bytes: header, body and a few segments.
const REQUEST_BYTES: usize = 256;
/// Room for a reply, in bytes.
const REPLY_BYTES: usize = 512;

const _: () = assert!(HEADER_BYTES + MAX_ANSWER_BYTES <= REPLY_BYTES);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Free,
    /// The device has the request.
    Asked,
    /// The reply is there, of so many bytes.
    Answered(usize),
}

#[derive(Debug)]
struct State {
    ring: Ring,
    slots: [Slot; SLOTS as usize],
    cookies: u64,
    /// When the device answered last, or was asked while it had nothing to answer.
    heard: Instant,
}

/// The control queue.
#[derive(Debug)]
pub(super) struct Control {
    transport: Arc<dyn Transport>,
    loss: Arc<Loss>,
    generation: u32,
    buffers: Block,
    state: Mutex<State>,
    /// A slot was answered or freed, or the device is lost.
    changed: Condvar,
}

fn request_at(slot: u16) -> usize {
    usize::from(slot) * (REQUEST_BYTES + REPLY_BYTES)
}

fn reply_at(slot: u16) -> usize {
    request_at(slot) + REQUEST_BYTES
}

impl Control {
    pub(super) fn start(
        transport: &Arc<dyn Transport>,
        arena: &Arc<Arena>,
        loss: &Arc<Loss>,
        generation: u32,
    ) -> Result<Self> {
        let buffers = arena.allocate(request_at(SLOTS), 64)?;
        let ring = Ring::start(transport, arena, CONTROL, Layout { size: 2 * SLOTS })?;
        let reply_bytes = u32::try_from(REPLY_BYTES).unwrap_or(u32::MAX);
        for slot in 0..SLOTS {
            let address = buffers.guest_address() + reply_at(slot) as u64;
            let reply = Buffer { address, length: reply_bytes, writable: true, next: None };
            ring.queue.describe(2 * slot + 1, reply);
        }
        let state = State { ring, slots: [Slot::Free; SLOTS as usize], cookies: 0, heard: Instant::now() };
        Ok(Self {
            transport: Arc::clone(transport),
            loss: Arc::clone(loss),
            generation,
            buffers,
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    /// Carries out a verb.
    ///
    /// # Errors
    /// The device has refused it, or is lost.
    pub(super) fn call<V: Verb>(&self, body: &V, segments: &[Segment]) -> Result<V::Answer> {
        let verb = V::OPCODE.name().unwrap_or("request");
        let mut state = self.lock();
        let slot = loop {
            self.loss.check()?;
            match state.slots.iter().position(|slot| *slot == Slot::Free) {
                Some(slot) => break slot,
                None => state = self.wait(state),
            }
        };
        #[expect(clippy::cast_possible_truncation, reason = "less than SLOTS")]
        let slot_u16 = slot as u16;
        state.cookies += 1;
        let cookie = state.cookies;
        let mut request = [0; REQUEST_BYTES];
        let bytes = encode(&mut request, body, segments, SegmentMode::DIRECT, cookie, self.generation)
            .ok_or_else(|| Error::Invalid(format!("{verb}: {} segments are too many", segments.len())))?;
        self.ask(&mut state, slot_u16, &request[..bytes]);
        let length = loop {
            self.collect_into(&mut state);
            match state.slots[slot] {
                Slot::Answered(length) => break length,
                _ => {
                    self.loss.check()?;
                    state = self.wait(state);
                }
            }
        };
        let mut reply = [0; REPLY_BYTES];
        let reply = &mut reply[..length];
        self.buffers.span().copy_out(reply_at(slot_u16), reply);
        state.slots[slot] = Slot::Free;
        drop(state);
        self.changed.notify_all();
        decode::<V>(reply, cookie).map_err(|error| self.failed(verb, error))
    }

    fn ask(&self, state: &mut State, slot: u16, request: &[u8]) {
        self.buffers.span().copy_in(request_at(slot), request);
        let address = self.buffers.guest_address() + request_at(slot) as u64;
        let length = u32::try_from(request.len()).unwrap_or(u32::MAX);
        let queue = &mut state.ring.queue;
        queue.describe(2 * slot, Buffer { address, length, writable: false, next: Some(2 * slot + 1) });
        queue.offer(2 * slot);
        if !state.slots.contains(&Slot::Asked) {
            state.heard = Instant::now();
        }
        state.slots[usize::from(slot)] = Slot::Asked;
        if state.ring.queue.wants_kick() {
            self.transport.kick(CONTROL);
        }
    }

    fn failed(&self, verb: &'static str, error: ReplyError) -> Error {
        match error {
            ReplyError::Refused { status, reason } => {
                if reason == Reason::STALE_GENERATION {
                    self.loss.set("it was reset");
                }
                Error::refused(verb, status, reason)
            }
            ReplyError::Malformed { .. } => {
                self.loss.set("it answered a request with garbage");
                Error::Lost("it answered a request with garbage")
            }
        }
    }

    /// Takes the replies that are there, for whoever waits for them.
    pub(super) fn collect(&self) {
        let mut state = self.lock();
        self.collect_into(&mut state);
        drop(state);
        self.changed.notify_all();
    }

    fn collect_into(&self, state: &mut State) {
        loop {
            match state.ring.queue.take() {
                Ok(Some(used)) => {
                    let length = usize::try_from(used.length).unwrap_or(usize::MAX).min(REPLY_BYTES);
                    state.slots[usize::from(used.head / 2)] = Slot::Answered(length);
                    state.heard = Instant::now();
                }
                Ok(None) => return,
                Err(_) => {
                    self.loss.set("it broke the rules of the control queue");
                    return;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something has changed. A device that answers nothing for too long is lost.
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let patience = self.transport.patience();
        let asked = state.slots.contains(&Slot::Asked);
        let left = if asked { patience.saturating_sub(state.heard.elapsed()) } else { patience };
        let waited = self.changed.wait_timeout(state, left);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        self.collect_into(&mut state);
        if state.slots.contains(&Slot::Asked) && state.heard.elapsed() >= patience {
            self.loss.set("it has left a request unanswered for too long");
        }
        state
    }
}
