//! A guest to be killed: `rig-victim SOCKET ENDS`. See [`integration::load::serve_as_victim`].

use std::path::Path;

use anyhow::{Context, Result};
use integration::load::serve_as_victim;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let socket = args.next().context("no socket given")?;
    let ends = args.next().context("no number of ends given")?.parse().context("number of ends")?;
    serve_as_victim(Path::new(&socket), ends)
}
