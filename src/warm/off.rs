//! The machine is switched off for its last copy, as far as the user lets us (`shutdown_mode`), or waited for.
//!
//! Nobody's machine is switched off unasked: the default refuses a running one (contract.md 6.3). What was switched off by
//! us is in the journal before, and runs again after a failure ([`crate::source::vsphere::restore`]). Called for the last
//! round of a warm migration, and before the only copy of a cold one.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::WarmError;
use crate::event::Event;
use crate::guest::Guest;
use crate::journal::{Entry, Journal};
use crate::log::chain;
use crate::plan::{self, Shutdown, ShutdownMode};
use crate::source::vsphere::machine::PowerState;
use crate::source::vsphere::{Tools, Vsphere};

/// How long a guest may take to shut down before it is switched off (peers.md 2.6).
pub(crate) const GUEST_PATIENCE: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// vSphere may be away for so long while a machine is waited for.
const LOST_PATIENCE: Duration = Duration::from_secs(600);

/// Who is switched off, and who is told.
pub(crate) struct Off<'a> {
    pub(crate) vsphere: &'a Vsphere,
    pub(crate) machine: &'a str,
    pub(crate) guest: &'a Guest,
    pub(crate) shutdown: &'a Shutdown,
    /// Of this host: how long it is patient.
    pub(crate) tools: &'a plan::Tools,
    pub(crate) tell: &'a UnboundedSender<Event>,
}

/// How long the storage may settle after a machine went off: what it wrote last is on its way.
pub(crate) fn settle(shutdown: &Shutdown, guest: &Guest) -> Duration {
    Duration::from_secs(match shutdown.settle {
        0 if guest.is_windows() => 30,
        0 => 15,
        seconds => seconds,
    })
}

impl Off<'_> {
    /// Gives when the machine is off, and has settled if it ran.
    pub(crate) async fn reach(&self, journal: &mut Journal) -> Result<(), WarmError> {
        let power = self.vsphere.power(self.machine).await?;
        match power.state {
            PowerState::Off => return Ok(()),
            PowerState::Suspended => {
                let (name, moref) = (self.guest.name.clone(), self.machine.to_owned());
                return Err(WarmError::Suspended { name, moref });
            }
            PowerState::On | PowerState::Unknown => {}
        }
        match self.shutdown.mode {
            ShutdownMode::Never => {
                let (name, moref) = (self.guest.name.clone(), self.machine.to_owned());
                return Err(WarmError::Running { name, moref });
            }
            ShutdownMode::Manual => self.wait_for("to be shut down", None).await.map(drop)?,
            ShutdownMode::Force => {
                journal.record(&Entry::SwitchedOff)?;
                self.vsphere.power_off(self.machine).await?;
                self.wait_for("to be off", None).await?;
            }
            ShutdownMode::Auto if power.tools == Tools::Running => self.shut_down(journal).await?,
            ShutdownMode::Auto => {
                let what = "to be shut down by somebody, because its VMware Tools do not run";
                self.wait_for(what, None).await?;
            }
        }
        let settle = settle(self.shutdown, self.guest);
        self.await_thing(Some(format!("{} s for the storage to settle", settle.as_secs())));
        tokio::time::sleep(settle).await;
        self.await_thing(None);
        Ok(())
    }

    /// The guest is asked, and after a while not asked any more.
    async fn shut_down(&self, journal: &mut Journal) -> Result<(), WarmError> {
        journal.record(&Entry::SwitchedOff)?;
        let patience = self.tools.patience(GUEST_PATIENCE);
        let why = match self.vsphere.shut_down_guest(self.machine).await {
            Ok(()) if self.wait_for("to shut down", Some(patience)).await? => return Ok(()),
            Ok(()) => format!("did not shut down within {} s", patience.as_secs()),
            Err(error) => format!("could not be asked to shut down ({})", chain(&error)),
        };
        let text = format!("VM \"{}\" {why} and was switched off", self.guest.name);
        drop(self.tell.send(Event::Warning { text }));
        self.vsphere.power_off(self.machine).await?;
        self.wait_for("to be off", None).await.map(drop)
    }

    /// Waits until the machine is off; false when `patience` is over before.
    async fn wait_for(&self, what: &str, patience: Option<Duration>) -> Result<bool, WarmError> {
        self.await_thing(Some(format!("VM \"{}\" {what}", self.guest.name)));
        let began = Instant::now();
        let mut seen = Instant::now();
        let off = loop {
            match self.vsphere.power(self.machine).await {
                Ok(power) if power.state == PowerState::Off => break true,
                Ok(_) => seen = Instant::now(),
                // People take their time, and meanwhile a vCenter may be restarted.
                Err(error) if seen.elapsed() < self.tools.patience(LOST_PATIENCE) => {
                    tracing::warn!("{}", chain(&error))
                }
                Err(error) => return Err(error.into()),
            }
            if patience.is_some_and(|patience| began.elapsed() >= patience) {
                break false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        self.await_thing(None);
        Ok(off)
    }

    fn await_thing(&self, what: Option<String>) {
        drop(self.tell.send(Event::WaitingFor { what }));
    }
}
