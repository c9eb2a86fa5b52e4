package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// vmConf is a VM of the configuration; the keys are explained in main.go.
type vmConf struct {
	VM, Name, UUID, Firmware, Guest string
	Disks                           []diskConf
	Controllers                     []int32
	Memory                          int32
	Off                             bool
	Hardware                        int
	Tools                           string
	ShutdownAfter                   float64
	CBT                             *bool
	Snapshots                       []string
}

type diskConf struct {
	File                                     string
	CBT                                      *bool
	Untracked                                bool
	Independent, RDM, Multiwriter, Encrypted bool
}

// UnmarshalJSON also takes a path alone.
func (d *diskConf) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, &d.File)
	}
	type plain diskConf
	return json.Unmarshal(b, (*plain)(d))
}

// machine is what a VM has here beyond what the package knows of it.
type machine struct {
	conf   string // its name in the configuration
	ref    types.ManagedObjectReference
	dir    string
	disks  []*disk
	epoch  int // of change ids
	busy   bool
	tools  string
	after  float64 // seconds from ShutdownGuest to power off
	folder string  // "[store] folder/"
	like   types.VirtualDisk
}

// machine is the one of this reference; nil if the configuration does not name it.
func (s *sim) machine(ref types.ManagedObjectReference) *machine {
	for _, m := range s.machines {
		if m.ref == ref {
			return m
		}
	}
	return nil
}

func (m *machine) disk(key int32) *disk {
	if m != nil {
		for _, d := range m.disks {
			if d.key == key {
				return d
			}
		}
	}
	return nil
}

// shared says whether a disk forbids snapshots.
func (m *machine) shared() bool {
	if m != nil {
		for _, d := range m.disks {
			if d.shared {
				return true
			}
		}
	}
	return false
}

func (s *sim) configure(c vmConf) error {
	var vm *simulator.VirtualMachine
	for _, e := range simulator.Map.All("VirtualMachine") {
		if e.Entity().Name == c.VM {
			vm = e.(*simulator.VirtualMachine)
		}
	}
	if vm == nil {
		return fmt.Errorf("no VM named %s", c.VM)
	}
	root, err := filepath.Abs(s.root)
	if err != nil {
		return err
	}
	m := &machine{conf: c.VM, ref: vm.Self, dir: filepath.Join(root, vm.Self.Value), after: c.ShutdownAfter}
	s.machines = append(s.machines, m)
	if err := os.MkdirAll(m.dir, 0755); err != nil {
		return err
	}
	vm.Config.ChangeVersion = now()
	if c.Name != "" {
		vm.Name, vm.Config.Name, vm.Summary.Config.Name = c.Name, c.Name, c.Name
	}
	if c.UUID != "" {
		vm.Config.Uuid, vm.Summary.Config.Uuid = c.UUID, c.UUID
	}
	if c.Firmware != "" {
		vm.Config.Firmware = c.Firmware
	}
	if c.Guest != "" {
		vm.Config.GuestId, vm.Summary.Config.GuestId = c.Guest, c.Guest
	}
	if c.Memory > 0 {
		vm.Config.Hardware.MemoryMB, vm.Summary.Config.MemorySizeMB = c.Memory, c.Memory
	}
	if c.Hardware > 0 {
		vm.Config.Version = fmt.Sprintf("vmx-%02d", c.Hardware)
	}
	vm.Capability.ChangeTrackingSupported = types.NewBool(c.Hardware == 0 || c.Hardware >= 7)
	if c.CBT != nil {
		vm.Config.ChangeTrackingEnabled = c.CBT
	}
	if c.Off {
		vm.Runtime.PowerState, vm.Summary.Runtime.PowerState = types.VirtualMachinePowerStatePoweredOff, types.VirtualMachinePowerStatePoweredOff
	}
	s.powered(vm.Self, vm.Runtime.PowerState)
	if c.Tools != "" {
		if err := m.setTools(vm, c.Tools); err != nil {
			return err
		}
	}

	// The VM's own disks and their controller give way to ours.
	var others []types.BaseVirtualDevice
	for _, d := range vm.Config.Hardware.Device {
		switch v := d.(type) {
		case *types.VirtualDisk:
			m.like = *v
		case *types.ParaVirtualSCSIController:
		default:
			others = append(others, d)
		}
	}
	vm.Config.Hardware.Device = others
	file := m.like.Backing.(*types.VirtualDiskFlatVer2BackingInfo).FileName
	m.folder = strings.TrimSuffix(file, path.Base(file))
	for i, dc := range c.Disks {
		bus := int32(0)
		if i < len(c.Controllers) {
			bus = c.Controllers[i]
		}
		if _, err := s.addDisk(vm, m, dc, bus); err != nil {
			return err
		}
	}
	for _, name := range c.Snapshots {
		q := &types.CreateSnapshot_Task{This: vm.Self, Name: name, Description: "made before"}
		if _, f := s.snapshot(q); f != nil {
			return fmt.Errorf("snapshot %q: %T", name, f)
		}
	}
	for i, dc := range c.Disks {
		m.disks[i].late = dc.CBT != nil && !*dc.CBT
	}
	s.written(vm)
	return nil
}

