//! The algebra against the plainest model there is: an array with the kind of each byte of a small disk.

use proptest::prelude::*;

use super::*;

const SIZE: usize = 96;
type Model = [Option<Kind>; SIZE];

fn model(extents: impl IntoIterator<Item = Extent>) -> Model {
    let mut bytes = [None; SIZE];
    for extent in extents {
        for (at, byte) in bytes.iter_mut().enumerate() {
            if extent.offset <= at as u64 && (at as u64) < extent.end() {
                *byte = (*byte).max(Some(extent.kind));
            }
        }
    }
    bytes
}

fn merge(left: &Model, right: &Model, rule: impl Fn(Option<Kind>, Option<Kind>) -> Option<Kind>) -> Model {
    std::array::from_fn(|at| rule(left[at], right[at]))
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Data), Just(Kind::Zero), Just(Kind::Hole)]
}

/// Any extents, in any order, overlapping and empty ones among them.
fn heaps() -> impl Strategy<Value = Vec<Extent>> {
    let extent = (0..SIZE as u64, 0..20_u64, kinds())
        .prop_map(|(offset, length, kind)| Extent::new(offset, length.min(SIZE as u64 - offset), kind));
    prop::collection::vec(extent, 0..12)
}

fn lists() -> impl Strategy<Value = Extents> {
    heaps().prop_map(Extents::normalize)
}

/// What every list promises.
fn in_order(list: &Extents) -> bool {
    list.iter().all(|extent| extent.length > 0)
        && list.as_slice().windows(2).all(|pair| {
            pair[0].end() < pair[1].offset
                || (pair[0].end() == pair[1].offset && pair[0].kind != pair[1].kind)
        })
}

proptest! {
    #[test]
    fn any_heap_of_extents_becomes_an_ordered_list_of_the_same_bytes(heap in heaps()) {
        let list = Extents::normalize(heap.clone());
        prop_assert!(in_order(&list), "{list:?}");
        prop_assert_eq!(model(&list), model(heap));
    }

    #[test]
    fn the_algebra_is_that_of_single_bytes(left in lists(), right in lists()) {
        let (ours, theirs) = (model(&left), model(&right));
        for (list, bytes) in [
            (left.intersect(&right), merge(&ours, &theirs, |our, their| their.and(our))),
            (left.subtract(&right), merge(&ours, &theirs, |our, their| our.filter(|_| their.is_none()))),
            (left.union(&right), merge(&ours, &theirs, Option::max)),
        ] {
            prop_assert!(in_order(&list), "{:?}", list);
            prop_assert_eq!(model(&list), bytes);
            prop_assert_eq!(list.covered(), bytes.iter().flatten().count() as u64);
            for kind in Kind::ALL {
                let count = bytes.iter().filter(|byte| **byte == Some(kind)).count();
                prop_assert_eq!(list.covered_by(kind), count as u64);
            }
        }
    }

    #[test]
    fn what_is_subtracted_and_what_is_common_make_up_the_whole(left in lists(), right in lists()) {
        let (common, rest) = (left.intersect(&right), left.subtract(&right));
        prop_assert!(rest.intersect(&common).is_empty());
        prop_assert_eq!(rest.union(&common), left);
    }

    #[test]
    fn clamping_leaves_nothing_at_the_size_or_beyond(list in lists(), size in 0..SIZE as u64 + 9) {
        let clamped = list.clamp(size);
        prop_assert!(in_order(&clamped));
        let bytes = model(&list);
        let expected: Model = std::array::from_fn(|at| bytes[at].filter(|_| (at as u64) < size));
        prop_assert_eq!(model(&clamped), expected);
    }

    #[test]
    fn pieces_cross_no_multiple_of_the_chunk_and_lose_nothing(list in lists(), chunk in 1..40_u64) {
        let pieces: Vec<Extent> = list.split(NonZeroU64::new(chunk).unwrap()).collect();
        for piece in &pieces {
            prop_assert!(piece.length > 0 && piece.offset / chunk == (piece.end() - 1) / chunk, "{:?}", piece);
        }
        prop_assert!(pieces.windows(2).all(|pair| pair[0].end() <= pair[1].offset));
        prop_assert_eq!(Extents::normalize(pieces), list);
    }

    #[test]
    fn widened_zeros_are_zeros_that_were_there(list in lists(), unit in 1..20_u64, size in 1..=SIZE as u64) {
        let wide = list.widen(NonZeroU64::new(unit).unwrap(), size);
        prop_assert!(in_order(&wide));
        for extent in &wide {
            prop_assert!(extent.offset.is_multiple_of(unit));
            prop_assert!(extent.end() == size || extent.end().is_multiple_of(unit));
        }
        let (bytes, widened) = (model(&list), model(&wide));
        for at in 0..SIZE {
            let inside = (at as u64) < size;
            prop_assert!(inside || widened[at].is_none());
            if let Some(kind) = widened[at] && kind.is_zero() {
                prop_assert_eq!(bytes[at], Some(kind));
            }
            if inside && bytes[at].is_some() {
                prop_assert!(widened[at] >= bytes[at]);
            }
            // A unit of nothing but one kind of zeros stays what it is, and a unit without anything stays out.
            let unit_bytes = (at as u64 / unit * unit) as usize..((at as u64 / unit + 1) * unit).min(size) as usize;
            if inside {
                let unit_bytes = &bytes[unit_bytes];
                let same = unit_bytes.iter().all(|byte| *byte == unit_bytes[0]);
                if same {
                    prop_assert_eq!(widened[at], unit_bytes[0]);
                }
            }
        }
    }

    #[test]
    fn no_numbers_are_too_large(
        areas in prop::collection::vec((any::<u64>(), any::<u64>()), 0..8),
        size in any::<u64>(),
        chunk in any::<u64>(),
        descriptors in prop::collection::vec((any::<u32>(), any::<u32>()), 0..8),
        offset in any::<u64>(),
        length in any::<u64>(),
    ) {
        let changed = Extents::from_changed_areas(areas, size);
        prop_assert!(in_order(&changed) && changed.end() <= size);
        let status = Extents::from_block_status(offset, length, &descriptors);
        prop_assert!(in_order(&status) && status.end() <= offset.saturating_add(length));
        let chunk = NonZeroU64::new(chunk.max(1 << 60)).unwrap();
        prop_assert_eq!(Extents::normalize(changed.split(chunk)), changed.clone());
        prop_assert!(in_order(&changed.widen(chunk, size)));
        prop_assert!(in_order(&changed.union(&status).subtract(&changed).intersect(&status)));
    }
}

