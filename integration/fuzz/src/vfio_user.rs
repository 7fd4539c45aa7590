//! A VMM's calls: regions, memory, interrupts, resets, and through the registers its guest's commands, with
//! arguments that no honest one has. The protocol's framing is its crate's, and not in here.

use std::fs::File;
use std::sync::{Arc, LazyLock};

use ::vfio_user::{DmaMapFlags, DmaUnmapFlags, ServerBackend};
use arbitrary::Arbitrary;
use mlx4_model::device::PciFunction;
use mlx4_model::fabric::Fabric;
use mlx4_model::hca::{Hca, HcaConfig};
use mlx4_model::mem::DmaSpace;
use mlx4_model::vfio_user::{EventFdInterrupts, backend};
use mlx4_pci::HostMemory;
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::fw::MapEntry;
use mlx4_wire::cmd::hca::{INIT_HCA_VERSION, IcmTable, InitHca, RdmarcTable};
use mlx4_wire::regs::{BAR2_BYTES, HCR_OFFSET, Hcr, RESET_OFFSET};
use mlx4_wire::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use crate::input::operations;
use crate::parts::{fabric, settle};

/// The client's memory that is mapped from the start, and where.
const BYTES: usize = 8 << 20;
const IOVA: u64 = 0x10_0000_0000;
/// Where mailboxes are in it, and what the firmware is given: all of ICM lies in it, over and over.
const INPUT: u64 = IOVA;
const OUTPUT: u64 = IOVA + 0x1000;
const GIVEN: u64 = IOVA + (4 << 20);
const LOG2_GIVEN_PAGES: u8 = 10;
const ICM_BYTES: u64 = 64 << 20;
/// What one command may map of ICM.
const ICM_PIECE: u64 = 0x1000 << LOG2_GIVEN_PAGES;

const VECTORS: u16 = 64;
const GUID: u64 = 0x0002_c903_0000_0040;

static FABRIC: LazyLock<Arc<Fabric>> = LazyLock::new(|| fabric(false));

/// An address or a length.
#[derive(Arbitrary, Debug)]
enum Number {
    Any(u64),
    Small(u16),
    Page(u8),
    /// In the client's memory.
    Mapped(u32),
    /// Just in front of the end of everything.
    Last(u16),
}

