//! The generated part of a Markdown page: what stands between two markers.

use anyhow::{Result, bail};

/// Start of the generated part.
const BEGIN: &str = "<!-- bench: begin -->\n";
/// Its end.
const END: &str = "<!-- bench: end -->\n";

/// The page with its generated part replaced.
pub(crate) fn replace(page: &str, part: &str) -> Result<String> {
    let halves = page.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let Some((before, after)) = halves else {
        bail!("the page lacks the lines {} and {}", BEGIN.trim(), END.trim());
    };
    Ok(format!("{before}{BEGIN}\n{}\n\n{END}{after}", part.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_is_replaced_and_the_rest_stays() {
        let page = format!("# Page\n\n{BEGIN}old\n{END}\nrest\n");
        let new = replace(&page, "table\n").unwrap();
        assert_eq!(new, format!("# Page\n\n{BEGIN}\ntable\n\n{END}\nrest\n"));
        assert_eq!(replace(&new, "table").unwrap(), new);
    }

    #[test]
    fn page_without_markers_is_refused() {
        assert!(replace("nothing", "x").unwrap_err().to_string().contains("bench: begin"));
        assert!(replace(&format!("{END}{BEGIN}"), "x").is_err());
    }
}
