// Package safetensors reads and writes the headers of safetensors files.
//
//	 0        8              8+n                     end
//	+--------+--------------+-----------------------+
//	| n: u64 | JSON, n bytes| tensor data           |
//	+--------+--------------+-----------------------+
//
// The JSON is one object: a tensor name per key, its value an object of dtype,
// shape and data_offsets [begin, end), counted from the first byte after the
// JSON; and the optional key __metadata__, a map of strings to strings. Tensor
// data is little-endian, and the tensors cover all of it without a hole and
// without overlap.
//
// Parse is at least as strict as the reference library. Where the library
// ignores something that a second reader could read differently (the same key
// twice, the array form of an object), Parse refuses it. The text itself is
// never rewritten: whoever restores a file needs its bytes, blanks included.
//
// All functions are safe for concurrent use.
package safetensors