// addDisk gives a VM one more disk, on the next unit of a controller, which is made if need be. It gives its key.
func (s *sim) addDisk(vm *simulator.VirtualMachine, m *machine, c diskConf, bus int32) (int32, error) {
	st, err := os.Stat(c.File)
	if err != nil {
		return 0, err
	}
	raw, err := filepath.Abs(c.File)
	if err != nil {
		return 0, err
	}
	controller, unit := 1000+bus, int32(0)
	var has *types.ParaVirtualSCSIController
	used := map[int32]bool{7: true} // the controller's own
	for _, d := range vm.Config.Hardware.Device {
		if v, ok := d.(*types.ParaVirtualSCSIController); ok && v.Key == controller {
			has = v
		}
		if v, ok := d.(*types.VirtualDisk); ok && v.ControllerKey == controller {
			used[*v.UnitNumber] = true
		}
	}
	if has == nil {
		has = &types.ParaVirtualSCSIController{}
		has.Key, has.BusNumber, has.ControllerKey = controller, bus, 100
		has.SharedBus = types.VirtualSCSISharingNoSharing
		has.DeviceInfo = &types.Description{Label: fmt.Sprintf("SCSI controller %d", bus), Summary: "VMware paravirtual SCSI"}
		vm.Config.Hardware.Device = append(vm.Config.Hardware.Device, has)
	}
	for used[unit] {
		unit++
	}
	number := 1
	for label(vm, number) {
		number++
	}
	name := fmt.Sprintf("%sdisk%d.vmdk", m.folder, number)
	v := m.like
	v.Key, v.ControllerKey, v.UnitNumber = 2000+16*bus+unit, controller, &unit
	v.CapacityInBytes, v.CapacityInKB = st.Size(), st.Size()/1024
	v.DeviceInfo = &types.Description{Label: fmt.Sprintf("Hard disk %d", number), Summary: fmt.Sprintf("%d KB", v.CapacityInKB)}
	b := *m.like.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	b.FileName, b.Parent = name, nil
	b.Uuid = fmt.Sprintf("6000C29%x-0000-4000-8000-%012x", number, v.Key)
	if c.Independent {
		b.DiskMode = string(types.VirtualDiskModeIndependent_persistent)
	}
	if c.Multiwriter {
		b.Sharing = string(types.VirtualDiskSharingSharingMultiWriter)
	}
	if c.Encrypted {
		b.KeyId = &types.CryptoKeyId{KeyId: "2f1a"}
	}
	v.Backing = &b
	if c.RDM {
		rdm := &types.VirtualDiskRawDiskMappingVer1BackingInfo{
			VirtualDeviceFileBackingInfo: b.VirtualDeviceFileBackingInfo,
			CompatibilityMode:            string(types.VirtualDiskCompatibilityModePhysicalMode),
			DiskMode:                     string(types.VirtualDiskModeIndependent_persistent),
			DeviceName:                   "vml.02000000006006016", Uuid: b.Uuid, Sharing: b.Sharing,
		}
		v.Backing = rdm
	}
	vm.Config.Hardware.Device = append(vm.Config.Hardware.Device, &v)
	d := &disk{key: v.Key, raw: raw, files: []string{name}, plain: c.Independent || c.RDM, shared: c.Multiwriter, never: c.Untracked}
	s.Lock()
	m.disks = append(m.disks, d)
	m.links()
	s.Unlock()
	if b.Datastore != nil { // for /folder/ downloads
		link(raw, strings.TrimSuffix(onHost(*b.Datastore, name), ".vmdk")+"-flat.vmdk")
	}
	return v.Key, nil
}

