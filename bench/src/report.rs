//! What was measured, beside what should be reached: as a page, and as JSON.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::Serialize;

use crate::machine::Machine;

/// Everything that one call of the program has measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// A quick run: its figures are rough.
    pub(crate) quick: bool,
    goals: Vec<Goal>,
    sections: Vec<Section>,
}

/// A figure that the design promises.
#[derive(Debug, Clone, Serialize)]
struct Goal {
    name: &'static str,
    unit: &'static str,
    target: Target,
    measured: f64,
    met: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    AtLeast(f64),
    Below(f64),
}

/// A table of figures that belong together.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Section {
    title: &'static str,
    about: String,
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum Cell {
    Text(String),
    Number(f64),
}

impl From<f64> for Cell {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl Section {
    pub(crate) fn new(title: &'static str, columns: &[&'static str]) -> Self {
        Self { title, about: String::new(), columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Says what the figures mean.
    pub(crate) fn about(&mut self, about: impl Into<String>) {
        self.about = about.into();
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        debug_assert_eq!(N, self.columns.len());
        let row = Vec::from(cells);
        eprintln!("  {}", row.iter().map(show).collect::<Vec<_>>().join("  "));
        self.rows.push(row);
    }
}

impl Report {
    pub(crate) fn new(machine: Machine, quick: bool) -> Self {
        Self { machine, quick, goals: Vec::new(), sections: Vec::new() }
    }

    /// Says what one of the promised figures has turned out to be.
    pub(crate) fn goal(
        &mut self,
        name: &'static str,
        unit: &'static str,
        target: Target,
        measured: f64,
    ) {
        let met = target.met(measured);
        self.goals.push(Goal { name, unit, target, measured, met });
    }

    pub(crate) fn add(&mut self, section: Section) {
        self.sections.push(section);
    }

    /// The figures as Markdown.
    pub(crate) fn page(&self) -> String {
        let machine = &self.machine;
        let rough = if self.quick { " A quick run: the figures are rough." } else { "" };
        let mut page = format!(
            "Measured on {}, revision {}: {} cores ({}), {:.0} GB, {}, {}; appending 4 KiB and \
             waiting for the disk takes {} ms (p50), {} ms (p99).{rough}\n",
            machine.date,
            machine.revision,
            machine.cores,
            machine.cpu,
            machine.memory_gb,
            machine.kernel,
            machine.file_system,
            number(machine.sync_p50_ms),
            number(machine.sync_p99_ms),
        );
        if !self.goals.is_empty() {
            page.push_str("\n| to reach | target | measured | |\n|---|---|---|---|\n");
            for goal in &self.goals {
                let met = if goal.met { "met" } else { "**missed**" };
                let (target, measured) = (goal.target.show(goal.unit), number(goal.measured));
                let _ = writeln!(page, "| {} | {target} | {measured} | {met} |", goal.name);
            }
        }
        for section in &self.sections {
            let _ = write!(page, "\n### {}\n{}\n\n", section.title, section.about);
            let _ = writeln!(page, "| {} |", section.columns.join(" | "));
            let _ = writeln!(page, "|{}", "---|".repeat(section.columns.len()));
            for row in &section.rows {
                let cells: Vec<String> = row.iter().map(show).collect();
                let _ = writeln!(page, "| {} |", cells.join(" | "));
            }
        }
        page
    }

    /// Puts the figures into a page, between its two marks; all else in it stays.
    pub(crate) fn write_into(&self, path: &Path) -> anyhow::Result<()> {
        let page =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        fs::write(path, replace(&page, &self.page())?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

const BEGIN: &str = "<!-- figures: written by the bench -->\n";
const END: &str = "<!-- end of the figures -->\n";

fn replace(page: &str, figures: &str) -> anyhow::Result<String> {
    let parts = page.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    ensure!(parts.is_some(), "the page has no place between {} and {}", BEGIN.trim(), END.trim());
    let (before, after) = parts.unwrap_or_default();
    Ok(format!("{before}{BEGIN}{figures}{END}{after}"))
}

impl Target {
    fn met(self, measured: f64) -> bool {
        match self {
            Self::AtLeast(target) => measured >= target,
            Self::Below(target) => measured < target,
        }
    }

    fn show(self, unit: &str) -> String {
        match self {
            Self::AtLeast(target) => format!("≥ {} {unit}", number(target)),
            Self::Below(target) => format!("< {} {unit}", number(target)),
        }
    }
}

fn show(cell: &Cell) -> String {
    match cell {
        Cell::Text(text) => text.clone(),
        Cell::Number(value) => number(*value),
    }
}

/// Three significant digits, or the whole part in groups.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if !size.is_finite() => return "–".to_owned(),
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        size if size >= 0.1 || size == 0.0 => 3,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    // A fraction of zeros says nothing.
    if rest.chars().all(|c| c == '.' || c == '0') { grouped } else { grouped + rest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_exact_as_they_mean() {
        let cases = [
            (27_200.4, "27,200"),
            (1_000_000.0, "1,000,000"),
            (150.0, "150"),
            (12.34, "12.3"),
            (9.0, "9"),
            (0.1234, "0.123"),
            (0.0123, "0.0123"),
            (0.0, "0"),
            (f64::NAN, "–"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_target_that_was_not_measured_is_not_met() {
        assert!(Target::AtLeast(2.0).met(2.0) && !Target::AtLeast(2.0).met(1.9));
        assert!(Target::Below(2.0).met(1.9) && !Target::Below(2.0).met(2.0));
        assert!(!Target::Below(2.0).met(f64::NAN) && !Target::AtLeast(2.0).met(f64::NAN));
    }

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let page = format!("# Figures\n{BEGIN}old\n{END}Explained.\n");
        let new = replace(&page, "new\n").unwrap();
        assert_eq!(new, format!("# Figures\n{BEGIN}new\n{END}Explained.\n"));
        assert!(replace("# Figures\n", "new\n").is_err());
    }

    #[test]
    fn a_page_shows_goals_and_tables() {
        let machine = Machine {
            date: "2026-01-01".to_owned(),
            revision: "abc".to_owned(),
            cpu: "CPU".to_owned(),
            cores: 2,
            memory_gb: 24.0,
            kernel: "Linux 6".to_owned(),
            file_system: "ext4".to_owned(),
            sync_p50_ms: 0.5,
            sync_p99_ms: 2.0,
        };
        let mut report = Report::new(machine, false);
        report.goal("submits", "/s", Target::AtLeast(27_200.0), 30_000.0);
        let mut section = Section::new("Submits", &["connections", "/s"]);
        section.about("How many.");
        section.row([1.0.into(), 2_000.0.into()]);
        report.add(section);
        let page = report.page();
        assert!(page.contains("| submits | ≥ 27,200 /s | 30,000 | met |"), "{page}");
        assert!(page.contains(
            "### Submits\nHow many.\n\n| connections | /s |\n|---|---|\n| 1 | 2,000 |\n"
        ));
    }
}
