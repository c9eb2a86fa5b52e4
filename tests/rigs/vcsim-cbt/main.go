// vcsim-cbt: a vCenter stand-in for tests = govmomi's own simulator package
// (Debian: golang-github-vmware-govmomi-dev) plus what it lacks for warm
// migration: VirtualMachine.QueryChangedDiskAreas, changeId on snapshots, and
// raw image files behind the virtual disks.
//
// Build (about 40 s on 2 cores, no network):
//
//	apt-get install -y --no-install-recommends golang-go golang-github-vmware-govmomi-dev
//	GO111MODULE=off GOPATH=/usr/share/gocode go build -o vcsim-cbt ./main.go
//
// Run:
//
//	vcsim-cbt -l 127.0.0.1:8989 -root DIR [-config FILE] [-cbt-chunk BYTES] [-tls=true] [-cert F -key F]
//
// It prints one line "READY <url>" on stdout, then serves until SIGTERM.
//
// -config FILE is JSON:
//
//	[{"vm":"DC0_H0_VM0","uuid":"...","disks":["/path/a.raw","/path/b.raw"],"firmware":"efi","guest":"rhel8_64Guest",
//	  "memory":1024,"off":true,"name":"another name"}]
//
// name renames it (two may get the same name: with -dc 2 there are two data
// centers); memory is in MiB (the simulator's own VMs have 32, too little to convert); off
// switches the VM off (virt-v2v refuses a running one).
//
// For every VM named there the directory DIR/<moref>/live/ holds a link
// <basename of the disk's vmdk> -> raw file; each snapshot taken copies the raw
// files (sparse) to DIR/<moref>/<snapshot-moref>/. nbdkit-vddk.c serves
// exactly this layout (VDDK_SIM_ROOT=DIR). GET /folder/<vm>/<disk>-flat.vmdk?
// dcPath=..&dsName=.. serves the same bytes.
//
// CBT is real: QueryChangedDiskAreas compares the snapshot's copy with the copy
// that the given changeId names (64 KiB blocks); "*" lists allocated extents.
package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

const block = 64 * 1024

type vmConf struct {
	VM, UUID, Firmware, Guest string
	Name                      string
	Disks                     []string
	Memory                    int32
	Off                       bool
}

type disk struct{ name, raw string } // name: basename of the vmdk

type sim struct {
	sync.Mutex
	root  string
	chunk int64
	disks map[string]map[int32]disk // vm moref -> device key
	snaps map[string]string         // changeId+vm+key -> copy's path
	seq   int
}

func (s *sim) PutObject(o mo.Reference) {
	// The package names the snapshot as RemoveSnapshot_Task's entity; vCenter names the VM.
	if t, ok := o.(*simulator.Task); ok && t.Info.Entity != nil && t.Info.Entity.Type == "VirtualMachineSnapshot" {
		if sn, ok := simulator.Map.Get(*t.Info.Entity).(*simulator.VirtualMachineSnapshot); ok {
			vm := sn.Vm
			t.Info.Entity = &vm
		}
	}
	sn, ok := o.(*simulator.VirtualMachineSnapshot)
	if !ok {
		return
	}
	s.Lock()
	defer s.Unlock()
	ds := s.disks[sn.Vm.Value]
	if ds == nil {
		return
	}
	s.seq++
	dir := filepath.Join(s.root, sn.Vm.Value, sn.Self.Value)
	os.MkdirAll(dir, 0755)
	devs := make([]types.BaseVirtualDevice, len(sn.Config.Hardware.Device))
	copy(devs, sn.Config.Hardware.Device)
	for i := range devs {
		vd, ok := devs[i].(*types.VirtualDisk)
		d, known := ds[devs[i].GetVirtualDevice().Key]
		if !ok || !known {
			continue
		}
		dst := filepath.Join(dir, d.name)
		if out, err := exec.Command("cp", "-L", "--sparse=always", d.raw, dst).CombinedOutput(); err != nil {
			log.Printf("copy %s: %v %s", d.raw, err, out)
		}
		c := *vd
		b := *(vd.Backing.(*types.VirtualDiskFlatVer2BackingInfo))
		if sn.Config.ChangeTrackingEnabled != nil && *sn.Config.ChangeTrackingEnabled {
			b.ChangeId = fmt.Sprintf("52 de c0 d9 b9 43 9d 10-%02x %02x 20 7a f5 4f 21 42/%d", vd.Key>>8&255, vd.Key&255, s.seq)
			s.snaps[key(sn.Vm.Value, vd.Key, b.ChangeId)] = dst
		}
		c.Backing = &b
		devs[i] = &c
	}
	sn.Config.Hardware.Device = devs
}

