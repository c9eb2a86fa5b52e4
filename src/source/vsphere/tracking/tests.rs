use super::*;

use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn slice(start: i64, length: i64, areas: &[(i64, i64)]) -> Slice {
    Slice { start, length, areas: areas.to_vec() }
}

type Areas = Vec<(u64, u64)>;

/// Asks `server` until the end, as the edge does; gives what was asked.
fn walk(size: u64, mut server: impl FnMut(u64) -> Slice) -> (Vec<u64>, Result<Areas, Refused>) {
    let (mut walk, mut asked) = (Walk::new(size), Vec::new());
    while let Some(at) = walk.next() {
        asked.push(at);
        if let Err(refused) = walk.take(&server(at)) {
            return (asked, Err(refused));
        }
    }
    let areas = walk.extents().iter().map(|extent| (extent.offset, extent.length)).collect();
    (asked, Ok(areas))
}

/// A server that tells what it knows in slices of `piece` bytes, and no more than `cap` areas in one; then its `length`
/// still is that of the slice.
fn server(areas: &[(u64, u64)], size: u64, piece: u64, cap: usize) -> impl FnMut(u64) -> Slice {
    move |at| {
        assert!(at < size, "asked at the end of the disk");
        let end = (at + piece).min(size);
        let inside = areas.iter().filter_map(|(start, length)| {
            let (from, to) = ((*start).max(at), (start + length).min(end));
            (from < to).then(|| (from as i64, (to - from) as i64))
        });
        slice(at as i64, (end - at) as i64, &inside.take(cap).collect::<Vec<_>>())
    }
}

/// peers.md 6.3, rows 2 to 4: however many slices there are, all areas are found, and the end of the disk is never asked
/// at, whether it is a multiple of the slices or not.
#[test]
fn any_number_of_slices_gives_the_same_areas() {
    let size = 70 * MIB + 512;
    let areas = [(0, 4096), (9 * MIB, 2 * MIB), (69 * MIB, MIB), (70 * MIB, 512)];
    for (count, piece) in [(1, size), (2, size.div_ceil(2)), (3, size.div_ceil(3)), (7, size.div_ceil(7))] {
        let (asked, found) = walk(size, server(&areas, size, piece, usize::MAX));
        assert_eq!(asked.len(), count, "{asked:?}");
        assert_eq!(found.unwrap(), [(0, 4096), (9 * MIB, 2 * MIB), (69 * MIB, MIB + 512)], "{count} slices");
    }
    let (asked, _) = walk(64 * MIB, server(&[], 64 * MIB, 16 * MIB, usize::MAX));
    assert_eq!(asked, [0, 16 * MIB, 32 * MIB, 48 * MIB]);
}

/// Row 3: nothing changed in the middle, and at the beginning.
#[test]
fn an_empty_slice_is_not_the_end() {
    let areas = [(33 * MIB, MIB), (60 * MIB, 4 * MIB)];
    let (asked, found) = walk(64 * MIB, server(&areas, 64 * MIB, 8 * MIB, usize::MAX));
    assert_eq!((asked.len(), found.unwrap()), (8, areas.to_vec()));
}

/// Row 2: an answer with 2000 areas says that it reaches to the end of the disk, and does not.
#[test]
fn a_full_answer_is_continued_behind_its_last_area() {
    let size = 1 << 40;
    let areas: Vec<(u64, u64)> = (0..4500).map(|area| (area * 200 * MIB, 64 << 10)).collect();
    let (asked, found) = walk(size, server(&areas, size, size, CAP));
    let behind = |area: usize| areas[area].0 + areas[area].1;
    assert_eq!(asked, [0, behind(1999), behind(3999)]);
    assert_eq!(found.unwrap(), areas);
    // Exactly 2000 and no more: one further question, whose answer is empty.
    let (asked, found) = walk(size, server(&areas[..2000], size, size, CAP));
    assert_eq!((asked.len(), found.unwrap().len()), (2, 2000));
    // Some servers go beyond it; the slice may end before the last area.
    let many: Vec<(i64, i64)> = (0..2001).map(|area| (area * 4, 2)).collect();
    let mut walk = Walk::new(size);
    walk.take(&slice(0, 4000, &many)).unwrap();
    assert_eq!(walk.next(), Some(4000));
}

