//! oVirt/RHV.

use super::{Destination, DestinationError, Work};
use crate::plan::Plan;
use crate::records::Records;
use crate::state::State;
use crate::things::Thing;

/// What went wrong at an engine.
#[derive(Debug, thiserror::Error)]
pub enum OvirtError {}

/// `rhv_url` or `export_domain`.
#[derive(Debug)]
pub struct Ovirt;

/// A session with an engine, and what was looked up there.
#[derive(Debug)]
pub struct Session {}

impl Session {
    /// See [`super::Handle::allocation`].
    pub fn allocation(&self) -> Option<&str> {
        None
    }
}

impl Destination for Ovirt {
    type Handle = Session;

    async fn prepare(&self, _work: &mut Work<'_>) -> Result<Session, DestinationError> {
        Ok(Session {})
    }

    async fn finalize(
        &self,
        _session: Session,
        state: &State,
        _work: &mut Work<'_>,
    ) -> Result<Option<String>, DestinationError> {
        Ok(state.vm_id.clone())
    }

    async fn abandon(&self, _session: Session) {}
}

/// See [`super::undo`].
pub async fn undo(_plan: &Plan, _things: &[Thing], _records: &mut Records) -> Vec<String> {
    Vec::new()
}
