//! Limits of one guest, as an operator writes them.

use paraverbs_tenant::Limits;
use paraverbs_tenant::hca::{DeviceInfo, DmaInfo};
use serde::Deserialize;

/// Without being told otherwise a guest may have one part in so many of what the HCA has.
const PARTS: u32 = 4;

/// A limit that can't be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Nothing would work.
    #[error("limit {name} is 0; leave it out for the default, or allow at least 1")]
    Zero {
        /// Which.
        name: &'static str,
    },
    /// The HCA has less.
    #[error("limit {name} of {value} is more than the {max} that the HCA has; choose at most that")]
    TooMany {
        /// Which.
        name: &'static str,
        /// What was asked for.
        value: u64,
        /// What there is.
        max: u64,
    },
}

macro_rules! limits {
    ($( $(#[$meta:meta])* $name:ident: $type:ty => $limit:ident $( , of the HCA: $max:ident )? ; )*) => {
        /// What one guest may have; what is left out has a default, or a quarter of what the HCA has if that is less.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct GuestLimits {
            $( $(#[$meta])* pub $name: Option<$type>, )*
        }

        impl GuestLimits {
            /// Whether they make sense on some HCA.
            ///
            /// # Errors
            /// One that is 0.
            pub fn check(&self) -> Result<(), LimitError> {
                $( if self.$name == Some(0) {
                    return Err(LimitError::Zero { name: stringify!($name) });
                } )*
                Ok(())
            }

            /// The limits on a certain HCA, of which the host maps memory in so many pieces.
            ///
            /// # Errors
            /// One that is 0, or more than the HCA has.
            pub fn on(&self, info: &DeviceInfo, dma: &DmaInfo) -> Result<Limits, LimitError> {
                self.check()?;
                let mut limits = Limits::default();
                limits.chunks = limits.chunks.min(pieces(dma.mappings));
                $( $( limits.$limit = limits.$limit.min(share(info.$max)); )? )*
                $( if let Some(value) = self.$name {
                    $( at_most(stringify!($name), value.into(), info.$max.into())?; )?
                    limits.$limit = value;
                } )*
                Ok(limits)
            }
        }
    };
}

limits! {
    /// Queue pairs.
    queue_pairs: u32 => qps, of the HCA: max_qp;
    /// Completion queues.
    completion_queues: u32 => cqs, of the HCA: max_cq;
    /// Memory regions.
    memory_regions: u32 => mrs, of the HCA: max_mr;
    /// Memory windows.
    memory_windows: u32 => mws, of the HCA: max_mw;
    /// Protection domains.
    protection_domains: u32 => pds, of the HCA: max_pd;
    /// Shared receive queues.
    shared_receive_queues: u32 => srqs, of the HCA: max_srq;
    /// UAR pages: programs of the guest that open the device at once.
    uars: u32 => uars;
    /// Bytes registered, rings included.
    registered_bytes: u64 => registered_bytes;
}

fn at_most(name: &'static str, value: u64, max: u64) -> Result<(), LimitError> {
    if value > max {
        return Err(LimitError::TooMany { name, value, max });
    }
    Ok(())
}

/// What a guest may have of so many objects of the HCA.
fn share(all: u32) -> u32 {
    (all / PARTS).max(1)
}

/// How many pieces of a guest's memory may be mapped where the host still maps so many: no guest takes them all.
fn pieces(all: u64) -> usize {
    usize::try_from(all / u64::from(PARTS)).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_may_have_a_quarter_and_at_least_one() {
        assert_eq!([1 << 15, 5, 4, 3, 0].map(share), [1 << 13, 1, 1, 1, 1]);
        assert_eq!([65_535, 100, 0].map(pieces), [16_383, 25, 1]);
        assert!(pieces(u64::MAX) >= Limits::default().chunks);
    }
}
