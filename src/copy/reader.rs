//! The source of one disk while it is read: its server, the connections to it, and what is done when they fail. An edge;
//! called by the copy engine alone.
//!
//! Every byte that [`Reader::read`] gives came from the server, or it is an error: what failed is asked for again, of a
//! new server if need be, and only when that does not help for long the disk fails. What was copied until then stays
//! copied.

use std::cell::{Cell, RefCell};
use std::num::NonZeroU64;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::export::Files;
use crate::export::server::Server;
use crate::extent::{Extent, Extents, Kind};
use crate::log::chain;
use crate::nbd::budget::{Buffer, Reservation};
use crate::nbd::pool::Pool;
use crate::nbd::{self, Address, Options};
use crate::process;

mod terms;

pub use terms::{Patience, ReadError, Serving};

/// Reads are never made smaller than this.
const SMALLEST_READ: u32 = 64 << 10;
/// Bytes whose block status is asked for before the answers are put in order, and which must be answered in time.
const STATUS_WINDOW: u64 = 1 << 30;
/// More extents than this are made coarser, so that memory does not grow with a disk's fragmentation: a hole that is
/// read is not wrong.
const MOST_EXTENTS: usize = 200_000;

/// A server and the connections to it.
struct Session {
    server: Server,
    pool: Pool,
    broken: Cell<bool>,
}

impl Session {
    fn is_usable(&self) -> bool {
        !self.broken.get() && self.pool.lost().is_none()
    }

    /// Ends what waits for it; its files go when the last user does.
    fn give_up(&self) {
        self.broken.set(true);
        if process::exit_of(self.server.pid()).is_none() {
            process::signal_group(self.server.pid(), Signal::SIGKILL);
        }
    }
}

/// One disk that is read.
pub struct Reader {
    serving: Serving,
    patience: Patience,
    /// Largest read in bytes; shared by the disks of a host, which has one memory (peers.md 6.3, row 23).
    read_size: Rc<Cell<u32>>,
    /// Held while a server starts, so that many failed reads start one.
    session: tokio::sync::Mutex<Option<Rc<Session>>>,
    starts: Cell<u32>,
    answered: Cell<Instant>,
    size: Cell<Option<u64>>,
    last_error: RefCell<Option<String>>,
}

impl Reader {
    /// A reader that has not begun. `read_size` is the host's.
    pub fn new(serving: Serving, patience: Patience, read_size: Rc<Cell<u32>>) -> Self {
        Self {
            serving,
            patience,
            read_size,
            session: tokio::sync::Mutex::new(None),
            starts: Cell::new(0),
            answered: Cell::new(Instant::now()),
            size: Cell::new(None),
            last_error: RefCell::new(None),
        }
    }

    /// The disk as its owner knows it.
    pub fn disk(&self) -> String {
        self.serving.export.disk()
    }

    /// Largest read in bytes, as it is now.
    pub fn read_size(&self) -> u32 {
        self.read_size.get()
    }

    /// Starts the server; tries again like a read does. Gives the disk's size in bytes.
    pub async fn open(&self) -> Result<u64, ReadError> {
        let mut retries = self.patience.retries.iter();
        loop {
            match self.session().await {
                Ok(session) => return Ok(session.pool.export().size()),
                Err(error @ ReadError::Resized { .. }) => return Err(error),
                Err(error) => match retries.next() {
                    Some(pause) => {
                        tracing::warn!("{error}; trying again");
                        tokio::time::sleep(*pause).await;
                    }
                    None => return Err(error),
                },
            }
        }
    }

    /// Starts the server, once: how long it is tried is the caller's to say. Gives the disk's size in bytes.
    pub async fn try_open(&self) -> Result<u64, ReadError> {
        Ok(self.session().await?.pool.export().size())
    }

    /// Pauses between two tries.
    pub fn pauses(&self) -> Vec<Duration> {
        self.patience.retries.clone()
    }

    /// The running session, or a new one.
    async fn session(&self) -> Result<Rc<Session>, ReadError> {
        let mut current = self.session.lock().await;
        if let Some(session) = current.as_ref() {
            if session.is_usable() {
                return Ok(Rc::clone(session));
            }
            session.give_up();
            *current = None;
        }
        let session = Rc::new(self.start().await?);
        *current = Some(Rc::clone(&session));
        Ok(session)
    }

