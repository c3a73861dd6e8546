package zstd

import (
	"testing"

	"github.com/tpde-project/tpde/core/codec/codectest"
)

func TestCodec(t *testing.T)      { codectest.Run(t, Codec) }
func TestHammer(t *testing.T)     { codectest.Hammer(t, Codec) }
func FuzzDecode(f *testing.F)     { codectest.Fuzz(f, Codec) }
func BenchmarkCodec(b *testing.B) { codectest.Benchmark(b, Codec) }
