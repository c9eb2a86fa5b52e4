//! Tests of [`super::LogParser`]: what each kind of line says, and that it does not matter how bytes arrive.

use proptest::prelude::*;

use super::*;
use crate::v2v::failure::Exit;

const ID: &str = "01234567-89ab-cdef-0123-456789abcdef";

fn parse_chunks<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Event>, Evidence) {
    let (mut parser, mut events) = (LogParser::new(), Vec::new());
    for chunk in chunks {
        parser.feed(chunk, &mut |event| events.push(event));
        assert!(parser.buffered() <= 2 * MAX_LINE);
    }
    parser.finish(&mut |event| events.push(event));
    (events, parser.evidence().clone())
}

fn parse(log: impl AsRef<[u8]>) -> Vec<Event> {
    parse_chunks([log.as_ref()]).0
}

fn message(text: &str) -> Event {
    Event::Message { text: text.into() }
}

fn started(disk: usize, count: usize, target: Option<&str>) -> Event {
    Event::CopyStarted { disk, count, target: target.map(str::to_owned) }
}

fn progress(percent: f64) -> Event {
    Event::CopyProgress { percent }
}

fn opened(path: &str) -> Event {
    Event::SourceOpened { path: path.into() }
}

fn bar(percent: usize) -> String {
    let done = percent * 40 / 100;
    format!("▝ {percent:3}% [{}{}]", "*".repeat(done), "-".repeat(40 - done))
}

#[test]
fn a_message_has_exactly_one_decimal() {
    for line in
        ["[   1.2] Opening the source", "[12345.6] Opening the source", "[ 123456.7] Opening the source"]
    {
        assert_eq!(parse(line), [message("Opening the source")], "{line}");
    }
    for line in [
        "[    0.597000] Spectre V2 : x",
        "[   1.23] Opening",
        "[   1.] Opening",
        "[   .2] Opening",
        "[ 1.2]Opening",
        " [ 1.2] Opening",
        "x[ 1.2] Opening",
        "[ 1,2] Opening",
        "[   1.x] not .1] a stamp",
    ] {
        assert_eq!(parse(line), [], "{line}");
    }
}

