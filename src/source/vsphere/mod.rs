//! VMware through vSphere's own API: what a two-phase conversion must know of a machine before its disks are read.
//!
//! ```text
//! vmware_uri ─► address ─┐                       soap, properties: text ─► values
//! vmware_fingerprint ─► tls ─► client ─► inventory ─► machine ─► Opened: one vddk export a disk
//!                                │                       └─► verdict: which disks can be copied warm
//!                                └─► operations, snapshot, power, tracking ─► task
//! ```
//!
//! A SOAP client of our own, for about two dozen methods (crates.md 3.12): `urn:vim25` is the same from 5.5 to 9, on
//! vCenters and on hosts. Pure: [`address`], [`soap`], [`properties`], [`machine`], [`verdict`], [`error`]. Edges:
//! [`client`], [`inventory`], [`operations`], [`snapshot`], [`power`], [`tracking`], [`task`], whose readers and loops are
//! pure. One-phase conversions do not come here: virt-v2v asks libvirt.
//!
//! [`open`] is all that a cold copy needs: nbdkit's vddk plugin has a session of its own. What must watch the machine
//! while it is copied holds a [`Vsphere`], keeps it alive, and closes it.

use std::path::PathBuf;

use secrecy::SecretString;

use crate::export::Export;
use crate::job::Job;
use crate::plan;
use crate::source::{Opened, SourceDisk};

pub mod address;
pub mod client;
pub mod error;
pub mod inventory;
pub mod machine;
pub mod operations;
pub mod power;
pub mod properties;
pub mod restore;
pub mod snapshot;
pub mod soap;
pub mod task;
pub mod tracking;
pub mod verdict;

pub use inventory::Which;
pub use operations::OperationError;
pub use power::{Power, Tools};
pub use snapshot::{FoundSnapshot, NewSnapshot, Snapshot, SnapshotDisk};
pub use tracking::ChangesError;
pub use verdict::{DiskVerdict, Verdict};

use crate::tls::Trust;
use address::{Address, Kind};
use client::{Client, Patience};
use machine::{Inventory, PowerState};

/// Largest read of a disk in bytes: what an ESXi host answers in one piece, and what a vCenter's NFC memory bears
/// (contract.md 6.3; peers.md 6.3, row 23).
const READ_OF_HOST: u32 = 23 << 20;
const READ_OF_VCENTER: u32 = 2 << 20;
/// Each connection is a disk opened by VDDK, so an NFC session of the host, which has few for all disks of all jobs
/// (peers.md 6.3, row 24). Requests on one of them overlap anyhow.
const CONNECTIONS: usize = 1;
/// Over the network only. Left to itself VDDK also tries to attach the disk to the machine it runs in, which a killed job
/// would leave attached; with snapshots it fails without this (peers.md 6.3, row 26).
const TRANSPORTS: &str = "nbdssl:nbd";

