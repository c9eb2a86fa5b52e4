//! The sending half of a connection: a task that writes requests whole, one after the other.
//!
//! Started by `connection`, which queues what is to be sent.

use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::budget::Buffer;
use super::error::Error;
use super::receive::Link;
use super::reply;

/// Requests that are written together.
const BATCH: usize = 64;

/// A request as it goes over the wire.
pub(super) struct Frame {
    /// The request.
    pub(super) head: [u8; reply::REQUEST_LENGTH],
    /// The data of a write.
    pub(super) data: Option<(Arc<Buffer>, Range<usize>)>,
    /// Whether it is the goodbye.
    pub(super) last: bool,
}

/// Writes what is queued until the goodbye was sent, or something breaks.
pub(super) async fn write_requests<W>(
    link: Rc<Link>,
    mut writer: W,
    mut queue: mpsc::UnboundedReceiver<Frame>,
) where
    W: AsyncWrite + Unpin,
{
    let mut frames = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut frames, BATCH).await > 0 {
        let last = frames.iter().any(|frame| frame.last);
        let mut written = write_frames(&mut writer, &mut frames).await;
        if last && written.is_ok() {
            written = writer.shutdown().await;
        }
        if let Err(error) = written {
            link.fail(Error::lost(&link.address, error));
            return;
        }
        if last {
            return;
        }
    }
}

async fn write_frames<W: AsyncWrite + Unpin>(writer: &mut W, frames: &mut Vec<Frame>) -> io::Result<()> {
    // Heads go out together, up to the first data.
    let mut heads = Vec::with_capacity(frames.len() * reply::REQUEST_LENGTH);
    for frame in frames.drain(..) {
        heads.extend_from_slice(&frame.head);
        if let Some((buffer, range)) = frame.data {
            let data = buffer.get(range).ok_or(io::ErrorKind::InvalidInput)?;
            write_both(writer, &heads, data).await?;
            heads.clear();
        }
    }
    writer.write_all(&heads).await?;
    writer.flush().await
}

/// Writes two slices without copying them together.
async fn write_both<W: AsyncWrite + Unpin>(writer: &mut W, head: &[u8], data: &[u8]) -> io::Result<()> {
    let mut head = head;
    while !head.is_empty() {
        let both = [io::IoSlice::new(head), io::IoSlice::new(data)];
        let count = writer.write_vectored(&both).await?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        match head.get(count..) {
            Some(rest) => head = rest,
            None => return writer.write_all(data.get(count - head.len()..).unwrap_or_default()).await,
        }
    }
    writer.write_all(data).await
}
