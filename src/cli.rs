//! The command line: which verb was meant, and the exit code. Each verb is a file of its own below.
//!
//! No arguments means: a document is on stdin ([`crate::start`]). `--checks`, `--check-NAME` and `--version` are the
//! old program's (contract.md 8.2); they count as the first argument only.

use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write, stderr, stdin, stdout};
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::log::chain;
use crate::warm::triggers::Cutover;
use crate::{schema, start};

mod checks;
mod checksum;
mod cleanup;
mod jobs;
mod plan;
mod triggers;
mod watch;
mod worker;

/// Moves one virtual machine to KVM: a JSON document on stdin, a JSON reply on stdout, a JSON state file.
#[derive(Debug, Parser)]
#[command(name = "virt-v2v-wrapper", version)]
#[command(
    after_help = "Without arguments a document is read from stdin. --check-NAME runs one check: exit code 0 or 1."
)]
struct Arguments {
    /// Names of the checks, one a line.
    #[arg(long)]
    checks: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what a document would come to, with nothing begun: the guest, the stages, every command, room, warnings.
    ///
    /// The document is on stdin, exactly the one that a job takes. Source and host are looked at, and nothing is changed: no
    /// job, no file, no snapshot. The exit code is 0 if the job would run, 1 if it would be refused; the reasons are then on
    /// stderr, as the job's would be.
    Plan {
        /// One JSON object instead of a text; `schema plan` describes it.
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of the document, the reply, the state file or the plan.
    Schema {
        /// Which one.
        #[arg(value_parser = parse_schema)]
        which: schema::Schema,
    },
    /// Show the progress of a job until it ends; the exit code is its outcome (0 converted, 2 failed).
    Watch {
        /// `state_file` of the reply.
        state_file: PathBuf,
    },
    /// Go on with an interrupted two-phase job. Its document is known but for its secrets: a JSON object with these (or the
    /// whole document) goes to stdin.
    Resume {
        /// Tag of the job; `jobs` lists them.
        tag: String,
    },
    /// Put back what a dead or failed job has left: on its source the snapshots are removed, change tracking is switched off,
    /// the machine is switched on again if the job had switched it off; at a cloud everything that the job made is removed.
    /// What is copied stays for a job that resumes it. The document is known but for its secrets: a JSON object with these
    /// (or the whole document) goes to stdin.
    Cleanup {
        /// Tag of the job; `jobs` lists them.
        tag: String,
        /// Also what is copied: nobody will resume the job.
        #[arg(long)]
        discard: bool,
    },
    /// List the jobs of this host.
    Jobs {
        /// One JSON array instead of a table.
        #[arg(long)]
        json: bool,
        /// Remove the files of a finished job.
        #[arg(long, value_name = "TAG")]
        remove: Option<String>,
        /// Remove them although they tell what the job has left on its source or at its destination.
        #[arg(long, requires = "remove")]
        force: bool,
    },
    /// Ask a warm job for its last copy, after which the virtual machine is converted.
    ///
    /// A copy that runs is not broken off. Who switches the virtual machine off is the document's shutdown_mode.
    Cutover {
        /// Also in a pause, which it ends.
        #[arg(long)]
        now: bool,
        /// `state_file` of the reply.
        state_file: PathBuf,
    },
    /// Let a warm job begin no copy until `unpause`.
    Pause {
        /// `state_file` of the reply.
        state_file: PathBuf,
    },
    /// End the pause of a warm job.
    Unpause {
        /// `state_file` of the reply.
        state_file: PathBuf,
    },
    /// Let a warm job copy what has changed now, not at the end of its interval.
    CopyNow {
        /// `state_file` of the reply.
        state_file: PathBuf,
    },
    /// Print the checksum of raw disks, as the state file of a two-phase job shows it: blake3-4MiB:HEX.
    ///
    /// It is BLAKE3 over the BLAKE3 digests of the disk's chunks of 4 MiB, the last one as long as it is. Holes are not
    /// read. The checksum in the state file is that of the source disk; the conversion then changes the copy. An image
    /// with a format (qcow2, vmdk) must be made raw first: qemu-img convert -O raw.
    Checksum {
        /// Raw disk images or block devices.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// The background process of a job; the program starts it itself.
    #[command(hide = true)]
    Worker {
        /// Where the job is.
        sealed: PathBuf,
        /// Where to say that it runs.
        ready: PathBuf,
    },
    /// Puts the source of a job back; the program starts it itself.
    #[command(hide = true)]
    PutBack {
        /// Where the job is.
        sealed: PathBuf,
    },
}

/// Runs the program; gives its exit code.
pub fn run(args: impl Iterator<Item = OsString>) -> u8 {
    let args: Vec<OsString> = args.collect();
    if let Some(name) = args.get(1).and_then(|arg| arg.to_str()?.strip_prefix("--check-")) {
        return checks::run(name, &mut stdout());
    }
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    if arguments.checks {
        return checks::list(&mut stdout());
    }
    let outcome = match arguments.verb {
        None => return start::start(&mut stdin().lock(), &mut stdout(), &mut stderr()),
        Some(Verb::Resume { tag }) => {
            // A person at a terminal who has no secrets to give should not have to end an empty input.
            let mut input = stdin().lock();
            let given = (!stdin().is_terminal()).then_some(&mut input as &mut dyn Read);
            return start::resume(&tag, given, &mut stdout(), &mut stderr());
        }
        Some(Verb::Cleanup { tag, discard }) => {
            let mut input = stdin().lock();
            let given = (!stdin().is_terminal()).then_some(&mut input as &mut dyn Read);
            cleanup::run(cleanup::Of { tag: &tag, discard }, given, &mut stdout())
        }
        Some(Verb::Plan { json }) => plan::run(json, &mut stdin().lock(), &mut stdout(), &mut stderr()),
        Some(Verb::Worker { sealed, ready }) => return worker::run(&sealed, &ready),
        Some(Verb::PutBack { sealed }) => return worker::put_back(&sealed),
        Some(Verb::Schema { which }) => stdout().write_all(schema::render(which).as_bytes()).map(|()| 0),
        Some(Verb::Watch { state_file }) => watch::run(&state_file, &mut stdout()),
        Some(Verb::Cutover { now, state_file }) => {
            let cutover = if now { Cutover::Now } else { Cutover::Asked };
            triggers::run(triggers::Ask::Cutover(cutover), &state_file, &mut stdout())
        }
        Some(Verb::Pause { state_file }) => triggers::run(triggers::Ask::Pause, &state_file, &mut stdout()),
        Some(Verb::Unpause { state_file }) => {
            triggers::run(triggers::Ask::Unpause, &state_file, &mut stdout())
        }
        Some(Verb::CopyNow { state_file }) => triggers::run(triggers::Ask::Copy, &state_file, &mut stdout()),
        Some(Verb::Checksum { files }) => checksum::run(&files, &mut stdout()),
        Some(Verb::Jobs { json, remove, force }) => {
            let remove = remove.as_deref().map(|tag| jobs::Removal { tag, force });
            jobs::run(json, remove, &mut stdout())
        }
    };
    match outcome {
        Ok(code) => code,
        // Whoever read our output stopped doing so: nothing is wrong.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => 0,
        Err(error) => complain(&chain(&error)),
    }
}

/// clap's own text; 1 for a mistake, since 2 means a failed conversion.
fn usage(error: &clap::Error) -> u8 {
    // A closed stream is nobody's error here.
    let _ = error.print();
    u8::from(error.use_stderr())
}

/// One line on stderr, exit code 1.
fn complain(text: &str) -> u8 {
    let _ = writeln!(stderr(), "virt-v2v-wrapper: {text}");
    1
}

fn parse_schema(name: &str) -> Result<schema::Schema, String> {
    schema::Schema::from_name(name).ok_or_else(|| {
        let names: Vec<&str> = schema::Schema::ALL.iter().map(|schema| schema.name()).collect();
        format!("there are {}", names.join(", "))
    })
}
