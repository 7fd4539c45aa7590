//! Verbs of guests, end to end in one process: the daemon with its model of the HCA, and two guests that reach it
//! as processes do, through its sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod errors;
mod events;
mod limits;
mod loss;
mod scene;
mod threads;
mod transfer;
