//! What was measured, as tables, as JSON, and held against the bars.

use std::fmt::Write;
use std::io;

use serde_json::{Value, json};

use crate::peers::Peer;
use crate::shapes::{BARS, Bar, Limit, Shape, Unit};

/// The samples of one peer in one shape.
pub struct Row {
    peer: Peer,
    /// One for each round: as many figures as the shape has.
    pub samples: Vec<Vec<f64>>,
    /// Why there are no more.
    pub error: Option<String>,
}

impl Row {
    /// The median of a figure and the distance of its quartiles.
    fn figure(&self, at: usize) -> Option<(f64, f64)> {
        if self.error.is_some() {
            return None;
        }
        let mut values: Vec<f64> =
            self.samples.iter().filter_map(|sample| sample.get(at).copied()).collect();
        values.sort_by(f64::total_cmp);
        let part = |part: f64| values[((values.len() - 1) as f64 * part).round() as usize];
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            length if length % 2 == 1 => Some((values[middle], part(0.75) - part(0.25))),
            _ => Some((f64::midpoint(values[middle - 1], values[middle]), part(0.75) - part(0.25))),
        }
    }
}

/// One shape, measured.
pub struct Entry {
    shape: &'static Shape,
    /// In the order of the shape's peers.
    pub rows: Vec<Row>,
}

impl Entry {
    /// Nothing measured yet.
    pub fn new(shape: &'static Shape) -> Entry {
        let row = |&peer| Row { peer, samples: Vec::new(), error: None };
        Entry { shape, rows: shape.peers.iter().map(row).collect() }
    }

    fn ours(&self) -> &Row {
        self.rows.iter().find(|row| row.peer.is_ours()).expect("sleave takes part in all")
    }
}

/// Everything that one run has measured.
pub struct Report {
    pub quick: bool,
    pub rounds: usize,
    pub entries: Vec<Entry>,
}

/// A bar beside what was measured.
struct Verdict {
    bar: &'static Bar,
    measured: Result<f64, String>,
    /// The most that it may be, and how that came about.
    limit: Result<(f64, String), String>,
    unit: Unit,
    name: &'static str,
}

impl Verdict {
    /// Nothing, where it cannot be told because a peer is missing. That sleave itself has no figure is a miss.
    fn met(&self) -> Option<bool> {
        match (&self.measured, &self.limit) {
            (Err(_), _) => Some(false),
            (_, Err(_)) => None,
            (Ok(measured), Ok((limit, _))) => Some(measured <= limit),
        }
    }

    /// What was measured, and the bar, in words.
    fn words(&self) -> (String, String) {
        let measured = match &self.measured {
            Ok(measured) => format!("{} {}", show(*measured, self.unit), self.name),
            Err(why) => why.clone(),
        };
        let limit = match &self.limit {
            Ok((limit, how)) => format!("{} ({how})", show(*limit, self.unit)),
            Err(why) => why.clone(),
        };
        (measured, limit)
    }
}

