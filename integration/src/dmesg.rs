//! Looking for trouble in a kernel's log.

/// Words that no healthy kernel logs, whatever the level.
const ALARMS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "Call Trace:",
    "Oops",
    "general protection fault",
    "refcount_t:",
    "blocked for more than",
    "INFO: rcu",
    "kernel panic",
    "Kernel panic",
];

/// The least severe level that counts as trouble: KERN_WARNING.
const WARNING: u8 = 4;

/// A kernel's log, as `dmesg -r` gives it.
#[derive(Clone, Debug)]
pub struct Dmesg {
    lines: Vec<Line>,
}

#[derive(Clone, Debug)]
struct Line {
    /// 0 (emergency) to 7 (debugging).
    level: u8,
    text: String,
}

impl Dmesg {
    /// A log from its raw lines, `<priority>[time] text`. A line without a priority goes on with that of
    /// the line before.
    pub fn parse(raw: &str) -> Self {
        let mut level = 6;
        let mut lines = Vec::new();
        for line in raw.lines() {
            let priority = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
            let text = match priority.and_then(|(number, text)| Some((number.parse::<u32>().ok()?, text))) {
                Some((number, text)) => {
                    level = (number & 7) as u8;
                    text
                }
                None => line,
            };
            lines.push(Line { level, text: text.to_owned() });
        }
        Self { lines }
    }

    /// The whole log, without priorities.
    pub fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{}\n", line.text)).collect()
    }

    /// The lines that contain `part`.
    pub fn lines_with(&self, part: &str) -> Vec<&str> {
        self.lines.iter().map(|line| line.text.as_str()).filter(|text| text.contains(part)).collect()
    }

    /// The lines that tell of trouble: what any kernel would log only of a bug, and what was logged as a
    /// warning or worse by a line that contains one of `names`.
    pub fn problems(&self, names: &[&str]) -> Vec<&str> {
        self.lines
            .iter()
            .filter(|line| {
                ALARMS.iter().any(|alarm| line.text.contains(alarm))
                    || (line.level <= WARNING && names.iter().any(|name| line.text.contains(name)))
            })
            .map(|line| line.text.as_str())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "<6>[    1.0] mlx4_core: Mellanox ConnectX core driver\n\
                       <4>[    2.0] mlx4_core 0000:01:00.0: command 0x31 failed\n\
                       <4>[    2.5] usb: something else\n\
                       <4>[    3.0] WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2\n\
                       <28>[    4.0] ib0: from user space, at warning level\n\
                       \x20continued";

    #[test]
    fn problems_are_warnings_of_the_names_and_any_alarm() {
        let log = Dmesg::parse(LOG);
        assert_eq!(
            log.problems(&["mlx4"]),
            [
                "[    2.0] mlx4_core 0000:01:00.0: command 0x31 failed",
                "[    3.0] WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2",
            ]
        );
        assert_eq!(log.problems(&["ib0"]).len(), 2);
    }

    #[test]
    fn text_and_lines_have_no_priorities() {
        let log = Dmesg::parse(LOG);
        assert_eq!(log.lines_with("Mellanox"), ["[    1.0] mlx4_core: Mellanox ConnectX core driver"]);
        assert!(log.text().ends_with("level\n continued\n"));
    }
}
