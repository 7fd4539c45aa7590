//! Ping-pong programs of libibverbs and every program of perftest, between two guests with stock drivers: over every
//! transport that each has, with inline data, many queue pairs, SRQ, both directions at once, large messages, events,
//! every MTU, a GRH, and multicast.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::Instant;

use anyhow::{Result, ensure};
use integration::pair::{Pair, listens};
use integration::{Rig, passed};

const ADDRESSES: [&str; 2] = ["10.9.8.1", "10.9.8.2"];

/// Ping-pongs, each run with polling and with events, by LID and by GID.
const PING_PONGS: &[&str] = &[
    "ibv_rc_pingpong -n 200 -s 16384",
    "ibv_uc_pingpong -n 200 -s 16384",
    "ibv_ud_pingpong -n 200 -s 2048",
    "ibv_srq_pingpong -n 20 -q 16 -s 8192",
    "ibv_xsrq_pingpong -n 200 -c 1",
];

/// Programs of perftest with their options. Where nobody asks for what was lost (UC, UD), the receiver posts room
/// for all messages (512) before the first.
const PERFTEST: &[&str] = &[
    // Every operation over every transport that it has, in the least time and in a stream.
    "ib_send_lat -c RC -s 64 -n 200",
    "ib_send_lat -c UC -s 64 -n 200",
    "ib_send_lat -c UD -s 64 -n 200",
    "ib_send_lat -c XRC -s 64 -n 200",
    "ib_send_bw -c RC -s 65536 -n 200",
    "ib_send_bw -c UC -s 16384 -n 200",
    "ib_send_bw -c UD -m 4096 -s 4096 -n 200",
    "ib_send_bw -c XRC -s 65536 -n 200",
    "ib_write_lat -c RC -s 64 -n 200",
    "ib_write_lat -c UC -s 64 -n 200",
    "ib_write_lat -c XRC -s 64 -n 200",
    "ib_write_bw -c RC -s 65536 -n 200",
    "ib_write_bw -c UC -s 65536 -n 200",
    "ib_write_bw -c XRC -s 65536 -n 200",
    "ib_read_lat -c RC -s 64 -n 200",
    "ib_read_lat -c XRC -s 64 -n 200",
    "ib_read_bw -c RC -s 65536 -n 200",
    "ib_read_bw -c XRC -s 65536 -n 200",
    "ib_atomic_lat -c RC -A CMP_AND_SWAP -n 200",
    "ib_atomic_lat -c RC -A FETCH_AND_ADD -n 200",
    "ib_atomic_lat -c XRC -A FETCH_AND_ADD -n 200",
    "ib_atomic_bw -c RC -A CMP_AND_SWAP -n 200",
    "ib_atomic_bw -c RC -A FETCH_AND_ADD -n 200",
    "ib_atomic_bw -c XRC -A CMP_AND_SWAP -n 200",
    // Inline data, from nothing to as much as a QP of this HCA takes.
    "ib_send_lat -I 0 -s 32 -n 200",
    "ib_send_lat -I 64 -s 64 -n 200",
    "ib_write_lat -I 128 -s 128 -n 200",
    "ib_send_bw -c UD -I 400 -s 400 -n 200",
    "ib_write_bw -I 800 -s 800 -n 200",
    // Many queue pairs.
    "ib_send_bw -q 8 -s 4096 -n 100",
    "ib_write_bw -q 64 -s 4096 -n 100",
    "ib_read_bw -q 16 -s 4096 -n 100",
    "ib_atomic_bw -q 4 -n 100",
    // A shared receive queue.
    "ib_send_lat --use-srq -s 64 -n 200",
    "ib_send_bw --use-srq -s 4096 -n 200",
    "ib_send_bw --use-srq -q 8 -s 4096 -n 100",
    "ib_send_bw --use-srq -c UD -s 2048 -n 200",
    // Both directions at once.
    "ib_send_bw -b -s 65536 -n 200",
    "ib_send_bw -b -c UD -s 2048 -n 200",
    "ib_write_bw -b -s 65536 -n 200",
    "ib_read_bw -b -s 65536 -n 200",
    "ib_atomic_bw -b -n 200",
    // Large messages.
    "ib_send_bw -s 8388608 -n 5",
    "ib_write_bw -s 8388608 -n 5",
    "ib_read_bw -s 8388608 -n 5",
    "ib_write_bw -c UC -s 1048576 -n 20",
    // Events in place of polling. perftest has none for writes; why its programs for latency aren't here is
    // in docs/witnesses.md.
    "ib_send_bw -e -s 65536 -n 200",
    "ib_send_bw -e -c UC -s 16384 -n 200",
    "ib_send_bw -e -c UD -s 2048 -n 200",
    "ib_send_bw -e -c XRC -s 65536 -n 200",
    "ib_send_bw -e -b -s 65536 -n 200",
    "ib_send_bw -e --use-srq -q 8 -s 4096 -n 100",
    "ib_read_bw -e -s 65536 -n 200",
    "ib_atomic_bw -e -n 200",
    // Every MTU, and a GRH.
    "ib_send_bw -m 256 -s 65536 -n 100",
    "ib_write_bw -m 512 -s 65536 -n 100",
    "ib_read_bw -m 1024 -s 65536 -n 100",
    "ib_write_bw -m 2048 -s 65536 -n 100",
    "ib_send_bw -m 4096 -s 65536 -n 100",
    "ib_send_bw -x 0 -s 65536 -n 100",
    "ib_send_lat -c UD -x 0 -s 64 -n 200",
    // Lists of WQEs by one doorbell, and few completions.
    "ib_write_bw -l 16 -s 4096 -n 320",
    "ib_send_bw -Q 32 -t 64 -s 4096 -n 320",
    // Multicast.
    "ib_send_lat -c UD -g -s 64 -n 200",
    "ib_send_bw -c UD -g -s 1024 -n 200",
];

