//! Answers of a front end that come late, too late, or never.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::BackendReq;

use super::*;

/// How long a test waits for what must come.
const ENOUGH: Duration = Duration::from_secs(30);
/// A time after which nothing came.
const SOON: Duration = Duration::from_millis(10);

/// Flags of an answer: version 1, and that it is one.
const ANSWER: u32 = 0x1 | 0x4;

/// The front end's side of the channel.
struct Peer(UnixStream);

impl Peer {
    /// What is asked next. What it is about, and the memory, don't matter here.
    fn asked(&mut self) -> BackendReq {
        let mut header = [0; 12];
        self.0.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let mut body = vec![0; word(8) as usize];
        self.0.read_exact(&mut body).unwrap();
        BackendReq::try_from(word(0)).unwrap()
    }

    /// Says that it is done.
    fn answer(&mut self, to: BackendReq) {
        let mut answer = Vec::new();
        for word in [u32::from(to), ANSWER, 8, 0, 0] {
            answer.extend_from_slice(&word.to_ne_bytes());
        }
        self.0.write_all(&answer).unwrap();
    }
}

/// A region that a front end knows of.
fn region(patience: Duration) -> (Arc<SharedRegion>, Peer) {
    let memory = Arc::new(RegionMemory::new(1, 64).unwrap());
    let region = SharedRegion::with_patience("one".into(), memory, patience);
    let (own, peer) = UnixStream::pair().unwrap();
    peer.set_read_timeout(Some(ENOUGH)).unwrap();
    region.config();
    let channel = Backend::from_stream(own);
    channel.set_shmem_flag(true);
    region.take_channel(channel);
    (region, Peer(peer))
}

/// Somebody wants the region, and the front end has been asked for it.
fn ask(region: &Arc<SharedRegion>, peer: &mut Peer) {
    region.set(|state| (state.phase, state.running) = (Phase::Wanted { unmap: false }, true));
    region.start().unwrap();
    assert_eq!(peer.asked(), BackendReq::SHMEM_MAP);
}

/// The connection ends, and the thread with it.
fn end(region: &SharedRegion, peer: Peer) {
    region.end();
    drop(peer);
    region.wait_until_idle(|| false);
}

#[test]
fn answer_to_what_was_asked_before_a_reset_is_none_for_what_is_asked_after_it() {
    let (region, mut peer) = region(ENOUGH);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| region.map());
        assert_eq!(peer.asked(), BackendReq::SHMEM_MAP);
        region.forget();
        first.join().unwrap();
        assert!(!region.is_mapped());
        let again = scope.spawn(|| region.map());
        while region.lock().phase == Phase::Stale {
            std::thread::yield_now();
        }
        peer.answer(BackendReq::SHMEM_MAP);
        for step in [BackendReq::SHMEM_UNMAP, BackendReq::SHMEM_MAP] {
            assert_eq!(peer.asked(), step);
            assert!(!region.is_mapped(), "what the front end has is what the reset has left");
            peer.answer(step);
        }
        again.join().unwrap();
        assert!(region.is_mapped());
    });
    end(&region, peer);
}

#[test]
fn region_that_is_mapped_too_late_is_unmapped_again() {
    let (region, mut peer) = region(SOON);
    ask(&region, &mut peer);
    region.map();
    assert!(!region.is_mapped());
    peer.answer(BackendReq::SHMEM_MAP);
    assert_eq!(peer.asked(), BackendReq::SHMEM_UNMAP);
    peer.answer(BackendReq::SHMEM_UNMAP);
    region.map();
    assert!(!region.is_mapped(), "it is not asked again");
    end(&region, peer);
}

#[test]
fn front_end_that_gives_no_answers_has_no_region() {
    let (region, mut peer) = region(SOON);
    ask(&region, &mut peer);
    region.map();
    assert!(!region.is_mapped());
    end(&region, peer);
}
