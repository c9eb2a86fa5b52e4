//! The conversion pod of KubeVirt: virt-v2v writes into the pod's own volumes.

use super::{Destination, DestinationError, Work};
use crate::state::State;

/// What went wrong with the pod.
#[derive(Debug, thiserror::Error)]
pub enum KubevirtError {}

/// `data/vm` of the working directory.
#[derive(Debug)]
pub struct Kubevirt;

/// What is known of the pod.
#[derive(Debug)]
pub struct Pod {}

impl Destination for Kubevirt {
    type Handle = Pod;

    async fn prepare(&self, _work: &mut Work<'_>) -> Result<Pod, DestinationError> {
        Ok(Pod {})
    }

    async fn finalize(
        &self,
        _pod: Pod,
        _state: &State,
        _work: &mut Work<'_>,
    ) -> Result<Option<String>, DestinationError> {
        Ok(None)
    }

    async fn abandon(&self, _pod: Pod) {}
}
