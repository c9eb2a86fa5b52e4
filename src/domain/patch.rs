//! A libvirt XML of the user's, with the disks where they are now. Pure.
//!
//! It knows more of the guest than [`crate::guest::Guest`] does, so it is kept as it stands. Changed is what virt-v2v
//! must not see: where the disks were, and memory in a unit that it does not read (virt-v2v-output.md 8).

use quick_xml::events::{BytesDecl, BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer, XmlVersion};

use super::{Placed, kind};

/// The user's libvirt XML cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// No XML.
    #[error("the libvirt XML of the guest cannot be read, at byte {at}: {reason}")]
    Xml {
        /// Where.
        at: u64,
        /// Why.
        reason: String,
    },
    /// XML of something else.
    #[error("the libvirt XML of the guest does not begin with <domain>: give the output of `virsh dumpxml`")]
    NoDomain,
    /// The copies are not those of this guest.
    #[error(
        "the libvirt XML of the guest has {xml} disks (<disk device='disk'>), but {copies} were copied: a guest is \
         converted with all its disks or not at all"
    )]
    Disks {
        /// In the XML.
        xml: usize,
        /// Copied.
        copies: usize,
    },
    /// No number, or a unit that libvirt does not know.
    #[error("the libvirt XML of the guest says <memory unit='{unit}'>{text}</memory>, which is no size")]
    Memory {
        /// As it stands there.
        text: String,
        /// Likewise.
        unit: String,
    },
}

/// Children of a disk that describe the image it was.
const OF_THE_OLD_IMAGE: [&str; 5] = ["source", "backingStore", "mirror", "encryption", "auth"];

/// `xml` with these disks in place of its own, in order, and memory in KiB. CD-ROM and floppy drives stay: virt-v2v
/// keeps the drive and does not open what is in it.
pub fn patched(xml: &str, disks: &[Placed]) -> Result<String, DomainError> {
    let mut patch = Patch { reader: Reader::from_str(xml), writer: Writer::new(Vec::new()), disks, seen: 0 };
    patch.document()?;
    if patch.seen != disks.len() {
        return Err(DomainError::Disks { xml: patch.seen, copies: disks.len() });
    }
    // Everything written was text.
    Ok(String::from_utf8_lossy(&patch.writer.into_inner()).into_owned())
}

struct Patch<'a> {
    reader: Reader<&'a [u8]>,
    writer: Writer<Vec<u8>>,
    disks: &'a [Placed],
    /// Disks of the XML so far.
    seen: usize,
}

impl<'a> Patch<'a> {
    fn document(&mut self) -> Result<(), DomainError> {
        // Names of the elements that are open.
        let mut open: Vec<String> = Vec::new();
        let mut begun = false;
        loop {
            let event = self.next()?;
            if open.is_empty()
                && let Event::Start(start) | Event::Empty(start) = &event
            {
                if start.name().as_ref() != "domain" {
                    return Err(DomainError::NoDomain);
                }
                begun = true;
            }
            match event {
                Event::Eof if !begun => return Err(DomainError::NoDomain),
                Event::Eof if open.is_empty() => return Ok(()),
                Event::Eof => return Err(self.torn()),
                // It may name another encoding; the text is UTF-8 by now.
                Event::Decl(_) => {
                    self.write(Event::Decl(BytesDecl::new("1.0", Some("utf-8"), None)))?;
                }
                Event::Start(start) => {
                    let name = start.name().as_ref().to_owned();
                    match (open.as_slice(), name.as_str()) {
                        ([domain], "memory" | "currentMemory") if domain == "domain" => {
                            self.memory(&start)?
                        }
                        ([_, devices], "disk") if devices == "devices" && is_disk(&start) => {
                            self.disk(&start, false)?;
                        }
                        _ => {
                            self.write(Event::Start(start))?;
                            open.push(name);
                        }
                    }
                }
                Event::Empty(start)
                    if matches!(open.as_slice(), [_, devices] if devices == "devices")
                        && start.name().as_ref() == "disk"
                        && is_disk(&start) =>
                {
                    self.disk(&start, true)?;
                }
                Event::End(end) => {
                    open.pop();
                    self.write(Event::End(end))?;
                }
                other => self.write(other)?,
            }
        }
    }

    /// `<memory unit='GiB'>4</memory>`, whose start was just read.
    fn memory(&mut self, start: &BytesStart<'_>) -> Result<(), DomainError> {
        let text = self.reader.read_text(start.name()).map_err(|error| self.broken(&error))?;
        let text = text.trim().to_owned();
        let unit = attribute(start, "unit").unwrap_or_else(|| "KiB".to_owned());
        let Some(kib) = kib(&text, &unit) else { return Err(DomainError::Memory { text, unit }) };
        let mut memory = BytesStart::new(start.name().as_ref().to_owned());
        let kept = attributes(start).into_iter().filter(|(key, _)| key != "unit");
        push(&mut memory, kept.chain([("unit".to_owned(), "KiB".to_owned())]));
        let end = memory.to_end().into_owned();
        self.write(Event::Start(memory))?;
        self.write(Event::Text(BytesText::new(&kib.to_string())))?;
        self.write(Event::End(end))
    }

