package main

import (
	"encoding/json"
	"os"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// event is one line of the log. nbdkit-vddk.c appends lines of the same kind.
//
// Tasks have two, "begun" and "done" or "failed"; everything else has one.
type event struct {
	Sequence       int     `json:"sequence"`
	Time           float64 `json:"time"` // Unix time in seconds
	Method         string  `json:"method"`
	Phase          string  `json:"phase"`
	VM             string  `json:"vm,omitempty"`
	Power          string  `json:"power,omitempty"`
	Snapshot       string  `json:"snapshot,omitempty"`
	SnapshotName   string  `json:"snapshot_name,omitempty"`
	Quiesce        *bool   `json:"quiesce,omitempty"`
	Memory         *bool   `json:"memory,omitempty"`
	ChangeTracking *bool   `json:"change_tracking,omitempty"`
	DeviceKey      int32   `json:"device_key,omitempty"`
	ChangeID       string  `json:"change_id,omitempty"`
	StartOffset    *int64  `json:"start_offset,omitempty"`
	Areas          *int    `json:"areas,omitempty"`
	Fault          string  `json:"fault,omitempty"`
}

type events struct {
	sync.Mutex
	file *os.File
	last int
}

func (e *events) open(path string) (err error) {
	if path != "" {
		e.file, err = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0644)
	}
	return
}

// put fills in what can be known of the VM.
func (e *events) put(ev event) {
	e.Lock()
	defer e.Unlock()
	if e.file == nil {
		return
	}
	if vm := vmOf(types.ManagedObjectReference{Type: "VirtualMachine", Value: ev.VM}); vm != nil && ev.Power == "" {
		ev.Power = string(vm.Runtime.PowerState)
	}
	e.last++
	ev.Sequence, ev.Time = e.last, float64(time.Now().UnixMicro())/1e6
	b, _ := json.Marshal(ev)
	e.file.Write(append(b, '\n')) // one write: whole lines, whoever else appends
}

// ended is the second line of a task, or the only one of anything else.
func (e *events) ended(ev event, fault string) {
	ev.Phase, ev.Fault = "done", fault
	if fault != "" {
		ev.Phase = "failed"
	}
	e.put(ev)
}
