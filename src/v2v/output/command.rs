//! Command lines that virt-v2v prints with `-v -x`: the disk servers, nbdcopy, openstack. Pure.
//!
//! Not a shell: only quoting is undone, nothing is expanded. Called by [`super::LogParser`].

use memchr::memmem;
use serde_json::Value;

use super::MAX_DISKS;
use super::path::datastore_path;
use super::rules::{decimal, lossy, uuid};
use crate::event::Event;

/// Which end of the copy a socket belongs to: `.../in3` or `.../out3` in virt-v2v's `v2v.XXXXXX` directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Source(usize),
    Target(usize),
}

/// One nbdkit that serves a whole directory (2.10, raw files): which file is which disk stands only in the
/// nbdcopy command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServedDirectory {
    socket: String,
    directory: String,
}

/// What the command line of a disk server says.
#[derive(Debug, PartialEq)]
pub(super) enum Served {
    Disk(Event),
    Directory(ServedDirectory),
}

/// Words of a command line as a shell would see them; `None` while a quote is open, so the line goes on.
pub(super) fn words(text: &[u8]) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => words.extend(word.take()),
            b'\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match bytes.next()? {
                        b'\'' => break,
                        inner => word.push(inner),
                    }
                }
            }
            b'"' => {
                let word = word.get_or_insert_default();
                loop {
                    match bytes.next()? {
                        b'"' => break,
                        b'\\' => match bytes.next()? {
                            escaped @ (b'"' | b'\\' | b'$' | b'`') => word.push(escaped),
                            other => word.extend([b'\\', other]),
                        },
                        inner => word.push(inner),
                    }
                }
            }
            b'\\' => word.get_or_insert_default().extend(bytes.next()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Some(words.iter().map(|word| lossy(word)).collect())
}

/// The command line of an nbdkit or a qemu-nbd, already in words.
pub(super) fn served(words: &[String]) -> Option<Served> {
    let socket = option_value(words, &["--unix", "-U", "--socket", "-k"])?;
    let slot = slot(socket)?;
    let setting = |key: &str| words.iter().find_map(|word| word.strip_prefix(key));
    let path = if option_value(words, &["--socket", "-k"]).is_some() {
        qemu_file(words.last()?)
    } else if let Some(path) = setting("file=").or_else(|| setting("path=")) {
        path.to_owned()
    } else {
        let directory = setting("dir=").filter(|_| matches!(slot, Slot::Target(_)))?;
        return Some(Served::Directory(ServedDirectory {
            socket: socket.to_owned(),
            directory: directory.to_owned(),
        }));
    };
    Some(Served::Disk(match slot {
        Slot::Source(disk) => Event::SourceServed { disk, path: datastore_path(&path) },
        Slot::Target(disk) => Event::TargetServed { disk, path },
    }))
}

/// The nbdcopy command line of 2.7.12 and later names the export, which is the file in the served directory.
/// The disk is the source's number: all exports come from one `out0`.
pub(super) fn nbdcopy_target(words: &[String], served: &ServedDirectory) -> Option<Event> {
    let mut uris = words.iter().filter_map(|word| nbd_unix(word));
    let (_, source) = uris.next()?;
    let (export, target) = uris.next()?;
    let Slot::Source(disk) = slot(&source)? else { return None };
    // A file of that directory and nothing else: the path may later be deleted as a file of ours.
    let plain = !export.is_empty() && !export.contains('/') && export != "." && export != "..";
    (plain && target == served.socket).then(|| Event::TargetServed {
        disk,
        path: format!("{}/{export}", served.directory.trim_end_matches('/')),
    })
}

/// `openstack ... volume show ... UUID` and `openstack ... volume set ... virt_v2v_disk_index=I/N ... UUID`.
///
/// 1.4x prints the words quoted for a shell, 2.x prints them bare with the values of `--property` in quotes, and
/// neither is sound shell when the guest's name holds a quote. No word that matters here holds one, so quotes
/// and backslashes are dropped. I counts from 1 (read in virt-v2v's output_openstack.ml: `i+1` of the disks).
pub(super) fn cinder_volume(line: &[u8]) -> Option<Event> {
    let bare: Vec<u8> =
        line.strip_prefix(b"openstack ")?.iter().copied().filter(|byte| !b"'\"\\".contains(byte)).collect();
    let mut words = bare.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.by_ref().find(|word| *word == b"volume")?;
    let verb = words.next()?;
    let id = uuid(words.next_back()?)?;
    match verb {
        b"show" => Some(Event::CinderVolume { id, index: None }),
        b"set" => {
            let at = memmem::find(&bare, b"--property virt_v2v_disk_index=")?;
            let (index, rest) = decimal(&bare[at + b"--property virt_v2v_disk_index=".len()..])?;
            let (count, _) = decimal(rest.strip_prefix(b"/")?)?;
            let real = (1..=count).contains(&index) && count <= MAX_DISKS;
            real.then(|| Event::CinderVolume { id, index: Some(index - 1) })
        }
        _ => None,
    }
}

/// The value of the first option with one of these names: `'--unix' 'X'` or `--unix=X`.
fn option_value<'a>(words: &'a [String], names: &[&str]) -> Option<&'a str> {
    words.iter().enumerate().find_map(|(at, word)| match word.split_once('=') {
        Some((name, value)) if names.contains(&name) => Some(value),
        _ if names.contains(&word.as_str()) => words.get(at + 1).map(String::as_str),
        _ => None,
    })
}

fn slot(socket: &str) -> Option<Slot> {
    let name = socket.rsplit('/').next()?;
    let number = |digits: &str| -> Option<usize> {
        let (number, rest) = decimal(digits.as_bytes())?;
        (rest.is_empty() && number < MAX_DISKS).then_some(number)
    };
    match name.strip_prefix("in") {
        Some(digits) => number(digits).map(Slot::Source),
        None => name.strip_prefix("out").and_then(number).map(Slot::Target),
    }
}

/// What qemu-nbd opens: a file name, or `json:` with the name inside (OVA: a part of the archive at an offset).
fn qemu_file(word: &str) -> String {
    word.strip_prefix("json:")
        .and_then(|json| serde_json::from_str::<Value>(json).ok())
        .and_then(|json| inner_file(&json).map(str::to_owned))
        .unwrap_or_else(|| word.to_owned())
}

fn inner_file(json: &Value) -> Option<&str> {
    // "file.filename" is qemu's short form of { "file": { "filename": ... } }; "path" is that of its ssh driver.
    let keys = ["filename", "file.filename", "file.file.filename", "path", "file.path", "file.file.path"];
    keys.iter().find_map(|key| json.get(key)?.as_str()).or_else(|| inner_file(json.get("file")?))
}

/// Export name and socket of `nbd+unix:///EXPORT?socket=PATH`.
fn nbd_unix(uri: &str) -> Option<(String, String)> {
    let (export, query) = uri.strip_prefix("nbd+unix:///")?.split_once('?')?;
    let socket = query.split('&').find_map(|part| part.strip_prefix("socket="))?;
    Some((percent_decoded(export), percent_decoded(socket)))
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |offset: usize| bytes.get(at + offset).and_then(|byte| char::from(*byte).to_digit(16));
        match (bytes[at], hex(1), hex(2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    lossy(&decoded)
}
