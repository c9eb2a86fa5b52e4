//! Where the files of a tar archive lie. Reads headers only, and writes nothing: a member of an uncompressed archive
//! is served from where it is.
//!
//! POSIX (pax) and GNU archives, as OVA tools write them. Paths are data here: nothing is unpacked, so none is dangerous.

use std::io::{Read, Seek, SeekFrom};

const BLOCK: u64 = 512;
/// Members of an archive; an OVA has five.
const MAX_MEMBERS: usize = 10_000;
/// Bytes of a long name or a pax header.
const MAX_EXTRA: u64 = 1 << 20;

/// An archive that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The file cannot be read.
    #[error("it cannot be read")]
    Read(#[from] std::io::Error),
    /// Compressed as a whole.
    #[error("it is compressed: unpack it with `tar xf` and give the directory (its name must end in .ova)")]
    Compressed,
    /// Something else.
    #[error("it is not a tar archive")]
    NotTar,
    /// Cut off or damaged.
    #[error("it is damaged: there is no valid header at byte {0}")]
    Damaged(u64),
    /// It ends before a member does.
    #[error("it is cut off: {0} ends behind the end of the file")]
    CutOff(String),
    /// Holes are not stored, so offsets mean nothing.
    #[error(
        "{0} is stored as a sparse file: unpack the archive with `tar xf` and give the directory (its name must end in .ova)"
    )]
    Sparse(String),
    /// More than anybody puts into one.
    #[error("it has more than {MAX_MEMBERS} members or a name of more than {MAX_EXTRA} bytes")]
    TooLarge,
}

/// One file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its path, without a leading `./`.
    pub name: String,
    /// Where its content begins, in bytes.
    pub offset: u64,
    /// Bytes of its content.
    pub size: u64,
}

/// The files of an archive in their order; directories and links are left out.
pub fn members(archive: &mut (impl Read + Seek)) -> Result<Vec<Member>, TarError> {
    let end = archive.seek(SeekFrom::End(0))?;
    if is_compressed(archive)? {
        return Err(TarError::Compressed);
    }
    let (mut at, mut members) = (0, Vec::new());
    let (mut long_name, mut pax) = (None, Pax::default());
    loop {
        let mut header = [0; BLOCK as usize];
        archive.seek(SeekFrom::Start(at))?;
        match archive.read_exact(&mut header) {
            // Some writers leave out the two empty blocks at the end.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof && at == end && at > 0 => break,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(if at == 0 { TarError::NotTar } else { TarError::Damaged(at) });
            }
            read => read?,
        }
        if header.iter().all(|byte| *byte == 0) {
            if at == 0 {
                return Err(TarError::NotTar);
            }
            break;
        }
        let Some(header) = Header::read(&header) else {
            return Err(if at == 0 { TarError::NotTar } else { TarError::Damaged(at) });
        };
        let offset = at + BLOCK;
        let is_extra = matches!(header.kind, b'L' | b'x' | b'K' | b'g');
        let size = pax.size.filter(|_| !is_extra).unwrap_or(header.size);
        let behind = offset.checked_add(size).filter(|behind| *behind <= end);
        let Some(behind) = behind else { return Err(TarError::CutOff(header.name)) };
        at = behind.checked_next_multiple_of(BLOCK).ok_or(TarError::Damaged(offset))?;
        match header.kind {
            b'L' | b'x' => {
                let extra = read_extra(archive, size)?;
                if header.kind == b'L' {
                    let text = extra.split(|byte| *byte == 0).next().unwrap_or_default();
                    long_name = Some(String::from_utf8_lossy(text).into_owned());
                } else {
                    pax = Pax::read(&extra);
                }
                continue;
            }
            // A long link's target and global headers: nothing that matters here.
            b'K' | b'g' => continue,
            _ => {}
        }
        let Pax { path, sparse, .. } = std::mem::take(&mut pax);
        let name = path.or(long_name.take()).unwrap_or(header.name);
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        long_name = None;
        match header.kind {
            b'S' => return Err(TarError::Sparse(name)),
            b'0' | 0 | b'7' if sparse => return Err(TarError::Sparse(name)),
            b'0' | 0 | b'7' if members.len() >= MAX_MEMBERS => return Err(TarError::TooLarge),
            b'0' | 0 | b'7' => members.push(Member { name, offset, size }),
            _ => {}
        }
    }
    Ok(members)
}

/// gzip, zip, xz, bzip2.
fn is_compressed(archive: &mut (impl Read + Seek)) -> std::io::Result<bool> {
    let mut magic = Vec::new();
    archive.seek(SeekFrom::Start(0))?;
    archive.take(4).read_to_end(&mut magic)?;
    Ok(matches!(magic.as_slice(), [0x1f, 0x8b, ..] | b"PK\x03\x04" | b"\xfd7zX" | [b'B', b'Z', b'h', _]))
}

fn read_extra(archive: &mut impl Read, size: u64) -> Result<Vec<u8>, TarError> {
    if size > MAX_EXTRA {
        return Err(TarError::TooLarge);
    }
    let mut extra = Vec::new();
    archive.take(size).read_to_end(&mut extra)?;
    Ok(extra)
}

struct Header {
    name: String,
    size: u64,
    kind: u8,
}

impl Header {
    /// `None` when its checksum is wrong, or a number is none.
    fn read(block: &[u8; BLOCK as usize]) -> Option<Self> {
        let sum = number(block.get(148..156)?)?;
        let added: u64 = block
            .iter()
            .enumerate()
            .map(|(index, byte)| if (148..156).contains(&index) { 32 } else { u64::from(*byte) })
            .sum();
        if sum != added {
            return None;
        }
        let text = |range: std::ops::Range<usize>| {
            let bytes = block.get(range).unwrap_or_default();
            String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
        };
        let (name, prefix) = (text(0..100), text(345..500));
        // GNU's headers have other things where POSIX has the prefix.
        let is_posix = block.get(257..263) == Some(b"ustar\0");
        let name = if is_posix && !prefix.is_empty() { format!("{prefix}/{name}") } else { name };
        Some(Self { name, size: number(block.get(124..136)?)?, kind: block[156] })
    }
}

/// Octal text, or GNU's big-endian number behind the byte 0x80.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((0x80, digits)) = field.split_first() {
        return digits.iter().try_fold(0_u64, |all, byte| Some(all.checked_mul(256)? + u64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    u64::from_str_radix(text, 8).ok().filter(|_| !text.starts_with('+'))
}

/// What a pax header says of the next member.
#[derive(Default)]
struct Pax {
    path: Option<String>,
    size: Option<u64>,
    sparse: bool,
}

impl Pax {
    /// `<length> <key>=<value>\n`, the length counting itself.
    fn read(bytes: &[u8]) -> Self {
        let (mut pax, mut rest) = (Self::default(), bytes);
        while let Some(space) = memchr::memchr(b' ', rest) {
            let length =
                rest.get(..space).and_then(|text| std::str::from_utf8(text).ok()?.parse::<usize>().ok());
            let Some((record, behind)) = length.and_then(|length| rest.split_at_checked(length)) else {
                break;
            };
            let record = String::from_utf8_lossy(record.get(space + 1..).unwrap_or_default()).into_owned();
            if let Some((key, value)) = record.trim_end_matches('\n').split_once('=') {
                match key {
                    "path" => pax.path = Some(value.to_owned()),
                    "size" => pax.size = value.parse().ok(),
                    key if key.starts_with("GNU.sparse.") => pax.sparse = true,
                    _ => {}
                }
            }
            if length == Some(0) {
                break;
            }
            rest = behind;
        }
        pax
    }
}

#[cfg(test)]
mod tests;
