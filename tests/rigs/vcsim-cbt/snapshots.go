package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// disk is a disk of a VM with the chain of its files. Snapshots freeze files:
// frozen[i] keeps files[i], and the last file, which no snapshot keeps, is
// written to. Where a snapshot is removed, the file after its own is merged into it.
type disk struct {
	key    int32
	raw    string
	files  []string // "[store] folder/name.vmdk", oldest first
	frozen []string // snapshots' morefs
	late   bool     // the next snapshot shows no change id
	never  bool     // none does
	plain  bool     // no snapshot holds it
	shared bool     // no snapshot can be made
	// Files that hold what it was at each snapshot and whenever the VM was switched off, oldest first.
	history []string
}

// createSnapshot checks as vCenter does what can be checked at once; the rest is a task.
func (s *sim) createSnapshot(w http.ResponseWriter, q *types.CreateSnapshot_Task) {
	vm := vmOf(q.This)
	ev := event{Method: "CreateSnapshot_Task", Phase: "begun", VM: q.This.Value, SnapshotName: q.Name, Quiesce: &q.Quiesce, Memory: &q.Memory}
	done := s.begin(w, ev)
	if done == nil {
		return
	}
	task(w, vm, ev.Method, func() (types.AnyType, types.BaseMethodFault, string) {
		defer done()
		s.pause(func() time.Duration { return s.faults.snapshot })
		s.Lock()
		m := s.machine(q.This)
		fails := s.faults.snapshots > 0 && (q.Quiesce || !s.faults.onlyQuiesced)
		if fails {
			s.faults.snapshots--
		}
		s.Unlock()
		if fails && q.Quiesce {
			s.events.ended(ev, "ApplicationQuiesceFault")
			return nil, new(types.ApplicationQuiesceFault), "An error occurred while quiescing the virtual machine. See the virtual machine's event log for details."
		}
		if fails {
			s.events.ended(ev, "SnapshotFault")
			return nil, new(types.SnapshotFault), "An error occurred while taking a snapshot: msg.snapshot.error-FAILED."
		}
		if m.shared() {
			s.events.ended(ev, "SnapshotDisabled")
			return nil, new(types.SnapshotDisabled), "Cannot take a snapshot of a virtual machine with a disk that several may write to."
		}
		ref, f := s.snapshot(q)
		if f != nil {
			s.events.ended(ev, kind(f))
			return nil, f, fmt.Sprintf("%T", f)
		}
		ev.Snapshot = ref.Value
		s.events.ended(ev, "")
		return ref, nil, ""
	})
}

// snapshot lets the package make it, which calls taken.
func (s *sim) snapshot(q *types.CreateSnapshot_Task) (types.ManagedObjectReference, types.BaseMethodFault) {
	res, err := methods.CreateSnapshot_Task(context.Background(), s.service, q)
	if err != nil {
		log.Print(err)
		return types.ManagedObjectReference{}, new(types.SnapshotFault)
	}
	t := simulator.Map.Get(res.Returnval).(*simulator.Task)
	if t.Info.Error != nil {
		return types.ManagedObjectReference{}, t.Info.Error.Fault
	}
	vm := vmOf(q.This)
	simulator.Map.WithLock(vm, func() { s.written(vm) })
	return t.Info.Result.(types.ManagedObjectReference), nil
}

// taken copies the disks for a new snapshot, and lets the VM write to new files. The VM's lock is held.
func (s *sim) taken(sn *simulator.VirtualMachineSnapshot) {
	s.Lock()
	defer s.Unlock()
	m, vm := s.machine(sn.Vm), vmOf(sn.Vm)
	if m == nil {
		return
	}
	s.seq++
	ref := sn.Self.Value
	// What the snapshot shows is not what the VM will be: own devices, with the files of now.
	devs := make([]types.BaseVirtualDevice, len(sn.Config.Hardware.Device))
	for i, dev := range sn.Config.Hardware.Device {
		if vd, ok := dev.(*types.VirtualDisk); ok {
			c := *vd
			dev = &c
		}
		devs[i] = dev
	}
	sn.Config.Hardware.Device = devs
	m.locked(func() {
		for _, d := range m.disks {
			if d.plain {
				continue
			}
			d.keep(m.copyOf(ref, d))
		}
	})
	tracked := vm.Config.ChangeTrackingEnabled != nil && *vm.Config.ChangeTrackingEnabled
	for _, d := range m.disks {
		if d.plain {
			continue
		}
		id := ""
		if tracked && !d.late && !d.never {
			id = s.changeID(m, d.key)
			s.copies[copyKey(m.ref.Value, d.key, id)] = m.copyOf(ref, d)
		}
		if tracked {
			d.late = false
		}
		backing(devs, d.key, d.files, id)
		d.frozen = append(d.frozen, ref)
		d.files = append(d.files, d.next())
		backing(vm.Config.Hardware.Device, d.key, d.files, "")
		// Whatever name of the chain a reader uses, the snapshot tells which state is meant.
		for _, f := range d.files {
			link(m.copyOf(ref, d), filepath.Join(m.dir, ref, path.Base(f)))
		}
	}
	m.links()
}