    /// A disk whose start (`empty`: all of it) was just read.
    fn disk(&mut self, start: &BytesStart<'_>, empty: bool) -> Result<(), DomainError> {
        let placed = self.disks.get(self.seen).cloned();
        self.seen += 1;
        let Some(placed) = placed else {
            // Counted, for the error.
            return if empty { Ok(()) } else { self.skip(start) };
        };
        let (kind, of_source) = kind(&placed.path);
        let mut disk = BytesStart::new("disk");
        let kept = attributes(start).into_iter().filter(|(key, _)| key != "type" && key != "device");
        let ours =
            [("type", kind), ("device", "disk")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        push(&mut disk, ours.into_iter().chain(kept));
        let end = disk.to_end().into_owned();
        self.write(Event::Start(disk))?;
        let mut driver = vec![("name".to_owned(), "qemu".to_owned())];
        if !empty {
            self.children(&mut driver)?;
        }
        driver.retain(|(key, _)| key != "type");
        driver.push(("type".to_owned(), placed.format.as_str().to_owned()));
        let mut source = BytesStart::new("source");
        source.push_attribute((of_source, placed.path.to_string_lossy().as_ref()));
        let mut element = BytesStart::new("driver");
        push(&mut element, driver);
        self.write(Event::Empty(element))?;
        self.write(Event::Empty(source))?;
        self.write(Event::End(end))
    }

    /// Copies a disk's children up to its end, but for what was its image; gives the attributes of its driver.
    fn children(&mut self, driver: &mut Vec<(String, String)>) -> Result<(), DomainError> {
        let mut depth = 0_usize;
        loop {
            let event = self.next()?;
            match &event {
                Event::Start(start) | Event::Empty(start) if depth == 0 => {
                    let old = OF_THE_OLD_IMAGE.contains(&start.name().as_ref());
                    let is_driver = start.name().as_ref() == "driver";
                    if is_driver {
                        *driver = attributes(start);
                    }
                    if old || is_driver {
                        if let Event::Start(start) = &event {
                            self.skip(start)?;
                        }
                        continue;
                    }
                }
                Event::End(_) if depth == 0 => return Ok(()),
                Event::Eof => return Err(self.torn()),
                _ => {}
            }
            match &event {
                Event::Start(_) => depth += 1,
                Event::End(_) => depth -= 1,
                _ => {}
            }
            self.write(event)?;
        }
    }

    /// Reads on to the end of an element.
    fn skip(&mut self, start: &BytesStart<'_>) -> Result<(), DomainError> {
        self.reader.read_to_end(start.name()).map(drop).map_err(|error| self.broken(&error))
    }

    fn next(&mut self) -> Result<Event<'a>, DomainError> {
        self.reader.read_event().map_err(|error| self.broken(&error))
    }

    fn write(&mut self, event: Event<'_>) -> Result<(), DomainError> {
        // Into memory.
        self.writer.write_event(event).map_err(|error| self.broken(&error))
    }

    fn broken(&self, reason: &dyn std::fmt::Display) -> DomainError {
        DomainError::Xml { at: self.reader.buffer_position(), reason: reason.to_string() }
    }

    fn torn(&self) -> DomainError {
        self.broken(&"it ends too early")
    }
}

/// libvirt's default is a disk; virt-v2v 2.2 sees only what is called so.
fn is_disk(start: &BytesStart<'_>) -> bool {
    attribute(start, "device").is_none_or(|device| device == "disk")
}

fn attribute(start: &BytesStart<'_>, name: &str) -> Option<String> {
    attributes(start).into_iter().find_map(|(key, value)| (key == name).then_some(value))
}

/// Attributes as they were meant; those that are none are dropped.
fn attributes(start: &BytesStart<'_>) -> Vec<(String, String)> {
    let all = start.attributes().filter_map(Result::ok);
    all.filter_map(|attribute| {
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).ok()?;
        Some((attribute.key.as_ref().to_owned(), value.into_owned()))
    })
    .collect()
}

fn push(start: &mut BytesStart<'_>, attributes: impl IntoIterator<Item = (String, String)>) {
    for (key, value) in attributes {
        start.push_attribute((key.as_str(), value.as_str()));
    }
}

/// A size in libvirt's words, rounded up to KiB.
fn kib(text: &str, unit: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    let bytes = match unit {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(bytes).map(|bytes| bytes.div_ceil(1024))
}
