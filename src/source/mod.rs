//! Sources: where a guest comes from, a folder or file each.

pub mod local;
