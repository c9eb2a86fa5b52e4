//! Which areas of a disk changed, asked of the scripted server: answers as hosts really give them, and worse ones.

use virt_v2v_wrapper::source::vsphere::error::ClientError;
use virt_v2v_wrapper::source::vsphere::tracking::ChangesError;

use super::lab::{Site, site};
use super::server::{Reply, Request, Server};

const MIB: u64 = 1 << 20;

/// From where a question asks.
fn offset(request: &Request) -> u64 {
    let after = request.body.split("<startOffset>").nth(1).unwrap();
    after.split('<').next().unwrap().parse().unwrap()
}

fn slice(start: u64, length: u64, areas: &[(u64, u64)]) -> Reply {
    let areas: String = areas
        .iter()
        .map(|(start, length)| {
            format!("<changedArea><start>{start}</start><length>{length}</length></changedArea>")
        })
        .collect();
    Reply::Inside(format!(
        "<returnval><startOffset>{start}</startOffset><length>{length}</length>{areas}</returnval>"
    ))
}

/// A server that answers in slices of `piece` bytes and with `most` areas, and refuses what is no offset of the disk.
fn tracked(
    site: &Site,
    size: u64,
    piece: u64,
    most: usize,
    areas: Vec<(u64, u64)>,
    over: Option<usize>,
) -> Server {
    site.serve(move |request| {
        if request.method != "QueryChangedDiskAreas" {
            return Reply::Usual;
        }
        if over == Some(request.number) {
            return Reply::Expired;
        }
        let at = offset(request);
        if at >= size {
            return Reply::Argument(
                "InvalidArgument",
                "A specified parameter was not correct: startOffset",
                "startOffset",
            );
        }
        let end = size.min(at + piece);
        let inside = areas.iter().filter_map(|(start, length)| {
            let (from, to) = ((*start).max(at), (start + length).min(end));
            (from < to).then(|| (from, to - from))
        });
        slice(at, end - at, &inside.take(most).collect::<Vec<_>>())
    })
}

async fn areas(
    site: &Site,
    server: &Server,
    snapshot: Option<&str>,
    since: &str,
    size: u64,
) -> Result<Vec<(u64, u64)>, ChangesError> {
    let vsphere = site.vsphere(server).await;
    let found = vsphere.changed_areas("vm-1042", snapshot, 2000, since, size).await;
    vsphere.close().await;
    Ok(found?.iter().map(|extent| (extent.offset, extent.length)).collect())
}

/// peers.md 6.3, rows 2, 3 and 4: 1, 2, 3 and 7 slices, with nothing in the one in the middle, and a session that ends
/// between two of them (row 19): the same areas, each slice asked for once, the end of the disk never.
#[tokio::test]
async fn slices_are_put_together() {
    let Some(site) = site() else { return };
    let size = 70 * MIB + 512;
    let changed = vec![(0, 65536), (9 * MIB, 2 * MIB), (69 * MIB, MIB), (70 * MIB, 512)];
    for count in [1, 2, 3, 7_u64] {
        let piece = size.div_ceil(count);
        for over in [None, Some(2), Some(1 + count as usize)] {
            let server = tracked(&site, size, piece, usize::MAX, changed.clone(), over);
            let found = areas(&site, &server, Some("snapshot-9"), "52 ab/3", size).await.unwrap();
            assert_eq!(found, [(0, 65536), (9 * MIB, 2 * MIB), (69 * MIB, MIB + 512)], "{count} slices");
            let asked =
                server.requests().into_iter().filter(|request| request.method == "QueryChangedDiskAreas");
            let mut asked: Vec<u64> = asked.map(|request| offset(&request)).collect();
            asked.dedup();
            assert_eq!(asked, (0..count).map(|number| number * piece).collect::<Vec<_>>());
            assert_eq!(server.count("Login"), 1 + usize::from(over.is_some()), "{count} {over:?}");
        }
    }
}

/// The order of arguments is VMware's. Without a snapshot it is left out, as 2.x asked in the last round (contract.md 6.3).
#[tokio::test]
async fn a_question_names_snapshot_disk_offset_and_change_id() {
    let Some(site) = site() else { return };
    for (snapshot, expected) in [
        (
            Some("snapshot-9"),
            "vm-1042</_this><snapshot type=\"VirtualMachineSnapshot\">snapshot-9</snapshot><deviceKey>2000</deviceKey>\
             <startOffset>0</startOffset><changeId>52 ab/3</changeId></QueryChangedDiskAreas>",
        ),
        (
            None,
            "vm-1042</_this><deviceKey>2000</deviceKey><startOffset>0</startOffset><changeId>52 ab/3</changeId>\
             </QueryChangedDiskAreas>",
        ),
    ] {
        let server = tracked(&site, MIB, MIB, 1, Vec::new(), None);
        assert_eq!(areas(&site, &server, snapshot, "52 ab/3", MIB).await.unwrap(), []);
        let asked =
            server.requests().into_iter().find(|request| request.method == "QueryChangedDiskAreas").unwrap();
        assert!(asked.body.contains(expected), "{}", asked.body);
    }
}

