//! What is looked up at an engine before anything is made there: the name of the guest, cluster, storage domain, conversion
//! host.
//!
//! Names are searched for and then compared: a search may find more ([`super::answer::search`]). An engine that does not know a
//! collection, or answers in another shape, tells nothing, which is a warning; what it positively says counts.

use std::time::Duration;

use serde_json::Value;

use super::OvirtError;
use super::answer::{id_of, is_odd, list, number, search, text};
use super::client::Engine;
use super::terms::Terms;
use crate::destination::Work;
use crate::event::Event;
use crate::http::encoded;

/// Types of storage on which disks are preallocated (contract.md 1.4).
const PREALLOCATED: [&str; 5] = ["cinder", "fcp", "glusterfs", "iscsi", "posixfs"];

/// Of a machine that runs already. Without a guest agent an engine takes a minute to believe it.
const ALMOST_UP: [&str; 4] = ["migrating", "powering_up", "reboot_in_progress", "wait_for_launch"];
/// How long that is waited for.
const BOOT: Duration = Duration::from_secs(90);

/// `rhv_cluster`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Where the engine told it.
    pub id: Option<String>,
    /// Id of its data center.
    pub data_center: Option<String>,
    /// Its processors are of this kind, e.g. `x86_64`.
    pub architecture: Option<String>,
}

/// `rhv_storage`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Storage {
    /// Where the engine told it.
    pub id: Option<String>,
    /// What its type means for disks.
    pub allocation: Option<&'static str>,
    /// Free bytes.
    pub available: Option<u64>,
    /// Ids of the data centers it belongs to.
    pub data_centers: Vec<String>,
}

/// Everything of this name in a collection; `None`: the engine does not tell. `small` collections are asked for whole before
/// something counts as missing.
pub async fn named(
    engine: &Engine,
    what: &str,
    collection: &str,
    key: &str,
    name: &str,
    small: bool,
) -> Result<Option<Vec<Value>>, OvirtError> {
    let exact = |answer: Option<Value>, nameless: bool| -> Option<Vec<Value>> {
        let answer = answer?;
        let is_meant = |thing: &&Value| text(thing, "name").map_or(nameless, |its| its == name);
        Some(list(&answer, key)?.iter().filter(is_meant).cloned().collect())
    };
    let searched = format!("{collection}?search={}", encoded(&search(name)));
    // What was found by its name need not repeat it.
    match exact(engine.optional(what, &searched).await?, true) {
        Some(found) if !found.is_empty() || !(small || is_odd(name)) => Ok(Some(found)),
        // Not found, or a search that the engine does not understand.
        searched => Ok(exact(engine.optional(what, collection).await?, false).or(searched)),
    }
}

fn warn(work: &Work<'_>, text: String) {
    tracing::warn!("{text}");
    work.tell(Event::Warning { text });
}

/// The name must be free.
pub async fn name_is_free(engine: &Engine, work: &Work<'_>) -> Result<(), OvirtError> {
    let name = &work.job.plan.vm_name;
    match named(engine, "cannot look whether the name is taken", "vms", "vm", name, false).await? {
        Some(found) if !found.is_empty() => Err(OvirtError::Exists { name: name.clone() }),
        Some(_) => Ok(()),
        None => {
            warn(work, format!("the engine does not tell whether there is a VM with the name \"{name}\""));
            Ok(())
        }
    }
}

/// The cluster must be there.
pub async fn cluster(engine: &Engine, terms: &Terms<'_>, work: &Work<'_>) -> Result<Cluster, OvirtError> {
    let name = terms.cluster;
    let Some(found) = named(engine, "cannot look up the cluster", "clusters", "cluster", name, true).await?
    else {
        warn(work, format!("rhv_cluster: the engine does not tell whether there is a cluster \"{name}\""));
        return Ok(Cluster::default());
    };
    let Some(found) = found.first() else {
        let error = OvirtError::NoCluster { name: name.to_owned(), url: engine.url().to_owned() };
        // Every engine has one: it does not show them to us. virt-v2v says the same before it copies, this program would say
        // it after.
        if work.job.plan.two_phase.is_none() && shows_none(engine, "clusters", "cluster").await? {
            warn(work, error.to_string());
            return Ok(Cluster::default());
        }
        return Err(error);
    };
    Ok(Cluster {
        id: text(found, "id").map(str::to_owned),
        data_center: id_of(found, "data_center").map(str::to_owned),
        architecture: found.get("cpu").and_then(|cpu| text(cpu, "architecture")).map(str::to_owned),
    })
}

