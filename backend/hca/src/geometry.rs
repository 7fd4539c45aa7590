//! The queue format's parameters on a card, and the layout of rings. The guest's library and the HCA derive the
//! same from the same numbers: see `docs/virtio-rdma.md`, section 9.

use mlx4_wire::cqe::CQE_BYTES;
use mlx4_wire::ctx::qp::WqSize;
use mlx4_wire::wqe::{
    BYTE_COUNT_BYTES, CtrlSeg, DatagramSeg, RemoteAddressSeg, SQ_PREFETCH_BYTES, SrqNextSeg, WQE_CHUNK_BYTES,
    WQE_MAX_BYTES, WQE_UNIT_BYTES,
};
use paraverbs_tenant::hca::{
    CqGeometry, HcaError, Mlx4Parameters, QpGeometry, QpKind, QueueGeometry, RingLayout, SrqGeometry,
};

/// Rings are whole pages of 4 KiB.
const PAGE: u64 = 4096;
/// log2 of the smallest strides in bytes: a chunk, one data segment, one data segment behind the link.
const LOG2_SEND_STRIDE: u8 = 6;
const LOG2_RECEIVE_STRIDE: u8 = 4;
const LOG2_SRQ_STRIDE: u8 = 5;
/// log2 of the most WQEs that a context can tell: four bits.
const LOG2_WQES: u8 = 15;
/// log2 of the most CQEs that 24-bit indexes can tell apart.
const LOG2_CQES: u8 = 23;
/// WQEs of a send queue that stay empty besides those that the HCA may fetch ahead.
const SPARE_WQES: u8 = 1;
/// Doorbell records in bytes.
const CQ_RECORD: u8 = 8;
const RECEIVE_RECORD: u8 = 4;

/// Bytes of a segment.
const fn segment<T>() -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "at most a chunk")]
    let bytes = size_of::<T>() as u32;
    bytes
}

/// Limits of a card's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueLimits {
    pub(crate) log2_wqes: u8,
    pub(crate) log2_srq_wqes: u8,
    pub(crate) log2_cqes: u8,
    pub(crate) max_send_wqe: u32,
    pub(crate) max_receive_wqe: u32,
    pub(crate) max_send_sges: u32,
    pub(crate) max_receive_sges: u32,
    /// Size of a CQE in bytes.
    pub(crate) cqe_bytes: u32,
}

impl QueueLimits {
    pub(crate) fn of(driver: &mlx4::Hca) -> Self {
        let queues = &driver.capabilities().queues;
        Self {
            log2_wqes: queues.log2_max_wqes.min(LOG2_WQES),
            log2_srq_wqes: queues.log2_max_srq_wqes.min(LOG2_WQES),
            log2_cqes: queues.log2_max_cqes.min(LOG2_CQES),
            max_send_wqe: queues.max_send_wqe.min(WQE_MAX_BYTES),
            max_receive_wqe: queues.max_receive_wqe,
            max_send_sges: queues.max_send_sges,
            max_receive_sges: queues.max_receive_sges,
            cqe_bytes: if driver.profile().wide_cqes { 2 * CQE_BYTES } else { CQE_BYTES },
        }
    }

    /// Most scatter elements of an SRQ's WQE, whose stride is a power of two.
    pub(crate) fn max_srq_sges(&self) -> u32 {
        let largest = 1 << self.max_receive_wqe.max(1).ilog2();
        self.max_receive_sges.min(u32::saturating_sub(largest, segment::<SrqNextSeg>()) / WQE_UNIT_BYTES)
    }

    /// Most work requests of a send or receive queue: those of a send queue with the smallest stride.
    pub(crate) fn max_wr(&self) -> u32 {
        (1u32 << self.log2_wqes).saturating_sub(headroom(LOG2_SEND_STRIDE))
    }