/// Each is an error and no list that ends early.
#[test]
fn an_answer_that_does_not_get_on_is_refused() {
    let at = 1000;
    let full: Vec<(i64, i64)> = (0..2000).map(|_| (500, 100)).collect();
    for (answer, sense) in [
        (slice(1000, 0, &[]), true),
        (slice(0, 1000, &[]), true),
        (slice(0, 500, &[(0, 5)]), true),
        (slice(500, 0, &[(600, 5)]), true),
        (slice(0, 9000, &full), true),
        // A gap of which nobody tells.
        (slice(1001, 8000, &[]), false),
        (slice(-1, 8000, &[]), false),
        (slice(0, -1, &[]), false),
        (slice(i64::MAX, 1, &[]), false),
        (slice(1000, 10, &[(-5, 10)]), false),
        (slice(1000, 10, &[(5, -10)]), false),
        (slice(1000, 10, &[(i64::MAX, i64::MAX)]), false),
        (slice(1000, 0, &[(5000, 5), (2000, 5)]), false),
    ] {
        let mut walk = Walk { at, ..Walk::new(9999) };
        let refused = walk.take(&answer).unwrap_err();
        assert_eq!(matches!(refused, Refused::NoProgress(_)), sense, "{answer:?}: {refused:?}");
        assert_eq!(walk.next(), Some(at), "{answer:?}");
    }
    // A step of one byte for ever.
    let (asked, found) = walk(1 << 40, |at| slice(at as i64, 1, &[]));
    assert!(matches!(found, Err(Refused::NoProgress(_))), "{found:?}");
    assert_eq!(asked.len(), MOST_ANSWERS + 1);
}

/// An answer may begin before what was asked for (rounded down), and without a length its areas still count.
#[test]
fn answers_that_are_only_odd_are_taken() {
    let mut walk = Walk { at: 1000, ..Walk::new(9999) };
    walk.take(&slice(512, 1024, &[(512, 512)])).unwrap();
    assert_eq!(walk.next(), Some(1536));
    walk.take(&slice(1536, 0, &[(1600, 10), (1700, 300)])).unwrap();
    assert_eq!(walk.next(), Some(2000));
    // Beyond the end of the disk: cut there.
    walk.take(&slice(2000, i64::MAX - 2000, &[(9000, 1 << 40), (1 << 50, 1)])).unwrap();
    assert_eq!(walk.next(), None);
    let areas: Vec<_> = walk.extents().iter().map(|extent| (extent.offset, extent.length)).collect();
    assert_eq!(areas, [(512, 512), (1600, 10), (1700, 300), (9000, 999)]);
}

/// A disk without bytes has no changes, and is not asked about.
#[test]
fn nothing_is_asked_of_nothing() {
    assert_eq!(Walk::new(0).next(), None);
}

/// Memory is bounded, and no area is lost for it.
#[test]
fn a_fragmented_disk_is_told_in_fewer_areas() {
    let (count, step) = (5000_u64, 4 * MIB);
    let size = count * step;
    let areas: Vec<(u64, u64)> = (0..count).map(|area| (area * step, 4096)).collect();
    let mut serve = server(&areas, size, 100 * step, usize::MAX);
    let mut walk = Walk { most: 1000, ..Walk::new(size) };
    while let Some(at) = walk.next() {
        walk.take(&serve(at)).unwrap();
        assert!(walk.found.len() <= 1000, "{}", walk.found.len());
    }
    let found = walk.extents();
    let all = Extents::from_changed_areas(areas.clone(), size);
    assert!(all.subtract(&found).is_empty());
    assert!(found.end() <= size && found.len() <= 1000);
}

fn fault(kind: &str, words: &str, property: Option<&str>) -> Fault {
    Fault { kind: kind.to_owned(), words: words.to_owned(), property: property.map(Into::into) }
}