// keep copies what the disk is now.
func (d *disk) keep(dst string) {
	os.MkdirAll(filepath.Dir(dst), 0755)
	if out, err := exec.Command("cp", "-L", "--sparse=always", d.raw, dst).CombinedOutput(); err != nil {
		log.Printf("copy %s: %v %s", d.raw, err, out)
	}
	d.history = append(d.history, dst)
}

// next is the first free name for a file of the chain, as ESXi counts.
func (d *disk) next() string {
	for n := 1; ; n++ {
		name := fmt.Sprintf("%s-%06d.vmdk", strings.TrimSuffix(d.files[0], ".vmdk"), n)
		if index(d.files, name) < 0 {
			return name
		}
	}
}

// backing shows a chain of files as what is behind a disk of these devices.
func backing(devs []types.BaseVirtualDevice, key int32, files []string, changeID string) {
	for i, dev := range devs {
		vd, ok := dev.(*types.VirtualDisk)
		if !ok || vd.Key != key {
			continue
		}
		old, ok := vd.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		if !ok {
			continue
		}
		var b *types.VirtualDiskFlatVer2BackingInfo
		for _, f := range files {
			c := *old
			c.FileName, c.Parent, c.ChangeId = f, b, ""
			b = &c
		}
		b.ChangeId = changeID
		c := *vd
		c.Backing = b
		devs[i] = &c
	}
}

// shown is the change id that a snapshot shows for a disk.
func shown(devs []types.BaseVirtualDevice, key int32) string {
	for _, dev := range devs {
		if vd, ok := dev.(*types.VirtualDisk); ok && vd.Key == key {
			if b, ok := vd.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
				return b.ChangeId
			}
		}
	}
	return ""
}

func (s *sim) removeSnapshot(w http.ResponseWriter, q *types.RemoveSnapshot_Task) {
	sn, ok := simulator.Map.Get(q.This).(*simulator.VirtualMachineSnapshot)
	if !ok {
		fault(w, "The object has already been deleted or has not been completely created", "ManagedObjectNotFound", `<obj type="VirtualMachineSnapshot">`+escaped(q.This.Value)+`</obj>`)
		return
	}
	s.remove(w, "RemoveSnapshot_Task", sn.Vm, &q.This, q.RemoveChildren)
}

func (s *sim) removeAllSnapshots(w http.ResponseWriter, q *types.RemoveAllSnapshots_Task) {
	s.remove(w, "RemoveAllSnapshots_Task", q.This, nil, true)
}

// remove removes a snapshot, or all of them. The package's own method forgets
// nothing else either, but it fails with raw devices.
func (s *sim) remove(w http.ResponseWriter, method string, of types.ManagedObjectReference, one *types.ManagedObjectReference, children bool) {
	vm := vmOf(of)
	ev := event{Method: method, Phase: "begun", VM: of.Value}
	if one != nil {
		ev.Snapshot, ev.SnapshotName = one.Value, names(vm)[one.Value]
	}
	done := s.begin(w, ev)
	if done == nil {
		return
	}
	task(w, vm, method, func() (types.AnyType, types.BaseMethodFault, string) {
		defer done()
		s.pause(func() time.Duration { return s.faults.remove })
		s.Lock()
		fails := s.faults.removals > 0
		if fails {
			s.faults.removals--
		}
		s.Unlock()
		if fails {
			s.events.ended(ev, "GenericVmConfigFault")
			return nil, &types.GenericVmConfigFault{Reason: "Detected an invalid snapshot configuration."}, "An error occurred while consolidating disks: msg.snapshot.error-CONSOLIDATE."
		}
		s.drop(vm, one, children)
		s.events.ended(ev, "")
		return nil, nil, ""
	})
}

