//! What a driver did with the model, taken from the model's trace and compared with what another did.
//!
//! [`parse`] reads a trace into [`Record`]s. [`Behaviour::of`] folds them into what each kind of command
//! carried, with addresses and numbers that differ from run to run replaced by what they are;
//! [`Behaviour::differences`] compares two of those, field by field. [`listed`] reads the differences that a
//! document explains, and [`unexplained`] holds the two lists against each other.

mod behaviour;
mod decode;
mod document;
mod fields;
mod kinds;
#[cfg(test)]
mod ours;
mod record;
mod reduce;

pub use behaviour::{Behaviour, Difference};
pub use document::{Listed, listed, unexplained};
pub use record::{Command, Event, Record, bring_up, parse};
pub use reduce::reduce;
