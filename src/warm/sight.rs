//! The machine as it is now, against the machine as it was when its copy began: the same disks, or which are others.
//!
//! Pure. A disk is known by controller, unit, key and UUID together: two controllers may have equal units, and a snapshot
//! gives every disk another file (peers.md 6.3, rows 30 and 31).

use crate::guest::Disk;

/// What a disk is called in a sentence.
fn named(disk: &Disk) -> String {
    format!("{} ({})", disk.label, disk.path)
}

fn is_same(a: &Disk, b: &Disk) -> bool {
    let place = |disk: &Disk| (disk.key, disk.bus, disk.controller, disk.unit);
    // Not every backing has one.
    let uuids = a.uuid.is_none() || b.uuid.is_none() || a.uuid == b.uuid;
    place(a) == place(b) && uuids
}

/// For each disk of `known` its index in `now`, or what is different, as a sentence part.
pub(super) fn matched(known: &[Disk], now: &[Disk]) -> Result<Vec<usize>, String> {
    let mut indices = Vec::new();
    let mut changes = Vec::new();
    for disk in known {
        let index = now.iter().position(|other| is_same(disk, other));
        match index.map(|index| (index, now[index].size)) {
            None => changes.push(format!("{} is not there any more", named(disk))),
            Some((_, size)) if size.is_some() && disk.size.is_some() && size != disk.size => {
                let bytes = |size: Option<u64>| size.unwrap_or_default();
                changes.push(format!(
                    "{} had {} bytes and has {}",
                    named(disk),
                    bytes(disk.size),
                    bytes(size)
                ));
            }
            Some((index, _)) => indices.push(index),
        }
    }
    for disk in now.iter().filter(|disk| !known.iter().any(|other| is_same(disk, other))) {
        changes.push(format!("{} is new", named(disk)));
    }
    match changes.is_empty() {
        true => Ok(indices),
        false => Err(changes.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(key: i32, controller: u32, unit: u32, size: u64) -> Disk {
        Disk {
            path: format!("[s] vm/{key}.vmdk"),
            label: format!("Hard disk {key}"),
            controller: Some(controller),
            unit: Some(unit),
            key: Some(key),
            uuid: Some(format!("uuid-{key}")),
            size: Some(size),
            ..Disk::default()
        }
    }

    /// Equal units on two controllers, other files, another order: the same disks.
    #[test]
    fn disks_are_known_by_their_place_and_key_and_not_by_file_or_order() {
        let known = [disk(2000, 0, 0, 10), disk(2001, 0, 1, 20), disk(2016, 1, 0, 30)];
        let mut now = [known[2].clone(), known[0].clone(), known[1].clone()];
        now.iter_mut().for_each(|disk| disk.path = disk.path.replace(".vmdk", "-000001.vmdk"));
        assert_eq!(matched(&known, &now), Ok(vec![1, 2, 0]));
    }

    #[test]
    fn a_disk_that_came_went_grew_or_was_replaced_is_told() {
        let known = [disk(2000, 0, 0, 10), disk(2016, 1, 0, 30)];
        let replaced = Disk { uuid: Some("other".into()), ..known[1].clone() };
        for (now, told) in [
            (vec![known[0].clone()], "Hard disk 2016 ([s] vm/2016.vmdk) is not there any more"),
            (
                vec![known[0].clone(), known[1].clone(), disk(2001, 0, 1, 5)],
                "Hard disk 2001 ([s] vm/2001.vmdk) is new",
            ),
            (
                vec![known[0].clone(), disk(2016, 1, 0, 31)],
                "Hard disk 2016 ([s] vm/2016.vmdk) had 30 bytes and has 31",
            ),
            (
                vec![known[0].clone(), replaced],
                "Hard disk 2016 ([s] vm/2016.vmdk) is not there any more; Hard disk 2016 ([s] vm/2016.vmdk) is new",
            ),
        ] {
            assert_eq!(matched(&known, &now), Err(told.to_owned()));
        }
    }
}
