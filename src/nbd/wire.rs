//! The bytes of an NBD handshake (pure): greeting, options, their replies.
//!
//! Decoding takes a slice and gives a value or a [`Fault`]; it never panics and never believes a length. Requests and
//! their replies are in [`crate::nbd::reply`]. Section names are those of the NBD project's protocol document. Called
//! by [`crate::nbd::handshake`] and by the tests, which play the server.

/// Longest string the protocol allows ("Values").
pub const MAX_STRING: usize = 4096;
/// Longest option reply that is read: the largest one in use holds a number and one string.
pub const MAX_OPTION_REPLY: u32 = 64 << 10;
/// The metadata context that tells holes and zeros from data.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// "NBDMAGIC", which begins every handshake.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": newstyle, and the beginning of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The second number of the oldstyle handshake.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Begins every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// `NBD_FLAG_FIXED_NEWSTYLE`, of server and client.
pub const FIXED_NEWSTYLE: u16 = 1;
/// `NBD_FLAG_NO_ZEROES`, of server and client.
pub const NO_ZEROES: u16 = 2;

/// Options ("Option types").
pub mod option {
    /// `NBD_OPT_ABORT`
    pub const ABORT: u32 = 2;
    /// `NBD_OPT_GO`
    pub const GO: u32 = 7;
    /// `NBD_OPT_STRUCTURED_REPLY`
    pub const STRUCTURED_REPLY: u32 = 8;
    /// `NBD_OPT_SET_META_CONTEXT`
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Kinds of replies to options ("Option reply types").
pub mod answer {
    /// `NBD_REP_ACK`
    pub const ACK: u32 = 1;
    /// `NBD_REP_INFO`
    pub const INFO: u32 = 3;
    /// `NBD_REP_META_CONTEXT`
    pub const META_CONTEXT: u32 = 4;
    /// The bit of every refusal.
    pub const ERROR: u32 = 1 << 31;
    /// `NBD_REP_ERR_UNSUP`
    pub const UNSUPPORTED: u32 = ERROR | 1;
    /// `NBD_REP_ERR_POLICY`
    pub const POLICY: u32 = ERROR | 2;
    /// `NBD_REP_ERR_INVALID`
    pub const INVALID: u32 = ERROR | 3;
    /// `NBD_REP_ERR_TLS_REQD`
    pub const TLS_REQUIRED: u32 = ERROR | 5;
    /// `NBD_REP_ERR_UNKNOWN`
    pub const UNKNOWN: u32 = ERROR | 6;
    /// `NBD_REP_ERR_SHUTDOWN`
    pub const SHUTDOWN: u32 = ERROR | 7;
    /// `NBD_REP_ERR_BLOCK_SIZE_REQD`
    pub const BLOCK_SIZE_REQUIRED: u32 = ERROR | 8;
}

/// `NBD_INFO_EXPORT`
const INFO_EXPORT: u16 = 0;
/// `NBD_INFO_BLOCK_SIZE`
const INFO_BLOCK_SIZE: u16 = 3;

/// How a server broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Something else listens there.
    #[error("it does not speak NBD")]
    NotNbd,
    /// A message is shorter than its fields.
    #[error("{0} is too short")]
    Short(&'static str),
    /// A message is longer than its fields.
    #[error("{0} has surplus bytes")]
    Surplus(&'static str),
    /// A message does not begin as it must.
    #[error("{what} begins with {found:#x}")]
    Magic {
        /// What should have begun.
        what: &'static str,
        /// What was there.
        found: u64,
    },
    /// A message is longer than anything sensible.
    #[error("{what} of {length} bytes, more than {most}")]
    TooLong {
        /// Which one.
        what: &'static str,
        /// Its length.
        length: u64,
        /// What is accepted.
        most: u64,
    },
    /// More messages than anything sensible.
    #[error("too many {0}")]
    TooMany(&'static str),
    /// The reply is to another option than the one that was sent.
    #[error("it answered option {answered} instead of {sent}")]
    OtherOption {
        /// The option sent.
        sent: u32,
        /// The option answered.
        answered: u32,
    },
    /// A reply of a kind that has no place there.
    #[error("unexpected reply of type {kind} to option {option}")]
    OptionReply {
        /// The option sent.
        option: u32,
        /// The reply's type.
        kind: u32,
    },
    /// `NBD_OPT_GO` was acknowledged without size and flags.
    #[error("it opened the export without telling its size")]
    NoExport,
    /// Block sizes that contradict each other or the protocol ("Block size constraints").
    #[error("impossible block sizes {minimum}, {preferred}, {maximum}")]
    BlockSizes {
        /// Smallest and alignment.
        minimum: u32,
        /// Efficient.
        preferred: u32,
        /// Largest.
        maximum: u32,
    },
    /// A context that was not asked for, or twice.
    #[error("it selected a metadata context that was not asked for")]
    Context,
    /// A reply to no request.
    #[error("reply to an unknown request {0}")]
    Cookie(u64),
    /// A chunk type that this command cannot have.
    #[error("unexpected reply chunk of type {0}")]
    Chunk(u16),
    /// A simple reply where only chunks may be.
    #[error("simple reply where a structured one was agreed")]
    Simple,
    /// Data or a descriptor that lies outside the request.
    #[error("{length} bytes at {offset} lie outside the request")]
    Outside {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Bytes that came twice.
    #[error("bytes at {0} came twice")]
    Twice(u64),
    /// Bytes that never came although the server called the reply complete.
    #[error("{0} bytes of a read never came")]
    Missing(u64),
    /// Block status that does not advance.
    #[error("block status without progress")]
    NoProgress,
    /// An error that is none.
    #[error("an error with the number 0")]
    NoError,
}

/// Reads fields from a message, most significant byte first.
pub(super) struct Fields<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn of(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Fault::Short(self.what))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Fault::Short(self.what))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Fault> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// All fields were read; nothing may be left.
    pub(super) fn end(self) -> Result<(), Fault> {
        if self.rest.is_empty() { Ok(()) } else { Err(Fault::Surplus(self.what)) }
    }
}

/// A server's words for a human: no control characters, no more than a line or two.
pub(super) fn text(bytes: &[u8]) -> String {
    const MOST: usize = 300;
    let text = String::from_utf8_lossy(bytes.get(..MAX_STRING).unwrap_or(bytes));
    let plain = text.chars().map(|char| if char.is_control() { ' ' } else { char });
    plain.take(MOST).collect::<String>().trim().to_owned()
}

/// What a server says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Greeting {
    /// Newstyle, with its handshake flags.
    New(u16),
    /// The handshake of before 2011, which cannot negotiate.
    Old,
}

/// Bytes of a newstyle greeting; an oldstyle one is longer, but told by the first 16.
pub const GREETING_LENGTH: usize = 18;

/// Reads the first [`GREETING_LENGTH`] bytes of a server ("Newstyle negotiation").
pub fn decode_greeting(bytes: &[u8]) -> Result<Greeting, Fault> {
    let mut fields = Fields::of("the greeting", bytes);
    if fields.u64()? != INIT_MAGIC {
        return Err(Fault::NotNbd);
    }
    match fields.u64()? {
        OPTION_MAGIC => {
            let flags = fields.u16()?;
            fields.end()?;
            Ok(Greeting::New(flags))
        }
        OLDSTYLE_MAGIC => Ok(Greeting::Old),
        found => Err(Fault::Magic { what: "the handshake", found }),
    }
}

/// An option with its data ("Fixed newstyle negotiation"). The data is of our own making and far below 4 GiB.
pub fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + data.len());
    bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    put_length(&mut bytes, data.len());
    bytes.extend_from_slice(data);
    bytes
}

