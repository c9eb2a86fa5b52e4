//! What one line of the log says: the table of contract.md 5 and virt-v2v-output.md 2 and 3, by hand. Pure.
//!
//! Written out byte by byte instead of as regular expressions: 200 jobs run at once, and the compiled patterns
//! would be private memory of each. Every rule that finds something needs one of the literals in
//! [`super::NEEDLES`] in the line, because lines without one are never looked at.

use memchr::memmem;

use super::MAX_DISKS;
use super::path::datastore_path;
use crate::event::Event;

/// Text of bytes that may be anything.
pub(super) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A decimal number of at most six digits, and what follows it.
pub(super) fn decimal(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=6).contains(&digits) {
        return None;
    }
    let number = bytes[..digits].iter().fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
    Some((number, &bytes[digits..]))
}

/// An id as oVirt and OpenStack print it: 8-4-4-4-12. Volumes and machines are deleted by such ids, so no
/// other shape is taken for one.
pub(super) fn uuid(bytes: &[u8]) -> Option<String> {
    let shaped = bytes.len() == 36
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    shaped.then(|| lossy(bytes))
}

/// `[  12.3] TEXT`. Exactly one decimal: the appliance's kernel log has six.
pub(super) fn message(line: &[u8]) -> Option<&[u8]> {
    let stamp = line.strip_prefix(b"[")?.trim_ascii_start();
    let seconds = stamp.iter().take_while(|byte| byte.is_ascii_digit()).count();
    match &stamp[seconds..] {
        [b'.', tenth, b']', b' ', text @ ..] if seconds > 0 && tenth.is_ascii_digit() => Some(text),
        _ => None,
    }
}

/// `Copying disk N/M to TARGET (FMT)` anywhere in a line (1.4x), or as the whole of a message (2.x).
pub(super) fn copy_started(text: &[u8], is_message: bool) -> Option<Event> {
    let at = memmem::find(text, b"Copying disk ")?;
    let (number, rest) = decimal(&text[at + b"Copying disk ".len()..])?;
    let (count, rest) = decimal(rest.strip_prefix(b"/")?)?;
    let target = match rest {
        b"" if is_message && at == 0 => None,
        [b' ', b't', b'o'] => None,
        [b' ', b't', b'o', b' ', target @ ..] => {
            Some(lossy(without_format(target))).filter(|to| !to.is_empty())
        }
        _ => return None,
    };
    let real = (1..=count).contains(&number) && count <= MAX_DISKS;
    real.then(|| Event::CopyStarted { disk: number - 1, count, target })
}

/// `/path (raw)` -> `/path`; 1.4x always writes the format, the contract does not ask for it.
fn without_format(target: &[u8]) -> &[u8] {
    let format = |inner: &[u8]| !inner.is_empty() && inner.iter().all(u8::is_ascii_alphanumeric);
    let Some(at) = memmem::rfind(target, b" (") else { return target };
    match target[at + 2..].strip_suffix(b")") {
        Some(inner) if format(inner) => &target[..at],
        _ => target,
    }
}

/// `    (12.34/100%)`, qemu-img's progress in 1.4x; the white space is part of the rule (contract.md 5, 6).
pub(super) fn qemu_img_percent(line: &[u8]) -> Option<Event> {
    let text = line.trim_ascii_start();
    if text.len() == line.len() {
        return None;
    }
    let text = text.strip_prefix(b"(")?;
    let number = &text[..memmem::find(text, b"/100%)")?];
    let (_, decimals) = decimal(number)?;
    let decimals = decimals.strip_prefix(b".")?;
    if !(1..=6).contains(&decimals.len()) || !decimals.iter().all(u8::is_ascii_digit) {
        return None;
    }
    percent(std::str::from_utf8(number).ok()?.parse().ok()?)
}

/// Width of nbdcopy's bar: a block character, three places, `% [`, 40 cells, `]`.
const CELLS: usize = 40;

/// nbdcopy's bar, `▝  12% [****------...]`, anywhere in the line (2.x).
pub(super) fn nbdcopy_percents(line: &[u8]) -> impl Iterator<Item = Event> {
    memmem::find_iter(line, b"% [").filter_map(move |at| {
        let number = line[..at].last_chunk::<3>()?;
        let [0xe2, 0x96, 0x80..=0x9f, b' '] = line[..at - 3].last_chunk::<4>()? else { return None };
        let (cells, rest) = line[at + 3..].split_at_checked(CELLS)?;
        if !cells.iter().all(|cell| matches!(cell, b'*' | b'-')) || rest.first() != Some(&b']') {
            return None;
        }
        let (value, rest) = decimal(number.trim_ascii_start())?;
        rest.is_empty().then(|| percent(value as f64))?
    })
}

