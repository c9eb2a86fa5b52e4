//! Images of this host.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use virt_v2v_wrapper::guest::{Bus, Firmware};

use super::*;

const QEMU: &[&str] = &["nbdkit", "qemu-nbd", "qemu-img", "qemu-io"];

/// Images in their order, each in its own format, a chain included; a write anywhere below an image is noticed.
#[test]
fn images_of_any_format_are_one_guest_and_a_change_is_noticed() {
    if !have(QEMU) {
        return;
    }
    let directory = private();
    let at = |name: &str| directory.path().join(name);
    marked_disk(&at("one.raw"), 1);
    marked_disk(&at("two.raw"), 2);
    for create in [
        "convert -f raw -O qcow2 two.raw base.qcow2",
        "create -q -f qcow2 -b base.qcow2 -F qcow2 top,1.qcow2",
        "convert -f raw -O vhdx two.raw three.vhdx",
    ] {
        qemu_img(directory.path(), create);
    }
    let write = |pattern: &str, image: &str| {
        let command = format!("write -P {pattern} 1M 64k");
        site::run(Command::new("qemu-io").args(["-f", "qcow2", "-c", &command]).arg(at(image)));
    };
    write("0x5a", "top,1.qcow2");
    let job = job(&json!({"transport_method": "local",
        "source_disks": [at("one.raw"), at("top,1.qcow2"), at("three.vhdx")]}));
    run(async {
        let opened = open(&job, directory.path()).await.unwrap();
        let guest = &opened.guest;
        assert_eq!((guest.name.as_str(), guest.vcpus, guest.memory_kib), ("guest", 2, 2 << 20));
        let path = |name: &str| at(name).display().to_string();
        let seen: Vec<_> =
            guest.disks.iter().map(|disk| (disk.path.clone(), disk.label.as_str(), disk.bus)).collect();
        assert_eq!(
            seen,
            [
                (path("one.raw"), "Hard disk 1", Bus::Scsi),
                (path("top,1.qcow2"), "Hard disk 2", Bus::Scsi),
                (path("three.vhdx"), "Hard disk 3", Bus::Scsi),
            ]
        );
        assert!(opened.domain.is_none() && opened.warnings.is_empty());
        let expected = [
            fs::read(at("one.raw")).unwrap(),
            oracle(directory.path(), "qcow2", "top,1.qcow2"),
            oracle(directory.path(), "vhdx", "three.vhdx"),
        ];
        assert_reads(&opened, &expected, directory.path()).await;

        let before = marks_of(&opened);
        assert!(before.iter().all(Option::is_some), "{before:?}");
        assert_eq!(marks(&job, &opened).await, before, "reading is no change");
        // Not the image that was named: the one it stands on.
        write("0x77", "base.qcow2");
        let after = marks(&job, &opened).await;
        assert_eq!((&after[0], &after[2]), (&before[0], &before[2]));
        assert_ne!(after[1], before[1]);
    });
}

/// What stands in an XML is the guest, and its text goes on; its relative paths begin beside it.
#[test]
fn a_libvirt_xml_is_opened_and_kept() {
    if !have(QEMU) {
        return;
    }
    let directory = private();
    let at = |name: &str| directory.path().join(name);
    marked_disk(&at("a & b.raw"), 1);
    marked_disk(&at("two.raw"), 2);
    qemu_img(directory.path(), "convert -f raw -O qcow2 two.raw two.img");
    let xml = format!(
        "<domain type='kvm'><name>other</name><memory unit='MiB'>512</memory><vcpu>3</vcpu><os firmware='efi'/>\
         <devices><disk type='file' device='disk'><driver type='raw'/><source file='a &amp; b.raw'/>\
         <target dev='vda' bus='virtio'/></disk>\
         <disk type='file' device='cdrom'><target dev='sdc' bus='sata'/></disk>\
         <disk type='file' device='disk'><source file='{}'/><target dev='sda' bus='sata'/></disk></devices></domain>",
        at("two.img").display()
    );
    fs::write(at("guest.xml"), &xml).unwrap();
    let job = local_job(&at("guest.xml"));
    run(async {
        let opened = open(&job, directory.path()).await.unwrap();
        assert_eq!(opened.domain.as_deref(), Some(xml.as_str()));
        assert_eq!((opened.guest.name.as_str(), opened.guest.memory_kib), ("guest", 512 << 10));
        assert_eq!(opened.guest.firmware, Firmware::Efi { secure_boot: false });
        assert_eq!(opened.guest.disks[0].path, at("a & b.raw").display().to_string());
        let expected = [fs::read(at("a & b.raw")).unwrap(), fs::read(at("two.raw")).unwrap()];
        assert_reads(&opened, &expected, directory.path()).await;
    });
    let network = xml.replace("type='file' device='disk'><source file", "type='network'><source name");
    fs::write(at("guest.xml"), network).unwrap();
    let error = run(open(&job, directory.path())).unwrap_err();
    assert!(error.contains("guest.xml") && error.contains("disk sda is of type network"), "{error}");
}

