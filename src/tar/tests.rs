use std::io::Cursor;
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// An archive of `files` by the real tar; `None` where there is none.
fn archive(files: &[(&str, &[u8])], options: &[&str]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let mut tar = Command::new("tar");
    tar.current_dir(directory.path()).args(["-c", "-f", "-"]).args(options).arg(".");
    let output = tar.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn seen(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let members = members(&mut Cursor::new(archive)).unwrap();
    let content =
        |member: &Member| archive[member.offset as usize..(member.offset + member.size) as usize].to_vec();
    let mut seen: Vec<_> = members.iter().map(|member| (member.name.clone(), content(member))).collect();
    seen.sort();
    seen
}

#[test]
fn members_are_found_in_every_dialect() {
    let long = format!("{}/{}.vmdk", "d".repeat(90), "n".repeat(120));
    let files: Vec<(&str, &[u8])> =
        vec![("a.ovf", b"<Envelope/>"), ("b c-ä.vmdk", &[7; 1500]), ("empty", b""), (&long, b"long")];
    let mut expected: Vec<_> =
        files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect();
    expected.sort();
    for format in ["--format=gnu", "--format=pax", "--format=posix"] {
        assert_eq!(seen(&archive(&files, &[format])), expected, "{format}");
    }
    let short = archive(&files[..3], &["--format=ustar"]);
    expected.retain(|(name, _)| name.len() < 50);
    assert_eq!(seen(&short), expected);
    // Without the empty blocks at the end.
    let last =
        members(&mut Cursor::new(&short)).unwrap().into_iter().map(|m| m.offset + m.size).max().unwrap();
    assert_eq!(seen(&short[..last.next_multiple_of(BLOCK) as usize]), expected);
}

#[test]
fn what_cannot_be_read_in_place_is_told() {
    let plain = archive(&[("a.vmdk", &[1; 3000])], &[]);
    let error = |bytes: &[u8]| members(&mut Cursor::new(bytes)).unwrap_err().to_string();
    assert!(error(&archive(&[("a.vmdk", b"x")], &["-z"])).contains("compressed"));
    assert!(error(b"PK\x03\x04..").contains("compressed"));
    assert!(error(b"shorter than a block").contains("not a tar"));
    assert!(error(&[0; 1024]).contains("not a tar"));
    assert!(error(b"").contains("not a tar"));
    assert!(error(&[b'x'; 1024]).contains("not a tar"));
    assert!(error(&plain[..2048]).contains("cut off: "), "{}", error(&plain[..2048]));
    let mut damaged = plain.clone();
    // Directory, file, content; then the end should come.
    damaged[512 * 8..512 * 8 + 4].copy_from_slice(b"junk");
    assert!(error(&damaged).contains("damaged"), "{}", error(&damaged));
}

/// Larger than octal digits can say.
#[test]
fn a_number_may_be_binary() {
    assert_eq!(number(b"\x80\0\0\0\0\0\0\x04\0\0\0\0"), Some(1 << 34));
    assert_eq!(number(b"00000001750\0"), Some(1000));
    assert_eq!(number(&[0x80, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]), None);
}

#[test]
fn sparse_members_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(directory.path().join("s")).unwrap();
    file.set_len(1 << 20).unwrap();
    for format in ["--format=gnu", "--format=pax"] {
        let mut tar = Command::new("tar");
        let bytes =
            tar.current_dir(directory.path()).args(["-cSf", "-", format, "s"]).output().unwrap().stdout;
        let error = members(&mut Cursor::new(bytes)).unwrap_err();
        assert!(matches!(error, TarError::Sparse(_)), "{format}: {error}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, at in 0_usize..2048, byte: u8, kind: u8) {
        drop(members(&mut Cursor::new(&bytes)));
        drop(Pax::read(&bytes));
        // A valid header with one byte changed, and its sum made right again.
        let mut block = [0_u8; 2048];
        block[..4].copy_from_slice(b"name");
        block[124..136].copy_from_slice(b"00000000100\0");
        block[156] = kind;
        block[at] = byte;
        block[148..156].fill(b' ');
        let sum: u64 = block[..512].iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        drop(members(&mut Cursor::new(&block)));
    }
}
