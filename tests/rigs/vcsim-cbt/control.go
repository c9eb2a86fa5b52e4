package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// What a test can do and ask while the simulator runs: HTTP on a Unix socket,
//
//	curl --unix-socket SOCKET -X POST 'http://sim/slow-removals?seconds=3'
//
// answered with 200 and JSON, or 400 and a sentence. vm is a name of the
// configuration (default: its first VM), seconds may have decimals. What takes
// its time already ends earlier or later when the time is set anew.
//
//	fail-snapshots?n=N[&quiesced=1]      the next N CreateSnapshot_Task fail (with quiesced: only those that quiesce)
//	fail-removals?n=N                    the next N removals of snapshots fail; the snapshots stay
//	fail-queries?n=N                     the next N QueryChangedDiskAreas fail
//	chunk?bytes=N                        QueryChangedDiskAreas answers at most this many bytes of disk a call (0: all)
//	areas?n=N[&whole=1]                  it tells at most N areas a call (0: all); with whole it hides that there are more
//	slow-snapshots?seconds=S             each CreateSnapshot_Task takes so long
//	slow-removals?seconds=S              each removal takes so long
//	slow-reconfigs?seconds=S             each ReconfigVM_Task waits so long before it begins, and its answer too
//	freeze?seconds=S                     no SOAP request is answered for so long
//	expire-sessions                      all sessions are over
//	certificate?cert=F&key=F             another one is shown from now on
//	reset-cbt?[vm=]                      no change id of before is valid
//	power?state=on|off[&vm=]             somebody switches the VM on or off
//	guest?[tools=..][&shutdownAfter=S][&vm=]   as in the configuration
//	add-disk?file=F[&controller=N][&vm=] gives {"key":N}
//	remove-disk?key=N[&vm=]
//	grow-disk?key=N&size=BYTES[&vm=]     the raw file too
//	snapshot?name=N[&vm=]                somebody takes one; gives {"snapshot":"snapshot-N"}
//	remove-snapshot?name=N[&vm=]         somebody removes one
//	dump?[vm=]                           what the VM looks like
func (s *sim) serveControl(socket string) error {
	os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		result, err := s.control(strings.TrimPrefix(r.URL.Path, "/"), r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if result == nil {
			result = struct{}{}
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(result)
	}))
	return nil
}

