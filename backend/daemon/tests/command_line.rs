//! `paraverbsd` as a process: what it serves, how it ends, and command lines that end in one line.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use vfio_user::Client;

const CONFIG_REGION: u32 = 7;
/// Bytes of a path that Unix sockets can have.
const PATH_MAX: usize = 107;

fn paraverbsd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paraverbsd"));
    command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Ends the process in order and returns what it left.
fn end(child: Child, signal: &str) -> Output {
    let killed = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("run kill");
    assert!(killed.success());
    child.wait_with_output().expect("wait for paraverbsd")
}

/// Starts it and waits for so many lines about what it serves.
fn serving(command: &mut Command, count: usize) -> (Child, Vec<String>) {
    let mut child = command.spawn().expect("run paraverbsd");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let lines = lines.take(count).map(|line| line.expect("a line")).collect::<Vec<_>>();
    assert_eq!(lines.len(), count, "{lines:?}");
    (child, lines)
}

/// Runs a command line that must fail, and checks that its explanation is one line that has these words.
fn fails(command: &mut Command, words: &[&str]) {
    let output = command.output().expect("run paraverbsd");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("paraverbsd: "), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

fn guest(name: &str, path: &Path) -> String {
    format!("--guest={name}={}", path.display())
}

#[test]
fn guests_and_a_card_are_served_until_the_process_is_terminated() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, card] = ["a", "b", "card"].map(|name| folder.path().join(name));
    // A dead server's socket is replaced.
    drop(UnixListener::bind(&a).unwrap());
    let mut command = paraverbsd();
    command.args([guest("a", &a), guest("b", &b)]).arg("--fabric-socket").arg(&card);
    let (child, lines) = serving(&mut command, 3);
    assert_eq!(lines[0], format!("serving guest a on {}", a.display()));
    assert_eq!(lines[1], format!("serving guest b on {}", b.display()));
    assert!(lines[2].starts_with("serving ConnectX-3 0x0002c90300b00010 on "), "{}", lines[2]);
    let mut id = [0; 4];
    Client::new(&card).unwrap().region_read(CONFIG_REGION, 0, &mut id).unwrap();
    assert_eq!(id, [0xb3, 0x15, 0x03, 0x10]);
    // Its sockets are its own while it runs.
    fails(paraverbsd().arg(guest("a", &a)), &["in use", "another path"]);

    let output = end(child, "-TERM");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    assert!([a, b, card].iter().all(|path| !path.exists()));
}

#[test]
fn conventions_of_vhost_user_back_ends_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (child, lines) = serving(paraverbsd().arg("--socket-path").arg(&path), 1);
    assert_eq!(lines, [format!("serving guest guest on {}", path.display())]);
    let output = end(child, "-INT");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!path.exists());

    // Other options don't matter.
    let output = paraverbsd().args(["--print-capabilities", "--device", "none"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(text["type"], "rdma");

    fails(paraverbsd().args(["--fd", "3"]), &["--fd 3 is not supported", "--socket-path"]);
}

#[test]
fn device_that_cannot_be_used_ends_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let free = folder.path().join("free");
    let with = |device: &str| {
        let mut command = paraverbsd();
        command.args(["--device", device]).arg(guest("a", &free));
        command
    };
    fails(&mut with("mlx5"), &["unknown device \"mlx5\"", "use model"]);
    fails(&mut with("vfio:01:00.0"), &["\"vfio:01:00.0\"", "write it as vfio:0000:01:00.0"]);
    fails(&mut with("vfio:"), &["\"vfio:\"", "write it as vfio:0000:01:00.0"]);
    fails(&mut with("vfio:fffe:fe:1e.7"), &["no PCI device fffe:fe:1e.7", "lspci"]);
    if let Some(other) = device_with_another_driver() {
        fails(&mut with(&format!("vfio:{other}")), &[&other]);
    }
    fails(with("vfio:0000:01:00.0").arg("--fabric-socket=x"), &["fabric sockets need the model"]);
    fails(with("vfio:0000:01:00.0").arg("--doorbells=direct"), &["direct doorbells", "\"auto\""]);
    let gone = folder.path().join("gone");
    fails(&mut with(&format!("vfio-user:{}", gone.display())), &["gone", "paraverbs model"]);
    fails(&mut with("vfio-user:"), &["a socket without a path"]);
    fails(with("vfio-user:/x").arg("--doorbells=direct"), &["direct doorbells", "\"auto\""]);
    assert!(!free.exists());
}

/// Some PCI device of this machine that isn't bound to vfio-pci; there may be none.
fn device_with_another_driver() -> Option<String> {
    let mut devices = std::fs::read_dir("/sys/bus/pci/devices").ok()?.filter_map(Result::ok);
    let other = devices.find(|device| {
        let driver = std::fs::read_link(device.path().join("driver")).ok();
        driver.as_deref().and_then(Path::file_name).is_none_or(|name| name != "vfio-pci")
    })?;
    Some(other.file_name().to_string_lossy().into_owned())
}

