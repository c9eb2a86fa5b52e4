//! One connection after its handshake: a task that writes requests, a task that reads replies.
//!
//! Requests are queued whole and every reply is read whole, whoever still waits for it: dropping a future at any
//! point leaves the stream in order. Replies find their request by cookie, so they may come in any order. When the
//! connection dies, or the server breaks the protocol, everything that waits gets the error, and so does everything
//! that comes later. Called by [`crate::nbd::client`] only.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle, spawn_local};

use super::Address;
use super::answer::{Answer, Outcome};
use super::budget::Buffer;
use super::error::Error;
use super::export::Export;
use super::receive::{Link, Pending, read_replies};
use super::reply::{Command, Request, ServerError};
use super::send::{Frame, write_requests};

/// Bytes that go with a request.
pub(super) enum Transfer {
    /// None.
    None,
    /// A read fills the buffer from this place on.
    Into(Buffer, usize),
    /// A write sends this part of the buffer.
    From(Arc<Buffer>, Range<usize>),
}

/// A request's success.
pub(super) struct Answered {
    /// The buffer of a read.
    pub(super) buffer: Option<Buffer>,
    /// Descriptors of a block status.
    pub(super) status: Vec<(u32, u32)>,
}

/// A connection in its transmission phase. Dropping it closes the socket without a word.
pub(super) struct Connection {
    link: Rc<Link>,
    queue: mpsc::UnboundedSender<Frame>,
    slots: Arc<Semaphore>,
    cookie: Cell<u64>,
    reader: JoinHandle<Result<(), Error>>,
    writer: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

impl Connection {
    /// Starts the tasks.
    pub(super) fn start<R, W>(reader: R, writer: W, address: Address, export: Export, requests: usize) -> Self
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        let link = Rc::new(Link {
            address,
            export,
            pending: RefCell::default(),
            lost: RefCell::default(),
            closing: Cell::new(false),
        });
        // Not bounded by itself: the slots are.
        let (queue, frames) = mpsc::unbounded_channel();
        let reader = spawn_local(read_replies(Rc::clone(&link), reader));
        let writer = spawn_local(write_requests(Rc::clone(&link), writer, frames)).abort_handle();
        let slots = Arc::new(Semaphore::new(requests.clamp(1, Semaphore::MAX_PERMITS)));
        Self { link, queue, slots, cookie: Cell::new(1), reader, writer }
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn ask(
        &self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u32,
        transfer: Transfer,
    ) -> Result<Answered, Error> {
        // The semaphore is never closed; a dead connection is noticed below.
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return Err(self.gone()) };
        if let Some(error) = self.lost() {
            return Err(error);
        }
        let cookie = self.cookie.replace(self.cookie.get().wrapping_add(1));
        let head = Request { flags, command, cookie, offset, length }.encode();
        let (into, data) = match transfer {
            Transfer::None => (None, None),
            Transfer::Into(buffer, start) => (Some((buffer, start)), None),
            Transfer::From(buffer, range) => (None, Some((buffer, range))),
        };
        let (done, answered) = oneshot::channel();
        let answer = Answer::new(command, offset, length, self.link.export.allocation());
        let pending = Pending { answer, command, length, into, done, _slot: slot };
        self.link.pending.borrow_mut().insert(cookie, pending);
        if self.queue.send(Frame { head, data, last: false }).is_err() {
            self.link.pending.borrow_mut().remove(&cookie);
            return Err(self.gone());
        }
        match answered.await {
            Ok(Ok((Outcome::Done, buffer))) => Ok(Answered { buffer, status: Vec::new() }),
            Ok(Ok((Outcome::Status(status), buffer))) => Ok(Answered { buffer, status }),
            Ok(Ok((Outcome::Failed(ServerError { errno, message, .. }), _))) => {
                let (address, length) = (self.link.address.clone(), length.into());
                Err(Error::Server { address, command, offset, length, errno, message })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(self.gone()),
        }
    }

    /// Says goodbye, after what is queued, and waits until the server has closed the connection.
    pub(super) async fn close(mut self, limit: Duration) -> Result<(), Error> {
        if let Some(error) = self.lost() {
            return Err(error);
        }
        self.link.closing.set(true);
        let head =
            Request { flags: 0, command: Command::Disconnect, cookie: 0, offset: 0, length: 0 }.encode();
        if self.queue.send(Frame { head, data: None, last: true }).is_err() {
            return Err(self.gone());
        }
        match tokio::time::timeout(limit, &mut self.reader).await {
            Ok(Ok(end)) => end,
            Ok(Err(_)) => Err(self.gone()),
            Err(_) => Err(Error::Timeout { address: self.link.address.clone(), what: "a disconnect" }),
        }
    }

    /// Why it is dead, if it is.
    pub(super) fn lost(&self) -> Option<Error> {
        self.link.lost.borrow().clone()
    }

    /// Requests that were sent and not yet answered.
    pub(super) fn in_flight(&self) -> usize {
        self.link.pending.borrow().len()
    }

    fn gone(&self) -> Error {
        self.lost().unwrap_or_else(|| Error::lost(&self.link.address, io::ErrorKind::NotConnected.into()))
    }
}
