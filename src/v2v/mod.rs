//! virt-v2v as a tool: what it can do, how it is called, what it says, why it failed. All pure.
//!
//! * [`capabilities`] reads the lines of `virt-v2v --machine-readable`
//! * [`args`] makes the command line and the environment from the plan
//! * [`clouds`] hides OpenStack credentials from the command line
//! * [`output`] turns log bytes into [`crate::event::Event`]s
//! * [`failure`] finds the sentence a person needs in what was said

pub mod args;
pub mod capabilities;
pub mod clouds;
pub mod failure;
pub mod output;
pub mod probe;
