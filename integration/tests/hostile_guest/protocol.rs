//! vhost-user that is none: messages out of order, of wrong sizes, with wrong descriptors, in halves; connections
//! that storm.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::VhostBackend;
use virtio_rdma::queue::{CONTROL, FIRST_KICK, QUEUES};
use virtio_rdma::request::query::QueryDevice;

use super::Case;
use super::guest::{BASE, BYTES, Guest, PATIENCE, USER, hung_up};
use super::memory::{Memory, Seals};
use super::objects::Objects;
use super::queue::{AVAILABLE, USED};
use super::scene::Scene;

pub(crate) const CASES: &[Case] = &[
    ("protocol: messages of wrong sizes", wrong_sizes),
    ("protocol: random messages", random_messages),
    ("protocol: descriptors", descriptors),
    ("protocol: queues without memory, memory without queues", out_of_order),
    ("protocol: half a message", half_a_message),
    ("protocol: a second connection", second_connection),
    ("protocol: storms", storms),
    ("protocol: kicks and calls that are none", kicks_and_calls),
];

/// Most descriptors that the kernel passes at once.
const MOST_DESCRIPTORS: usize = 253;
/// Request codes; the last ones are none.
const CODES: u32 = 48;
/// Version 1, and a reply is wanted.
const FLAGS: u32 = 1 | 1 << 3;
const GET_FEATURES: u32 = 1;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_KICK: u32 = 12;
pub(crate) const SET_VRING_CALL: u32 = 13;

pub(crate) fn message(code: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [code, flags, size].map(u32::to_le_bytes).concat();
    bytes.extend_from_slice(payload);
    bytes
}

/// Sends bytes with descriptors. The daemon may have hung up.
pub(crate) fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let _gone = sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
}

fn connect(scene: &Scene, name: &str) -> Result<UnixStream> {
    let stream = UnixStream::connect(scene.path(name))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A guest that comes now is served.
fn serves(scene: &Scene, name: &str) -> Result<()> {
    let mut guest = Guest::connect(&scene.path(name), Seals::Shrink).context("the next guest")?;
    guest.must(&QueryDevice {}, &[])?;
    Ok(())
}

fn wrong_sizes(scene: &Scene) -> Result<()> {
    let payload = [0xffu8; 5000];
    for code in 0..CODES {
        let stream = connect(scene, "process")?;
        // The header tells the truth, but no message has that size; then it lies.
        for size in [7, 4096] {
            send(&stream, &message(code, FLAGS, size, &payload[..size as usize]), &[]);
        }
        send(&stream, &message(code, FLAGS, u32::MAX, &payload), &[]);
        ensure!(hung_up(&stream, PATIENCE), "message {code} of any size is taken");
    }
    // Versions and flags that aren't.
    for flags in [0, 2, 3, 5, 0x10 | FLAGS, u32::MAX] {
        let stream = connect(scene, "process")?;
        send(&stream, &message(GET_FEATURES, flags, 0, &[]), &[]);
        ensure!(hung_up(&stream, PATIENCE), "flags {flags:#x} are taken");
    }
    serves(scene, "process")
}

fn random_messages(scene: &Scene) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(scene.seed);
    let memory = Memory::new(BYTES, Seals::Shrink)?;
    for _ in 0..60 {
        let stream = connect(scene, "process")?;
        for _ in 0..random.u8(1..20) {
            // Of the size that most messages have, so that more than the size is looked at.
            let size = [0, 8, 8, 32, 40, 48, 56, 128][random.usize(0..8)];
            let mut payload = vec![0; size];
            for word in payload.chunks_exact_mut(8) {
                let value = match random.u8(0..6) {
                    0 => random.u64(..),
                    1 => BASE,
                    2 => USER,
                    3 => BYTES,
                    _ => random.u64(0..20),
                };
                word.copy_from_slice(&value.to_le_bytes());
            }
            let code = random.u32(0..CODES);
            let descriptors = vec![memory.file().as_fd(); random.usize(0..3)];
            send(&stream, &message(code, FLAGS, u32::try_from(size)?, &payload), &descriptors);
        }
    }
    serves(scene, "process")
}

