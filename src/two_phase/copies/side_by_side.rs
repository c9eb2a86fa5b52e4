//! All disks of a round side by side: opened, copied, and closed each as soon as it is done.
//!
//! A host has few connections for all who read its disks (peers.md 6.3, row 24). So a disk that it refuses waits while
//! others of the same machine are copied, and is tried again whenever one of them is done. Called by [`super`]'s callers.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};

use super::{Copies, CopiesError, MEMORY, One, Room, Round, now};
use crate::copy::reader::{ReadError, Reader};
use crate::copy::{self, CopyError, Shared, Tuning};
use crate::event::Event;
use crate::export::{Filters, Program};
use crate::phase::{DiskPhase, Phase};
use crate::throttle::bucket::Bucket;

/// Words of VDDK, which has no code for it, for a host that serves as many as it can.
const BUSY: [&str; 4] =
    ["vmware-authd", "failed to create a connection", "server refused connection", "too many connections"];

/// What came of a disk.
type Ended = Result<u64, CopyError>;

/// A disk whose source is not open.
struct Closed {
    disk: usize,
    reader: Reader,
    /// Why the last try failed.
    said: Option<ReadError>,
}

/// The round as it runs.
struct Running {
    jobs: Vec<Option<Rc<copy::Job>>>,
    results: Vec<Ended>,
    tasks: JoinSet<(usize, Ended)>,
    room: Rc<Room>,
}

fn stopped() -> CopyError {
    CopyError::Stopped { disk: "a disk".to_owned() }
}

fn is_busy(error: &ReadError) -> bool {
    let said = error.to_string().to_ascii_lowercase();
    BUSY.iter().any(|words| said.contains(words))
}

