//! Quotas, asked before anything is made: the sums are pure, and a cloud that tells none has none.

use serde_json::Value;

use super::OpenstackError;
use super::prepare::says_nothing;
use crate::openstack::limits::{Limits, Quota};
use crate::openstack::{Cloud, CloudError, Service};

/// Room for one server of this flavor and its ports.
pub(super) async fn for_server(there: &Cloud, flavor: &Value, ports: usize) -> Result<(), OpenstackError> {
    let limits = told(there.limits(Service::Compute).await)?.unwrap_or_default();
    let number = |key| flavor.get(key).and_then(Value::as_u64).unwrap_or(0);
    let mut wanted = vec![
        ("servers", limits.instances(), 1),
        ("processors", limits.cores(), number("vcpus")),
        ("MiB of memory", limits.ram(), number("ram")),
    ];
    if ports > 0 {
        wanted.push(("ports", told(there.port_quota().await)?.flatten(), ports as u64));
    }
    check(there, &wanted)
}

/// Room for volumes of these sizes in GiB.
pub(super) async fn for_volumes(cloud: &Cloud, sizes: &[u64]) -> Result<(), OpenstackError> {
    if sizes.is_empty() {
        return Ok(());
    }
    let limits: Limits = told(cloud.limits(Service::Volume).await)?.unwrap_or_default();
    let all = sizes.iter().fold(0, |all: u64, size| all.saturating_add(*size));
    check(
        cloud,
        &[("volumes", limits.volumes(), sizes.len() as u64), ("GiB of volumes", limits.gigabytes(), all)],
    )
}

fn told<T>(answer: Result<T, CloudError>) -> Result<Option<T>, OpenstackError> {
    match answer {
        Ok(told) => Ok(Some(told)),
        Err(error) if says_nothing(&error) => {
            tracing::debug!("a quota is not told: {}", crate::log::chain(&error));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn check(cloud: &Cloud, wanted: &[(&'static str, Option<Quota>, u64)]) -> Result<(), OpenstackError> {
    match exceeded(wanted) {
        Some((what, Quota { most, used }, more)) => {
            Err(OpenstackError::NoRoom { project: cloud.project(), what, most, used, more })
        }
        None => Ok(()),
    }
}

/// The first quota without room for what is wanted.
fn exceeded(wanted: &[(&'static str, Option<Quota>, u64)]) -> Option<(&'static str, Quota, u64)> {
    wanted.iter().find_map(|&(what, quota, more)| {
        quota.filter(|quota| !quota.has_room_for(more)).map(|quota| (what, quota, more))
    })
}

/// Bytes in whole GiB; no volume is smaller than one.
pub(super) fn gib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 30).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_holds_the_whole_disk() {
        for (bytes, size) in
            [(0, 1), (1, 1), (1 << 30, 1), ((1 << 30) + 1, 2), (10 << 30, 10), (u64::MAX, 1 << 34)]
        {
            assert_eq!(gib(bytes), size, "{bytes}");
        }
    }

    #[test]
    fn the_first_quota_without_room_is_told() {
        let quota = |most, used| Some(Quota { most, used });
        assert_eq!(exceeded(&[("a", None, 9), ("b", quota(-1, 5), 9), ("c", quota(5, 4), 1)]), None);
        let found = exceeded(&[("a", quota(5, 4), 1), ("b", quota(5, 4), 2), ("c", quota(0, 0), 1)]);
        assert_eq!(found, Some(("b", Quota { most: 5, used: 4 }, 2)));
    }
}
