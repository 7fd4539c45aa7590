//! `paraverbs model` as a process: ready lines, sockets, dump, orderly end, and errors of one line.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use vfio_user::Client;

const CONFIG_REGION: u32 = 7;

fn paraverbs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paraverbs"));
    command.arg("model").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Ends the process in order and returns what it left.
fn terminate(child: Child) -> Output {
    let killed = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status().expect("run kill");
    assert!(killed.success());
    child.wait_with_output().expect("wait for paraverbs")
}

/// Runs a command line that must fail, and returns its one line of explanation.
fn failure(command: &mut Command) -> String {
    let output = command.output().expect("run paraverbs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert_eq!(output.stdout, b"");
    text
}

#[test]
fn cards_are_served_until_the_process_is_terminated() {
    let folder = tempfile::tempdir().unwrap();
    let sockets = ["a", "b"].map(|name| folder.path().join(name));
    let (dump, trace) = (folder.path().join("dump"), folder.path().join("trace"));
    let mut command = paraverbs();
    command.arg("--socket").arg(&sockets[0]).arg("--socket").arg(&sockets[1]);
    let command = command.arg("--ports=2").arg("--dump-socket").arg(&dump).arg("--trace").arg(&trace);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let guids = sockets.each_ref().map(|socket| {
        let line = lines.next().unwrap().unwrap();
        let (what, path) = line.split_once(" on ").unwrap();
        assert_eq!(Path::new(path), socket);
        what.strip_prefix("serving ConnectX-3 0x").unwrap().to_owned()
    });
    assert_ne!(guids[0], guids[1]);

    for socket in &sockets {
        let mut client = Client::new(socket).unwrap();
        let mut id = [0; 4];
        client.region_read(CONFIG_REGION, 0, &mut id).unwrap();
        assert_eq!(id, [0xb3, 0x15, 0x03, 0x10]);
    }
    for _ in 0..2 {
        let mut text = String::new();
        UnixStream::connect(&dump).unwrap().read_to_string(&mut text).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["cards"].as_array().map(Vec::len), Some(2));
        let counters = answer["counters"].as_array().unwrap();
        assert_eq!(counters.len(), 2);
        for name in ["refused_accesses", "mapped_bytes", "send_wqes"] {
            assert!(counters.iter().all(|card| card[name] == 0), "{name} in {text}");
        }
        assert!(guids.iter().all(|guid| text.contains(guid.as_str())), "{guids:?} in {text}");
    }

    // A client that stays doesn't keep the process.
    let _client = Client::new(&sockets[0]).unwrap();
    let output = terminate(child);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(sockets.iter().chain([&dump]).all(|path| !path.exists()));
    assert!(trace.exists());
}

#[test]
fn control_socket_pulls_and_plugs_cables() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, control) = (folder.path().join("a"), folder.path().join("control"));
    let mut command = paraverbs();
    command.arg("--socket").arg(&socket).arg("--control-socket").arg(&control);
    let mut child = command.args(["--no-sm"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("serving ConnectX-3"));
    let ask = |line: &str| {
        let mut stream = UnixStream::connect(&control).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert_eq!(ask("pull 1\n"), "ok\n");
    assert_eq!(ask("plug 1\n"), "ok\n");
    assert_eq!(ask("pull 37\n"), "the switch has no external port 37, only 1 to 36\n");
    let output = terminate(child);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!control.exists());
}

#[test]
fn path_that_cannot_be_used_ends_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _running = UnixListener::bind(&socket).unwrap();
    let free = folder.path().join("free");
    let text = failure(paraverbs().arg("--socket").arg(&free).arg("--socket").arg(&socket));
    assert!(text.contains("is in use by a running server; stop that server"), "{text}");
    assert!(text.contains(socket.to_str().unwrap()), "{text}");
    assert!(!free.exists(), "the first card's socket was left behind");
    let text = failure(paraverbs().arg("--socket").arg(&free).arg("--dump-socket").arg(&socket));
    assert!(text.contains("is in use by a running server"), "{text}");
    let text = failure(paraverbs().arg("--socket").arg(folder.path().join("x".repeat(120))));
    assert!(text.contains("more than 107; choose a shorter path"), "{text}");
    let text = failure(paraverbs().arg("--socket").arg(folder.path().join("none/socket")));
    assert!(text.contains("No such file or directory (os error 2); make its folder first"), "{text}");
    // Nobody may make a file there, not even root.
    let text = failure(paraverbs().arg("--socket").arg("/proc/socket"));
    assert!(text.contains("can't listen on /proc/socket"), "{text}");
    let text = failure(paraverbs().arg("--socket").arg(&free).arg("--trace").arg(folder.path()));
    assert!(text.contains("can't write the trace"), "{text}");
}

#[test]
fn command_line_without_sense_is_a_usage_error() {
    let cases = [
        &["--ports", "3", "--socket", "x"][..],
        &[],
        &["--socket"],
        &["--socket", "x", "--pkey", "0x8000"],
        &["--socket", "x", "--pkey", "0x7fff"],
        &["--socket", "x", "--pkey", "0x10000"],
        &["--socket", "x", "--pkey", "1", "--no-sm"],
    ];
    for args in cases {
        let output = paraverbs().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--help"), "{args:?}");
    }
}
