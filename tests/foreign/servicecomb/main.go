// Services of go-chassis, and its client libraries of service center and kie, for tests of chassis' adapter.
//
//	peer provide ADDRESS SERVICE   a service by sc-client: registers, beats, serves GET /hello
//	peer consume ADDRESS SERVICE   finds the service by sc-client, calls it, and prints what is pushed
//	peer schemas ADDRESS SERVICE VERSION   prints the schemas of a service, and adds one
//	peer chassis SERVICE           a consumer by go-chassis itself, with the settings in CHASSIS_HOME: calls the
//	                               service for each line that it reads
//	peer serve                     a service by go-chassis itself, with the settings in CHASSIS_HOME
//	peer kie ADDRESS APP SERVICE   entries of kie by kie-client, for each line that it reads: put, disable, delete, list, poll
//	peer archaius ADDRESS APP SERVICE  settings of kie by go-archaius, as go-chassis reads them: the value of each key that
//	                               it reads, and each change
//
// The application of the first two is CHASSIS_APP. Each prints one line for each thing it did, and ends with its standard input.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/go-chassis/cari/discovery"
	"github.com/go-chassis/go-archaius"
	"github.com/go-chassis/go-archaius/event"
	"github.com/go-chassis/go-archaius/source/remote"
	_ "github.com/go-chassis/go-archaius/source/remote/kie" // the source
	"github.com/go-chassis/go-chassis/v2"
	_ "github.com/go-chassis/go-chassis/v2/bootstrap" // its plugins
	"github.com/go-chassis/go-chassis/v2/core"
	"github.com/go-chassis/go-chassis/v2/pkg/util/httputil"
	rf "github.com/go-chassis/go-chassis/v2/server/restful"
	"github.com/go-chassis/kie-client"
	"github.com/go-chassis/sc-client"
)

// The application of the services.
var app = cmp.Or(os.Getenv("CHASSIS_APP"), "default")

func must[T any](value T, err error) T {
	if err != nil {
		say("error", err)
		os.Exit(1)
	}
	return value
}

func say(words ...any) { fmt.Println(words...) }

func connect(address string) *sc.Client {
	return must(sc.NewClient(sc.Options{Endpoints: []string{address}}))
}

func service(name string) *discovery.MicroService {
	return &discovery.MicroService{AppId: app, ServiceName: name, Version: "1.0.2", Status: "UP", Level: "BACK"}
}

func provide(address, name string) {
	client := connect(address)
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	http.HandleFunc("/hello", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello from go") })
	go http.Serve(listener, nil)
	id := must(client.RegisterService(service(name)))
	again := must(client.RegisterService(service(name)))
	if found := must(client.GetMicroServiceID(app, name, "1.0.2", "")); found != id || again != id {
		must(0, errors.New("a service has another id"))
	}
	must(0, client.AddSchemas(id, "hello", "swagger: '2.0'"))
	instance := &discovery.MicroServiceInstance{
		ServiceId: id, HostName: "go", Status: "UP",
		Endpoints:   []string{"rest://" + listener.Addr().String() + "?sslEnabled=false"},
		Properties:  map[string]string{"track": "canary"},
		HealthCheck: &discovery.HealthCheck{Mode: "push", Interval: 3, Times: 1},
	}
	instance.InstanceId = must(client.RegisterMicroServiceInstance(instance))
	must(client.Heartbeat(id, instance.InstanceId))
	say("registered", instance.InstanceId)
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		switch input.Text() {
		case "beat":
			must(client.Heartbeat(id, instance.InstanceId))
		case "down":
			must(client.UpdateMicroServiceInstanceStatus(id, instance.InstanceId, "OUTOFSERVICE"))
		case "label":
			instance.Properties["track"] = "stable"
			must(client.UpdateMicroServiceInstanceProperties(id, instance.InstanceId, instance))
		}
		say("done", input.Text())
	}
	must(client.UnregisterMicroServiceInstance(id, instance.InstanceId))
	say("unregistered")
}

func consume(address, name string) {
	client := connect(address)
	consumer := must(client.RegisterService(service("go-consumer")))
	instances := must(client.FindMicroServiceInstances(consumer, app, name, "0.0.0.0+"))
	for _, instance := range instances {
		interval := int32(0)
		if instance.HealthCheck != nil {
			interval = instance.HealthCheck.Interval
		}
		say("found", instance.Status, instance.Version, interval, instance.Properties["track"], instance.Endpoints)
		for _, endpoint := range instance.Endpoints {
			if at, err := url.Parse(endpoint); err == nil && at.Scheme == "rest" {
				answer := must(http.Get("http://" + at.Host + "/hello"))
				say("called", string(must(io.ReadAll(answer.Body))))
			}
		}
	}
	if _, err := client.FindMicroServiceInstances(consumer, app, name, "0.0.0.0+"); err == sc.ErrNotModified {
		say("not modified")
	}
	if _, err := client.FindMicroServiceInstances(consumer, app, "nobody", "0+"); err == sc.ErrMicroServiceNotExists {
		say("no such service")
	}
	batch := must(client.BatchFindInstances(consumer, []*discovery.FindService{
		{Service: &discovery.MicroServiceKey{AppId: app, ServiceName: name, Version: "0+"}},
	}))
	say("batch", len(batch.Services.Updated), len(batch.Services.Failed))
	must(0, client.WatchMicroService(consumer, func(event *sc.MicroServiceInstanceChangedEvent) {
		say("pushed", event.Action, event.Key.ServiceName, event.Instance.Status)
	}))
	say("watching")
	io.Copy(io.Discard, os.Stdin)
}