    async fn start(&self) -> Result<Session, ReadError> {
        let Serving { program, tag, export, filters, library_path, private, number, connections } =
            &self.serving;
        let start = self.starts.get();
        self.starts.set(start + 1);
        // A name of its own for each: the one before may still be dying, and takes its socket with it.
        let files = Files::new(private, export.program(), number + 1000 * start);
        let line = export.command_line(&files, *filters, library_path.as_deref());
        let server = Server::start(program, tag, export.disk(), line, files).await;
        let server = server.map_err(|error| ReadError::Serve(chain(&error)))?;
        let address = Address::Unix(server.socket().to_owned());
        let pool = Pool::connect(&address, "", &Options::default(), *connections).await;
        let pool = pool.map_err(|error| ReadError::Serve(chain(&error)))?;
        let now = pool.export().size();
        match self.size.get() {
            Some(before) if before != now => Err(ReadError::Resized { disk: export.disk(), before, now }),
            _ => {
                self.size.set(Some(now));
                self.answered.set(Instant::now());
                Ok(Session { server, pool, broken: Cell::new(false) })
            }
        }
    }

    /// Reads `length` bytes at `offset` into a buffer of the reservation, whatever it takes.
    pub async fn read(&self, offset: u64, length: usize, room: &Reservation) -> Result<Buffer, ReadError> {
        let mut retries = self.patience.retries.iter();
        let mut tries = 0;
        loop {
            let most = self.read_size.get();
            let said = match self.session().await {
                Err(error @ ReadError::Resized { .. }) => return Err(error),
                Err(error) => error.to_string(),
                Ok(session) => match self.try_read(&session, offset, room.buffer(length), most).await {
                    Ok(buffer) => return Ok(buffer),
                    Err(failure) => {
                        if failure.too_large && most.min(length as u32) > SMALLEST_READ {
                            self.read_less(most.min(length as u32));
                            continue;
                        }
                        failure.said
                    }
                },
            };
            tries += 1;
            self.last_error.replace(Some(said.clone()));
            let Some(pause) = retries.next() else {
                return Err(ReadError::Read { disk: self.disk(), offset, length, tries, said });
            };
            tracing::warn!("reading {length} bytes at {offset} of {}: {said}; trying again", self.disk());
            tokio::time::sleep(*pause).await;
        }
    }

    fn read_less(&self, failed: u32) {
        let smaller =
            (failed / 2).next_power_of_two().clamp(SMALLEST_READ, failed.max(SMALLEST_READ + 1) - 1);
        if smaller < self.read_size.get() {
            tracing::warn!(
                "{}: reads of {failed} bytes fail for want of memory: {smaller} from now on",
                self.disk()
            );
            self.read_size.set(smaller);
        }
    }

    async fn try_read(
        &self,
        session: &Session,
        offset: u64,
        buffer: Buffer,
        most: u32,
    ) -> Result<Buffer, Failure> {
        let asked = Instant::now();
        let reading = session.pool.read_by(offset, buffer, most);
        tokio::pin!(reading);
        loop {
            match tokio::time::timeout(self.patience.stall, &mut reading).await {
                Ok(Ok(buffer)) => {
                    self.answered.set(Instant::now());
                    return Ok(buffer);
                }
                Ok(Err(error)) => return Err(failure(&error, session)),
                // Others were answered meanwhile: the server is slow, not stuck.
                Err(_)
                    if self.answered.get() > asked && self.answered.get().elapsed() < self.patience.stall => {
                }
                Err(_) => {
                    session.give_up();
                    return Err(Failure { said: self.no_answer(), too_large: false });
                }
            }
        }
    }

