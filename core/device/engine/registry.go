package engine

import (
	"fmt"
	"io/fs"
	"math/bits"
	"regexp"
	"strconv"
	"strings"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/elias"
	"github.com/tpde-project/tpde/core/codec/prefix"
	"github.com/tpde-project/tpde/core/codec/rice"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/kernels"
)

// The entry points that are launched.
const (
	eliasDecode = iota
	rawDecode
	prefixDecode
	riceDecode
	zstdGather
	zstdJoin
	crc32cCheck
	scatterAdd
	scatterAddInPlace
	scatterAddNaive
	matvecTiles
	matvecAny
	dequantise
)

// entries says where each entry point is, how it is compiled, once for each of
// its variants, which are the macros defined, and in what its source states
// how much a thread block does.
var entries = [...]struct {
	file, name string
	variants   []string
	unit       string
}{
	eliasDecode:       {"elias.cu", "elias_decode", decodeVariants, "chunks"},
	rawDecode:         {"raw.cu", "raw_decode", decodeVariants, "chunk_bytes"},
	prefixDecode:      {"prefix.cu", "prefix_decode", decodeVariants, "chunks"},
	riceDecode:        {"rice.cu", "rice_decode", decodeVariants, "chunks"},
	zstdGather:        {"zstd.cu", "zstd_gather", decodeVariants, "chunks"},
	zstdJoin:          {"zstd.cu", "zstd_join", decodeVariants, "chunks"},
	crc32cCheck:       {"crc32c.cu", "crc32c_check", []string{""}, "chunks"},
	scatterAdd:        {"scatter.cu", "scatter_add", scatterVariants, "elements"},
	scatterAddInPlace: {"scatter.cu", "scatter_add_in_place", scatterVariants, "deltas"},
	scatterAddNaive:   {"scatter.cu", "scatter_add_naive", scatterVariants, "deltas"},
	matvecTiles:       {"matvec.cu", "matvec_tiles", matvecVariants, "outs"},
	matvecAny:         {"matvec_any.cu", "matvec_any", quantisedTypes, "outs"},
	dequantise:        {"dequantise.cu", "dequantise", quantisedTypes, "elements"},
}

var (
	// The bit residual needs the word size, the add residual its arithmetic, a
	// quantised base the dtype of its values.
	decodeVariants = []string{
		"-DWORD=u8", "-DWORD=u16", "-DWORD=u32", "-DWORD=u64",
		"-DWORD=u16 -DADD=F16", "-DWORD=u16 -DADD=BF16", "-DWORD=u32 -DADD=F32", "-DWORD=u64 -DADD=F64",
		"-DWORD=u16 -DQUANT=quant::kF16", "-DWORD=u16 -DQUANT=quant::kBF16", "-DWORD=u32 -DQUANT=quant::kF32",
		"-DWORD=u8 -DADD=F8E4M3", "-DWORD=u8 -DADD=F8E5M2", "-DWORD=u8 -DADD=F8E4M3FNUZ", "-DWORD=u8 -DADD=F8E5M2FNUZ",
	}
	scatterVariants = []string{"-DDTYPE=F16", "-DDTYPE=BF16", "-DDTYPE=F32", "-DDTYPE=F64"}
	// Types of quantised weights, numbered by arithmetic; matvecVariants has each
	// layout of codes (matvecLayout) for the first two.
	quantisedTypes = []string{"-DTYPE=quant::kF16", "-DTYPE=quant::kBF16", "-DTYPE=quant::kF32"}
	matvecVariants = eachOf(quantisedTypes[:2], []string{
		"-DKIND=quant::kLinear -DBITS=2", "-DKIND=quant::kLinear -DBITS=3", "-DKIND=quant::kLinear -DBITS=4", "-DKIND=quant::kLinear -DBITS=8",
		"-DKIND=quant::kCodebook -DBITS=4", "-DKIND=quant::kInt8Rows -DBITS=8",
	})
)

// eachOf joins every string of a with every one of b.
func eachOf(a, b []string) []string {
	var all []string
	for _, x := range a {
		for _, y := range b {
			all = append(all, x+" "+y)
		}
	}
	return all
}

