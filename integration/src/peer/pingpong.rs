//! rdma-core's `ibv_rc_pingpong` in a guest, as the server of a peer that isn't.
//!
//! The program swaps connection data over TCP, as text that ends in a zero byte. There is no network
//! between host and guest, so the host speaks through `nc` in the guest.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Endpoint, Peer, Status, Stretch, Terms};
use crate::vm::Vm;

/// The program's port.
const TCP_PORT: u16 = 18515;
/// The guest's code is translated.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs `ibv_rc_pingpong` in a guest, and `iterations` times sends it the message `at` of a peer in INIT and
/// waits for its own; gives what the program prints. `options` are added to its command line.
///
/// # Errors
/// The program fails, or a message doesn't come.
pub fn ping_pong(
    vm: &Vm,
    options: &str,
    peer: &mut dyn Peer,
    at: Stretch,
    iterations: usize,
) -> Result<String> {
    let command = format!("ibv_rc_pingpong -d mlx4_0 -m 2048 -s {} -n {iterations} {options}", at.length);
    let program = vm.spawn(&command)?;
    vm.check_within(LIMIT, &format!("until ss -ltn | grep -q ':{TCP_PORT} '; do sleep 0.1; done"))?;
    let mut tcp = vm.spawn(&format!("busybox nc 127.0.0.1 {TCP_PORT} | busybox tr '\\0' '\\n'"))?;
    let Endpoint { lid, qpn, psn, .. } = peer.endpoint();
    tcp.write(format!("{lid:04x}:{qpn:06x}:{psn:06x}:{:032x}\0", 0).as_bytes())?;
    let line = tcp.line(LIMIT)?;
    let theirs = endpoint(&line).with_context(|| format!("ibv_rc_pingpong says {line:?}"))?;
    peer.connect(&theirs, &Terms::default())?;
    // A receive must be there before each message that the other end sends.
    peer.post_recv(at)?;
    tcp.write(b"done\0")?;
    for iteration in 1..=iterations {
        let sent = peer.send(at)?;
        ensure!(sent == Status::SUCCESS, "send {iteration} ends in {sent:?}");
        let received = peer.received(at)?;
        ensure!(received == Status::SUCCESS, "receive {iteration} ends in {received:?}");
        if iteration < iterations {
            peer.post_recv(at)?;
        }
    }
    let output = program.wait(LIMIT)?;
    ensure!(output.status == 0, "{command} {output}");
    Ok(output.stdout)
}

/// What the program says of its queue pair: LID, number, PSN and GID.
fn endpoint(line: &str) -> Result<Endpoint> {
    let words: Vec<&str> = line.split(':').collect();
    let [lid, qpn, psn, _gid] = words[..] else {
        anyhow::bail!("that isn't where it can be reached");
    };
    let number = |word| u32::from_str_radix(word, 16);
    let (lid, qpn, psn) = (u16::try_from(number(lid)?)?, number(qpn)?, number(psn)?);
    Ok(Endpoint { lid, qpn, psn, address: 0, rkey: 0, requester: qpn, srqn: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_is_read_as_the_program_writes_it() {
        let gid = "00000000000000000000000000000000";
        let read = endpoint(&format!("0002:00004a:fffff0:{gid}")).unwrap();
        assert_eq!((read.lid, read.qpn, read.psn), (2, 0x4a, 0xff_fff0));
        for line in ["", "0002:00004a:fffff0", &format!("10000:1:2:{gid}"), &format!("x:1:2:{gid}")] {
            assert!(endpoint(line).is_err(), "{line}");
        }
    }
}
