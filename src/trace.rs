//! Seeing the signals that somebody sends to virt-v2v.
//!
//! Clients cancel by `kill <pid of virt-v2v>` (contract.md 9.5), and virt-v2v acts on SIGTERM only when the running
//! libguestfs call returns: half a minute in inspection, more than a minute while the appliance boots
//! (virt-v2v-output.md 1, fact 7), by which time clients send SIGKILL, which leaves qemu-nbd behind. So the worker
//! traces virt-v2v's signals, and only those, and cancels the whole group as soon as one is meant to end it.
//!
//! Signals are passed on unchanged. Where tracing is forbidden (Yama scope 3, SELinux `deny_ptrace`) nothing is lost
//! but the quick cancel. Should the worker die, the kernel lets virt-v2v go on.

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

/// Begins to see the signals of a child.
pub fn watch(pid: Pid) {
    if let Err(error) = ptrace::seize(pid, ptrace::Options::empty()) {
        tracing::info!("signals to {pid} cannot be seen ({error}): it is cancelled when it reacts itself");
    }
}

/// Lets a traced process go on after a stop that `waitpid` reported. Gives the signal that is being delivered.
pub fn resume(status: WaitStatus) -> Option<(Pid, Signal)> {
    match status {
        WaitStatus::Stopped(pid, signal) => {
            note(pid, ptrace::cont(pid, signal));
            Some((pid, signal))
        }
        // The stop of job control (SIGSTOP): whoever stopped it shall find it stopped, so it is let go for good.
        WaitStatus::PtraceEvent(pid, signal, _) if is_stop(signal) => {
            note(pid, ptrace::detach(pid, None));
            None
        }
        WaitStatus::PtraceEvent(pid, ..) => {
            note(pid, ptrace::cont(pid, None));
            None
        }
        _ => None,
    }
}

fn is_stop(signal: Signal) -> bool {
    matches!(signal, Signal::SIGSTOP | Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU)
}

fn note(pid: Pid, done: nix::Result<()>) {
    // ESRCH: killed meanwhile, which the next wait reports.
    if let Err(error) = done {
        tracing::debug!("{pid} could not be let go on: {error}");
    }
}
