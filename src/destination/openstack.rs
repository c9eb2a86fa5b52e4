//! OpenStack. virt-v2v makes volumes; a server is then made from them through the API.

use super::{Destination, DestinationError, Work};
use crate::plan::Plan;
use crate::records::Records;
use crate::state::State;
use crate::things::Thing;

/// What went wrong at an OpenStack.
#[derive(Debug, thiserror::Error)]
pub enum OpenstackError {
    /// This version cannot do it; nothing was begun.
    #[error(
        "OpenStack: this version cannot create the server from the converted volumes yet, so nothing was begun"
    )]
    NotYet,
}

/// `osp_environment`.
#[derive(Debug)]
pub struct Openstack;

/// A session with a cloud, and what was looked up there.
#[derive(Debug)]
pub struct Session {}

impl Destination for Openstack {
    type Handle = Session;

    async fn prepare(&self, _work: &mut Work<'_>) -> Result<Session, DestinationError> {
        Err(OpenstackError::NotYet.into())
    }

    async fn finalize(
        &self,
        _session: Session,
        _state: &State,
        _work: &mut Work<'_>,
    ) -> Result<Option<String>, DestinationError> {
        Ok(None)
    }

    async fn abandon(&self, _session: Session) {}
}

/// See [`super::undo`].
pub async fn undo(_plan: &Plan, _things: &[Thing], _records: &mut Records) -> Vec<String> {
    Vec::new()
}