    /// What the disk of `size` bytes reads as: the whole of it, in order, in blocks that the server reads.
    pub async fn extents(&self, size: u64) -> Result<Extents, ReadError> {
        let mut retries = self.patience.retries.iter();
        let mut found = Vec::new();
        let mut unit = 0_u32;
        let mut block = NonZeroU64::MIN;
        let mut at = 0;
        while at < size {
            let length = (size - at).min(STATUS_WINDOW);
            let said = match self.session().await {
                Ok(session) => match self.try_extents(&session, at, length).await {
                    Ok(extents) => {
                        found.extend(&extents);
                        let minimum = u64::from(session.pool.export().blocks().minimum);
                        block = NonZeroU64::new(minimum).map_or(block, |minimum| block.max(minimum));
                        None
                    }
                    Err(said) => Some(said),
                },
                Err(error @ ReadError::Resized { .. }) => return Err(error),
                Err(error) => Some(error.to_string()),
            };
            if let Some(said) = said {
                let Some(pause) = retries.next() else {
                    return Err(ReadError::Serve(format!(
                        "the block status of {} cannot be had: {said}",
                        self.disk()
                    )));
                };
                tracing::warn!("block status of {}: {said}; trying again", self.disk());
                tokio::time::sleep(*pause).await;
                continue;
            }
            // Patience is for one place, not for the whole of a large disk.
            retries = self.patience.retries.iter();
            while found.len() > MOST_EXTENTS && unit < 26 {
                unit = (unit + 1).max(17);
                found = coarser(found, 1 << unit, size);
            }
            at += length;
        }
        self.answered.set(Instant::now());
        // A hole that begins within a block is no reason for a read that the server refuses.
        Ok(Extents::normalize(found).widen(block, size))
    }

    /// The block status of a range, or why it cannot be had. A server that says nothing for long is given up.
    async fn try_extents(&self, session: &Session, at: u64, length: u64) -> Result<Extents, String> {
        match tokio::time::timeout(self.patience.stall, session.pool.extents(at, length)).await {
            Ok(answer) => answer.map_err(|error| chain(&error)),
            Err(_) => {
                session.give_up();
                Err(self.no_answer())
            }
        }
    }

    fn no_answer(&self) -> String {
        format!("no answer for {} s", self.patience.stall.as_secs())
    }

    /// Why the last read failed, if one did.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.borrow().clone()
    }

    /// How often a server was started.
    pub fn starts(&self) -> u32 {
        self.starts.get()
    }

    /// Hangs up and stops the server.
    pub async fn close(&self) {
        let Some(session) = self.session.lock().await.take() else { return };
        match Rc::try_unwrap(session) {
            Ok(Session { server, pool, .. }) => {
                if let Err(error) = pool.disconnect().await {
                    tracing::debug!("{}", chain(&error));
                }
                server.stop().await;
            }
            Err(shared) => shared.give_up(),
        }
    }
}

struct Failure {
    said: String,
    /// A smaller read may succeed.
    too_large: bool,
}

fn failure(error: &nbd::error::Error, session: &Session) -> Failure {
    let server = session.server.last_error();
    // VDDK's words for a host whose NFC memory is used up; the error number is EIO then. The second ones come last.
    let no_memory = |said: &str| {
        let said = said.to_ascii_lowercase();
        said.contains("failed to allocate") || said.contains("memory allocation failed")
    };
    let too_large = error.is_too_large() || server.as_deref().is_some_and(no_memory);
    // A server that says that it is leaving says so until its clients have gone.
    if error.ends_connection() || error.errno() == Some(nbd::reply::Errno::Shutdown) {
        session.broken.set(true);
    }
    let said = match server {
        Some(server) => format!("{} ({server})", chain(error)),
        None => chain(error),
    };
    Failure { said, too_large }
}

/// Fewer extents that say the same or, where they differ within a unit, that there is data.
fn coarser(found: Vec<Extent>, unit: u64, size: u64) -> Vec<Extent> {
    let unit = std::num::NonZeroU64::new(unit).unwrap_or(std::num::NonZeroU64::MIN);
    // A hole and zeros are the same to a copy.
    let kinds = found.into_iter().map(|extent| match extent.kind {
        Kind::Data => extent,
        Kind::Hole | Kind::Zero => Extent::new(extent.offset, extent.length, Kind::Zero),
    });
    Extents::normalize(kinds).widen(unit, size).iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fragmented_disk_is_told_in_fewer_extents_and_no_data_is_lost() {
        let kinds = [Kind::Data, Kind::Hole];
        let list = (0..100_000_u64).map(|at| Extent::new(at * 4096, 4096, kinds[(at % 7 > 0) as usize]));
        let list: Vec<_> = list.collect();
        let size = 100_000 * 4096;
        let fewer = Extents::normalize(coarser(list.clone(), 1 << 17, size));
        assert!(fewer.len() * 5 < list.len(), "{}", fewer.len());
        let data =
            |extents: &Extents| Extents::normalize(extents.iter().filter(|extent| extent.kind == Kind::Data));
        assert!(data(&Extents::normalize(list)).subtract(&data(&fewer)).is_empty());
        assert_eq!(fewer.covered(), size);
    }
}