// vCenter changes config.changeVersion when the .vmx is written, as it is by
// switching on and off; the package leaves it empty.
func (s *sim) UpdateObject(o mo.Reference, changes []types.PropertyChange) {
	vm, ok := o.(*mo.VirtualMachine)
	if !ok || vm.Config == nil {
		return
	}
	for _, c := range changes {
		if c.Name == "runtime.powerState" {
			vm.Config.ChangeVersion = time.Now().UTC().Format(time.RFC3339Nano)
		}
	}
}
func (s *sim) RemoveObject(ref types.ManagedObjectReference) {}
func (s *sim) Reference() (r types.ManagedObjectReference)   { return }
func key(vm string, k int32, id string) string               { return fmt.Sprintf("%s/%d/%s", vm, k, id) }

// typed gives the members of an ArrayOfX their xsi:type, as vCenter does and
// libvirt's esx driver requires ("AnyType is missing 'type' property").
var arrayOf = regexp.MustCompile(`type="ArrayOf([A-Z]\w+)"`)

func typed(b []byte) []byte {
	seen := map[string]bool{}
	for _, m := range arrayOf.FindAllSubmatch(b, -1) {
		n := string(m[1])
		if seen[n] {
			continue
		}
		seen[n] = true
		for _, end := range []string{">", " type="} {
			b = bytes.ReplaceAll(b, []byte("<"+n+end), []byte("<"+n+` xsi:type="`+n+`"`+end))
		}
	}
	return b
}

type query struct {
	This struct {
		Value string `xml:",chardata"`
	} `xml:"Body>QueryChangedDiskAreas>_this"`
	Snapshot    string `xml:"Body>QueryChangedDiskAreas>snapshot"`
	DeviceKey   int32  `xml:"Body>QueryChangedDiskAreas>deviceKey"`
	StartOffset int64  `xml:"Body>QueryChangedDiskAreas>startOffset"`
	ChangeID    string `xml:"Body>QueryChangedDiskAreas>changeId"`
}

func fault(w http.ResponseWriter, msg, typ, inner string) {
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.WriteHeader(500)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>%s</faultstring><detail><%sFault xmlns="urn:vim25" xsi:type="%s">%s</%sFault></detail></soapenv:Fault></soapenv:Body></soapenv:Envelope>`, msg, typ, typ, inner, typ)
}

func (s *sim) changed(w http.ResponseWriter, body []byte) {
	var q query
	if err := xml.Unmarshal(body, &q); err != nil {
		fault(w, err.Error(), "InvalidRequest", "")
		return
	}
	s.Lock()
	defer s.Unlock()
	vm, ok := simulator.Map.Get(types.ManagedObjectReference{Type: "VirtualMachine", Value: q.This.Value}).(*simulator.VirtualMachine)
	if !ok {
		fault(w, "not found", "ManagedObjectNotFound", "")
		return
	}
	d, ok := s.disks[q.This.Value][q.DeviceKey]
	if !ok {
		fault(w, "A specified parameter was not correct: deviceKey", "InvalidArgument", "<invalidProperty>deviceKey</invalidProperty>")
		return
	}
	if vm.Config.ChangeTrackingEnabled == nil || !*vm.Config.ChangeTrackingEnabled {
		fault(w, "Error caused by file "+d.name, "FileFault", "<file>"+d.name+"</file>")
		return
	}
	cur := d.raw
	if q.Snapshot != "" {
		cur = filepath.Join(s.root, q.This.Value, q.Snapshot, d.name)
	}
	old := ""
	if q.ChangeID != "*" {
		if old = s.snaps[key(q.This.Value, q.DeviceKey, q.ChangeID)]; old == "" {
			fault(w, "Error caused by file "+d.name, "FileFault", "<file>"+d.name+"</file>")
			return
		}
	}
	st, err := os.Stat(cur)
	if err != nil || q.StartOffset < 0 || q.StartOffset >= st.Size() {
		fault(w, "A specified parameter was not correct: startOffset", "InvalidArgument", "<invalidProperty>startOffset</invalidProperty>")
		return
	}
	end := st.Size()
	if s.chunk > 0 && q.StartOffset+s.chunk < end {
		end = q.StartOffset + s.chunk
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><QueryChangedDiskAreasResponse xmlns="urn:vim25"><returnval><startOffset>%d</startOffset><length>%d</length>`, q.StartOffset, end-q.StartOffset)
	for _, e := range diff(cur, old, q.StartOffset, end) {
		fmt.Fprintf(&out, `<changedArea><start>%d</start><length>%d</length></changedArea>`, e[0], e[1])
	}
	out.WriteString(`</returnval></QueryChangedDiskAreasResponse></soapenv:Body></soapenv:Envelope>`)
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.Write(out.Bytes())
}

