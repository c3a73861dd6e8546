// Package checkpoint packs a whole checkpoint against another one into a delta
// and rebuilds it from there, byte for byte. The delta is an ordinary
// safetensors file, or a sharded set; FORMAT.md beside this file specifies it.
//
// A Source is a checkpoint that can be read: a safetensors file, a folder of
// them, tensors in memory, or what a chain of deltas makes of another Source.
// Tensors are mapped or rebuilt piece by piece, never loaded, so memory stays
// flat whatever their size.
//
//	Pack    compare and hash every tensor -> encode the changed ones -> write
//	Unpack  check the chain and the base  -> rebuild file by file    -> prove
//	        with SHA-256 -> rename
//
// Functions that work on sources may run at the same time on the same ones.
package checkpoint

import (
	// A delta says which codecs it needs; all of them have to be there.
	_ "github.com/tpde-project/tpde/core/codec/all"
)