/// Row 5: with these the caller falls back; with others it does not, for they are about something else.
#[test]
fn a_fault_about_the_change_id_is_told_from_others() {
    let words = "A specified parameter was not correct: ";
    for (fault, about) in [
        (fault("FileFault", "Error caused by file /vmfs/volumes/a/a.vmdk", None), true),
        (fault("FileFault", "Datei", None), true),
        (fault("InvalidArgument", "Ein Parameter ist falsch: ", Some("changeId")), true),
        (fault("SystemError", "Error caused by file /vmfs/volumes/a/a.vmdk", None), true),
        (fault("InvalidArgument", words, Some("startOffset")), false),
        (fault("InvalidArgument", &format!("{words}deviceKey"), Some("deviceKey")), false),
        (fault("InvalidArgument", words, None), false),
        (fault("FileNotFound", "File [a] b was not found", None), false),
        (fault("NoPermission", "Permission to perform this operation was denied.", None), false),
        (fault("", "", None), false),
    ] {
        assert_eq!(is_about_change_id(&fault), about, "{fault:?}");
    }
}

#[test]
fn change_ids_of_another_tracking_are_known() {
    for (before, now, same) in [
        ("52 de c0 d9-07 d0/17", "52 de c0 d9-07 d0/18", true),
        ("52 de c0 d9-07 d0/17", "52 de c0 d9-07 d1/18", false),
        ("*", "52 de/1", false),
        ("52 de/1", "*", false),
        ("/1", "/2", false),
        ("", "", false),
    ] {
        assert_eq!(is_same_tracking(before, now), same, "{before} {now}");
    }
}

#[test]
fn an_error_says_what_was_asked_and_what_the_server_said() {
    let error = ChangesError::ChangeId {
        disk_key: 2000,
        since: "52 de/7".to_owned(),
        fault: fault("FileFault", "Error caused by file a.vmdk", None),
    };
    let sentence = "vSphere cannot tell what changed on disk 2000 since change id 52 de/7: Error caused by file a.vmdk \
                    (FileFault)";
    assert_eq!(error.to_string(), sentence);
    let (since, told) = (ALLOCATED.to_owned(), slice(7, 0, &[]).told());
    let error = ChangesError::NoProgress { disk_key: 2000, since, asked: 7, size: 9, told };
    let sentence = "vSphere does not get on telling which areas of disk 2000 are allocated: asked from byte 7 of 9 on, it \
                    answered 0 areas in the 0 bytes from 7 on";
    assert_eq!(error.to_string(), sentence);
}

proptest! {
    /// Whatever areas there are and however they are cut: what is found is what changed, neither less nor more.
    #[test]
    fn nothing_is_lost_between_slices(
        lengths in proptest::collection::vec((1_u64..9, 1_u64..9), 0..60),
        piece in 1_u64..200,
        cap in 1_usize..4,
        tail in 0_u64..9,
    ) {
        let mut at = 0;
        let areas: Vec<(u64, u64)> = lengths
            .iter()
            .map(|(gap, length)| {
                let start = at + gap;
                at = start + length;
                (start, *length)
            })
            .collect();
        let size = at + tail + 1;
        // A cap that is not VMware's: the answer says how far it came.
        let mut serve = server(&areas, size, piece, cap);
        let (_, found) = walk(size, |at| {
            let mut slice = serve(at);
            if slice.areas.len() == cap {
                let (start, length) = slice.areas[cap - 1];
                slice.length = start + length - slice.start;
            }
            slice
        });
        prop_assert_eq!(found.unwrap(), areas.clone());
    }

    /// Any numbers: an end or an error, no panic.
    #[test]
    fn no_answer_panics(
        answers in proptest::collection::vec((any::<i64>(), any::<i64>(), proptest::collection::vec((any::<i64>(), any::<i64>()), 0..5)), 1..20),
        size in any::<u64>(),
    ) {
        let mut walk = Walk::new(size);
        for (start, length, areas) in answers {
            if walk.next().is_none() || walk.take(&Slice { start, length, areas }).is_err() {
                break;
            }
        }
        let found = walk.extents();
        prop_assert!(found.end() <= size);
    }
}
