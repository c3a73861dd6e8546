package rice

import (
	"testing"

	"github.com/tpde-project/tpde/core/codec/codectest"
)

func TestCodec(t *testing.T)      { codectest.Run(t, factory{}) }
func FuzzDecode(f *testing.F)     { codectest.Fuzz(f, factory{}) }
func BenchmarkCodec(b *testing.B) { codectest.Benchmark(b, factory{}) }
