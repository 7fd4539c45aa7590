//! What is to come of a lie in each field of each structure; a field that isn't here fails the test.

pub mod caps;
pub mod events;
pub mod ports;
pub mod queues;

/// Of switches, codes, keys, names and statistics.
const CODES: &str = "neither counts nor points; every value is one that there can be";
/// Of numbers and addresses of another node.
const OTHER_END: &str = "of the other end, where every value can be; it is used only to send there";
/// What a run says that waits for what doesn't come.
const NOTHING: &[&str] = &["no completion left", "no event left"];
