//! One request's answer as it comes in, chunk by chunk (pure).
//!
//! The rules that make a short read impossible to overlook are here: every byte of a read comes exactly once, inside
//! the request, or the server broke the protocol. No I/O: `nbd::connection` reads the bytes and asks where
//! they belong.

use std::ops::Range;

use super::reply::{ChunkKind, Command, ServerError, decode_block_status, decode_error, decode_hole};
use super::wire::Fault;

/// Separate pieces of one read that are kept track of; a server that sends more is playing games.
const MAX_PIECES: usize = 16 << 10;

/// What came in for one request.
#[derive(Debug)]
pub struct Answer {
    command: Command,
    offset: u64,
    length: u32,
    /// Number of the context whose block status was asked for.
    context: Option<u32>,
    /// Which bytes of a read have come, relative to its offset, ascending and apart.
    pieces: Vec<Range<u32>>,
    descriptors: Option<Vec<(u32, u32)>>,
    error: Option<ServerError>,
}

/// What a complete answer says.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done; of a read, all bytes have come.
    Done,
    /// Block status descriptors (length, flags), at least one.
    Status(Vec<(u32, u32)>),
    /// The server could not do it.
    Failed(ServerError),
}

impl Answer {
    /// Nothing has come yet. `context` is the number of `base:allocation`, if the server has it.
    pub fn new(command: Command, offset: u64, length: u32, context: Option<u32>) -> Self {
        Self { command, offset, length, context, pieces: Vec::new(), descriptors: None, error: None }
    }

    /// Where in the buffer of a read the `length` bytes of a data or hole chunk at `offset` belong. They count as
    /// come from here on.
    pub fn place(&mut self, offset: u64, length: u64) -> Result<Range<usize>, Fault> {
        let outside = Fault::Outside { offset, length };
        let start = offset.checked_sub(self.offset).ok_or(outside.clone())?;
        let end =
            start.checked_add(length).filter(|end| *end <= self.length.into()).ok_or(outside.clone())?;
        // The protocol forbids chunks without content ("Structured reply types").
        if self.command != Command::Read || start >= end {
            return Err(outside);
        }
        let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end)) else { return Err(outside) };
        let behind = self.pieces.partition_point(|piece| piece.start < start);
        if self.pieces.get(behind).is_some_and(|next| next.start < end) {
            return Err(Fault::Twice(offset));
        }
        let before = behind.checked_sub(1).and_then(|before| self.pieces.get_mut(before));
        if before.as_ref().is_some_and(|before| before.end > start) {
            return Err(Fault::Twice(offset));
        }
        match before {
            // Servers that send in order never have more than one piece.
            Some(before) if before.end == start => before.end = end,
            _ => self.pieces.insert(behind, start..end),
        }
        if self.pieces.len() > MAX_PIECES {
            return Err(Fault::TooMany("pieces of a read"));
        }
        Ok(start as usize..end as usize)
    }

    /// Takes a chunk other than data. Of a hole, gives the part of the buffer that reads as zeros.
    pub fn take(
        &mut self,
        kind: ChunkKind,
        payload: &[u8],
        done: bool,
    ) -> Result<Option<Range<usize>>, Fault> {
        match kind {
            ChunkKind::Hole => {
                let (offset, length) = decode_hole(payload)?;
                return self.place(offset, length.into()).map(Some);
            }
            ChunkKind::BlockStatus => self.take_status(payload)?,
            ChunkKind::Error | ChunkKind::ErrorOffset => {
                let error = decode_error(kind, payload)?;
                if let Some(at) = error.offset
                    && !(self.offset..self.offset.saturating_add(self.length.into())).contains(&at)
                {
                    return Err(Fault::Outside { offset: at, length: 0 });
                }
                // The first one is the cause.
                self.error.get_or_insert(error);
            }
            ChunkKind::None if !done => return Err(Fault::Chunk(kind.number())),
            ChunkKind::None if !payload.is_empty() => return Err(Fault::Surplus("an empty chunk")),
            ChunkKind::None => {}
            ChunkKind::Data => return Err(Fault::Chunk(kind.number())),
        }
        Ok(None)
    }

    fn take_status(&mut self, payload: &[u8]) -> Result<(), Fault> {
        if self.command != Command::BlockStatus {
            return Err(Fault::Chunk(ChunkKind::BlockStatus.number()));
        }
        let (context, descriptors) = decode_block_status(payload)?;
        if self.context != Some(context) {
            return Err(Fault::Context);
        }
        if self.descriptors.is_some() {
            return Err(Fault::Twice(self.offset));
        }
        if descriptors.is_empty() || descriptors.iter().any(|(length, _)| *length == 0) {
            return Err(Fault::NoProgress);
        }
        // Only the last one may run over the end ("NBD_REPLY_TYPE_BLOCK_STATUS").
        let before_last = descriptors.iter().rev().skip(1).map(|(length, _)| u64::from(*length)).sum::<u64>();
        if before_last >= self.length.into() {
            let offset = self.offset.saturating_add(before_last);
            return Err(Fault::Outside { offset, length: 0 });
        }
        self.descriptors = Some(descriptors);
        Ok(())
    }

    /// The reply is complete: was it?
    pub fn finish(self) -> Result<Outcome, Fault> {
        if let Some(error) = self.error {
            return Ok(Outcome::Failed(error));
        }
        match self.command {
            Command::Read => {
                let come: u64 = self.pieces.iter().map(|piece| u64::from(piece.end - piece.start)).sum();
                let missing = u64::from(self.length).saturating_sub(come);
                if missing == 0 { Ok(Outcome::Done) } else { Err(Fault::Missing(missing)) }
            }
            Command::BlockStatus => self.descriptors.map(Outcome::Status).ok_or(Fault::NoProgress),
            _ => Ok(Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests;
