//! What the demo checks: the one list of it, and how each check ended.

/// A check of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    Open,
    Connect,
    Send,
    Write,
    Read,
    Uc,
    Ud,
    Srq,
    Atomics,
    Transfer,
    WrongKey,
    ErrorState,
    Untouched,
    Direct,
    WorkRequests,
    Payload,
    RejectedKeys,
    Teardown,
}

impl Check {
    /// All of them, in the order in which they are made. README lists the same names.
    pub(crate) const ALL: [Self; 18] = [
        Self::Open,
        Self::Connect,
        Self::Send,
        Self::Write,
        Self::Read,
        Self::Uc,
        Self::Ud,
        Self::Srq,
        Self::Atomics,
        Self::Transfer,
        Self::WrongKey,
        Self::ErrorState,
        Self::Untouched,
        Self::Direct,
        Self::WorkRequests,
        Self::Payload,
        Self::RejectedKeys,
        Self::Teardown,
    ];

    /// The name that the output and README have for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Connect => "connect",
            Self::Send => "send",
            Self::Write => "write",
            Self::Read => "read",
            Self::Uc => "uc",
            Self::Ud => "ud",
            Self::Srq => "srq",
            Self::Atomics => "atomics",
            Self::Transfer => "transfer",
            Self::WrongKey => "wrong-key",
            Self::ErrorState => "error-state",
            Self::Untouched => "untouched",
            Self::Direct => "direct",
            Self::WorkRequests => "work-requests",
            Self::Payload => "payload",
            Self::RejectedKeys => "rejected-keys",
            Self::Teardown => "teardown",
        }
    }

    /// What holds if it passes.
    pub(crate) fn sentence(self) -> &'static str {
        match self {
            Self::Open => "both guests open a device of the daemon's and see its port ACTIVE",
            Self::Connect => "the guests find each other, and connect reliable queue pairs",
            Self::Send => {
                "ping-pong by send, with and without immediate and inline data, every byte verified"
            }
            Self::Write => "ping-pong by RDMA write, with and without immediate data, every byte verified",
            Self::Read => "ping-pong by RDMA read, each answered by a fenced send, every byte verified",
            Self::Uc => "the same by send and write of unreliable connections",
            Self::Ud => {
                "ping-pong by datagrams, with and without immediate and inline data, every byte verified"
            }
            Self::Srq => "ping-pong by send into shared receive queues, every byte verified",
            Self::Atomics => {
                "fetch-and-add and compare-and-swap find in the other guest's memory what the last one left there"
            }
            Self::Transfer => {
                "256 MiB written from guest to guest have the checksum at the receiver that they had at the sender"
            }
            Self::WrongKey => "a write with a wrong rkey ends in IBV_WC_REM_ACCESS_ERR",
            Self::ErrorState => {
                "both queue pairs of that write are in ERR, and the owner of the memory was told"
            }
            Self::Untouched => "the memory behind the wrong rkey is what it was",
            Self::Direct => {
                "the ping-pongs by send, write and read again, with doorbells that the daemon has mapped into both guests"
            }
            Self::WorkRequests => "the model has executed as many work requests as the guests have posted",
            Self::Payload => "the model has carried as many payload bytes as the guests have posted",
            Self::RejectedKeys => "the model has rejected as many keys as the guests have used wrong ones",
            Self::Teardown => "when the guests have left, nothing of theirs is left in the model",
        }
    }
}

/// How checks ended.
#[derive(Debug, Default)]
pub(crate) struct Report {
    passed: usize,
    failed: usize,
    left_out: usize,
}

impl Report {
    /// Notes how a check ended, and says it in a line. `Ok` has what was seen, `Err` what was expected and what
    /// was seen instead.
    pub(crate) fn note(&mut self, check: Check, result: &Result<String, String>) -> String {
        let (word, detail) = match result {
            Ok(detail) => {
                self.passed += 1;
                ("ok", detail)
            }
            Err(detail) => {
                self.failed += 1;
                ("FAILED", detail)
            }
        };
        line(word, check, detail)
    }

    /// Notes that a check can't be made, and why, and says it in a line.
    pub(crate) fn leave_out(&mut self, check: Check, why: &str) -> String {
        self.left_out += 1;
        line("-", check, &format!("not checked: {why}"))
    }

    /// Notes that the checks that were not made have failed.
    pub(crate) fn finish(&mut self) {
        self.failed = Check::ALL.len().saturating_sub(self.passed + self.left_out);
    }

    /// Whether all checks that can be made were made, and passed.
    pub(crate) fn is_good(&self) -> bool {
        self.passed + self.left_out == Check::ALL.len() && self.failed == 0
    }

    /// The last line of the demo.
    pub(crate) fn summary(&self) -> String {
        let summary = format!("demo: {} checks passed, {} failed", self.passed, self.failed);
        if self.left_out == 0 { summary } else { format!("{summary}, {} can't be made", self.left_out) }
    }
}

fn line(word: &str, check: Check, detail: &str) -> String {
    let line = format!("{word:<6} {:<13} {}", check.name(), check.sentence());
    if detail.is_empty() { line } else { format!("{line}\n{:20} {detail}", "") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_has_each_check_once_in_order() {
        for (place, check) in Check::ALL.iter().enumerate() {
            assert_eq!(*check as usize, place);
        }
    }

    #[test]
    fn readme_lists_the_checks() {
        let readme = include_str!("../../../../README.md");
        for check in Check::ALL {
            let row = format!("| `{}` | {} |", check.name(), check.sentence());
            assert!(readme.contains(&row), "README.md lacks the line {row}");
        }
    }

    #[test]
    fn checks_that_were_not_made_count_as_failed() {
        let mut report = Report::default();
        assert!(report.note(Check::Open, &Ok(String::new())).starts_with("ok     open "));
        assert!(report.note(Check::Connect, &Err("expected a, seen b".into())).contains("seen b"));
        report.finish();
        assert!(!report.is_good());
        assert_eq!(report.summary(), "demo: 1 checks passed, 17 failed");
    }

    #[test]
    fn checks_that_can_not_be_made_are_neither_passed_nor_failed() {
        let mut report = Report::default();
        for check in Check::ALL {
            if [Check::Payload, Check::Teardown].contains(&check) {
                let text = report.leave_out(check, "it is dark");
                assert!(text.starts_with("-      ") && text.ends_with("not checked: it is dark"), "{text}");
            } else {
                report.note(check, &Ok(String::new()));
            }
        }
        report.finish();
        assert!(report.is_good());
        assert_eq!(report.summary(), "demo: 16 checks passed, 0 failed, 2 can't be made");
    }
}
