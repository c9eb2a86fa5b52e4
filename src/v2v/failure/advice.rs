//! What a person can do about each failure of virt-v2v (virt-v2v-output.md 4): data, and the search in it.

/// What to do about a text of virt-v2v. The first entry whose words all occur in the evidence is used, so the
/// more special ones come first. `{target}` stands for the disk being written.
pub(super) const ADVICE: &[(&[&str], &str)] = &[
    (
        &["No space left for the overlay"],
        "The conversion host's temporary directory is full: free space there, or name another one (`tmp_dir` of the \
         site configuration), and convert again.",
    ),
    (
        &["No space left on device"],
        "The destination{target} is full: free space there, or choose another destination, and convert again.",
    ),
    (
        &["could not find key to open LUKS"],
        "None of the given keys opens that device: put its right key into the LUKS keys vault, and convert again.",
    ),
    (
        &["could not read key from user"],
        "A disk of the guest is encrypted and no key was given for it: add the device (for example /dev/sda1) and \
         its key to the LUKS keys vault, and convert again.",
    ),
    (
        &["mount", "/dev/mapper/", "No such file"],
        "The guest's /etc/fstab names an encrypted filesystem by its /dev/mapper name, which virt-v2v does not \
         find: name it by UUID in the guest's fstab, and convert again.",
    ),
    (
        &["inspection could not detect"],
        "No operating system that virt-v2v knows was found: check that the disks are not blank, that the boot disk \
         is among them, and that every encrypted disk has a key.",
    ),
    (
        &["no installed kernel packages were found"],
        "The guest's package database lists no kernel: install or repair the kernel package in the guest, and \
         convert again.",
    ),
    (
        &["not enough free space for conversion"],
        "Free space on that filesystem in the guest, and convert again.",
    ),
    (
        &["insufficient free space in the conversion server temporary directory"],
        "Free at least 1 GB in that directory of the conversion host, or name another one (`tmp_dir` of the site \
         configuration, or LIBGUESTFS_CACHEDIR).",
    ),
    (
        &["output directory does not exist"],
        "Create that directory on the conversion host, or correct the document's output directory.",
    ),
    (
        &["libvirt", "Failed to connect socket"],
        "libvirt is not running on the conversion host, or not reachable there: start its service (libvirtd or \
         virtqemud), or name another libvirt.",
    ),
    (
        &["asked for a password"],
        "virt-v2v asked for the password of the source and got none: give it in the document (`vmware_password`).",
    ),
    (
        &["unknown -o option"],
        "This virt-v2v does not know that output mode: install a version that has it (`virt-v2v --machine-readable` \
         lists the modes), or choose another destination.",
    ),
    (
        &["unrecognized option"],
        "This virt-v2v does not know that option, it is too old or too new for it: install a version that has it.",
    ),
    (&["not present"], "A setting that this destination needs is missing: add it to the document."),
    (&["was not specified"], "A setting that this destination needs is missing: add it to the document."),
    (
        &["guestfs_launch failed"],
        "The libguestfs appliance did not start: run libguestfs-test-tool on the conversion host, and check the free \
         memory and /dev/kvm; where that does not work, set libguestfs_backend_settings = \"force_tcg\" in the site \
         configuration.",
    ),
    (
        &["No such file or directory"],
        "That file does not exist on the source or on the conversion host: check the path and the name of the guest.",
    ),
    (
        &["Permission denied"],
        "The user that runs the conversion must be allowed to open that file: check its owner, mode and SELinux label.",
    ),
    (
        &["nbdcopy command failed"],
        "A disk could not be read or written: look for the cause just before the error in virt-v2v.log.",
    ),
];

/// The advice for what was printed.
pub(super) fn advice(evidence: &str) -> Option<&'static str> {
    ADVICE
        .iter()
        .find(|(words, _)| words.iter().all(|word| evidence.contains(word)))
        .map(|(_, advice)| *advice)
}