/// Row 2: 2000 areas and no more, in an answer that says it is about the whole disk.
#[tokio::test]
async fn more_than_2000_areas_are_all_found() {
    let Some(site) = site() else { return };
    let size = 1 << 40;
    let changed: Vec<(u64, u64)> = (0..4100).map(|area| (area * 200 * MIB, 65536)).collect();
    let server = tracked(&site, size, size, 2000, changed.clone(), None);
    assert_eq!(areas(&site, &server, None, "*", size).await.unwrap(), changed);
    assert_eq!(server.count("QueryChangedDiskAreas"), 3);
}

/// Never a list that ends early: an answer that brings nothing, or makes no sense, is an error with the numbers in it.
#[tokio::test]
async fn answers_that_do_not_get_on_are_errors() {
    let Some(site) = site() else { return };
    type Make = fn() -> Reply;
    let cases: [(Make, &str); 6] = [
        (|| slice(MIB, 0, &[]), "does not get on"),
        (|| slice(0, MIB, &[(0, MIB)]), "from byte 1048576 of 4194304 on"),
        (|| slice(2 * MIB, MIB, &[]), "makes no sense"),
        (|| Reply::Inside("<returnval/>".to_owned()), "a number is missing"),
        (
            || {
                Reply::Inside(
                    "<returnval><startOffset>1048576</startOffset><length>-5</length></returnval>".to_owned(),
                )
            },
            "in the -5 bytes",
        ),
        (
            || {
                Reply::Inside(
                    "<returnval><startOffset>1048576</startOffset><length>9</length><changedArea><start>x</start>\
                     <length>5</length></changedArea></returnval>"
                        .to_owned(),
                )
            },
            "a number is missing",
        ),
    ];
    for (reply, part) in cases {
        let server = site.serve(move |request| match request.method.as_str() {
            "QueryChangedDiskAreas" if offset(request) == 0 => slice(0, MIB, &[]),
            "QueryChangedDiskAreas" => reply(),
            _ => Reply::Usual,
        });
        let error = areas(&site, &server, None, "52 ab/3", 4 * MIB).await.unwrap_err().to_string();
        assert!(
            error.contains(part) && error.contains("disk 2000 since change id 52 ab/3"),
            "{part}: {error}"
        );
        assert_eq!(server.count("QueryChangedDiskAreas"), 2, "{part}");
    }
}

/// Row 5: a change id that is no good is told from everything else, for then all of the disk is read.
#[tokio::test]
async fn a_change_id_that_is_no_good_is_told_from_other_refusals() {
    let Some(site) = site() else { return };
    type Make = fn() -> Reply;
    let cases: [(Make, bool); 5] = [
        (|| Reply::Fault("FileFault", "Error caused by file /vmfs/volumes/a/a.vmdk"), true),
        (
            || {
                Reply::Argument(
                    "InvalidArgument",
                    "A specified parameter was not correct: changeId",
                    "changeId",
                )
            },
            true,
        ),
        (|| Reply::Fault("SystemError", "Error caused by file /vmfs/volumes/a/a.vmdk"), true),
        (
            || {
                Reply::Argument(
                    "InvalidArgument",
                    "A specified parameter was not correct: deviceKey",
                    "deviceKey",
                )
            },
            false,
        ),
        (|| Reply::Fault("NoPermission", "Permission to perform this operation was denied."), false),
    ];
    for (reply, about) in cases {
        let server = site.serve(move |request| match request.method.as_str() {
            "QueryChangedDiskAreas" => reply(),
            _ => Reply::Usual,
        });
        let error = areas(&site, &server, Some("snapshot-9"), "52 ab/3", MIB).await.unwrap_err();
        match &error {
            ChangesError::ChangeId { disk_key: 2000, since, .. } => {
                assert!(about && since == "52 ab/3", "{error}")
            }
            ChangesError::Client(ClientError::Fault { .. }) => assert!(!about, "{error}"),
            other => panic!("{other:?}"),
        }
    }
}