impl Report {
    /// A table for each figure of each shape, and one of the bars.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for entry in &self.entries {
            for (at, (name, unit)) in entry.shape.figures.iter().enumerate() {
                let base = entry.ours().figure(at).map(|(median, _)| median);
                let _ =
                    writeln!(text, "### {}: {} ({name})\n", entry.shape.name, entry.shape.about);
                let _ =
                    writeln!(text, "| | median | quartiles apart | × sleave |\n|---|--:|--:|--:|");
                for row in &entry.rows {
                    let _ = match (row.figure(at), base) {
                        (Some((median, spread)), base) => {
                            let ratio =
                                base.map_or(String::new(), |base| format!("{:.2}", median / base));
                            let (median, spread) = (show(median, *unit), show(spread, *unit));
                            writeln!(
                                text,
                                "| {} | {median} | {spread} | {ratio} |",
                                row.peer.name()
                            )
                        }
                        (None, _) => {
                            let why = row.error.as_deref().unwrap_or("nothing was told");
                            writeln!(
                                text,
                                "| {} | {} | | |",
                                row.peer.name(),
                                why.replace('|', "/")
                            )
                        }
                    };
                }
                text.push('\n');
            }
        }
        let verdicts = self.verdicts();
        if !verdicts.is_empty() {
            text.push_str("### Bars\n\n| shape | measured | bar | |\n|---|--:|--:|---|\n");
        }
        for verdict in verdicts {
            let (measured, limit) = verdict.words();
            let met =
                verdict.met().map_or("not told", |met| if met { "met" } else { "**missed**" });
            let _ = writeln!(text, "| {} | {measured} | {limit} | {met} |", verdict.bar.shape);
        }
        text
    }

    /// A line for each bar that is missed, and for each that cannot be told.
    pub fn complaints(&self) -> Vec<String> {
        let complaint = |verdict: Verdict| {
            let (measured, limit) = verdict.words();
            let word = match verdict.met() {
                Some(true) => return None,
                Some(false) => "MISS",
                None => "UNTOLD",
            };
            Some(format!("{word} {}: {measured}, bar {limit}", verdict.bar.shape))
        };
        self.verdicts().into_iter().filter_map(complaint).collect()
    }

    /// Everything, each single sample included.
    pub fn json(&self) -> io::Result<String> {
        let row = |entry: &Entry, row: &Row| {
            let figure = |(at, (name, unit)): (usize, &(&str, Unit))| {
                let (median, spread) = row.figure(at)?;
                let samples: Vec<f64> =
                    row.samples.iter().filter_map(|sample| sample.get(at).copied()).collect();
                Some(
                    json!({ "name": name, "unit": unit_name(*unit), "median": median, "spread": spread, "samples": samples }),
                )
            };
            let figures: Vec<Value> =
                entry.shape.figures.iter().enumerate().filter_map(figure).collect();
            json!({ "peer": row.peer.name(), "figures": figures, "error": row.error })
        };
        let shape = |entry: &Entry| {
            let Shape { name, about, count, workers, .. } = entry.shape;
            let rows: Vec<Value> = entry.rows.iter().map(|r| row(entry, r)).collect();
            json!({ "shape": name, "about": about, "count": count, "workers": workers, "peers": rows })
        };
        let bar = |verdict: &Verdict| {
            let limit = verdict.limit.as_ref().ok();
            json!({
                "shape": verdict.bar.shape,
                "figure": verdict.name,
                "unit": unit_name(verdict.unit),
                "measured": verdict.measured.as_ref().ok(),
                "bar": limit.map(|(limit, _)| limit),
                "how": limit.map(|(_, how)| how),
                "met": verdict.met(),
            })
        };
        let whole = json!({
            "rounds": self.rounds,
            "quick": self.quick,
            "shapes": self.entries.iter().map(shape).collect::<Vec<_>>(),
            "bars": self.verdicts().iter().map(bar).collect::<Vec<_>>(),
        });
        serde_json::to_string_pretty(&whole).map_err(io::Error::other)
    }

    fn entry(&self, shape: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.shape.name == shape)
    }

    /// Of all bars whose shapes were measured.
    fn verdicts(&self) -> Vec<Verdict> {
        let verdict = |bar: &'static Bar| {
            let entry = self.entry(bar.shape)?;
            let (name, unit) = entry.shape.figures[bar.figure];
            let own = entry.ours();
            let why = || own.error.clone().unwrap_or_else(|| "nothing was told".to_owned());
            let measured = own.figure(bar.figure).map(|(median, _)| median).ok_or_else(why);
            Some(Verdict { bar, measured, limit: self.limit(bar, entry), unit, name })
        };
        BARS.iter().filter_map(verdict).collect()
    }

    fn limit(&self, bar: &Bar, entry: &Entry) -> Result<(f64, String), String> {
        match &bar.limit {
            Limit::Fixed(limit) => Ok((*limit, "fixed".to_owned())),
            Limit::Shape(times, other) => {
                let other_entry =
                    self.entry(other).ok_or_else(|| format!("{other} was not measured"))?;
                let figure = other_entry
                    .ours()
                    .figure(bar.figure)
                    .ok_or_else(|| format!("{other} has no figure"))?;
                Ok((times * figure.0, format!("{times} × {other}")))
            }
            Limit::Peers(times, peers) => {
                let named = peers.iter().map(|peer| peer.name()).collect::<Vec<_>>().join(" or ");
                let rows = entry.rows.iter().filter(|row| peers.contains(&row.peer));
                let best = rows.filter_map(|row| Some((row.figure(bar.figure)?.0, row.peer)));
                let best = best
                    .min_by(|a, b| a.0.total_cmp(&b.0))
                    .ok_or_else(|| format!("no figure of {named}"))?;
                Ok((times * best.0, format!("{times} × {}", best.1.name())))
            }
        }
    }
}

fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Nanoseconds => "ns",
        Unit::Bytes => "bytes",
    }
}

/// With about three significant digits.
fn show(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => format!("{:.2} KiB", value / 1024.0),
        Unit::Nanoseconds if value < 10.0 => format!("{value:.2} ns"),
        Unit::Nanoseconds if value < 100.0 => format!("{value:.1} ns"),
        Unit::Nanoseconds => format!("{value:.0} ns"),
    }
}
