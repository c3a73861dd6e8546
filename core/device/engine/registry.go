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
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/kernels"
)

// The entry points that are launched.
const (
	eliasDecode = iota
	rawDecode
	crc32cCheck
	scatterAdd
	scatterAddInPlace
)

// entries says where each entry point is and how it is compiled: once for each
// of its variants, which are the macros defined. Those that take a Batch state
// their launch shape in the source: "launch: threads=T chunks_per_block=C".
var entries = [...]struct {
	file, name string
	variants   []string
	batched    bool
}{
	eliasDecode:       {"elias.cu", "elias_decode", decodeVariants, true},
	rawDecode:         {"raw.cu", "raw_decode", decodeVariants, true},
	crc32cCheck:       {"crc32c.cu", "crc32c_check", []string{""}, true},
	scatterAdd:        {"scatter.cu", "scatter_add", scatterVariants, false},
	scatterAddInPlace: {"scatter.cu", "scatter_add_in_place", scatterVariants, false},
}

var (
	// The bit residual needs the word size, the add residual its arithmetic.
	decodeVariants = []string{
		"-DWORD=u8", "-DWORD=u16", "-DWORD=u32", "-DWORD=u64",
		"-DWORD=u16 -DADD=F16", "-DWORD=u16 -DADD=BF16", "-DWORD=u32 -DADD=F32", "-DWORD=u64 -DADD=F64",
	}
	scatterVariants = []string{"-DDTYPE=F16", "-DDTYPE=BF16", "-DDTYPE=F32", "-DDTYPE=F64"}
)

const maxVariants = 8

// kernelID numbers the variants of all entry points, densely, so that what is
// loaded can be looked up without a lock.
type kernelID uint8

const kernelIDs = len(entries) * maxVariants

func newKernelID(entry, variant int) kernelID { return kernelID(entry*maxVariants + variant) }

func (k kernelID) entry() int     { return int(k) / maxVariants }
func (k kernelID) macros() string { return entries[k.entry()].variants[int(k)%maxVariants] }
func (k kernelID) launch() shape  { return shapes[k.entry()] }
func (k kernelID) file() string   { return entries[k.entry()].file }
func (k kernelID) name() string   { return entries[k.entry()].name }
func (k kernelID) module() string { return k.file() + " " + k.macros() }
func (k kernelID) options() []string {
	return append([]string{"--std=c++17"}, strings.Fields(k.macros())...)
}

// decoder says how a GPU decodes a codec.
type decoder struct {
	entry int
	// tables expands the codec tables to what the kernel takes; nil if it
	// takes none.
	tables func(t dtype.Type, tables []byte) ([]byte, error)
}

var decoders = map[codec.ID]decoder{
	codec.Elias: {eliasDecode, elias.DeviceTables},
	codec.Raw:   {rawDecode, nil},
}

// decodeVariant returns the index in decodeVariants for a dtype and residual.
func decodeVariant(t dtype.Type, kind residual.Kind) (int, error) {
	if kind == residual.Bit {
		return bits.TrailingZeros(uint(t.WordBytes())), nil
	}
	if i, ok := arithmetic[t]; ok {
		return 4 + i, nil
	}
	return 0, status.Errorf(status.ErrUnsupported, "the add residual of %v is not rebuilt on a GPU, expected one of F16, BF16, F32, F64, C64: rebuild it on the CPU", t)
}

// arithmetic numbers the dtypes that GPUs add. Words of C64 are floats.
var arithmetic = map[dtype.Type]int{dtype.F16: 0, dtype.BF16: 1, dtype.F32: 2, dtype.C64: 2, dtype.F64: 3}

// shape is how the thread blocks of a batched kernel are cut.
type shape struct {
	threads, chunksPerBlock uint32
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
		if e.batched && err == nil {
			all[i], err = parseShape(texts[e.file])
		}
	}
	if err != nil {
		panic(fmt.Sprintf("embedded kernels: %v", err))
	}
	return texts, all
}

var launchLine = regexp.MustCompile(`(?m)^// launch: threads=(\d+) chunks_per_block=(\d+)$`)

func parseShape(source string) (shape, error) {
	found := launchLine.FindAllStringSubmatch(source, -1)
	if len(found) != 1 {
		return shape{}, fmt.Errorf("%d launch lines, expected one", len(found))
	}
	threads, err1 := strconv.ParseUint(found[0][1], 10, 32)
	chunks, err2 := strconv.ParseUint(found[0][2], 10, 32)
	if err1 != nil || err2 != nil || threads == 0 || threads > 1024 || chunks == 0 {
		return shape{}, fmt.Errorf("launch line %q, expected 1 to 1024 threads and at least one chunk", found[0][0])
	}
	return shape{uint32(threads), uint32(chunks)}, nil
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
