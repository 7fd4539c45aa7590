//! How large the rings are that a request asks for, and where they lie in their buffer.
//!
//! Everyone who computes a geometry must come to the same result as the one who programmed the context: the
//! HCA is told strides and numbers of entries only, and derives the rest.

use mlx4_wire::cqe::CQE_BYTES;
use mlx4_wire::ctx::qp::WqSize;
use mlx4_wire::wqe::{
    AtomicSeg, BYTE_COUNT_BYTES, BindSeg, CtrlSeg, DataSeg, DatagramSeg, MaskedAtomicSeg, RemoteAddressSeg,
    SQ_PREFETCH_BYTES, SrqNextSeg, WQE_CHUNK_BYTES, WQE_MAX_BYTES, WQE_UNIT_BYTES,
};

/// Greatest `max_inline` that may be asked for, in bytes.
pub const MAX_INLINE: u32 = 1023;

/// Bytes of a WQE of a special QP besides its data: control, packet headers inline, ICRC inline.
const MLX_OVERHEAD: u32 = 16 + 80 + 16;

/// What a ring is asked to hold can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} of {asked} exceeds {limit}")]
pub struct GeometryError {
    /// What was asked for.
    pub field: &'static str,
    /// How much of it.
    pub asked: u64,
    /// How much there may be.
    pub limit: u64,
}

fn at_most(field: &'static str, asked: u32, limit: u32) -> Result<u32, GeometryError> {
    if asked > limit {
        return Err(GeometryError { field, asked: asked.into(), limit: limit.into() });
    }
    Ok(asked)
}

/// Size of a segment in bytes.
const fn segment_bytes<T>() -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "at most a chunk")]
    let bytes = size_of::<T>() as u32;
    bytes
}

/// log2 of the smallest power of two that holds `count`; 0 for 0.
const fn log2_ceil(count: u32) -> u8 {
    // At most 32, which fits.
    #[expect(clippy::cast_possible_truncation, reason = "at most 32")]
    let log2 = (32 - count.saturating_sub(1).leading_zeros()) as u8;
    log2
}

/// log2 of the most WQEs that a context can tell: four bits.
const LOG2_WQES: u8 = 15;

/// Most pieces that the largest stride of a context, 2048 bytes, has room for.
const MAX_RECEIVE_SGES: u32 = 2048 / WQE_UNIT_BYTES;

/// log2 of the most CQEs that 24-bit indexes can tell apart.
const LOG2_CQES: u8 = 23;

/// Limits of a device, as QUERY_DEV_CAP reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// log2 of the WQEs of a send or receive queue.
    pub log2_max_wqes: u8,
    /// log2 of the WQEs of an SRQ.
    pub log2_max_srq_wqes: u8,
    /// log2 of the CQEs of a CQ.
    pub log2_max_cqes: u8,
    /// Largest send WQE in bytes.
    pub max_send_wqe: u32,
    /// Largest receive WQE in bytes.
    pub max_receive_wqe: u32,
    /// Most pieces of a send request.
    pub max_send_sges: u32,
    /// Most pieces of a receive request.
    pub max_receive_sges: u32,
}

impl QueueLimits {
    fn wqes(&self) -> u32 {
        1 << self.log2_max_wqes.min(LOG2_WQES)
    }

    fn srq_wqes(&self) -> u32 {
        1 << self.log2_max_srq_wqes.min(LOG2_WQES)
    }

    fn cqes(&self) -> u32 {
        1 << self.log2_max_cqes.min(LOG2_CQES)
    }
}

/// What a masked compare and swap has more between control and data than other requests of RC, in bytes.
pub const MASKED_SWAP_RESERVE: u32 = segment_bytes::<MaskedAtomicSeg>();

/// What an LSO request with a header of so many bytes has more between control and data than other requests
/// of UD, in bytes.
pub const fn lso_reserve(header: u16) -> u32 {
    (BYTE_COUNT_BYTES + header as u32).next_multiple_of(WQE_UNIT_BYTES)
}

