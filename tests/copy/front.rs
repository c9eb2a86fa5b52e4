//! nbdkit behind a script: filters that the program does not use itself, sources that a few lines of shell play, and what
//! was read of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::rig::Rig;
use crate::exports::site::find;

impl Rig {
    fn front(&mut self, text: &str) {
        // Under another name each time: the one before may still be run.
        let number = (0..).find(|number| !self.path(&format!("nbdkit-{number}")).exists()).unwrap();
        let script = self.path(&format!("nbdkit-{number}"));
        fs::write(&script, format!("#!/usr/bin/env bash\n{text}\n")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        self.nbdkit = script;
    }

    /// From now on disks are served with these arguments before those of the program (filters) and behind them (the
    /// filters' parameters); `shell` is run first.
    pub fn filtered(&mut self, shell: &str, before: &str, after: &str) {
        let nbdkit = find("nbdkit").unwrap();
        self.front(&format!("{shell}\nexec '{}' {before} \"$@\" {after}", nbdkit.display()));
    }

    /// From now on reads are noted, see [`Rig::reads`].
    pub fn logged(&mut self) {
        let log = format!("logfile='{}' logappend=true", self.reads_file().display());
        self.filtered("", "--filter=log", &log);
    }

    /// From now on disks are read by this shell before each read of `$3` bytes at `$4`, and served with these other
    /// parameters of nbdkit's plugin `eval`, words of a shell in which `$disk` is the disk. Reads are noted.
    pub fn played(&mut self, shell: &str, parameters: &str) {
        let text = format!(
            "disk=${{!#}}; disk=${{disk#file=}}; reads='{reads}'; export disk reads\n\
             exec '{nbdkit}' \"${{@:1:$#-2}}\" eval thread_model='echo parallel' get_size='stat -c %s \"$disk\"' \
             pread='echo \"Read id=0 offset=$4 count=$3\" >> \"$reads\"\n{shell}\nexec dd if=\"$disk\" skip=$4 count=$3 \
             iflag=skip_bytes,count_bytes bs=1M status=none' {parameters}",
            reads = self.reads_file().display(),
            nbdkit = find("nbdkit").unwrap().display(),
        );
        self.front(&text);
    }

    fn reads_file(&self) -> PathBuf {
        self.path("reads")
    }

    /// What was read of the source, in order: offset, length.
    pub fn reads(&self) -> Vec<(u64, u64)> {
        let log = fs::read_to_string(self.reads_file()).unwrap_or_default();
        let number = |line: &str, key: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(key))?;
            match word.strip_prefix("0x") {
                Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16).ok(),
                None => word.parse().ok(),
            }
        };
        let reads = log.lines().filter(|line| line.contains("Read id="));
        reads.filter_map(|line| Some((number(line, "offset=")?, number(line, "count=")?))).collect()
    }
}
