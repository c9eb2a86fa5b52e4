// vcsim-cbt: a vCenter stand-in for tests = govmomi's own simulator package
// (Debian: golang-github-vmware-govmomi-dev) plus what it lacks for warm
// migration: VirtualMachine.QueryChangedDiskAreas, change ids, delta disks,
// tasks that take their time, guests that shut down slowly or never, and raw
// image files behind the virtual disks.
//
//	main.go       flags and the server
//	soap.go       requests that are answered here and not by the package
//	machine.go    VMs as the configuration wants them, their disks
//	guest.go      what runs in a VM: power, VMware Tools, a slow shutdown
//	snapshots.go  snapshots, chains of files, copies at one point in time
//	cbt.go        QueryChangedDiskAreas
//	control.go    what a test can do and ask while it runs
//	events.go     the log of what happened, in order
//
// Build (about 40 s on 2 cores, no network):
//
//	apt-get install -y --no-install-recommends golang-go golang-github-vmware-govmomi-dev
//	GO111MODULE=off GOPATH=/usr/share/gocode go build -o vcsim-cbt .
//
// Run:
//
//	vcsim-cbt -l 127.0.0.1:8989 -root DIR [-config FILE] [-control SOCKET] [-events FILE]
//	  [-cbt-chunk BYTES] [-tls=true] [-cert F -key F]
//
// It prints one line "READY <url>" on stdout, then serves until SIGTERM.
//
// -config FILE is JSON, an array of objects with these keys (all but vm may be left out):
//
//	vm             name in the simulator's inventory: DC0_H0_VM0 ...
//	name           renames it (two may get the same name: with -dc 2 there are two data centers)
//	uuid, firmware ("efi"), guest ("rhel8_64Guest")
//	memory         MiB (the simulator's own VMs have 32, too little to convert)
//	off            true: switched off (virt-v2v refuses a running one)
//	disks          an array; each is the path of a raw file, or an object:
//	                 file         the raw file
//	                 cbt          false: the next snapshot shows no change id for it, later ones do
//	                 untracked    true: no snapshot ever shows a change id for it
//	                 independent  true: mode independent_persistent, so no snapshot holds it
//	                 rdm          true: a raw device in physical mode, so no snapshot holds it
//	                 multiwriter  true: shared, so no snapshot can be taken of the VM
//	                 encrypted    true: it has a key
//	controllers    e.g. [0,0,1]: the SCSI controller of each disk; units are counted from 0 on each
//	hardware       version, e.g. 13; below 7 the VM cannot track changes
//	tools          "running", "notRunning" or "notInstalled"; ShutdownGuest works with the first
//	shutdownAfter  seconds from ShutdownGuest to power off (default 0); -1: never
//	cbt            changeTrackingEnabled
//	snapshots      names of snapshots that exist already, each below the one before
//
// Keys of disks are VMware's: 2000 + 16 * controller + unit.
//
// For every VM named there, DIR/<moref>/ holds:
//
//	live/<basename of a file of the disk's chain>   link to the raw file
//	<snapshot's moref>/<the same>                   link to that snapshot's copy, until it is removed
//	disks/<device key>                              link to the raw file: what the guest writes to
//	power                                           "on", "off" or "suspended"
//	lock                                            flock: held by whoever copies, writes or switches off
//	kept/                                           the copies, also of snapshots removed: change ids refer to them
//
// nbdkit-vddk.c serves this layout (VDDK_SIM_ROOT=DIR), guest-writer.c writes
// into it. One snapshot is one sparse copy of every disk: keep images small.
// GET /folder/<vm>/<disk>-flat.vmdk?dcPath=..&dsName=.. serves the raw files.
//
// CBT is real: QueryChangedDiskAreas lists the blocks of 64 KiB that differ between
// any two states in a row, from the copy that the given changeId names to the
// snapshot's: snapshots, and the disks whenever the VM went off. What was written and
// written back is told, as VMware does; "*" lists allocated extents. Switching
// tracking off makes all change ids void.
//
// Unlike a real one: RevertToSnapshot does not change the disks; removing a
// snapshot takes the time it is told to, however much was written.
package main

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// sim is what is known beyond the package's own registry. Whoever needs the lock
// of a VM in the registry (simulator.Map.WithLock) too takes that one first.
type sim struct {
	sync.Mutex
	root     string
	chunk    int64
	service  *simulator.Service
	machines []*machine
	sessions map[string]bool   // cookies of logins
	copies   map[string]string // change id of a disk of a VM -> file
	seq      int
	faults   faults
	events   events
	server   *http.Server
	shown    *tls.Certificate // in the place of -cert
}

// faults are what a test asked for (control.go).
type faults struct {
	snapshots        int  // so many CreateSnapshot_Task fail
	onlyQuiesced     bool // those with quiesce=true
	removals         int  // so many RemoveSnapshot_Task fail
	queries          int  // so many QueryChangedDiskAreas fail
	areas            int  // QueryChangedDiskAreas tells at most so many areas (0: all)
	whole            bool // and says nevertheless that it told of the rest of the disk
	snapshot, remove time.Duration
	reconfig         time.Duration
	frozen           time.Time // no answer before
}

func main() {
	l := flag.String("l", "127.0.0.1:8989", "listen address")
	root := flag.String("root", "", "directory for live links and snapshot copies")
	conf := flag.String("config", "", "JSON: VMs and their raw disks")
	control := flag.String("control", "", "Unix socket for tests: HTTP, see control.go")
	log_ := flag.String("events", "", "file for one JSON line per event")
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
	svc := m.Service
	s := &sim{root: *root, chunk: *chunk, service: svc, sessions: map[string]bool{}, copies: map[string]string{}}
	if err := s.events.open(*log_); err != nil {
		log.Fatal(err)
	}
	simulator.Map.AddHandler(s)
	if *conf != "" {
		var cs []vmConf
		b, err := os.ReadFile(*conf)
		if err == nil {
			err = json.Unmarshal(b, &cs)
		}
		for _, c := range cs {
			if err == nil {
				err = s.configure(c)
			}
		}
		if err != nil {
			log.Fatal(err)
		}
	}
	if *control != "" {
		if err := s.serveControl(*control); err != nil {
			log.Fatal(err)
		}
	}
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
			svc.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
				s.Lock()
				defer s.Unlock()
				if s.shown == nil {
					return nil, nil
				}
				return &tls.Config{Certificates: []tls.Certificate{*s.shown}}, nil
			}
		}
	}
	srv := svc.NewServer()
	s.Lock()
	s.server = srv.Config
	s.Unlock()
	next := srv.Config.Handler
	srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/sdk") {
			s.soap(w, r, next)
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

// The registry tells what it creates, changes and removes.

func (s *sim) PutObject(o mo.Reference) {
	if sn, ok := o.(*simulator.VirtualMachineSnapshot); ok {
		s.taken(sn)
	}
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
			vm.Config.ChangeVersion = now()
			if vm.Guest != nil {
				vm.Guest.GuestState = guestState(vm.Runtime.PowerState, types.VirtualMachineToolsRunningStatus(vm.Guest.ToolsRunningStatus))
			}
			s.powered(vm.Self, vm.Runtime.PowerState)
		}
	}
}
func (s *sim) RemoveObject(types.ManagedObjectReference)   {}
func (s *sim) Reference() (r types.ManagedObjectReference) { return }
func now() string                                          { return time.Now().UTC().Format(time.RFC3339Nano) }
func vmOf(ref types.ManagedObjectReference) *simulator.VirtualMachine {
	vm, _ := simulator.Map.Get(ref).(*simulator.VirtualMachine)
	return vm
}
