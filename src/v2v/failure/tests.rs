//! Tests of [`super::Evidence`]. The texts of real failures are replayed in `tests/parser_replay.rs`.

use super::*;

/// Evidence of a log, every line seen.
fn evidence(log: &str) -> Evidence {
    let mut evidence = Evidence::default();
    log.lines().for_each(|line| evidence.line(line.as_bytes()));
    evidence
}

fn sentence(log: &str) -> String {
    evidence(log).sentence(Exit::Code(1))
}

#[test]
fn the_last_error_record_wins_over_the_last_error_line() {
    let mut evidence = evidence("virt-v2v: error: first\nvirt-v2v: error: second\n");
    assert!(evidence.sentence(Exit::Code(1)).starts_with("virt-v2v error: second. "));
    evidence.error_record("third");
    evidence.error_record("fourth\n\nmore");
    assert!(evidence.sentence(Exit::Code(1)).starts_with("virt-v2v error: fourth. "));
}

#[test]
fn the_word_error_elsewhere_is_not_a_failure() {
    for line in [
        "libguestfs: trace: v2v: get_backend_setting = NULL (error)",
        "guestfsd: error: /dev/sda: no",
        "x virt-v2v: error: no",
        "virt-v2v: warning: error: no",
        "{ \"message\": \"virt-v2v: error: no\" }",
    ] {
        assert_eq!(sentence(line), "virt-v2v terminated with return code 1; see virt-v2v.log.", "{line}");
    }
}

#[test]
fn without_an_error_the_stage_and_the_last_words_are_told() {
    let mut evidence =
        evidence("virt-v2v: virt-v2v 2.2.0 (x86_64)\nvirt-v2v: This guest has virtio drivers installed.\n");
    evidence.stage("Inspecting the source");
    assert_eq!(
        evidence.sentence(Exit::Code(3)),
        "virt-v2v terminated with return code 3 during “Inspecting the source”; its last words were “This guest has \
         virtio drivers installed.”; see virt-v2v.log."
    );
    evidence.stage("Opening the source");
    assert!(evidence.sentence(Exit::Code(1)).contains("/dev/kvm"));
}

#[test]
fn an_error_that_is_not_known_names_the_stage_and_the_log() {
    let mut evidence = evidence("virt-v2v-in-place: error: something new\n");
    evidence.stage("Converting 12.0 to run on KVM");
    assert_eq!(
        evidence.sentence(Exit::Code(1)),
        "virt-v2v error: something new. It happened during “Converting 12.0 to run on KVM”; see virt-v2v.log."
    );
}

/// Its error lines begin with its name, and the sentence names it; what was copied need not be copied again.
#[test]
fn a_conversion_in_place_is_called_by_its_name() {
    let after = |log: &str, exit| {
        let mut evidence = Evidence::of_in_place();
        log.lines().for_each(|line| evidence.line(line.as_bytes()));
        evidence.stage("Opening the source");
        evidence.sentence(exit)
    };
    let one = Exit::Code(1);
    for (log, exit, begins, holds) in [
        (
            "virt-v2v-in-place: error: inspection could not detect",
            one,
            "virt-v2v-in-place error: ",
            "disks are not blank",
        ),
        (
            "virt-v2v-in-place: could not find key to open LUKS",
            one,
            "virt-v2v-in-place: could not",
            "LUKS keys vault",
        ),
        (
            "virt-v2v-in-place: Exiting on signal SIGTERM",
            one,
            "virt-v2v-in-place was stopped",
            "resume the job",
        ),
        (
            "virt-v2v-in-place: virt-v2v 2.2.0 (x86_64)",
            one,
            "virt-v2v-in-place terminated with return code 1",
            "/dev/kvm",
        ),
        ("", Exit::Signal(15), "virt-v2v-in-place was killed by signal 15", "resume the job"),
        ("", Exit::Signal(9), "virt-v2v-in-place was killed by signal 9", "out of memory"),
        ("", Exit::Signal(11), "virt-v2v-in-place was killed by signal 11", "virt-v2v.log"),
    ] {
        let sentence = after(log, exit);
        assert!(sentence.starts_with(begins) && sentence.contains(holds), "{sentence}");
    }
}

#[test]
fn further_paragraphs_of_an_error_give_advice_but_are_not_shown() {
    let text = "virt-v2v: error: odd.\n\nguestfs_launch failed\n\nIf reporting bugs, run\n";
    assert!(sentence(text).starts_with("virt-v2v error: odd. The libguestfs appliance did not start"));
    // Without the empty line it is another program's text.
    assert!(!sentence("virt-v2v: error: odd.\nguestfs_launch failed\n").contains("appliance"));
    assert!(!sentence("virt-v2v: error: odd.\nother\nguestfs_launch failed\n").contains("appliance"));
    // After the text about bug reports nothing belongs to the error.
    assert!(
        !sentence("virt-v2v: error: odd.\n\nIf reporting bugs, run\n\nguestfs_launch failed\n")
            .contains("appliance")
    );
}

