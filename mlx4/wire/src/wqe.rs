//! WQE: the segments of which send and receive work queue entries are made.
//!
//! A send WQE starts with a [`CtrlSeg`] (special QPs: [`MlxCtrlSeg`]), whose `units` count the WQE's 16-byte
//! units, the control segment included. What follows, by opcode:
//!
//! | WQE | segments after control |
//! |---|---|
//! | SEND, SEND with immediate or invalidate (RC, UC, XRC) | data |
//! | RDMA write, RDMA write with immediate | [`RemoteAddressSeg`], data |
//! | RDMA read | [`RemoteAddressSeg`], data (pointers only) |
//! | atomic | [`RemoteAddressSeg`], [`AtomicSeg`], one [`DataSeg`] of 8 bytes |
//! | masked compare and swap | [`RemoteAddressSeg`], [`MaskedAtomicSeg`], one [`DataSeg`] |
//! | masked fetch and add | [`RemoteAddressSeg`], [`AtomicSeg`] (the mask as `compare`), one [`DataSeg`] |
//! | bind | [`BindSeg`] |
//! | local invalidate | [`LocalInvalidateSeg`] |
//! | fast register | [`FastRegisterSeg`] |
//! | SEND of UD | [`DatagramSeg`], data |
//! | LSO of UD | [`DatagramSeg`], [`LsoHeader`] and the header, data |
//! | SEND of special QPs | data: inline packet headers, payload, 4 bytes of ICRC |
//!
//! "Data" is any number of [`DataSeg`] (pointers) and inline segments; bit 31 of the first word
//! ([`ByteCount`]) tells them apart. A receive WQE has data pointers only; an SRQ WQE has a [`SrqNextSeg`]
//! before them.
//!
//! Sources: Linux `include/linux/mlx4/{qp,srq,device}.h`; rdma-core `providers/mlx4/mlx4dv.h`; iPXE
//! `hermonprm_wqe_segment_*`. Local invalidate and fast register differ in iPXE's header, which no driver
//! of its uses; Linux's layout is here.

mod control;
mod data;
mod datagram;
mod memory;
mod remote;

pub use control::{Completion, CtrlFlags, CtrlOpcode, CtrlSeg, CtrlSize, MlxCtrlFlags, MlxCtrlSeg, Opcode};
pub use data::{BYTE_COUNT_BYTES, ByteCount, DataSeg, LsoHeader, SrqNextSeg};
pub use datagram::{Av, AvPort, DatagramSeg};
pub use memory::{BindAccess, BindKind, BindSeg, FastRegisterSeg, LocalInvalidateSeg, RegisterAccess};
pub use remote::{AtomicSeg, MaskedAtomicSeg, RemoteAddressSeg};

/// Unit of a WQE's size in bytes.
pub const WQE_UNIT_BYTES: u32 = 16;

/// Greatest send WQE in bytes: the units are counted in 6 bits.
pub const WQE_MAX_BYTES: u32 = 63 * WQE_UNIT_BYTES;

/// A chunk of a WQE in bytes: the device fetches by chunks, and inline data doesn't cross their bounds.
pub const WQE_CHUNK_BYTES: u32 = 64;

/// First word of a chunk that is not written yet: drivers stamp free send WQEs with it.
pub const WQE_STAMP: u32 = 0xffff_ffff;

/// Bytes beyond the last send WQE that a device may have fetched; drivers keep as much of the queue free.
pub const SQ_PREFETCH_BYTES: u32 = 2048;

/// The lkey that is never valid; with a byte count of zero it ends the list of a receive WQE.
pub const INVALID_LKEY: u32 = 0x100;