#[test]
fn changed_areas_may_come_in_any_order_overlapping_empty_and_beyond_the_end() {
    let areas = [(90, 20), (10, 0), (40, 10), (45, 10), (200, 5), (u64::MAX, u64::MAX), (0, 5)];
    let list = Extents::from_changed_areas(areas, 100);
    let pairs: Vec<(u64, u64)> = list.iter().map(|extent| (extent.offset, extent.length)).collect();
    assert_eq!(pairs, [(0, 5), (40, 15), (90, 10)]);
}

#[test]
fn a_hole_that_is_not_said_to_read_as_zeros_is_data() {
    let list = Extents::from_block_status(512, 5, &[(1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]);
    let kinds: Vec<(u64, Kind)> = list.iter().map(|extent| (extent.length, extent.kind)).collect();
    assert_eq!(kinds, [(2, Kind::Data), (1, Kind::Zero), (1, Kind::Hole), (1, Kind::Data)]);
}

#[test]
fn a_descriptor_that_runs_over_the_end_of_the_request_is_cut() {
    let list = Extents::from_block_status(100, 50, &[(20, 0), (u32::MAX, 3), (7, 0)]);
    assert_eq!(list.as_slice(), [Extent::new(100, 20, Kind::Data), Extent::new(120, 30, Kind::Hole)]);
}

#[test]
fn a_change_that_is_a_hole_now_is_kept_as_a_hole() {
    let status = Extents::normalize([Extent::new(0, 50, Kind::Data), Extent::new(50, 50, Kind::Hole)]);
    let changed = Extents::from_changed_areas([(40, 20)], 100);
    let expected = [Extent::new(40, 10, Kind::Data), Extent::new(50, 10, Kind::Hole)];
    assert_eq!(status.intersect(&changed).as_slice(), expected);
}