/// The machine cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum VsphereError {
    /// The plan is about something else.
    #[error("the source of this job is not VMware over VDDK")]
    OtherSource,
    /// `vmware_uri`.
    #[error(transparent)]
    Address(#[from] address::AddressError),
    /// `vmware_fingerprint`.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// The server.
    #[error(transparent)]
    Client(#[from] error::ClientError),
    /// The machine is not found.
    #[error(transparent)]
    Inventory(#[from] inventory::InventoryError),
    /// It is not off. Begins with the contract's words (6.3).
    #[error("Cannot perform final copy for running VM \"{name}\" ({moref}): it is {}", state(*power))]
    Running {
        /// The machine.
        name: String,
        /// Its id.
        moref: String,
        /// What it does.
        power: PowerState,
    },
    /// Nothing to copy.
    #[error("VM \"{name}\" ({moref}) has no disk")]
    NoDisk {
        /// The machine.
        name: String,
        /// Its id.
        moref: String,
    },
}

fn state(power: PowerState) -> &'static str {
    match power {
        PowerState::Off => "off",
        PowerState::On => "switched on. Shut it down and start the job again",
        PowerState::Suspended => "suspended. Resume it, shut it down and start the job again",
        PowerState::Unknown => {
            "in a state that vSphere does not tell. See in the client that its host is connected, switch it off and \
             start the job again"
        }
    }
}

/// Logs in, reads the machine of the plan, and logs out. Refuses a machine that is not off.
///
/// Opened again it gives other marks if the machine was switched on in between, and refuses it if it still is.
pub async fn open(job: &Job) -> Result<Opened, VsphereError> {
    let vsphere = Vsphere::connect(&job.plan).await?;
    let opened = vsphere.open(&job.plan.vm_name).await;
    vsphere.close().await;
    opened
}

/// A session with the vSphere of a plan.
#[derive(Debug)]
pub struct Vsphere {
    client: Client,
    address: Address,
    password: SecretString,
    libdir: PathBuf,
    which: Option<plan::Machine>,
}

impl Vsphere {
    /// Logs in.
    pub async fn connect(plan: &plan::Plan) -> Result<Self, VsphereError> {
        let plan::Source::Vddk { uri, thumbprint, ca_bundle, password, libdir, which } = &plan.source else {
            return Err(VsphereError::OtherSource);
        };
        let address = Address::parse(uri)?;
        let trust = Trust::new(thumbprint.as_deref(), address.no_verify, ca_bundle.as_deref())?;
        let usual = Patience::default();
        let length = |usual| plan.tools.patience(usual);
        let patience = Patience { connect: length(usual.connect), answer: length(usual.answer) };
        let client = Client::login(&address, password.clone(), trust, patience).await?;
        let (password, libdir, which) = (password.clone(), libdir.clone(), which.clone());
        Ok(Self { client, address, password, libdir, which })
    }

    /// The session itself, for further calls.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// All that is known of the machine of this name, running or not.
    pub async fn machine(&self, name: &str) -> Result<Inventory, VsphereError> {
        Ok(inventory::by_name(&self.client, name).await?)
    }

    /// All that is known of a machine; its guest is called as it is there.
    pub async fn find(&self, which: Which<'_>) -> Result<Inventory, VsphereError> {
        Ok(inventory::find(&self.client, which).await?)
    }

    /// The machine that the plan means: the one of `vmware_moref` or `vmware_inventory_path`, or the one of this name. Its
    /// guest is called `name` in any case.
    pub async fn planned(&self, name: &str) -> Result<Inventory, VsphereError> {
        let mut machine = match &self.which {
            None => return self.machine(name).await,
            Some(plan::Machine::Moref(moref)) => self.find(Which::Moref(moref)).await?,
            Some(plan::Machine::Path(path)) => self.find(Which::Path(path)).await?,
        };
        name.clone_into(&mut machine.guest.name);
        Ok(machine)
    }

    /// The machine that the plan means with its disks ready to be served; refused unless it is off.
    pub async fn open(&self, name: &str) -> Result<Opened, VsphereError> {
        let machine = self.planned(name).await?;
        let moref = machine.moref.clone();
        tracing::info!("VM {name:?} is {moref} with {} disks", machine.backings.len());
        if machine.power != PowerState::Off {
            return Err(VsphereError::Running { name: name.to_owned(), moref, power: machine.power });
        }
        if machine.backings.is_empty() {
            return Err(VsphereError::NoDisk { name: name.to_owned(), moref });
        }
        let disks = (0..machine.backings.len()).filter_map(|disk| self.disk(&machine, disk)).collect();
        Ok(Opened { guest: machine.guest, disks, domain: None, warnings: Vec::new() })
    }

    /// Keeps the session, to be called every few minutes; begins a new one if it is lost.
    pub async fn keep_alive(&self) -> Result<(), VsphereError> {
        Ok(self.client.keep_alive().await?)
    }

    /// Logs out. A session that is only dropped is the server's for another 30 minutes.
    pub async fn close(self) {
        self.client.close().await;
    }

    /// A file of a machine's disk. Without a snapshot the machine must be off.
    pub fn export(&self, moref: &str, file: &str, snapshot: Option<&str>) -> Export {
        Export::Vddk {
            server: self.address.host.clone(),
            port: self.address.unusual_port(),
            user: self.address.user.clone(),
            password: self.password.clone(),
            moref: moref.to_owned(),
            thumbprint: self.client.thumbprint(),
            libdir: self.libdir.clone(),
            file: file.to_owned(),
            snapshot: snapshot.map(str::to_owned),
            transports: Some(TRANSPORTS.to_owned()),
        }
    }

    /// The same, with how it is best read.
    pub fn served(&self, export: Export, absolute_path: Option<String>) -> SourceDisk {
        let read_size = match self.address.kind {
            Kind::Host => READ_OF_HOST,
            Kind::Vcenter => READ_OF_VCENTER,
        };
        SourceDisk { export, absolute_path, mark: None, read_size, connections: CONNECTIONS }
    }

    fn disk(&self, machine: &Inventory, disk: usize) -> Option<SourceDisk> {
        let backing = machine.backings.get(disk)?;
        // The machine is off: its newest file is what it would start from.
        let export = self.export(&machine.moref, &backing.file, None);
        let served = self.served(export, backing.absolute_path.clone());
        Some(SourceDisk { mark: machine.mark(disk), ..served })
    }
}
