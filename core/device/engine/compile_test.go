package engine

import (
	"bytes"
	"flag"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/tpde-project/tpde/core/codec/elias"
	"github.com/tpde-project/tpde/core/codec/rice"
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/device/dl"
	"github.com/tpde-project/tpde/core/device/dl/dltest"
	"github.com/tpde-project/tpde/core/device/nvrtc"
)

// definition finds what may be the name of a function that is defined.
var definition = regexp.MustCompile(`(\w+)\s*\([^()]*\)\s*\{`)

var comment = regexp.MustCompile(`(?m)//.*$`)

// TestEveryKernelIsRegistered: a kernel that nobody launches, or whose name
// changed, shows here and not on a user's GPU.
func TestEveryKernelIsRegistered(t *testing.T) {
	var inSources, registered []string
	for file, text := range sources {
		if !strings.HasSuffix(file, ".cu") {
			continue
		}
		text = comment.ReplaceAllString(text, "")
		for _, m := range definition.FindAllStringSubmatchIndex(text, -1) {
			head := text[:m[0]]
			if i := strings.LastIndex(head, `extern "C"`); i >= 0 && !strings.ContainsAny(head[i:], ";{}") {
				inSources = append(inSources, file+" "+text[m[2]:m[3]])
			}
		}
	}
	for _, e := range entries {
		registered = append(registered, e.file+" "+e.name)
		if len(e.variants) > maxVariants {
			t.Errorf("%s has %d variants, expected at most %d", e.name, len(e.variants), maxVariants)
		}
	}
	slices.Sort(inSources)
	slices.Sort(registered)
	if !slices.Equal(inSources, registered) {
		t.Errorf("entry points in the sources:\n%v\nregistered:\n%v", inSources, registered)
	}
}

func TestParseShape(t *testing.T) {
	const two = "// x.cu - y\n//\n// launch: threads=128 chunks_per_block=4\nvoid one(Batch b) {\n  await_stream();\n}\n" +
		"// launch: threads=256 elements_per_block=16384/sizeof(Bits)\nvoid two(u32 x) {\n  await_stream();\n}\n"
	for name, want := range map[string]shape{"one": {threads: 128, share: 4}, "two": {threads: 256, share: 16384, perWord: true}} {
		if got, err := parseShape(two, name, map[string]string{"one": "chunks", "two": "elements"}[name]); err != nil || got != want {
			t.Errorf("%s: got %v, %v, expected %v", name, got, err, want)
		}
	}
	if got, err := parseShape("// launch: threads=96 chunks_per_block=3 staged\nvoid one() {\n  await_stream();\n", "one", "chunks"); err != nil || got != (shape{threads: 96, share: 3, staged: true}) {
		t.Errorf("staged: got %v, %v", got, err)
	}
	if got, err := parseShape("// launch: threads=256 chunk_bytes_per_block=64, 128 with QUANT\nvoid one() {\n  await_stream();\n", "one", "chunk_bytes"); err != nil || got != (shape{threads: 256, share: 64, quantShare: 128, inChunk: true}) {
		t.Errorf("in chunk: got %v, %v", got, err)
	}
	for _, bad := range []string{
		"// launch: threads=128 chunks_per_block=4, 0 with QUANT\nvoid one() {\n  await_stream();\n", "// launch: threads=128 chunks_per_block=3 staged\nvoid one() {\n  await_stream();\n",
		"", "void one() {\n  await_stream();\n", "// launch: threads=0 chunks_per_block=4\nvoid one() {\n  await_stream();\n", "// launch: threads=2048 chunks_per_block=4\nvoid one() {\n  await_stream();\n",
		"// launch: threads=128 chunks_per_block=0\nvoid one() {\n  await_stream();\n", "// launch: threads=128\nvoid one() {\n  await_stream();\n",
		"// launch: threads=128 elements_per_block=4\nvoid one() {\n  await_stream();\n", "void one() {\n  await_stream();\n\n// launch: threads=128 chunks_per_block=4\n",
		"// launch: threads=128 chunks_per_block=4\nvoid one() {\n  int x;\n  await_stream();\n",
	} {
		if got, err := parseShape(bad, "one", "chunks"); err == nil {
			t.Errorf("%q gives %v", bad, got)
		}
	}
}

