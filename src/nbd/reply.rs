//! The bytes of NBD requests and replies (pure): the transmission phase.
//!
//! As in [`crate::nbd::wire`], decoding takes a slice, never panics and never believes a length. What a chunk means for
//! the request it answers is decided in [`crate::nbd::answer`]. Called by `nbd::connection` and the tests.

use std::fmt;

use super::wire::{Fault, Fields, text};

/// Begins a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins a simple reply.
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// Begins a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Largest payload of a reply chunk that is accepted.
pub const MAX_CHUNK: u32 = 64 << 20;
/// Largest payload of chunks other than data: a million descriptors, which is what nbdkit sends at most.
pub const MAX_SMALL_CHUNK: u32 = (8 << 20) + 4;

/// `NBD_REPLY_FLAG_DONE`
pub const DONE: u16 = 1;

/// What is asked of a server ("Request types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// `NBD_CMD_READ`
    Read,
    /// `NBD_CMD_WRITE`
    Write,
    /// `NBD_CMD_DISC`
    Disconnect,
    /// `NBD_CMD_FLUSH`
    Flush,
    /// `NBD_CMD_TRIM`
    Trim,
    /// `NBD_CMD_WRITE_ZEROES`
    WriteZeroes,
    /// `NBD_CMD_BLOCK_STATUS`
    BlockStatus,
}

impl Command {
    /// All of them, with their numbers.
    pub const ALL: [(Self, u16); 7] = [
        (Self::Read, 0),
        (Self::Write, 1),
        (Self::Disconnect, 2),
        (Self::Flush, 3),
        (Self::Trim, 4),
        (Self::WriteZeroes, 6),
        (Self::BlockStatus, 7),
    ];

    fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Disconnect => "disconnect",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::WriteZeroes => "write zeroes",
            Self::BlockStatus => "block status",
        })
    }
}

/// Flags of a request ("Command flags").
pub mod flag {
    /// `NBD_CMD_FLAG_FUA`: durable before it is acknowledged.
    pub const FUA: u16 = 1;
    /// `NBD_CMD_FLAG_NO_HOLE`: zeros that stay allocated.
    pub const NO_HOLE: u16 = 2;
    /// `NBD_CMD_FLAG_FAST_ZERO`: fail at once rather than write zeros slowly.
    pub const FAST_ZERO: u16 = 16;
}

/// A request without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// [`flag`]s.
    pub flags: u16,
    /// What is asked.
    pub command: Command,
    /// What the replies will carry.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// Bytes of a [`Request`].
pub const REQUEST_LENGTH: usize = 28;

impl Request {
    /// The request as it is sent; the data of a write follows it.
    pub fn encode(&self) -> [u8; REQUEST_LENGTH] {
        let mut bytes = [0; REQUEST_LENGTH];
        let fields: [&[u8]; 6] = [
            &REQUEST_MAGIC.to_be_bytes(),
            &self.flags.to_be_bytes(),
            &self.command.number().to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.length.to_be_bytes(),
        ];
        for (place, byte) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *place = *byte;
        }
        bytes
    }

    /// Reads a request, for those who play the server.
    pub fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let mut fields = Fields::of("a request", bytes);
        let found = fields.u32()?;
        if found != REQUEST_MAGIC {
            return Err(Fault::Magic { what: "a request", found: found.into() });
        }
        let flags = fields.u16()?;
        let number = fields.u16()?;
        let command = Command::ALL.into_iter().find(|(_, known)| *known == number);
        let (command, _) = command.ok_or(Fault::Chunk(number))?;
        let request =
            Self { flags, command, cookie: fields.u64()?, offset: fields.u64()?, length: fields.u32()? };
        fields.end()?;
        Ok(request)
    }
}

/// What a chunk of a structured reply carries ("Structured reply types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkKind {
    /// `NBD_REPLY_TYPE_NONE`
    None,
    /// `NBD_REPLY_TYPE_OFFSET_DATA`
    Data,
    /// `NBD_REPLY_TYPE_OFFSET_HOLE`
    Hole,
    /// `NBD_REPLY_TYPE_BLOCK_STATUS`
    BlockStatus,
    /// `NBD_REPLY_TYPE_ERROR`, and errors of types not yet invented, which begin the same way.
    Error,
    /// `NBD_REPLY_TYPE_ERROR_OFFSET`
    ErrorOffset,
}

impl ChunkKind {
    fn of(number: u16) -> Result<Self, Fault> {
        match number {
            0 => Ok(Self::None),
            1 => Ok(Self::Data),
            2 => Ok(Self::Hole),
            5 => Ok(Self::BlockStatus),
            0x8002 => Ok(Self::ErrorOffset),
            0x8000.. => Ok(Self::Error),
            unknown => Err(Fault::Chunk(unknown)),
        }
    }

    /// The number of this kind.
    pub fn number(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Data => 1,
            Self::Hole => 2,
            Self::BlockStatus => 5,
            Self::Error => 0x8001,
            Self::ErrorOffset => 0x8002,
        }
    }
}

