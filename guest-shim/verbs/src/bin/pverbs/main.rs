//! The guest's tool.
fn main() {}