const maxVariants = 16

// kernelID numbers the variants of all entry points, densely, so that what is
// loaded can be looked up without a lock.
type kernelID uint8

const kernelIDs = len(entries) * maxVariants

// noKernel is the kernel of jobs that a launch leaves out.
const noKernel = ^kernelID(0)

func newKernelID(entry, variant int) kernelID { return kernelID(entry*maxVariants + variant) }

func (k kernelID) entry() int     { return int(k) / maxVariants }
func (k kernelID) variant() int   { return int(k) % maxVariants }
func (k kernelID) macros() string { return entries[k.entry()].variants[k.variant()] }
func (k kernelID) file() string   { return entries[k.entry()].file }
func (k kernelID) name() string   { return entries[k.entry()].name }
func (k kernelID) module() string { return k.file() + " " + k.macros() }
func (k kernelID) launch() shape {
	s := shapes[k.entry()]
	if s.quantShare != 0 && strings.Contains(k.macros(), "-DQUANT") {
		s.share = s.quantShare
	}
	return s
}
func (k kernelID) options() []string {
	return append([]string{"--std=c++17"}, strings.Fields(k.macros())...)
}

// decoder says how a GPU decodes a codec.
type decoder struct {
	entry int
	// tables expands the codec tables to what the kernel takes; nil if it
	// takes none.
	tables func(t dtype.Type, tables []byte) ([]byte, error)
	// shared returns what the kernel takes of shared memory, if it is staged:
	// for expanded tables, for a chunk of so many words and bytes, and for a queue
	// of what it reads besides, if the base is not quantised.
	sharedTables func(tables []byte) int
	sharedChunk  func(t dtype.Type, words, bytes int) int
	sharedQueue  func(t dtype.Type) int
}

var decoders = map[codec.ID]decoder{
	codec.Elias:  {entry: eliasDecode, tables: elias.DeviceTables},
	codec.Raw:    {entry: rawDecode},
	codec.Zstd:   {entry: zstdJoin}, // and what is in zstd.go
	codec.Prefix: {entry: prefixDecode, tables: prefix.DeviceTables, sharedTables: prefix.DeviceShared, sharedChunk: prefix.DeviceStage, sharedQueue: prefix.DeviceQueue},
	codec.Rice:   {entry: riceDecode, tables: rice.DeviceTables},
}

// decodeVariant returns the index in decodeVariants for a dtype and residual.
func decodeVariant(t dtype.Type, kind residual.Kind) (int, error) {
	if kind == residual.Bit {
		return bits.TrailingZeros(uint(t.WordBytes())), nil
	}
	if i, ok := arithmetic[t]; ok {
		return 4 + i, nil
	}
	if i, ok := smallArithmetic[t]; ok {
		return 11 + i, nil
	}
	return 0, status.Errorf(status.ErrUnsupported, "the add residual of %v is not rebuilt on a GPU, expected one of F16, BF16, F32, F64, C64 and the 8-bit floats: rebuild it on the CPU", t)
}

// quantisedVariant returns the index in decodeVariants for a quantised base; ok
// is false where there is none.
func quantisedVariant(t dtype.Type, kind residual.Kind) (i int, ok bool) {
	i, ok = map[dtype.Type]int{dtype.F16: 8, dtype.BF16: 9, dtype.F32: 10}[t]
	return i, ok && kind == residual.Bit
}

// arithmetic numbers the dtypes that GPUs add, here and in scatterVariants.
// Words of C64 are floats.
var arithmetic = map[dtype.Type]int{dtype.F16: 0, dtype.BF16: 1, dtype.F32: 2, dtype.C64: 2, dtype.F64: 3}

// smallArithmetic numbers those that scatter-add leaves out.
var smallArithmetic = map[dtype.Type]int{dtype.F8E4M3: 0, dtype.F8E5M2: 1, dtype.F8E4M3FNUZ: 2, dtype.F8E5M2FNUZ: 3}

