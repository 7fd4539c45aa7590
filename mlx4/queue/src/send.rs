//! The send queue.

use mlx4_wire::Number24;
use mlx4_wire::doorbell::SendDoorbell;
use mlx4_wire::wqe::{CtrlOpcode, CtrlSeg, CtrlSize, Opcode, WQE_UNIT_BYTES};
use zerocopy::{FromZeros, IntoBytes};

use crate::build::build;
use crate::completion::{PostedSend, brings_bytes};
use crate::geometry::{SendGeometry, Service};
use crate::record::{Place, PlaceError};
use crate::request::{Data, Operation, PostError, SendRequest, Sge, room};
use crate::wqe::{Finished, WqeWriter, stamp};
use crate::{Doorbell, RingMemory};

/// Bytes of the data of an atomic.
const ATOMIC_BYTES: u32 = 8;

/// Most bytes of an LSO header: what its count can tell.
const MAX_HEADER: usize = 0xffff;

/// A slot, as this side remembers it.
#[derive(Clone, Copy, Debug)]
struct Slot {
    posted: PostedSend,
    /// Size of the WQE that was there last, in bytes.
    bytes: usize,
}

impl Slot {
    const NEW: Self = Self { posted: PostedSend { wr_id: 0, opcode: Opcode::NOP, room: 0 }, bytes: 0 };
}

/// The send queue of a QP.
///
/// Requests complete in order. One that isn't signalled completes with the next one that has a completion.
pub struct SendQueue<M, D> {
    place: Place<M>,
    geometry: SendGeometry,
    qpn: u32,
    doorbell: D,
    slots: Box<[Slot]>,
    /// Count of requests posted, modulo 2^32.
    head: u32,
    /// Count of requests completed, modulo 2^32.
    tail: u32,
}

impl<M: RingMemory, D: Doorbell> SendQueue<M, D> {
    /// The send queue of QP `qpn` (24 bits, the rest is cut off) at a place. Writes nothing: [`SendQueue::reset`] does.
    ///
    /// # Errors
    /// The ring isn't inside the memory, or not aligned to 64 bytes.
    pub fn new(place: Place<M>, geometry: SendGeometry, qpn: u32, doorbell: D) -> Result<Self, PlaceError> {
        place.check(geometry.bytes() as usize, 64)?;
        let slots = vec![Slot::NEW; geometry.entries() as usize].into_boxed_slice();
        Ok(Self { place, geometry, qpn: qpn & Number24::MAX, doorbell, slots, head: 0, tail: 0 })
    }

    /// The geometry.
    pub fn geometry(&self) -> &SendGeometry {
        &self.geometry
    }

    /// Empties the queue and marks every slot as not valid: before the QP leaves RESET, and not while the
    /// HCA works on it.
    pub fn reset(&mut self) {
        (self.head, self.tail) = (0, 0);
        let stride = self.geometry.stride() as usize;
        let mut ctrl = CtrlSeg::new_zeroed();
        ctrl.opcode = CtrlOpcode::new().with_owner(true);
        ctrl.size = CtrlSize::new().with_units(self.geometry.wqe_bytes() / WQE_UNIT_BYTES);
        for (slot, at) in self.slots.iter_mut().zip((self.place.offset..).step_by(stride)) {
            self.place.memory.write(at, ctrl.as_bytes());
            stamp(&self.place.memory, at, stride);
            slot.bytes = 0;
        }
    }

    /// Requests that can be posted now.
    pub fn free(&self) -> u32 {
        self.geometry.requests() - self.head.wrapping_sub(self.tail)
    }

    /// The 16-bit counter of the next request that is posted.
    pub fn next_index(&self) -> u16 {
        (self.head & 0xffff) as u16
    }