/// Which WQEs a send queue takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// Reliable connection.
    Rc,
    /// Unreliable connection.
    Uc,
    /// Unreliable datagram.
    Ud,
    /// Extended reliable connection: what is sent names the SRQ at the other end.
    Xrc,
    /// A special QP (QP0, QP1): the requests carry packet headers.
    Mlx,
}

impl Service {
    /// Bytes between the control segment and the data, at most.
    const fn before_data(self) -> u32 {
        match self {
            Self::Ud => segment_bytes::<DatagramSeg>(),
            Self::Rc | Self::Uc | Self::Xrc => segment_bytes::<RemoteAddressSeg>(),
            Self::Mlx => MLX_OVERHEAD - segment_bytes::<CtrlSeg>(),
        }
    }

    /// The least that a WQE has behind the control segment: RC and XRC must hold an atomic, RC and UC a bind.
    const fn least_body(self) -> u32 {
        match self {
            Self::Rc | Self::Xrc => {
                segment_bytes::<RemoteAddressSeg>()
                    + segment_bytes::<AtomicSeg>()
                    + segment_bytes::<DataSeg>()
            }
            _ => segment_bytes::<BindSeg>(),
        }
    }
}

/// What a send queue shall hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendSize {
    /// Requests that may be outstanding.
    pub requests: u32,
    /// Pieces of a gather list.
    pub sges: u32,
    /// Bytes of inline data.
    pub inline: u32,
}

/// A send queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendGeometry {
    service: Service,
    log2_stride: u8,
    log2_entries: u8,
    max_wqe: u32,
    max_sges: u32,
}

impl SendGeometry {
    /// The geometry of a queue that holds at least `size`.
    ///
    /// # Errors
    /// A limit of the device is exceeded.
    pub fn new(service: Service, size: SendSize, limits: &QueueLimits) -> Result<Self, GeometryError> {
        Self::reserving(service, size, 0, limits)
    }

    /// The geometry of a queue that holds at least `size`, where data leaves room for `reserve` bytes more:
    /// [`MASKED_SWAP_RESERVE`] for masked compare and swap, [`lso_reserve`] for LSO.
    ///
    /// # Errors
    /// A limit of the device is exceeded.
    pub fn reserving(
        service: Service,
        size: SendSize,
        reserve: u32,
        limits: &QueueLimits,
    ) -> Result<Self, GeometryError> {
        at_most("bytes reserved", reserve, WQE_MAX_BYTES)?;
        let max_wqe = limits.max_send_wqe.min(WQE_MAX_BYTES);
        at_most("send requests", size.requests, limits.wqes())?;
        at_most("send pieces", size.sges, limits.max_send_sges.min(WQE_MAX_BYTES / WQE_UNIT_BYTES))?;
        at_most("inline bytes", size.inline, MAX_INLINE)?;
        let data = (size.sges * WQE_UNIT_BYTES).max(inline_room(service, size.inline));
        let body = (service.before_data() + reserve + data).max(service.least_body());
        let wqe = at_most("bytes of a send request", segment_bytes::<CtrlSeg>() + body, max_wqe)?;
        let log2_stride = log2_ceil(wqe.max(WQE_CHUNK_BYTES));
        let slots =
            at_most("send requests and headroom", size.requests.max(1) + spare(log2_stride), limits.wqes())?;
        Ok(Self {
            service,
            log2_stride,
            log2_entries: log2_ceil(slots),
            max_wqe,
            max_sges: limits.max_send_sges,
        })
    }

    /// Which WQEs the queue takes.
    pub const fn service(&self) -> Service {
        self.service
    }

    /// Distance of slots in bytes, a power of two.
    pub const fn stride(&self) -> u32 {
        1 << self.log2_stride
    }

    /// Number of slots, a power of two.
    pub const fn entries(&self) -> u32 {
        1 << self.log2_entries
    }

    /// Slots behind the last request that are kept invalid, because the HCA may fetch so far.
    pub const fn spare(&self) -> u32 {
        spare(self.log2_stride)
    }

    /// Requests that may be outstanding.
    pub const fn requests(&self) -> u32 {
        self.entries() - self.spare()
    }

