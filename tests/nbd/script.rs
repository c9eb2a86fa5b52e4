//! A server of which a test decides every byte.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
use virt_v2v_wrapper::nbd::client::Client;
use virt_v2v_wrapper::nbd::reply::{CHUNK_MAGIC, ChunkKind, Command, Request, SIMPLE_MAGIC};
use virt_v2v_wrapper::nbd::wire::{self, answer, option};
use virt_v2v_wrapper::nbd::{Options, error::Error};

use super::nowhere;

/// Transmission flags of an export that can do everything.
pub const ALL_FLAGS: u16 = 0b1001_0110_1101;
/// The number that the server gives `base:allocation`.
pub const CONTEXT: u32 = 42;

/// What the server offers.
#[derive(Debug, Clone)]
pub struct Offer {
    pub size: u64,
    pub flags: u16,
    pub structured: bool,
    pub blocks: Option<[u32; 3]>,
}

impl Default for Offer {
    fn default() -> Self {
        Self { size: 1 << 30, flags: ALL_FLAGS, structured: true, blocks: None }
    }
}

pub fn greeting(flags: u16) -> Vec<u8> {
    [&wire::INIT_MAGIC.to_be_bytes()[..], &wire::OPTION_MAGIC.to_be_bytes(), &flags.to_be_bytes()].concat()
}

pub fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let numbers = [option, kind, data.len() as u32].map(u32::to_be_bytes).concat();
    [&wire::OPTION_REPLY_MAGIC.to_be_bytes()[..], &numbers, data].concat()
}

impl Offer {
    /// Everything that the server says up to the transmission phase.
    pub fn handshake(&self) -> Vec<u8> {
        [greeting(3), self.structured_reply(), self.context_reply(), self.go_reply()].concat()
    }

    pub fn structured_reply(&self) -> Vec<u8> {
        let kind = if self.structured { answer::ACK } else { answer::UNSUPPORTED };
        option_reply(option::STRUCTURED_REPLY, kind, &[])
    }

    pub fn context_reply(&self) -> Vec<u8> {
        if !self.structured {
            return Vec::new();
        }
        let context = [&CONTEXT.to_be_bytes()[..], wire::BASE_ALLOCATION.as_bytes()].concat();
        let found = option_reply(option::SET_META_CONTEXT, answer::META_CONTEXT, &context);
        [found, option_reply(option::SET_META_CONTEXT, answer::ACK, &[])].concat()
    }

    pub fn go_reply(&self) -> Vec<u8> {
        let export = [&[0, 0][..], &self.size.to_be_bytes(), &self.flags.to_be_bytes()].concat();
        let mut bytes = option_reply(option::GO, answer::INFO, &export);
        if let Some(blocks) = self.blocks {
            let info = [&[0, 3][..], &blocks.map(u32::to_be_bytes).concat()].concat();
            bytes.extend(option_reply(option::GO, answer::INFO, &info));
        }
        bytes.extend(option_reply(option::GO, answer::ACK, &[]));
        bytes
    }

    /// Bytes that a client sends until the export is open.
    fn expected(&self) -> usize {
        let context = if self.structured { 16 + 4 + 4 + 4 + wire::BASE_ALLOCATION.len() } else { 0 };
        4 + 16 + context + 16 + 4 + 4
    }
}

/// A client, and the other end of its connection just after the handshake. The pipe between them holds `pipe` bytes.
pub async fn connected(offer: &Offer, options: &Options, pipe: usize) -> (Client, Server) {
    let (ours, mut theirs) = duplex(pipe);
    let (reader, writer) = split(ours);
    let serve = async {
        theirs.write_all(&offer.handshake()).await.expect("handshake");
        let mut said = vec![0; offer.expected()];
        theirs.read_exact(&mut said).await.expect("options");
        Server { stream: theirs }
    };
    let address = nowhere();
    let connect = Client::over(reader, writer, &address, "", options);
    let (client, server) = tokio::join!(connect, serve);
    (client.expect("connected"), server)
}

/// What the client makes of a server that says `bytes` and then closes.
pub async fn handshake_with(bytes: &[u8]) -> Result<Client, Error> {
    let reader = std::io::Cursor::new(bytes.to_vec());
    Client::over(reader, tokio::io::sink(), &nowhere(), "", &Options::default()).await
}

/// The server's end.
pub struct Server {
    pub stream: DuplexStream,
}

impl Server {
    /// The next request, with the data of a write.
    pub async fn request(&mut self) -> (Request, Vec<u8>) {
        let mut head = [0; 28];
        self.stream.read_exact(&mut head).await.expect("a request");
        let request = Request::decode(&head).expect("a request in order");
        let count = if request.command == Command::Write { request.length as usize } else { 0 };
        let mut data = vec![0; count];
        self.stream.read_exact(&mut data).await.expect("the data of a write");
        (request, data)
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        // A client that has had enough closes early.
        let _ = self.stream.write_all(bytes).await;
    }
}

pub fn simple(error: u32, cookie: u64) -> Vec<u8> {
    [&SIMPLE_MAGIC.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

pub fn chunk(done: bool, kind: ChunkKind, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let head = [&CHUNK_MAGIC.to_be_bytes()[..], &u16::from(done).to_be_bytes()].concat();
    let length = (payload.len() as u32).to_be_bytes();
    [&head[..], &kind.number().to_be_bytes(), &cookie.to_be_bytes(), &length, payload].concat()
}

pub fn data(done: bool, cookie: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    chunk(done, ChunkKind::Data, cookie, &[&offset.to_be_bytes()[..], bytes].concat())
}

pub fn hole(done: bool, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    chunk(done, ChunkKind::Hole, cookie, &[&offset.to_be_bytes()[..], &length.to_be_bytes()].concat())
}

pub fn failure(done: bool, cookie: u64, errno: u32, text: &str) -> Vec<u8> {
    let length = (text.len() as u16).to_be_bytes();
    chunk(done, ChunkKind::Error, cookie, &[&errno.to_be_bytes()[..], &length, text.as_bytes()].concat())
}

pub fn status(cookie: u64, context: u32, descriptors: &[(u32, u32)]) -> Vec<u8> {
    let pairs = descriptors.iter().flat_map(|(length, flags)| [*length, *flags]);
    let numbers: Vec<u8> = std::iter::once(context).chain(pairs).flat_map(u32::to_be_bytes).collect();
    chunk(true, ChunkKind::BlockStatus, cookie, &numbers)
}
