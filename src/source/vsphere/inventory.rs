//! Looking machines up: by name over the whole inventory, or by id. Called by `super`.
//!
//! Names are compared exactly (contract.md 6.1), in the form vSphere stores them (`%2f` for `/`); where none is equal, as
//! people see them.

use super::client::Client;
use super::error::ClientError;
use super::machine::{self, Inventory, MachineError, Names};
use super::properties::{Object, Of};
use super::soap::{Call, Reference};

/// Levels of folders.
const MOST_LEVELS: usize = 64;
/// Candidates that are named.
const MOST_NAMED: usize = 5;

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
    #[error("VM name \"{name}\" is not unique: {}; rename all but one", candidates.join(", "))]
    NotUnique {
        /// The name.
        name: String,
        /// `vm-62 in /DC0/vm`.
        candidates: Vec<String>,
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
