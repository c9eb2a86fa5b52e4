package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// powered notes what a VM does. When it is off, the last byte of its guest is written.
func (s *sim) powered(ref types.ManagedObjectReference, state types.VirtualMachinePowerState) {
	m := s.machine(ref)
	if m == nil {
		return
	}
	word := strings.ToLower(strings.TrimPrefix(string(state), "powered"))
	s.Lock()
	defer s.Unlock()
	m.locked(func() {
		if state == types.VirtualMachinePowerStatePoweredOff {
			s.seq++
			for _, d := range m.disks {
				d.keep(m.copyOf(fmt.Sprint("off-", s.seq), d))
			}
		}
		file := filepath.Join(m.dir, "power")
		if err := os.WriteFile(file+".new", []byte(word), 0644); err != nil {
			log.Print(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			log.Print(err)
		}
	})
	s.events.put(event{Method: "sim: power", Phase: "done", VM: ref.Value, Power: string(state)})
}

func (m *machine) setTools(vm *simulator.VirtualMachine, tools string) error {
	status, version, running := types.VirtualMachineToolsStatusToolsOk, types.VirtualMachineToolsVersionStatusGuestToolsCurrent, types.VirtualMachineToolsRunningStatusGuestToolsRunning
	switch tools {
	case "running":
	case "notRunning":
		status, running = types.VirtualMachineToolsStatusToolsNotRunning, types.VirtualMachineToolsRunningStatusGuestToolsNotRunning
	case "notInstalled":
		status, version, running = types.VirtualMachineToolsStatusToolsNotInstalled, types.VirtualMachineToolsVersionStatusGuestToolsNotInstalled, types.VirtualMachineToolsRunningStatusGuestToolsNotRunning
	default:
		return fmt.Errorf("tools: %q is not known", tools)
	}
	m.tools = tools
	g, su := vm.Guest, vm.Summary.Guest
	g.GuestState = guestState(vm.Runtime.PowerState, running)
	g.ToolsStatus, g.ToolsRunningStatus, g.ToolsVersionStatus, g.ToolsVersionStatus2 = status, string(running), string(version), string(version)
	su.ToolsStatus, su.ToolsRunningStatus, su.ToolsVersionStatus, su.ToolsVersionStatus2 = status, string(running), string(version), string(version)
	return nil
}

// guestState is what the tools say of the guest: "shuttingDown" only from ShutdownGuest on.
func guestState(power types.VirtualMachinePowerState, tools types.VirtualMachineToolsRunningStatus) string {
	if power == types.VirtualMachinePowerStatePoweredOn && tools == types.VirtualMachineToolsRunningStatusGuestToolsRunning {
		return string(types.VirtualMachineGuestStateRunning)
	}
	return string(types.VirtualMachineGuestStateNotRunning)
}

// shutdownGuest answers at once, as vCenter does, and the guest takes its time, or never does it.
func (s *sim) shutdownGuest(w http.ResponseWriter, q *types.ShutdownGuest) {
	vm, ev := vmOf(q.This), event{Method: "ShutdownGuest", VM: q.This.Value}
	m, tools := s.machine(q.This), ""
	if m != nil {
		tools = m.tools
	}
	if state := vm.Runtime.PowerState; state != types.VirtualMachinePowerStatePoweredOn {
		s.events.ended(ev, "InvalidPowerState")
		fault(w, "The attempted operation cannot be performed in the current state (Powered off).", "InvalidPowerState", "<requestedState>poweredOn</requestedState><existingState>"+string(state)+"</existingState>")
		return
	}
	if tools != "" && tools != "running" {
		s.events.ended(ev, "ToolsUnavailable")
		fault(w, "Cannot complete operation because VMware Tools is not running in this virtual machine.", "ToolsUnavailable", "")
		return
	}
	s.events.ended(ev, "")
	answer(w, ev.Method, "")
	if m == nil || m.after >= 0 {
		simulator.Map.WithLock(vm, func() { vm.Guest.GuestState = string(types.VirtualMachineGuestStateShuttingDown) })
	}
	go func() {
		s.pause(func() time.Duration {
			switch {
			case m == nil || vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn:
				return 0
			case m.after < 0:
				return time.Hour // for as long as it stays so
			}
			return time.Duration(m.after * float64(time.Second))
		})
		// Switched off in the meantime is as good.
		methods.PowerOffVM_Task(context.Background(), s.service, &types.PowerOffVM_Task{This: q.This})
	}()
}
