//! The receiving half of a connection: a task that reads replies and wakes who waits for them.
//!
//! Every reply is read whole, whoever still waits for it. Nothing is believed: what a chunk may hold and where it
//! belongs is decided by [`crate::nbd::answer`], before a byte of it is read. Started by `nbd::connection`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::Address;
use super::answer::{Answer, Outcome};
use super::budget::Buffer;
use super::error::Error;
use super::export::Export;
use super::reply::{self, ChunkKind, Command, Errno, Reply, ServerError};
use super::wire::Fault;

/// What is read at once beside data, which goes straight into its buffer.
const READ_AHEAD: usize = 8 << 10;
/// The stream is in a state that it cannot go on from.
enum Stop {
    Io(io::Error),
    Fault(Fault),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// A request that was sent and not yet answered.
pub(super) struct Pending {
    /// What has come.
    pub(super) answer: Answer,
    /// What was asked.
    pub(super) command: Command,
    /// Of how many bytes.
    pub(super) length: u32,
    /// The buffer of a read, and where in it the request begins.
    pub(super) into: Option<(Buffer, usize)>,
    /// Who waits.
    pub(super) done: oneshot::Sender<Result<(Outcome, Option<Buffer>), Error>>,
    /// Held until the reply is complete, also when nobody waits any more.
    pub(super) _slot: OwnedSemaphorePermit,
}

/// What both tasks and the requests share.
pub(super) struct Link {
    /// For errors.
    pub(super) address: Address,
    /// What was negotiated.
    pub(super) export: Export,
    /// By cookie.
    pub(super) pending: RefCell<HashMap<u64, Pending>>,
    /// The first error, which is everybody's.
    pub(super) lost: RefCell<Option<Error>>,
    /// Whether the goodbye was queued.
    pub(super) closing: Cell<bool>,
}

impl Link {
    /// Ends the connection: the first cause counts, and everybody gets it.
    pub(super) fn fail(&self, error: Error) {
        let error = self.lost.borrow_mut().get_or_insert(error).clone();
        let waiting = std::mem::take(&mut *self.pending.borrow_mut());
        for pending in waiting.into_values() {
            // Nobody waits for those whose future was dropped.
            let _ = pending.done.send(Err(error.clone()));
        }
    }

    /// Lets `look` see the request of this cookie.
    fn with<T>(&self, cookie: u64, look: impl FnOnce(&mut Pending) -> Result<T, Fault>) -> Result<T, Fault> {
        self.pending.borrow_mut().get_mut(&cookie).map_or(Err(Fault::Cookie(cookie)), look)
    }

    /// Reads the head of one reply, and what follows it. `false`: the stream ended after a goodbye.
    async fn read_one<R: AsyncRead + Unpin>(&self, reader: &mut BufReader<R>) -> Result<bool, Stop> {
        let mut bytes = [0; reply::CHUNK_LENGTH];
        let (head, rest) = bytes.split_at_mut(reply::SIMPLE_LENGTH);
        if let Err(error) = reader.read_exact(head).await {
            let farewell = self.closing.get() && self.pending.borrow().is_empty();
            return if farewell { Ok(false) } else { Err(error.into()) };
        }
        let reply = match reply::decode_reply(head)? {
            Some(reply) => reply,
            None => {
                reader.read_exact(rest).await?;
                reply::decode_reply(&bytes)?.ok_or(Fault::Short("a reply"))?
            }
        };
        match reply {
            Reply::Simple { error, cookie } => self.read_simple(reader, error, cookie).await?,
            Reply::Chunk { .. } if !self.export.is_structured() => {
                return Err(Fault::Magic { what: "a simple reply", found: reply::CHUNK_MAGIC.into() }.into());
            }
            Reply::Chunk { done, kind, cookie, length } => {
                self.read_chunk(reader, kind, cookie, length, done).await?;
            }
        }
        Ok(true)
    }

