//! The client against servers of every kind: honest, refusing, lying, stuck, gone.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;
use crate::DmaError;

/// Patience with servers that answer, with those that first do, and with those that never do.
const LONG: Duration = Duration::from_secs(60);
const SOME: Duration = Duration::from_secs(3);
const SHORT: Duration = Duration::from_millis(50);

const REPLY: u32 = 1;
const NO_REPLY: u32 = 16;
const ERROR: u32 = 32;

/// What a server was asked.
#[derive(Debug)]
struct Asked {
    id: u16,
    command: u16,
    flags: u32,
    body: Vec<u8>,
    fd: Option<File>,
}

impl Asked {
    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.body[at..at + 4].try_into().unwrap())
    }

    fn long(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.body[at..at + 8].try_into().unwrap())
    }

    /// A message with this one's id and command.
    fn message(&self, flags: u32, error: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = [self.id, self.command].map(u16::to_le_bytes).concat();
        let size = u32::try_from(16 + body.len()).unwrap();
        bytes.extend([size, flags, error].map(u32::to_le_bytes).concat());
        bytes.extend(body);
        bytes
    }

    fn refused(&self, error: i32) -> Option<Vec<u8>> {
        Some(self.message(REPLY | ERROR, u32::try_from(error).unwrap(), &[]))
    }

    /// What a good server answers that has 4 vectors, and of whose registers each reads as its offset.
    fn answered(&self) -> Option<Vec<u8>> {
        if self.flags & NO_REPLY != 0 {
            return None;
        }
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let body = match self.command {
            1 => b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":1,\"max_dma_maps\":2}}\0".to_vec(),
            4 => words(&[16, 3, 9, 5]),
            5 => {
                let size = [1 << 20, 0, 8 << 20, 0, 0, 0, 0, 4096, 0][self.word(8) as usize];
                words(&[32, 3, self.word(8), 0, size, 0, 0, 0])
            }
            7 => words(&[16, 1, self.word(8), 4]),
            9 => {
                let (offset, count) = (self.long(0), self.word(12) as usize);
                let content = u32::try_from(offset).unwrap().to_be_bytes().repeat(count.div_ceil(4));
                [&self.body[..16], &content[..count]].concat()
            }
            10 => self.body[..16].to_vec(),
            3 => self.body.clone(),
            _ => Vec::new(),
        };
        Some(self.message(REPLY, 0, &body))
    }
}

/// A server at a socket in a folder of its own, with the messages that it got.
struct Fake {
    folder: tempfile::TempDir,
    asked: Receiver<Asked>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    /// A server that sends for each message what `answer` says, and leaves when that is empty.
    fn start(answer: impl FnMut(&Asked) -> Option<Vec<u8>> + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let (sender, asked) = channel();
        let thread = thread::spawn(move || serve(&listener, answer, &sender));
        Self { folder, asked, thread: Some(thread) }
    }

    fn open(&self, patience: Duration) -> Result<VfioUserPci, ConnectError> {
        VfioUserPci::open_within(&self.folder.path().join("s"), patience)
    }

    /// All messages of a command, once the client has left.
    fn all(mut self, command: u16) -> Vec<Asked> {
        self.thread.take().unwrap().join().unwrap();
        self.asked.try_iter().filter(|asked| asked.command == command).collect()
    }
}

fn serve(listener: &UnixListener, mut answer: impl FnMut(&Asked) -> Option<Vec<u8>>, sender: &Sender<Asked>) {
    let (mut stream, _) = listener.accept().unwrap();
    while let Some(asked) = receive(&mut stream) {
        let answer = answer(&asked);
        // The test may have ended.
        let _ended = sender.send(asked);
        match answer {
            Some(bytes) if bytes.is_empty() => return,
            // The client may have left because of an earlier one.
            Some(bytes) => drop(stream.write_all(&bytes)),
            None => {}
        }
    }
}