func openCompiler(t *testing.T) *nvrtc.Compiler {
	t.Helper()
	dl.SetSearch(dltest.SitePackages(t))
	c, err := nvrtc.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var (
	cubins = flag.String("cubins", "", "folder, as TPDE_CACHE, where TestCompileAll leaves what it compiles")
	archs  = flag.String("archs", "sm_80,sm_90,sm_100,sm_120", "what TestCompileAll compiles for")
)

// TestCompileAll compiles every variant of every kernel for the architectures
// that people have, as a user's machine does. It needs no GPU.
func TestCompileAll(t *testing.T) {
	c := openCompiler(t)
	if *cubins == "" {
		*cubins = t.TempDir()
	}
	t.Setenv("TPDE_CACHE", *cubins)
	var group sync.WaitGroup
	for _, arch := range strings.Split(*archs, ",") {
		group.Go(func() {
			for entry, e := range entries {
				for variant := range e.variants {
					k := newKernelID(entry, variant)
					cubin, err := compile(c, k, arch)
					if err != nil {
						t.Error(err)
					} else if !bytes.HasPrefix(cubin, []byte("\x7fELF")) || !bytes.Contains(cubin, []byte(".text."+k.name())) {
						t.Errorf("%s for %s: %d bytes without the kernel", k.module(), arch, len(cubin))
					}
				}
			}
		})
	}
	group.Wait()
}

// TestLayout lets the compiler check that Go and the kernels agree on every
// field that they share.
func TestLayout(t *testing.T) {
	c := openCompiler(t)
	var b batch
	var it item
	var text strings.Builder
	text.WriteString("#include \"batch.cuh\"\n#include \"elias.cuh\"\n#include \"prefix.cuh\"\n")
	same := func(what string, got any) { fmt.Fprintf(&text, "static_assert(%s == %d, \"\");\n", what, got) }
	offset := func(where, field string, got uintptr) {
		same(fmt.Sprintf("__INTADDR__(&((%s*)0)->%s)", where, field), got)
	}
	same("sizeof(Batch)", unsafe.Sizeof(b))
	same("kMaxItems", maxItems)
	offset("Batch", "items", unsafe.Offsetof(b.items))
	offset("Batch", "units", unsafe.Offsetof(b.units))
	offset("Batch", "item", unsafe.Offsetof(b.item))
	same("sizeof(Item)", unsafe.Sizeof(it))
	offset("Item", "base", unsafe.Offsetof(it.base))
	offset("Item", "dst", unsafe.Offsetof(it.dst))
	offset("Item", "blob", unsafe.Offsetof(it.blob))
	offset("Item", "records", unsafe.Offsetof(it.records))
	offset("Item", "tables", unsafe.Offsetof(it.tables))
	offset("Item", "status", unsafe.Offsetof(it.status))
	offset("Item", "chunks", unsafe.Offsetof(it.chunks))
	offset("Item", "first_block", unsafe.Offsetof(it.firstBlock))
	same("sizeof(Record)", container.RecordBytes)
	offset("Record", "compressed_bytes", 8)
	offset("Record", "uncompressed_bytes", 12)
	offset("Record", "deltas", 16)
	offset("Record", "checksum", 20)
	offset("Record", "output_word", 24)
	same("sizeof(elias::Tables)", elias.DeviceTableBytes)
	offset("elias::Tables", "code", 128)
	offset("elias::Tables", "gap", 256)
	offset("elias::Tables", "classes", 268)
	offset("elias::Tables", "shift", 272)
	same("sizeof(prefix::Tables)", 48)
	offset("prefix::Tables", "keys", 16)
	offset("prefix::Tables", "entries", 20)
	offset("prefix::Tables", "copies", 28)
	offset("prefix::Tables", "ramp", 32)
	offset("prefix::Tables", "last", 40)
	text.WriteString("#include \"rice.cuh\"\n")
	same("sizeof(rice::Tables)", rice.DeviceHeadBytes)
	offset("rice::Tables", "shift", 0)
	offset("rice::Tables", "keys", 4)
	offset("rice::Tables", "zero_class", 8)
	offset("rice::Tables", "entries", 12)
	offset("rice::Tables", "step_at", 16)
	offset("rice::Tables", "code_at", 20)
	offset("rice::Tables", "symbol_at", 24)
	offset("rice::Tables", "entry_at", 28)
	offset("rice::Tables", "classes", 32)
	offset("rice::Tables", "codes", 160)
	offset("rice::ClassInfo", "kind", 4)
	offset("rice::ClassInfo", "order", 8)
	offset("rice::ClassInfo", "mean", 12)
	offset("rice::CodeInfo", "peek", 4)
	offset("rice::CodeInfo", "placeholder", 8)
	text.WriteString("#include \"zstd.cuh\"\n")
	var z zstdBatch
	var zi zstdItem
	same("sizeof(zstd::ZstdBatch)", unsafe.Sizeof(z))
	same("zstd::kMaxZstdItems", len(z.item))
	offset("zstd::ZstdBatch", "items", unsafe.Offsetof(z.items))
	offset("zstd::ZstdBatch", "item", unsafe.Offsetof(z.item))
	for field, got := range map[string]uintptr{
		"frames": unsafe.Offsetof(z.slots.frames), "frame_bytes": unsafe.Offsetof(z.slots.frameBytes),
		"buffers": unsafe.Offsetof(z.slots.buffers), "buffer_bytes": unsafe.Offsetof(z.slots.bufferBytes),
		"actual_bytes": unsafe.Offsetof(z.slots.actualBytes), "planes": unsafe.Offsetof(z.slots.planes),
		"statuses": unsafe.Offsetof(z.slots.statuses),
	} {
		offset("zstd::ZstdBatch", "slots."+field, unsafe.Offsetof(z.slots)+got)
	}
	same("sizeof(zstd::ZstdItem)", unsafe.Sizeof(zi))
	offset("zstd::ZstdItem", "base", unsafe.Offsetof(zi.base))
	offset("zstd::ZstdItem", "first_block", unsafe.Offsetof(zi.firstBlock))
	offset("zstd::ZstdItem", "buffers", unsafe.Offsetof(zi.buffers))
	offset("zstd::ZstdItem", "slots", unsafe.Offsetof(zi.slots))
	offset("zstd::ZstdItem", "checked", unsafe.Offsetof(zi.checked))
	same("sizeof(zstd::Place)", placeBytes)
	offset("zstd::Place", "buffer", 0)
	offset("zstd::Place", "slot", 8)
	offset("zstd::Place", "planes", 12)
	text.WriteString("#include \"matvec.cuh\"\n")
	var m matvecArguments
	same("sizeof(matvec::Matvec)", unsafe.Sizeof(m))
	same("matvec::kColumns", MatvecRows)
	offset("matvec::Matvec", "code", unsafe.Offsetof(m.code))
	offset("matvec::Matvec", "x", unsafe.Offsetof(m.x))
	offset("matvec::Matvec", "bias", unsafe.Offsetof(m.bias))
	offset("matvec::Matvec", "y", unsafe.Offsetof(m.y))
	offset("matvec::Matvec", "x_stride", unsafe.Offsetof(m.xStride))
	offset("matvec::Matvec", "outs", unsafe.Offsetof(m.outs))
	offset("matvec::Matvec", "ins", unsafe.Offsetof(m.ins))
	offset("matvec::Matvec", "rows", unsafe.Offsetof(m.rows))
	offset("matvec::Matvec", "parts", unsafe.Offsetof(m.parts))
	offset("matvec::Matvec", "row_groups", unsafe.Offsetof(m.rowGroups))
	offset("matvec::Matvec", "shift", unsafe.Offsetof(m.shift))
	if _, err := c.Compile(nvrtc.Source{Name: "layout.cu", Text: text.String(), Headers: headers(), Options: []string{"--std=c++17"}}, "sm_90"); err != nil {
		t.Error(err)
	}
}
