// Services of go-chassis, and its client library of service center, for tests of chassis' adapter.
//
//	peer provide ADDRESS SERVICE   a service by sc-client: registers, beats, serves GET /hello
//	peer consume ADDRESS SERVICE   finds the service by sc-client, calls it, and prints what is pushed
//	peer chassis SERVICE           a consumer by go-chassis itself, with the settings in CHASSIS_HOME: calls the
//	                               service for each line that it reads
//	peer serve                     a service by go-chassis itself, with the settings in CHASSIS_HOME
//
// Each prints one line for each thing it did, and ends with its standard input.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/go-chassis/cari/discovery"
	"github.com/go-chassis/go-chassis/v2"
	_ "github.com/go-chassis/go-chassis/v2/bootstrap" // its plugins
	"github.com/go-chassis/go-chassis/v2/core"
	"github.com/go-chassis/go-chassis/v2/pkg/util/httputil"
	rf "github.com/go-chassis/go-chassis/v2/server/restful"
	"github.com/go-chassis/sc-client"
)

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
	return &discovery.MicroService{AppId: "default", ServiceName: name, Version: "1.0.2", Status: "UP", Level: "BACK"}
}

func provide(address, name string) {
	client := connect(address)
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	http.HandleFunc("/hello", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello from go") })
	go http.Serve(listener, nil)
	id := must(client.RegisterService(service(name)))
	again := must(client.RegisterService(service(name)))
	if found := must(client.GetMicroServiceID("default", name, "1.0.2", "")); found != id || again != id {
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
	instances := must(client.FindMicroServiceInstances(consumer, "default", name, "0.0.0.0+"))
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
	if _, err := client.FindMicroServiceInstances(consumer, "default", name, "0.0.0.0+"); err == sc.ErrNotModified {
		say("not modified")
	}
	if _, err := client.FindMicroServiceInstances(consumer, "default", "nobody", "0+"); err == sc.ErrMicroServiceNotExists {
		say("no such service")
	}
	batch := must(client.BatchFindInstances(consumer, []*discovery.FindService{
		{Service: &discovery.MicroServiceKey{AppId: "default", ServiceName: name, Version: "0+"}},
	}))
	say("batch", len(batch.Services.Updated), len(batch.Services.Failed))
	must(0, client.WatchMicroService(consumer, func(event *sc.MicroServiceInstanceChangedEvent) {
		say("pushed", event.Action, event.Key.ServiceName, event.Instance.Status)
	}))
	say("watching")
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

func main() {
	time.AfterFunc(5*time.Minute, func() { os.Exit(3) }) // of a test that was killed
	switch os.Args[1] {
	case "provide":
		provide(os.Args[2], os.Args[3])
	case "consume":
		consume(os.Args[2], os.Args[3])
	case "chassis":
		call(os.Args[2])
	case "serve":
		serve()
	}
}