fn receive(stream: &mut UnixStream) -> Option<Asked> {
    let mut header = [0; 16];
    let (len, fd) = stream.recv_with_fd(&mut header).ok()?;
    if len == 0 {
        return None;
    }
    stream.read_exact(&mut header[len..]).ok()?;
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    let mut body = vec![0; word(4) as usize - 16];
    stream.read_exact(&mut body).ok()?;
    Some(Asked { id: half(0), command: half(2), flags: word(8), body, fd })
}

/// An honest server but for one command, from a certain message of that on.
fn but(command: u16, after: usize, mut lie: impl FnMut(&Asked) -> Option<Vec<u8>> + Send + 'static) -> Fake {
    let mut count = 0;
    Fake::start(move |asked| {
        count += usize::from(asked.command == command);
        if asked.command == command && count > after { lie(asked) } else { asked.answered() }
    })
}

/// What began it all.
fn root(error: &dyn std::error::Error) -> &dyn std::error::Error {
    error.source().map_or(error, root)
}

fn ids(fds: &[Asked]) -> Vec<(u32, u32, u32, bool)> {
    fds.iter().map(|set| (set.word(4), set.word(12), set.word(16), set.fd.is_some())).collect()
}

#[test]
fn server_for_which_too_many_wait_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let error = VfioUserPci::open_within(&path, LONG).unwrap_err();
    let ConnectError::Connect { source, .. } = error else { panic!("{error:?}") };
    assert!(source.to_string().starts_with("too many others wait"), "{source}");
}

#[test]
fn function_is_what_its_server_says() {
    let fake = Fake::start(Asked::answered);
    let device = fake.open(LONG).unwrap();
    let identity = device.identity();
    assert!(identity.name.starts_with("vfio-user:/") && identity.name.ends_with("/s"), "{}", identity.name);
    assert_eq!(identity.bar_bytes, [1 << 20, 0, 8 << 20, 0, 0, 0]);
    assert_eq!(identity.vectors, 4);
    assert_eq!(device.register(0xf0014).unwrap(), 0xf0014);
    assert!(matches!(device.register(1 << 20), Err(RegisterError::Outside { .. })));
    assert!(matches!(device.set_register(2, 0), Err(RegisterError::Unaligned { .. })));
    assert!(matches!(device.config_read(4093, &mut [0; 4]), Err(RegisterError::Outside { .. })));
    let mut whole = [1; 4096];
    device.config_read(0, &mut whole).unwrap();
}

#[test]
fn writes_and_doorbells_are_not_waited_for() {
    // Such a server answers no write at all.
    let fake = but(10, 0, |asked| if asked.word(8) == 7 { asked.answered() } else { None });
    let device = fake.open(LONG).unwrap();
    device.set_register(0x80680, 0x0102_0304).unwrap();
    device.doorbell(0x80, DoorbellKind::Send(1)).unwrap().ring(0xffff_ffff_0000_0700);
    device.doorbell(0x80, DoorbellKind::Arm(1)).unwrap().ring(0x0102_0304_0506_0708);
    assert_eq!(device.register(0x10).unwrap(), 0x10);
    drop(device);
    let writes = fake.all(10);
    let seen: Vec<_> = writes
        .iter()
        .filter(|write| write.flags & NO_REPLY != 0)
        .map(|write| (write.word(8), write.long(0), &write.body[16..]))
        .collect();
    assert_eq!(
        seen,
        [
            (0, 0x80680, &[1, 2, 3, 4][..]),
            (2, 0x80014, &[0, 0, 7, 0]),
            (2, 0x80020, &[1, 2, 3, 4, 5, 6, 7, 8]),
        ]
    );
}

#[test]
fn refusal_of_a_write_is_not_taken_for_an_answer() {
    let fake = but(10, 0, |asked| asked.refused(libc::EINVAL));
    let device = fake.open(LONG).unwrap();
    device.set_register(0, 1).unwrap();
    device.set_register(0, 2).unwrap();
    assert_eq!(device.register(0x20).unwrap(), 0x20);
}

