//! OVAs: nothing is unpacked, and nothing outside is read.

use super::*;

const QEMU: &[&str] = &["nbdkit", "qemu-nbd", "qemu-img", "tar", "gzip"];

fn ovf(files: &[(&str, &str)]) -> String {
    let reference = |(index, (file, more)): (usize, &(&str, &str))| {
        format!("<File ovf:id='f{index}' ovf:href='{file}' {more}/>")
    };
    let item = |index: usize| {
        format!(
            "<Item><rasd:HostResource>ovf:/file/f{index}</rasd:HostResource><rasd:Parent>9</rasd:Parent>\
             <rasd:AddressOnParent>{index}</rasd:AddressOnParent><rasd:ResourceType>17</rasd:ResourceType></Item>"
        )
    };
    format!(
        "<Envelope xmlns:ovf='o' xmlns:rasd='r'><References>{}</References><VirtualSystem ovf:id='x'>\
         <VirtualHardwareSection><Item><rasd:ResourceType>4</rasd:ResourceType>\
         <rasd:VirtualQuantity>256</rasd:VirtualQuantity></Item>{}</VirtualHardwareSection></VirtualSystem></Envelope>",
        files.iter().enumerate().map(reference).collect::<String>(),
        (0..files.len()).map(item).collect::<String>()
    )
}

/// A directory with two disks as exporters write them, and an OVF of these files.
fn unpacked(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = private();
    for (name, mark) in [("1", 1), ("2", 2)] {
        let raw = directory.path().join(format!("{name}.raw"));
        marked_disk(&raw, mark);
    }
    fs::create_dir(directory.path().join("x.ova")).unwrap();
    for convert in [
        "convert -f raw -O vmdk -o subformat=streamOptimized 1.raw x.ova/disk-1.vmdk",
        "convert -f raw -O vmdk -o subformat=streamOptimized 2.raw x.ova/2.vmdk",
    ] {
        qemu_img(directory.path(), convert);
    }
    let inside = directory.path().join("x.ova");
    fs::rename(inside.join("2.vmdk"), inside.join("disk 2.vmdk")).unwrap();
    fs::write(inside.join("x.ovf"), ovf(files)).unwrap();
    directory
}

fn pack(directory: &Path) -> PathBuf {
    let ova = directory.join("packed.ova");
    let mut tar = Command::new("tar");
    tar.current_dir(directory.join("x.ova")).arg("-cf").arg(&ova);
    // The descriptor first, as the format wants it.
    site::run(tar.arg("x.ovf").args(names(&directory.join("x.ova")).iter().filter(|name| *name != "x.ovf")));
    ova
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_ova_is_read_in_place_packed_or_unpacked() {
    if !have(QEMU) {
        return;
    }
    let directory = unpacked(&[("disk-1.vmdk", ""), ("disk%202.vmdk", ""), ("3.qcow2", ""), ("4.img", "")]);
    qemu_img(directory.path(), "convert -f raw -O qcow2 1.raw x.ova/3.qcow2");
    // Its last piece is as long as it is, as a new image's is; not a whole sector.
    let image = fs::File::options().write(true).open(directory.path().join("x.ova/3.qcow2")).unwrap();
    image.set_len(image.metadata().unwrap().len().next_multiple_of(512) + 8).unwrap();
    fs::copy(directory.path().join("2.raw"), directory.path().join("x.ova/4.img")).unwrap();
    let expected =
        ["1.raw", "2.raw", "1.raw", "2.raw"].map(|name| fs::read(directory.path().join(name)).unwrap());
    for ova in [pack(directory.path()), directory.path().join("x.ova")] {
        let job_directory = private();
        let job = local_job(&ova);
        run(async {
            let opened = open(&job, job_directory.path()).await.unwrap();
            assert_eq!(names(job_directory.path()), [""; 0], "nothing is unpacked");
            assert_eq!(opened.guest.memory_kib, 256 << 10);
            assert_eq!(opened.guest.disks[1].path, ova.join("disk 2.vmdk").display().to_string());
            assert_reads(&opened, &expected, job_directory.path()).await;
            assert_eq!(marks(&job, &opened).await, marks_of(&opened));
            assert!(opened.disks.iter().all(|disk| disk.mark.is_some()));
        });
    }
}

/// What cannot be read in place, and what would lead out of the OVA.
#[test]
fn a_disk_that_is_not_wholly_inside_is_refused() {
    if !have(QEMU) {
        return;
    }
    let good = [("disk-1.vmdk", "")];
    let directory = unpacked(&good);
    let inside = directory.path().join("x.ova");
    // A disk with the same name inside a link, and one that stands on a disk outside.
    std::os::unix::fs::symlink(directory.path().join("1.raw"), inside.join("link.img")).unwrap();
    qemu_img(directory.path(), "convert -f raw -O qcow2 1.raw outside.qcow2");
    qemu_img(&inside, "create -q -f qcow2 -b ../outside.qcow2 -F qcow2 delta.qcow2");
    qemu_img(directory.path(), "convert -f raw -O vmdk -o subformat=monolithicFlat 1.raw x.ova/flat.vmdk");
    fs::copy(inside.join("disk-1.vmdk"), inside.join("zipped.vmdk")).unwrap();
    site::run(Command::new("gzip").arg("-S").arg(".x").arg(inside.join("zipped.vmdk")));
    fs::rename(inside.join("zipped.vmdk.x"), inside.join("zipped.vmdk")).unwrap();
    fs::write(inside.join("junk.vmdk"), [7; 4096]).unwrap();
    fs::write(inside.join("odd.img"), [7; 4097]).unwrap();
    let outside = directory.path().join("1.raw").display().to_string();
    for (file, more, words) in [
        ("gone.vmdk", "", "the disk gone.vmdk is not in the OVA"),
        ("../1.raw", "", "the disk ../1.raw is not in the OVA"),
        (outside.as_str(), "", "is not in the OVA"),
        ("link.img", "", "link"),
        ("delta.qcow2", "", "it stands on ../outside.qcow2"),
        ("flat.vmdk", "", "it only describes a disk"),
        ("zipped.vmdk", "", "it is compressed"),
        ("disk-1.vmdk", "ovf:compression='gzip'", "is compressed (gzip)"),
        ("junk.vmdk", "", "is not a vmdk image"),
    ] {
        fs::write(inside.join("x.ovf"), ovf(&[(file, more)])).unwrap();
        for ova in [pack(directory.path()), inside.clone()] {
            let error = run(open(&local_job(&ova), directory.path())).unwrap_err();
            // In an archive a link is no file at all.
            assert!(error.contains(words) && error.contains(ova.to_str().unwrap()), "{file}: {error}");
        }
    }
    fs::write(inside.join("x.ovf"), ovf(&[("odd.img", "")])).unwrap();
    let error = run(open(&local_job(&pack(directory.path())), directory.path())).unwrap_err();
    assert!(error.contains("not a multiple of 512"), "{error}");
    fs::write(inside.join("second.ovf"), ovf(&good)).unwrap();
    let error = run(open(&local_job(&inside), directory.path())).unwrap_err();
    assert!(error.contains("2 files in it end in .ovf"), "{error}");
    fs::remove_file(inside.join("second.ovf")).unwrap();
    fs::write(inside.join("x.ovf"), ovf(&good)).unwrap();
    let ova = pack(directory.path());
    site::run(Command::new("gzip").arg(&ova));
    fs::rename(directory.path().join("packed.ova.gz"), &ova).unwrap();
    let error = run(open(&local_job(&ova), directory.path())).unwrap_err();
    assert!(error.contains("it is compressed: unpack it"), "{error}");
}
