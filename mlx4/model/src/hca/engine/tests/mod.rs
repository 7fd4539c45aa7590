//! Tests of the data path: machines whose software is the tests', on a fabric with its subnet manager.
//!
//! The tests write WQEs, doorbell records, memory keys and multicast groups as a driver would; the objects
//! are made by the functions that the commands use.

mod atomics;
mod completions;
mod connections;
mod datagrams;
mod events;
mod failures;
mod hostile;
mod lab;
mod large_sends;
mod limits;
mod links;
mod machine;
mod management;
mod many;
mod queues;
mod registration;
mod shared;
mod states;
mod windows;
mod xrc;

/// Bytes that tell where they come from.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 7 + i / 251) & 0xff).unwrap() ^ seed).collect()
}
