//! The same requests to the fake and to the real services: same statuses, same keys. So a test that passes on the fake says
//! something of the real ones. Longer than others: a table, a request a line.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::fake::{Fake, USER};
use super::http::{Answer, ask};
use super::lab::{LIMIT, Lab, PASSWORD, Service, lab};
use crate::rig::poll;

/// One of the two, with the names of things in it.
struct Side<'a> {
    fake: Option<&'a Fake>,
    lab: Option<&'a Lab>,
    names: BTreeMap<String, String>,
}

/// Objects whose keys are data, or are not looked at by anybody.
const OPEN: [&str; 9] = [
    "links",
    "metadata",
    "volume_image_metadata",
    "addresses",
    "media-types",
    "catalog",
    "roles",
    "rate",
    "flavor",
];

/// The paths of all keys, arrays by their first entry.
fn keys(value: &Value, path: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = format!("{path}.{key}");
                if !OPEN.contains(&key.as_str()) {
                    keys(value, &path, into);
                }
                into.insert(path);
            }
        }
        Value::Array(items) => items.first().into_iter().for_each(|item| keys(item, path, into)),
        _ => {}
    }
}

impl Side<'_> {
    fn fill(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, value) in &self.names {
            text = text.replace(&format!("<{name}>"), value);
        }
        text
    }

    fn url(&self, service: Service, project: &str) -> String {
        let Some(fake) = self.fake else { return self.lab.unwrap().url(service, project) };
        let path = match service {
            Service::Identity => "/v3".to_owned(),
            Service::Volume => format!("/volume/v3/{}", self.names[project]),
            Service::Compute => "/compute/v2.1".to_owned(),
            Service::Network => "/network/v2.0".to_owned(),
            Service::Image => unreachable!("the fake has no images"),
        };
        format!("{}{path}", fake.url())
    }

    fn ask(
        &self,
        token: &str,
        method: &str,
        project: &str,
        service: Service,
        path: &str,
        body: &str,
    ) -> Answer {
        // Behind `@`: the microversion of nova.
        let (path, version) = path.split_once('@').unwrap_or((path, "2.1"));
        let url = self.fill(&format!("{}{path}", self.url(service, project)));
        let body = self.fill(body);
        let token = self.names.get(token).map_or(token, String::as_str);
        let version = format!("compute {version}");
        let headers = [("X-Auth-Token", token), ("OpenStack-API-Version", version.as_str())];
        let headers = &headers[..if service == Compute { 2 } else { 1 }];
        ask(method, &url, headers, (!body.is_empty()).then_some(body.as_bytes())).unwrap()
    }
}

use Service::{Compute, Identity, Network, Volume};

