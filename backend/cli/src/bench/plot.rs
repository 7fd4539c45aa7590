//! Plots of latency and bandwidth by size, as SVG: lines on logarithmic scales.

use std::fmt::Write as _;

use super::plan::{Operation, Way, size};
use super::report::{Report, Row};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
/// Where the axes are: left, right, top, bottom.
const LEFT: f64 = 70.0;
const RIGHT: f64 = WIDTH - 170.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = HEIGHT - 50.0;
/// Colours that people with any eyes tell apart, on light ground.
const COLOURS: [&str; 4] = ["#0072b2", "#999999", "#d55e00", "#009e73"];

/// A line: its name, and its points, by bytes.
#[derive(Clone)]
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// A plot of lines that have points.
struct Plot {
    title: String,
    unit: &'static str,
    lines: Vec<Line>,
}

/// All plots with the names of their files.
pub(crate) fn all(report: &Report) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for operation in Operation::ALL {
        let rows: Vec<&Row> = report.rows.iter().filter(|row| row.operation == operation).collect();
        let of = |value: &dyn Fn(&Row) -> Option<f64>| -> Vec<(f64, f64)> {
            rows.iter().filter_map(|row| Some((f64::from(row.bytes), value(row)?))).collect()
        };
        let names = |way: Way| match way {
            Way::Alone => "a: driver, engine's thread",
            Way::Inline => "a': driver runs the engine",
            Way::Guest => "b: guest and daemon",
        };
        let line = |way: Way, points| Line { name: names(way).into(), points };
        let latency = Way::ALL.map(|way| line(way, of(&|row| Some(row.cell(way).latency? / 1e3))));
        let speed = |row: &Row, each: Option<f64>| Some(f64::from(row.bytes) / each?);
        let mut bandwidth = Way::ALL.map(|way| line(way, of(&|row| speed(row, row.cell(way).each)))).to_vec();
        bandwidth.push(Line { name: "c: memcpy".into(), points: of(&|row| speed(row, row.copy)) });
        for (what, unit, lines) in [("latency", "µs", latency.to_vec()), ("bandwidth", "GB/s", bandwidth)] {
            if lines.iter().any(|line| !line.points.is_empty()) {
                let title = format!("RDMA {operation}: {what} by size");
                let title =
                    if operation == Operation::Send { format!("Send: {what} by size") } else { title };
                files.push((format!("bench-{operation}-{what}.svg"), svg(&Plot { title, unit, lines })));
            }
        }
    }
    files
}

/// A logarithmic scale from a range of values to a range of places.
struct Scale {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Scale {
    fn at(&self, value: f64) -> f64 {
        let part = (value.ln() - self.from.ln()) / (self.to.ln() - self.from.ln());
        self.start + part * (self.end - self.start)
    }
}

/// Least and greatest of some values; a range that isn't empty.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (least, most) =
        values.fold((f64::INFINITY, 0.0f64), |(least, most), value| (least.min(value), most.max(value)));
    if least < most { (least, most) } else { (most.max(1.0) / 2.0, most.max(1.0) * 2.0) }
}

/// The powers of ten that a range lies between.
fn decades((least, most): (f64, f64)) -> (f64, f64) {
    (10f64.powf(least.log10().floor()), 10f64.powf(most.log10().ceil()))
}

fn svg(plot: &Plot) -> String {
    let points = || plot.lines.iter().flat_map(|line| &line.points);
    let (from, to) = range(points().map(|point| point.0));
    let across = Scale { from, to, start: LEFT, end: RIGHT };
    let (from, to) = decades(range(points().map(|point| point.1)));
    let up = Scale { from, to, start: BOTTOM, end: TOP };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
        plot.title
    );
    axes(&mut out, plot, &across, &up);
    for (index, (line, colour)) in plot.lines.iter().zip(COLOURS).enumerate() {
        lines(&mut out, line, colour, &across, &up);
        let y = TOP + 10.0 + 20.0 * index as f64;
        let _ = writeln!(
            out,
            "<path d=\"M{} {y}h18\" stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"{}\" y=\"{}\" font-size=\"10\">{}</text>",
            RIGHT + 8.0,
            RIGHT + 30.0,
            y + 4.0,
            line.name
        );
    }
    out + "</svg>\n"
}

/// Writing to a string does not fail, here and below.
fn axes(out: &mut String, plot: &Plot, across: &Scale, up: &Scale) {
    let mut sizes: Vec<f64> = plot.lines.iter().flat_map(|line| &line.points).map(|point| point.0).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    for bytes in sizes {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it was a u32")]
        let name = size(bytes as u32);
        let x = across.at(bytes);
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#eee\"/><text x=\"{x:.1}\" y=\"{}\" font-size=\"9\" text-anchor=\"middle\">{name}</text>",
            BOTTOM + 16.0
        );
    }
    let mut value = up.from;
    while value <= up.to * 1.01 {
        let y = up.at(value);
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#ccc\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            number(value)
        );
        value *= 10.0;
    }
    let _ = writeln!(out, "<text x=\"14\" y=\"{}\">{}</text>", TOP - 8.0, plot.unit);
    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"{}\">size of a message</text>", BOTTOM + 36.0);
}

/// A power of ten, as short as it can be.
fn number(value: f64) -> String {
    let decimals = if value >= 1.0 { 0.0 } else { -value.log10().round() };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few")]
    let decimals = decimals as usize;
    format!("{value:.decimals$}")
}

fn lines(out: &mut String, line: &Line, colour: &str, across: &Scale, up: &Scale) {
    let places: Vec<(f64, f64)> = line.points.iter().map(|(x, y)| (across.at(*x), up.at(*y))).collect();
    let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
        path.join(" ")
    );
    for (x, y) in places {
        let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\"/>");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plot_has_a_point_for_each_number_inside_the_axes() {
        let points = vec![(2.0, 0.5), (8.0 * 1024.0 * 1024.0, 300.0)];
        let lines = vec![Line { name: "a".into(), points }, Line { name: "b".into(), points: vec![] }];
        let text = svg(&Plot { title: "T".into(), unit: "µs", lines });
        let circles: Vec<&str> = text.lines().filter(|line| line.starts_with("<circle")).collect();
        assert_eq!(circles.len(), 2);
        assert!(circles[0].contains(&format!("cx=\"{LEFT:.1}\"")), "{}", circles[0]);
        assert!(circles[1].contains(&format!("cx=\"{RIGHT:.1}\"")), "{}", circles[1]);
        for label in ["2 B", "8 MiB", ">0.1<", ">1000<", "µs"] {
            assert!(text.contains(label), "{label} in {text}");
        }
    }

    #[test]
    fn range_of_one_value_is_not_empty() {
        assert_eq!(range([4.0].into_iter()), (2.0, 8.0));
        assert_eq!(decades((0.5, 300.0)), (0.1, 1000.0));
        assert_eq!([0.01, 0.1, 1.0, 100.0].map(number), ["0.01", "0.1", "1", "100"]);
    }
}