#[test]
fn socket_that_cannot_be_made_ends_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let [used, free, file] = ["used", "free", "file"].map(|name| folder.path().join(name));
    let _running = UnixListener::bind(&used).unwrap();
    let path = used.display().to_string();
    fails(paraverbsd().args([guest("a", &free), guest("b", &used)]), &[&path, "in use", "another path"]);
    assert!(!free.exists(), "the first guest's socket was left behind");
    let card = |path: &Path| format!("--fabric-socket={}", path.display());
    fails(paraverbsd().args([guest("a", &free), card(&used)]), &[&path, "in use", "another path"]);
    assert!(!free.exists(), "the guest's socket was left behind");

    let long = folder.path().join("x".repeat(120));
    let len = long.as_os_str().len().to_string();
    fails(paraverbsd().arg(guest("a", &long)), &[&PATH_MAX.to_string(), &len, "choose a shorter path"]);
    fails(
        paraverbsd().args([guest("a", &free), card(&long)]),
        &[&PATH_MAX.to_string(), &len, "choose a shorter path"],
    );

    std::fs::write(&file, "text").unwrap();
    fails(paraverbsd().arg(guest("a", &file)), &["no socket", "remove it"]);
    let nowhere = folder.path().join("none/socket");
    fails(paraverbsd().arg(guest("a", &nowhere)), &["none/socket", "no directory", "create it"]);
    // Nobody may make a file there, not even root.
    fails(paraverbsd().arg(guest("a", Path::new("/proc/socket"))), &["/proc/socket"]);
}

/// Root may write everywhere, so this tells something where the tests run as a user only.
#[test]
fn folder_without_permission_ends_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o500)).unwrap();
    if std::fs::write(folder.path().join("probe"), "").is_ok() {
        return;
    }
    let path = folder.path().join("socket");
    fails(paraverbsd().arg(guest("a", &path)), &["no permission", "may write to"]);
}

#[test]
fn guests_that_make_no_sense_end_in_one_line() {
    let [a, b] = ["/run/none/a", "/run/none/b"].map(Path::new);
    fails(&mut paraverbsd(), &["there are no guests", "--guest NAME=PATH"]);
    fails(paraverbsd().args([guest("a", a), guest("a", b)]), &["two guests are called \"a\""]);
    fails(paraverbsd().args([guest("a", a), guest("b", a)]), &["/run/none/a is named twice"]);
    fails(paraverbsd().args([guest("a", a), "--fabric-socket=/run/none/a".into()]), &["named twice"]);
    fails(paraverbsd().arg("--guest=a"), &["\"a\" has no path", "NAME=PATH"]);
    fails(paraverbsd().arg("--guest=a="), &["without a path"]);
    fails(paraverbsd().arg(guest("a b", a)), &["\"a b\" can't be used"]);
}

#[test]
fn configuration_file_is_served_or_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let [file, socket] = ["paraverbsd.toml", "web1"].map(|name| folder.path().join(name));
    let write = |limits: &str| {
        let guest = format!("[[guest]]\nname = 'web1'\nsocket = '{}'\n", socket.display());
        std::fs::write(&file, format!("device = 'model'\nports = 2\n{guest}[guest.limits]\n{limits}\n"))
            .unwrap();
    };
    let with_file = || {
        let mut command = paraverbsd();
        command.arg("--config").arg(&file);
        command
    };
    fails(&mut with_file(), &["can't read the configuration file", "name one that exists"]);
    write("queue_pairs = 64");
    let (child, lines) = serving(&mut with_file(), 1);
    assert_eq!(lines, [format!("serving guest web1 on {}", socket.display())]);
    assert_eq!(end(child, "-TERM").status.code(), Some(0));

    write("queue_pairs = 0");
    fails(&mut with_file(), &["guest \"web1\"", "limit queue_pairs is 0", "at least 1"]);
    write("queue_pairs = 4000000000");
    fails(&mut with_file(), &["guest \"web1\"", "queue_pairs of 4000000000 is more than", "the HCA has"]);
    write("queue_pears = 1");
    fails(&mut with_file(), &["line 7", "queue_pears"]);
    assert!(!socket.exists());

    for (path, words) in [("/nonexistent/x.toml", "name one that exists"), ("/", "name a file of text")] {
        let output = paraverbsd().args(["--config", path]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(words), "{text}");
        assert_eq!(text.matches("os error").count(), 1, "told twice: {text}");
        fails(paraverbsd().args(["--config", path]), &[path]);
    }
}

#[test]
fn too_few_descriptors_are_told_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    for limit in [8, 40] {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -n $0 && exec \"$@\"", &limit.to_string()]);
        shell.arg(env!("CARGO_BIN_EXE_paraverbsd")).arg(guest("a", &socket)).env("RUST_LOG", "off");
        let output = shell.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{limit}: {text}");
        assert!(text.lines().count() == 1 && text.contains("ulimit -n"), "{limit}: {text}");
        assert!(!socket.exists());
    }
}

#[test]
fn command_line_without_sense_is_a_usage_error() {
    for args in [
        &["--ports", "3"][..],
        &["--guest"],
        &["--config", "x", "--device", "model"],
        &["--guest", "a=b", "--socket-path", "c"],
        &["--kind", "pod"],
        &["--doorbells", "mapped"],
    ] {
        let output = paraverbsd().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--help"), "{args:?}");
    }
}

#[test]
fn limit_of_open_files_is_raised_as_far_as_it_may_be() {
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -S -n 200 && exec \"$0\" \"$@\""]).arg(paraverbsd().get_program());
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let (child, _lines) = serving(shell.arg(guest("a", &folder.path().join("a"))), 1);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<_> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers[0], numbers[1], "{line}");
    assert_eq!(end(child, "-TERM").status.code(), Some(0));
}
