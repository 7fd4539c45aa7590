//! Our driver on a card behind VFIO, as a test runs it in a guest.
//!
//! Brings the card up, waits until port 1 is ACTIVE, writes memory from one queue pair of the card to
//! another by RDMA, and gives everything back. Each step is a line on standard output; the first that fails
//! is one on standard error, and the exit status is 1.
//!
//! With `unmapped` as its second argument it takes the memory that is written to from the card first, as no
//! driver should: the IOMMU must refuse the card's access, and the write ends with an error.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mlx4::{
    Access, Attributes, CompletionQueue, Config, Event, EventSink, Hca, Path, Pd, PortEvent, QueuePair,
    QueuePairConfig, RegionConfig, Uar,
};
use mlx4_pci::{PciDevice as _, VfioPci};
use mlx4_queue::Completed;
use mlx4_queue::geometry::{SendSize, Service};
use mlx4_queue::request::{Data, Operation, Remote, SendFlags, SendRequest, Sge};
use mlx4_wire::ctx::qp::{Mtu, QpState};

/// A guest's code is translated, and its subnet manager is outside.
const PATIENCE: Duration = Duration::from_secs(60);
const BYTES: usize = 64 << 10;
const PAGE: usize = 4096;
/// Number of the one request that is posted.
const WRITE: u64 = 42;
/// PSNs of the two directions, chosen to wrap early.
const PSNS: [u32; 2] = [0xff_fff0, 7];

struct Events(Sender<Event>);

impl EventSink for Events {
    fn event(&self, event: &Event) {
        // Nobody listens once the port is up.
        let _unheard = self.0.send(*event);
    }
}

fn main() -> ExitCode {
    env_logger::init();
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("rig-driver: name the card, for instance vfio:0000:01:00.0");
        return ExitCode::FAILURE;
    };
    let unmapped = std::env::args().nth(2).is_some_and(|word| word == "unmapped");
    match run(&path, unmapped) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rig-driver: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(path: &str, unmapped: bool) -> Result<()> {
    let device = Arc::new(VfioPci::open(path)?);
    let (sender, events) = channel();
    let config = Config { events: Arc::new(Events(sender)), completion_eqs: 1, ..Config::default() };
    let hca = Hca::open(Arc::<VfioPci>::clone(&device), &config)?;
    println!("firmware {:?}", hca.firmware());
    wait_for_active(&events)?;
    let port = hca.port(1)?;
    println!("port 1 ACTIVE lid {} sm_lid {}", port.lid, port.sm_lid);
    if unmapped {
        let outcome = write_to_unmapped(&hca, &device, port.lid)?;
        println!("rdma write to unmapped memory: {outcome}");
    } else {
        let bytes = exchange(&hca, port.lid)?;
        println!("rdma write of {bytes} bytes verified");
    }
    hca.close()?;
    println!("closed");
    Ok(())
}

fn wait_for_active(events: &Receiver<Event>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = events.recv_timeout(left).context("port 1 doesn't become ACTIVE")?;
        if event == (Event::Port { port: 1, event: PortEvent::Active }) {
            return Ok(());
        }
    }
}

/// Sends data from one queue pair to another, both on this card, and looks whether it is there.
fn exchange(hca: &Hca, lid: u16) -> Result<usize> {
    let (pd, uar) = (hca.pd()?, hca.uar()?);
    let from = hca.memory(&pd, BYTES, Access::LOCAL)?;
    let to = hca.memory(&pd, BYTES, Access::ALL)?;
    let pattern: Vec<u8> = (0..BYTES).map(|i| u8::try_from(i * 7 % 251).unwrap_or(0)).collect();
    from.write(0, &pattern)?;
    let cq = hca.completion_queue(64, &uar, 0, || {})?;
    let pair = [queue_pair(hca, &pd, &uar, &cq)?, queue_pair(hca, &pd, &uar, &cq)?];
    connect(&pair[0], pair[1].number(), lid, PSNS)?;
    connect(&pair[1], pair[0].number(), lid, [PSNS[1], PSNS[0]])?;

    let length = u32::try_from(BYTES)?;
    let target = Remote { address: to.address(0), rkey: to.region().rkey() };
    pair[0].post_send(&[write(target, &[from.piece(0, length)])])?;
    let outcome = completion(&cq)?;
    ensure!(matches!(outcome, Completed::Sent { .. }), "the write completes as {outcome:?}");
    let mut arrived = vec![0; BYTES];
    to.read(0, &mut arrived)?;
    ensure!(arrived == pattern, "other data has arrived than was sent");

    for qp in pair {
        qp.destroy()?;
    }
    cq.destroy()?;
    from.destroy()?;
    to.destroy()?;
    Ok(BYTES)
}

