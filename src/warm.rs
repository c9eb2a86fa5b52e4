//! Warm migration: a machine that runs while it is copied, in rounds, until somebody asks for the last one.
//!
//! Here is what does not talk to a hypervisor: when the next round begins ([`schedule`], pure), what clients ask for by
//! files in the job's directory ([`triggers`]), and the waiting between two rounds ([`wait`]). The rounds themselves are
//! [`crate::two_phase`]'s.

pub mod schedule;
pub mod triggers;
pub mod wait;