// label says whether a VM has a disk of this number.
func label(vm *simulator.VirtualMachine, number int) bool {
	for _, d := range vm.Config.Hardware.Device {
		if v, ok := d.(*types.VirtualDisk); ok && v.DeviceInfo.GetDescription().Label == fmt.Sprintf("Hard disk %d", number) {
			return true
		}
	}
	return false
}

// links lays out live/ and disks/. The caller holds the lock of s.
func (m *machine) links() {
	live, disks := map[string]string{}, map[string]string{}
	for _, d := range m.disks {
		disks[fmt.Sprint(d.key)] = d.raw
		for _, f := range d.files {
			live[path.Base(f)] = d.raw
		}
	}
	layOut(filepath.Join(m.dir, "live"), live)
	layOut(filepath.Join(m.dir, "disks"), disks)
}

// layOut leaves alone what is right already: others look there at any time.
func layOut(dir string, want map[string]string) {
	os.MkdirAll(dir, 0755)
	have, _ := os.ReadDir(dir)
	for _, e := range have {
		if want[e.Name()] == "" {
			os.Remove(filepath.Join(dir, e.Name()))
		}
		delete(want, e.Name())
	}
	for name, to := range want {
		link(to, filepath.Join(dir, name))
	}
}

// onHost is where a file of a datastore really is.
func onHost(store types.ManagedObjectReference, file string) string {
	dir := simulator.Map.Get(store).(*simulator.Datastore).Info.GetDatastoreInfo().Url
	return filepath.Join(dir, file[strings.Index(file, "] ")+2:])
}

// written writes the VM's .vmx on its datastore: libvirt's dumpxml and virt-v2v -i vmx read it.
func (s *sim) written(vm *simulator.VirtualMachine) {
	c := vm.Config
	c.ChangeVersion = now()
	u := strings.ReplaceAll(c.Uuid, "-", "")
	var hex []string
	for i := 0; i+2 <= len(u); i += 2 {
		hex = append(hex, u[i:i+2])
	}
	o := []string{".encoding", "UTF-8", "config.version", "8", "virtualHW.version", "13", "displayName", c.Name, "guestOS", strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(c.GuestId, "Guest"), "_64")) + "-64",
		"memsize", fmt.Sprint(c.Hardware.MemoryMB), "numvcpus", fmt.Sprint(c.Hardware.NumCPU),
		"uuid.bios", strings.Join(hex[:8], " ") + "-" + strings.Join(hex[8:], " ")}
	if c.Firmware == "efi" { // a .vmx says nothing for BIOS
		o = append(o, "firmware", "efi")
	}
	eth := 0
	for _, d := range c.Hardware.Device {
		switch v := d.(type) {
		case *types.ParaVirtualSCSIController:
			p := fmt.Sprintf("scsi%d.", v.BusNumber)
			o = append(o, p+"present", "true", p+"virtualDev", "pvscsi")
		case *types.VirtualDisk:
			p := fmt.Sprintf("scsi%d:%d.", v.ControllerKey-1000, *v.UnitNumber)
			file := v.Backing.(types.BaseVirtualDeviceFileBackingInfo).GetVirtualDeviceFileBackingInfo().FileName
			o = append(o, p+"present", "true", p+"deviceType", "scsi-hardDisk", p+"fileName", path.Base(file))
		case types.BaseVirtualEthernetCard:
			p := fmt.Sprintf("ethernet%d.", eth)
			name := "VM Network"
			if b, ok := v.GetVirtualEthernetCard().Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok {
				name = b.DeviceName
			}
			o = append(o, p+"present", "true", p+"virtualDev", "vmxnet3", p+"networkName", name, p+"addressType", "generated", p+"generatedAddress", v.GetVirtualEthernetCard().MacAddress)
			eth++
		}
	}
	var b strings.Builder
	for i := 0; i+1 < len(o); i += 2 {
		fmt.Fprintf(&b, "%s = %q\n", o[i], o[i+1])
	}
	if err := os.WriteFile(onHost(vm.Datastore[0], c.Files.VmPathName), []byte(b.String()), 0644); err != nil {
		log.Print(err)
	}
}