    /// Whether no request is outstanding.
    pub fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Posts a request of any service but XRC. The HCA may see it at once, and certainly does after
    /// [`SendQueue::ring`].
    ///
    /// # Errors
    /// The queue is full, or the request isn't one for this queue; the queue is then as before.
    pub fn post(&mut self, request: &SendRequest<'_>) -> Result<(), PostError> {
        if self.geometry.service() == Service::Xrc {
            return Err(PostError::RemoteSrq);
        }
        self.post_to(request, 0)
    }

    /// Posts a request of XRC; `remote_srqn` is the SRQ at the other end (24 bits, the rest is cut off), which
    /// counts where the request takes a receive request there. Else as [`SendQueue::post`].
    ///
    /// # Errors
    /// As for [`SendQueue::post`].
    pub fn post_xrc(&mut self, request: &SendRequest<'_>, remote_srqn: u32) -> Result<(), PostError> {
        if self.geometry.service() != Service::Xrc {
            return Err(PostError::RemoteSrq);
        }
        self.post_to(request, remote_srqn & Number24::MAX)
    }

    fn post_to(&mut self, request: &SendRequest<'_>, remote_srqn: u32) -> Result<(), PostError> {
        if self.free() == 0 {
            return Err(PostError::Full);
        }
        self.check(request)?;
        let room = match request.data {
            Data::Pieces(pieces) => room(pieces),
            Data::Inline(_) | Data::Segmented { .. } => 0,
        };
        self.write(request.wr_id, room, |wqe| build(wqe, request, remote_srqn))
    }

