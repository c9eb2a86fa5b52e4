//! Limits of a running job: how much processor and network it may use (contract.md 8.1). This file is the pure part:
//! what a limit is, how it is written, how a new one is merged into those that hold.
//!
//! The limits of the start come from the document's `throttling`; while the job runs a client writes others into the
//! throttling file.
//!
//! * [`mod@file`] watches the throttling file
//! * [`bucket`] limits what the program copies itself
//! * [`rate_file`] limits what virt-v2v copies
//! * [`cgroup`] limits the processors
//! * [`control`] puts them together: [`Throttling`] is what a stage holds

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub mod bucket;
pub mod cgroup;
pub mod control;
pub mod file;
pub mod rate_file;

pub use bucket::Bucket;
pub use control::Throttling;

/// How long a value may be when it is quoted in a message.
const MOST_QUOTED: usize = 40;

/// A value that is no limit. The texts begin with the old program's (contract.md 8.1); the limit that held goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// `cpu`.
    #[error(
        "Failed to parse value for CPU limit: {value} is neither a percentage of one processor, 1% or more, nor \
         unlimited; the limit stays as it was"
    )]
    Cpu {
        /// The value, quoted and cut.
        value: String,
    },
    /// `network`.
    #[error(
        "Failed to parse value for network limit: {value} is neither a number of bytes per second, 1 or more, nor \
         unlimited; the limit stays as it was"
    )]
    Network {
        /// The value, quoted and cut.
        value: String,
    },
}

/// A limit of the processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cpu {
    /// Was asked for, or put an end to a limit.
    Unlimited,
    /// Percentage of one processor; 250 is two and a half.
    Percent(NonZeroU32),
}

/// A limit of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rate {
    /// Was asked for, or put an end to a limit.
    Unlimited,
    /// Bytes per second, over all disks of the job.
    BytesPerSecond(NonZeroU64),
}

/// Limits; `None` is one that nobody spoke of, which is not the same as [`Cpu::Unlimited`] in the state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Of the processors.
    pub cpu: Option<Cpu>,
    /// Of the network.
    pub network: Option<Rate>,
}

/// What a client asked for: the limits that can be understood, and what is wrong with the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// The good ones.
    pub limits: Limits,
    /// The bad ones.
    pub problems: Vec<LimitError>,
}

impl Cpu {
    /// `50%`, `50` or `unlimited`.
    pub fn parse(text: &str) -> Result<Self, LimitError> {
        let trimmed = text.trim();
        if trimmed == "unlimited" {
            return Ok(Self::Unlimited);
        }
        let number = trimmed.strip_suffix('%').unwrap_or(trimmed);
        let percent = whole(number).and_then(|percent| NonZeroU32::new(u32::try_from(percent).ok()?));
        percent.map(Self::Percent).ok_or_else(|| LimitError::Cpu { value: quote(text) })
    }
}

impl Rate {
    /// A number of bytes per second, or `unlimited`.
    pub fn parse(text: &str) -> Result<Self, LimitError> {
        if text.trim() == "unlimited" {
            return Ok(Self::Unlimited);
        }
        let rate = whole(text.trim()).and_then(NonZeroU64::new);
        rate.map(Self::BytesPerSecond).ok_or_else(|| LimitError::Network { value: quote(text) })
    }

    /// Bytes per second, if there is a limit.
    pub fn bytes_per_second(self) -> Option<NonZeroU64> {
        match self {
            Self::Unlimited => None,
            Self::BytesPerSecond(rate) => Some(rate),
        }
    }
}

/// As the state shows it.
impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("unlimited"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// As the state shows it.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("unlimited"),
            Self::BytesPerSecond(rate) => write!(f, "{rate}"),
        }
    }
}

impl Asked {
    /// From texts, as the document has them.
    pub fn from_texts(cpu: Option<&str>, network: Option<&str>) -> Self {
        let mut asked = Self::default();
        asked.limits.cpu = cpu.and_then(|text| asked.good(Cpu::parse(text)));
        asked.limits.network = network.and_then(|text| asked.good(Rate::parse(text)));
        asked
    }

