// Command interop-go-server is grpc-go's interop server, on the loopback address only, and with a free port if none is given; its own
// listens on every address. With -schema FILE it writes the test service's descriptors there instead, for clients in other languages.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/encoding/gzip" // for clients that compress
	"google.golang.org/grpc/internal"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/orca"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

func main() {
	port := flag.Int("port", 0, "where to listen; 0 is anywhere")
	certificate := flag.String("tls_cert_file", "", "PEM; with it, TLS is spoken")
	key := flag.String("tls_key_file", "", "PEM")
	schema := flag.String("schema", "", "write the descriptors to this file, and end")
	flag.Parse()
	if *schema != "" {
		if err := writeSchema(*schema); err != nil {
			log.Fatal(err)
		}
		return
	}
	if err := serve(*port, *certificate, *key); err != nil {
		log.Fatal(err)
	}
}

func serve(port int, certificate, key string) error {
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	options := []grpc.ServerOption{orca.CallMetricsServerOption(nil)}
	if certificate != "" {
		credential, err := credentials.NewServerTLSFromFile(certificate, key)
		if err != nil {
			return err
		}
		options = append(options, grpc.Creds(credential))
	}
	server := grpc.NewServer(options...)
	metrics := orca.NewServerMetricsRecorder()
	service := orca.ServiceOptions{ServerMetricsProvider: metrics}
	internal.ORCAAllowAnyMinReportingInterval.(func(*orca.ServiceOptions))(&service)
	if err := orca.Register(server, service); err != nil {
		return err
	}
	testgrpc.RegisterTestServiceServer(server, interop.NewTestServer(interop.NewTestServerOptions{MetricsRecorder: metrics}))
	fmt.Printf("port %d\n", listener.Addr().(*net.TCPAddr).Port)
	return server.Serve(listener)
}

// writeSchema writes a FileDescriptorSet, files that others import first.
func writeSchema(path string) error {
	set := &descriptorpb.FileDescriptorSet{}
	seen := map[string]bool{}
	var add func(file protoreflect.FileDescriptor)
	add = func(file protoreflect.FileDescriptor) {
		if seen[file.Path()] {
			return
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() {
			add(file.Imports().Get(i).FileDescriptor)
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(file))
	}
	add(testgrpc.File_grpc_testing_test_proto)
	encoded, err := proto.Marshal(set)
	if err != nil {
		return err
	}
	return os.WriteFile(path, encoded, 0o644)
}
