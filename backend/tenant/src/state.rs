//! The state of one guest, and what requests, updates of the memory table and teardown have in common.

use std::sync::Arc;

use virtio_rdma::Reason;
use virtio_rdma::config::Capabilities;
use virtio_rdma::memory::{Segment, check_cover, list_length};
use virtio_rdma::request::{Request, SegmentMode};
use zerocopy::{FromZeros, IntoBytes};

use crate::config::GuestConfig;
use crate::events::Events;
use crate::hca::{DeviceInfo, GuestId, Hca, HcaError, Iova, Piece, RingLayout, RingMemory};
use crate::host::Host;
use crate::memory::{GuestMemory, Pins, Range, RegionTable};
use crate::objects::{Base, Held, Objects, Parents};
use crate::relay::Relay;
use crate::stats::{Counters, Had};

/// How the device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The HCA is being brought up again.
    Starting,
    Ready,
    /// The HCA is lost for good, or the tenant is closed.
    Failed,
}

/// The state of one guest.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) host: Arc<Host>,
    pub(crate) guest: GuestId,
    pub(crate) config: GuestConfig,
    pub(crate) info: DeviceInfo,
    pub(crate) capabilities: Capabilities,
    pub(crate) phase: Phase,
    pub(crate) generation: u32,
    pub(crate) events: Arc<Events>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) memory: Arc<dyn GuestMemory>,
    pub(crate) relay: Arc<dyn Relay>,
    pub(crate) table: RegionTable,
    pub(crate) pins: Pins,
    pub(crate) registered_bytes: u64,
    pub(crate) objects: Objects,
    /// Objects that the HCA did not give back.
    pub(crate) quarantined: u32,
    /// Attachments to multicast groups.
    pub(crate) attachments: u32,
    /// The guest is gone.
    pub(crate) closed: bool,
}

/// The memory of a ring, found in the guest's memory; not mapped yet.
#[derive(Debug)]
pub(crate) struct Ring {
    ranges: Vec<Range>,
    pieces: Vec<Piece>,
    pub(crate) record: Option<Range>,
    record_iova: Option<Iova>,
    bytes: u64,
}

impl Ring {
    /// As the HCA wants to know it.
    pub(crate) fn memory(&self) -> RingMemory<'_> {
        RingMemory { ring: &self.pieces, record: self.record_iova }
    }

    /// The ring's pages.
    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }
}

impl State {
    /// What the guest has now.
    pub(crate) fn had(&self) -> Had {
        Had {
            generation: self.generation,
            registered_bytes: self.registered_bytes,
            mapped_bytes: self.pins.mapped_bytes(),
            objects: u32::try_from(self.objects.count()).unwrap_or(u32::MAX),
            quarantined: self.quarantined,
        }
    }

    pub(crate) fn hca(&self) -> Arc<dyn Hca> {
        Arc::clone(self.host.hca())
    }

    /// The segments of a request, read once.
    pub(crate) fn segments(&self, request: &Request<'_>) -> Result<Vec<Segment>, Reason> {
        let max = self.config.limits.segments;
        if request.header.segment_mode == SegmentMode::INDIRECT {
            return self.read_segments(request.segments, max);
        }
        match u32::try_from(request.segments.len()) {
            Ok(count) if count <= max => Ok(request.segments.to_vec()),
            _ => Err(Reason::TOO_MANY_SEGMENTS),
        }
    }

    fn read_segments(&self, pieces: &[Segment], max: u32) -> Result<Vec<Segment>, Reason> {
        let count = list_length(pieces, max)?;
        let count = usize::try_from(count).map_err(|_| Reason::TOO_MANY_SEGMENTS)?;
        let mut list = vec![Segment::new_zeroed(); count];
        let mut rest = list.as_mut_bytes();
        for piece in pieces {
            let length = usize::try_from(piece.length.get()).map_err(|_| Reason::TOO_MANY_SEGMENTS)?;
            let (to, later) = rest.split_at_mut_checked(length).ok_or(Reason::TOO_MANY_SEGMENTS)?;
            let range = self.table.find(piece.address.get(), piece.length.get())?;
            self.memory.read(&range.entry.region, range.start, to).map_err(|_| Reason::NOT_IN_MEMORY)?;
            rest = later;
        }
        Ok(list)
    }

    /// Where the memory of `length` bytes from `start` is that the segments describe.
    pub(crate) fn cover(
        &self,
        segments: &[Segment],
        start: u64,
        length: u64,
        written: bool,
    ) -> Result<Vec<Range>, Reason> {
        check_cover(segments, start, length)?;
        let find = |segment: &Segment| {
            let (address, length) = (segment.address.get(), segment.length.get());
            if written { self.table.find_writable(address, length) } else { self.table.find(address, length) }
        };
        segments.iter().map(find).collect()
    }

