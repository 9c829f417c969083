// A control plane around go-control-plane's snapshot cache, so that Remora's can be measured beside it.
//
// It knows nothing of services: it serves the resources that it is given, to every node the same. That is the cheapest way to use the
// snapshot cache (one snapshot for all nodes, a version for each type, so that only what changed is sent).
//
//	goplane -ads 127.0.0.1:PORT -knob 127.0.0.1:PORT
//
//	POST /resources   the body is a DiscoveryResponse whose resources are put beside those that are there, under their names;
//	                  answered when the snapshot cache has the new snapshot
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"

	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// everyone is the node of the one snapshot.
const everyone = "everyone"

// maxBody is the most that one POST may carry.
const maxBody = 256 << 20

type sameForAll struct{}

func (sameForAll) ID(*core.Node) string { return everyone }

// plane holds the resources by type and the snapshot that is made of them.
type plane struct {
	mu       sync.Mutex
	cache    cache.SnapshotCache
	version  int
	held     [types.UnknownType]map[string]types.Resource
	snapshot cache.Snapshot
}

func newPlane() *plane {
	p := &plane{cache: cache.NewSnapshotCache(true, sameForAll{}, nil)}
	for i := range p.held {
		p.held[i] = map[string]types.Resource{}
	}
	return p
}

// put takes resources and swaps the snapshot; types that were not touched keep their version.
func (p *plane) put(given *discovery.DiscoveryResponse) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	touched := map[types.ResponseType]bool{}
	for _, packed := range given.GetResources() {
		kind := cache.GetResponseType(packed.GetTypeUrl())
		if kind == types.UnknownType {
			return fmt.Errorf("type %q is not served", packed.GetTypeUrl())
		}
		resource, err := packed.UnmarshalNew()
		if err != nil {
			return err
		}
		p.held[kind][cache.GetResourceName(resource)] = resource
		touched[kind] = true
	}
	p.version++
	fresh := cache.Snapshot{Resources: p.snapshot.Resources}
	for kind := range touched {
		items := make([]types.Resource, 0, len(p.held[kind]))
		for _, resource := range p.held[kind] {
			items = append(items, resource)
		}
		fresh.Resources[kind] = cache.NewResources(strconv.Itoa(p.version), items)
	}
	p.snapshot = fresh
	return p.cache.SetSnapshot(context.Background(), everyone, &fresh)
}

func (p *plane) serveKnob(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil {
		given := &discovery.DiscoveryResponse{}
		if err = proto.Unmarshal(body, given); err == nil {
			err = p.put(given)
		}
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

func main() {
	ads := flag.String("ads", "127.0.0.1:18000", "where ADS is served")
	knob := flag.String("knob", "127.0.0.1:18001", "where changes are taken")
	flag.Parse()

	p := newPlane()
	rpc := grpc.NewServer(
		grpc.MaxConcurrentStreams(1_000_000),
		grpc.MaxRecvMsgSize(64<<20),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	discovery.RegisterAggregatedDiscoveryServiceServer(rpc, server.NewServer(context.Background(), p.cache, nil))
	listener, err := net.Listen("tcp", *ads)
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("POST /resources", p.serveKnob)
	go func() { log.Fatal(http.ListenAndServe(*knob, nil)) }()
	log.Fatal(rpc.Serve(listener))
}
