//! Objects that come and go, against the guest's limits.

use fastrand::Rng;
use paraverbs_verbs::{Access, Context, Cq, Mr, Pd, Qp, QpInit};

use crate::scene::errno;

/// How many of each come and go; what a guest may have besides is used up.
const CQS: u32 = 2;
const MRS: u32 = 3;
const QPS: u32 = 2;
/// Bytes that a guest may have registered, those of connections among them.
pub(crate) const BYTES: u64 = 16 << 20;

const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;

/// What a guest has, besides connections. Fields in the order in which they go.
pub(crate) struct Objects {
    qps: Vec<Qp>,
    mrs: Vec<(Mr, u8)>,
    cqs: Vec<Cq>,
    used: Used,
    guest: Context,
}

/// What uses up a guest's limits.
struct Used {
    _qps: Vec<Qp>,
    _mrs: Vec<Mr>,
    _cqs: Vec<Cq>,
    pds: Vec<Pd>,
}

/// As many as there may be, and then `rest` fewer.
fn all_but<T: std::fmt::Debug>(rest: u32, mut make: impl FnMut() -> paraverbs_verbs::Result<T>) -> Vec<T> {
    let mut all = Vec::new();
    let refused = loop {
        match make() {
            Ok(new) => all.push(new),
            refused => break refused,
        }
    };
    assert_eq!(errno(refused), ENOMEM);
    all.truncate(all.len().checked_sub(usize::try_from(rest).unwrap()).unwrap());
    all
}

/// A new object if there is room for it, and no memory if there is none.
fn take<T: std::fmt::Debug>(have: usize, most: u32, result: paraverbs_verbs::Result<T>) -> Option<T> {
    if have < usize::try_from(most).unwrap() {
        return Some(result.unwrap());
    }
    assert_eq!(errno(result), ENOMEM);
    None
}

impl Objects {
    /// Uses up what there may be, but for what shall come and go.
    pub(crate) fn new(guest: &Context) -> Self {
        let pds = all_but(0, || guest.alloc_pd());
        let cqs = all_but(CQS, || guest.create_cq(4, None));
        let qps = all_but(QPS, || pds[0].create_qp(&QpInit::new(&cqs[0])));
        let mrs = all_but(MRS, || pds[0].alloc_mr(1, Access::ALL));
        let used = Used { _qps: qps, _mrs: mrs, _cqs: cqs, pds };
        let cqs = vec![guest.create_cq(4, None).unwrap()];
        Self { qps: Vec::new(), mrs: Vec::new(), cqs, used, guest: guest.clone() }
    }

    /// Makes something, or destroys it.
    pub(crate) fn step(&mut self, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        match rng.u8(..9) {
            0 => {
                note("one PD too many".into());
                assert_eq!(errno(self.guest.alloc_pd()), ENOMEM);
            }
            1 => {
                note(format!("a CQ beside {}", self.cqs.len()));
                let made = self.guest.create_cq(rng.u32(1..200), None);
                self.cqs.extend(take(self.cqs.len(), CQS, made));
            }
            // The first is what queue pairs complete to.
            2 if self.cqs.len() > 1 => {
                note("destroy a CQ".into());
                self.cqs.pop().unwrap().destroy().unwrap();
            }
            3 | 4 => {
                let bytes = rng.usize(1..70_000);
                note(format!("a region of {bytes} bytes beside {}", self.mrs.len()));
                let made = take(self.mrs.len(), MRS, self.used.pds[0].alloc_mr(bytes, Access::ALL));
                let fill = rng.u8(..);
                if let Some(mr) = &made {
                    mr.fill(0, bytes, fill).unwrap();
                }
                self.mrs.extend(made.map(|mr| (mr, fill)));
            }
            5 if !self.mrs.is_empty() => {
                note("destroy a region".into());
                let (mr, fill) = self.mrs.swap_remove(rng.usize(..self.mrs.len()));
                let mut bytes = vec![0; mr.len()];
                mr.read(0, &mut bytes).unwrap();
                assert!(bytes.iter().all(|byte| *byte == fill), "somebody else has written to it");
                mr.dereg().unwrap();
            }
            6 => {
                note(format!("a queue pair beside {}", self.qps.len()));
                let made = self.used.pds[0].create_qp(&QpInit::new(&self.cqs[0]));
                self.qps.extend(take(self.qps.len(), QPS, made));
            }
            7 if !self.qps.is_empty() => {
                note("destroy a queue pair".into());
                self.qps.swap_remove(rng.usize(..self.qps.len())).destroy().unwrap();
            }
            8 => {
                note("more bytes than there may be, and none".into());
                if self.mrs.len() < usize::try_from(MRS).unwrap() {
                    let bytes = usize::try_from(BYTES).unwrap();
                    assert_eq!(errno(self.used.pds[0].alloc_mr(bytes, Access::ALL)), ENOMEM);
                }
                assert_eq!(errno(self.used.pds[0].alloc_mr(0, Access::ALL)), EINVAL);
            }
            _ => {}
        }
    }
}
