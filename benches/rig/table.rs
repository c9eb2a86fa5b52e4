//! The figures: one Markdown table, a row for each thing measured.
#![allow(clippy::print_stdout)] // A benchmark's only output.

/// Rows, printed as they come.
#[derive(Debug)]
pub struct Table;

impl Table {
    /// Prints the head.
    pub fn new() -> Self {
        println!("| what | program | median | spread | count |");
        println!("| --- | --- | --- | --- | --- |");
        Self
    }

    /// Many values: the median, p99 (or p90 and p99 of hundreds), lowest and highest.
    pub fn values(&self, what: &str, program: &str, unit: &str, values: &[f64]) {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (Some(lowest), Some(highest)) = (sorted.first(), sorted.last()) else {
            return self.text(what, program, "nothing was measured");
        };
        let percentiles = match sorted.len() {
            100.. => format!("p90 {}, p99 {}, ", show(at(&sorted, 0.9)), show(at(&sorted, 0.99))),
            _ => String::new(),
        };
        println!(
            "| {what} | {program} | {} {unit} | {percentiles}{} to {} | {} |",
            show(at(&sorted, 0.5)),
            show(*lowest),
            show(*highest),
            sorted.len()
        );
    }

    /// One value.
    pub fn value(&self, what: &str, program: &str, unit: &str, value: f64) {
        println!("| {what} | {program} | {} {unit} | - | 1 |", show(value));
    }

    /// No number.
    pub fn text(&self, what: &str, program: &str, text: &str) {
        println!("| {what} | {program} | {text} | - | 1 |");
    }
}

/// The value below which this share of the sorted values lies.
fn at(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len() - 1;
    sorted[((last as f64 * share).ceil() as usize).min(last)]
}

/// Three digits that count.
fn show(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
