//! One export on several connections, where the server says that they see the same. Called by the copy engine.
//!
//! Each request goes to the connection with the fewest in flight. A connection that dies takes its requests with it
//! and is not used again; the pool does not replace it.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::budget::Buffer;
use super::client::{Client, Zeroes};
use super::error::Error;
use super::export::Export;
use super::{Address, Options};
use crate::extent::Extents;

/// Time for each connection after the first. Servers with a limit often do not refuse further ones but let them wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections to one export; always at least one.
pub struct Pool {
    first: Client,
    more: Vec<Client>,
    turn: Cell<usize>,
}

impl Pool {
    /// Opens up to `connections`: one if the server does not promise that several see the same, fewer if it does not
    /// let so many in. Fewer are slower, not wrong.
    pub async fn connect(
        address: &Address,
        export: &str,
        options: &Options,
        connections: NonZeroUsize,
    ) -> Result<Self, Error> {
        let first = Client::connect(address, export, options).await?;
        let wanted = if first.export().can_multi_conn() { connections.get() } else { 1 };
        let options = Options { timeout: options.timeout.min(PATIENCE), ..options.clone() };
        let mut more = Vec::new();
        while more.len() + 1 < wanted {
            match Client::connect(address, export, &options).await {
                Ok(client) if client.export() == first.export() => more.push(client),
                Ok(_) => {
                    let reason = "shows another export on its second connection".to_owned();
                    return Err(Error::Refused { address: address.clone(), reason });
                }
                Err(error) => {
                    tracing::info!("{} of {wanted} connections: {error}", more.len() + 1);
                    break;
                }
            }
        }
        Ok(Self { first, more, turn: Cell::new(0) })
    }

    /// What the server offers.
    pub fn export(&self) -> &Export {
        self.first.export()
    }

    /// Connections, dead ones included.
    pub fn connections(&self) -> usize {
        1 + self.more.len()
    }

    /// Why a connection is dead, if one is. Writes that only it acknowledged and no flush followed may be lost with
    /// the server.
    pub fn lost(&self) -> Option<Error> {
        self.clients().find_map(Client::lost)
    }

    fn clients(&self) -> impl Iterator<Item = &Client> {
        std::iter::once(&self.first).chain(&self.more)
    }

    /// The living connection with the fewest requests in flight; equals take turns. A dead one, which says why, when
    /// none lives.
    pub fn pick(&self) -> &Client {
        let turn = self.turn.replace(self.turn.get().wrapping_add(1)) % self.connections();
        let in_turn = self.clients().skip(turn).chain(self.clients().take(turn));
        let living = in_turn.filter(|client| client.lost().is_none());
        living.min_by_key(|client| client.in_flight()).unwrap_or(&self.first)
    }

    /// [`Client::read`] on the least busy connection.
    pub async fn read(&self, offset: u64, buffer: Buffer) -> Result<Buffer, Error> {
        self.pick().read(offset, buffer).await
    }

    /// [`Client::read_by`] on the least busy connection.
    pub async fn read_by(&self, offset: u64, buffer: Buffer, most: u32) -> Result<Buffer, Error> {
        self.pick().read_by(offset, buffer, most).await
    }

    /// [`Client::write`] on the least busy connection.
    pub async fn write(
        &self,
        offset: u64,
        buffer: &Arc<Buffer>,
        range: Range<usize>,
        fua: bool,
    ) -> Result<(), Error> {
        self.pick().write(offset, buffer, range, fua).await
    }

    /// [`Client::write_zeroes`] on the least busy connection.
    pub async fn write_zeroes(&self, offset: u64, length: u64, how: Zeroes) -> Result<(), Error> {
        self.pick().write_zeroes(offset, length, how).await
    }

    /// [`Client::trim`] on the least busy connection.
    pub async fn trim(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.pick().trim(offset, length).await
    }

    /// Returns when everything that was acknowledged on any connection is durable: with more than one, the server
    /// promised that a flush on one is enough (`NBD_FLAG_CAN_MULTI_CONN`).
    pub async fn flush(&self) -> Result<(), Error> {
        self.pick().flush().await
    }

    /// [`Client::extents`] on the least busy connection.
    pub async fn extents(&self, offset: u64, length: u64) -> Result<Extents, Error> {
        self.pick().extents(offset, length).await
    }

    /// [`Client::disconnect`] on all; the first error, after all have ended.
    pub async fn disconnect(self) -> Result<(), Error> {
        let mut end = self.first.disconnect().await;
        for client in self.more {
            end = end.and(client.disconnect().await);
        }
        end
    }
}