/// Two controllers with equal units are two disks (peers.md 6.3, row 31); a split vmdk and a snapshot's chain are read
/// as VMware would.
#[test]
fn a_vmx_with_equal_units_a_split_disk_and_a_snapshot_is_opened() {
    if !have(QEMU) {
        return;
    }
    let directory = private();
    let at = |name: &str| directory.path().join(name);
    for (name, mark) in [("one.raw", 1), ("two.raw", 2), ("three.raw", 3)] {
        marked_disk(&at(name), mark);
    }
    for create in [
        "convert -f raw -O vmdk -o subformat=twoGbMaxExtentSparse one.raw one.vmdk",
        "convert -f raw -O vmdk two.raw two.vmdk",
        "create -q -f vmdk -b two.vmdk -F vmdk two-000001.vmdk",
        "convert -f raw -O vmdk -o subformat=monolithicFlat three.raw three.vmdk",
    ] {
        qemu_img(directory.path(), create);
    }
    site::run(
        Command::new("qemu-io").args(["-f", "vmdk", "-c", "write -P 0x99 4M 64k"]).arg(at("two-000001.vmdk")),
    );
    let vmx = format!(
        ".encoding = \"UTF-8\"\ndisplayName = \"other\"\nmemsize = \"256\"\nfirmware = \"efi\"\n\
         ide0:0.present = \"TRUE\"\nide0:0.fileName = \"{}\"\n\
         scsi1:0.present = \"TRUE\"\nscsi1:0.fileName = \"two-000001.vmdk\"\n\
         scsi0:0.present = \"TRUE\"\nscsi0:0.deviceType = \"scsi-hardDisk\"\nscsi0:0.fileName = \"one.vmdk\"\n\
         sata0:0.present = \"TRUE\"\nsata0:0.deviceType = \"cdrom-image\"\nsata0:0.fileName = \"x.iso\"\n",
        at("three.vmdk").display()
    );
    fs::write(at("guest.vmx"), &vmx).unwrap();
    let job = local_job(&at("guest.vmx"));
    run(async {
        let opened = open(&job, directory.path()).await.unwrap();
        let places: Vec<_> =
            opened.guest.disks.iter().map(|disk| (disk.bus, disk.controller, disk.unit)).collect();
        assert_eq!(
            places,
            [(Bus::Scsi, Some(0), Some(0)), (Bus::Scsi, Some(1), Some(0)), (Bus::Ide, Some(0), Some(0))]
        );
        let expected = [
            fs::read(at("one.raw")).unwrap(),
            oracle(directory.path(), "vmdk", "two-000001.vmdk"),
            fs::read(at("three.raw")).unwrap(),
        ];
        assert_reads(&opened, &expected, directory.path()).await;
        // A piece of the split disk, and the data of the flat one, count.
        let before = marks_of(&opened);
        for (index, piece) in [(0, "one-s001.vmdk"), (2, "three-flat.vmdk")] {
            let piece = fs::File::options().write(true).open(at(piece)).unwrap();
            piece.set_modified(std::time::SystemTime::now() + Duration::from_secs(9)).unwrap();
            assert_ne!(marks(&job, &opened).await[index], before[index]);
        }
    });
    // VMware has it in use.
    fs::create_dir(at("guest.vmx.lck")).unwrap();
    let error = run(open(&job, directory.path())).unwrap_err();
    assert!(error.starts_with("Cannot perform final copy for running VM: "), "{error}");
    fs::remove_dir(at("guest.vmx.lck")).unwrap();
    // A flat file instead of its descriptor, and a disk that is not there.
    for (file, words) in [("three-flat.vmdk", "is not a vmdk image"), ("gone.vmdk", "No such file")] {
        fs::write(at("guest.vmx"), vmx.replace("one.vmdk", file)).unwrap();
        let error = run(open(&job, directory.path())).unwrap_err();
        assert!(error.contains(words) && error.contains(file) && error.contains("guest.vmx"), "{error}");
    }
}