    /// Bytes that one WQE may have.
    pub const fn wqe_bytes(&self) -> u32 {
        if self.stride() < self.max_wqe { self.stride() } else { self.max_wqe }
    }

    /// Bytes of a WQE that are left for data.
    const fn room(&self) -> u32 {
        self.wqe_bytes() - segment_bytes::<CtrlSeg>() - self.service.before_data()
    }

    /// Pieces that any request may gather.
    pub const fn max_sges(&self) -> u32 {
        let fit = self.room() / WQE_UNIT_BYTES;
        if fit < self.max_sges { fit } else { self.max_sges }
    }

    /// Bytes that any request may carry inline: each chunk of the WQE has a header of its own.
    pub const fn max_inline(&self) -> u32 {
        match self.service {
            Service::Mlx => 0,
            _ => self.room() - BYTE_COUNT_BYTES * self.room().div_ceil(WQE_CHUNK_BYTES),
        }
    }

    /// Size in bytes.
    pub const fn bytes(&self) -> u32 {
        self.entries() << self.log2_stride
    }

    /// The byte of the QP context that tells the size.
    pub const fn wq_size(&self) -> WqSize {
        WqSize::new().with_log2_entries(self.log2_entries).with_log2_stride_less_4(self.log2_stride - 4)
    }
}

const fn spare(log2_stride: u8) -> u32 {
    (SQ_PREFETCH_BYTES >> log2_stride) + 1
}

/// Bytes that inline data takes in a WQE, headers included, at worst.
const fn inline_room(service: Service, inline: u32) -> u32 {
    if inline == 0 {
        return 0;
    }
    // The data of UD starts at a chunk; that of the others has 32 bytes of its first chunk at worst.
    let before = match service {
        Service::Ud => 0,
        _ => 32,
    };
    let headers = (inline + before).div_ceil(WQE_CHUNK_BYTES - BYTE_COUNT_BYTES);
    (inline + BYTE_COUNT_BYTES * headers).next_multiple_of(WQE_UNIT_BYTES)
}

/// A receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveGeometry {
    log2_stride: u8,
    log2_entries: u8,
}

impl ReceiveGeometry {
    /// The geometry of a queue that holds `requests` requests of up to `sges` pieces each.
    ///
    /// # Errors
    /// A limit of the device is exceeded.
    pub fn new(requests: u32, sges: u32, limits: &QueueLimits) -> Result<Self, GeometryError> {
        at_most("receive requests", requests, limits.wqes())?;
        at_most("receive pieces", sges, limits.max_receive_sges.min(MAX_RECEIVE_SGES))?;
        let stride = WQE_UNIT_BYTES << log2_ceil(sges.max(1));
        at_most("bytes of a receive request", stride, limits.max_receive_wqe)?;
        Ok(Self { log2_stride: log2_ceil(stride), log2_entries: log2_ceil(requests.max(1)) })
    }

    /// Distance of slots in bytes, a power of two.
    pub const fn stride(&self) -> u32 {
        1 << self.log2_stride
    }

    /// Number of slots, a power of two; as many requests may be outstanding.
    pub const fn entries(&self) -> u32 {
        1 << self.log2_entries
    }

    /// Pieces of a request.
    pub const fn max_sges(&self) -> u32 {
        self.stride() / WQE_UNIT_BYTES
    }

    /// Size in bytes.
    pub const fn bytes(&self) -> u32 {
        self.entries() << self.log2_stride
    }

    /// The byte of the QP context that tells the size.
    pub const fn wq_size(&self) -> WqSize {
        WqSize::new().with_log2_entries(self.log2_entries).with_log2_stride_less_4(self.log2_stride - 4)
    }
}

/// The buffer that a QP's two queues share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpLayout {
    /// The send queue.
    pub send: SendGeometry,
    /// The receive queue; `None` with an SRQ.
    pub receive: Option<ReceiveGeometry>,
}

impl QpLayout {
    /// Where the send queue starts, in bytes: the queue with the larger stride is first, the send queue if
    /// they are equal.
    pub fn send_offset(&self) -> usize {
        match self.receive {
            Some(receive) if receive.stride() > self.send.stride() => receive.bytes() as usize,
            _ => 0,
        }
    }

