//! Which mirror of Debian's archive this machine uses, from apt's own configuration.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The suites of Debian's main archive, by their names and by their states.
const SUITES: &[&str] = &[
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// The address of the mirror. `PARAVERBS_DEBIAN_MIRROR` names one on a machine that uses none.
///
/// # Errors
/// No apt source of this machine is Debian's main archive.
pub(super) fn uri() -> Result<String> {
    if let Ok(uri) = std::env::var("PARAVERBS_DEBIAN_MIRROR") {
        return Ok(uri);
    }
    in_folder(Path::new("/etc/apt")).context(
        "apt's sources on this machine name no mirror of Debian's archive: set PARAVERBS_DEBIAN_MIRROR to one",
    )
}

fn in_folder(apt: &Path) -> Option<String> {
    let mut files = vec![apt.join("sources.list")];
    if let Ok(entries) = fs::read_dir(apt.join("sources.list.d")) {
        let mut parts: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        parts.sort();
        files.extend(parts);
    }
    files.iter().find_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        match file.extension()?.to_str()? {
            "list" => text.lines().find_map(one_line),
            "sources" => text.split("\n\n").find_map(stanza),
            _ => None,
        }
    })
}

/// The mirror in a line `deb [options] URI suite component...`.
fn one_line(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    (is_debian(suite) && words.any(|component| component == "main")).then(|| uri.to_owned())
}

/// The mirror in a deb822 stanza.
fn stanza(text: &str) -> Option<String> {
    let folded = text.replace("\n ", " ").replace("\n\t", " ");
    let field = |name: &str| {
        folded.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let has = |name, wanted: &dyn Fn(&str) -> bool| field(name)?.split_whitespace().any(wanted).then_some(());
    if field("Enabled") == Some("no") {
        return None;
    }
    has("Types", &|word| word == "deb")?;
    has("Suites", &is_debian)?;
    has("Components", &|word| word == "main")?;
    field("URIs")?.split_whitespace().next().map(str::to_owned)
}

/// Whether this is a suite of the main archive, or its updates (the security archive is another).
fn is_debian(suite: &str) -> bool {
    let name = suite.strip_suffix("-updates").or_else(|| suite.strip_suffix("-backports")).unwrap_or(suite);
    SUITES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_of_the_main_archive_gives_its_mirror() {
        let mirror = Some("http://mirror.example/debian".to_owned());
        assert_eq!(one_line("deb http://mirror.example/debian bookworm main contrib"), mirror);
        assert_eq!(
            one_line("  deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main"),
            mirror
        );
    }

    #[test]
    fn one_line_of_anything_else_gives_nothing() {
        for line in [
            "# deb http://mirror.example/debian bookworm main",
            "deb-src http://mirror.example/debian bookworm main",
            "deb http://mirror.example/debian-security bookworm-security main",
            "deb https://mirror.example/cloud cloud-sdk-bookworm main",
            "deb http://mirror.example/debian bookworm contrib",
            "deb [arch=amd64",
            "deb",
            "",
        ] {
            assert_eq!(one_line(line), None, "{line}");
        }
    }

    #[test]
    fn stanza_of_the_main_archive_gives_its_first_mirror() {
        let text = "Types: deb deb-src\n# URIs: http://old.example/debian\nURIs: http://a.example/debian \
                    http://b.example/debian\nSuites:\n bookworm\n bookworm-updates\nComponents: main\n";
        assert_eq!(stanza(text).as_deref(), Some("http://a.example/debian"));
    }

    #[test]
    fn stanza_of_another_archive_or_disabled_gives_nothing() {
        let security = "Types: deb\nURIs: http://a.example/s\nSuites: bookworm-security\nComponents: main";
        assert_eq!(stanza(security), None);
        let disabled =
            "Enabled: no\nTypes: deb\nURIs: http://a.example/d\nSuites: bookworm\nComponents: main";
        assert_eq!(stanza(disabled), None);
    }

    #[test]
    fn in_folder_reads_both_forms_in_apts_order() {
        let apt = tempfile::tempdir().unwrap();
        assert_eq!(in_folder(apt.path()), None);
        fs::create_dir(apt.path().join("sources.list.d")).unwrap();
        let parts = apt.path().join("sources.list.d");
        fs::write(parts.join("a.list"), "deb https://x.example/node nodistro main\n").unwrap();
        fs::write(
            parts.join("debian.sources"),
            "Types: deb\nURIs: http://s.example/security\nSuites: bookworm-security\nComponents: main\n\n\
             Types: deb\nURIs: http://d.example/debian\nSuites: bookworm\nComponents: main\n",
        )
        .unwrap();
        assert_eq!(in_folder(apt.path()).as_deref(), Some("http://d.example/debian"));
        fs::write(apt.path().join("sources.list"), "deb http://l.example/debian bookworm main\n").unwrap();
        assert_eq!(in_folder(apt.path()).as_deref(), Some("http://l.example/debian"));
    }
}
