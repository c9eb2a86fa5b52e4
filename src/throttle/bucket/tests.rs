//! Rules of the bucket, on a clock that stands still while nobody sleeps.

use std::cell::RefCell;

use tokio::task::LocalSet;

use super::*;

fn rate(bytes: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(bytes)
}

const MIB: u64 = 1 << 20;

/// Several takers of different appetites for this long; how much passed, of each.
async fn copy(bucket: &Bucket, sizes: &[u64], time: Duration) -> Vec<u64> {
    let passed = Rc::new(RefCell::new(vec![0; sizes.len()]));
    let local = LocalSet::new();
    for (taker, size) in sizes.iter().copied().enumerate() {
        let (bucket, passed) = (bucket.clone(), Rc::clone(&passed));
        local.spawn_local(async move {
            loop {
                bucket.take(size).await;
                passed.borrow_mut()[taker] += size;
            }
        });
    }
    local.run_until(tokio::time::sleep(time)).await;
    drop(local);
    passed.take()
}

#[tokio::test(start_paused = true)]
async fn ten_seconds_are_accurate_whatever_the_requests() {
    for (bytes, sizes) in [
        (MIB, &[4096][..]),
        (MIB, &[512, 65536, 3]),
        (10 * MIB, &[65536; 16]),
        (100 * MIB, &[MIB / 4, MIB, 2 * MIB]),
        (1000 * MIB, &[2 * MIB; 8]),
        (1000, &[7]),
    ] {
        let bucket = Bucket::new(rate(bytes));
        let passed: u64 = copy(&bucket, sizes, Duration::from_secs(10)).await.iter().sum();
        let wanted = bytes * 10;
        assert!(passed.abs_diff(wanted) * 50 <= wanted, "{bytes}/s, {sizes:?}: {passed} of {wanted}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_bucket_saves_a_tenth_of_a_second_and_no_more() {
    let bucket = Bucket::new(rate(MIB));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let passed = copy(&bucket, &[1024], Duration::from_secs(1)).await[0];
    assert!((MIB..=MIB + MIB / 10).contains(&passed), "{passed}");
    assert!(passed > MIB + MIB / 11, "what was saved may be used: {passed}");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_overtaken_and_a_big_request_passes_among_small_ones() {
    let bucket = Bucket::new(rate(MIB));
    let passed = copy(&bucket, &[4096, 4096, 4 * MIB], Duration::from_secs(60)).await;
    assert!(passed[2] >= 56 * MIB, "{passed:?}");
    assert_eq!(passed[0].abs_diff(passed[1]) / 4096, 0, "turn by turn: {passed:?}");

    let order = Rc::new(RefCell::new(Vec::new()));
    let local = LocalSet::new();
    for (number, size) in [MIB, 1, 2 * MIB, 1].into_iter().enumerate() {
        let (bucket, order) = (bucket.clone(), Rc::clone(&order));
        local.spawn_local(async move {
            bucket.take(size).await;
            order.borrow_mut().push(number);
        });
    }
    local.await;
    assert_eq!(*order.borrow(), [0, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_new_rate_counts_at_once_for_those_who_wait() {
    let bucket = Bucket::new(rate(1000));
    let begun = Instant::now();
    let change = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        bucket.set(rate(20_000));
    };
    tokio::join!(bucket.take(30_000), bucket.take(20_000), change);
    // 10,000 in the first ten seconds, then 20,000 and 20,000 at the new rate.
    let took = begun.elapsed();
    assert!((Duration::from_secs(12)..Duration::from_millis(12_050)).contains(&took), "{took:?}");

    let begun = Instant::now();
    let lift = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bucket.set(None);
    };
    tokio::join!(bucket.take(1 << 40), bucket.take(1 << 40), lift);
    assert!(begun.elapsed() < Duration::from_millis(1050));
    bucket.take(u64::MAX).await;
    assert!(begun.elapsed() < Duration::from_millis(1050), "without a limit nobody waits");

    bucket.set(rate(1000));
    let begun = Instant::now();
    bucket.take(1000).await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "time without a limit is not saved up");
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_has_taken_nothing() {
    let bucket = Bucket::new(rate(1000));
    let begun = Instant::now();
    let impatient = async {
        let taken = tokio::time::timeout(Duration::from_secs(5), bucket.take(100_000)).await;
        assert!(taken.is_err());
    };
    // Makes the first one draw what came in so far.
    let nudge = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        bucket.set(rate(1000));
    };
    // The one in the queue leaves it, the one behind gets what the first had been given.
    let queued = async {
        let taken = tokio::time::timeout(Duration::from_secs(1), bucket.take(100_000)).await;
        assert!(taken.is_err());
    };
    tokio::join!(impatient, queued, bucket.take(6000), nudge);
    let took = begun.elapsed();
    assert!((Duration::from_millis(5990)..Duration::from_millis(6050)).contains(&took), "{took:?}");

    // With nobody behind it is not saved up either.
    let alone = tokio::time::timeout(Duration::from_secs(60), bucket.take(100_000)).await;
    assert!(alone.is_err());
    let begun = Instant::now();
    bucket.take(1100).await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// A stopped process, a suspended host: the time is over, and nobody may catch up.
#[tokio::test(start_paused = true)]
async fn who_wakes_late_does_not_make_the_others_fast() {
    let bucket = Bucket::new(rate(1000));
    let passed = Rc::new(Cell::new(0));
    let local = LocalSet::new();
    for _ in 0..4 {
        let (bucket, passed) = (bucket.clone(), Rc::clone(&passed));
        local.spawn_local(async move {
            loop {
                bucket.take(10).await;
                passed.set(passed.get() + 10);
            }
        });
    }
    let stopped = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = passed.get();
        tokio::time::advance(Duration::from_secs(1000)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        passed.get() - before
    };
    let passed = local.run_until(stopped).await;
    assert!((1000..=1120).contains(&passed), "{passed}");
}

#[tokio::test(start_paused = true)]
async fn extremes_neither_panic_nor_hang() {
    let bucket = Bucket::new(rate(u64::MAX));
    tokio::time::sleep(Duration::from_secs(1 << 30)).await;
    bucket.take(u64::MAX).await;
    let bucket = Bucket::new(rate(1));
    assert!(tokio::time::timeout(Duration::from_secs(1 << 30), bucket.take(u64::MAX)).await.is_err());
    bucket.take(0).await;
}
