//! The tool where there is nothing to talk to: one line on standard error that says what to do.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::os::unix::net::UnixListener;
use std::process::Command;

/// Runs the tool, which must fail; answers its one line.
fn failure(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_pverbs"))
        .args(args)
        .env_remove("PARAVERBS_SOCKET")
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn no_socket_is_named() {
    for command in ["devinfo", "ping"] {
        let text = failure(&[command, "-p", "0"][..if command == "ping" { 3 } else { 1 }]);
        assert!(text.contains("--socket") && text.contains("PARAVERBS_SOCKET"), "{text}");
    }
}

#[test]
fn socket_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    let path = path.to_str().unwrap();
    let text = failure(&["devinfo", "--socket", path]);
    assert!(text.contains(path) && text.contains("is paraverbsd running"), "{text}");
}

#[test]
fn nobody_listens_at_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    drop(UnixListener::bind(&path).unwrap());
    let text = failure(&["ping", "-p", "0", "--socket", path.to_str().unwrap()]);
    assert!(text.contains("nobody listens there; start paraverbsd"), "{text}");
}

#[test]
fn path_is_of_no_socket() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "text").unwrap();
    for path in [file.as_path(), folder.path()] {
        let text = failure(&["devinfo", "--socket", path.to_str().unwrap()]);
        assert!(text.contains("no socket; name the socket"), "{text}");
    }
    let long = "x".repeat(108);
    let text = failure(&["devinfo", "--socket", &long]);
    assert!(text.contains("longer than the 107 bytes"), "{text}");
    let error = paraverbs_verbs::Context::connect(&long).unwrap_err();
    assert_eq!(error.errno(), libc::ENAMETOOLONG);
}

#[test]
fn what_listens_hangs_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let text = failure(&["devinfo", "--socket", path.to_str().unwrap()]);
    server.join().unwrap();
    assert!(text.contains("first message"), "{text}");
}

#[test]
fn port_is_taken() {
    let taken = std::net::TcpListener::bind(("::", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let text = failure(&["ping", "--port", &port, "--socket", "/nowhere"]);
    assert!(text.contains(&format!("can't listen on port {port}")) && text.contains("--port"), "{text}");
}
