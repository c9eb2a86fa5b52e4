//! Is a machine running, and the ways to stop and start it. The methods are an edge, [`Power`] is read by a pure function.
//!
//! Asking a guest to shut down is no task: nobody knows whether it obeys (peers.md 6.3, row 48). Who asks looks at
//! [`Vsphere::power`] until it is off or has waited long enough.

use std::time::Duration;

use super::Vsphere;
use super::machine::PowerState;
use super::operations::{OperationError, machine};
use super::properties::Object;
use super::soap::Call;

/// Switching on may wait for a host that has room; switching off takes seconds.
const SWITCHING: Duration = Duration::from_secs(600);

const STATE: &str = "runtime.powerState";
const RUNNING: &str = "guest.toolsRunningStatus";
const VERSION: &str = "guest.toolsVersionStatus2";
/// What servers before 5.0 tell, and all others too.
const STATUS: &str = "guest.toolsStatus";
const GUEST: &str = "guest.guestState";

/// VMware Tools in the guest: without them it is not shut down, nor are its file systems brought to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tools {
    /// They run.
    Running,
    /// They are installed and do not run; so it is also while the machine is off.
    NotRunning,
    /// They are not installed.
    NotInstalled,
    /// The server does not say.
    Unknown,
}

/// What the guest's tools say it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestState {
    /// It runs.
    Running,
    /// It was asked to shut down and does so.
    ShuttingDown,
    /// They say nothing, as at the end of a shutdown.
    Unknown,
}

/// Whether a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Power {
    /// It itself.
    pub state: PowerState,
    /// Tools in its guest.
    pub tools: Tools,
    /// The guest.
    pub guest: GuestState,
}

/// Reads what [`Vsphere::power`] asked for.
pub(super) fn power(object: &Object) -> Power {
    let state = object.text(STATE).map_or(PowerState::Unknown, PowerState::of);
    let installed = object.text(VERSION) != Some("guestToolsNotInstalled")
        && object.text(STATUS) != Some("toolsNotInstalled");
    let tools = match (object.text(RUNNING), object.text(STATUS)) {
        (Some("guestToolsRunning" | "guestToolsExecutingScripts"), _) => Tools::Running,
        _ if !installed => Tools::NotInstalled,
        (Some("guestToolsNotRunning"), _) => Tools::NotRunning,
        (_, Some("toolsOk" | "toolsOld")) => Tools::Running,
        (_, Some("toolsNotRunning")) => Tools::NotRunning,
        _ => Tools::Unknown,
    };
    let guest = match object.text(GUEST) {
        Some("running") => GuestState::Running,
        Some("shuttingDown") => GuestState::ShuttingDown,
        _ => GuestState::Unknown,
    };
    Power { state, tools, guest }
}

impl Vsphere {
    /// Does it run, and do its tools?
    pub async fn power(&self, moref: &str) -> Result<Power, OperationError> {
        Ok(power(&self.told(&machine(moref), &[STATE, RUNNING, VERSION, STATUS, GUEST]).await?))
    }

    /// Asks the guest to shut down; returns when it was asked. Needs tools that run.
    pub async fn shut_down_guest(&self, moref: &str) -> Result<(), OperationError> {
        let asked = self.client.call(&Call::new("ShutdownGuest", &machine(moref))).await.map(drop);
        self.unless(moref, PowerState::Off, asked.map_err(OperationError::Client)).await
    }

    /// Switches it off, whatever its guest does. Off already is well.
    pub async fn power_off(&self, moref: &str) -> Result<(), OperationError> {
        let done = self.run(&Call::new("PowerOffVM_Task", &machine(moref)), SWITCHING).await.map(drop);
        self.unless(moref, PowerState::Off, done).await
    }

    /// Switches it on. On already is well.
    pub async fn power_on(&self, moref: &str) -> Result<(), OperationError> {
        let done = self.run(&Call::new("PowerOnVM_Task", &machine(moref)), SWITCHING).await.map(drop);
        self.unless(moref, PowerState::On, done).await
    }

    /// A refusal because of the machine's state is none if that is the state that was wanted. Asked, not read out of the
    /// fault: between the two it may have changed.
    async fn unless(
        &self,
        moref: &str,
        wanted: PowerState,
        done: Result<(), OperationError>,
    ) -> Result<(), OperationError> {
        let Err(error) = done else { return Ok(()) };
        if error.fault().is_some_and(|fault| fault.kind == "InvalidPowerState")
            && self.power(moref).await?.state == wanted
        {
            return Ok(());
        }
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::vsphere::properties::page;
    use crate::source::vsphere::soap::{Answer, parse};

    fn told(properties: &[(&str, &str)]) -> Power {
        let sets: String = properties
            .iter()
            .map(|(name, value)| format!("<propSet><name>{name}</name><val>{value}</val></propSet>"))
            .collect();
        let text = format!(
            "<Envelope><Body><r><returnval><objects><obj type='VirtualMachine'>vm-1</obj>{sets}</objects></returnval></r>\
             </Body></Envelope>"
        );
        let Answer::Response(response) = parse(text.as_bytes()).unwrap() else { panic!("a fault") };
        power(&page(&response).objects[0])
    }

    /// Servers of all versions; what is not told is not taken for anything.
    #[test]
    fn tools_run_only_where_the_server_says_so() {
        for (properties, tools) in [
            (&[(RUNNING, "guestToolsRunning"), (STATUS, "toolsOk")][..], Tools::Running),
            (&[(RUNNING, "guestToolsExecutingScripts")], Tools::Running),
            // open-vm-tools of the distribution.
            (&[(RUNNING, "guestToolsRunning"), (VERSION, "guestToolsUnmanaged")], Tools::Running),
            (&[(RUNNING, "guestToolsNotRunning"), (VERSION, "guestToolsCurrent")], Tools::NotRunning),
            (&[(RUNNING, "guestToolsNotRunning"), (VERSION, "guestToolsNotInstalled")], Tools::NotInstalled),
            (&[(RUNNING, "guestToolsNotRunning"), (STATUS, "toolsNotInstalled")], Tools::NotInstalled),
            (&[(STATUS, "toolsOld")], Tools::Running),
            (&[(STATUS, "toolsNotRunning")], Tools::NotRunning),
            (&[(STATUS, "toolsNotInstalled")], Tools::NotInstalled),
            (&[(RUNNING, "who knows")], Tools::Unknown),
            (&[], Tools::Unknown),
        ] {
            assert_eq!(told(properties).tools, tools, "{properties:?}");
        }
    }

    #[test]
    fn only_the_word_off_is_off() {
        for (word, state) in [
            ("poweredOff", PowerState::Off),
            ("poweredOn", PowerState::On),
            ("suspended", PowerState::Suspended),
            ("off", PowerState::Unknown),
        ] {
            assert_eq!(told(&[(STATE, word)]).state, state, "{word}");
        }
        assert_eq!(told(&[]).state, PowerState::Unknown);
    }
}