// drop takes a snapshot (or all) out of the tree, and merges its files.
func (s *sim) drop(vm *simulator.VirtualMachine, one *types.ManagedObjectReference, children bool) {
	var gone []types.ManagedObjectReference
	simulator.Map.WithLock(vm, func() {
		if vm.Snapshot == nil {
			return
		}
		current := vm.Snapshot.CurrentSnapshot
		var prune func(tree []types.VirtualMachineSnapshotTree, parent *types.ManagedObjectReference, all bool) []types.VirtualMachineSnapshotTree
		prune = func(tree []types.VirtualMachineSnapshotTree, parent *types.ManagedObjectReference, all bool) (r []types.VirtualMachineSnapshotTree) {
			for _, t := range tree {
				ref := t.Snapshot
				if all || one == nil || ref == *one {
					gone = append(gone, ref)
					if current != nil && *current == ref {
						current = parent
					}
					r = append(r, prune(t.ChildSnapshotList, parent, all || one == nil || children)...)
					continue
				}
				t.ChildSnapshotList = prune(t.ChildSnapshotList, &ref, false)
				r = append(r, t)
			}
			return
		}
		tree := prune(vm.Snapshot.RootSnapshotList, nil, false)
		s.merge(vm, gone)
		changes := []types.PropertyChange{{Name: "snapshot", Val: nil}}
		if len(tree) > 0 {
			changes = []types.PropertyChange{{Name: "snapshot", Val: &types.VirtualMachineSnapshotInfo{CurrentSnapshot: current, RootSnapshotList: tree}}}
		}
		simulator.Map.Update(vm, changes)
		s.written(vm)
	})
	for _, ref := range gone {
		simulator.Map.Remove(ref)
	}
}

// merge forgets the files that removed snapshots kept apart. Their copies stay: change ids name them.
func (s *sim) merge(vm *simulator.VirtualMachine, gone []types.ManagedObjectReference) {
	s.Lock()
	defer s.Unlock()
	m := s.machine(vm.Self)
	if m == nil {
		return
	}
	for _, ref := range gone {
		for _, d := range m.disks {
			if i := index(d.frozen, ref.Value); i >= 0 {
				d.frozen = append(d.frozen[:i:i], d.frozen[i+1:]...)
				d.files = append(d.files[:i+1:i+1], d.files[i+2:]...)
			}
		}
		os.RemoveAll(filepath.Join(m.dir, ref.Value))
	}
	for _, d := range m.disks {
		for i, ref := range d.frozen {
			if sn, ok := simulator.Map.Get(types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: ref}).(*simulator.VirtualMachineSnapshot); ok {
				devs := sn.Config.Hardware.Device
				backing(devs, d.key, d.files[:i+1], shown(devs, d.key))
			}
		}
		backing(vm.Config.Hardware.Device, d.key, d.files, "")
	}
	m.links()
}

// begin takes the VM for a task: only one changes a VM at a time. It answers
// with a fault and gives nil when there is another.
func (s *sim) begin(w http.ResponseWriter, ev event) func() {
	s.Lock()
	m := s.machine(types.ManagedObjectReference{Type: "VirtualMachine", Value: ev.VM})
	busy := m != nil && m.busy
	if m != nil {
		m.busy = true
	}
	s.Unlock()
	if busy {
		s.events.ended(ev, "TaskInProgress")
		fault(w, "The operation is not allowed in the current state. Another task is already in progress.", "TaskInProgress", "")
		return nil
	}
	s.events.put(ev)
	return func() {
		s.Lock()
		defer s.Unlock()
		if m != nil {
			m.busy = false
		}
	}
}

// pause takes as long as a test wants; it may change its mind meanwhile.
func (s *sim) pause(wanted func() time.Duration) {
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		s.Lock()
		d := wanted()
		s.Unlock()
		if time.Since(begun) >= d {
			return
		}
	}
}

// names are those of a VM's snapshots by their morefs.
func names(vm *simulator.VirtualMachine) map[string]string {
	r := map[string]string{}
	var walk func([]types.VirtualMachineSnapshotTree)
	walk = func(tree []types.VirtualMachineSnapshotTree) {
		for _, t := range tree {
			r[t.Snapshot.Value] = t.Name
			walk(t.ChildSnapshotList)
		}
	}
	simulator.Map.WithLock(vm, func() {
		if vm.Snapshot != nil {
			walk(vm.Snapshot.RootSnapshotList)
		}
	})
	return r
}

// locked holds off the guest's writer: what happens inside is one point in time for all disks.
func (m *machine) locked(f func()) {
	lock, err := os.OpenFile(filepath.Join(m.dir, "lock"), os.O_CREATE|os.O_RDWR, 0644)
	if err != nil {
		log.Fatal(err)
	}
	defer lock.Close()
	for syscall.Flock(int(lock.Fd()), syscall.LOCK_EX) == syscall.EINTR {
	}
	f()
}

func index(list []string, item string) int {
	for i, x := range list {
		if x == item {
			return i
		}
	}
	return -1
}

func link(to, from string) {
	os.MkdirAll(filepath.Dir(from), 0755)
	os.Remove(from)
	if err := os.Symlink(to, from); err != nil {
		log.Print(err)
	}
}