    /// The parameters that guests are told.
    pub(crate) fn parameters(&self) -> Mlx4Parameters {
        // None of them exceeds 16 bits: the card's own fields are of 16 bits at most.
        let word = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        Mlx4Parameters {
            cqe_bytes: word(self.cqe_bytes),
            max_send_wqe_bytes: word(self.max_send_wqe),
            max_receive_wqe_bytes: word(self.max_receive_wqe),
            max_send_sge: word(self.max_send_sges),
            max_receive_sge: word(self.max_receive_sges),
            max_srq_sge: word(self.max_srq_sges()),
            max_inline_bytes: word(inline(self.max_send_wqe - before_data(QpKind::Rc))),
            headroom_bytes: word(SQ_PREFETCH_BYTES),
            headroom_wqes: SPARE_WQES,
            log2_min_send_stride: LOG2_SEND_STRIDE,
            log2_min_receive_stride: LOG2_RECEIVE_STRIDE,
            log2_min_srq_stride: LOG2_SRQ_STRIDE,
            log2_max_wqes: self.log2_wqes,
            log2_max_srq_wqes: self.log2_srq_wqes,
            log2_max_cqes: self.log2_cqes,
            cq_record_bytes: CQ_RECORD,
            receive_record_bytes: RECEIVE_RECORD,
        }
    }
}

/// WQEs of a send queue that stay empty.
fn headroom(log2_stride: u8) -> u32 {
    (SQ_PREFETCH_BYTES >> log2_stride) + u32::from(SPARE_WQES)
}

/// Bytes of a send WQE before its data.
const fn before_data(kind: QpKind) -> u32 {
    let address = match kind {
        QpKind::Ud => segment::<DatagramSeg>(),
        _ => segment::<RemoteAddressSeg>(),
    };
    segment::<CtrlSeg>() + address
}

/// Inline data that fits in so many bytes: each chunk has a header of its own.
fn inline(room: u32) -> u32 {
    room.saturating_sub(BYTE_COUNT_BYTES * room.div_ceil(WQE_CHUNK_BYTES))
}

fn check(good: bool) -> Result<(), HcaError> {
    if good { Ok(()) } else { Err(HcaError::Geometry) }
}

/// log2 of the largest stride that WQEs of so many bytes need.
fn log2_largest_stride(max_wqe: u32) -> u8 {
    // At most 31.
    u8::try_from(max_wqe.next_power_of_two().ilog2()).unwrap_or(0)
}

fn layout(bytes: u64, record: u8, written: bool) -> RingLayout {
    RingLayout { ring_bytes: bytes.next_multiple_of(PAGE), record_bytes: record.into(), written }
}

pub(crate) fn cq(limits: QueueLimits, geometry: &CqGeometry) -> Result<RingLayout, HcaError> {
    let entries = geometry.entries;
    check(entries.is_power_of_two() && (2..=1 << limits.log2_cqes).contains(&entries))?;
    Ok(layout(u64::from(entries) * u64::from(limits.cqe_bytes), CQ_RECORD, true))
}

pub(crate) fn srq(limits: QueueLimits, geometry: &SrqGeometry) -> Result<RingLayout, HcaError> {
    let largest = limits.max_receive_wqe.max(1).ilog2();
    check((1..=limits.log2_srq_wqes).contains(&geometry.log2_wqes))?;
    check(geometry.log2_stride >= LOG2_SRQ_STRIDE && u32::from(geometry.log2_stride) <= largest)?;
    let sges = ((1 << geometry.log2_stride) - segment::<SrqNextSeg>()) / WQE_UNIT_BYTES;
    check(geometry.max_wr < 1 << geometry.log2_wqes && geometry.max_sge <= sges.min(limits.max_srq_sges()))?;
    Ok(layout(1 << (geometry.log2_wqes + geometry.log2_stride), RECEIVE_RECORD, false))
}

pub(crate) fn qp(limits: QueueLimits, geometry: &QpGeometry) -> Result<RingLayout, HcaError> {
    if geometry.kind == QpKind::XrcRecv {
        check(geometry.send.is_none() && geometry.receive.is_none() && geometry.max_inline == 0)?;
        return Ok(layout(0, 0, false));
    }
    check(geometry.kind != QpKind::XrcSend || geometry.receive.is_none())?;
    let send = geometry.send.ok_or(HcaError::Geometry)?;
    check_send(limits, geometry.kind, &send, geometry.max_inline)?;
    let mut bytes = size(&send);
    if let Some(receive) = &geometry.receive {
        check_receive(limits, receive)?;
        bytes += size(receive);
    }
    Ok(layout(bytes, if geometry.receive.is_some() { RECEIVE_RECORD } else { 0 }, false))
}