#[test]
fn a_full_destination_names_the_disk_as_far_as_it_is_known() {
    let mut evidence =
        evidence("nbdkit: file.1: error: pwrite: No space left on device\nvirt-v2v: error: nbdcopy failed");
    evidence.copying(1, 2, None);
    assert!(evidence.sentence(Exit::Code(1)).contains("The destination of disk 2 of 2 is full"));
    evidence.target(1, "/out/sdb");
    assert!(evidence.sentence(Exit::Code(1)).contains("The destination of disk 2 of 2 (/out/sdb) is full"));
}

#[test]
fn qemu_img_of_1x_says_why_the_copy_failed() {
    let log = "qemu-img: error while writing sector 5: No space left on device\nvirt-v2v: error: qemu-img command failed, see earlier errors\n";
    let mut evidence = evidence(log);
    evidence.copying(0, 1, Some("/out/sda"));
    assert_eq!(
        evidence.sentence(Exit::Code(1)),
        "virt-v2v error: qemu-img command failed, see earlier errors (qemu-img: error while writing sector 5: No space \
         left on device). The destination of disk 1 of 1 (/out/sda) is full: free space there, or choose another \
         destination, and convert again."
    );
}

#[test]
fn space_that_ends_before_any_copy_is_the_overlays() {
    let log = "nbdkit: file.1: error: cow: pwrite: No space left on device\nvirt-v2v: error: libguestfs error: fsck\n";
    assert!(sentence(log).contains("temporary directory is full"));
}

/// A server of overlays says nothing about a full disk, and the guest's file system complains of something else.
#[test]
fn a_full_disk_that_nobody_told_of_is_told() {
    let mut evidence = Evidence::of_in_place();
    evidence.line(b"virt-v2v-in-place: error: libguestfs error: write: Input/output error");
    evidence.no_space();
    assert_eq!(
        evidence.sentence(Exit::Code(1)),
        "virt-v2v-in-place error: libguestfs error: write: Input/output error. The conversion host's temporary \
         directory is full: free space there, or name another one (`tmp_dir` of the site configuration), and convert \
         again."
    );
}

#[test]
fn a_signal_is_a_negative_return_code() {
    for (code, exit) in [(0, Exit::Code(0)), (1, Exit::Code(1)), (-15, Exit::Signal(15))] {
        assert_eq!(exit.return_code(), code);
    }
}

#[test]
fn signals_are_told_apart() {
    let evidence = evidence("");
    for (signal, expected) in [(15, "cancelled"), (9, "out of memory"), (11, "killed by signal 11")] {
        assert!(evidence.sentence(Exit::Signal(signal)).contains(expected), "{signal}");
    }
    assert!(sentence("virt-v2v: Exiting on signal SIGTERM").contains("cancelled"));
    assert!(
        sentence("virt-v2v: Exiting on signal SIGHUP")
            .starts_with("virt-v2v was stopped by SIGHUP: it ended")
    );
}

#[test]
fn an_error_is_told_first_even_when_a_signal_ended_it() {
    let evidence = evidence("virt-v2v: error: broken\nvirt-v2v: Exiting on signal SIGTERM");
    assert!(evidence.sentence(Exit::Code(1)).starts_with("virt-v2v error: broken. "));
    assert!(evidence.sentence(Exit::Code(1)).ends_with("It was also told to stop by SIGTERM."));
    assert!(evidence.sentence(Exit::Signal(9)).ends_with("Then signal 9 killed it."));
}

#[test]
fn an_error_after_a_prompt_is_an_error() {
    let text = "Enter root's password for 127.0.0.1: virt-v2v: error: exception: libvirt: unknown\n";
    assert!(
        sentence(text)
            .starts_with("virt-v2v error: exception: libvirt: unknown. virt-v2v asked for the password")
    );
}

#[test]
fn every_advice_can_be_reached() {
    for (words, expected) in advice::ADVICE {
        assert_eq!(advice::advice(&words.join(" ")), Some(*expected), "{words:?}");
    }
}

#[test]
fn memory_and_sentence_stay_short_whatever_is_printed() {
    let long = "ü".repeat(40_000);
    let mut evidence = Evidence::default();
    for _ in 0..3 {
        evidence.line(format!("virt-v2v: error: {long}").as_bytes());
        for _ in 0..200 {
            evidence.line(b"");
            evidence.line(long.as_bytes());
        }
        evidence.line(format!("nbdcopy: {long}").as_bytes());
        evidence.stage(&long);
    }
    for disk in 0..2000 {
        evidence.target(disk, &long);
    }
    assert!(evidence.error.as_ref().is_some_and(|error| error.len() < 2 * MAX_TEXT));
    assert_eq!(evidence.targets.len(), MAX_TARGETS);
    assert!(evidence.targets.iter().all(|target| target.len() <= 2 * MAX_TEXT));
    assert!(evidence.sentence(Exit::Code(1)).len() < 4 * MAX_SHOWN);
}