func (s *sim) control(what string, q url.Values) (result interface{}, err error) {
	number := func(name string) int64 {
		n, e := strconv.ParseInt(q.Get(name), 10, 64)
		if e != nil && err == nil {
			err = fmt.Errorf("%s: %v", name, e)
		}
		return n
	}
	seconds := func(name string) time.Duration {
		f, e := strconv.ParseFloat(q.Get(name), 64)
		if e != nil && err == nil {
			err = fmt.Errorf("%s: %v", name, e)
		}
		return time.Duration(f * float64(time.Second))
	}
	var m *machine
	for _, other := range s.machines {
		if other.conf == q.Get("vm") || q.Get("vm") == "" && m == nil {
			m = other
		}
	}
	if m == nil {
		return nil, fmt.Errorf("no VM %q in the configuration", q.Get("vm"))
	}
	// Set under the lock of s.
	var set func()
	switch what {
	case "fail-snapshots":
		n, quiesced := int(number("n")), q.Get("quiesced") != ""
		set = func() { s.faults.snapshots, s.faults.onlyQuiesced = n, quiesced }
	case "fail-removals":
		n := int(number("n"))
		set = func() { s.faults.removals = n }
	case "fail-queries":
		n := int(number("n"))
		set = func() { s.faults.queries = n }
	case "chunk":
		n := number("bytes")
		set = func() { s.chunk = n }
	case "areas":
		n, whole := int(number("n")), q.Get("whole") != ""
		set = func() { s.faults.areas, s.faults.whole = n, whole }
	case "slow-snapshots":
		d := seconds("seconds")
		set = func() { s.faults.snapshot = d }
	case "slow-removals":
		d := seconds("seconds")
		set = func() { s.faults.remove = d }
	case "slow-reconfigs":
		d := seconds("seconds")
		set = func() { s.faults.reconfig = d }
	case "freeze":
		d := seconds("seconds")
		set = func() { s.faults.frozen = time.Now().Add(d) }
	case "reset-cbt":
		set = func() { s.reset(m) }
	case "certificate":
		var c tls.Certificate
		if c, err = tls.LoadX509KeyPair(q.Get("cert"), q.Get("key")); err == nil {
			set = func() {
				s.shown = &c
				s.server.SetKeepAlivesEnabled(false) // who is connected has seen the old one
			}
		}
	case "expire-sessions":
		err = s.expire()
	case "power":
		err = s.power(m, q.Get("state"))
	case "guest":
		vm := vmOf(m.ref)
		if t := q.Get("tools"); t != "" {
			simulator.Map.WithLock(vm, func() { err = m.setTools(vm, t) })
		}
		if q.Get("shutdownAfter") != "" {
			d := seconds("shutdownAfter")
			set = func() { m.after = d.Seconds() }
		}
	case "add-disk":
		bus := int64(0)
		if q.Get("controller") != "" {
			bus = number("controller")
		}
		vm, key := vmOf(m.ref), int32(0)
		if err == nil {
			simulator.Map.WithLock(vm, func() {
				if key, err = s.addDisk(vm, m, diskConf{File: q.Get("file")}, int32(bus)); err == nil {
					s.written(vm)
				}
			})
		}
		result = map[string]int32{"key": key}
	case "remove-disk", "grow-disk":
		key, size := int32(number("key")), int64(0)
		if what == "grow-disk" {
			size = number("size")
		}
		if err == nil {
			err = s.changeDisk(m, key, size)
		}
	case "snapshot":
		ref, f := s.snapshot(&types.CreateSnapshot_Task{This: m.ref, Name: q.Get("name")})
		if f != nil {
			return nil, fmt.Errorf("%T", f)
		}
		result = map[string]string{"snapshot": ref.Value}
	case "remove-snapshot":
		err = fmt.Errorf("no snapshot %q", q.Get("name"))
		for ref, name := range names(vmOf(m.ref)) {
			if name == q.Get("name") {
				err = nil
				s.drop(vmOf(m.ref), &types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: ref}, false)
				break
			}
		}
	case "dump":
		result = s.dump(m)
	default:
		err = fmt.Errorf("what is %q?", what)
	}
	if err == nil && set != nil {
		s.Lock()
		set()
		s.Unlock()
	}
	return
}

// reset begins change tracking anew, as switching it off does: no change id of before is valid. The caller holds the lock of s.
func (s *sim) reset(m *machine) {
	m.epoch++
	for k := range s.copies {
		if strings.HasPrefix(k, m.ref.Value+"/") {
			delete(s.copies, k)
		}
	}
}

func (s *sim) power(m *machine, state string) (err error) {
	ref := types.ManagedObjectReference{}
	switch state {
	case "on":
		res, e := methods.PowerOnVM_Task(context.Background(), s.service, &types.PowerOnVM_Task{This: m.ref})
		if err = e; err == nil {
			ref = res.Returnval
		}
	case "off":
		res, e := methods.PowerOffVM_Task(context.Background(), s.service, &types.PowerOffVM_Task{This: m.ref})
		if err = e; err == nil {
			ref = res.Returnval
		}
	default:
		err = fmt.Errorf("state: on or off, not %q", state)
	}
	if err == nil {
		if t := simulator.Map.Get(ref).(*simulator.Task); t.Info.Error != nil {
			err = fmt.Errorf("%T", t.Info.Error.Fault)
		}
	}
	return
}

// changeDisk makes a disk longer, or takes it away (size 0).
func (s *sim) changeDisk(m *machine, key int32, size int64) (err error) {
	vm := vmOf(m.ref)
	simulator.Map.WithLock(vm, func() {
		s.Lock()
		defer s.Unlock()
		d := m.disk(key)
		if d == nil {
			err = fmt.Errorf("no disk with the key %d", key)
			return
		}
		if size > 0 {
			m.locked(func() { err = os.Truncate(d.raw, size) })
		}
		if err != nil {
			return
		}
		var devs []types.BaseVirtualDevice
		for _, dev := range vm.Config.Hardware.Device {
			if vd, ok := dev.(*types.VirtualDisk); ok && vd.Key == key {
				if size == 0 {
					continue
				}
				c := *vd
				c.CapacityInBytes, c.CapacityInKB = size, size/1024
				dev = &c
			}
			devs = append(devs, dev)
		}
		vm.Config.Hardware.Device = devs
		if size == 0 {
			i := 0
			for m.disks[i] != d {
				i++
			}
			m.locked(func() {
				m.disks = append(m.disks[:i:i], m.disks[i+1:]...)
				m.links()
			})
		}
		s.written(vm)
	})
	return
}