#[test]
fn a_copy_starts_with_a_message_in_2x_and_with_anything_and_to_in_1x() {
    for (line, expected) in [
        ("[  69.4] Copying disk 1/2", vec![message("Copying disk 1/2"), started(0, 2, None)]),
        (
            "[  40.0] Copying disk 2/2 to /dev/x (raw)",
            vec![message("Copying disk 2/2 to /dev/x (raw)"), started(1, 2, Some("/dev/x"))],
        ),
        ("Copying disk 1/1 to x", vec![started(0, 1, Some("x"))]),
        ("any Copying disk 3/4 to /a (b) c (qcow2)", vec![started(2, 4, Some("/a (b) c"))]),
        ("Copying disk 1/1 to /a (no format)", vec![started(0, 1, Some("/a (no format)"))]),
        (
            r#"Copying disk 1/1 to qemu URI json:{ "file.driver": "nbd" } (raw)"#,
            vec![started(0, 1, Some(r#"qemu URI json:{ "file.driver": "nbd" }"#))],
        ),
        ("Copying disk 1/1 to", vec![started(0, 1, None)]),
        ("Copying disk 1/1", vec![]),
        ("[ 9.9] Not Copying disk 1/1", vec![message("Not Copying disk 1/1")]),
        ("[ 9.9] Copying disk 1/1 of x", vec![message("Copying disk 1/1 of x")]),
        (r#"{ "message": "Copying disk 1/1 to x (raw)", "type": "message" }"#, vec![]),
    ] {
        assert_eq!(parse(line), expected, "{line}");
    }
}

#[test]
fn impossible_disk_numbers_are_ignored() {
    for numbers in ["0/1", "2/1", "0/0", "1/1025", "1/99999999999999999999", "-1/1", "1/", "/1", "a/b"] {
        assert_eq!(parse(format!("Copying disk {numbers} to x")), [], "{numbers}");
    }
    assert_eq!(parse("Copying disk 1024/1024 to x"), [started(1023, 1024, Some("x"))]);
}

#[test]
fn the_metadata_message_ends_the_copies() {
    assert_eq!(
        parse("[ 70.1] Creating output metadata\n"),
        [message("Creating output metadata"), Event::CopyEnded]
    );
    assert_eq!(parse("Creating output metadata\n"), []);
}

#[test]
fn qemu_img_progress_needs_white_space_and_at_most_100() {
    let log = "    (0.00/100%)\r    (13.5/100%)\r\t(100.00/100%)\r\n";
    assert_eq!(parse(log), [progress(0.0), progress(13.5), progress(100.0)]);
    for line in
        ["(13.00/100%)", "  (13/100%)", "  (.5/100%)", "  (100.01/100%)", "  (-1.00/100%)", "  (NaN/100%)"]
    {
        assert_eq!(parse(line), [], "{line}");
    }
}

#[test]
fn nbdcopy_bars_are_found_between_debug_text() {
    let log = format!("{}\rnbdkit: debug: x\ny {}\r{}\n", bar(0), bar(12), bar(100));
    assert_eq!(parse(log), [progress(0.0), progress(12.0), progress(100.0)]);
    for line in [
        "▝  12% [**--]".to_owned(),
        bar(12).replace('▝', "xxx"),
        bar(12).replace('*', "#"),
        bar(12).replace(" 12%", "200%"),
        bar(12).replace(" 12%", "1 2%"),
        bar(12).replace(']', ""),
    ] {
        assert_eq!(parse(&line), [], "{line}");
    }
}

#[test]
fn vddk_names_the_file_it_opens_up_to_the_last_bracket() {
    for (line, path) in [
        (
            "nbdkit: vddk[1]: debug: Opening file [ds] a/a.vmdk (ha-nfcssl://[ds] a/a.vmdk@h:902)",
            "[ds] a/a.vmdk",
        ),
        ("nbdkit: debug: Opening file [ds] a (b)/c.vmdk (x)", "[ds] a (b)/c.vmdk"),
        ("nbdkit[in0]: vddk[1]: debug: Opening file /vmfs/volumes/ds/a/a-flat.vmdk (x)", "[ds] a/a.vmdk"),
    ] {
        assert_eq!(parse(line), [opened(path)], "{line}");
    }
    for line in
        ["x nbdkit: debug: Opening file a (b)", "nbdkit: debug: Opening file a", "nbdkit: Opening file a (b)"]
    {
        assert_eq!(parse(line), [], "{line}");
    }
}

#[test]
fn qemu_sources_of_1x_name_their_path_in_json() {
    let overlay = r#"overlay source qemu URI: json: { "file.driver": "ssh", "file.path": "/vmfs/volumes/ds/a/a-flat.vmdk" }"#;
    assert_eq!(parse(overlay), [opened("[ds] a/a.vmdk")]);
    assert_eq!(parse(format!("    {overlay}")), [opened("[ds] a/a.vmdk")]);
    assert_eq!(parse("  overlay source qemu URI: nbd:unix:/tmp/x:exportname=/"), []);
    let info = r#"libguestfs: parse_json: qemu-img info JSON output:\n{\n "backing-filename": "json:{\"file.path\": \"/vmfs/volumes/ds/b/b.vmdk\"}"\n}\n"#;
    assert_eq!(parse(info), [opened("[ds] b/b.vmdk")]);
    assert_eq!(parse(info.replace("backing", "other")), []);
}

#[test]
fn the_command_after_the_announcement_names_the_served_disk() {
    let nbdkit = "running nbdkit:\n LANG=C 'nbdkit' '--unix' '/v2v.x/SLOT' '--filter' 'cow' 'PLUGIN' 'server=h' 'WHAT' 'cache=none'\n";
    let qemu =
        "running qemu-nbd:\n 'qemu-nbd' '-t' '--socket' '/v2v.x/SLOT' '-s' '--format' 'qcow2' 'WHAT'\n";
    let served = |path: &str| vec![Event::SourceServed { disk: 7, path: path.into() }];
    let target = |path: &str| vec![Event::TargetServed { disk: 7, path: path.into() }];
    for (command, slot, what, expected) in [
        (nbdkit, "in7", "file=/a b/c.img", served("/a b/c.img")),
        (nbdkit, "in7", "file=[ds] a/a.vmdk", served("[ds] a/a.vmdk")),
        (nbdkit, "in7", "path=/vmfs/volumes/ds/a/a-flat.vmdk", served("[ds] a/a.vmdk")),
        (nbdkit, "in7", r"file=/it'\''s \x", served(r"/it's \x")),
        (nbdkit, "in7", "file=/a\nb", served("/a\nb")),
        (nbdkit, "out7", "file=/out/guest-sda", target("/out/guest-sda")),
        (nbdkit, "out7", "dir=/out", vec![]),
        (nbdkit, "in7", "dir=/in", vec![]),
        (nbdkit, "in7777", "file=/a", vec![]),
        (nbdkit, "input", "file=/a", vec![]),
        (nbdkit, "nbdkit1.sock", "file=/a", vec![]),
        (qemu, "in7", "/a b.qcow2", served("/a b.qcow2")),
        (qemu, "out7", "/out/guest-sda", target("/out/guest-sda")),
        (
            qemu,
            "in7",
            r#"json:{ "file": { "driver": "raw", "offset": 5120, "file": { "driver": "file", "filename": "/a.ova" } } }"#,
            served("/a.ova"),
        ),
        (qemu, "in7", r#"json:{ "file.driver": "file", "file.filename": "/b.ova" }"#, served("/b.ova")),
        (qemu, "in7", r#"json:{ "file": 1 }"#, served(r#"json:{ "file": 1 }"#)),
    ] {
        let log = command.replace("SLOT", slot).replace("WHAT", what);
        assert_eq!(parse(&log), expected, "{log}");
        // Without the announcement it is only text.
        assert_eq!(parse(log.split_once('\n').unwrap().1), [], "{log}");
    }
}

#[test]
fn a_command_that_never_comes_swallows_nothing() {
    let log = "running nbdkit:\n[  1.1] Copying disk 1/1\nrunning qemu-nbd:\n    (5.00/100%)\nrunning nbdkit:\n'nbdkit' 'open\n[  1.2] Finishing off\n";
    let expected =
        [message("Copying disk 1/1"), started(0, 1, None), progress(5.0), message("Finishing off")];
    assert_eq!(parse(log), expected);
}

#[test]
fn one_server_of_a_directory_gets_its_files_from_the_nbdcopy_commands() {
    let server = "running nbdkit:\n LANG=C '/usr/bin/nbdkit' '--name' 'out' '--unix' '/v/out0' 'file' 'dir=/o u/t' 'cache=none'\n";
    let copy = |export: &str, input: usize, socket: &str| {
        format!(
            "nbdcopy 'nbd+unix:///?socket=/v/in{input}' 'nbd+unix:///{export}?socket={socket}' '--progress'\n"
        )
    };
    let target = |disk, path: &str| Event::TargetServed { disk, path: path.into() };
    let log = format!("{server}{}{}", copy("guest-sda", 0, "/v/out0"), copy("gu%20est-sdb", 1, "/v/out0"));
    assert_eq!(parse(log), [target(0, "/o u/t/guest-sda"), target(1, "/o u/t/gu est-sdb")]);
    // A source that is served as a directory changes nothing about the destination.
    let source = server.replace("out0", "in0").replace("/o u/t", "/source");
    let log = format!("{server}{source}{}", copy("guest-sda", 0, "/v/out0"));
    assert_eq!(parse(log), [target(0, "/o u/t/guest-sda")]);
    for wrong in [
        copy("", 0, "/v/out0"),
        copy("..%2Fx", 0, "/v/out0"),
        copy("..", 0, "/v/out0"),
        copy("a", 0, "/w/out0"),
    ] {
        assert_eq!(parse(format!("{server}{wrong}")), [], "{wrong}");
    }
    assert_eq!(parse(copy("guest-sda", 0, "/v/out0")), []);
}

#[test]
fn names_and_ids_are_found_where_they_stand() {
    let volume = |index| Event::CinderVolume { id: ID.into(), index };
    let disk = || Event::OvirtDisk { id: ID.into() };
    let vm = || Event::VmId { id: ID.into() };
    let name = |name: &str| Event::DisplayName { name: name.into() };
    for (line, expected) in [
        (r#"displayName = "My "VM" 1""#, Some(name(r#"My "VM" 1"#))),
        (r#"displayName = "a|22b|7C""#, Some(name(r#"a"b|"#))),
        (r#" displayName = "x""#, None),
        (r#"displayName = """#, None),
        ("disk.id = 'ID'", Some(disk())),
        ("disk.id = u'ID'", Some(disk())),
        ("disk.id = 'none'", None),
        ("disk.id = '01234567'", None),
        ("xdisk.id = 'ID'", None),
        ("    <VirtualSystem ovf:id='ID'>", Some(vm())),
        (r#"x<VirtualSystem ovf:id="ID">"#, Some(vm())),
        (r#"<VirtualSystem ovf:id="ID'>"#, None),
        ("<VirtualSystem ovf:id='x'>", None),
        ("openstack '--os-username=admin' 'volume' 'show' '-f' 'json' 'ID'", Some(volume(None))),
        ("openstack [...] volume show -f json ID", Some(volume(None))),
        ("openstack [...] volume show -f json", None),
        ("x openstack volume show ID", None),
        (
            "openstack 'volume' 'set' '--property' 'virt_v2v_disk_index='\\''2/3'\\''' 'ID'",
            Some(volume(Some(1))),
        ),
        ("openstack [...] volume set --property virt_v2v_disk_index='1/1' ID", Some(volume(Some(0)))),
        ("openstack 'volume' 'set' '--property' 'virt_v2v_disk_index=3/3' 'ID'", Some(volume(Some(2)))),
        ("openstack 'volume' 'set' '--property' 'virt_v2v_disk_index=0/3' 'ID'", None),
        ("openstack 'volume' 'set' '--property' 'virt_v2v_disk_index=4/3' 'ID'", None),
        ("openstack 'volume' 'set' '--bootable' 'ID'", None),
        ("openstack 'volume' 'delete' 'ID'", None),
    ] {
        let line = line.replace("ID", ID);
        assert_eq!(parse(&line), Vec::from_iter(expected), "{line}");
    }
}

#[test]
fn a_1x_log_over_vddk_gives_disks_in_its_own_order() {
    let log = "nbdkit: vddk[1]: debug: Opening file [ds] a/a.vmdk (ha-nfcssl://[ds] a/a.vmdk@127.0.0.1:902)\n\
               [  40.0] Copying disk 1/2 to /dev/x (raw)\n\
               nbdkit: vddk[1]: debug: Opening file [ds] a/b.vmdk (ha-nfcssl://[ds] a/b.vmdk@127.0.0.1:902)\n\
               \x20   (50.00/100%)\r    (51.00/100%)\r\n\
               [  40.0] Copying disk 2/2 to /dev/x (raw)\n\
               [  50.0] Creating output metadata\n";
    let expected = [
        opened("[ds] a/a.vmdk"),
        message("Copying disk 1/2 to /dev/x (raw)"),
        started(0, 2, Some("/dev/x")),
        opened("[ds] a/b.vmdk"),
        progress(50.0),
        progress(51.0),
        message("Copying disk 2/2 to /dev/x (raw)"),
        started(1, 2, Some("/dev/x")),
        message("Creating output metadata"),
        Event::CopyEnded,
    ];
    assert_eq!(parse(log), expected);
}

#[test]
fn texts_that_are_not_utf8_are_shown_anyway() {
    assert_eq!(parse(b"[   1.2] caf\xe9"), [message("caf\u{fffd}")]);
    assert_eq!(parse(b"nbdkit: debug: Opening file \xff (x)"), [opened("\u{fffd}")]);
}

#[test]
fn a_rule_does_not_reach_beyond_the_line_limit() {
    let long = "x".repeat(MAX_LINE);
    assert_eq!(parse(format!("{long}Copying disk 1/1 to x\n[ 1.2] next\n")), [message("next")]);
    let fits = "x".repeat(MAX_LINE - "Copying disk 1/1 to x".len());
    assert_eq!(parse(format!("{fits}Copying disk 1/1 to xyz")), [started(0, 1, Some("x"))]);
}

/// What the rules find when every line is read by them, without the search for literals.
fn parse_every_line(log: &[u8]) -> (Vec<Event>, Evidence) {
    let (mut lines, mut reader, mut events) = (Lines::default(), Reader::default(), Vec::new());
    let mut all = |block: &[u8]| {
        let mut from = 0;
        while from < block.len() {
            let (line, next) = line_at(block, from, from);
            reader.line(line, &mut |event| events.push(event));
            from = next;
        }
    };
    lines.feed(log, &mut all);
    lines.finish(&mut all);
    (events, reader.evidence)
}

/// Pieces of lines; together and alone they touch every rule.
fn fragment() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<Vec<u8>> = [
        "\n", "\n", "\r", "\r\n", "[  12.3] ", "[    0.597000] ", "Copying disk 1/2", "Copying disk 2/2 to /x (raw)",
        "Creating output metadata", "    (12.34/100%)", "▝  12% [****", "% [", "************************************]",
        "nbdkit: vddk[1]: debug: Opening file [ds] a/b.vmdk (x)", "running nbdkit:\n", "running qemu-nbd:",
        " LANG=C 'nbdkit' '--unix' '/v/in0' 'file=/a b'", "'--socket' '/v/out1' '/x'", "'", "\\", "\"", "{", "nbd",
        "nbdkit '--unix' /v/out0 dir=/d", "nbdcopy 'nbd+unix:///?socket=/v/in0' 'nbd+unix:///e?socket=/v/out0'",
        "nbdcopy: write at offset 1 failed",
        "qemu-img: error", "virt-v2v: error: ", "virt-v2v: ", "virt-v2v-in-place: Exiting on signal SIGTERM",
        "Enter password: virt-v2v: error: x", "getline: Inappropriate", "nbdkit: file: error: No space left on device",
        "If reporting bugs", "displayName = \"a\"", "disk.id = '01234567-89ab-cdef-0123-456789abcdef'",
        "<VirtualSystem ovf:id='01234567-89ab-cdef-0123-456789abcdef'>",
        "openstack volume show 01234567-89ab-cdef-0123-456789abcdef", "overlay source qemu URI: json:{\"file.path\": \"/p\"}",
        "libguestfs: parse_json: qemu-img info JSON output:\\n\"backing-filename\": \\\"file.path\\\": \\\"/q\\\"", " ",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    prop_oneof![
        24 => proptest::sample::select(known),
        4 => proptest::collection::vec(any::<u8>(), 0..12),
        1 => Just(vec![b'y'; MAX_LINE - 20]),
    ]
}

fn log() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(fragment(), 0..40).prop_map(|fragments| fragments.concat())
}

proptest! {
    #[test]
    fn events_and_evidence_do_not_depend_on_the_chunks(log in log(), cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12)) {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(log.len() + 1)).collect();
        at.extend([0, log.len()]);
        at.sort_unstable();
        let whole = parse_chunks([&log[..]]);
        prop_assert_eq!(&whole, &parse_chunks(at.windows(2).map(|pair| &log[pair[0]..pair[1]])));
        prop_assert_eq!(&whole, &parse_chunks(log.chunks(3)));
    }

    #[test]
    fn every_line_with_something_in_it_holds_a_needle(log in log()) {
        prop_assert_eq!(parse_chunks([&log[..]]), parse_every_line(&log));
    }

    #[test]
    fn any_bytes_are_only_data(log in proptest::collection::vec(any::<u8>(), 0..2000), code in any::<i32>()) {
        let (_, evidence) = parse_chunks(log.chunks(97));
        let _ = evidence.sentence(Exit::Code(code));
        let _ = evidence.sentence(Exit::Signal(code));
    }
}