/// Runs a program in both guests, the second one as the client, and gives what the client printed.
fn both(pair: &Pair, program: &str) -> Result<String> {
    let [_, client] = pair.both(program, &listens(18515), &format!("{program} {}", ADDRESSES[0]))?;
    Ok(client)
}

/// The value of an option in a command line.
fn option<'a>(program: &'a str, name: &str) -> Option<&'a str> {
    let mut words = program.split(' ');
    words.find(|word| *word == name)?;
    words.next()
}

fn ping_pong(pair: &Pair, program: &str) -> Result<()> {
    let iterations = option(program, "-n").unwrap_or_default();
    let output = both(pair, program)?;
    let done = output.contains(&format!("{iterations} iters in")) || output.contains("success");
    ensure!(done, "{output}");
    Ok(())
}

/// A program of perftest ends with a table; the row of the size has the number of messages, of all queue pairs.
fn perftest(pair: &Pair, program: &str) -> Result<()> {
    let number = |name, otherwise| option(program, name).map_or(otherwise, |value| value.parse().unwrap());
    let (size, messages) = (number("-s", 8_u64), number("-n", 0) * number("-q", 1));
    let output = both(pair, program)?;
    let row = output.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>());
    let wanted = [size.to_string(), messages.to_string()];
    ensure!(row.into_iter().any(|row| row == wanted), "no row of {wanted:?} in {output}");
    Ok(())
}

#[test]
fn programs_of_libibverbs_and_perftest_pass() {
    let rig = Rig::prepare().unwrap();
    let pair = Pair::boot(&rig, &[], |config, _| config).unwrap();
    pair.bring_up().unwrap();
    pair.address("ib0", ADDRESSES).unwrap();

    let mut failures = Vec::new();
    let mut tell = |program: &str, run: &dyn Fn() -> Result<()>| {
        let start = Instant::now();
        match run() {
            Ok(()) => passed(format_args!("{program} ({:.1} s)", start.elapsed().as_secs_f64())),
            Err(error) => {
                println!("FAILED {program}: {error:#}");
                failures.push(program.to_owned());
            }
        }
    };
    for program in PING_PONGS {
        for options in ["", " -e", " -g 0", " -e -g 0"] {
            let program = format!("{program}{options}");
            tell(&program, &|| ping_pong(&pair, &program));
        }
    }
    for program in PERFTEST {
        tell(program, &|| perftest(&pair, &format!("{program} -d mlx4_0 -F")));
    }
    assert_eq!(failures, [""; 0]);
    pair.unload().unwrap();
}