/// Lengths are of strings that were checked against [`MAX_STRING`].
fn put_length(bytes: &mut Vec<u8>, length: usize) {
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

/// The data of `NBD_OPT_GO`: the export and the wish to know its block sizes. Asking for them promises to obey them.
pub fn encode_go(export: &str) -> Vec<u8> {
    let mut data = Vec::new();
    put_length(&mut data, export.len());
    data.extend_from_slice(export.as_bytes());
    data.extend_from_slice(&1_u16.to_be_bytes());
    data.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
    data
}

/// The data of `NBD_OPT_SET_META_CONTEXT` with one query.
pub fn encode_context(export: &str, query: &str) -> Vec<u8> {
    let mut data = Vec::new();
    put_length(&mut data, export.len());
    data.extend_from_slice(export.as_bytes());
    data.extend_from_slice(&1_u32.to_be_bytes());
    put_length(&mut data, query.len());
    data.extend_from_slice(query.as_bytes());
    data
}

/// The head of a reply to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReply {
    /// The option it answers.
    pub option: u32,
    /// Its type ([`answer`]).
    pub kind: u32,
    /// Bytes of data that follow, at most [`MAX_OPTION_REPLY`].
    pub length: u32,
}

/// Bytes of an [`OptionReply`].
pub const OPTION_REPLY_LENGTH: usize = 20;

/// Reads the head of a reply to an option.
pub fn decode_option_reply(bytes: &[u8]) -> Result<OptionReply, Fault> {
    let mut fields = Fields::of("an option reply", bytes);
    let found = fields.u64()?;
    if found != OPTION_REPLY_MAGIC {
        return Err(Fault::Magic { what: "an option reply", found });
    }
    let reply = OptionReply { option: fields.u32()?, kind: fields.u32()?, length: fields.u32()? };
    fields.end()?;
    if reply.length > MAX_OPTION_REPLY {
        let (length, most) = (reply.length.into(), MAX_OPTION_REPLY.into());
        return Err(Fault::TooLong { what: "an option reply", length, most });
    }
    Ok(reply)
}

/// What an `NBD_REP_INFO` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Info {
    /// `NBD_INFO_EXPORT`
    Export {
        /// Bytes.
        size: u64,
        /// Transmission flags.
        flags: u16,
    },
    /// `NBD_INFO_BLOCK_SIZE`, not yet checked.
    BlockSizes {
        /// Smallest and alignment.
        minimum: u32,
        /// Efficient.
        preferred: u32,
        /// Largest.
        maximum: u32,
    },
    /// A name, a description, or something newer: nothing that matters here.
    Other,
}

/// Reads the data of an `NBD_REP_INFO`.
pub fn decode_info(data: &[u8]) -> Result<Info, Fault> {
    let mut fields = Fields::of("information about the export", data);
    let info = match fields.u16()? {
        INFO_EXPORT => Info::Export { size: fields.u64()?, flags: fields.u16()? },
        INFO_BLOCK_SIZE => {
            Info::BlockSizes { minimum: fields.u32()?, preferred: fields.u32()?, maximum: fields.u32()? }
        }
        _ => return Ok(Info::Other),
    };
    fields.end()?;
    Ok(info)
}

/// Reads the data of an `NBD_REP_META_CONTEXT`: the context's number and name.
pub fn decode_context(data: &[u8]) -> Result<(u32, &[u8]), Fault> {
    let mut fields = Fields::of("a metadata context", data);
    Ok((fields.u32()?, fields.rest()))
}

#[cfg(test)]
mod tests;