impl Copies<'_> {
    /// All of it, and for each disk how many bytes of data that were, or why not all of them are copied; the checksums are
    /// told by events. In the last round the first failure ends it.
    pub(crate) async fn run(&self, limit: Bucket) -> Result<Vec<Ended>, CopiesError> {
        let programs = &self.two_phase.programs;
        let filters = match self.opened.disks.iter().any(|disk| disk.export.program() == Program::Nbdkit) {
            true => Filters::probe(&programs.nbdkit, &self.job.files.tag).await,
            false => Filters::default(),
        };
        let _slots = self.take_slots().await?;
        // One memory of the host behind all disks: what one cannot read at once, the others cannot either.
        let smallest = self.opened.disks.iter().map(|disk| disk.read_size).min().unwrap_or(1 << 20);
        let read_size = Rc::new(Cell::new(smallest));
        let shared = Shared::new(MEMORY, Tuning::default(), limit);
        let disks = 0..self.opened.disks.len();
        let reader = |disk| self.reader(filters, disk, Rc::clone(&read_size));
        let mut closed: Vec<_> =
            disks.clone().map(|disk| Closed { disk, reader: reader(disk), said: None }).collect();
        let mut running = Running {
            jobs: disks.clone().map(|_| None).collect(),
            results: disks.map(|_| Err(stopped())).collect(),
            tasks: JoinSet::new(),
            room: Rc::new(Room::new(self.placed)),
        };
        let pauses = closed.first().map(|first| first.reader.pauses()).unwrap_or_default();
        let mut left = pauses.iter();
        let mut opened = self.open(&mut closed, &mut running, &shared).await?;
        let Round { number, last, .. } = *self.round;
        self.say(Event::Entered(Phase::PreCopy { round: number, last }));
        loop {
            opened.into_iter().for_each(|disk| self.begin(disk, &mut running));
            let pause = left.next().filter(|_| !closed.is_empty());
            if pause.is_none() {
                self.give_up(&mut closed, &running.tasks, &mut running.results)?;
            }
            if closed.is_empty() && running.tasks.is_empty() {
                return Ok(running.results);
            }
            tokio::select! {
                biased;
                Some(ended) = running.tasks.join_next() => {
                    self.end(ended, &mut running).await?;
                    left = pauses.iter();
                }
                () = tokio::time::sleep(*pause.unwrap_or(&Duration::ZERO)), if pause.is_some() => {}
                else => {}
            }
            opened = self.open(&mut closed, &mut running, &shared).await?;
        }
    }

    /// Opens those that can be opened now, each tried once; gives which.
    async fn open(
        &self,
        closed: &mut Vec<Closed>,
        running: &mut Running,
        shared: &Shared,
    ) -> Result<Vec<usize>, CopiesError> {
        let (mut opened, waited) = (Vec::new(), !closed.is_empty());
        for mut one in std::mem::take(closed) {
            match one.reader.try_open().await {
                Ok(size) => {
                    running.jobs[one.disk] = Some(self.prepare(one.disk, one.reader, size, shared).await?);
                    if !self.round.follows {
                        self.enter(one.disk, DiskPhase::Created);
                    }
                    opened.push(one.disk);
                }
                Err(error) => {
                    tracing::warn!("{error}; trying again");
                    let what = Some(format!("the source, to open {}: {error}", one.reader.disk()));
                    self.say(Event::WaitingFor { what });
                    one.said = Some(error);
                    closed.push(one);
                }
            }
        }
        if waited && closed.is_empty() {
            self.say(Event::WaitingFor { what: None });
        }
        Ok(opened)
    }

    fn begin(&self, disk: usize, running: &mut Running) {
        let Some(job) = running.jobs[disk].clone() else { return };
        let (what, since) = self.round.disks[disk].clone();
        let path = self.opened.disks[disk].export.disk();
        let (tell, room, last) = (self.tell.clone(), Rc::clone(&running.room), self.round.last);
        let one = One { disk, path, last, job, tell, room };
        running.tasks.spawn_local(async move { (disk, one.copy(what, since).await) });
    }

    /// One disk is done, well or not: its source is closed, so that another may be opened.
    async fn end(
        &self,
        ended: Result<(usize, Ended), JoinError>,
        running: &mut Running,
    ) -> Result<(), CopiesError> {
        let last = self.round.last;
        let (disk, result) = match ended {
            // The others are dropped with the set; what they finished is in their ledgers.
            Ok((_, Err(error))) if last => return Err(error.into()),
            Ok(ended) => ended,
            Err(_) if last => return Err(stopped().into()),
            Err(_) => return Ok(()),
        };
        let closed = match running.jobs[disk].take().and_then(Rc::into_inner) {
            Some(job) => job.close().await,
            None => Err(stopped()),
        };
        // What is not durable is not copied.
        let result = result.and_then(|bytes| closed.map(|()| bytes));
        if last {
            running.results[disk] = Ok(result?);
        } else {
            running.results[disk] = result;
        }
        Ok(())
    }

    /// Those that were tried for long enough fail, but for those that wait for a connection while this round itself has
    /// some.
    fn give_up(
        &self,
        closed: &mut Vec<Closed>,
        tasks: &JoinSet<(usize, Ended)>,
        results: &mut [Ended],
    ) -> Result<(), CopiesError> {
        if closed.is_empty() {
            return Ok(());
        }
        let last = self.round.last;
        for one in std::mem::take(closed) {
            let Some(error) = one.said.clone() else { continue };
            if is_busy(&error) && !tasks.is_empty() {
                closed.push(one);
                continue;
            }
            let (disk, at, since) = (one.disk, now(), self.round.disks[one.disk].1.clone());
            self.say(Event::RoundBegan { disk, path: one.reader.disk(), change_id: since, at });
            self.say(Event::RoundEnded { disk, at, last, result: Err(error.to_string()) });
            if last {
                return Err(error.into());
            }
            results[disk] = Err(error.into());
        }
        if closed.is_empty() {
            self.say(Event::WaitingFor { what: None });
        }
        Ok(())
    }
}