type dumpedDisk struct {
	Key        int32    `json:"key"`
	Label      string   `json:"label"`
	Controller int32    `json:"controller"`
	Unit       int32    `json:"unit"`
	Size       int64    `json:"size"`
	Mode       string   `json:"mode"`
	File       string   `json:"file"`
	Parents    []string `json:"parents"` // newest first
	Raw        string   `json:"raw"`
}

type dumpedSnapshot struct {
	Moref    string           `json:"moref"`
	Name     string           `json:"name"`
	Current  bool             `json:"current"`
	Files    []string         `json:"files"` // those it shows for the disks
	Children []dumpedSnapshot `json:"children"`
}

type dumped struct {
	Moref          string           `json:"moref"`
	Name           string           `json:"name"`
	Power          string           `json:"power"`
	Tools          string           `json:"tools"`
	ChangeTracking bool             `json:"change_tracking"`
	Snapshots      []dumpedSnapshot `json:"snapshots"`
	Disks          []dumpedDisk     `json:"disks"`
	Directory      string           `json:"directory"`
}

// dump is what a client would see of the VM, for a comparison of before and after.
func (s *sim) dump(m *machine) (d dumped) {
	vm := vmOf(m.ref)
	simulator.Map.WithLock(vm, func() {
		d = dumped{Moref: m.ref.Value, Name: vm.Name, Power: string(vm.Runtime.PowerState), Tools: vm.Guest.ToolsRunningStatus, Directory: filepath.Join(m.dir),
			ChangeTracking: vm.Config.ChangeTrackingEnabled != nil && *vm.Config.ChangeTrackingEnabled,
			Snapshots:      []dumpedSnapshot{}, Disks: []dumpedDisk{}}
		for _, dev := range vm.Config.Hardware.Device {
			if vd, ok := dev.(*types.VirtualDisk); ok {
				dd := dumpedDisk{Key: vd.Key, Label: vd.DeviceInfo.GetDescription().Label, Controller: vd.ControllerKey - 1000, Unit: *vd.UnitNumber, Size: vd.CapacityInBytes, Parents: []string{}}
				chain := chainOf(vd)
				dd.File, dd.Parents = chain[0], append(dd.Parents, chain[1:]...)
				switch b := vd.Backing.(type) {
				case *types.VirtualDiskFlatVer2BackingInfo:
					dd.Mode = b.DiskMode
				case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
					dd.Mode = b.CompatibilityMode
				}
				s.Lock()
				if own := m.disk(vd.Key); own != nil {
					dd.Raw = own.raw
				}
				s.Unlock()
				d.Disks = append(d.Disks, dd)
			}
		}
		if vm.Snapshot != nil {
			d.Snapshots = dumpTree(vm.Snapshot.RootSnapshotList, vm.Snapshot.CurrentSnapshot)
		}
	})
	return
}

func dumpTree(tree []types.VirtualMachineSnapshotTree, current *types.ManagedObjectReference) []dumpedSnapshot {
	r := []dumpedSnapshot{}
	for _, t := range tree {
		d := dumpedSnapshot{Moref: t.Snapshot.Value, Name: t.Name, Current: current != nil && *current == t.Snapshot, Files: []string{}, Children: dumpTree(t.ChildSnapshotList, current)}
		if sn, ok := simulator.Map.Get(t.Snapshot).(*simulator.VirtualMachineSnapshot); ok {
			for _, dev := range sn.Config.Hardware.Device {
				if vd, ok := dev.(*types.VirtualDisk); ok {
					d.Files = append(d.Files, chainOf(vd)[0])
				}
			}
		}
		r = append(r, d)
	}
	return r
}

// chainOf names the files behind a disk, newest first.
func chainOf(vd *types.VirtualDisk) (files []string) {
	b, ok := vd.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	if !ok {
		return []string{vd.Backing.(types.BaseVirtualDeviceFileBackingInfo).GetVirtualDeviceFileBackingInfo().FileName}
	}
	for ; b != nil; b = b.Parent {
		files = append(files, b.FileName)
	}
	return
}