impl Number {
    fn value(&self) -> u64 {
        match *self {
            Self::Any(value) => value,
            Self::Small(value) => value.into(),
            Self::Page(page) => u64::from(page) << 12,
            Self::Mapped(offset) => IOVA + u64::from(offset) % (2 * BYTES as u64),
            Self::Last(before) => u64::MAX - u64::from(before),
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Place {
    Config(u16),
    Registers(u32),
    Pages(u32),
    Wild(u32, Number),
}

impl Place {
    fn region_and_offset(&self) -> (u32, u64) {
        match self {
            Self::Config(offset) => (7, u64::from(offset % 0x1010)),
            Self::Registers(offset) => (0, u64::from(offset % 0x10_0010)),
            Self::Pages(offset) => (2, u64::from(*offset) % (BAR2_BYTES + 16)),
            Self::Wild(region, offset) => (*region, offset.value()),
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Call<'a> {
    Read(Place, u16),
    Write(Place, &'a [u8]),
    /// One word, aligned.
    Store(Place, u32),
    Map {
        flags: u32,
        offset: Number,
        address: Number,
        size: Number,
        fd: bool,
    },
    Unmap {
        flags: u32,
        address: Number,
        size: Number,
    },
    Interrupts {
        index: u8,
        flags: u32,
        start: u32,
        count: u32,
        fds: u8,
    },
    Reset,
    /// Bytes for a command's input mailbox, from an offset on.
    Mailbox(u8, &'a [u8]),
    /// Bytes into the memory that the firmware was given.
    Poke(u32, &'a [u8]),
    Command {
        opcode: u8,
        opmod: u8,
        modifier: u32,
        input: Option<Number>,
        output: Option<Number>,
    },
    Send {
        page: u8,
        qpn: u8,
    },
    Arm {
        page: u8,
        word: u64,
    },
    Run,
}

/// A card with a client.
struct Client<B> {
    backend: B,
    hca: Arc<Hca>,
    memory: HostMemory,
}

/// Makes a client's calls.
pub fn run(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let memory = HostMemory::allocate(BYTES).unwrap();
    let dma = Arc::new(DmaSpace::new());
    let irqs = Arc::new(EventFdInterrupts::new(VECTORS));
    let config = HcaConfig { node_guid: GUID, ports: 1 + (first >> 7), trace: None };
    let hca = Hca::new(config, Arc::clone(&dma), Arc::<EventFdInterrupts>::clone(&irqs), &FABRIC).unwrap();
    let backend = backend(Arc::<Hca>::clone(&hca), Arc::clone(&dma), irqs);
    let mut client = Client { backend, hca, memory };
    client.map(DmaMapFlags::READ_WRITE, 0, IOVA, BYTES as u64, true);
    if first & 1 != 0 {
        client.bring_up();
    }
    for call in operations::<Call<'_>>(rest, 200) {
        client.make(&call);
    }
    let _quiet = client.backend.reset();
    dma.unmap_all();
    // Everything is as it was at first, whatever was asked for: it can be brought up again.
    client.map(DmaMapFlags::READ_WRITE, 0, IOVA, BYTES as u64, true);
    client.bring_up();
    let _quiet = client.backend.reset();
}

impl<B: ServerBackend> Client<B> {
    fn map(&mut self, flags: DmaMapFlags, offset: u64, address: u64, size: u64, fd: bool) {
        let fd = fd.then(|| File::from(self.memory.fd().try_clone_to_owned().unwrap()));
        let _refused = self.backend.dma_map(flags, offset, address, size, fd);
    }

    fn make(&mut self, call: &Call<'_>) {
        match call {
            Call::Read(place, length) => {
                let (region, offset) = place.region_and_offset();
                let mut data = vec![0; usize::from(*length)];
                let _refused = self.backend.region_read(region, offset, &mut data);
            }
            Call::Write(place, data) => {
                let (region, offset) = place.region_and_offset();
                let _refused = self.backend.region_write(region, offset, data);
            }
            Call::Store(place, word) => {
                let (region, offset) = place.region_and_offset();
                let _refused = self.backend.region_write(region, offset & !3, &word.to_be_bytes());
            }
            Call::Map { flags, offset, address, size, fd } => {
                let flags = DmaMapFlags::from_bits_retain(*flags);
                self.map(flags, offset.value(), address.value(), size.value(), *fd);
            }
            Call::Unmap { flags, address, size } => {
                let flags = DmaUnmapFlags::from_bits_retain(*flags);
                let _refused = self.backend.dma_unmap(flags, address.value(), size.value());
            }
            Call::Interrupts { index, flags, start, count, fds } => {
                let fd = || File::from(self.memory.fd().try_clone_to_owned().unwrap());
                let fds = (0..fds % 4).map(|_| fd()).collect();
                let _refused = self.backend.set_irqs(u32::from(index % 6), *flags, *start, *count, fds);
            }
            Call::Reset => {
                let _refused = self.backend.reset();
            }
            Call::Mailbox(word, data) => {
                let at = usize::from(*word) * 4;
                self.put(at, &data[..data.len().min(0x1000 - at)]);
            }
            Call::Poke(at, data) => {
                let at = usize::try_from(*at).unwrap() % (BYTES - 0x1000);
                self.put(at, &data[..data.len().min(0x1000)]);
            }
            Call::Command { opcode, opmod, modifier, input, output } => {
                let input = input.as_ref().map_or(INPUT, Number::value);
                let output = output.as_ref().map_or(OUTPUT, Number::value);
                // Opcodes are below 0x62, but for a few at the end of their range.
                let opcode = if *opcode < 0xf0 { u16::from(*opcode) } else { 0xf00 | u16::from(*opcode) };
                self.command(Opcode(opcode), *opmod, *modifier, input, output);
            }
            Call::Send { page, qpn } => {
                let value = (0x40 + u32::from(*qpn)) << 8;
                let page = u64::from(*page % 4) << 12;
                let _never = self.backend.region_write(2, page + 0x14, &value.to_be_bytes());
            }
            Call::Arm { page, word } => {
                let page = u64::from(*page % 4) << 12;
                let _never = self.backend.region_write(2, page + 0x20, &word.to_be_bytes());
            }
            Call::Run => settle(&self.hca),
        }
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        self.memory.write(at, bytes).unwrap();
    }

    fn command(&mut self, opcode: Opcode, opmod: u8, modifier: u32, input: u64, output: u64) -> u32 {
        let mut hcr = Hcr::new_zeroed();
        hcr.in_param = U64::new(input);
        hcr.in_modifier = U32::new(modifier);
        hcr.out_param = U64::new(output);
        hcr.control.set_opcode(opcode);
        hcr.control.set_opmod(opmod & 0xf);
        hcr.control.set_event(opmod & 0x10 != 0);
        hcr.control.set_go(true);
        self.backend.region_write(0, HCR_OFFSET, hcr.as_bytes()).unwrap();
        let mut after = Hcr::new_zeroed();
        self.hca.bar_read(0, HCR_OFFSET, after.as_mut_bytes());
        u32::from(after.control.status().0)
    }

    fn command_ok(&mut self, opcode: Opcode, modifier: u32, input: u64) {
        let status = self.command(opcode, 0, modifier, input, OUTPUT);
        assert_eq!(status, 0, "{opcode} while a card is brought up");
    }

    /// From a reset to INIT_HCA, as a driver does it.
    fn bring_up(&mut self) {
        self.backend.region_write(0, RESET_OFFSET, &0x0100_0000u32.to_le_bytes()).unwrap();
        let _quiet = self.backend.reset();
        self.backend.region_write(7, 4, &[6, 0]).unwrap();
        let map = |va| MapEntry::new(va, GIVEN, LOG2_GIVEN_PAGES).unwrap();
        self.put(0, map(0).as_bytes());
        self.command_ok(Opcode::MAP_FA, 1, INPUT);
        self.command_ok(Opcode::RUN_FW, 0, 0);
        self.command_ok(Opcode::SET_ICM_SIZE, 0, ICM_BYTES);
        self.put(0, map(0).as_bytes());
        self.command_ok(Opcode::MAP_ICM_AUX, 1, INPUT);
        // The control MPTs of the four kinds of objects are a gigabyte apart.
        let places = (0..16).map(|piece| piece * ICM_PIECE).chain((1..4).map(|kind| kind << 30));
        let entries: Vec<_> = places.map(map).collect();
        self.put(0, entries.as_bytes());
        self.command_ok(Opcode::MAP_ICM, 19, INPUT);
        self.put(0, init_hca().as_bytes());
        self.command_ok(Opcode::INIT_HCA, 0, INPUT);
    }
}

/// Small tables, one after the other.
fn init_hca() -> InitHca {
    let mut init = InitHca::new_zeroed();
    init.version = INIT_HCA_VERSION;
    let mut next = 0;
    let mut base = || {
        next += 0x4_0000;
        next
    };
    let tables = &mut init.params;
    tables.qpc = IcmTable::new(base(), 8).unwrap();
    tables.srqc = IcmTable::new(base(), 7).unwrap();
    tables.cqc = IcmTable::new(base(), 8).unwrap();
    tables.eqc = IcmTable::new(base(), 5).unwrap();
    tables.rdmarc = RdmarcTable::new(base(), 3).unwrap();
    tables.dmpt_base = U64::new(base());
    tables.dmpt.set_log2_entries(8);
    tables.mtt_base = U64::new(base());
    tables.mc_base = U64::new(base());
    tables.mc_entry_sz.set_log2(9);
    tables.mc_hash_sz.set_log2(5);
    tables.mc_table.set_log2_table_sz(6);
    tables.uar.set_log2_max_uars(10);
    init
}
