module remora.dev/benchmarks/dtm

go 1.22

require github.com/dtm-labs/dtm v1.19.0