    async fn read_simple<R>(&self, reader: &mut BufReader<R>, error: u32, cookie: u64) -> Result<(), Stop>
    where
        R: AsyncRead + Unpin,
    {
        if error != 0 {
            // Of a structured server only allowed for other commands than reads, but its meaning is beyond doubt.
            let error = ServerError { errno: Errno::of(error), message: String::new(), offset: None };
            self.finish(cookie, |_| Ok(Outcome::Failed(error)))?;
            return Ok(());
        }
        let structured = self.export.is_structured();
        let range = self.with(cookie, |pending| match pending.command {
            Command::BlockStatus => Err(Fault::Simple),
            Command::Read if structured => Err(Fault::Simple),
            Command::Read => Ok(Some(0..pending.length as usize)),
            _ => Ok(None),
        })?;
        match range {
            Some(range) => {
                self.fill(reader, cookie, range).await?;
                self.finish(cookie, |_| Ok(Outcome::Done))?;
            }
            None => self.finish(cookie, Answer::finish)?,
        }
        Ok(())
    }

    async fn read_chunk<R: AsyncRead + Unpin>(
        &self,
        reader: &mut BufReader<R>,
        kind: ChunkKind,
        cookie: u64,
        length: u32,
        done: bool,
    ) -> Result<(), Stop> {
        // Before a byte is read or memory taken for it.
        self.with(cookie, |_| Ok(()))?;
        if kind == ChunkKind::Data {
            let length = length.checked_sub(8).ok_or(Fault::Short("a data chunk"))?;
            let offset = reader.read_u64().await?;
            let range = self.with(cookie, |pending| pending.answer.place(offset, length.into()))?;
            self.fill(reader, cookie, range).await?;
        } else {
            // Grows with what comes, not with what was announced.
            let mut payload = Vec::new();
            if reader.take(length.into()).read_to_end(&mut payload).await? < length as usize {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            self.with(cookie, |pending| {
                if let Some(zeros) = pending.answer.take(kind, &payload, done)?
                    && let Some((buffer, start)) = &mut pending.into
                {
                    part(buffer, *start, zeros)?.fill(0);
                }
                Ok(())
            })?;
        }
        if done {
            self.finish(cookie, Answer::finish)?;
        }
        Ok(())
    }

    /// Reads into the buffer of a request, which nobody else touches meanwhile: there is one reader.
    async fn fill<R>(&self, reader: &mut BufReader<R>, cookie: u64, range: Range<usize>) -> Result<(), Stop>
    where
        R: AsyncRead + Unpin,
    {
        let taken = self.with(cookie, |pending| pending.into.take().ok_or(Fault::Cookie(cookie)));
        let (mut buffer, start) = taken?;
        reader.read_exact(part(&mut buffer, start, range)?).await?;
        self.with(cookie, |pending| {
            pending.into = Some((buffer, start));
            Ok(())
        })?;
        Ok(())
    }

    /// Wakes who waits for this request.
    fn finish(&self, cookie: u64, end: impl FnOnce(Answer) -> Result<Outcome, Fault>) -> Result<(), Fault> {
        let pending = self.pending.borrow_mut().remove(&cookie).ok_or(Fault::Cookie(cookie))?;
        let outcome = end(pending.answer);
        let fault = outcome.as_ref().err().cloned();
        let buffer = pending.into.map(|(buffer, _)| buffer);
        let answered = outcome.map(|outcome| (outcome, buffer));
        // Who dropped the future gets nothing, which is right.
        let _ = pending.done.send(answered.map_err(|fault| Error::protocol(&self.address, fault)));
        fault.map_or(Ok(()), Err)
    }
}

/// The part of a read's buffer that `range`, counted from the beginning of its request, means.
fn part(buffer: &mut Buffer, start: usize, range: Range<usize>) -> Result<&mut [u8], Fault> {
    let outside = Fault::Outside { offset: range.start as u64, length: range.len() as u64 };
    buffer.get_mut(start + range.start..start + range.end).ok_or(outside)
}

/// Reads until the server closes after a goodbye, or something breaks.
pub(super) async fn read_replies<R>(link: Rc<Link>, reader: R) -> Result<(), Error>
where
    R: AsyncRead + Unpin,
{
    let mut reader = BufReader::with_capacity(READ_AHEAD, reader);
    loop {
        let error = match link.read_one(&mut reader).await {
            Ok(true) => continue,
            Ok(false) => return Ok(()),
            Err(Stop::Io(error)) => Error::lost(&link.address, error),
            Err(Stop::Fault(fault)) => Error::protocol(&link.address, fault),
        };
        link.fail(error.clone());
        return Err(error);
    }
}