#[test]
fn memory_goes_as_a_file_and_the_servers_limit_is_kept() {
    let fake = Fake::start(Asked::answered);
    let device = fake.open(LONG).unwrap();
    let first = device.dma().allocate(8192, 4096).unwrap();
    let memory = crate::HostMemory::allocate(4096).unwrap();
    let second = device.dma().map(memory.clone(), 4096, crate::DmaAccess::Read).unwrap();
    let third = device.dma().map(memory, 4096, crate::DmaAccess::Read);
    assert!(matches!(third, Err(DmaError::NoMapping { maximum: 2 })), "{third:?}");
    assert_eq!(device.dma().limits().unwrap().left, 0);
    let addresses = [first.iova(), second.iova()];
    second.release().unwrap();
    assert_eq!(device.dma().limits().unwrap().left, 1);
    drop(first);
    assert_eq!(device.dma().quarantined(), 8192);
    device.reset().unwrap();
    assert_eq!((device.dma().quarantined(), device.dma().limits().unwrap().left), (0, 2));
    drop(device);
    let maps = fake.all(2);
    let seen: Vec<_> =
        maps.iter().map(|map| (map.word(4), map.long(16), map.long(24), map.fd.is_some())).collect();
    assert_eq!(seen, [(3, addresses[0], 8192, true), (1, addresses[1], 4096, true)]);
}

#[test]
fn vectors_are_connected_one_by_one_where_the_server_takes_no_more() {
    let fake = Fake::start(Asked::answered);
    let device = fake.open(LONG).unwrap();
    device.enable_interrupts(2).unwrap();
    device.reset().unwrap();
    device.disable_interrupts().unwrap();
    assert!(matches!(device.enable_interrupts(5), Err(InterruptError::NoVector { .. })));
    drop(device);
    // Trigger with an eventfd is 0x24, with nothing 0x21.
    let two = [(0x24, 0, 1, true), (0x24, 1, 1, true)];
    let none = (0x21, 0, 0, false);
    assert_eq!(ids(&fake.all(8)), [two[0], two[1], two[0], two[1], none, none]);
}

#[test]
fn reset_turns_bus_mastering_on_and_the_end_turns_it_off() {
    let fake = Fake::start(Asked::answered);
    let device = fake.open(LONG).unwrap();
    assert_eq!(device.reset().unwrap(), ResetKind::Function);
    drop(device);
    let commands: Vec<_> =
        fake.all(10).iter().map(|write| (write.word(8), write.long(0), write.body[16] & 6)).collect();
    assert_eq!(commands, [(7, 4, 6), (7, 4, 2)]);
}

#[test]
fn what_the_server_refuses_is_an_error_and_nothing_more() {
    for (command, errno) in [(2, libc::ENOMEM), (3, libc::EIO), (8, 0), (13, libc::EBUSY)] {
        let fake = but(command, 0, move |asked| asked.refused(errno));
        let device = fake.open(LONG).unwrap();
        let mapped = device.dma().allocate(4096, 4096);
        assert_eq!(mapped.is_err(), command == 2, "{mapped:?}");
        let released = mapped.map_or(Ok(()), crate::DmaBuffer::release);
        assert_eq!(released.is_err(), command == 3, "{released:?}");
        assert_eq!(device.dma().quarantined(), if command == 3 { 4096 } else { 0 });
        assert_eq!(device.enable_interrupts(1).is_err(), command == 8);
        let reset = device.reset();
        assert_eq!(reset.is_err(), command == 13 || command == 3, "{reset:?}");
        assert_eq!(device.register(0x30).unwrap(), 0x30);
    }
}

/// What a server does that is none, or none any more.
type Lie = fn(&Asked) -> Option<Vec<u8>>;

const LIES: [(&str, Lie); 8] = [
    ("leaves", |_| Some(Vec::new())),
    ("says nothing", |_| None),
    ("stops in the middle", |asked| Some(asked.answered()?[..17].to_vec())),
    ("answers short", |asked| Some(asked.message(REPLY, 0, &asked.body[..8]))),
    ("answers long", |asked| Some(asked.message(REPLY, 0, &[0; 4000]))),
    ("answers another id", |asked| {
        Asked { id: asked.id ^ 1, body: asked.body.clone(), fd: None, ..*asked }.answered()
    }),
    ("answers another command", |asked| {
        Some(asked.message(REPLY, 0, &[])).map(|mut bytes| {
            bytes[2] = 4;
            bytes
        })
    }),
    ("asks itself", |asked| Some(asked.message(0, 0, &asked.body))),
];

