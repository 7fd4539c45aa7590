//! What may be done to a running model from outside: a line a connection, and a line back.
//!
//! - `pull N`: pull the cable out of port N of the switch; the cards' ports are plugged in in order, from 1
//! - `plug N`: put it back
//!
//! The answer is `ok`, or a line that says what is wrong.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use mlx4_model::fabric::Fabric;

/// The longest line that is read, in bytes.
const MAX_LINE: u64 = 64;

/// Does what a client asks, and answers it.
pub(crate) fn serve(fabric: &Fabric, mut stream: UnixStream) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new((&stream).take(MAX_LINE)).read_line(&mut line)?;
    let answer = match obey(fabric, line.trim()) {
        Ok(()) => "ok\n".to_owned(),
        Err(error) => format!("{error:#}\n"),
    };
    stream.write_all(answer.as_bytes())
}

fn obey(fabric: &Fabric, line: &str) -> Result<()> {
    let (plugged, port) = match line.split_once(' ') {
        Some(("pull", port)) => (false, port),
        Some(("plug", port)) => (true, port),
        _ => bail!("unknown command {line:?}; say `pull N` or `plug N`, N a port of the switch"),
    };
    let port = port.parse().with_context(|| format!("{port:?} is no port of the switch"))?;
    fabric.set_cable(port, plugged)?;
    log::info!("the cable of switch port {port} is {}", if plugged { "put back" } else { "pulled" });
    Ok(())
}

#[cfg(test)]
mod tests {
    use mlx4_model::fabric::FabricConfig;

    use super::*;

    fn answer(line: &str) -> String {
        let config = FabricConfig { ports: 2, subnet_manager: None, ..FabricConfig::default() };
        let fabric = Fabric::new(config).unwrap();
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(line.as_bytes()).unwrap();
        serve(&fabric, server).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn cables_of_the_switch_are_pulled_and_plugged() {
        assert_eq!(answer("pull 1\n"), "ok\n");
        assert_eq!(answer("plug 2\n"), "ok\n");
    }

    #[test]
    fn other_lines_are_answered_with_what_is_wrong() {
        assert_eq!(answer("pull 3\n"), "the switch has no external port 3, only 1 to 2\n");
        assert_eq!(answer("pull 0\n"), "the switch has no external port 0, only 1 to 2\n");
        assert!(answer("plug 300\n").starts_with("\"300\" is no port of the switch"));
        assert!(answer("cut 1\n").contains("say `pull N` or `plug N`"));
        assert!(answer(&"x".repeat(64)).contains("unknown command"));
    }
}