func schemas(address, name, version string) {
	client := connect(address)
	id := must(client.GetMicroServiceID(app, name, version, ""))
	of := must(client.GetMicroService(id))
	sort.Strings(of.Schemas)
	for _, schema := range of.Schemas {
		say("schema", schema, string(must(client.GetSchema(id, schema))))
	}
	must(0, client.AddSchemas(id, "from-go", "swagger: '2.0'"))
	say("added")
	io.Copy(io.Discard, os.Stdin)
}

func call(name string) {
	must(0, chassis.Init())
	invoker := core.NewRestInvoker()
	input := bufio.NewScanner(os.Stdin)
	say("ready")
	for input.Scan() {
		request := must(http.NewRequest(http.MethodGet, "http://"+name+"/hello", nil))
		answer, err := invoker.ContextDo(context.Background(), request)
		if err != nil {
			say("failed", err)
			continue
		}
		say("called", string(httputil.ReadBody(answer)))
	}
}

// Hello is a schema of go-chassis.
type Hello struct{}

// Get answers.
func (*Hello) Get(b *rf.Context) { b.Write([]byte("hello from go-chassis")) }

// URLPatterns are its routes.
func (*Hello) URLPatterns() []rf.Route {
	return []rf.Route{{Method: http.MethodGet, Path: "/hello", ResourceFunc: (&Hello{}).Get}}
}

func serve() {
	chassis.RegisterSchema("rest", &Hello{})
	must(0, chassis.Init())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	say("serving")
	must(0, chassis.Run())
}

func entries(address, app, service string) {
	client := must(kie.NewClient(kie.Config{Endpoint: address}))
	labels := map[string]string{"app": app, "service": service}
	background := context.Background()
	// Without a revision that it knows, the library asks for everything.
	list := func(options ...kie.GetOption) (*kie.KVResponse, int, error) {
		return client.List(background, append(options, kie.WithLabels(labels), kie.WithExact())...)
	}
	find := func(key string) *kie.KVDoc {
		all, _, err := list(kie.WithRevision(-1))
		for _, one := range must(all, err).Data {
			if one.Key == key {
				return must(client.Get(background, one.ID))
			}
		}
		return nil
	}
	say("ready")
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		words := strings.SplitN(input.Text(), " ", 4)
		switch words[0] {
		case "put": // KEY TYPE VALUE
			request := kie.KVRequest{Key: words[1], ValueType: words[2], Value: words[3], Status: "enabled", Labels: labels}
			if known := find(words[1]); known != nil {
				request.ID = known.ID
				must(client.Put(background, request))
			} else {
				must(client.Create(background, request))
				if _, err := client.Create(background, request); err != nil {
					say("refused", strings.ReplaceAll(err.Error(), "\n", " "))
				}
			}
		case "disable": // KEY
			must(client.Put(background, kie.KVRequest{ID: find(words[1]).ID, Status: "disabled"}))
		case "delete": // KEY
			must(0, client.Delete(background, find(words[1]).ID))
		case "list":
			all, revision, err := list(kie.WithRevision(-1))
			must(all, err)
			for _, one := range all.Data {
				say("entry", one.Key, one.ValueType, one.Status, one.Value)
			}
			if _, _, err := list(kie.WithRevision(revision)); err == kie.ErrNoChanges {
				say("no changes")
			}
		case "poll": // TIME
			begun := time.Now()
			all, revision, err := list(kie.WithRevision(client.CurrentRevision()), kie.WithWait(words[1]))
			if err == kie.ErrNoChanges {
				say("no changes in", time.Since(begun).Round(time.Second), revision)
				continue
			}
			must(all, err)
			for _, one := range all.Data {
				say("polled", one.Key, one.Value)
			}
		}
		say("done", words[0])
	}
}

type changes struct{}

// Event prints a change.
func (changes) Event(event *event.Event) { say("changed", event.EventType, event.Key, event.Value) }

func settings(address, app, service string) {
	source := &archaius.RemoteInfo{
		DefaultDimension: map[string]string{remote.LabelApp: app, remote.LabelService: service},
		URL:              address,
		RefreshMode:      remote.ModeWatch,
	}
	must(0, archaius.Init(archaius.WithRemoteSource(archaius.KieSource, source)))
	must(0, archaius.RegisterListener(changes{}, ".*"))
	say("ready")
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		say("value", input.Text(), archaius.Get(input.Text()))
	}
}

func main() {
	time.AfterFunc(5*time.Minute, func() { os.Exit(3) }) // of a test that was killed
	switch os.Args[1] {
	case "provide":
		provide(os.Args[2], os.Args[3])
	case "consume":
		consume(os.Args[2], os.Args[3])
	case "schemas":
		schemas(os.Args[2], os.Args[3], os.Args[4])
	case "chassis":
		call(os.Args[2])
	case "serve":
		serve()
	case "kie":
		entries(os.Args[2], os.Args[3], os.Args[4])
	case "archaius":
		settings(os.Args[2], os.Args[3], os.Args[4])
	}
}