fn check_send(
    limits: QueueLimits,
    kind: QpKind,
    queue: &QueueGeometry,
    max_inline: u32,
) -> Result<(), HcaError> {
    let largest = log2_largest_stride(limits.max_send_wqe);
    check((LOG2_SEND_STRIDE..=largest).contains(&queue.log2_stride))?;
    check(queue.log2_wqes <= limits.log2_wqes)?;
    let spare = headroom(queue.log2_stride);
    check(1 << queue.log2_wqes > spare && queue.max_wr <= (1 << queue.log2_wqes) - spare)?;
    let wqe = limits.max_send_wqe.min(1 << queue.log2_stride);
    let room = wqe.saturating_sub(before_data(kind));
    check(queue.max_sge <= limits.max_send_sges.min(room / WQE_UNIT_BYTES) && max_inline <= inline(room))
}

fn check_receive(limits: QueueLimits, queue: &QueueGeometry) -> Result<(), HcaError> {
    let largest = limits.max_receive_wqe.max(1).ilog2();
    check(queue.log2_stride >= LOG2_RECEIVE_STRIDE && u32::from(queue.log2_stride) <= largest)?;
    check(queue.log2_wqes <= limits.log2_wqes && queue.max_wr <= 1 << queue.log2_wqes)?;
    let sges = (1 << queue.log2_stride) / WQE_UNIT_BYTES;
    check(queue.max_sge <= sges.min(limits.max_receive_sges))
}

fn size(queue: &QueueGeometry) -> u64 {
    1 << (queue.log2_wqes + queue.log2_stride)
}