/// More than 100 is not a percentage: such a line is something else.
fn percent(percent: f64) -> Option<Event> {
    (0.0..=100.0).contains(&percent).then_some(Event::CopyProgress { percent })
}

/// `nbdkit: vddk[1]: debug: Opening file PATH (URI)`; the path may hold brackets, so up to the last one.
/// 2.10 names its servers: `nbdkit[in0]: ...`.
pub(super) fn vddk_opened(line: &[u8]) -> Option<Event> {
    if !line.starts_with(b"nbdkit:") && !line.starts_with(b"nbdkit[") {
        return None;
    }
    let path = after(line, b" debug: Opening file ")?;
    opened(&path[..memmem::rfind(path, b" (")?])
}

/// 1.4x over ssh: `overlay source qemu URI: json:{ ... "file.path": "PATH" ... }`.
pub(super) fn overlay_opened(line: &[u8]) -> Option<Event> {
    let json = line.trim_ascii_start().strip_prefix(b"overlay source qemu URI: json:")?;
    quoted_member(json, b"\"file.path\"", b"\"")
}

/// 1.4x over ssh: the overlay's backing file in `qemu-img info`'s JSON is JSON again, so its quotes are escaped.
pub(super) fn backing_opened(line: &[u8]) -> Option<Event> {
    let json = line.strip_prefix(b"libguestfs: parse_json: qemu-img info JSON output:")?;
    quoted_member(after(json, b"\"backing-filename\"")?, br#"\"file.path\""#, br#"\""#)
}

/// `KEY: QUOTE path QUOTE`.
fn quoted_member(text: &[u8], key: &[u8], quote: &[u8]) -> Option<Event> {
    let value = after(text, key)?.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    let value = value.strip_prefix(quote)?;
    opened(&value[..memmem::find(value, quote)?])
}

fn opened(path: &[u8]) -> Option<Event> {
    (!path.is_empty()).then(|| Event::SourceOpened { path: datastore_path(&lossy(path)) })
}

/// `displayName = "NAME"` of a vmx dump. A vmx file writes special characters as `|22`.
pub(super) fn display_name(line: &[u8]) -> Option<Event> {
    let mut rest = line.strip_prefix(b"displayName = \"")?.trim_ascii_end().strip_suffix(b"\"")?;
    let mut name = Vec::with_capacity(rest.len());
    while let Some((&byte, after)) = rest.split_first() {
        let hex = |at: usize| after.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        if let (b'|', Some(high), Some(low)) = (byte, hex(0), hex(1)) {
            name.push((high * 16 + low) as u8);
            rest = &after[2..];
        } else {
            name.push(byte);
            rest = after;
        }
    }
    (!name.is_empty()).then(|| Event::DisplayName { name: lossy(&name) })
}

/// `disk.id = 'UUID'` of the oVirt upload scripts; Python 2 writes `u'...'`.
pub(super) fn ovirt_disk(line: &[u8]) -> Option<Event> {
    let value = line.strip_prefix(b"disk.id = ")?;
    let value = value.strip_prefix(b"u").unwrap_or(value).strip_prefix(b"'")?;
    let id = uuid(&value[..memmem::find(value, b"'")?])?;
    Some(Event::OvirtDisk { id })
}

/// `<VirtualSystem ovf:id='UUID'>` anywhere in a line: the OVF that virt-v2v gives to oVirt.
pub(super) fn vm_id(line: &[u8]) -> Option<Event> {
    let (quote, value) = after(line, b"<VirtualSystem ovf:id=")?.split_first()?;
    if !matches!(quote, b'\'' | b'"') {
        return None;
    }
    let (id, rest) = value.split_at_checked(36)?;
    (rest.first() == Some(quote)).then(|| Some(Event::VmId { id: uuid(id)? }))?
}

fn after<'a>(text: &'a [u8], needle: &[u8]) -> Option<&'a [u8]> {
    memmem::find(text, needle).map(|at| &text[at + needle.len()..])
}
