//! One question to a server: do you serve this disk? Asked over its socket in the words of the NBD protocol.
//!
//! Not a client: it reads nothing of the disk. It is more than a connect, because nbdkit opens the disk (logs in to the
//! vCenter, to the ssh host) only when a client negotiates, and because a client that hangs up without a word leaves an
//! `error:` line in nbdkit's log, which would pass for the reason of a later failure.

use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPT_ABORT: u32 = 2;
const OPT_INFO: u32 = 6;
const REP_ACK: u32 = 1;
const REP_ERR_UNSUP: u32 = 0x8000_0001;
/// Replies to NBD_OPT_INFO are a few dozen bytes; a text of an error may be 4096 (the protocol's limit of strings).
const MOST: u32 = 8 << 10;
/// Information replies before the acknowledgement; there are five kinds.
const MOST_REPLIES: usize = 64;

/// What the server answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It serves.
    Yes,
    /// It cannot open the disk; its words, if it had some.
    No(String),
}

/// Asks. An error means that nobody listens there, or none that speaks NBD.
pub(super) async fn ask(socket: &Path) -> std::io::Result<Answer> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await?;
    let (magic, flags) = greeting.split_at(16);
    if magic != b"NBDMAGICIHAVEOPT" {
        return Err(std::io::Error::other("not an NBD server"));
    }
    // NBD_FLAG_FIXED_NEWSTYLE and NBD_FLAG_NO_ZEROES, as far as the server has them.
    let flags = u32::from(flags.last().copied().unwrap_or_default() & 3);
    stream.write_all(&flags.to_be_bytes()).await?;
    // No name: the default export. Then one kind of information, NBD_INFO_BLOCK_SIZE: qemu-nbd 7.2 refuses a vhdx, whose
    // blocks are not bytes, to a client that does not ask for it.
    send(&mut stream, OPT_INFO, &[0, 0, 0, 0, 0, 1, 0, 3]).await?;
    for _ in 0..MOST_REPLIES {
        match reply(&mut stream).await? {
            (REP_ACK | REP_ERR_UNSUP, _) => {
                send(&mut stream, OPT_ABORT, &[]).await?;
                // The server may hang up instead of acknowledging.
                reply(&mut stream).await.ok();
                return Ok(Answer::Yes);
            }
            (kind, text) if kind & 0x8000_0000 != 0 => {
                send(&mut stream, OPT_ABORT, &[]).await.ok();
                return Ok(Answer::No(String::from_utf8_lossy(&text).into_owned()));
            }
            _ => {}
        }
    }
    Err(std::io::Error::other("the server's answer has no end"))
}

async fn send(stream: &mut UnixStream, option: u32, data: &[u8]) -> std::io::Result<()> {
    let mut message = OPTION_MAGIC.to_vec();
    message.extend(option.to_be_bytes());
    message.extend((data.len() as u32).to_be_bytes());
    message.extend(data);
    stream.write_all(&message).await
}

async fn reply(stream: &mut UnixStream) -> std::io::Result<(u32, Vec<u8>)> {
    let magic = stream.read_u64().await?;
    let _option = stream.read_u32().await?;
    let kind = stream.read_u32().await?;
    let length = stream.read_u32().await?;
    if magic != REPLY_MAGIC || length > MOST {
        return Err(std::io::Error::other("not an answer of the NBD protocol"));
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data).await?;
    Ok((kind, data))
}