/// Method, project (its token is `<name>-token`), service, path, body, what of the answer is remembered as what.
type Line = (&'static str, &'static str, Service, &'static str, Value, Option<(&'static str, &'static str)>);

fn lines() -> Vec<Line> {
    let none = Value::Null;
    let nobody = "00000000-0000-0000-0000-000000000000";
    let disk = |id: &str| {
        json!([{"boot_index": 0, "uuid": id, "source_type": "volume", "destination_type": "volume",
            "delete_on_termination": false}])
    };
    let server = |flavor: &str, volume: &str, port: &str| {
        json!({"server": {"name": "it's *", "flavorRef": flavor, "metadata": {"a": "b"}, "min_count": 1, "max_count": 1,
            "block_device_mapping_v2": disk(volume), "networks": [{"port": port}]}})
    };
    let port = |more: Value| {
        let mut port = json!({"name": "honest", "network_id": "<net>", "description": "d"});
        port.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"port": port})
    };
    let offer = json!({"transfer": {"volume_id": "<v>", "name": "m"}});
    let accept = json!({"accept": {"auth_key": "<key>"}});
    let attach = json!({"volumeAttachment": {"volumeId": "<w>"}});
    let manner = json!({"volumeAttachment": {"volumeId": "<w>", "delete_on_termination": true}});
    vec![
        ("GET", "p", Volume, "/volumes/x", none.clone(), None),
        (
            "POST",
            "dest",
            Volume,
            "/volumes",
            json!({"volume": {"name": "a 'b' *", "size": 1, "description": "d",
            "metadata": {"k": "v"}}}),
            Some(("w", "/volume/id")),
        ),
        (
            "POST",
            "p",
            Volume,
            "/volumes",
            json!({"volume": {"name": "v", "size": 1, "volume_type": "no such type"}}),
            None,
        ),
        (
            "POST",
            "p",
            Volume,
            "/volumes",
            json!({"volume": {"name": "v", "size": 1, "description": "d"}}),
            Some(("v", "/volume/id")),
        ),
        ("WAIT", "p", Volume, "/volumes/<v>", json!(["/volume/status", "available"]), None),
        ("WAIT", "dest", Volume, "/volumes/<w>", json!(["/volume/status", "available"]), None),
        ("GET", "p", Volume, "/volumes", none.clone(), None),
        ("GET", "p", Volume, "/volumes/detail", none.clone(), None),
        ("GET", "dest", Volume, "/volumes/<v>", none.clone(), None),
        ("POST", "p", Volume, "/volumes/<v>/action", json!({"os-set_bootable": {"bootable": true}}), None),
        (
            "POST",
            "p",
            Volume,
            "/volumes/<v>/action",
            json!({"os-set_image_metadata": {"metadata": {"hw_disk_bus": "virtio"}}}),
            None,
        ),
        ("POST", "p", Volume, "/volumes/<v>/metadata", json!({"metadata": {"c": "d"}}), None),
        ("GET", "p", Volume, "/volumes/<v>", none.clone(), None),
        ("GET", "p", Volume, "/limits", none.clone(), None),
        ("GET", "p", Volume, "/types", none.clone(), None),
        ("GET", "p", Volume, "/types/nothing", none.clone(), None),
        ("POST", "p", Volume, "/os-volume-transfer", offer.clone(), Some(("t", "/transfer/id"))),
        ("POST", "p", Volume, "/os-volume-transfer", offer.clone(), None),
        ("GET", "p", Volume, "/os-volume-transfer/detail", none.clone(), None),
        ("GET", "dest", Volume, "/os-volume-transfer/detail", none.clone(), None),
        ("GET", "p", Volume, "/volumes/<v>", none.clone(), None),
        ("DELETE", "p", Volume, "/volumes/<v>", none.clone(), None),
        ("DELETE", "p", Volume, "/os-volume-transfer/<t>", none.clone(), None),
        ("DELETE", "p", Volume, "/os-volume-transfer/<t>", none.clone(), None),
        ("WAIT", "p", Volume, "/volumes/<v>", json!(["/volume/status", "available"]), None),
        ("POST", "p", Volume, "/os-volume-transfer", offer.clone(), Some(("t", "/transfer/id"))),
        ("KEY", "p", Volume, "", none.clone(), Some(("key", "/transfer/auth_key"))),
        (
            "POST",
            "dest",
            Volume,
            "/os-volume-transfer/<t>/accept",
            json!({"accept": {"auth_key": "wrong"}}),
            None,
        ),
        ("POST", "dest", Volume, "/os-volume-transfer/<t>/accept", accept.clone(), None),
        ("POST", "dest", Volume, "/os-volume-transfer/<t>/accept", accept, None),
        ("GET", "p", Volume, "/volumes/<v>", none.clone(), None),
        ("DELETE", "p", Volume, "/volumes/<v>", none.clone(), None),
        ("GET", "dest", Volume, "/volumes/<v>", none.clone(), None),
        ("GET", "dest", Network, "/networks/<net>", none.clone(), None),
        ("GET", "dest", Network, "/networks/nothing", none.clone(), None),
        ("GET", "dest", Network, "/networks?name=nothing", none.clone(), None),
        ("GET", "p", Network, "/networks/<net>", none.clone(), None),
        ("GET", "dest", Network, "/subnets?network_id=<net>", none.clone(), None),
        ("GET", "dest", Network, "/security-groups/nothing", none.clone(), None),
        ("GET", "dest", Network, "/quotas/<dest>/details.json", none.clone(), None),
        (
            "POST",
            "dest",
            Network,
            "/ports",
            port(json!({"mac_address": "00:50:56:00:AA:01",
            "fixed_ips": [{"ip_address": "<ip>"}], "security_groups": ["<group>"]})),
            Some(("port", "/port/id")),
        ),
        ("POST", "dest", Network, "/ports", port(json!({"fixed_ips": [{"ip_address": "<ip>"}]})), None),
        // As it was written: only some databases of the real one take capitals for small letters.
        ("POST", "dest", Network, "/ports", port(json!({"mac_address": "00:50:56:00:AA:01"})), None),
        ("POST", "dest", Network, "/ports", port(json!({"fixed_ips": [{"ip_address": "172.16.0.1"}]})), None),
        ("POST", "dest", Network, "/ports", port(json!({"security_groups": [nobody]})), None),
        ("POST", "dest", Network, "/ports", json!({"port": {"network_id": nobody}}), None),
        ("GET", "dest", Network, "/ports/nothing", none.clone(), None),
        ("GET", "dest", Network, "/ports/<port>", none.clone(), None),
        ("GET", "dest", Network, "/ports?name=honest", none.clone(), None),
        ("GET", "dest", Compute, "/", none.clone(), None),
        ("GET", "dest", Compute, "/flavors", none.clone(), None),
        ("GET", "dest", Compute, "/flavors/<flavor>", none.clone(), None),
        ("GET", "dest", Compute, "/flavors/nothing", none.clone(), None),
        ("GET", "dest", Compute, "/limits", none.clone(), None),
        ("GET", "dest", Compute, "/servers/nothing", none.clone(), None),
        ("POST", "dest", Compute, "/servers", server("nothing", "<v>", "<port>"), None),
        ("POST", "dest", Compute, "/servers", server("<flavor>", nobody, "<port>"), None),
        ("POST", "dest", Compute, "/servers", server("<flavor>", "<w>", "<port>"), None),
        ("POST", "dest", Compute, "/servers", server("<flavor>", "<v>", nobody), None),
        ("POST", "dest", Compute, "/servers", server("<flavor>", "<v>", "<port>"), Some(("s", "/server/id"))),
        ("WAIT", "dest", Compute, "/servers/<s>", json!(["/server/status", "ACTIVE"]), None),
        ("GET", "dest", Compute, "/servers/<s>", none.clone(), None),
        ("GET", "dest", Compute, "/servers/<s>/os-instance-actions", none.clone(), None),
        ("GET", "dest", Compute, "/servers", none.clone(), None),
        ("GET", "dest", Compute, "/servers/detail", none.clone(), None),
        ("GET", "p", Compute, "/servers/<s>", none.clone(), None),
        ("GET", "dest", Network, "/ports/<port>", none.clone(), None),
        ("GET", "dest", Volume, "/volumes/<v>", none.clone(), None),
        ("POST", "dest", Volume, "/os-volume-transfer", offer, None),
        ("DELETE", "dest", Volume, "/volumes/<v>", none.clone(), None),
        ("POST", "dest", Compute, "/servers/<s>/os-volume_attachments", attach.clone(), None),
        ("WAIT", "dest", Volume, "/volumes/<w>", json!(["/volume/status", "in-use"]), None),
        ("POST", "dest", Compute, "/servers/<s>/os-volume_attachments", attach, None),
        ("GET", "dest", Compute, "/servers/<s>/os-volume_attachments", none.clone(), None),
        ("GET", "dest", Compute, "/servers/<s>/os-volume_attachments/<w>", none.clone(), None),
        ("DELETE", "dest", Compute, "/servers/<s>/os-volume_attachments/<v>", none.clone(), None),
        ("DELETE", "dest", Compute, "/servers/<s>/os-volume_attachments/<w>", none.clone(), None),
        ("WAIT", "dest", Volume, "/volumes/<w>", json!(["/volume/status", "available"]), None),
        // Nova forgets it later.
        (
            "WAIT",
            "dest",
            Compute,
            "/servers/<s>/os-volume_attachments/<w>",
            json!(["/itemNotFound/code", 404]),
            None,
        ),
        ("GET", "dest", Compute, "/servers/<s>/os-volume_attachments/<w>", none.clone(), None),
        ("POST", "dest", Compute, "/servers/<s>/os-volume_attachments", manner.clone(), None),
        ("POST", "dest", Compute, "/servers/<s>/os-volume_attachments@2.79", manner, None),
        ("WAIT", "dest", Volume, "/volumes/<w>", json!(["/volume/status", "in-use"]), None),
        ("GET", "dest", Compute, "/servers/<s>/os-volume_attachments/<w>@2.79", none.clone(), None),
        ("DELETE", "dest", Compute, "/servers/<s>/os-volume_attachments/<w>", none.clone(), None),
        ("WAIT", "dest", Volume, "/volumes/<w>", json!(["/volume/status", "available"]), None),
        (
            "WAIT",
            "dest",
            Compute,
            "/servers/<s>/os-volume_attachments/<w>",
            json!(["/itemNotFound/code", 404]),
            None,
        ),
        ("DELETE", "dest", Compute, "/servers/<s>/os-volume_attachments/<w>", none.clone(), None),
        ("DELETE", "dest", Compute, "/servers/<s>", none.clone(), None),
        ("WAIT", "dest", Volume, "/volumes/<v>", json!(["/volume/status", "available"]), None),
        // For a moment its cloud shows one that is gone.
        ("WAIT", "dest", Compute, "/servers/<s>", json!(["/itemNotFound/code", 404]), None),
        ("GET", "dest", Compute, "/servers/<s>", none.clone(), None),
        // The port was there before its server, and stays.
        ("GET", "dest", Network, "/ports/<port>", none.clone(), None),
        ("DELETE", "dest", Network, "/ports/<port>", none.clone(), None),
        ("DELETE", "dest", Network, "/ports/<port>", none.clone(), None),
        ("DELETE", "dest", Volume, "/volumes/<v>", none.clone(), None),
        ("DELETE", "dest", Volume, "/volumes/<w>", none, None),
    ]
}

