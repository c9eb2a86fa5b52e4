//! What a journal says, wherever it was cut.

use super::*;

#[test]
fn a_line_cut_short_by_a_crash_is_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.jsonl");
    let mut journal = Journal::create(&path).unwrap();
    let entry = Entry::PrivateDirectory { path: "/var/tmp/v2v-x".into() };
    journal.record(&entry).unwrap();
    journal.record(&Entry::Succeeded { return_code: 0 }).unwrap();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    let entries = read(&path).unwrap();
    assert_eq!(entries, [entry]);
    assert_eq!(succeeded(&entries), None);
}

/// Whoever comes after the crash writes a line of its own.
#[test]
fn a_line_after_one_that_was_cut_short_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.jsonl");
    Journal::create(&path).unwrap().record(&Entry::TrackingOn).unwrap();
    let mut whole = std::fs::read(&path).unwrap();
    whole.extend_from_slice(b"{\"entry\":\"snap");
    std::fs::write(&path, &whole).unwrap();
    Journal::open(&path).unwrap().record(&Entry::TrackingOff).unwrap();
    Journal::open(&path).unwrap().record(&Entry::Cutover).unwrap();
    assert_eq!(read(&path).unwrap(), [Entry::TrackingOn, Entry::TrackingOff, Entry::Cutover]);
}

/// From the moment on in which the machine may run again, neither its copies nor its cutover count.
#[test]
fn what_was_copied_of_a_machine_that_may_run_is_old() {
    use Entry::{Copied, Cutover, SwitchedOff, SwitchedOn, SwitchingOn};
    for (entries, valid) in [
        (vec![Cutover, SwitchedOff, Copied], true),
        (vec![Cutover, SwitchedOff, Copied, SwitchingOn], false),
        (vec![Cutover, SwitchedOff, Copied, SwitchingOn, SwitchedOn], false),
        (vec![Cutover, SwitchedOff, SwitchingOn, SwitchedOn, Cutover, SwitchedOff, Copied], true),
        (vec![], false),
    ] {
        assert_eq!((all_copied(&entries), cut_over(&entries)), (valid, valid), "{entries:?}");
    }
}

#[test]
fn room_is_reserved_from_the_start() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.jsonl");
    Journal::create(&path).unwrap();
    let data = std::fs::metadata(&path).unwrap();
    assert_eq!((data.len(), data.blocks() * 512), (0, RESERVED as u64));
    // And again, as long as there is room.
    let mut lines = b"\n".repeat(RESERVED as usize);
    lines[0] = b' ';
    std::fs::write(&path, &lines).unwrap();
    Journal::open(&path).unwrap();
    let data = std::fs::metadata(&path).unwrap();
    assert_eq!((data.len(), data.blocks() * 512), (RESERVED as u64, 2 * RESERVED as u64));
}

#[test]
fn no_journal_is_an_empty_one() {
    assert_eq!(read(Path::new("/nonexistent/journal.jsonl")).unwrap(), []);
}
