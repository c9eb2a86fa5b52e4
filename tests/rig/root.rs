//! A root directory of its own for one program: what it writes outside its case is gone with it.
//!
//! For paths that are fixed (`/data` of a container). All of the machine is seen there, through an overlay whose upper layer
//! is memory; the case's directory is the real one.

use std::path::Path;
use std::process::Command;

use crate::exports::site::skip;

/// May a program have one here? Skips with a reason otherwise.
pub fn possible() -> bool {
    let may = Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    may.is_ok_and(|output| output.status.success()) || skip("only root may make a mount namespace")
}

/// Words before a program: in `directory`, where only the root is made, with this shell before the program begins, in
/// which `$root` is the new root and `$case` the directory. The pid stays.
pub fn words(directory: &Path, shell: &str) -> Vec<String> {
    let script = format!(
        "set -e; case=$1; programs=$2; shift 2\n\
         mount -t tmpfs none /mnt; mkdir /mnt/upper /mnt/work /mnt/root; root=/mnt/root\n\
         mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work none $root\n\
         for place in /proc /dev /sys \"$programs\" \"$case\"; do\n\
         mkdir -p \"$root$place\"; mount --rbind \"$place\" \"$root$place\"; done\n\
         {shell}\nexec chroot $root \"$@\""
    );
    let case = directory.to_str().expect("path");
    let program = Path::new(env!("CARGO_BIN_EXE_virt-v2v-wrapper"));
    let programs = program.parent().and_then(Path::to_str).expect("path");
    ["unshare", "-m", "sh", "-c", &script, "sh", case, programs].map(str::to_owned).to_vec()
}
