//! Real logs of virt-v2v 2.2, 2.6 and 2.10 through the parsers, as they were recorded (fixtures/virt-v2v).
//!
//! `fixtures/virt-v2v/expected.json` says per case what must come out; each entry was read against its log by a
//! person. A case without an entry, or an entry without a case, is a failure of the test.
#![allow(clippy::unwrap_used)] // A fixture that cannot be read is a failed test.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use virt_v2v_wrapper::event::Event;
use virt_v2v_wrapper::v2v::failure::Exit;
use virt_v2v_wrapper::v2v::output::{LogParser, MachineLogParser};

/// First and last percentage.
type Range = (f64, f64);

/// What a case's logs must give. Absent means none.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Expected {
    /// `[  1.2] ` lines; where there is a machine-readable log, its records must be as many.
    messages: usize,
    /// Per `Copying disk` line: N, M, and the first and last percentage until the next one.
    copies: Vec<(usize, usize, Option<Range>)>,
    /// `SourceServed` by disk.
    sources: BTreeMap<usize, String>,
    /// `TargetServed` by disk.
    targets: BTreeMap<usize, String>,
    /// Whether `Creating output metadata` came.
    copies_ended: bool,
    /// Warnings of the machine-readable log.
    warnings: usize,
    display_name: Option<String>,
    /// The sentence for the state file.
    failure: Option<String>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn read(directory: &Path, name: &str) -> Option<Vec<u8>> {
    if let Ok(plain) = std::fs::read(directory.join(name)) {
        return Some(plain);
    }
    let packed = std::fs::File::open(directory.join(format!("{name}.gz"))).ok()?;
    let mut bytes = Vec::new();
    MultiGzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

/// Every case as `version/name`.
fn cases() -> Vec<String> {
    let directories = |path: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    };
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let versions = directories(&fixtures().join("virt-v2v"));
    let cases = versions.iter().flat_map(|version| {
        directories(version)
            .into_iter()
            .map(|case| format!("{}/{}", name(version), name(&case)))
            .collect::<Vec<_>>()
    });
    cases.collect()
}

/// How the tool ended; where the recording stopped waiting after 60 s it was killed.
fn exit(directory: &Path) -> Exit {
    let text = std::fs::read_to_string(directory.join("exit_code")).unwrap();
    match text.trim() {
        "killed by signal 9" | "no exit in 60 s" => Exit::Signal(9),
        code => Exit::Code(code.parse().unwrap()),
    }
}

fn replay(case: &str, chunk: usize) -> Expected {
    let directory = fixtures().join("virt-v2v").join(case);
    let (mut log, mut machine) = (LogParser::new(), MachineLogParser::with_messages());
    let (mut events, mut records) = (Vec::new(), Vec::new());
    for bytes in read(&directory, "v2v.log").unwrap().chunks(chunk) {
        log.feed(bytes, &mut |event| events.push(event));
    }
    log.finish(&mut |event| events.push(event));
    let machine_log = read(&directory, "machine-readable.log");
    for bytes in machine_log.as_deref().unwrap_or_default().chunks(chunk) {
        machine.feed(bytes, log.evidence_mut(), &mut |event| records.push(event));
    }
    machine.finish(log.evidence_mut(), &mut |event| records.push(event));

    let mut seen = Expected::default();
    for event in &events {
        match event {
            Event::Message { .. } => seen.messages += 1,
            Event::CopyStarted { disk, count, target } => {
                assert_eq!(*target, None, "{case}: 2.x does not say it there");
                seen.copies.push((disk + 1, *count, None));
            }
            Event::CopyProgress { percent } => {
                let (.., range) = seen.copies.last_mut().expect("a percentage before any disk");
                *range = Some((range.map_or(*percent, |(first, _)| first), *percent));
            }
            Event::CopyEnded => seen.copies_ended = true,
            Event::SourceServed { disk, path } => {
                assert_eq!(seen.sources.insert(*disk, path.clone()), None, "{case}: source {disk} twice");
            }
            Event::TargetServed { disk, path } => {
                assert_eq!(seen.targets.insert(*disk, path.clone()), None, "{case}: target {disk} twice");
            }
            Event::DisplayName { name } => seen.display_name = Some(name.clone()),
            other => panic!("{case}: {other:?}"),
        }
    }
    let is_message = |event: &&Event| matches!(event, Event::Message { .. });
    if machine_log.is_some() {
        let said: Vec<_> = events.iter().filter(is_message).collect();
        assert_eq!(
            said,
            records.iter().filter(is_message).collect::<Vec<_>>(),
            "{case}: both logs say the same"
        );
    }
    seen.warnings = records.len() - records.iter().filter(is_message).count();
    let exit = exit(&directory);
    seen.failure = (exit != Exit::Code(0)).then(|| log.evidence().sentence(exit));
    seen
}

#[test]
fn every_recorded_log_says_what_was_read_in_it() {
    let expected = std::fs::read(fixtures().join("virt-v2v/expected.json")).unwrap();
    let mut expected: BTreeMap<String, Expected> = serde_json::from_slice(&expected).unwrap();
    for case in cases() {
        let expected = expected.remove(&case).unwrap_or_else(|| panic!("{case}: not in expected.json"));
        for chunk in [usize::MAX, 4096, 61] {
            assert_eq!(replay(&case, chunk), expected, "{case}, in chunks of {chunk}");
        }
    }
    assert!(expected.is_empty(), "no such case: {:?}", expected.keys());
}

/// Percentages of one copy tool's own recording.
fn percents(path: &str) -> Vec<f64> {
    let (mut log, mut percents) = (LogParser::new(), Vec::new());
    let mut emit = |event| match event {
        Event::CopyProgress { percent } => percents.push(percent),
        other => panic!("{other:?}"),
    };
    log.feed(&read(&fixtures(), path).unwrap(), &mut emit);
    log.finish(&mut emit);
    percents
}

#[test]
fn recorded_progress_of_the_copy_tools_goes_from_0_to_100_without_a_gap() {
    for (path, count) in [
        ("nbdcopy/1.14.2/progress-bar-stderr-4GiB.log", 34),
        ("qemu-img/7.2.22/convert-p-stdout-768MiB.log", 58),
    ] {
        let percents = percents(path);
        assert_eq!(percents.len(), count, "{path}");
        assert_eq!((percents[0], percents[count - 1]), (0.0, 100.0), "{path}");
        assert!(percents.is_sorted(), "{path}: {percents:?}");
    }
}
