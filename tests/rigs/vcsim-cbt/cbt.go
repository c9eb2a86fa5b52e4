package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"github.com/vmware/govmomi/vim25/types"
)

const block = 64 * 1024

// copyKey names a copy by the change id that a snapshot showed for it.
func copyKey(vm string, disk int32, changeID string) string {
	return fmt.Sprintf("%s/%d/%s", vm, disk, changeID)
}

// changeID is a new one: 16 bytes that stay the same until tracking is reset, and a number.
func (s *sim) changeID(m *machine, disk int32) string {
	return fmt.Sprintf("52 de c0 d9 b9 43 9d 10-%02x %02x %02x 7a f5 4f 21 42/%d", disk>>8&255, disk&255, m.epoch&255, s.seq)
}

func (s *sim) changed(w http.ResponseWriter, q *types.QueryChangedDiskAreas) {
	ev := event{Method: "QueryChangedDiskAreas", VM: q.This.Value, DeviceKey: q.DeviceKey, ChangeID: q.ChangeId, StartOffset: &q.StartOffset}
	if q.Snapshot != nil {
		ev.Snapshot = q.Snapshot.Value
	}
	refuse := func(message, kind, inside string) {
		s.events.ended(ev, kind)
		fault(w, message, kind, inside)
	}
	argument := func(name string) {
		refuse("A specified parameter was not correct: "+name, "InvalidArgument", "<invalidProperty>"+name+"</invalidProperty>")
	}
	vm := vmOf(q.This)
	if vm == nil {
		refuse("not found", "ManagedObjectNotFound", "")
		return
	}
	s.Lock()
	defer s.Unlock()
	m := s.machine(q.This)
	d := m.disk(q.DeviceKey)
	if d == nil {
		argument("deviceKey")
		return
	}
	name := escaped(d.files[0])
	file := func() { refuse("Error caused by file "+name, "FileFault", "<file>"+name+"</file>") }
	if s.faults.queries > 0 {
		s.faults.queries--
		file()
		return
	}
	if vm.Config.ChangeTrackingEnabled == nil || !*vm.Config.ChangeTrackingEnabled || d.plain {
		file()
		return
	}
	cur := d.raw
	if q.Snapshot != nil {
		if index(d.frozen, q.Snapshot.Value) < 0 {
			argument("snapshot")
			return
		}
		cur = m.copyOf(q.Snapshot.Value, d)
	} else if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
		file() // what a running VM writes to is locked
		return
	}
	old := ""
	if q.ChangeId != "*" {
		if old = s.copies[copyKey(q.This.Value, q.DeviceKey, q.ChangeId)]; old == "" {
			file()
			return
		}
	}
	st, err := os.Stat(cur)
	if err != nil || q.StartOffset < 0 || q.StartOffset >= st.Size() {
		argument("startOffset")
		return
	}
	end := st.Size()
	if s.chunk > 0 && q.StartOffset+s.chunk < end {
		end = q.StartOffset + s.chunk
	}
	areas := diff(m.versions(d, old, cur), q.StartOffset, end)
	var out bytes.Buffer
	fmt.Fprintf(&out, `<startOffset>%d</startOffset><length>%d</length>`, q.StartOffset, end-q.StartOffset)
	for _, e := range areas {
		fmt.Fprintf(&out, `<changedArea><start>%d</start><length>%d</length></changedArea>`, e[0], e[1])
	}
	n := len(areas)
	ev.Areas = &n
	s.events.ended(ev, "")
	answer(w, "QueryChangedDiskAreas", "<returnval>"+out.String()+"</returnval>")
}

// copyOf is the file that holds what a disk was at a snapshot.
func (m *machine) copyOf(snapshot string, d *disk) string {
	return filepath.Join(m.dir, "kept", snapshot, fmt.Sprint(d.key))
}

// versions are the states of a disk from one to another: what was written in
// between is told even where it is what it was by now, as a real host does.
// The first is "" for a disk of zeroes.
func (m *machine) versions(d *disk, old, cur string) []string {
	r := []string{old}
	between := false
	for _, ref := range m.taken {
		file := m.copyOf(ref, d)
		if file == cur {
			break
		}
		if _, err := os.Stat(file); between && err == nil {
			r = append(r, file)
		}
		between = between || file == old
	}
	return append(r, cur)
}

// diff lists the blocks in [from,to) that differ from one version to the next.
func diff(versions []string, from, to int64) (r [][2]int64) {
	var files []io.ReaderAt
	for _, name := range versions {
		if name == "" {
			files = append(files, zeroes{})
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			return
		}
		defer f.Close()
		files = append(files, f)
	}
	x, y := make([]byte, block), make([]byte, block)
	read := func(f io.ReaderAt, b []byte, o int64) {
		for i := range b {
			b[i] = 0
		}
		f.ReadAt(b, o)
	}
	for o := from; o < to; o += block {
		l := int64(block)
		if o+l > to {
			l = to - o
		}
		for n := 1; n < len(files); n++ {
			read(files[n-1], x[:l], o)
			read(files[n], y[:l], o)
			if bytes.Equal(x[:l], y[:l]) {
				continue
			}
			if n := len(r); n > 0 && r[n-1][0]+r[n-1][1] == o {
				r[n-1][1] += l
			} else {
				r = append(r, [2]int64{o, l})
			}
			break
		}
	}
	return
}

type zeroes struct{}

func (zeroes) ReadAt(b []byte, _ int64) (int, error) { return len(b), nil }
