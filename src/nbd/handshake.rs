//! The handshake: from a fresh connection to an open export ("Fixed newstyle negotiation").
//!
//! Works on any stream, so that tests and the fuzzer can be the server. What the server offers ends in an [`Export`];
//! a server that does not let us in, or is too old, ends in a sentence. Called by [`crate::nbd::client`].

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::error::Error;
use super::export::Export;
use super::wire::{self, Fault, Greeting, Info, answer, option};
use super::{Address, Options};

/// Replies to one option; `NBD_OPT_GO` has one for each kind of information, of which there are a handful.
const MAX_REPLIES: usize = 64;

/// Negotiates and opens `export` (the empty name is the server's default).
pub async fn negotiate<R, W>(
    reader: &mut R,
    writer: &mut W,
    address: &Address,
    export: &str,
    options: &Options,
) -> Result<Export, Error>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut talk = Talk { reader, writer, address };
    let opened = talk.open(export, options).await;
    if let Err(Error::Refused { .. }) = &opened {
        // Politeness; the answer is of no interest, nor whether this arrives.
        let _ = talk.send(option::ABORT, &[]).await;
    }
    opened
}

struct Talk<'a, R, W> {
    reader: &'a mut R,
    writer: &'a mut W,
    address: &'a Address,
}

/// How an option was answered.
struct Answered {
    /// Replies before the last one: type and data.
    replies: Vec<(u32, Vec<u8>)>,
    /// The refusal, with the server's words.
    refusal: Option<(u32, String)>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Talk<'_, R, W> {
    async fn open(&mut self, export: &str, options: &Options) -> Result<Export, Error> {
        if export.len() > wire::MAX_STRING {
            return Err(self.refused(format!("cannot have an export with a name of {} bytes", export.len())));
        }
        self.greet().await?;
        let structured =
            options.structured && self.ask(option::STRUCTURED_REPLY, &[]).await?.refusal.is_none();
        let allocation = if structured && options.allocation { self.context(export).await? } else { None };
        let answered = self.ask(option::GO, &wire::encode_go(export)).await?;
        if let Some((kind, said)) = answered.refusal {
            return Err(self.refused(sentence(kind, export, &said)));
        }
        let infos = answered.replies.iter().filter(|(kind, _)| *kind == answer::INFO);
        let infos: Result<Vec<Info>, Fault> = infos.map(|(_, data)| wire::decode_info(data)).collect();
        infos.and_then(|infos| Export::of(&infos, structured, allocation)).map_err(|fault| self.broke(fault))
    }

    async fn greet(&mut self) -> Result<(), Error> {
        let mut bytes = [0; wire::GREETING_LENGTH];
        self.read(&mut bytes).await?;
        let flags = match wire::decode_greeting(&bytes).map_err(|fault| self.broke(fault))? {
            Greeting::New(flags) => flags,
            Greeting::Old => {
                return Err(
                    self.refused("speaks only the oldstyle handshake; let it export in newstyle".into())
                );
            }
        };
        if flags & wire::FIXED_NEWSTYLE == 0 {
            return Err(self.refused("is too old: it does not speak the fixed newstyle handshake".into()));
        }
        let flags = u32::from(flags & (wire::FIXED_NEWSTYLE | wire::NO_ZEROES));
        self.writer.write_all(&flags.to_be_bytes()).await.map_err(|error| self.lost(error))
    }

    /// Selects `base:allocation`; gives its number, if the server has it. Listing first would say the same.
    async fn context(&mut self, export: &str) -> Result<Option<u32>, Error> {
        let query = wire::encode_context(export, wire::BASE_ALLOCATION);
        let answered = self.ask(option::SET_META_CONTEXT, &query).await?;
        if let Some((kind, said)) = answered.refusal {
            // A server without contexts, or one that tells with NBD_OPT_GO what is wrong with the export.
            tracing::debug!("{}: no block status (reply {kind:#x} {said})", self.address);
            return Ok(None);
        }
        let mut found = None;
        for (_, data) in answered.replies.iter().filter(|(kind, _)| *kind == answer::META_CONTEXT) {
            let (number, name) = wire::decode_context(data).map_err(|fault| self.broke(fault))?;
            if name != wire::BASE_ALLOCATION.as_bytes() || found.is_some() {
                return Err(self.broke(Fault::Context));
            }
            found = Some(number);
        }
        Ok(found)
    }

    async fn send(&mut self, option: u32, data: &[u8]) -> Result<(), Error> {
        let bytes = wire::encode_option(option, data);
        self.writer.write_all(&bytes).await.map_err(|error| self.lost(error))
    }

    /// Sends an option and reads its replies up to the last one.
    async fn ask(&mut self, option: u32, data: &[u8]) -> Result<Answered, Error> {
        self.send(option, data).await?;
        let mut replies = Vec::new();
        loop {
            let mut head = [0; wire::OPTION_REPLY_LENGTH];
            self.read(&mut head).await?;
            let reply = wire::decode_option_reply(&head).map_err(|fault| self.broke(fault))?;
            if reply.option != option {
                return Err(self.broke(Fault::OtherOption { sent: option, answered: reply.option }));
            }
            let mut data = vec![0; reply.length as usize];
            self.read(&mut data).await?;
            match (option, reply.kind) {
                (_, answer::ACK) if !data.is_empty() => {
                    return Err(self.broke(Fault::Surplus("an acknowledgement")));
                }
                (_, answer::ACK) => return Ok(Answered { replies, refusal: None }),
                (_, kind) if kind & answer::ERROR != 0 => {
                    return Ok(Answered { replies, refusal: Some((kind, wire::text(&data))) });
                }
                (option::GO, answer::INFO) | (option::SET_META_CONTEXT, answer::META_CONTEXT) => {
                    if replies.len() >= MAX_REPLIES {
                        return Err(self.broke(Fault::TooMany("replies to an option")));
                    }
                    replies.push((reply.kind, data));
                }
                (option, kind) => return Err(self.broke(Fault::OptionReply { option, kind })),
            }
        }
    }

    async fn read(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        match self.reader.read_exact(bytes).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.lost(error)),
        }
    }

    fn lost(&self, error: std::io::Error) -> Error {
        Error::lost(self.address, error)
    }

    fn broke(&self, fault: Fault) -> Error {
        Error::protocol(self.address, fault)
    }

    fn refused(&self, reason: String) -> Error {
        Error::Refused { address: self.address.clone(), reason }
    }
}

/// The rest of a sentence that begins with the server, for a refusal of `NBD_OPT_GO`.
fn sentence(kind: u32, export: &str, said: &str) -> String {
    let reason = match kind {
        answer::UNSUPPORTED => "is too old: it does not know NBD_OPT_GO".to_owned(),
        answer::POLICY => format!("forbids the export {export:?}"),
        answer::INVALID => format!("calls the request for export {export:?} invalid"),
        answer::TLS_REQUIRED => "insists on TLS, which is not spoken here".to_owned(),
        answer::UNKNOWN => format!("has no export {export:?}"),
        answer::SHUTDOWN => "is shutting down".to_owned(),
        answer::BLOCK_SIZE_REQUIRED => format!("wants other block sizes for export {export:?}"),
        kind => format!("refuses the export {export:?} with reply {kind:#x}"),
    };
    if said.is_empty() { reason } else { format!("{reason}: {said}") }
}
