//! The guest's tool, as processes that reach the daemon's sockets.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use paraverbsd::Daemon;
use paraverbsd::config::{Config, Device, GuestEntry, GuestKind};
use tempfile::TempDir;

/// The daemon with two guests.
struct Scene {
    daemon: Daemon,
    folder: TempDir,
    program: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let program = integration::program("paraverbs-verbs", "pverbs").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let guest = |name: &str| GuestEntry::new(name, folder.path().join(name), GuestKind::Process);
        let config = Config {
            device: Device::Model { ports: 1 },
            fabric_sockets: Vec::new(),
            guests: vec![guest("a"), guest("b")],
            spin: None,
        };
        Self { daemon: Daemon::start(&config).unwrap(), folder, program }
    }

    fn pverbs(&self, guest: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).arg("--socket").arg(self.folder.path().join(guest));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// A process that is killed if the test fails.
struct Running(Option<Child>);

impl Running {
    fn start(mut command: Command) -> Self {
        Self(Some(command.spawn().unwrap()))
    }

    /// Reads its first line, which it prints when it is ready.
    fn first_line(&mut self) -> String {
        let mut line = String::new();
        let output = self.0.as_mut().unwrap().stdout.as_mut().unwrap();
        // Byte by byte: the rest is read later.
        while !line.ends_with('\n') {
            let mut byte = [0];
            assert_eq!(output.read(&mut byte).unwrap(), 1, "it ended after {line:?}");
            line.push(byte[0].into());
        }
        line
    }

    fn finish(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// What a process has printed, which must have ended well.
fn good(output: Output) -> String {
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn free_port() -> u16 {
    TcpListener::bind(("::", 0)).unwrap().local_addr().unwrap().port()
}

#[test]
fn ping_goes_to_and_fro_in_all_its_ways() {
    let scene = Scene::new();
    for options in ["", "-e", "-c -s 10000 -n 100", "-g 0 -m 2048 -r 2 -n 50", "-s 1 -e -c -l 3"] {
        let port = free_port().to_string();
        let mut args = vec!["ping", "--port", &port];
        args.extend(options.split_whitespace());
        let mut server = Running::start(scene.pverbs("a", &args));
        let local = server.first_line();
        assert!(local.starts_with("  local address:  LID 0x"), "{local}");
        args.push("localhost");
        let client = good(scene.pverbs("b", &args).output().unwrap());
        let server = good(server.finish());
        let remote = local.replace("  local address:  ", "  remote address: ");
        assert!(client.contains(&remote), "{client}\nlacks\n{remote}");
        for text in [client, server] {
            assert!(text.contains(" Mbit/sec\n") && text.contains(" usec/iter\n"), "{options}: {text}");
        }
    }
    scene.daemon.stop().unwrap();
}

/// The exchange of addresses, byte for byte as rdma-core's program does it.
#[test]
fn stock_client_s_bytes_get_an_answer() {
    let scene = Scene::new();
    let port = free_port().to_string();
    let mut server = Running::start(scene.pverbs("a", &["ping", "-p", &port]));
    server.first_line();
    let mut stream = TcpStream::connect(format!("localhost:{port}")).unwrap();
    stream.write_all(b"0001:00004a:123456:00000000000000000000000000000000\0").unwrap();
    let mut answer = [0; 52];
    stream.read_exact(&mut answer).unwrap();
    let text = std::str::from_utf8(&answer[..51]).unwrap();
    let lengths: Vec<usize> = text.split(':').map(str::len).collect();
    assert_eq!((lengths, answer[51]), (vec![4, 6, 6, 32], 0), "{text}");
    stream.write_all(b"done\0").unwrap();
    let remote = server.first_line();
    assert_eq!(remote, "  remote address: LID 0x0001, QPN 0x00004a, PSN 0x123456, GID ::\n");
    drop(server);
    scene.daemon.stop().unwrap();
}

#[test]
fn devinfo_shows_every_device_and_port() {
    let scene = Scene::new();
    let other = scene.folder.path().join("b");
    let mut command = scene.pverbs("a", &["devinfo", "-v", "--socket", other.to_str().unwrap()]);
    let text = good(command.output().unwrap());
    for line in [
        "hca_id:\tparaverbs0",
        "hca_id:\tparaverbs1",
        "\tvendor_id:\t\t\t0x02c9",
        "\tvendor_part_id:\t\t\t4099",
        "\tphys_port_cnt:\t\t\t1",
        "\t\tport:\t1",
        "\t\t\tstate:\t\t\tPORT_ACTIVE (4)",
        "\t\t\tlink_layer:\t\tInfiniBand",
        "\t\t\tphys_state:\t\tLINK_UP (5)",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
    }
    let guid = text.lines().find_map(|line| line.strip_prefix("\tnode_guid:\t\t\t")).unwrap();
    assert!(guid.starts_with("0002:c903:"), "{guid}");
    assert!(text.contains("\t\t\tGID[  0]:\t\tfe80:0000:0000:0000:"), "{text}");
    let error = scene.pverbs("a", &["devinfo", "-i", "2"]).output().unwrap();
    assert_eq!(error.status.code(), Some(1));
    let error = String::from_utf8(error.stderr).unwrap();
    assert!(error.contains("has no port 2, but 1 to 1"), "{error}");
    scene.daemon.stop().unwrap();
}

#[test]
fn ping_that_can_not_be_ends_in_one_line() {
    let scene = Scene::new();
    let nobody = free_port().to_string();
    for (args, words) in [
        (&["-i", "9"][..], "has no port 9, but 1 to 1; see --ib-port"),
        (&["-i", "0"], "has no port 0, but 1 to 1; see --ib-port"),
        (&["-g", "200"], "has no GID 200, but 0 to "),
        (&["-p", &nobody], "start the other end first, without a host"),
    ] {
        let output = scene.pverbs("a", &["ping", "localhost"]).args(args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.starts_with("pverbs: ") && text.contains(words), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    scene.daemon.stop().unwrap();
}

#[test]
fn nobody_reads_the_output() {
    let scene = Scene::new();
    let mut devinfo = Running::start(scene.pverbs("a", &["devinfo", "-v"]));
    drop(devinfo.0.as_mut().unwrap().stdout.take());
    let mut error = String::new();
    let stderr = devinfo.0.as_mut().unwrap().stderr.take().unwrap();
    BufReader::new(stderr).read_line(&mut error).unwrap();
    assert_eq!(error, "", "a broken pipe is nobody's concern");
    scene.daemon.stop().unwrap();
}
