//! Archives in cpio's "newc" form, which the kernel unpacks as its initial file system.

use std::collections::BTreeMap;

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Device number of the console, 5:1.
const CONSOLE: (u32, u32) = (5, 1);

/// An archive under construction. Paths are relative to the root; folders above an entry are added by
/// themselves. The first entry of a path stays.
#[derive(Debug, Default)]
pub(super) struct Archive {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// File type and permissions.
    mode: u32,
    device: (u32, u32),
    body: Vec<u8>,
}

impl Archive {
    pub(super) fn folder(&mut self, path: &str) {
        self.folder_with_mode(path, 0o755);
    }

    pub(super) fn folder_with_mode(&mut self, path: &str, permissions: u32) {
        self.add(path, FOLDER | permissions, (0, 0), Vec::new());
    }

    pub(super) fn file(&mut self, path: &str, permissions: u32, body: &[u8]) {
        self.add(path, FILE | permissions, (0, 0), body.to_vec());
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.add(path, LINK | 0o777, (0, 0), target.as_bytes().to_vec());
    }

    /// The device that the kernel opens for its first program.
    pub(super) fn console(&mut self) {
        self.add("dev/console", CHARACTER_DEVICE | 0o600, CONSOLE, Vec::new());
    }

    pub(super) fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    fn add(&mut self, path: &str, mode: u32, device: (u32, u32), body: Vec<u8>) {
        if let Some((above, _)) = path.rsplit_once('/')
            && !self.contains(above)
        {
            self.folder(above);
        }
        self.entries.entry(path.to_owned()).or_insert(Entry { mode, device, body });
    }

    /// The archive's bytes. Names come in order, so folders come before what is in them.
    pub(super) fn finish(self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut inode = 0;
        for (path, entry) in self.entries {
            inode += 1;
            write(&mut out, inode, &path, &entry);
        }
        write(&mut out, 0, "TRAILER!!!", &Entry { mode: 0, device: (0, 0), body: Vec::new() });
        out
    }
}

/// One entry: magic, 13 fields of 8 hexadecimal digits, the name with a zero byte, the body; name and
/// body are padded to 4 bytes.
fn write(out: &mut Vec<u8>, inode: u32, path: &str, entry: &Entry) {
    let links = if entry.mode & FOLDER != 0 && entry.mode & FILE == 0 { 2 } else { 1 };
    out.extend_from_slice(b"070701");
    let fields = [
        inode as usize,
        entry.mode as usize,
        0, // owner
        0, // group
        links,
        0, // modification time
        entry.body.len(),
        0, // the archive's own device, major
        0, // minor
        entry.device.0 as usize,
        entry.device.1 as usize,
        path.len() + 1,
        0, // checksum, unused in this form
    ];
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(&entry.body);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, modes and bodies of an archive, read the way the form is defined.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let digits = &bytes[6 + 8 * index..14 + 8 * index];
                u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let body = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(bytes.len(), body);
                return found;
            }
            found.push((name, mode, bytes[body..body + size].to_vec()));
            bytes = &bytes[(body + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn finish_writes_folders_before_their_files() {
        let mut archive = Archive::default();
        archive.file("usr/bin/a", 0o755, b"hello");
        archive.link("bin", "usr/bin");
        let found = read(&archive.finish());
        assert_eq!(
            found,
            [
                ("bin".to_owned(), 0o120_777, b"usr/bin".to_vec()),
                ("usr".to_owned(), 0o040_755, Vec::new()),
                ("usr/bin".to_owned(), 0o040_755, Vec::new()),
                ("usr/bin/a".to_owned(), 0o100_755, b"hello".to_vec()),
            ]
        );
    }

    #[test]
    fn add_of_a_path_that_is_there_keeps_the_first() {
        let mut archive = Archive::default();
        archive.file("a", 0o644, b"1");
        archive.file("a", 0o755, b"2");
        assert_eq!(read(&archive.finish()), [("a".to_owned(), 0o100_644, b"1".to_vec())]);
    }

    #[test]
    fn console_is_character_device_5_1() {
        let mut archive = Archive::default();
        archive.console();
        let bytes = archive.finish();
        let entry = &bytes[bytes.windows(11).position(|w| w == b"dev/console").unwrap() - 110..];
        assert_eq!(&entry[6 + 8..6 + 16], b"00002180");
        assert_eq!(&entry[6 + 72..6 + 88], b"0000000500000001");
    }
}
