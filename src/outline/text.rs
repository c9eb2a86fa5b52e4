//! The outline for people: short, aligned, without colours. Pure.

use std::fmt::Write;

use super::{Command, Disk, Guest, Machine, Mode, Nic, Outline, Room};
use crate::json::one_line;

/// Characters of a name that came from elsewhere.
const LONGEST_NAME: usize = 200;
/// Characters of a line: texts repeat names from elsewhere, which may hold anything.
const LONGEST_LINE: usize = 16_000;
/// The column of what a heading is about.
const INDENT: usize = 13;

/// All of it, each line ended.
pub fn render(outline: &Outline) -> String {
    let mut out = String::new();
    let mode = match outline.mode {
        Some(Mode::OnePhase) => "one-phase",
        Some(Mode::TwoPhase) => "two-phase",
        Some(Mode::Warm) => "warm",
        None => return out,
    };
    let verdict = if outline.would_run { "would run" } else { "would be refused" };
    heading(&mut out, "Job", &[format!("{mode}, {verdict}")]);
    heading(&mut out, "From", &shown(&outline.source));
    heading(&mut out, "To", &shown(&outline.destination));
    if let Some(guest) = &outline.guest {
        self::guest(&mut out, guest);
    }
    if let Some(machine) = &outline.machine {
        heading(&mut out, "Machine", &self::machine(machine));
    }
    if let Some(room) = &outline.room {
        heading(&mut out, "Room", &self::room(room));
    }
    for (number, stage) in outline.stages.iter().enumerate() {
        heading(&mut out, &format!("{}. {}", number + 1, stage.name), &stage.does);
        stage.commands.iter().for_each(|command| line(&mut out, &format!("$ {}", quoted(command))));
    }
    let effects = outline.effects.iter().map(|effect| {
        let name = one_line(&effect.name, LONGEST_NAME);
        format!("{} {name}: {}", effect.what, effect.then)
    });
    heading(&mut out, "Makes", &effects.collect::<Vec<_>>());
    heading(&mut out, "Warnings", &outline.warnings);
    out
}

fn shown(text: &Option<String>) -> Vec<String> {
    text.iter().map(|text| one_line(text, 1000)).collect()
}

/// The first line beside the heading, the others below.
fn heading(out: &mut String, heading: &str, lines: &[String]) {
    for (number, text) in lines.iter().enumerate() {
        let heading = if number == 0 { heading } else { "" };
        // Into a String, which takes everything.
        let _ = writeln!(out, "{heading:INDENT$}{}", one_line(text, LONGEST_LINE));
    }
}

fn line(out: &mut String, text: &str) {
    heading(out, "", &[text.to_owned()]);
}

fn guest(out: &mut String, guest: &Guest) {
    let os = guest.os.as_deref().map(|os| format!(", {}", one_line(os, LONGEST_NAME))).unwrap_or_default();
    let firmware = match guest.firmware.as_str() {
        "bios" => "BIOS",
        "efi" => "UEFI",
        "efi, secure boot" => "UEFI with secure boot",
        _ => "firmware unknown",
    };
    let text = format!(
        "{}, {firmware}, {} {}, {}{os}",
        one_line(&guest.name, LONGEST_NAME),
        guest.cpus,
        if guest.cpus == 1 { "CPU" } else { "CPUs" },
        size(guest.memory_bytes)
    );
    heading(out, "Guest", &[text]);
    columns(out, "Disks", &guest.disks.iter().map(disk).collect::<Vec<_>>());
    reasons(out, &guest.disks);
    columns(out, "NICs", &guest.nics.iter().map(nic).collect::<Vec<_>>());
}

/// Why disks cannot be copied warm; what is true of several is said once.
fn reasons(out: &mut String, disks: &[Disk]) {
    let reason = |disk: &Disk| disk.verdict.as_ref().and_then(|verdict| verdict.reason.clone());
    let mut told: Vec<String> = Vec::new();
    for why in disks.iter().filter_map(reason) {
        if told.contains(&why) {
            continue;
        }
        let alike = disks.iter().filter(|disk| reason(disk).as_ref() == Some(&why));
        let labels: Vec<&str> = alike.map(|disk| disk.label.as_str()).collect();
        line(out, &format!("{}: {why}", labels.join(", ")));
        told.push(why);
    }
}

fn disk(disk: &Disk) -> Vec<String> {
    let verdict = disk.verdict.as_ref().map(|verdict| match verdict.how.as_str() {
        "cold" => "cold only".to_owned(),
        how => how.to_owned(),
    });
    [one_line(&disk.label, LONGEST_NAME), disk.controller.clone()]
        .into_iter()
        .chain([disk.size_bytes.map_or_else(|| "size unknown".to_owned(), size)])
        .chain(verdict)
        .chain([one_line(&disk.path, 1000)])
        .chain(disk.copy.as_ref().map(|copy| format!("-> {}", copy.display())))
        .collect()
}

fn nic(nic: &Nic) -> Vec<String> {
    let or = |text: &Option<String>, other: &str| one_line(text.as_deref().unwrap_or(other), LONGEST_NAME);
    let network = match &nic.becomes {
        Some(becomes) => format!("{} -> {}", or(&nic.network, "no network"), one_line(becomes, LONGEST_NAME)),
        None => or(&nic.network, "no network"),
    };
    vec![or(&nic.mac, "no address"), or(&nic.model, ""), network]
}

/// Rows whose columns begin below each other; the last one is as long as it is.
fn columns(out: &mut String, title: &str, rows: &[Vec<String>]) {
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells = row.iter().enumerate().map(|(at, cell)| {
                let width = width(at).filter(|_| at + 1 < row.len()).unwrap_or_default();
                format!("{cell:width$}")
            });
            cells.filter(|cell| !cell.is_empty()).collect::<Vec<_>>().join("  ")
        })
        .collect();
    heading(out, title, &lines);
}

fn machine(machine: &Machine) -> Vec<String> {
    let tools = machine.tools.as_deref().unwrap_or("tools unknown");
    let version = machine.hardware_version.as_deref().unwrap_or("hardware version unknown");
    let tracking = if machine.change_tracking { "on" } else { "off" };
    let mut lines =
        vec![format!("{}, {}, {tools}, {version}, change tracking {tracking}", machine.moref, machine.power)];
    lines.extend(machine.snapshots.iter().map(|name| format!("snapshot {}", one_line(name, LONGEST_NAME))));
    lines
}

fn room(room: &Room) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(room.disks_bytes.map(|bytes| format!("disks: {}", size(bytes))));
    if let (Some(directory), Some(free), Some(worst)) =
        (&room.directory, room.free_bytes, room.worst_case_bytes)
    {
        let enough = if room.is_enough == Some(true) { "enough" } else { "not enough" };
        let (free, worst) = (size(free), size(worst));
        lines.push(format!("{}: {free} free, at most {worst} needed: {enough}", directory.display()));
    }
    let free = room.tmp_free_bytes.map(size);
    lines.extend(free.map(|free| format!("{}: {free} free for the conversion", room.tmp_dir.display())));
    lines
}

/// For a shell: words that need no quotes have none.
fn quoted(command: &Command) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_./:=,+@%".contains(character);
    let words = command.argv.iter().map(|word| match !word.is_empty() && word.chars().all(plain) {
        true => word.clone(),
        false => format!("'{}'", one_line(word, 4000).replace('\'', "'\\''")),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// In the largest unit that leaves a number before the point.
fn size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64),
        None => format!("{bytes} bytes"),
    }
}
