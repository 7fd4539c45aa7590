//! RDMA verbs for guest programs, on a virtio-rdma device.
//!
//! The names and what they do are those of libibverbs (`ibv_post_send(3)` and its neighbours): a [`Context`] is
//! an open device; from it come [`Pd`]s, memory ([`Mr`]) and windows on it ([`Mw`]), completion queues ([`Cq`]) and
//! channels ([`CompChannel`]), shared receive queues ([`Srq`]), queue pairs ([`Qp`]) of type RC, UC, UD and XRC, and
//! address handles ([`Ah`]). What differs, because it can be safer:
//!
//! - Objects keep what they need alive, and dropping one destroys it. `destroy` and its like do the same and
//!   answer the error.
//! - Memory comes from the library ([`Pd::alloc_mr`]) and is reached by copies: the HCA may write it at any
//!   time, so no reference into it is ever given out.
//! - Events of completion are values, and nothing is to be acknowledged; an asynchronous event is acknowledged when it
//!   is dropped. Destroying an object takes its events along that nobody has taken yet.
//! - Immediate data are numbers, most significant byte first on the wire (as with `htonl` in C).
//!
//! Every type may be used by several threads at once. Posting and polling allocate nothing, take the lock of
//! the one queue, and make no system call unless the reader of doorbells sleeps.
//!
//! If the device is lost ([`EventType::DeviceFatal`]) every verb of its context answers `EIO`; drop all of it and
//! connect again.
//!
//! How requests reach the device is a transport's matter; there is one so far, vhost-user spoken directly to
//! the daemon's socket ([`Context::connect`]). Doorbells are stores to memory that the daemon has mapped, where it
//! offers that ([`Context::doorbells`]). What it does not: MADs, time stamps of completions, fast registration.
//!
//! ```no_run
//! use paraverbs_verbs::{Access, Context, QpInit, RecvWr, Wc};
//!
//! # fn main() -> paraverbs_verbs::Result<()> {
//! let guest = Context::connect("/run/paraverbs/a.sock")?;
//! let cq = guest.create_cq(16, None)?;
//! let pd = guest.alloc_pd()?;
//! let memory = pd.alloc_mr(4096, Access::LOCAL_WRITE)?;
//! let qp = pd.create_qp(&QpInit::new(&cq))?;
//! qp.to_init(1, Access::NONE)?;
//! qp.post_recv(&RecvWr { wr_id: 1, sges: &[memory.sge(0, 4096)] })?;
//! // With `to_rtr` and `to_rts` it is connected to another queue pair; then:
//! let mut done = [Wc::default(); 4];
//! let count = cq.poll(&mut done)?;
//! for wc in &done[..count] {
//!     println!("{}: {}", wc.wr_id, wc.status);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Specification: `docs/virtio-rdma.md`.

mod access;
mod ah;
mod arena;
mod attr;
mod channel;
mod context;
mod cq;
mod device;
mod error;
mod event;
mod event_fd;
mod memory;
mod mr;
mod mw;
mod pd;
mod qp;
mod signal;
mod srq;
mod transport;
mod virtqueue;
mod wr;
mod xrc;

pub use access::Access;
pub use ah::Ah;
pub use attr::{AtomicCap, DeviceAttr, Gid, LinkLayer, Mtu, PortAttr, PortState};
pub use channel::{CompChannel, CqEvent};
pub use context::Context;
pub use cq::Cq;
pub use device::Doorbells;
pub use error::{Error, Result};
pub use event::{AsyncEvent, EventElement, EventType};
pub use mr::{Mr, Rereg};
pub use mw::{Mw, MwBind, MwType, inc_rkey};
pub use pd::Pd;
pub use qp::{
    AhAttr, AltPath, BadWr, Grh, MigState, Qp, QpAttr, QpCap, QpInit, QpState, QpType, RtrAttr, RtsAttr,
};
pub use srq::{Srq, SrqAttr, SrqInit};
pub use wr::{GRH_BYTES, RecvWr, SendData, SendFlags, SendOp, SendWr, Sge, UdDest, Wc, WcOpcode, WcStatus};
pub use xrc::{XrcRecvQp, Xrcd};

const _: () = {
    const fn shared_by_threads<T: Send + Sync>() {}
    shared_by_threads::<Context>();
    shared_by_threads::<Pd>();
    shared_by_threads::<Mr>();
    shared_by_threads::<CompChannel>();
    shared_by_threads::<Cq>();
    shared_by_threads::<Qp>();
    shared_by_threads::<Srq>();
    shared_by_threads::<Mw>();
    shared_by_threads::<Ah>();
    shared_by_threads::<Xrcd>();
    shared_by_threads::<XrcRecvQp>();
    shared_by_threads::<AsyncEvent>();
    shared_by_threads::<CqEvent>();
    shared_by_threads::<Error>();
};