#[test]
fn the_fake_answers_as_the_real_services_do() {
    let Some(lab) = lab() else { return };
    let fake = Fake::start();
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let real_names = map(&[
        ("p", "demo"),
        ("dest", lab.project("target")),
        ("net", &lab.networks["net4"]),
        ("group", &lab.group),
        ("ip", "10.9.0.77"),
        ("flavor", "m1.small"),
        ("user", "demo"),
        ("password", PASSWORD),
    ]);
    let fake_names = map(&[
        ("p", "p"),
        ("dest", "dest"),
        ("net", "net1"),
        ("group", "sg1"),
        ("ip", "10.0.0.77"),
        ("flavor", "m1"),
        ("user", USER.0),
        ("password", USER.1),
    ]);
    let mut sides = [
        Side { fake: None, lab: Some(&lab), names: real_names },
        Side { fake: Some(&fake), lab: None, names: fake_names },
    ];
    let mut wrong = Vec::new();
    let login = |user: &str, password: &str, project: &str| {
        json!({"auth": {"identity": {"methods": ["password"], "password": {"user": {"name": user,
            "domain": {"id": "default"}, "password": password}}},
            "scope": {"project": {"name": project, "domain": {"id": "default"}}}}})
        .to_string()
    };
    let mut compare = |what: String, real: &Answer, fake: &Answer| {
        let mut sets = [BTreeSet::new(), BTreeSet::new()];
        keys(&real.body, "", &mut sets[0]);
        keys(&fake.body, "", &mut sets[1]);
        if real.status != fake.status || sets[0] != sets[1] {
            let only: Vec<_> = sets[0].difference(&sets[1]).collect();
            let made_up: Vec<_> = sets[1].difference(&sets[0]).collect();
            wrong.push(format!(
                "{what}: {} and {}; only the real one has {only:?}, only the fake {made_up:?}\n  {}\n  {}",
                real.status, fake.status, real.body, fake.body
            ));
        }
    };
    for (index, project) in ["p", "dest"].into_iter().enumerate() {
        let name = [["demo", "p"], ["target", "dest"]][index];
        let answers: Vec<Answer> = (0..2)
            .map(|side: usize| {
                let this = &mut sides[side];
                let body = login(&this.names["user"], &this.names["password"], name[side]);
                let answer = this.ask("", "POST", project_of(this, project), Identity, "/auth/tokens", &body);
                this.names
                    .insert(format!("{project}-token"), answer.header("x-subject-token").unwrap().to_owned());
                answer
            })
            .collect();
        compare(format!("login in {project}"), &answers[0], &answers[1]);
    }
    for (password, project) in [("wrong", "p"), ("", "no such project")] {
        let answers: Vec<Answer> = sides
            .iter()
            .map(|side| {
                let password = if password.is_empty() { &side.names["password"] } else { password };
                let body = login(&side.names["user"], password, project);
                side.ask("", "POST", project_of(side, "p"), Identity, "/auth/tokens", &body)
            })
            .collect();
        compare(format!("login with {password:?} in {project}"), &answers[0], &answers[1]);
    }
    for service in [Volume, Compute, Network] {
        let answers: Vec<Answer> = sides
            .iter()
            .map(|side| side.ask("no-token", "GET", project_of(side, "p"), service, "/x", ""))
            .collect();
        compare(format!("{service:?} without a token"), &answers[0], &answers[1]);
    }
    let mut last = [Value::Null, Value::Null];
    for (method, project, service, path, body, remember) in lines() {
        let token = format!("{project}-token");
        let mut answers = Vec::new();
        for (side, last) in sides.iter_mut().zip(&mut last) {
            let at = project_of(side, project);
            match method {
                "WAIT" => {
                    let (pointer, wanted) = (body[0].as_str().unwrap(), &body[1]);
                    let mut shown = Value::Null;
                    let good = poll(LIMIT, || {
                        shown = side.ask(&token, "GET", at, service, path, "").body;
                        let good = shown.pointer(pointer) == Some(wanted);
                        if !good {
                            std::thread::sleep(std::time::Duration::from_millis(200));
                        }
                        good.then_some(())
                    });
                    assert!(good.is_some(), "{path} is never {wanted}: {shown:#}");
                }
                "KEY" => {}
                _ => {
                    let body = if body.is_null() { String::new() } else { body.to_string() };
                    let answer = side.ask(&token, method, at, service, path, &body);
                    *last = answer.body.clone();
                    answers.push(answer);
                }
            }
            if let Some((name, pointer)) = remember {
                let found = last.pointer(pointer).and_then(Value::as_str);
                side.names
                    .insert(name.to_owned(), found.unwrap_or_else(|| panic!("{path}: {last}")).to_owned());
            }
        }
        if let [real, fake] = answers.as_slice() {
            compare(format!("{method} {project} {service:?} {path} {body}"), real, fake);
        }
    }
    assert!(wrong.is_empty(), "{} answers differ\n\n{}", wrong.len(), wrong.join("\n"));
}

/// What the lab calls the projects; the fake has them under these names.
fn project_of<'a>(side: &Side<'_>, name: &'a str) -> &'a str {
    match (side.fake, name) {
        (None, "p") => "demo",
        (None, "dest") => "target",
        _ => name,
    }
}