    /// The bus addresses of ranges; neighbours become one piece.
    pub(crate) fn pieces(&self, ranges: &[Range]) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::with_capacity(ranges.len());
        for range in ranges {
            let iova = self.pins.window().iova(range.guest_address());
            match pieces.last_mut() {
                Some(last) if last.iova.0 + last.length == iova.0 => last.length += range.length,
                _ => pieces.push(Piece { iova, length: range.length }),
            }
        }
        pieces
    }

    /// The ring and record of a request, as the HCA's layout wants them.
    pub(crate) fn ring(
        &self,
        request: &Request<'_>,
        record: u64,
        layout: RingLayout,
    ) -> Result<Ring, Reason> {
        let record = self.record(record, layout.record_bytes)?;
        let record_iova = record.as_ref().map(|range| self.pins.window().iova(range.guest_address()));
        let segments = self.segments(request)?;
        let mut ranges = match (layout.ring_bytes, segments.is_empty()) {
            (0, true) => Vec::new(),
            (0, false) => return Err(Reason::BAD_SEGMENT_SUM),
            (bytes, _) => self.cover(&segments, 0, bytes, layout.written)?,
        };
        let pieces = self.pieces(&ranges);
        ranges.extend(record.clone());
        Ok(Ring { ranges, pieces, record, record_iova, bytes: layout.ring_bytes })
    }

    /// A doorbell record: in writable memory, aligned to its size.
    fn record(&self, address: u64, bytes: u64) -> Result<Option<Range>, Reason> {
        match bytes {
            0 if address == 0 => Ok(None),
            0 => Err(Reason::MISMATCH),
            _ if !address.is_multiple_of(bytes) => Err(Reason::MISALIGNED),
            _ => self.table.find_writable(address, bytes).map(Some),
        }
    }

    /// Counts and maps memory for an object that shall have it.
    pub(crate) fn hold(&mut self, ranges: &[Range], bytes: u64) -> Result<Held, Reason> {
        let registered = self.registered_bytes.checked_add(bytes).ok_or(Reason::BYTE_LIMIT)?;
        if registered > self.config.limits.registered_bytes {
            return Err(Reason::BYTE_LIMIT);
        }
        let hca = self.hca();
        let chunks = self.pins.pin(&*hca, ranges)?;
        self.registered_bytes = registered;
        Ok(Held { chunks, bytes })
    }

    /// As [`State::hold`], for a ring.
    pub(crate) fn hold_ring(&mut self, ring: &Ring) -> Result<Held, Reason> {
        self.hold(&ring.ranges, ring.bytes)
    }

    /// The HCA is done with memory.
    pub(crate) fn release(&mut self, held: Held) {
        self.registered_bytes = self.registered_bytes.saturating_sub(held.bytes);
        let hca = self.hca();
        self.pins.unpin(&*hca, &held.chunks);
    }

    /// The HCA may not be done with memory: it stays mapped, and counted, until the HCA was reset.
    pub(crate) fn quarantine(&mut self, held: &Held) {
        self.pins.quarantine(&held.chunks);
        self.quarantined = self.quarantined.saturating_add(1);
    }

    /// Memory after the HCA was asked to create something in it, which uses `parents`.
    pub(crate) fn settle<T>(
        &mut self,
        held: Held,
        parents: &Parents,
        result: Result<T, HcaError>,
    ) -> Result<(T, Held), Reason> {
        match result {
            Ok(created) => Ok((created, held)),
            Err(error) => {
                if error.leaves_open() {
                    self.quarantine(&held);
                    self.objects.mark_parents_stuck(parents);
                } else {
                    self.release(held);
                }
                Err(error.reason())
            }
        }
    }

    /// Takes an object from the HCA and gives its memory back, or keeps it apart. With [`HcaError::Busy`]
    /// nothing has changed.
    pub(crate) fn withdraw<I: Copy>(
        &mut self,
        base: &mut Base<I>,
        destroy: impl FnOnce(&dyn Hca, I) -> Result<(), HcaError>,
    ) -> Result<(), HcaError> {
        let Some(id) = base.id else { return Ok(()) };
        let result = if base.stuck { Err(HcaError::Failed) } else { destroy(&*self.hca(), id) };
        if result == Err(HcaError::Busy) {
            return result;
        }
        base.id = None;
        let held = std::mem::take(&mut base.held);
        match result {
            Ok(()) => self.release(held),
            Err(_) => {
                self.quarantine(&held);
                self.objects.mark_parents_stuck(&base.parents);
            }
        }
        result
    }
}