    /// From the object in the throttling file. Numbers are as good as texts (they killed the old program, contract.md
    /// 10, bug 31), `null` is the same as absent, and keys that nobody knows are nobody's.
    pub fn from_object(object: &Map<String, Value>) -> Self {
        let mut asked = Self::default();
        let text = |key: &str| object.get(key).filter(|value| !value.is_null()).map(as_text);
        asked.limits.cpu = text("cpu").and_then(|text| asked.good(Cpu::parse(&text)));
        asked.limits.network = text("network").and_then(|text| asked.good(Rate::parse(&text)));
        asked
    }

    fn good<T>(&mut self, parsed: Result<T, LimitError>) -> Option<T> {
        parsed.map_err(|problem| self.problems.push(problem)).ok()
    }
}

/// What is no text and no number is none of the limits, whatever it is.
fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The whole part of a decimal number: JSON's own numbers may come as `50.0`.
fn whole(text: &str) -> Option<u64> {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let text = text.strip_prefix('+').unwrap_or(text);
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    (digits(whole) && digits(fraction)).then(|| whole.parse().ok()).flatten()
}

fn quote(text: &str) -> String {
    let cut: String = text.chars().take(MOST_QUOTED).collect();
    let more = if cut.len() < text.len() { "..." } else { "" };
    format!("{cut:?}{more}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn from_file(object: Value) -> Asked {
        Asked::from_object(object.as_object().unwrap())
    }

    #[test]
    fn a_limit_is_taken_in_every_spelling_and_shown_in_one() {
        for (value, cpu, network) in [
            (json!("50%"), Some("50%"), None),
            (json!("50"), Some("50%"), Some("50")),
            (json!(" +50 "), Some("50%"), Some("50")),
            (json!(50), Some("50%"), Some("50")),
            (json!(1048576.0), Some("1048576%"), Some("1048576")),
            (json!("unlimited"), Some("unlimited"), Some("unlimited")),
            (json!(null), None, None),
        ] {
            let asked = from_file(json!({"cpu": value, "network": value, "disk": value}));
            assert_eq!(asked.limits.cpu.map(|cpu| cpu.to_string()).as_deref(), cpu, "{value}");
            assert_eq!(asked.limits.network.map(|rate| rate.to_string()).as_deref(), network, "{value}");
            let bad = usize::from(!value.is_null() && network.is_none());
            assert_eq!(asked.problems.len(), bad, "{value}");
        }
        assert_eq!(from_file(json!({})), Asked::default());
    }

    #[test]
    fn a_bad_value_is_told_in_the_contracts_words_and_the_other_key_counts() {
        for value in [
            json!("fast"),
            json!(""),
            json!("0"),
            json!(-5),
            json!("5.x"),
            json!("1e3"),
            json!(true),
            json!([1]),
            json!({}),
            json!("99999999999999999999"),
        ] {
            let asked = from_file(json!({"cpu": value, "network": "7"}));
            assert_eq!((asked.limits.cpu, asked.limits.network), (None, Rate::parse("7").ok()), "{value}");
            assert!(asked.problems[0].to_string().starts_with("Failed to parse value for CPU limit: "));
            let asked = from_file(json!({"network": value, "cpu": "7"}));
            assert_eq!((asked.limits.cpu, asked.limits.network), (Cpu::parse("7").ok(), None), "{value}");
            assert!(asked.problems[0].to_string().starts_with("Failed to parse value for network limit: "));
        }
        assert_eq!(Asked::from_texts(Some("x"), Some("y")).problems.len(), 2);
    }

    #[test]
    fn a_long_value_is_not_repeated_whole() {
        let text = Cpu::parse(&"\u{1}é".repeat(5000)).unwrap_err().to_string();
        assert!(text.len() < 600 && text.contains("...") && !text.contains('\u{1}'), "{text}");
    }
}
