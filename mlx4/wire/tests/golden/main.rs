//! The structures against bytes that the stock Linux driver wrote: `stock-6.12.trace`, recorded in a VM.
//!
//! For one command of each kind a structure is built from values that follow from Linux's sources, and has
//! to have the stock driver's bytes, all of them; only addresses are taken from the bytes themselves. Of
//! every other record the reserved fields are zero.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod control;
mod fixture;
mod mads;
mod objects;
mod queue_pairs;
mod reserved;
mod wqes;
