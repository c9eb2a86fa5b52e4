//! How much more a project may have: quotas, and what of them is used.

use serde_json::Value;

use super::catalogue::Service;
use super::{Cloud, CloudError};
use crate::http::encoded;

/// One quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Most that there may be; negative: as many as one likes.
    pub most: i64,
    /// What is used, or promised to others.
    pub used: i64,
}

impl Quota {
    /// Is there room for so many more?
    pub fn has_room_for(self, more: u64) -> bool {
        self.most < 0 || i64::try_from(more).is_ok_and(|more| self.used.saturating_add(more) <= self.most)
    }
}

/// The quotas of Nova and Cinder, those that were told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    absolute: Value,
}

impl Limits {
    fn quota(&self, most: &str, used: &str) -> Option<Quota> {
        let number = |key| self.absolute.get(key).and_then(Value::as_i64);
        Some(Quota { most: number(most)?, used: number(used)? })
    }

    /// Servers.
    pub fn instances(&self) -> Option<Quota> {
        self.quota("maxTotalInstances", "totalInstancesUsed")
    }

    /// Processors.
    pub fn cores(&self) -> Option<Quota> {
        self.quota("maxTotalCores", "totalCoresUsed")
    }

    /// Memory in MiB.
    pub fn ram(&self) -> Option<Quota> {
        self.quota("maxTotalRAMSize", "totalRAMUsed")
    }

    /// Volumes.
    pub fn volumes(&self) -> Option<Quota> {
        self.quota("maxTotalVolumes", "totalVolumesUsed")
    }

    /// All volumes together, in GiB.
    pub fn gigabytes(&self) -> Option<Quota> {
        self.quota("maxTotalVolumeGigabytes", "totalGigabytesUsed")
    }
}

impl Cloud {
    /// The quotas of the project at Nova or Cinder.
    pub async fn limits(&self, service: Service) -> Result<Limits, CloudError> {
        let answer = self.get(service, "/limits").await?;
        let absolute = answer.get("limits").and_then(|limits| limits.get("absolute"));
        Ok(Limits { absolute: absolute.cloned().unwrap_or(Value::Null) })
    }

    /// The quota of ports. Older Neutrons tell it administrators only; `None`: it was not told.
    pub async fn port_quota(&self) -> Result<Option<Quota>, CloudError> {
        let path = format!("/quotas/{}/details.json", encoded(&self.project()));
        let answer = self.get(Service::Network, &path).await?;
        let number = |key: &str| answer.get("quota")?.get("port")?.get(key)?.as_i64();
        let Some(most) = number("limit") else { return Ok(None) };
        let used = number("used").unwrap_or(0) + number("reserved").unwrap_or(0);
        Ok(Some(Quota { most, used }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_quota_has_room_up_to_its_end_and_none_has_always() {
        for (most, used, more, room) in [
            (10, 8, 2, true),
            (10, 8, 3, false),
            (-1, 99, 1000, true),
            (0, 0, 1, false),
            (10, 8, u64::MAX, false),
        ] {
            assert_eq!(Quota { most, used }.has_room_for(more), room, "{most} {used} {more}");
        }
    }

    #[test]
    fn only_what_was_told_counts() {
        let absolute = json!({ "maxTotalCores": 20, "totalCoresUsed": 4, "maxTotalVolumes": 10 });
        let limits = Limits { absolute };
        assert_eq!(limits.cores(), Some(Quota { most: 20, used: 4 }));
        assert_eq!((limits.volumes(), limits.ram()), (None, None));
    }
}