fn descriptors(scene: &Scene) -> Result<()> {
    let memory = Memory::new(BYTES, Seals::Shrink)?;
    let event = eventfd(0, EventfdFlags::NONBLOCK)?;
    let table = |regions: u64, listed: u64| {
        let mut words = vec![regions];
        for region in 0..listed {
            words.extend([BASE + region * BYTES, BYTES, USER + region * BYTES, 0]);
        }
        words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()
    };
    let of = |count| vec![memory.file().as_fd(); count];
    // None, too few, too many, more than anybody takes, of another kind; more regions than are listed.
    for (payload, count) in [
        (table(1, 1), 0),
        (table(2, 2), 1),
        (table(1, 1), 2),
        (table(1, 1), 33),
        (table(1, 1), MOST_DESCRIPTORS),
        (table(8, 1), 1),
        (table(0, 0), 0),
        (table(u64::from(u32::MAX), 1), 1),
        (table(33, 33), 33),
    ] {
        let stream = connect(scene, "process")?;
        send(&stream, &message(SET_OWNER, 1, 0, &[]), &[]);
        let size = u32::try_from(payload.len())?;
        send(&stream, &message(SET_MEM_TABLE, FLAGS, size, &payload), &of(count));
        ensure!(hung_up(&stream, PATIENCE), "{count} descriptors are taken for {} bytes", payload.len());
    }
    // An eventfd as memory; memory as a kick; descriptors with a message that has none.
    let stream = connect(scene, "process")?;
    let payload = table(1, 1);
    send(&stream, &message(SET_MEM_TABLE, FLAGS, u32::try_from(payload.len())?, &payload), &[event.as_fd()]);
    ensure!(hung_up(&stream, PATIENCE), "an eventfd is taken as memory");
    for (code, files) in [(SET_VRING_KICK, 1), (SET_VRING_KICK, 0), (SET_VRING_KICK, 3), (GET_FEATURES, 8)] {
        let stream = connect(scene, "process")?;
        let payload: &[u8] = if code == GET_FEATURES { &[] } else { &[0; 8] };
        send(&stream, &message(code, FLAGS, u32::try_from(payload.len())?, payload), &of(files));
    }
    serves(scene, "process")
}

fn out_of_order(scene: &Scene) -> Result<()> {
    // Rings of no memory are refused; queues that are enabled without any do nothing.
    let stream = connect(scene, "process")?;
    let words = [0, USER, USER + USED, USER + AVAILABLE, 0];
    let payload: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
    send(&stream, &message(SET_VRING_ADDR, FLAGS, 40, &payload), &[]);
    ensure!(hung_up(&stream, PATIENCE), "rings of no memory are taken");
    let guest = Guest::bare(&scene.path("process"), Seals::Shrink)?;
    for queue in 0..usize::from(QUEUES) {
        let call = guest.frontend.set_vring_call(queue, &guest.calls[queue]);
        let kick = guest.frontend.set_vring_kick(queue, &guest.kicks[queue]);
        if call.is_err() || kick.is_err() {
            break;
        }
        guest.kick(u16::try_from(queue)?);
    }
    drop(guest);
    // Everything once more while it works.
    let mut guest = scene.guest()?;
    let mut mine = Objects::connected(&mut guest)?;
    for _ in 0..3 {
        let features = guest.frontend.get_features()?;
        guest.frontend.set_features(features & !(1 << 29))?;
        guest.start(CONTROL)?;
        guest.must(&QueryDevice {}, &[])?;
    }
    mine.works(&guest)?;
    scene.others_go_on()?;
    // Queues stop and start while they have something to do.
    for round in 0..50u16 {
        guest.offer(CONTROL, 0)?;
        guest.frontend.get_vring_base(usize::from(round % QUEUES))?;
        guest.start(round % QUEUES)?;
    }
    // An owner for a second time.
    ensure!(guest.frontend.set_owner().is_err(), "a guest has two owners");
    guest.expect_cut_off()
}