    /// Where the receive queue starts, in bytes.
    pub fn receive_offset(&self) -> usize {
        if self.send_offset() == 0 { self.send.bytes() as usize } else { 0 }
    }

    /// Size of the buffer in bytes.
    pub fn bytes(&self) -> usize {
        self.send.bytes() as usize + self.receive.map_or(0, |receive| receive.bytes() as usize)
    }
}

/// A shared receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SrqGeometry {
    log2_stride: u8,
    log2_entries: u8,
}

impl SrqGeometry {
    /// The geometry of an SRQ that holds `requests` requests of up to `sges` pieces each.
    ///
    /// # Errors
    /// A limit of the device is exceeded.
    pub fn new(requests: u32, sges: u32, limits: &QueueLimits) -> Result<Self, GeometryError> {
        at_most("SRQ requests", requests, limits.srq_wqes() - 1)?;
        at_most("SRQ pieces", sges, limits.max_receive_sges.min(MAX_RECEIVE_SGES - 1))?;
        let wqe = segment_bytes::<SrqNextSeg>() + WQE_UNIT_BYTES * sges.max(1);
        let log2_stride = log2_ceil(wqe);
        at_most("bytes of an SRQ request", 1 << log2_stride, limits.max_receive_wqe)?;
        Ok(Self { log2_stride, log2_entries: log2_ceil(requests.max(1) + 1) })
    }

    /// Distance of slots in bytes, a power of two.
    pub const fn stride(&self) -> u32 {
        1 << self.log2_stride
    }

    /// log2 of the distance of slots.
    pub const fn log2_stride(&self) -> u8 {
        self.log2_stride
    }

    /// Number of slots, a power of two; one is never posted.
    pub const fn entries(&self) -> u32 {
        1 << self.log2_entries
    }

    /// log2 of the number of slots.
    pub const fn log2_entries(&self) -> u8 {
        self.log2_entries
    }

    /// Requests that may be outstanding.
    pub const fn requests(&self) -> u32 {
        self.entries() - 1
    }

    /// Pieces of a request.
    pub const fn max_sges(&self) -> u32 {
        (self.stride() - segment_bytes::<SrqNextSeg>()) / WQE_UNIT_BYTES
    }

    /// Size in bytes.
    pub const fn bytes(&self) -> u32 {
        self.entries() << self.log2_stride
    }
}

/// A completion queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CqGeometry {
    log2_entries: u8,
    wide: bool,
}

impl CqGeometry {
    /// The geometry of a CQ that holds `completions` unread ones.
    ///
    /// # Errors
    /// A limit of the device is exceeded.
    pub fn new(completions: u32, limits: &QueueLimits) -> Result<Self, GeometryError> {
        at_most("completions", completions, limits.cqes() - 1)?;
        Ok(Self { log2_entries: log2_ceil(completions.max(1) + 1), wide: false })
    }

    /// The same with entries of 64 bytes, if so: as the HCA was told at `INIT_HCA`.
    pub const fn with_wide_entries(self, wide: bool) -> Self {
        Self { wide, ..self }
    }

    /// Whether entries have 64 bytes; they have 32 otherwise.
    pub const fn wide_entries(&self) -> bool {
        self.wide
    }

    /// Distance of entries in bytes. The last 32 of them are described.
    pub const fn entry_bytes(&self) -> u32 {
        if self.wide { 2 * CQE_BYTES } else { CQE_BYTES }
    }

    /// Number of entries, a power of two.
    pub const fn entries(&self) -> u32 {
        1 << self.log2_entries
    }

    /// log2 of the number of entries.
    pub const fn log2_entries(&self) -> u8 {
        self.log2_entries
    }

    /// Completions that may be unread: one entry is left for the marker of a resize.
    pub const fn completions(&self) -> u32 {
        self.entries() - 1
    }

