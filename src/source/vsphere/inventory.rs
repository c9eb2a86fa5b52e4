//! Looking machines up: by name over the whole inventory, by id, or by path. Called by `super`.
//!
//! Names are compared exactly (contract.md 6.1), in the form vSphere stores them (`%2f` for `/`); where none is equal, as
//! people see them. In a path a `/` of a name is written `%2f` in either form.

use super::client::Client;
use super::error::ClientError;
use super::machine::{self, Inventory, MachineError, Names};
use super::properties::{Object, Of};
use super::soap::{Call, Element, Reference};

/// Levels of folders.
const MOST_LEVELS: usize = 64;
/// Candidates that are named.
const MOST_NAMED: usize = 5;

/// Which machine is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which<'a> {
    /// The one of this name.
    Name(&'a str),
    /// The one with this id, e.g. `vm-62`.
    Moref(&'a str),
    /// The one at `/datacenter/vm/folder/name`.
    Path(&'a str),
}

/// A machine is not found, or not told about.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What it told.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// No such name. Begins with the contract's words.
    #[error("No VM with name \"{name}\" among the {seen} that {user} may see at {url}")]
    NoName {
        /// The name.
        name: String,
        /// How many others there are.
        seen: usize,
        /// Whose view it is.
        user: String,
        /// Where.
        url: String,
    },
    /// Too many. Begins with the contract's words.
    #[error(
        "VM name \"{name}\" is not unique: {}; say which one is meant with vmware_moref or \
         vmware_inventory_path",
        candidates.join(", ")
    )]
    NotUnique {
        /// The name.
        name: String,
        /// `vm-62 in /DC0/vm`.
        candidates: Vec<String>,
    },
    /// Nothing at that path.
    #[error(
        "No VM at {path} that {user} may see at {url}: write vmware_inventory_path as /datacenter/vm/folder/name, with %2f \
         for a slash in a name"
    )]
    NoPath {
        /// The path.
        path: String,
        /// Whose view it is.
        user: String,
        /// Where.
        url: String,
    },
    /// Something else at that path.
    #[error("{path} at {url} is no VM but a {kind} ({moref})")]
    NoMachine {
        /// The path.
        path: String,
        /// Where.
        url: String,
        /// What it is.
        kind: String,
        /// Its id.
        moref: String,
    },
    /// No such id.
    #[error("No VM with id {moref} at {url}: it was removed, or the user may not see it")]
    NoReference {
        /// The id.
        moref: String,
        /// Where.
        url: String,
    },
}

/// The machine that is meant.
pub async fn find(client: &Client, which: Which<'_>) -> Result<Inventory, InventoryError> {
    match which {
        Which::Name(name) => by_name(client, name).await,
        Which::Moref(moref) => by_reference(client, moref).await,
        Which::Path(path) => by_path(client, path).await,
    }
}

/// The machine of this name.
pub async fn by_name(client: &Client, name: &str) -> Result<Inventory, InventoryError> {
    let logins = client.logins();
    match look_up(client, name).await {
        // A view and its pages end with the session in which they were made.
        Err(InventoryError::Client(error)) if error.fault().is_some() && client.logins() != logins => {
            look_up(client, name).await
        }
        result => result,
    }
}

/// The machine with this id, e.g. `vm-62`. Its guest's name is shown as people see it, and may hold a `/`.
pub async fn by_reference(client: &Client, moref: &str) -> Result<Inventory, InventoryError> {
    describe(client, &Reference::new("VirtualMachine", moref), None).await
}

/// The machine at `/datacenter/vm/folder/name`. Its guest's name is shown as people see it, and may hold a `/`.
pub async fn by_path(client: &Client, path: &str) -> Result<Inventory, InventoryError> {
    let search = client.service().search.as_ref();
    let search = search.ok_or_else(|| client.incomplete("RetrieveServiceContent", "a search index"))?;
    let (path, url) = (path.to_owned(), client.url().to_owned());
    for written in written(&path) {
        let call = Call::new("FindByInventoryPath", search).text("inventoryPath", &written);
        // Without a result where nothing is found.
        let response = client.call(&call).await?;
        match response.child("returnval").and_then(Element::reference) {
            Some(found) if found.kind == "VirtualMachine" => return describe(client, &found, None).await,
            Some(Reference { kind, value }) => {
                return Err(InventoryError::NoMachine { path, url, kind, moref: value });
            }
            None => {}
        }
    }
    Err(InventoryError::NoPath { path, user: client.user().to_owned(), url })
}

/// A path as vSphere's own documentation writes it, without a slash before it: with the names as they were given and, if
/// that is something else, as vSphere stores what people see.
fn written(path: &str) -> Vec<String> {
    let given = path.trim_matches('/').to_owned();
    let names = given.split('/').map(|name| machine::escaped(&machine::unescaped(name)));
    let stored = names.collect::<Vec<_>>().join("/");
    if stored == given { vec![given] } else { vec![given, stored] }
}

async fn look_up(client: &Client, name: &str) -> Result<Inventory, InventoryError> {
    let machines = names(client).await?;
    let equal = |shown: &dyn Fn(&str) -> bool| -> Vec<Reference> {
        machines.iter().filter(|(_, name)| shown(name)).map(|(machine, _)| machine.clone()).collect()
    };
    let mut found = equal(&|stored| stored == name);
    if found.is_empty() {
        found = equal(&|stored| machine::unescaped(stored) == name);
    }
    match found.as_slice() {
        [one] => describe(client, one, Some(name)).await,
        [] => Err(InventoryError::NoName {
            name: name.to_owned(),
            seen: machines.len(),
            user: client.user().to_owned(),
            url: client.url().to_owned(),
        }),
        many => {
            let mut candidates = Vec::new();
            for candidate in many.iter().take(MOST_NAMED) {
                let folder = folder(client, candidate).await?;
                candidates.push(format!("{} in {folder}", candidate.value));
            }
            if many.len() > MOST_NAMED {
                candidates.push(format!("{} others", many.len() - MOST_NAMED));
            }
            Err(InventoryError::NotUnique { name: name.to_owned(), candidates })
        }
    }
}