fn half_a_message(scene: &Scene) -> Result<()> {
    let whole = message(SET_MEM_TABLE, FLAGS, 40, &[0; 40]);
    for sent in [1, 4, 11, 12, 13, 51] {
        let mut stream = connect(scene, "process")?;
        stream.write_all(&whole[..sent])?;
        scene.others_go_on()?;
        // Another one waits until the first has gone.
        let second = UnixStream::connect(scene.path("process"))?;
        drop(stream);
        second.set_read_timeout(Some(PATIENCE))?;
        (&second).write_all(&message(GET_FEATURES, 1, 0, &[]))?;
        (&second).read_exact(&mut [0; 20]).context("the second connection")?;
    }
    Ok(())
}

fn second_connection(scene: &Scene) -> Result<()> {
    let mut first = scene.guest()?;
    let mut mine = Objects::connected(&mut first)?;
    let second = UnixStream::connect(scene.path("process"))?;
    (&second).write_all(&message(GET_FEATURES, 1, 0, &[]))?;
    let third = UnixStream::connect(scene.path("process"))?;
    for _ in 0..20 {
        mine.works(&first)?;
        first.must(&QueryDevice {}, &[])?;
    }
    second.set_nonblocking(true)?;
    ensure!((&second).read(&mut [0; 20]).is_err(), "two guests are served on one socket");
    second.set_nonblocking(false)?;
    drop((first, third));
    second.set_read_timeout(Some(PATIENCE))?;
    (&second).read_exact(&mut [0; 20]).context("the second connection")
}

fn storms(scene: &Scene) -> Result<()> {
    let before = scene.connections("process");
    for round in 0..60 {
        let stream = connect(scene, "process");
        // The queue of connections is full for a moment, at most.
        let Ok(stream) = stream else { continue };
        if round % 2 == 0 {
            send(&stream, &message(GET_FEATURES, 1, 0, &[]), &[]);
        }
    }
    let many: Vec<_> = (0..40).map(|_| connect(scene, "process")).collect::<Result<_>>()?;
    scene.others_go_on()?;
    drop(many);
    serves(scene, "process")?;
    ensure!(scene.connections("process") > before, "nobody was served");
    Ok(())
}

fn kicks_and_calls(scene: &Scene) -> Result<()> {
    let full = |flags| -> Result<OwnedFd> {
        let event = eventfd(0, flags)?;
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes())?;
        Ok(event)
    };
    let (one, other) = UnixStream::pair()?;
    let file = File::create_new(scene.folder().join("kick"))?;
    let (reader, writer) = std::io::pipe()?;
    let kinds: Vec<OwnedFd> = vec![
        // Its counter is never empty; a write to it blocks; one that counts down one by one.
        full(EventfdFlags::empty())?,
        full(EventfdFlags::SEMAPHORE)?,
        full(EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE)?,
        one.into(),
        file.into(),
        reader.into(),
        File::open("/dev/zero")?.into(),
        File::options().read(true).write(true).open("/dev/null")?.into(),
    ];
    for kind in &kinds {
        for (code, queue) in
            [(12, CONTROL), (12, FIRST_KICK), (12, 1), (12, 8), (13, CONTROL), (13, 1), (14, 0)]
        {
            let mut guest = scene.guest()?;
            let payload = u64::from(queue).to_le_bytes();
            // Beside the library, which takes eventfds only.
            send(&guest.stream, &message(code, 1, 8, &payload), &[kind.as_fd()]);
            guest.kick(CONTROL);
            if code == 13 && guest.queues.len() > 1 {
                // The device has something to say where nobody can be told.
                for _ in 0..10 {
                    guest.offer(CONTROL, 0)?;
                }
            }
            let served = guest.used_within(CONTROL, Duration::from_millis(1));
            ensure!(served.is_ok() || guest.is_cut_off(), "{served:?}");
        }
        scene.others_go_on()?;
    }
    drop((other, writer));
    serves(scene, "process")
}
