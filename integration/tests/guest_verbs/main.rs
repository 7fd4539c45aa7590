//! Verbs of guests, end to end in one process: the daemon with its model of the HCA, and two guests that reach it
//! as processes do, through its sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod completion_queues;
mod datagrams;
mod errors;
mod events;
mod groups;
mod limits;
mod loss;
mod regions;
mod scene;
mod shared_receive;
mod states;
mod threads;
mod transfer;
mod unreliable;
mod windows;
mod xrc;