// diff lists the blocks of cur in [from,to) that differ from old (or are not zero when old is "").
func diff(cur, old string, from, to int64) (r [][2]int64) {
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
			if n := len(r); n > 0 && r[n-1][0]+r[n-1][1] == o {
				r[n-1][1] += l
			} else {
				r = append(r, [2]int64{o, l})
			}
		}
	}
	return
}

func (s *sim) configure(confs []vmConf) {
	for _, c := range confs {
		var vm *simulator.VirtualMachine
		for _, e := range simulator.Map.All("VirtualMachine") {
			if e.Entity().Name == c.VM {
				vm = e.(*simulator.VirtualMachine)
			}
		}
		if vm == nil {
			log.Fatalf("no VM named %s", c.VM)
		}
		vm.Config.ChangeVersion = time.Now().UTC().Format(time.RFC3339Nano)
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
		if c.Off {
			vm.Runtime.PowerState, vm.Summary.Runtime.PowerState = types.VirtualMachinePowerStatePoweredOff, types.VirtualMachinePowerStatePoweredOff
		}
		live := filepath.Join(s.root, vm.Self.Value, "live")
		os.MkdirAll(live, 0755)
		s.disks[vm.Self.Value] = map[int32]disk{}
		var have []*types.VirtualDisk
		for _, d := range vm.Config.Hardware.Device {
			if v, ok := d.(*types.VirtualDisk); ok {
				have = append(have, v)
			}
		}
		for i, raw := range c.Disks {
			st, err := os.Stat(raw)
			if err != nil {
				log.Fatal(err)
			}
			if i >= len(have) { // a further disk: like the first, next unit and file name
				v := *have[0]
				b := *(have[0].Backing.(*types.VirtualDiskFlatVer2BackingInfo))
				b.FileName = strings.TrimSuffix(b.FileName, path.Base(b.FileName)) + fmt.Sprintf("disk%d.vmdk", i+1)
				u := int32(i)
				v.Key, v.UnitNumber, v.Backing = have[0].Key+int32(i), &u, &b
				have = append(have, &v)
				vm.Config.Hardware.Device = append(vm.Config.Hardware.Device, &v)
			}
			v := have[i]
			v.CapacityInBytes, v.CapacityInKB = st.Size(), st.Size()/1024
			b := v.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
			name := path.Base(b.FileName)
			s.disks[vm.Self.Value][v.Key] = disk{name, raw}
			os.Remove(filepath.Join(live, name))
			if err := os.Symlink(raw, filepath.Join(live, name)); err != nil {
				log.Fatal(err)
			}
			if b.Datastore != nil { // for /folder/ downloads
				dir := simulator.Map.Get(*b.Datastore).(*simulator.Datastore).Info.GetDatastoreInfo().Url
				p := b.FileName[strings.Index(b.FileName, "] ")+2:]
				f := filepath.Join(dir, strings.TrimSuffix(p, ".vmdk")+"-flat.vmdk")
				os.MkdirAll(filepath.Dir(f), 0755)
				os.Remove(f)
				os.Symlink(raw, f)
			}
		}
		s.vmx(vm)
	}
}

