//! The HCA as tenants see it: the trait [`Hca`], control verbs only.
//!
//! Does not: post, poll, or know the format of a ring. Addresses of rings and doorbell records, the geometry and
//! the numbers are passed through. What a guest must not set has no place in these types: a context's reserved
//! key, fast registration, P_Key check off, forced loopback, rate limits, physical addressing.
//!
//! An object is named by an id that the implementation chose. Ids are its own; numbers (QPN, CQN, keys) are what
//! goes over the wire and into work requests.

mod device;
mod error;
mod event;
mod path;
mod queue;

pub use device::{
    AtomicSupport, DeviceInfo, DmaInfo, Features, LinkLayer, Mlx4Parameters, PortInfo, QueueFormat,
};
pub use error::HcaError;
pub use event::{AsyncKind, Cookie, EventSink, HcaEvent, PortChange};
pub use path::{AddressVector, AlternatePath, Gid, Grh, McastGroup, Migration, Path, RemoteAccess};
pub use queue::{
    CqGeometry, CqSpec, MrChange, MrKeys, MrSpec, MwKind, Piece, QpAttributes, QpGeometry, QpKind, QpModify,
    QpSpec, QpState, QueueGeometry, RegionAccess, RingLayout, RingMemory, SrqGeometry, SrqKind, SrqSpec,
    SrqState,
};

use std::sync::Arc;

use crate::memory::GuestPiece;

/// A bus address: what the HCA puts on the bus, translated by the IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(pub u64);

impl std::fmt::LowerHex for Iova {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! ids {
    ($( $(#[$meta:meta])* $name:ident, )*) => {
        $( $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32); )*
    };
}

ids! {
    /// A guest that is attached to an HCA.
    GuestId,
    /// A protection domain.
    PdId,
    /// A UAR page.
    UarId,
    /// An XRC domain.
    XrcdId,
    /// A memory region.
    MrId,
    /// A memory window.
    MwId,
    /// A completion queue.
    CqId,
    /// A shared receive queue.
    SrqId,
    /// A queue pair.
    QpId,
}

/// A new object: its id, and the HCA's number of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created<I> {
    /// The id.
    pub id: I,
    /// The HCA's number: PDN, CQN, SRQN, QPN, rkey of a window.
    pub number: u32,
}

/// What is rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The send queue of a queue pair.
    Send(QpId),
    /// The arming of a CQ.
    Arm(CqId),
}

/// A doorbell: what is rung, on which UAR page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Doorbell {
    /// The guest's own UAR, so that the HCA checks the number against it.
    pub uar: UarId,
    /// What is rung.
    pub target: Target,
}

/// An HCA that tenants share.
///
/// All methods may be called from several threads at once; those that are commands block until the HCA has
/// answered. Ids and specifications come from [`crate::Tenant`], which has checked them against the guest's
/// rights; an implementation answers [`HcaError::Refused`] to an id that it doesn't know, and never panics.
///
/// **Failure.** A method that fails with [`HcaError::Failed`], [`HcaError::TimedOut`] or [`HcaError::Lost`]
/// leaves open what the HCA still uses: the tenant keeps the memory mapped until the HCA was reset. With every
/// other error nothing has changed. An implementation keeps the number of an object whose destruction failed
/// out of use until then.
///
/// **No answer.** A command that was not answered in time is the end of the HCA's present life: after one
/// [`HcaError::TimedOut`] an implementation answers [`HcaError::Lost`] to all commands, at once, until the reset.
/// Else the end of a guest with thousands of objects, which nothing can interrupt, would wait for each of them.
///
/// **Events.** After an object's destruction has returned, none of its events is under way and none comes. They come on
/// threads of the implementation's, and completion events perhaps from [`Hca::poll_events`] only.
pub trait Hca: Send + Sync + std::fmt::Debug {
    /// What it is and can do. Constant between two resets.
    fn device(&self) -> DeviceInfo;

    /// A port's attributes; ports count from 1.
    ///
    /// # Errors
    /// [`HcaError`].
    fn query_port(&self, port: u8) -> Result<PortInfo, HcaError>;

    /// An entry of a port's GID table; all zero if it is not in use.
    ///
    /// # Errors
    /// [`HcaError`].
    fn query_gid(&self, port: u8, index: u16) -> Result<Gid, HcaError>;

