//! The tool `paraverbs`.
fn main() {}
