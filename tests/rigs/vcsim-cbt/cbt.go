package main

import (
	"bytes"
	"fmt"
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
			refuse("The object has already been deleted or has not been completely created", "ManagedObjectNotFound", `<obj type="VirtualMachineSnapshot">`+escaped(q.Snapshot.Value)+`</obj>`)
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
	// All that was written since then, also what was written back: no state in between may be forgotten, for a
	// reader may have copied it.
	states := []string{old}
	if i := index(d.history, old); i >= 0 {
		states = d.history[i:]
	}
	if i := index(states, cur); i >= 0 {
		states = states[:i]
	}
	states = append(append([]string{}, states...), cur)
	blocks := map[int64]int64{}
	for i := 1; i < len(states); i++ {
		diff(states[i], states[i-1], q.StartOffset, end, blocks)
	}
	areas := joined(blocks, q.StartOffset, end)
	if most := s.faults.areas; most > 0 && len(areas) > most {
		areas = areas[:most]
		if !s.faults.whole {
			end = areas[most-1][0] + areas[most-1][1]
		}
	}
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

// joined lists the blocks (offset: length) in [from,to), neighbours together.
func joined(blocks map[int64]int64, from, to int64) (r [][2]int64) {
	for o := from; o < to; o += block {
		if l := blocks[o]; l == 0 {
		} else if n := len(r); n > 0 && r[n-1][0]+r[n-1][1] == o {
			r[n-1][1] += l
		} else {
			r = append(r, [2]int64{o, l})
		}
	}
	return
}

// diff adds the blocks of cur in [from,to) that differ from old (or are not zero when old is "").
func diff(cur, old string, from, to int64, r map[int64]int64) {
	a, err := os.Open(cur)
	if err != nil {
		return
	}
	defer a.Close()
	var b *os.File
	if old != "" {
		if b, err = os.Open(old); err != nil {
			return
		}
		defer b.Close()
	}
	x, y := make([]byte, block), make([]byte, block)
	for o := from; o < to; o += block {
		l := int64(block)
		if o+l > to {
			l = to - o
		}
		for i := range y {
			y[i] = 0
		}
		a.ReadAt(x[:l], o)
		if b != nil {
			b.ReadAt(y[:l], o)
		}
		if !bytes.Equal(x[:l], y[:l]) {
			r[o] = l
		}
	}
}
