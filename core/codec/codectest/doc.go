// Package codectest is the test-suite that every codec must pass. A codec's
// own test calls Run, its fuzz target Fuzz and its benchmark Benchmark:
//
//	func TestCodec(t *testing.T)      { codectest.Run(t, Codec) }
//	func FuzzDecode(f *testing.F)     { codectest.Fuzz(f, Codec) }
//	func BenchmarkCodec(b *testing.B) { codectest.Benchmark(b, Codec) }
//
// What a chunk holds is the business of the codec; the suite only knows the
// contract of package codec: residuals come back bit for bit, the same input
// gives the same bytes, and no input at all makes a decoder panic, write
// outside the block or allocate more than the block justifies.
package codectest