/// Writes one packet to memory that the card could reach when it was registered, and no longer can. Says how
/// that ends.
fn write_to_unmapped(hca: &Hca, device: &VfioPci, lid: u16) -> Result<String> {
    let (pd, uar) = (hca.pd()?, hca.uar()?);
    let from = hca.memory(&pd, PAGE, Access::LOCAL)?;
    let to = device.dma().allocate(PAGE, 1)?;
    let region = hca.region(&RegionConfig {
        pd: &pd,
        address: to.iova(),
        length: u64::try_from(PAGE)?,
        pages: &[to.iova()],
        log2_page: 12,
        access: Access::ALL,
        bind: false,
    })?;
    let target = Remote { address: to.iova(), rkey: region.rkey() };
    to.release()?;
    let cq = hca.completion_queue(64, &uar, 0, || {})?;
    let pair = [queue_pair(hca, &pd, &uar, &cq)?, queue_pair(hca, &pd, &uar, &cq)?];
    connect(&pair[0], pair[1].number(), lid, PSNS)?;
    connect(&pair[1], pair[0].number(), lid, [PSNS[1], PSNS[0]])?;
    pair[0].post_send(&[write(target, &[from.piece(0, u32::try_from(PAGE)?)])])?;
    let outcome = format!("{:?}", completion(&cq)?);

    for qp in pair {
        qp.destroy()?;
    }
    cq.destroy()?;
    region.destroy()?;
    from.destroy()?;
    Ok(outcome)
}

fn queue_pair(hca: &Hca, pd: &Pd, uar: &Uar, cq: &CompletionQueue) -> Result<QueuePair> {
    Ok(hca.queue_pair(&QueuePairConfig {
        service: Service::Rc,
        pd,
        uar,
        send_cq: cq,
        receive_cq: cq,
        send: SendSize { requests: 16, sges: 1, inline: 0 },
        receives: 16,
        receive_sges: 1,
        srq: None,
    })?)
}

fn connect(qp: &QueuePair, remote_qpn: u32, lid: u16, [send_psn, receive_psn]: [u32; 2]) -> Result<()> {
    let init =
        Attributes { pkey_index: Some(0), port: Some(1), access: Some(Access::ALL), ..Attributes::default() };
    let receive = Attributes {
        path: Some(Path::local(1, lid, 0)),
        mtu: Some(Mtu::MTU_4096),
        remote_qpn: Some(remote_qpn),
        receive_psn: Some(receive_psn),
        responder_reads: Some(4),
        min_rnr_timer: Some(12),
        ..Attributes::default()
    };
    let send = Attributes {
        send_psn: Some(send_psn),
        timeout: Some(14),
        retry_count: Some(7),
        rnr_retry: Some(7),
        requester_reads: Some(4),
        ..Attributes::default()
    };
    qp.modify(QpState::INIT, &init)?;
    qp.modify(QpState::RTR, &receive)?;
    qp.modify(QpState::RTS, &send)?;
    Ok(())
}

/// A write that reports its end.
fn write(target: Remote, pieces: &[Sge]) -> SendRequest<'_> {
    SendRequest {
        wr_id: WRITE,
        operation: Operation::Write(target),
        data: Data::Pieces(pieces),
        flags: SendFlags { signalled: true, ..SendFlags::default() },
        destination: None,
    }
}

/// How the write ends.
fn completion(cq: &CompletionQueue) -> Result<Completed> {
    let deadline = Instant::now() + PATIENCE;
    let mut found = None;
    while found.is_none() {
        ensure!(Instant::now() < deadline, "the write doesn't complete");
        cq.poll(1, |completion| found = Some(completion))?;
    }
    match found {
        Some(completion) if completion.wr_id == WRITE => Ok(completion.outcome),
        other => bail!("a request that was not posted completes: {other:?}"),
    }
}
