//! The operations on one connection. Called by [`crate::nbd::pool`] and the copy engine.
//!
//! All take `&self`: any number may run at the same time, and any may be dropped at any time. A read that was dropped
//! is read and thrown away; whether a write that was dropped has happened is not known. Requests above the server's
//! limit are sent in several; those that it cannot take are refused here, with a sentence, before anything is sent.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::budget::Buffer;
use super::connection::{Connection, Transfer};
use super::error::Error;
use super::export::Export;
use super::handshake::negotiate;
use super::reply::{Command, flag};
use super::{Address, Options};
use crate::extent::{Extent, Extents, Kind};

/// Most bytes that are zeroed, given up or asked about with one request: what every server takes, and a multiple of
/// every block size.
const MAX_RANGE: u32 = 1 << 30;
/// A range of which the block status cannot be had is asked for in parts of this size, then taken for data.
const SMALL_STATUS: u32 = 64 << 20;

/// How zeros are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Zeroes {
    /// The range must stay, or become, allocated.
    pub no_hole: bool,
    /// Fail at once rather than be slow ([`Error::is_not_supported`]).
    pub fast: bool,
    /// Durable before it is acknowledged.
    pub fua: bool,
}

/// An open export on one connection.
pub struct Client {
    address: Address,
    export: Export,
    timeout: Duration,
    connection: Connection,
}

