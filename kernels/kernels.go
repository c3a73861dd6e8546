// Package kernels holds the CUDA sources. They are compiled on the user's
// machine, by NVRTC, for the GPU at hand.
package kernels

import "embed"

// Files are the sources of this folder.
//
//go:embed *.cu *.cuh
var Files embed.FS
