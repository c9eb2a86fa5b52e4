//! virt-v2v's `--machine-readable=file:` log: one JSON record a line (virt-v2v-output.md 2.1). Pure.
//!
//! Errors go to the [`Evidence`] of the log's parser. No recorded version writes progress here; a `progress`
//! record is taken all the same, as contract.md 5 recommends.

use serde::Deserialize;
use serde_json::Value;

use super::lines::{Lines, line_at};
use crate::event::Event;
use crate::v2v::failure::Evidence;

/// Parser of the machine-readable log.
#[derive(Debug, Default)]
pub struct MachineLogParser {
    lines: Lines,
    messages: bool,
}

#[derive(Deserialize)]
struct Record {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    message: String,
    /// Percentage of the disk being copied; any JSON, so that it cannot spoil a record of another type.
    #[serde(default)]
    progress: Value,
}

impl MachineLogParser {
    /// A parser without messages: they stand in the log too, and [`super::LogParser`] has them.
    pub fn new() -> Self {
        Self::default()
    }

    /// A parser that also emits messages, for use without the log.
    pub fn with_messages() -> Self {
        Self { messages: true, ..Self::default() }
    }

    /// The next bytes of the file, however they are cut.
    pub fn feed(&mut self, bytes: &[u8], evidence: &mut Evidence, emit: &mut dyn FnMut(Event)) {
        let messages = self.messages;
        self.lines.feed(bytes, |block| records(block, messages, evidence, emit));
    }

    /// The file ended: what stands after the last line end is a line, or torn and skipped.
    pub fn finish(&mut self, evidence: &mut Evidence, emit: &mut dyn FnMut(Event)) {
        let messages = self.messages;
        self.lines.finish(|block| records(block, messages, evidence, emit));
    }

    /// Bytes of an unfinished line held, at most [`super::MAX_LINE`].
    pub fn buffered(&self) -> usize {
        self.lines.buffered()
    }
}

/// Records of whole lines. What is not JSON, and the capability list of 1.40, is skipped (contract.md 5).
fn records(block: &[u8], messages: bool, evidence: &mut Evidence, emit: &mut dyn FnMut(Event)) {
    let mut from = 0;
    while from < block.len() {
        let (line, next) = line_at(block, from, from);
        from = next;
        let Ok(record) = serde_json::from_slice::<Record>(line) else { continue };
        match record.kind.as_str() {
            "error" => evidence.error_record(&record.message),
            "warning" => emit(Event::Warning { text: record.message }),
            "progress" => {
                let percent = record.progress.as_f64().filter(|percent| (0.0..=100.0).contains(percent));
                percent.into_iter().for_each(|percent| emit(Event::CopyProgress { percent }));
            }
            "message" if messages => emit(Event::Message { text: record.message }),
            _ => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v2v::failure::Exit;

    const LOG: &str = concat!(
        "virt-v2v\nnot json\n",
        r#"{ "message": "Opening the source", "timestamp": "2026-11-20T11:13:14.114224754+00:00", "type": "message" }"#,
        "\n",
        r#"{"message":"no Grub","type":"warning"}"#,
        "\n",
        r#"{"message":"This guest has virtio drivers installed.","type":"info"}"#,
        "\n",
        r#"{"type":7}"#,
        "\n[]\n{\"mess\n",
        r#"{"message":"broken\n\nmore","type":"error"}"#,
        "\n",
        r#"{"message":"torn","type":"err"#,
    );

    fn parse(mut parser: MachineLogParser, size: usize) -> (Vec<Event>, Evidence) {
        let (mut events, mut evidence) = (Vec::new(), Evidence::default());
        for chunk in LOG.as_bytes().chunks(size) {
            parser.feed(chunk, &mut evidence, &mut |event| events.push(event));
        }
        parser.finish(&mut evidence, &mut |event| events.push(event));
        (events, evidence)
    }

    #[test]
    fn messages_come_only_when_asked_for() {
        let warning = Event::Warning { text: "no Grub".into() };
        let message = Event::Message { text: "Opening the source".into() };
        for size in [1, 7, LOG.len()] {
            assert_eq!(parse(MachineLogParser::new(), size).0, std::slice::from_ref(&warning));
            assert_eq!(parse(MachineLogParser::with_messages(), size).0, [message.clone(), warning.clone()]);
        }
    }

    #[test]
    fn a_progress_record_is_progress_and_nothing_else_is() {
        let log = [
            r#"{"type":"progress","progress":12.5}"#,
            r#"{"type":"progress","progress":101}"#,
            r#"{"type":"progress","progress":"x"}"#,
            r#"{"type":"info","progress":1}"#,
            r#"{"type":"warning","message":"m","progress":{}}"#,
        ];
        let mut events = Vec::new();
        let mut evidence = Evidence::default();
        MachineLogParser::new().feed(
            format!("{}\n", log.join("\n")).as_bytes(),
            &mut evidence,
            &mut |event| {
                events.push(event);
            },
        );
        assert_eq!(events, [Event::CopyProgress { percent: 12.5 }, Event::Warning { text: "m".into() }]);
    }

    #[test]
    fn an_error_record_is_evidence_and_torn_lines_are_skipped() {
        let (_, evidence) = parse(MachineLogParser::new(), 5);
        let sentence = evidence.sentence(Exit::Code(1));
        assert!(sentence.starts_with("virt-v2v error: broken"), "{sentence}");
        assert!(!sentence.contains("torn") && !sentence.contains("more"), "{sentence}");
    }

    #[test]
    fn an_endless_record_costs_at_most_the_line_limit() {
        let (mut parser, mut evidence) = (MachineLogParser::new(), Evidence::default());
        for _ in 0..40 {
            parser.feed(&[b'x'; 8192], &mut evidence, &mut |_| ());
            assert!(parser.buffered() <= super::super::MAX_LINE);
        }
    }
}