    /// Posts a request that the caller builds, control segment first (owner bit and size are filled in). If it
    /// is a read, the caller sees to it that what comes isn't longer than what it has asked for.
    ///
    /// # Errors
    /// The queue is full, or what was built doesn't fit in a slot; the queue is then as before.
    pub fn post_with(
        &mut self,
        wr_id: u64,
        build: impl FnOnce(&mut WqeWriter<'_, M>),
    ) -> Result<(), PostError> {
        if self.free() == 0 {
            return Err(PostError::Full);
        }
        self.write(wr_id, u32::MAX, build)
    }

    /// Rings the doorbell for all that was posted.
    pub fn ring(&self) {
        self.doorbell.ring(u64::from(SendDoorbell::new().with_qpn(self.qpn).into_bits().get()));
    }

    fn slot_offset(&self, counter: u32) -> usize {
        self.place.offset + self.index(counter) * self.geometry.stride() as usize
    }

    fn index(&self, counter: u32) -> usize {
        (counter & (self.geometry.entries() - 1)) as usize
    }

    /// Writes a request into the next slot; `room` counts only if it brings bytes.
    fn write(
        &mut self,
        wr_id: u64,
        room: u32,
        build: impl FnOnce(&mut WqeWriter<'_, M>),
    ) -> Result<(), PostError> {
        // All slots of the headroom behind this request are marked but the last.
        let last = self.head.wrapping_add(self.geometry.spare());
        stamp(&self.place.memory, self.slot_offset(last), self.slots[self.index(last)].bytes);
        let slot = self.slot_offset(self.head);
        let mut wqe = WqeWriter::new(&self.place.memory, slot, self.geometry.wqe_bytes() as usize);
        build(&mut wqe);
        let Some(Finished { bytes, opcode }) = wqe.finish(self.head & self.geometry.entries() != 0) else {
            stamp(&self.place.memory, slot, self.geometry.stride() as usize);
            return Err(PostError::TooLarge(self.geometry.wqe_bytes()));
        };
        let index = self.index(self.head);
        let room = if brings_bytes(opcode) { room } else { 0 };
        self.slots[index] = Slot { posted: PostedSend { wr_id, opcode, room }, bytes };
        self.head = self.head.wrapping_add(1);
        Ok(())
    }

    fn check(&self, request: &SendRequest<'_>) -> Result<(), PostError> {
        let service = self.geometry.service();
        if !offered(service, &request.operation) {
            return Err(PostError::Operation);
        }
        match request.destination {
            Some(to) if service == Service::Ud && to.qpn > Number24::MAX => {
                return Err(PostError::Qpn(to.qpn));
            }
            Some(_) if service == Service::Ud => {}
            None if service != Service::Ud => {}
            _ => return Err(PostError::Destination),
        }
        match request.data {
            _ if !request.operation.takes_data() => Ok(()),
            Data::Pieces(pieces) => self.check_pieces(&request.operation, pieces),
            Data::Inline(pieces) => self.check_inline(&request.operation, pieces),
            Data::Segmented { header, segment, pieces } => {
                let sends = service == Service::Ud && request.operation == Operation::Send;
                if !sends || header.is_empty() || header.len() > MAX_HEADER || segment == 0 {
                    return Err(PostError::Segmented);
                }
                self.check_pieces(&request.operation, pieces)
            }
        }
    }

    fn check_pieces(&self, operation: &Operation, pieces: &[Sge]) -> Result<(), PostError> {
        let most = self.geometry.max_sges();
        if pieces.len() > most as usize {
            return Err(PostError::TooManyPieces(pieces.len(), most));
        }
        if let Some(long) = pieces.iter().find(|piece| piece.length > i32::MAX as u32) {
            return Err(PostError::PieceTooLong(long.length));
        }
        if operation.is_atomic() && (pieces.len() != 1 || pieces[0].length != ATOMIC_BYTES) {
            return Err(PostError::AtomicData);
        }
        Ok(())
    }

    fn check_inline(&self, operation: &Operation, pieces: &[&[u8]]) -> Result<(), PostError> {
        if operation.is_atomic() || matches!(operation, Operation::Read(_)) {
            return Err(PostError::Inline);
        }
        let most = self.geometry.max_inline();
        let sum = pieces.iter().fold(0usize, |sum, piece| sum.saturating_add(piece.len()));
        if sum > most as usize {
            return Err(PostError::TooMuchInline(sum, most));
        }
        Ok(())
    }
}

impl<M, D> SendQueue<M, D> {
    /// Takes the completion of the request with the 16-bit counter `wqe_index`, and of all unsignalled ones
    /// before it. `None` if no such request is outstanding.
    pub fn complete(&mut self, wqe_index: u16) -> Option<PostedSend> {
        // The low 16 bits count as the HCA does.
        let ahead = u32::from(wqe_index.wrapping_sub((self.tail & 0xffff) as u16));
        if ahead >= self.head.wrapping_sub(self.tail) {
            return None;
        }
        let done = self.tail.wrapping_add(ahead);
        self.tail = done.wrapping_add(1);
        self.slots.get((done & (self.geometry.entries() - 1)) as usize).map(|slot| slot.posted)
    }
}

fn offered(service: Service, operation: &Operation) -> bool {
    let any = |services: &[Service]| services.contains(&service);
    match operation {
        Operation::Nop => true,
        Operation::Send | Operation::SendImm(_) => service != Service::Mlx,
        Operation::Write(_) | Operation::WriteImm(..) => any(&[Service::Rc, Service::Uc, Service::Xrc]),
        Operation::Bind(_) | Operation::LocalInvalidate(_) | Operation::FastRegister(_) => {
            any(&[Service::Rc, Service::Uc])
        }
        Operation::MaskedCompareSwap { .. } | Operation::MaskedFetchAdd { .. } => service == Service::Rc,
        Operation::SendInvalidate(_)
        | Operation::Read(_)
        | Operation::CompareSwap { .. }
        | Operation::FetchAdd { .. } => any(&[Service::Rc, Service::Xrc]),
    }
}

impl<M, D> std::fmt::Debug for SendQueue<M, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendQueue")
            .field("qpn", &self.qpn)
            .field("geometry", &self.geometry)
            .field("head", &self.head)
            .field("tail", &self.tail)
            .finish_non_exhaustive()
    }
}
