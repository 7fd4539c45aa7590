//! The queues against a simple device that plays the other side.
#![expect(clippy::cast_possible_truncation, reason = "the tests' numbers are small")]

mod completion;
mod receive;
mod resize;
mod segments;
mod send;