    /// An entry of a port's P_Key table; 0 if it is not in use.
    ///
    /// # Errors
    /// [`HcaError`].
    fn query_pkey(&self, port: u8, index: u16) -> Result<u16, HcaError>;

    /// A guest begins. `events` gets the events of its objects, and those of all ports.
    ///
    /// # Errors
    /// [`HcaError`].
    fn attach(&self, events: Arc<dyn EventSink>) -> Result<GuestId, HcaError>;

    /// A guest ends; it has no objects any more but those whose destruction failed. No event comes after it.
    fn detach(&self, guest: GuestId);

    /// Where and how memory can be mapped.
    fn dma(&self) -> DmaInfo;

    /// Maps a piece of guest memory at `iova`, for reads, and for writes if the piece is writable. The piece's
    /// memory stays until [`Hca::unmap`] has returned. What overlaps an existing mapping is refused.
    ///
    /// # Errors
    /// [`HcaError::NoMappings`] where the host has no more of them; else [`HcaError`].
    fn map(&self, iova: Iova, piece: &GuestPiece<'_>) -> Result<(), HcaError>;

    /// Undoes a [`Hca::map`] of exactly this address and length in bytes. When it returns the HCA can't reach it.
    /// Also asked after a [`Hca::map`] that left open whether it mapped, when nothing mapped there is a success,
    /// and while the HCA is lost or being reset.
    ///
    /// # Errors
    /// [`HcaError`]: the memory may still be mapped.
    fn unmap(&self, iova: Iova, length: u64) -> Result<(), HcaError>;

    /// A protection domain.
    ///
    /// # Errors
    /// [`HcaError`].
    fn alloc_pd(&self, guest: GuestId) -> Result<Created<PdId>, HcaError>;

    /// Ends a protection domain.
    ///
    /// # Errors
    /// [`HcaError`].
    fn dealloc_pd(&self, pd: PdId) -> Result<(), HcaError>;

    /// A UAR page that no other guest has, none of the HCA's reserved ones, nor one with EQ doorbells.
    ///
    /// # Errors
    /// [`HcaError`].
    fn alloc_uar(&self, guest: GuestId) -> Result<UarId, HcaError>;

    /// Ends a UAR page.
    ///
    /// # Errors
    /// [`HcaError`].
    fn dealloc_uar(&self, uar: UarId) -> Result<(), HcaError>;

    /// An XRC domain.
    ///
    /// # Errors
    /// [`HcaError`].
    fn alloc_xrcd(&self, guest: GuestId) -> Result<Created<XrcdId>, HcaError>;

    /// Ends an XRC domain.
    ///
    /// # Errors
    /// [`HcaError`].
    fn dealloc_xrcd(&self, xrcd: XrcdId) -> Result<(), HcaError>;

    /// Registers mapped memory.
    ///
    /// # Errors
    /// [`HcaError`].
    fn create_mr(&self, spec: &MrSpec<'_>) -> Result<(MrId, MrKeys), HcaError>;

    /// Changes a region; the keys may change. What `change` doesn't name stays.
    ///
    /// # Errors
    /// [`HcaError::Busy`] while windows are bound to it; else [`HcaError`].
    fn modify_mr(&self, mr: MrId, change: &MrChange<'_>) -> Result<MrKeys, HcaError>;

    /// Ends a region: its keys are refused.
    ///
    /// # Errors
    /// [`HcaError::Busy`] while windows are bound to it; else [`HcaError`].
    fn destroy_mr(&self, mr: MrId) -> Result<(), HcaError>;

    /// A memory window, not bound; the number is its rkey.
    ///
    /// # Errors
    /// [`HcaError`].
    fn alloc_mw(&self, pd: PdId, kind: MwKind) -> Result<Created<MwId>, HcaError>;

    /// Ends a memory window, bound or not.
    ///
    /// # Errors
    /// [`HcaError`].
    fn dealloc_mw(&self, mw: MwId) -> Result<(), HcaError>;

    /// How long the ring and the doorbell record of such a CQ are.
    ///
    /// # Errors
    /// [`HcaError::Geometry`].
    fn cq_layout(&self, geometry: &CqGeometry) -> Result<RingLayout, HcaError>;

    /// A CQ. Its ring is initialised when this returns.
    ///
    /// # Errors
    /// [`HcaError`].
    fn create_cq(&self, spec: &CqSpec<'_>) -> Result<Created<CqId>, HcaError>;

    /// Moderates a CQ's events: an event after `count` completions or `period_us` µs.
    ///
    /// # Errors
    /// [`HcaError`].
    fn moderate_cq(&self, cq: CqId, count: u16, period_us: u16) -> Result<(), HcaError>;

    /// Gives a CQ another ring. When it returns the old ring is no longer written.
    ///
    /// # Errors
    /// [`HcaError`].
    fn resize_cq(&self, cq: CqId, geometry: &CqGeometry, ring: &[Piece]) -> Result<(), HcaError>;

    /// Ends a CQ.
    ///
    /// # Errors
    /// [`HcaError`].
    fn destroy_cq(&self, cq: CqId) -> Result<(), HcaError>;

    /// How long the ring and the doorbell record of such an SRQ are.
    ///
    /// # Errors
    /// [`HcaError::Geometry`].
    fn srq_layout(&self, geometry: &SrqGeometry) -> Result<RingLayout, HcaError>;

    /// An SRQ.
    ///
    /// # Errors
    /// [`HcaError`].
    fn create_srq(&self, spec: &SrqSpec<'_>) -> Result<Created<SrqId>, HcaError>;

    /// Arms an SRQ's limit.
    ///
    /// # Errors
    /// [`HcaError`].
    fn arm_srq(&self, srq: SrqId, limit: u32) -> Result<(), HcaError>;

    /// An SRQ's state.
    ///
    /// # Errors
    /// [`HcaError`].
    fn query_srq(&self, srq: SrqId) -> Result<SrqState, HcaError>;

    /// Ends an SRQ.
    ///
    /// # Errors
    /// [`HcaError`].
    fn destroy_srq(&self, srq: SrqId) -> Result<(), HcaError>;

    /// How long the ring (of both queues) and the doorbell record of such a queue pair are.
    ///
    /// # Errors
    /// [`HcaError::Geometry`].
    fn qp_layout(&self, geometry: &QpGeometry) -> Result<RingLayout, HcaError>;

    /// A queue pair, in state RESET.
    ///
    /// # Errors
    /// [`HcaError`].
    fn create_qp(&self, spec: &QpSpec<'_>) -> Result<Created<QpId>, HcaError>;

    /// Changes a queue pair. When a change to RESET has returned, it writes nothing any more.
    ///
    /// # Errors
    /// [`HcaError::Refused`] if the queue pair is not in a state that `modify.from` fits; else [`HcaError`].
    fn modify_qp(&self, qp: QpId, modify: &QpModify) -> Result<(), HcaError>;

    /// A queue pair's attributes.
    ///
    /// # Errors
    /// [`HcaError`].
    fn query_qp(&self, qp: QpId) -> Result<QpAttributes, HcaError>;

    /// Ends a queue pair, from whatever state it is in.
    ///
    /// # Errors
    /// [`HcaError`].
    fn destroy_qp(&self, qp: QpId) -> Result<(), HcaError>;

    /// The address part of a UD work request, in the queue format. Nothing is kept.
    ///
    /// # Errors
    /// [`HcaError`].
    fn address_vector(&self, pd: PdId, path: &Path) -> Result<AddressVector, HcaError>;

    /// Messages to the group reach the queue pair. If it is left open whether they do, [`Hca::detach_mcast`] is
    /// asked next.
    ///
    /// # Errors
    /// [`HcaError`].
    fn attach_mcast(&self, qp: QpId, group: &McastGroup) -> Result<(), HcaError>;

    /// Undoes [`Hca::attach_mcast`]. If that fails the queue pair's number stays out of use until the HCA's reset,
    /// also when the queue pair itself is destroyed.
    ///
    /// # Errors
    /// [`HcaError`].
    fn detach_mcast(&self, qp: QpId, group: &McastGroup) -> Result<(), HcaError>;

    /// Rings. The number is that of the doorbell's target; of `value` nothing is taken for a send, and for an
    /// arm only what the guest may say (command, sequence, index). Never blocks. An id that is no longer in use
    /// does nothing.
    fn ring(&self, doorbell: Doorbell, value: u64);

    /// Tells of completion events that nothing else tells of: whoever rings doorbells and drives the HCA's engine, if
    /// that is in software, calls this after each of its rounds. Its work is bounded, and where there are no events it
    /// takes no lock and makes no system call. True if there may be more. Without polled events it does nothing.
    fn poll_events(&self) -> bool {
        false
    }
}