/// Is nothing at all in a collection?
async fn shows_none(engine: &Engine, collection: &str, key: &str) -> Result<bool, OvirtError> {
    let answer = engine.optional(&format!("cannot list the {collection}"), collection).await?;
    Ok(answer.as_ref().and_then(|answer| list(answer, key)).is_none_or(<[Value]>::is_empty))
}

/// There must be one storage domain of the name, and it must go with the cluster.
pub async fn storage(
    engine: &Engine,
    terms: &Terms<'_>,
    cluster: &Cluster,
    work: &Work<'_>,
) -> Result<Storage, OvirtError> {
    let name = terms.storage;
    let what = "cannot look up the storage domain";
    let Some(found) = named(engine, what, "storagedomains", "storage_domain", name, true).await? else {
        warn(
            work,
            format!("rhv_storage: the engine does not tell whether there is a storage domain \"{name}\""),
        );
        return Ok(Storage::default());
    };
    let [found] = found.as_slice() else {
        let error = OvirtError::Domains { count: found.len(), storage: name.to_owned() };
        // Only looked up for the allocation then, which is known (contract.md 1.4): virt-v2v judges it.
        if work.job.plan.two_phase.is_none() && work.job.plan.allocation.is_some() {
            warn(work, error.to_string());
            return Ok(Storage::default());
        }
        return Err(error);
    };
    let storage = read_storage(found);
    let apart = |center: &String| !storage.data_centers.is_empty() && !storage.data_centers.contains(center);
    if cluster.data_center.as_ref().is_some_and(apart) {
        return Err(OvirtError::Apart { storage: name.to_owned(), cluster: terms.cluster.to_owned() });
    }
    Ok(storage)
}

fn read_storage(found: &Value) -> Storage {
    let kind = found.get("storage").and_then(|storage| text(storage, "type")).map(str::to_ascii_lowercase);
    let preallocated = kind.is_some_and(|kind| PREALLOCATED.contains(&kind.as_str()));
    let centers =
        found.get("data_centers").and_then(|centers| list(centers, "data_center")).unwrap_or_default();
    Storage {
        id: text(found, "id").map(str::to_owned),
        allocation: Some(if preallocated { "preallocated" } else { "sparse" }),
        available: number(found, "available"),
        data_centers: centers.iter().filter_map(|center| text(center, "id")).map(str::to_owned).collect(),
    }
}

/// The machine that this program runs on must be there, and run.
pub async fn conversion_host(engine: &Engine, terms: &Terms<'_>) -> Result<String, OvirtError> {
    let id = terms.conversion_host.ok_or(OvirtError::NoHostGiven)?.to_owned();
    let path = format!("vms/{}", encoded(&id));
    let runs = async || {
        let found = engine.find("cannot look up the conversion host", &path).await?;
        let machine = found.ok_or_else(|| OvirtError::NoHost { id: id.clone() })?;
        let status = text(&machine, "status").map(str::to_ascii_lowercase);
        match status.as_deref() {
            None | Some("up") => Ok(Some(())),
            Some(status) if ALMOST_UP.contains(&status) => Ok(None),
            Some(_) => Err(OvirtError::HostNotUp { id: id.clone() }),
        }
    };
    engine.wait(BOOT).until(runs).await?.ok_or_else(|| OvirtError::HostNotUp { id: id.clone() })?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_type_of_the_storage_says_how_disks_are_allocated() {
        for (kind, expected) in [
            ("iscsi", "preallocated"),
            ("ISCSI", "preallocated"),
            ("Fcp", "preallocated"),
            ("cinder", "preallocated"),
            ("glusterfs", "preallocated"),
            ("posixfs", "preallocated"),
            ("nfs", "sparse"),
            ("localfs", "sparse"),
            ("something new", "sparse"),
        ] {
            let domain = json!({"id": "s", "storage": {"type": kind}, "available": "1024",
                "data_centers": {"data_center": [{"id": "dc"}]}});
            let storage = read_storage(&domain);
            assert_eq!(storage.allocation, Some(expected), "{kind}");
            assert_eq!((storage.available, storage.data_centers), (Some(1024), vec!["dc".to_owned()]));
        }
        assert_eq!(read_storage(&json!({})).allocation, Some("sparse"));
    }
}
