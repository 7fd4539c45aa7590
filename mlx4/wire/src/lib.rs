//! The wire structures of the ConnectX family (mlx4) and of InfiniBand management, exact and big endian.
//!
//! Driver and model share this crate and no behaviour: it holds layouts and code points, nothing else.
//! Sources are named per structure: the Linux mlx4 headers, iPXE's PRM field names, the InfiniBand
//! Architecture specification (IBTA).
//!
//! Conventions:
//! - a whole-word field is `U16`, `U32` or `U64` (big endian); a packed word is a [`bits!`] type, fields
//!   declared from the most significant bit down, as the hardware manual prints them;
//! - reserved bits and bytes are named with leading underscores;
//! - a code that comes from a device or a guest is an [`open_enum!`] newtype, so that an unknown code is
//!   a value and never undefined behaviour;
//! - after each structure stands an assertion of its size.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

/// Big-endian integers as they lie in structures.
pub use zerocopy::big_endian::{U16, U32, U64};

#[macro_use]
mod macros;

pub mod cmd;
pub mod layout;
pub mod mad;
mod number;
pub mod regs;
pub use number::Number24;

pub mod cqe;
pub mod ctx;
pub mod doorbell;
pub mod eqe;
pub mod packet;
pub mod wqe;
