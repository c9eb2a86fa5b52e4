package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Methods that are asked so often that nobody wants them in the log of events.
var noise = regexp.MustCompile(`^(Retrieve|Continue|Wait|Cancel|Create(Filter|ContainerView|PropertyCollector)|Destroy|CurrentTime|SessionIsActive)`)

// soap answers a request to the SDK, itself or by the package (next).
func (s *sim) soap(w http.ResponseWriter, r *http.Request, next http.Handler) {
	s.Lock()
	thaw := s.faults.frozen
	s.Unlock()
	time.Sleep(time.Until(thaw))
	body, _ := io.ReadAll(r.Body)
	cookie := ""
	if c, err := r.Cookie(soap.SessionCookieName); err == nil {
		cookie = c.Value
	}
	method, err := simulator.UnmarshalBody(types.TypeFunc(), body)
	if err != nil {
		method = &simulator.Method{}
	}
	if s.ours(w, method, cookie) {
		return
	}
	if method.Name == "ReconfigVM_Task" {
		s.Lock()
		pause := s.faults.reconfig
		s.Unlock()
		if pause > 0 {
			s.events.put(event{Method: method.Name, Phase: "begun", VM: method.This.Value})
			time.Sleep(pause)
		}
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	s.note(method, rec, cookie)
	for k, v := range rec.Header() {
		if k != "Content-Length" {
			w.Header()[k] = v
		}
	}
	w.WriteHeader(rec.Code)
	w.Write(typed(rec.Body.Bytes()))
}

// ours answers what the package lacks or does too well. It says whether it did.
func (s *sim) ours(w http.ResponseWriter, method *simulator.Method, cookie string) bool {
	switch method.Body.(type) {
	case *types.QueryChangedDiskAreas, *types.CreateSnapshot_Task, *types.RemoveSnapshot_Task, *types.RemoveAllSnapshots_Task, *types.ShutdownGuest:
	default:
		return false
	}
	s.Lock()
	known := s.sessions[cookie]
	s.Unlock()
	if !known {
		fault(w, "The session is not authenticated.", "NotAuthenticated", `<object type="`+method.This.Type+`">`+escaped(method.This.Value)+`</object><privilegeId>System.View</privilegeId>`)
		return true
	}
	if simulator.Map.Get(method.This) == nil {
		return false // the package knows how to say so
	}
	switch q := method.Body.(type) {
	case *types.QueryChangedDiskAreas:
		s.changed(w, q)
	case *types.CreateSnapshot_Task:
		s.createSnapshot(w, q)
	case *types.RemoveSnapshot_Task:
		s.removeSnapshot(w, q)
	case *types.RemoveAllSnapshots_Task:
		s.removeAllSnapshots(w, q)
	case *types.ShutdownGuest:
		s.shutdownGuest(w, q)
	}
	return true
}

// note keeps the sessions, and the log of what the package did.
func (s *sim) note(method *simulator.Method, answer *httptest.ResponseRecorder, cookie string) {
	s.Lock()
	for _, c := range answer.Result().Cookies() { // a login, in whatever way
		if c.Name == soap.SessionCookieName {
			s.sessions[c.Value] = true
		}
	}
	if method.Name == "Logout" {
		delete(s.sessions, cookie)
	}
	s.Unlock()
	if method.Name == "" || noise.MatchString(method.Name) {
		return
	}
	ev := event{Method: method.Name}
	if method.This.Type == "VirtualMachine" {
		ev.VM = method.This.Value
	}
	if q, ok := method.Body.(*types.ReconfigVM_Task); ok {
		ev.ChangeTracking = q.Spec.ChangeTrackingEnabled
		s.Lock()
		if m := s.machine(method.This); m != nil && ev.ChangeTracking != nil && !*ev.ChangeTracking && answer.Code == http.StatusOK {
			s.reset(m)
		}
		s.Unlock()
	}
	why := ""
	if answer.Code != http.StatusOK {
		why = fmt.Sprint("HTTP ", answer.Code)
		if m := faultKind.FindSubmatch(answer.Body.Bytes()); m != nil {
			why = string(m[1])
		}
	} else if strings.HasSuffix(method.Name, "_Task") {
		why = taskFault(answer.Body.Bytes())
	}
	s.events.ended(ev, why)
}

var (
	faultKind  = regexp.MustCompile(`<detail><(\w+)Fault[ >]`)
	taskAnswer = regexp.MustCompile(`<returnval type="Task">([^<]+)<`)
)

// taskFault is the fault of the task that an answer names; the package's tasks are over when it answers.
func taskFault(answer []byte) string {
	if m := taskAnswer.FindSubmatch(answer); m != nil {
		ref := types.ManagedObjectReference{Type: "Task", Value: string(m[1])}
		if t, ok := simulator.Map.Get(ref).(*simulator.Task); ok && t.Info.Error != nil {
			return kind(t.Info.Error.Fault)
		}
	}
	return ""
}

// kind is the type of a fault as VMware names it.
func kind(f interface{}) string {
	name := fmt.Sprintf("%T", f)
	return name[strings.LastIndex(name, ".")+1:]
}

// task runs work beside the answer, as vCenter does: the client has to wait for it.
func task(w http.ResponseWriter, vm mo.Reference, method string, work func() (types.AnyType, types.BaseMethodFault, string)) {
	name := strings.ToLower(method[:1]) + strings.TrimSuffix(method[1:], "_Task")
	t := simulator.CreateTask(vm, name+"Task", nil)
	set := func(changes ...types.PropertyChange) {
		simulator.Map.WithLock(t, func() { simulator.Map.Update(t, changes) })
	}
	if v, ok := vm.(*simulator.VirtualMachine); ok {
		simulator.Map.WithLock(v, func() {
			recent := append([]types.ManagedObjectReference{t.Self}, v.RecentTask...)
			if len(recent) > 10 {
				recent = recent[:10]
			}
			v.RecentTask = recent
		})
	}
	set(types.PropertyChange{Name: "info.startTime", Val: time.Now()},
		types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateRunning})
	go func() {
		result, f, message := work()
		state := types.TaskInfoStateSuccess
		var problem interface{}
		if f != nil {
			state = types.TaskInfoStateError
			problem = types.LocalizedMethodFault{Fault: f, LocalizedMessage: message}
		}
		// The state last: whoever sees the end sees the result.
		set(types.PropertyChange{Name: "info.completeTime", Val: time.Now()},
			types.PropertyChange{Name: "info.result", Val: result},
			types.PropertyChange{Name: "info.error", Val: problem},
			types.PropertyChange{Name: "info.state", Val: state})
	}()
	answer(w, method, `<returnval type="Task">`+t.Self.Value+`</returnval>`)
}