/// The head of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// A simple reply; the data of a read follows it.
    Simple {
        /// 0, or what went wrong.
        error: u32,
        /// The request it answers.
        cookie: u64,
    },
    /// A chunk of a structured reply; its payload follows it.
    Chunk {
        /// Whether it is the last one of the reply.
        done: bool,
        /// What the payload is.
        kind: ChunkKind,
        /// The request it answers.
        cookie: u64,
        /// Bytes of payload, at most [`MAX_CHUNK`], or [`MAX_SMALL_CHUNK`] without data.
        length: u32,
    },
}

/// Bytes of a simple reply, and what of a chunk tells that it is one.
pub const SIMPLE_LENGTH: usize = 16;
/// Bytes of a chunk's head.
pub const CHUNK_LENGTH: usize = 20;

/// Reads the head of a reply from its first [`SIMPLE_LENGTH`] bytes or, when these give nothing, [`CHUNK_LENGTH`].
pub fn decode_reply(bytes: &[u8]) -> Result<Option<Reply>, Fault> {
    let mut fields = Fields::of("a reply", bytes);
    match fields.u32()? {
        SIMPLE_MAGIC => Ok(Some(Reply::Simple { error: fields.u32()?, cookie: fields.u64()? })),
        CHUNK_MAGIC => {
            let (flags, number, cookie) = (fields.u16()?, fields.u16()?, fields.u64()?);
            let kind = ChunkKind::of(number)?;
            let Ok(length) = fields.u32() else { return Ok(None) };
            // Data has its offset before it.
            let most = if kind == ChunkKind::Data { MAX_CHUNK + 8 } else { MAX_SMALL_CHUNK };
            if length > most {
                let (length, most) = (length.into(), most.into());
                return Err(Fault::TooLong { what: "a reply chunk", length, most });
            }
            Ok(Some(Reply::Chunk { done: flags & DONE != 0, kind, cookie, length }))
        }
        found => Err(Fault::Magic { what: "a reply", found: found.into() }),
    }
}

/// Reads the payload of a hole: offset and length.
pub fn decode_hole(payload: &[u8]) -> Result<(u64, u32), Fault> {
    let mut fields = Fields::of("a hole chunk", payload);
    let hole = (fields.u64()?, fields.u32()?);
    fields.end()?;
    Ok(hole)
}

/// Reads the payload of a block status: the context's number and the descriptors (length, flags).
pub fn decode_block_status(payload: &[u8]) -> Result<(u32, Vec<(u32, u32)>), Fault> {
    let mut fields = Fields::of("a block status chunk", payload);
    let context = fields.u32()?;
    let descriptors = fields.rest();
    if !descriptors.len().is_multiple_of(8) {
        return Err(Fault::Surplus("a block status chunk"));
    }
    let pairs = descriptors.as_chunks::<4>().0.as_chunks::<2>().0;
    let descriptors =
        pairs.iter().map(|[length, flags]| (u32::from_be_bytes(*length), u32::from_be_bytes(*flags)));
    Ok((context, descriptors.collect()))
}

/// What a server says went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// The error's number.
    pub errno: Errno,
    /// The server's words, bounded and without control characters; often empty.
    pub message: String,
    /// Where in the export, if it said so.
    pub offset: Option<u64>,
}

/// Reads the payload of an error chunk.
pub fn decode_error(kind: ChunkKind, payload: &[u8]) -> Result<ServerError, Fault> {
    let mut fields = Fields::of("an error chunk", payload);
    let number = fields.u32()?;
    let length = fields.u16()?;
    let message = text(fields.take(length.into())?);
    let offset = if kind == ChunkKind::ErrorOffset { Some(fields.u64()?) } else { None };
    // Errors of unknown types may carry more.
    if kind == ChunkKind::ErrorOffset {
        fields.end()?;
    }
    if number == 0 {
        return Err(Fault::NoError);
    }
    Ok(ServerError { errno: Errno::of(number), message, offset })
}

/// Errors that servers send ("Error values"). They are the same on every system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Errno {
    /// EPERM
    #[error("operation not permitted")]
    NotPermitted,
    /// EIO
    #[error("input/output error")]
    InputOutput,
    /// ENOMEM
    #[error("out of memory")]
    OutOfMemory,
    /// EINVAL
    #[error("invalid request")]
    Invalid,
    /// ENOSPC
    #[error("no space left")]
    NoSpace,
    /// EOVERFLOW
    #[error("request too large")]
    Overflow,
    /// ENOTSUP
    #[error("not supported")]
    NotSupported,
    /// ESHUTDOWN
    #[error("the server is shutting down")]
    Shutdown,
    /// A number outside the protocol; the protocol has it read as EINVAL.
    #[error("error {0}")]
    Other(u32),
}

impl Errno {
    /// The error of this number.
    pub fn of(number: u32) -> Self {
        match number {
            1 => Self::NotPermitted,
            5 => Self::InputOutput,
            12 => Self::OutOfMemory,
            22 => Self::Invalid,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::Shutdown,
            other => Self::Other(other),
        }
    }
}

#[cfg(test)]
mod tests;
