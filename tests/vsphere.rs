//! vSphere's client: against a scripted server that does what a simulator cannot, and against govmomi's simulator with
//! real disks behind it.
//!
//! These suites drive the library: no job opens a VMware machine by itself yet, and which call met an expired session
//! could not be seen from outside.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

/// Certificates made by openssl.
pub mod certificates;
/// Which areas of a disk changed, as hosts really tell it.
mod changes;
/// The scripted server's certificate and its clients.
mod lab;
/// Snapshots, tasks, power and changed areas against the scripted server.
mod operations;
/// The plan of a machine, running and off, and the job that it is a plan of.
mod planned;
/// Sessions that end, and servers that are slow, broken or bad.
mod scripted;
/// The scripted server.
mod server;
/// A simulated vCenter: machines are found, told, and their disks read.
pub mod simulator;
/// Certificates, logins, and what is in no log.
mod trust;
/// What a warm migration does to a machine, on the simulated vCenter.
mod warm;