const envelope = `<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>%s</soapenv:Body></soapenv:Envelope>`

func answer(w http.ResponseWriter, method, inside string) {
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	fmt.Fprintf(w, envelope, fmt.Sprintf(`<%[1]sResponse xmlns="urn:vim25">%[2]s</%[1]sResponse>`, method, inside))
}

func fault(w http.ResponseWriter, message, kind, inside string) {
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.WriteHeader(http.StatusInternalServerError)
	fmt.Fprintf(w, envelope, fmt.Sprintf(`<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>%s</faultstring><detail><%[2]sFault xmlns="urn:vim25" xsi:type="%[2]s">%[3]s</%[2]sFault></detail></soapenv:Fault>`, escaped(message), kind, inside))
}

func escaped(text string) string {
	var b bytes.Buffer
	xml.EscapeText(&b, []byte(text))
	return b.String()
}

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

// expire ends all sessions, those of libvirt and VDDK too.
func (s *sim) expire() error {
	s.Lock()
	sessions := s.sessions
	s.sessions = map[string]bool{}
	s.Unlock()
	manager := simulator.Map.SessionManager().Self
	for id := range sessions {
		// One that is gone by itself is as good.
		methods.TerminateSession(context.Background(), s.service, &types.TerminateSession{This: manager, SessionId: []string{id}})
	}
	s.events.ended(event{Method: "sim: sessions expire"}, "")
	return nil
}
