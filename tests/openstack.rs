//! OpenStack as a destination: the real program, a fake virt-v2v, and at the other end the real services (`real`) or an
//! OpenStack in memory whose requests fail one after the other (`fake`). That the fake is one is `honest`'s.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

/// Killed between what is made and its record.
mod cut;
/// An OpenStack in memory.
pub mod fake;
/// Each request of a job fails once, in each way.
mod faults;
/// The fake against the real services.
mod honest;
/// HTTP.
pub mod http;
/// HTTPS, and whose certificate is believed.
mod https;
/// The real services, started once.
pub mod lab;
/// Volumes of servers as devices of this host.
pub mod plugger;
/// Jobs on the real services.
mod real;
/// A guest of them that goes to another project.
mod real_source;
/// A guest converted there by the real virt-v2v.
mod real_virt_v2v;
/// What is refused or told before virt-v2v runs, and odd names.
mod refused;
/// A sandbox and a fake cloud.
pub mod site;
/// Clouds that do and show less than most.
mod sparing;
/// Jobs from their beginning to their end.
mod whole;