// vmx writes the VM's .vmx on its datastore: libvirt's dumpxml and virt-v2v -i vmx read it.
func (s *sim) vmx(vm *simulator.VirtualMachine) {
	c := vm.Config
	u := strings.ReplaceAll(c.Uuid, "-", "")
	var hex []string
	for i := 0; i+2 <= len(u); i += 2 {
		hex = append(hex, u[i:i+2])
	}
	o := []string{".encoding", "UTF-8", "config.version", "8", "virtualHW.version", "13", "displayName", c.Name, "guestOS", strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(c.GuestId, "Guest"), "_64")) + "-64",
		"memsize", fmt.Sprint(c.Hardware.MemoryMB), "numvcpus", fmt.Sprint(c.Hardware.NumCPU),
		"uuid.bios", strings.Join(hex[:8], " ") + "-" + strings.Join(hex[8:], " "),
		"scsi0.present", "true", "scsi0.virtualDev", "pvscsi"}
	if c.Firmware == "efi" { // a .vmx says nothing for BIOS
		o = append(o, "firmware", "efi")
	}
	scsi, eth := 0, 0
	for _, d := range c.Hardware.Device {
		switch v := d.(type) {
		case *types.VirtualDisk:
			p := fmt.Sprintf("scsi0:%d.", scsi)
			o = append(o, p+"present", "true", p+"deviceType", "scsi-hardDisk", p+"fileName", path.Base(v.Backing.(*types.VirtualDiskFlatVer2BackingInfo).FileName))
			scsi++
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
	dir := simulator.Map.Get(vm.Datastore[0]).(*simulator.Datastore).Info.GetDatastoreInfo().Url
	p := c.Files.VmPathName
	if err := os.WriteFile(filepath.Join(dir, p[strings.Index(p, "] ")+2:]), []byte(b.String()), 0644); err != nil {
		log.Print(err)
	}
}

func main() {
	l := flag.String("l", "127.0.0.1:8989", "listen address")
	root := flag.String("root", "", "directory for live links and snapshot copies")
	conf := flag.String("config", "", "JSON: VMs and their raw disks")
	chunk := flag.Int64("cbt-chunk", 0, "QueryChangedDiskAreas answers at most this many bytes of disk a call (0: all)")
	useTLS := flag.Bool("tls", true, "https")
	cert := flag.String("cert", "", "PEM certificate")
	pkey := flag.String("key", "", "PEM key")
	user := flag.String("user", "", "user:password to insist on (default: any non-empty)")
	flag.BoolVar(&simulator.Trace, "trace", false, "log SOAP bodies on stderr")
	vms := flag.Int("vm", 2, "VMs per resource pool")
	dcs := flag.Int("dc", 1, "data centers")
	flag.Parse()
	m := simulator.VPX()
	m.Machine = *vms
	m.Datacenter = *dcs
	if err := m.Create(); err != nil {
		log.Fatal(err)
	}
	defer m.Remove()
	s := &sim{root: *root, chunk: *chunk, disks: map[string]map[int32]disk{}, snaps: map[string]string{}}
	if *conf != "" {
		var cs []vmConf
		b, err := os.ReadFile(*conf)
		if err == nil {
			err = json.Unmarshal(b, &cs)
		}
		if err != nil {
			log.Fatal(err)
		}
		s.configure(cs)
	}
	simulator.Map.AddHandler(s)
	svc := m.Service
	svc.RegisterEndpoints = true
	svc.Listen = &url.URL{Host: *l}
	if *user != "" {
		p := strings.SplitN(*user, ":", 2)
		svc.Listen.User = url.UserPassword(p[0], p[1])
	}
	if *useTLS {
		svc.TLS = new(tls.Config)
		if *cert != "" {
			c, err := tls.LoadX509KeyPair(*cert, *pkey)
			if err != nil {
				log.Fatal(err)
			}
			svc.TLS.Certificates = []tls.Certificate{c}
		}
	}
	srv := svc.NewServer()
	next := srv.Config.Handler
	srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/sdk") {
			b, _ := io.ReadAll(r.Body)
			if bytes.Contains(b, []byte("QueryChangedDiskAreas")) && bytes.Contains(b, []byte("deviceKey")) {
				if _, err := r.Cookie("vmware_soap_session"); err != nil {
					fault(w, "The session is not authenticated.", "NotAuthenticated", "")
					return
				}
				s.changed(w, b)
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(b))
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			for k, v := range rec.Header() {
				if k != "Content-Length" {
					w.Header()[k] = v
				}
			}
			w.WriteHeader(rec.Code)
			w.Write(typed(rec.Body.Bytes()))
			return
		}
		next.ServeHTTP(w, r)
	})
	where := *srv.URL
	where.User = nil
	fmt.Printf("READY %s\n", where.String())
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM)
	<-c
}