/// Every machine with its name.
async fn names(client: &Client) -> Result<Vec<(Reference, String)>, ClientError> {
    let service = client.service();
    let create = Call::new("CreateContainerView", &service.views)
        .reference("container", &service.root)
        .text("type", "VirtualMachine")
        .text("recursive", "true");
    let view = client.value(&create).await?.reference();
    let view = view.ok_or_else(|| client.incomplete(create.method(), "a view"))?;
    let objects = client.properties(Of::View(&view), &[("VirtualMachine", &["name"])]).await;
    // It would live as long as the session.
    if let Err(error) = client.call(&Call::new("DestroyView", &view)).await {
        tracing::debug!("a view is left to the session's end: {error}");
    }
    let name = |object: Object| Some((object.reference.clone(), object.text("name")?.to_owned()));
    Ok(objects?.into_iter().filter_map(name).collect())
}

async fn describe(
    client: &Client,
    machine: &Reference,
    name: Option<&str>,
) -> Result<Inventory, InventoryError> {
    let missing =
        || InventoryError::NoReference { moref: machine.value.clone(), url: client.url().to_owned() };
    let machines = [machine.clone()];
    let objects = match client.properties(Of::Objects(&machines), &[(&machine.kind, machine::WANTED)]).await {
        Err(error) if error.fault().is_some_and(|fault| fault.kind == "ManagedObjectNotFound") => {
            return Err(missing());
        }
        objects => objects?,
    };
    let object = objects.into_iter().find(|object| object.reference.value == machine.value);
    let object = object.ok_or_else(missing)?;
    let name = match name {
        Some(name) => name.to_owned(),
        None => machine::unescaped(object.text("name").unwrap_or(&machine.value)),
    };
    let names = referred(client, &object).await?;
    Ok(machine::machine(&object, &name, &names)?)
}

/// What the machine's properties refer to by id. What the user may not see stays an id.
async fn referred(client: &Client, machine: &Object) -> Result<Names, ClientError> {
    let mut names = Names::default();
    let references = machine::referred(machine);
    if references.is_empty() {
        return Ok(names);
    }
    let wanted: [(&str, &[&str]); 3] = [
        ("Datastore", &["summary.url"]),
        ("DistributedVirtualPortgroup", &["name", "key"]),
        ("OpaqueNetwork", &["name", "summary"]),
    ];
    // Plain networks stand in the machine's own properties by name.
    let asked: Vec<Reference> = references
        .into_iter()
        .filter(|reference| wanted.iter().any(|(kind, _)| *kind == reference.kind))
        .collect();
    if asked.is_empty() {
        return Ok(names);
    }
    for object in client.properties(Of::Objects(&asked), &wanted).await? {
        let id = object.reference.value.clone();
        if let Some(url) = object.text("summary.url") {
            names.datastores.insert(id.clone(), url.to_owned());
        }
        let opaque = object.get("summary").and_then(|summary| summary.text_of("opaqueNetworkId"));
        let key = object.text("key").or(opaque).unwrap_or(&id).to_owned();
        if let Some(name) = object.text("name") {
            names.networks.insert(key, machine::unescaped(name));
        }
    }
    Ok(names)
}

/// `/DC0/vm/folder` of a machine.
async fn folder(client: &Client, machine: &Reference) -> Result<String, ClientError> {
    let mut parts = Vec::new();
    let mut at = machine.clone();
    for _ in 0..MOST_LEVELS {
        let paths: &[&str] = match at.kind.as_str() {
            "VirtualMachine" => &["name", "parent", "parentVApp"],
            _ => &["name", "parent"],
        };
        let one = [at.clone()];
        let objects = client.properties(Of::Objects(&one), &[(&at.kind, paths)]).await?;
        let Some(object) = objects.first() else { break };
        let parent = ["parentVApp", "parent"].into_iter().find_map(|path| object.get(path)?.reference());
        let Some(parent) = parent else { break };
        if at != *machine {
            parts.push(machine::unescaped(object.text("name").unwrap_or(&at.value)));
        }
        at = parent;
    }
    // The root folder, which has no parent, is the slash.
    Ok(parts.iter().rev().fold(String::new(), |path, part| format!("{path}/{part}")))
        .map(|path| if path.is_empty() { "/".to_owned() } else { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it is stored first: a name may hold what looks like an escape.
    #[test]
    fn a_path_is_asked_for_as_stored_and_as_seen() {
        for (path, asked) in [
            ("/DC0/vm/web", &["DC0/vm/web"][..]),
            ("DC0/vm/web/", &["DC0/vm/web"]),
            ("/DC0/vm/a%2fb/50% \\", &["DC0/vm/a%2fb/50% \\", "DC0/vm/a%2fb/50%25 %5c"]),
            ("/DC0/vm/a%2Fb", &["DC0/vm/a%2Fb", "DC0/vm/a%2fb"]),
            ("/DC0/vm/50%25", &["DC0/vm/50%25"]),
        ] {
            assert_eq!(written(path), asked, "{path}");
        }
    }
}