impl Client {
    /// Connects and opens `export` (the empty name is the server's default). Must be called where
    /// [`tokio::task::spawn_local`] may be.
    pub async fn connect(address: &Address, export: &str, options: &Options) -> Result<Self, Error> {
        let connecting = async {
            let failed = |error| Error::Connect { address: address.clone(), source: Arc::new(error) };
            match address {
                Address::Unix(path) => {
                    let (reader, writer) = UnixStream::connect(path).await.map_err(failed)?.into_split();
                    Self::over(reader, writer, address, export, options).await
                }
                Address::Tcp(host, port) => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
                    keep_alive(&stream);
                    let (reader, writer) = stream.into_split();
                    Self::over(reader, writer, address, export, options).await
                }
            }
        };
        let late = |_| Error::Timeout { address: address.clone(), what: "the handshake" };
        tokio::time::timeout(options.timeout, connecting).await.map_err(late)?
    }

    /// Opens `export` over a stream that is already connected; without a time limit for the handshake.
    pub async fn over<R, W>(
        mut reader: R,
        mut writer: W,
        address: &Address,
        export: &str,
        options: &Options,
    ) -> Result<Self, Error>
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        let export = negotiate(&mut reader, &mut writer, address, export, options).await?;
        let connection = Connection::start(reader, writer, address.clone(), export, options.requests);
        Ok(Self { address: address.clone(), export, timeout: options.timeout, connection })
    }

    /// What the server offers.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// Why the connection is dead, if it is.
    pub fn lost(&self) -> Option<Error> {
        self.connection.lost()
    }

    /// Requests that were sent and not yet answered, dropped ones included.
    pub fn in_flight(&self) -> usize {
        self.connection.in_flight()
    }

    /// Fills the buffer with the bytes at `offset`. All of them have come from the server, or it is an error.
    pub async fn read(&self, offset: u64, buffer: Buffer) -> Result<Buffer, Error> {
        self.read_by(offset, buffer, u32::MAX).await
    }

    /// The same with requests of at most `most` bytes.
    pub async fn read_by(&self, offset: u64, mut buffer: Buffer, most: u32) -> Result<Buffer, Error> {
        self.check(offset, buffer.len() as u64)?;
        let mut start = 0;
        let minimum = self.export.blocks().minimum;
        let most = self.export.max_request().min((most - most % minimum).max(minimum));
        for length in pieces(buffer.len() as u64, most) {
            let transfer = Transfer::Into(buffer, start);
            let at = offset + start as u64;
            let answered = self.connection.ask(Command::Read, 0, at, length, transfer).await?;
            // A read without its buffer cannot be; were it so, it would not be a success.
            let Some(filled) = answered.buffer else { return Err(self.not_offered("the data of a read")) };
            buffer = filled;
            start += length as usize;
        }
        Ok(buffer)
    }

    /// Writes `range` of the buffer at `offset`. The buffer is shared because a failed write is often done again.
    pub async fn write(
        &self,
        offset: u64,
        buffer: &Arc<Buffer>,
        range: Range<usize>,
        fua: bool,
    ) -> Result<(), Error> {
        let range = range.start..range.end.min(buffer.len());
        self.check_write(offset, range.len() as u64, fua)?;
        let mut start = range.start;
        for length in pieces(range.len() as u64, self.export.max_request()) {
            let end = start + length as usize;
            let transfer = Transfer::From(Arc::clone(buffer), start..end);
            let at = offset + (start - range.start) as u64;
            let flags = if fua { flag::FUA } else { 0 };
            self.connection.ask(Command::Write, flags, at, length, transfer).await?;
            start = end;
        }
        Ok(())
    }

    /// Makes a range read as zeros.
    pub async fn write_zeroes(&self, offset: u64, length: u64, how: Zeroes) -> Result<(), Error> {
        self.check_write(offset, length, how.fua)?;
        if !self.export.can_zero() {
            return Err(self.not_offered("writing zeros"));
        }
        if how.fast && !self.export.can_fast_zero() {
            return Err(self.not_offered("fast zeros"));
        }
        let flags = [(how.no_hole, flag::NO_HOLE), (how.fast, flag::FAST_ZERO), (how.fua, flag::FUA)];
        let flags = flags.into_iter().filter(|(wanted, _)| *wanted).fold(0, |flags, (_, flag)| flags | flag);
        self.over_range(Command::WriteZeroes, flags, offset, length).await
    }

    /// Gives a range up. What it reads as afterwards is not defined.
    pub async fn trim(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.check_write(offset, length, false)?;
        if !self.export.can_trim() {
            return Err(self.not_offered("trim"));
        }
        self.over_range(Command::Trim, 0, offset, length).await
    }

    async fn over_range(&self, command: Command, flags: u16, offset: u64, length: u64) -> Result<(), Error> {
        let mut at = offset;
        for length in pieces(length, MAX_RANGE) {
            self.connection.ask(command, flags, at, length, Transfer::None).await?;
            at += u64::from(length);
        }
        Ok(())
    }

    /// Returns when everything that was acknowledged before is durable.
    pub async fn flush(&self) -> Result<(), Error> {
        if !self.export.can_flush() {
            return Err(self.not_offered("flush, so nothing written is sure to be kept"));
        }
        self.connection.ask(Command::Flush, 0, 0, 0, Transfer::None).await.map(drop)
    }

    /// What the server says about the beginning of a range, at least one byte of it and never more than it, with
    /// one request.
    pub async fn block_status(&self, offset: u64, length: u32) -> Result<Extents, Error> {
        self.check(offset, length.into())?;
        if !self.export.has_allocation() {
            return Err(self.not_offered("block status"));
        }
        if length == 0 {
            return Ok(Extents::default());
        }
        let answered = self.connection.ask(Command::BlockStatus, 0, offset, length, Transfer::None).await?;
        Ok(Extents::from_block_status(offset, length.into(), &answered.status))
    }

    /// What the whole range reads as. Where the server does not know or fails to say (VDDK at the tail of disks of odd
    /// size), it is data: reading it is never wrong.
    pub async fn extents(&self, offset: u64, length: u64) -> Result<Extents, Error> {
        self.check(offset, length)?;
        if !self.export.has_allocation() {
            return Ok(Extents::normalize([Extent::new(offset, length, Kind::Data)]));
        }
        let end = offset + length;
        let mut found = Vec::new();
        let (mut at, mut most) = (offset, MAX_RANGE);
        let mut failed = None;
        while at < end {
            let length = u32::try_from(end - at).unwrap_or(most).min(most);
            let next = match self.block_status(at, length).await {
                Ok(extents) => {
                    found.extend(&extents);
                    extents.end()
                }
                Err(Error::Server { .. }) if length > SMALL_STATUS => {
                    most = SMALL_STATUS;
                    continue;
                }
                Err(error @ Error::Server { .. }) => {
                    failed.get_or_insert(error);
                    found.push(Extent::new(at, length.into(), Kind::Data));
                    at + u64::from(length)
                }
                Err(error) => return Err(error),
            };
            // A server that ends an answer within a block has not said what the rest of the block is.
            let minimum = u64::from(self.export.blocks().minimum);
            at = next.next_multiple_of(minimum).min(end);
            found.push(Extent::new(next, at - next, Kind::Data));
        }
        if let Some(error) = failed {
            tracing::warn!("{error}: what it does not say about is read as data");
        }
        Ok(Extents::normalize(found))
    }

    /// Ends the connection as the protocol wants it: what was sent is answered, the server closes.
    pub async fn disconnect(self) -> Result<(), Error> {
        let Self { connection, timeout, .. } = self;
        connection.close(timeout).await
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), Error> {
        let (address, size) = (self.address.clone(), self.export.size());
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(Error::BeyondEnd { address, offset, length, size });
        }
        if !self.export.is_aligned(offset, length) {
            let minimum = self.export.blocks().minimum;
            return Err(Error::Unaligned { address, offset, length, minimum });
        }
        Ok(())
    }

    fn check_write(&self, offset: u64, length: u64, fua: bool) -> Result<(), Error> {
        self.check(offset, length)?;
        if self.export.is_read_only() {
            return Err(self.not_offered("writing"));
        }
        if fua && !self.export.can_fua() {
            return Err(self.not_offered("durable writes"));
        }
        Ok(())
    }

    fn not_offered(&self, what: &'static str) -> Error {
        Error::NotOffered { address: self.address.clone(), what }
    }
}

/// `length` in pieces of at most `most`.
fn pieces(length: u64, most: u32) -> impl Iterator<Item = u32> {
    let mut left = length;
    let most = NonZeroU64::new(most.into()).unwrap_or(NonZeroU64::MIN);
    std::iter::from_fn(move || {
        let piece = left.min(most.get());
        left -= piece;
        u32::try_from(piece).ok().filter(|piece| *piece > 0)
    })
}

/// Makes the kernel notice a peer that is gone, and firewalls that the connection is alive, although nothing may be
/// sent for minutes (peers.md 6.3, row 22). A system without these options copies all the same.
fn keep_alive(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    let set = SockRef::from(stream).set_tcp_keepalive(&keepalive).and_then(|()| stream.set_nodelay(true));
    if let Err(error) = set {
        tracing::debug!("no keepalive on a connection: {error}");
    }
}
