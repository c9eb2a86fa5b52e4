//! The promise of the verb `plan`: the programs that it shows are those that run, word for word, but for the tag.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::site::Site;
use crate::exports::site::{find, qemu_img};
use crate::plan::plan;

/// nbdkit, qemu-nbd and qemu-img note how they are called, and are the real ones.
fn recording(site: &mut Site) -> PathBuf {
    let ran = site.sandbox.path("ran");
    fs::create_dir_all(site.sandbox.path("path")).unwrap();
    for name in ["nbdkit", "qemu-nbd", "qemu-img"] {
        let text = format!(
            "line=$0\nfor word; do line=\"$line\t$word\"; done\nprintf '%s\\n' \"$line\" >> '{}'\nexec '{}' \"$@\"",
            ran.display(),
            find(name).unwrap().display()
        );
        let script = site.sandbox.script(name, &text);
        fs::rename(script, site.sandbox.path("path").join(name)).unwrap();
    }
    let path = std::env::var("PATH").unwrap();
    site.sandbox.env.push(("PATH".to_owned(), Some(format!("${{DIR}}/path:{path}"))));
    ran
}

/// Without the questions about formats and filters, which come before.
fn commands(ran: &str) -> Vec<Vec<String>> {
    let lines = ran.lines().map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|words| words[1] != "--dump-plugin" && words[1] != "info").collect()
}

fn domain(site: &Site) -> PathBuf {
    let path = site.sandbox.path("source/guest.xml");
    qemu_img(&site.sandbox.path("source"), "convert -f raw -O qcow2 b.img b,2.qcow2");
    let disk = |file: &str, format: &str, dev: &str| {
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{file}'/><target dev='{dev}' \
             bus='virtio'/></disk>"
        )
    };
    let disks = disk("a.img", "raw", "vda") + &disk("b,2.qcow2", "qcow2", "vdb");
    let text = format!(
        "<domain type='kvm'><name>other</name><memory unit='MiB'>700</memory><vcpu>3</vcpu><os><type>hvm</type></os><devices>\
         {disks}<interface type='bridge'><mac address='52:54:00:AA:00:01'/><source bridge='br7'/></interface></devices></domain>"
    );
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_programs_of_a_plan_are_those_that_run() {
    for xml in [true, false] {
        let Some(mut site) = Site::new("job") else { return };
        let ran = recording(&mut site);
        // The fake reads only XML of ours.
        let log = include_str!("../../fixtures/virt-v2v/2.2.0/in-place-libvirtxml-two-disks-plain/v2v.log");
        site.sandbox.scenario(&json!({"steps": [{"text": log}], "exit": 0}));
        let more = match xml {
            true => json!({"source_disks": null, "source_path": domain(&site), "output_format": "qcow2",
                           "network_mappings": [{"source": "br7", "destination": "prod"}]}),
            false => json!({"allocation": "preallocated", "output_format": "raw", "verify": "off"}),
        };
        let document = String::from_utf8(site.document(&more)).unwrap();
        // The recording ones are asked, too: what they note is no change of the job's.
        fs::write(&ran, "").unwrap();
        let quiet = site.sandbox.path("path");
        let hidden = site.sandbox.path("recording");
        fs::rename(&quiet, &hidden).unwrap();
        let unrecorded = plan(&site.sandbox, &document);
        fs::rename(&hidden, &quiet).unwrap();
        assert_eq!(unrecorded.code, Some(0), "{:?}", unrecorded.problems);
        if xml {
            let guest = &unrecorded.json["guest"];
            assert_eq!(
                (&guest["cpus"], &guest["nics"][0]["becomes"]),
                (&json!(3), &json!("prod")),
                "{guest:#}"
            );
            assert_eq!(guest["disks"][1]["size_bytes"], json!(14 << 20));
            let copies = [0, 1].map(|disk| guest["disks"][disk]["copy"].clone());
            assert_eq!(copies, [0, 1].map(|disk| json!(site.copy(disk))));
        }

        let mut job = site.start(&more);
        let last = site.end(&mut job);
        assert_eq!(last["failed"], false, "{last}");
        let mut ran = commands(&fs::read_to_string(&ran).unwrap());
        let mut in_place = vec![site.sandbox.path("bin/virt-v2v-in-place").display().to_string()];
        let record = site.sandbox.record().unwrap();
        in_place
            .extend(record["argv"].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()));
        ran.push(in_place);
        let tag = site.tag(&job);
        let mut shown = unrecorded.commands();
        for words in &mut shown {
            if let Some(name) = words[0].strip_prefix("/usr/").and_then(|program| program.rsplit('/').next())
            {
                words[0] = quiet.join(name).display().to_string();
            }
            words.iter_mut().for_each(|word| *word = word.replace("<tag>", &tag));
        }
        ran.sort();
        shown.sort();
        assert_eq!(shown, ran);
        assert_eq!(ran.len(), if xml { 2 + 4 + 2 + 1 + 2 } else { 2 + 2 + 1 + 2 }, "{ran:?}");
    }
}

/// What goes on with an earlier job makes no disk that is there.
#[test]
fn the_plan_of_a_resumed_job_has_only_what_is_left() {
    let Some(site) = Site::new("job") else { return };
    site.play_to(&[], 1);
    let mut job = site.start(&json!({}));
    let last = site.end(&mut job);
    assert_eq!(last["failed"], true);
    let tag = site.tag(&job);
    site.hide_source();
    let document = String::from_utf8(site.document(&json!({"resume": tag}))).unwrap();
    let planned = plan(&site.sandbox, &document);
    assert_eq!(planned.code, Some(0), "{:?}", planned.problems);
    let stages: Vec<&Value> =
        planned.json["stages"].as_array().unwrap().iter().map(|stage| &stage["name"]).collect();
    assert_eq!(stages, ["convert", "commit", "publish"]);
    site.assert_kept();
}