#[test]
fn server_that_lies_or_leaves_costs_the_card_and_not_the_program() {
    for (what, lie) in LIES {
        // The first read is that of the identity.
        let fake = but(9, 1, lie);
        let device =
            fake.open(if what == "says nothing" || what.starts_with("stops") { SOME } else { LONG }).unwrap();
        let kept = device.dma().allocate(4096, 4096).unwrap();
        let doorbell = device.doorbell(1, DoorbellKind::Send(1)).unwrap();
        assert_eq!(device.register(0x40).unwrap(), u32::MAX, "{what}");
        assert_eq!(device.register(0x44).unwrap(), u32::MAX, "{what}");
        device.set_register(0x40, 1).unwrap();
        doorbell.ring(1);
        assert!(matches!(device.config_read(0, &mut [0; 4]), Err(RegisterError::Io { .. })), "{what}");
        assert!(device.dma().allocate(4096, 4096).is_err(), "{what}");
        assert!(matches!(device.enable_interrupts(1), Err(InterruptError::Connect { .. })), "{what}");
        let error = device.reset().unwrap_err();
        assert!(matches!(error, ResetError::Gone { .. }), "{what}: {error}");
        assert!(error.to_string().contains("vfio-user:/"), "{error}");
        assert!(matches!(kept.release(), Err(DmaError::Unmap { .. })), "{what}");
    }
}

#[test]
fn server_that_lies_from_the_start_is_not_opened() {
    for command in [1, 4, 5, 7, 9] {
        for (what, lie) in LIES {
            let stuck = what == "says nothing" || what.starts_with("stops");
            let fake = but(command, 0, lie);
            let error = fake.open(if stuck { SHORT } else { LONG }).unwrap_err();
            let (ConnectError::Version { source, .. } | ConnectError::Describe { source, .. }) = &error
            else {
                panic!("{command} {what}: {error:?}");
            };
            assert_eq!(matches!(error, ConnectError::Version { .. }), command == 1, "{what}: {error:?}");
            let why = root(source).to_string();
            assert_eq!(why.contains("has done nothing for"), stuck, "{command} {what}: {why}");
        }
    }
    let old = but(1, 0, |asked| Some(asked.message(REPLY, 0, b"\x01\0\0\0{}\0")));
    assert!(matches!(old.open(LONG), Err(ConnectError::Version { .. })));
    let platform =
        but(4, 0, |asked| Some(asked.message(REPLY, 0, &[16u32, 5, 9, 5].map(u32::to_le_bytes).concat())));
    assert!(matches!(platform.open(LONG), Err(ConnectError::NotPci { .. })));
    let without = but(5, 0, |asked| {
        let size = if asked.word(8) == 2 { 0 } else { 4096 };
        let words = [32, 3, asked.word(8), 0, size, 0, 0, 0];
        Some(asked.message(REPLY, 0, &words.map(u32::to_le_bytes).concat()))
    });
    assert!(matches!(without.open(LONG), Err(ConnectError::NoBar { bar: 2, .. })));
    let nobody = VfioUserPci::open(Path::new("/nonexistent/s")).unwrap_err().to_string();
    assert!(nobody.contains("/nonexistent/s") && nobody.contains("paraverbs model"), "{nobody}");
}

#[test]
fn threads_get_each_their_own_answer() {
    let fake = Fake::start(Asked::answered);
    let device = fake.open(LONG).unwrap();
    thread::scope(|scope| {
        for thread in 0..4u64 {
            let device = &device;
            scope.spawn(move || {
                for at in (0..400).map(|at| 4 * (at + 1000 * thread)) {
                    device.set_register(at, 1).unwrap();
                    assert_eq!(u64::from(device.register(at).unwrap()), at);
                }
            });
        }
    });
}
