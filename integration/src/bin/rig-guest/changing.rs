//! A guest whose memory table changes while it is connected: a region comes, all of it is written to, it goes while
//! requests are under way, and another one comes in its place.
//!
//! The region begins and ends in the middle of chunks, so that it is mapped in whole ones and in parts.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;

use anyhow::{Result, anyhow, ensure};
use mlx4_wire::wqe::Opcode;
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use virtio_rdma::Reason;

use crate::guest::{BASE, Guest, USER, at};
use crate::memory::{Memory, Seals};
use crate::objects::{DATA, Objects, REMOTE_ACCESS, data, reg_mr, remote};
use crate::{say, told};

/// What the daemon maps at once.
const CHUNK: u64 = 2 << 20;
/// Where the region begins in a chunk; odd, so that requests cross from each chunk to the next.
const SKEW: u64 = CHUNK / 2 + 4096;
/// Its bytes: it touches 21 chunks.
const BYTES: u64 = 20 * CHUNK;
/// Where it is in the guest, and where the guest says that it has it mapped.
const ELSEWHERE: u64 = BASE + (1 << 30) + SKEW;
const USER_ELSEWHERE: u64 = USER + (1 << 30) + SKEW;
/// Bytes of a request.
const PIECE: u64 = 1 << 20;
/// Requests that are under way at once.
const DEPTH: u64 = 16;
/// Syndrome of a request behind one that failed.
const FLUSHED: u8 = 0x05;

/// The memory of the region: as far into its file as it is into its chunk.
fn more() -> Result<(Memory, VhostUserMemoryRegionInfo)> {
    let memory = Memory::new(SKEW + BYTES, Seals::Shrink)?;
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: ELSEWHERE,
        memory_size: BYTES,
        userspace_addr: USER_ELSEWHERE,
        mmap_offset: SKEW,
        mmap_handle: memory.file().as_raw_fd(),
    };
    Ok((memory, region))
}

/// Whether the region's memory has nothing in it.
fn is_empty(memory: &Memory) -> Result<bool> {
    let zeros = vec![0; usize::try_from(PIECE)?];
    for piece in 0..BYTES / PIECE {
        if memory.read(SKEW + piece * PIECE, zeros.len())? != zeros {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The guest, with two queue pairs that are connected to each other.
struct Changing {
    guest: Guest,
    mine: Objects,
}

impl Changing {
    /// Writes from the guest's own memory into the region, by a key.
    fn post(&mut self, rkey: u32, piece: u64) -> Result<()> {
        let local = data(self.mine.mr.lkey.get(), at(DATA), u32::try_from(PIECE)?);
        let body = remote(rkey, ELSEWHERE + piece * PIECE, local);
        self.mine.post(&self.guest, 0, Opcode::RDMA_WRITE, &body)
    }

    fn completion(&mut self) -> Result<Option<u8>> {
        self.mine.completion(&self.guest)
    }

    /// Registers all of the region; answers the key.
    fn register(&mut self) -> Result<u32> {
        let verb = reg_mr(self.mine.pd, ELSEWHERE, BYTES);
        Ok(self.guest.must(&verb, &[(ELSEWHERE, BYTES)])?.rkey.get())
    }

    /// Writes something else to each piece of the region, and looks whether it is there.
    fn fill(&mut self, rkey: u32, memory: &Memory) -> Result<()> {
        let mut sent = integration::peer::pattern(1, usize::try_from(PIECE)?);
        for piece in 0..BYTES / PIECE {
            sent[..8].copy_from_slice(&piece.to_le_bytes());
            self.guest.memory.write(DATA, &sent)?;
            self.post(rkey, piece)?;
            let done = self.completion()?;
            ensure!(done.is_none(), "write {piece} ended in {done:x?}");
            let seen = memory.read(SKEW + piece * PIECE, sent.len())?;
            ensure!(seen == sent, "piece {piece} isn't what was written");
        }
        Ok(())
    }

    /// The region goes while requests write to it, until one fails. Answers how many succeeded.
    fn lose(&mut self, rkey: u32, memory: &Memory, region: &VhostUserMemoryRegionInfo) -> Result<u64> {
        for piece in 0..DEPTH {
            self.post(rkey, piece)?;
        }
        let mut frontend = self.guest.frontend.clone();
        let (succeeded, failed) = thread::scope(|scope| -> Result<_> {
            let removal = scope.spawn(move || frontend.remove_mem_region(region));
            let mut succeeded = 0;
            let failed = loop {
                match self.completion()? {
                    None => succeeded += 1,
                    Some(syndrome) => break syndrome,
                }
                self.post(rkey, succeeded % DEPTH)?;
            };
            removal.join().map_err(|_| anyhow!("the removal has panicked"))??;
            Ok((succeeded, failed))
        })?;
        ensure!(failed == REMOTE_ACCESS, "the request that failed ended in {failed:#x}");
        for _ in 1..DEPTH {
            let done = self.completion()?;
            ensure!(done == Some(FLUSHED), "one behind the request that failed ended in {done:x?}");
        }
        memory.zero(0, usize::try_from(SKEW + BYTES)?)?;
        Ok(succeeded)
    }

    /// Neither the old key nor a new one reaches where the region was.
    fn is_refused(&mut self, rkey: u32) -> Result<()> {
        self.guest.reset()?;
        self.mine = Objects::connected(&mut self.guest)?;
        let again = reg_mr(self.mine.pd, ELSEWHERE, CHUNK);
        self.guest.refused(&again, &[(ELSEWHERE, CHUNK)], Reason::NOT_IN_MEMORY)?;
        self.post(rkey, 0)?;
        let done = self.completion()?;
        ensure!(done == Some(REMOTE_ACCESS), "a write by a dead key ended in {done:x?}");
        self.guest.reset()?;
        self.mine = Objects::connected(&mut self.guest)?;
        Ok(())
    }
}

/// Says what it has come to after each step, and goes on at a line.
pub(crate) fn run(socket: &Path) -> Result<()> {
    let mut guest = Guest::connect(socket, Seals::Shrink)?;
    let mine = Objects::connected(&mut guest)?;
    let mut guest = Changing { guest, mine };
    let step = |what: &str| -> Result<()> {
        say(what)?;
        ensure!(told()?, "nobody listens");
        Ok(())
    };
    let (memory, region) = more()?;
    step(&format!("ready {BYTES}"))?;
    guest.guest.frontend.add_mem_region(&region)?;
    step("added")?;
    let rkey = guest.register()?;
    step("registered")?;
    guest.fill(rkey, &memory)?;
    step(&format!("written {}", BYTES / PIECE))?;
    let succeeded = guest.lose(rkey, &memory, &region)?;
    step(&format!("removed {succeeded}"))?;
    guest.is_refused(rkey)?;
    step("refused")?;
    let (other, in_its_place) = more()?;
    guest.guest.frontend.add_mem_region(&in_its_place)?;
    let rkey = guest.register()?;
    guest.fill(rkey, &other)?;
    ensure!(is_empty(&memory)?, "something was written to memory that is gone");
    step("replaced")?;
    // All tables at once: without the region, and the rest as it was.
    let own = guest.guest.region();
    guest.guest.frontend.set_mem_table(&[own])?;
    other.zero(0, usize::try_from(SKEW + BYTES)?)?;
    guest.mine.works(&guest.guest)?;
    ensure!(is_empty(&other)?, "something was written to memory that is gone");
    step("set")
}