/// Processes with this text in their command line.
fn processes(text: &str) -> Vec<(Pid, Vec<String>)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let process = |entry: fs::DirEntry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?);
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        let words = command.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        Some((pid, words.collect()))
    };
    entries
        .filter_map(process)
        .filter(|(_, words): &(_, Vec<String>)| words.join(" ").contains(text))
        .collect()
}

/// virt-v2v and this program mean the same disk by the same number. virt-v2v serves itself its n-th disk on a socket `in<n>`;
/// it is stopped as soon as it serves all.
#[test]
fn disks_of_a_vmx_have_virt_v2vs_order() {
    if !have(&["virt-v2v", "qemu-nbd", "qemu-img"]) {
        return;
    }
    let directory = private();
    let devices = [
        ("ide1:0", "ata-hardDisk"),
        ("scsi1:0", "scsi-hardDisk"),
        ("scsi0:10", "scsi-hardDisk"),
        ("sata0:0", ""),
        ("scsi0:2", "disk"),
        ("nvme0:1", ""),
    ];
    let mut vmx = "displayName = \"order\"\n".to_owned();
    for (device, kind) in devices {
        let file = format!("{}.vmdk", device.replace(':', "-"));
        qemu_img(directory.path(), &format!("create -q -f vmdk {file} 1M"));
        vmx += &format!("{device}.present = \"TRUE\"\n{device}.fileName = \"{file}\"\n");
        if !kind.is_empty() {
            vmx += &format!("{device}.deviceType = \"{kind}\"\n");
        }
    }
    fs::write(directory.path().join("g.vmx"), vmx).unwrap();
    let here = directory.path().to_str().unwrap();
    let null = std::process::Stdio::null;
    let mut virt_v2v = Command::new("virt-v2v")
        .args(["-i", "vmx", "g.vmx", "-o", "null"])
        .current_dir(directory.path())
        .env("TMPDIR", directory.path())
        .stdin(null())
        .stdout(null())
        .stderr(null())
        .spawn()
        .unwrap();
    let file = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    let served = || {
        let disk = |(_, words): (Pid, Vec<String>)| {
            let number: usize = words.iter().find_map(|word| file(word).strip_prefix("in")?.parse().ok())?;
            words.iter().find(|word| word.ends_with(".vmdk")).map(|image| (number, file(image)))
        };
        let disks: std::collections::BTreeMap<_, _> =
            processes(&format!("{here}/")).into_iter().filter_map(disk).collect();
        (disks.len() == devices.len()).then(|| disks.into_values().collect::<Vec<String>>())
    };
    let theirs = crate::rig::poll(Duration::from_secs(30), served);
    virt_v2v.kill().unwrap();
    virt_v2v.wait().unwrap();
    // What it started outlives it.
    let gone = || {
        let left = processes(&format!("{here}/"));
        for (pid, _) in &left {
            kill(*pid, Signal::SIGKILL).ok();
        }
        left.is_empty().then_some(())
    };
    crate::rig::poll(Duration::from_secs(10), gone).expect("what virt-v2v started dies");
    let guest = run(open(&local_job(&directory.path().join("g.vmx")), directory.path())).unwrap().guest;
    let ours: Vec<String> = guest.disks.iter().map(|disk| file(&disk.path)).collect();
    assert_eq!(Some(ours), theirs);
}

/// Nothing is waited for that never comes, and nothing is guessed.
#[test]
fn what_is_no_image_is_told() {
    if !have(QEMU) {
        return;
    }
    let directory = private();
    let at = |name: &str| directory.path().join(name);
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(at("broken.qcow2"), [b"QFI\xfb".as_slice(), &[0xff; 600]].concat()).unwrap();
    fs::write(at("no.vmx"), "hello").unwrap();
    fs::write(at("no.xml"), "<hello>").unwrap();
    fs::write(at("none.vmx"), "displayName = \"x\"\n").unwrap();
    for (name, words) in [
        ("pipe", "is not a file or a block device"),
        ("broken.qcow2", "cannot be opened: "),
        ("gone", "No such file"),
        ("no.vmx", "it is not a vmx file"),
        ("none.vmx", "names no disk"),
        ("no.xml", "no end of <hello>"),
    ] {
        let error = run(open(&local_job(&at(name)), directory.path())).unwrap_err();
        assert!(error.contains(words) && error.contains(name), "{error}");
    }
}
