//go:build tools

// Package dtm pins the version of DTM that is measured; `go build` makes its server.
package dtm

import _ "github.com/dtm-labs/dtm/dtmsvr"