/// The byte of a context that tells a queue's size, which has been checked.
pub(crate) fn wq_size(queue: &QueueGeometry) -> WqSize {
    WqSize::new().with_log2_entries(queue.log2_wqes).with_log2_stride_less_4(queue.log2_stride - 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: QueueLimits = QueueLimits {
        log2_wqes: 14,
        log2_srq_wqes: 14,
        log2_cqes: 22,
        max_send_wqe: 1008,
        max_receive_wqe: 512,
        max_send_sges: 32,
        max_receive_sges: 32,
        cqe_bytes: 32,
    };

    fn queue(log2_wqes: u8, log2_stride: u8, max_wr: u32, max_sge: u32) -> QueueGeometry {
        QueueGeometry { log2_wqes, log2_stride, max_wr, max_sge }
    }

    fn rc(send: QueueGeometry, receive: Option<QueueGeometry>, max_inline: u32) -> Result<u64, HcaError> {
        let geometry = QpGeometry { kind: QpKind::Rc, send: Some(send), receive, max_inline };
        qp(LIMITS, &geometry).map(|layout| layout.ring_bytes)
    }

    /// The numbers that `mlx4-queue`'s tests have for the same limits.
    #[test]
    fn parameters_are_those_of_the_guest_s_library() {
        let parameters = LIMITS.parameters();
        assert_eq!((parameters.max_inline_bytes, parameters.max_srq_sge), (912, 31));
        assert_eq!((LIMITS.max_wr(), parameters.headroom_bytes, parameters.headroom_wqes), (16_351, 2048, 1));
    }

    #[test]
    fn queue_pairs_that_the_library_makes_are_taken() {
        assert_eq!(rc(queue(6, 6, 31, 2), None, 28), Ok(4096));
        assert_eq!(rc(queue(8, 9, 251, 30), Some(queue(7, 6, 128, 4)), 236), Ok((256 << 9) + 8192));
        assert_eq!(rc(queue(5, 10, 29, 32), Some(queue(0, 4, 1, 1)), 912), Ok(36_864));
        let ud =
            QpGeometry { kind: QpKind::Ud, send: Some(queue(9, 7, 256, 4)), receive: None, max_inline: 60 };
        assert_eq!(qp(LIMITS, &ud), Ok(RingLayout { ring_bytes: 65_536, record_bytes: 0, written: false }));
    }

    #[test]
    fn queue_pair_out_of_range_has_no_layout() {
        let good = queue(6, 6, 31, 2);
        for (send, inline) in [
            (queue(6, 5, 1, 1), 0),
            (queue(6, 11, 1, 1), 0),
            (queue(15, 6, 1, 1), 0),
            (queue(255, 6, 1, 1), 0),
            (queue(6, 255, 1, 1), 0),
            (queue(5, 6, 1, 1), 0),
            (queue(6, 6, 32, 2), 0),
            (queue(6, 6, 31, 3), 0),
            (good, 29),
            (good, u32::MAX),
        ] {
            assert_eq!(rc(send, None, inline), Err(HcaError::Geometry), "{send:?} {inline}");
        }
        for receive in
            [queue(15, 4, 1, 1), queue(4, 3, 1, 1), queue(4, 10, 1, 1), queue(4, 4, 17, 1), queue(4, 4, 1, 2)]
        {
            assert_eq!(rc(good, Some(receive), 0), Err(HcaError::Geometry), "{receive:?}");
        }
        let none = QpGeometry { kind: QpKind::Rc, send: None, receive: None, max_inline: 0 };
        assert_eq!(qp(LIMITS, &none), Err(HcaError::Geometry));
    }

    #[test]
    fn ends_of_an_extended_connection_have_a_send_queue_or_none_at_all() {
        let of = |kind, send, receive| {
            let geometry = QpGeometry { kind, send, receive, max_inline: 0 };
            qp(LIMITS, &geometry).map(|layout| (layout.ring_bytes, layout.record_bytes))
        };
        let (send, receive) = (queue(6, 6, 31, 2), queue(4, 4, 1, 1));
        assert_eq!(of(QpKind::XrcSend, Some(send), None), Ok((4096, 0)));
        assert_eq!(of(QpKind::XrcSend, Some(send), Some(receive)), Err(HcaError::Geometry));
        assert_eq!(of(QpKind::XrcSend, None, None), Err(HcaError::Geometry));
        assert_eq!(of(QpKind::XrcRecv, None, None), Ok((0, 0)));
        assert_eq!(of(QpKind::XrcRecv, Some(send), None), Err(HcaError::Geometry));
        assert_eq!(of(QpKind::XrcRecv, None, Some(receive)), Err(HcaError::Geometry));
    }

    #[test]
    fn completion_and_shared_receive_queues_are_whole_pages() {
        let bytes = |entries| cq(LIMITS, &CqGeometry { entries }).map(|layout| layout.ring_bytes);
        assert_eq!((bytes(2), bytes(512), bytes(1 << 22)), (Ok(4096), Ok(16_384), Ok(128 << 20)));
        let wide = QueueLimits { cqe_bytes: 64, ..LIMITS };
        assert_eq!(cq(wide, &CqGeometry { entries: 512 }).map(|layout| layout.ring_bytes), Ok(32_768));
        assert_eq!(wide.parameters().cqe_bytes, 64);
        for entries in [0, 1, 3, 1 << 23, 1 << 31] {
            assert_eq!(bytes(entries), Err(HcaError::Geometry));
        }
        let shared = |log2_wqes, log2_stride, max_wr, max_sge| {
            srq(LIMITS, &SrqGeometry { log2_wqes, log2_stride, max_wr, max_sge })
                .map(|layout| layout.ring_bytes)
        };
        assert_eq!((shared(7, 5, 127, 1), shared(14, 9, 16_383, 31)), (Ok(4096), Ok(8 << 20)));
        for (log2_wqes, log2_stride, max_wr, max_sge) in [
            (0, 5, 0, 1),
            (15, 5, 1, 1),
            (7, 4, 1, 1),
            (7, 10, 1, 1),
            (7, 5, 128, 1),
            (7, 5, 1, 2),
            (255, 255, 0, 0),
        ] {
            assert_eq!(shared(log2_wqes, log2_stride, max_wr, max_sge), Err(HcaError::Geometry));
        }
    }
}
