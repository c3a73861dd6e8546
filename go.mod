module github.com/tpde-project/tpde

go 1.26.0

require (
	github.com/cespare/xxhash/v2 v2.3.0
	github.com/klauspost/compress v1.20.3
	golang.org/x/sys v0.49.0
)

require github.com/NVIDIA/go-nvml v0.13.4-1
