"""A bookstore of three gRPC services: what a mesh carries. Plain grpcio; nothing here knows of a mesh."""