// shape is how the work of a kernel is cut: the threads of a thread block, and
// its share of the work in chunks, elements or deltas, divided by the word
// size if perWord, or, if inChunk, in bytes of one chunk's target: all chunks of a
// tensor then have as many thread blocks. quantShare is the share for quantised
// bases, if it is another. A staged kernel gives a warp to a chunk, which it brings
// to shared memory, and takes what cut.go finds; threads are the most then.
type shape struct {
	threads, share  uint32
	quantShare      uint32
	perWord, staged bool
	inChunk         bool
}

// blocks returns the number of thread blocks for n chunks, elements or deltas.
func (k kernelID) blocks(n, wordBytes uint64) uint64 {
	s := k.launch()
	share := uint64(s.share)
	if s.perWord {
		share /= wordBytes
	}
	return n/share + min(n%share, 1)
}

// sources are the texts of all files of kernels/, shapes the launch shapes by
// entry point. Both are fixed when the program is built.
var sources, shapes = mustRead()

func mustRead() (map[string]string, [len(entries)]shape) {
	texts := map[string]string{}
	var all [len(entries)]shape
	names, err := fs.Glob(kernels.Files, "*")
	for _, name := range names {
		var data []byte
		if data, err = kernels.Files.ReadFile(name); err != nil {
			break
		}
		texts[name] = string(data)
	}
	for i, e := range entries {
		if err == nil {
			all[i], err = parseShape(texts[e.file], e.name, e.unit)
		}
	}
	if err != nil {
		panic(fmt.Sprintf("embedded kernels: %v", err))
	}
	return texts, all
}

// launchLine is the comment above a kernel, or at the top of its file, that
// states its shape.
var launchLine = regexp.MustCompile(`(?m)^// launch: threads=(\d+) (\w+)_per_block=(\d+)(/sizeof\(Bits\)| staged|, (\d+) with QUANT)?$`)

// waits is how a kernel goes on behind its name.
var waits = regexp.MustCompile(`^ \w+\([^{;]*\{\n  await_stream\(\);\n`)

// parseShape reads the last launch line above the kernel called name.
func parseShape(source, name, unit string) (shape, error) {
	at := strings.Index(source, " "+name+"(")
	if at < 0 {
		return shape{}, fmt.Errorf("kernel %s is missing", name)
	}
	found := launchLine.FindAllStringSubmatch(source[:at], -1)
	if len(found) == 0 {
		return shape{}, fmt.Errorf("kernel %s has no launch line", name)
	}
	if !waits.MatchString(source[at:]) {
		return shape{}, fmt.Errorf("kernel %s does not begin with await_stream(), without which it would not wait for what it reads", name)
	}
	m := found[len(found)-1]
	threads, err1 := strconv.ParseUint(m[1], 10, 32)
	share, err2 := strconv.ParseUint(m[3], 10, 32)
	if err1 != nil || err2 != nil || threads == 0 || threads > 1024 || share < 8 && m[4] == "/sizeof(Bits)" || share == 0 || m[2] != unit {
		return shape{}, fmt.Errorf("kernel %s has the launch line %q, expected 1 to 1024 threads and a number of %s", name, m[0], unit)
	}
	var quantShare uint64
	if m[5] != "" {
		if quantShare, err1 = strconv.ParseUint(m[5], 10, 32); err1 != nil || quantShare == 0 {
			return shape{}, fmt.Errorf("kernel %s has the launch line %q, expected a number of %s with QUANT", name, m[0], unit)
		}
	}
	staged := m[4] == " staged"
	if staged && threads != 32*share {
		return shape{}, fmt.Errorf("kernel %s is staged with %d threads for %d chunks, expected a warp for each", name, threads, share)
	}
	return shape{
		threads: uint32(threads), share: uint32(share), quantShare: uint32(quantShare),
		perWord: m[4] == "/sizeof(Bits)", staged: staged, inChunk: unit == "chunk_bytes",
	}, nil
}

// headers returns what kernels include.
func headers() map[string]string {
	h := map[string]string{}
	for name, text := range sources {
		if strings.HasSuffix(name, ".cuh") {
			h[name] = text
		}
	}
	return h
}
