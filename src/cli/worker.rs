//! `virt-v2v-wrapper worker` and `put-back`: the processes that [`crate::supervise`] starts. Hidden: nobody else calls them.

use std::fs::OpenOptions;
use std::path::Path;

use zeroize::Zeroizing;

use crate::log::chain;
use crate::{put_back, run};

/// Puts the source back after a worker that was killed.
pub(super) fn put_back(sealed: &Path) -> u8 {
    let done =
        std::fs::read(sealed).map_err(Into::into).and_then(|job| put_back::process(&Zeroizing::new(job)));
    done.unwrap_or_else(|error| {
        tracing::error!("{error}");
        super::complain(&format!("put-back is started by the program itself ({error})"))
    })
}

/// Runs the job in the sealed file; its exit code is the job's (contract.md 2.3).
pub(super) fn run(sealed: &Path, ready: &Path) -> u8 {
    let begun = (|| {
        let job = Zeroizing::new(std::fs::read(sealed)?);
        let ready = OpenOptions::new().write(true).open(ready)?;
        std::io::Result::Ok((job, ready))
    })();
    match begun {
        Ok((job, ready)) => match run::worker(&job, ready.into()) {
            Ok(outcome) => outcome.code(),
            Err(error) => {
                tracing::error!("{}", chain(&error));
                1
            }
        },
        Err(error) => super::complain(&format!("the worker is started by the program itself ({error})")),
    }
}