    /// Size in bytes.
    pub const fn bytes(&self) -> u32 {
        self.entries() * self.entry_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::LIMITS;

    fn send(service: Service, requests: u32, sges: u32, inline: u32) -> SendGeometry {
        SendGeometry::new(service, SendSize { requests, sges, inline }, &LIMITS).unwrap()
    }

    #[test]
    fn smallest_rc_queue_has_a_stride_of_one_chunk_and_room_for_two_pieces() {
        let q = send(Service::Rc, 1, 1, 0);
        assert_eq!((q.stride(), q.spare(), q.entries(), q.requests()), (64, 33, 64, 31));
        assert_eq!((q.max_sges(), q.max_inline()), (2, 28));
        assert_eq!(q.wq_size().into_bits(), 6 << 3 | 2);
    }

    #[test]
    fn inline_of_perftest_makes_a_stride_of_512() {
        let q = send(Service::Rc, 128, 1, 236);
        assert_eq!((q.stride(), q.spare()), (512, 5));
        assert!(q.max_inline() >= 236);
        assert_eq!(q.entries(), 256);
    }

    #[test]
    fn ud_queue_counts_the_datagram_segment() {
        let q = send(Service::Ud, 256, 1, 0);
        assert_eq!((q.stride(), q.max_sges(), q.max_inline()), (128, 4, 60));
    }

    #[test]
    fn largest_wqe_is_of_63_units() {
        let q = send(Service::Rc, 16, 32, 900);
        assert_eq!((q.stride(), q.wqe_bytes(), q.max_inline(), q.max_sges()), (1024, 1008, 912, 32));
    }

    #[test]
    fn request_beyond_a_limit_is_refused_with_its_name() {
        let ask = |requests, sges, inline| {
            SendGeometry::new(Service::Rc, SendSize { requests, sges, inline }, &LIMITS).unwrap_err()
        };
        assert_eq!(ask(16_352, 1, 0).to_string(), "send requests and headroom of 16385 exceeds 16384");
        assert_eq!(ask(1, 33, 0).field, "send pieces");
        assert_eq!(ask(1, 1, 1024).field, "inline bytes");
        assert_eq!(ask(1, 1, 1000).field, "bytes of a send request");
        assert_eq!(ask(u32::MAX, 1, 0).field, "send requests");
        assert_eq!(ReceiveGeometry::new(1, 33, &LIMITS).unwrap_err().field, "receive pieces");
        assert_eq!(SrqGeometry::new(16_384, 1, &LIMITS).unwrap_err().field, "SRQ requests");
        assert_eq!(CqGeometry::new(1 << 22, &LIMITS).unwrap_err().field, "completions");
    }

    #[test]
    fn greatest_queue_has_the_requests_that_the_stock_driver_reports() {
        assert_eq!(send(Service::Rc, 16_351, 1, 0).requests(), 16_351);
    }

    #[test]
    fn queue_with_the_larger_stride_is_first() {
        let receive = |sges| Some(ReceiveGeometry::new(4, sges, &LIMITS).unwrap());
        let send = send(Service::Rc, 1, 1, 0);
        let wide = QpLayout { send, receive: receive(8) };
        assert_eq!((wide.send_offset(), wide.receive_offset(), wide.bytes()), (512, 0, 512 + 4096));
        let equal = QpLayout { send, receive: receive(4) };
        assert_eq!((equal.send_offset(), equal.receive_offset()), (0, 4096));
        let none = QpLayout { send, receive: None };
        assert_eq!((none.send_offset(), none.bytes()), (0, 4096));
    }

    #[test]
    fn receive_srq_and_cq_round_up() {
        let rq = ReceiveGeometry::new(100, 3, &LIMITS).unwrap();
        assert_eq!((rq.entries(), rq.stride(), rq.max_sges()), (128, 64, 4));
        let srq = SrqGeometry::new(127, 1, &LIMITS).unwrap();
        assert_eq!((srq.entries(), srq.stride(), srq.requests(), srq.max_sges()), (128, 32, 127, 1));
        let cq = CqGeometry::new(256, &LIMITS).unwrap();
        assert_eq!((cq.entries(), cq.completions(), cq.bytes()), (512, 511, 16384));
    }
}
