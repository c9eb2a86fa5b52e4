//! The machine of a two-phase job: made, given its disks and NICs, each once. An edge; what it is to be is
//! [`super::hardware`]'s.

use reqwest::Method;
use serde_json::{Value, json};

use super::answer::{list, text};
use super::attachments::{self, attachment};
use super::client::{Engine, LONG, Wait};
use super::create::{self, New, create, marked};
use super::disks::description;
use super::{OvirtError, Prepared, hardware};
use crate::destination::{DestinationError, Machine, Work};
use crate::event::Event;
use crate::http::encoded;
use crate::things::{Kind, Side};

/// Makes it; gives its id.
pub async fn publish(
    prepared: &Prepared,
    machine: &Machine<'_>,
    disks: &[String],
    work: &mut Work<'_>,
) -> Result<String, DestinationError> {
    let engine = &prepared.engine;
    work.waits_for(Some("the new machine"));
    let id = make(prepared, machine, work).await?;
    let path = format!("vms/{}", encoded(&id));
    let wait = engine.wait(LONG);
    let ready = async || {
        let found = engine.get("cannot look at the new machine", &path).await?;
        let locked = text(&found, "status").is_some_and(|status| status.eq_ignore_ascii_case("image_locked"));
        Ok((!locked).then_some(()))
    };
    let slow = || OvirtError::Slow { what: "Create VM failed".to_owned(), seconds: LONG.as_secs() };
    wait.until(ready).await?.ok_or_else(slow)?;
    let interface = hardware::interface(machine.guest, machine.drivers);
    for (index, disk) in disks.iter().enumerate() {
        give(engine, &id, index, disk, interface, &wait).await?;
    }
    give_nics(prepared, machine, &path, &wait, work).await?;
    work.waits_for(None);
    Ok(id)
}

async fn make(
    prepared: &Prepared,
    machine: &Machine<'_>,
    work: &mut Work<'_>,
) -> Result<String, DestinationError> {
    let Machine { plan, guest, drivers, .. } = machine;
    let what = "Create VM failed";
    let engine = &prepared.engine;
    let mark = format!("{}-machine", work.job.files.tag);
    let os = known_os(engine, hardware::os(drivers)).await;
    let name = plan.vm_name.as_str();
    let description = description(plan, &mark);
    let cluster = (prepared.cluster_name.as_str(), &prepared.cluster);
    let body = hardware::machine(guest, drivers, (name, &description), cluster, os.as_deref());
    work.records.making(Side::Destination, Kind::Machine, &mark, name)?;
    let make = async |body: &Value, name: &str| {
        let find = async || marked(engine, ("vms", "vm"), name, &mark).await;
        create(engine, New { what, path: "vms", body }, &engine.wait(LONG), find).await
    };
    let made = match make(&body, name).await {
        // Known only now, and no reason to lose the copies: the source's names may hold anything, an engine's do not.
        Err(error) if error.is_about_characters() && hardware::plain(name) != name => {
            let plain = hardware::plain(name);
            let text = format!("the engine does not take the name \"{name}\": the VM is called {plain}");
            tracing::warn!("{text}: {}", crate::log::chain(&error));
            work.tell(Event::Warning { text });
            let mut body = body;
            body["name"] = plain.as_str().into();
            make(&body, &plain).await?
        }
        made => made?,
    };
    let id = create::id(what, &made)?;
    work.records.made(&mark, &id)?;
    Ok(id)
}

/// The engine's own spelling of the system's name; none where it does not list it, because it would refuse the machine.
async fn known_os(engine: &Engine, wanted: Option<String>) -> Option<String> {
    let wanted = wanted?;
    // Without it the machine runs all the same, and all that it is made of is there.
    let answer = match engine.get("cannot look up the operating systems", "operatingsystems").await {
        Ok(answer) => Some(answer),
        Err(error) => {
            tracing::warn!("{}: the new VM has no type of operating system", crate::log::chain(&error));
            None
        }
    };
    let systems = answer.as_ref().and_then(|answer| list(answer, "operating_system")).unwrap_or_default();
    let mut names = systems.iter().filter_map(|system| text(system, "name"));
    names.find(|name| name.eq_ignore_ascii_case(&wanted)).map(str::to_owned)
}

/// Gives the machine a disk, which from then on is its alone (contract.md 6.6).
async fn give(
    engine: &Engine,
    machine: &str,
    index: usize,
    disk: &str,
    interface: &str,
    wait: &Wait,
) -> Result<(), OvirtError> {
    let what = format!("Attach disk {} to the new VM failed", index + 1);
    let body = attachment(disk, interface, index == 0);
    let new = New { what: &what, path: &attachments::collection(machine), body: &body };
    let made =
        create(engine, new, wait, async || attachments::find(engine, &what, machine, disk).await).await?;
    let path = attachments::path(machine, text(&made, "id").unwrap_or(disk));
    let what = format!("Make disk {} not shareable failed", index + 1);
    let own = json!({"disk": {"id": disk, "shareable": false}});
    engine.patiently(&what, Method::PUT, &path, Some(&own), wait).await.map(drop)
}

async fn give_nics(
    prepared: &Prepared,
    machine: &Machine<'_>,
    path: &str,
    wait: &Wait,
    work: &Work<'_>,
) -> Result<(), OvirtError> {
    let engine = &prepared.engine;
    let nics = hardware::nics(machine.guest, machine.drivers, &machine.plan.network_mappings);
    let networks = prepared.networks.as_ref();
    let collection = format!("{path}/nics");
    for nic in nics {
        let profile = nic.destination.and_then(|name| networks?.profile(name));
        let mut body = nic.body;
        match (profile, nic.destination) {
            (Some(profile), _) => body["vnic_profile"] = json!({"id": profile}),
            (None, given) => {
                let why = given.map_or_else(
                    || "network_mappings does not say where it goes".to_owned(),
                    |name| format!("no vNIC profile is known for {name}"),
                );
                let text = format!("{} of the new machine has no network: {why}", nic.label);
                tracing::warn!("{text}");
                work.tell(Event::Warning { text });
            }
        }
        let what = format!("Create {} failed", nic.label);
        let name = body["name"].as_str().unwrap_or_default().to_owned();
        let find = async || {
            let answer = engine.get(&what, &collection).await?;
            let found = list(&answer, "nic").unwrap_or_default();
            Ok(found.iter().find(|nic| text(nic, "name") == Some(&name)).cloned())
        };
        let find = async || -> Result<Option<Value>, OvirtError> { find().await };
        create(engine, New { what: &what, path: &collection, body: &body }, wait, find).await?;
    }
    Ok(())
}
