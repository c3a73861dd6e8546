// Package quant defines quantised bases: weights of 2, 3, 4 or 8 bits with a
// scale (and optionally a zero point) per group, and the int8 and 4-bit code
// book layouts of bitsandbytes.
//
// Dequantize is the definition of what a quantised base is worth, bit for bit;
// FORMAT.md states its arithmetic. kernels/dequant.cuh and tpde.quantize
// compute the same bits, so that a residual packed on one machine restores its
// target on every other. How the codes were chosen (Quantize) matters for size
// only, but is deterministic as well.
//
// All functions are safe for concurrent use on distinct outputs.
package quant
