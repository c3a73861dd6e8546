package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/elias"
	"github.com/tpde-project/tpde/core/codec/rice"
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

// pack packs a random tensor of n words, a tenth of which changed.
func pack(t testing.TB, id codec.ID, dt dtype.Type, kind residual.Kind, n int, hasBase bool) (index, blob []byte) {
	t.Helper()
	size := dt.WordBytes()
	r := rand.New(rand.NewPCG(1, uint64(n)))
	target := make([]byte, n*size)
	for i := range target {
		target[i] = byte(r.Uint32())
	}
	var base []byte
	if hasBase {
		base = bytes.Clone(target)
		for i := 0; i < len(base); i += 10 * size {
			base[i] ^= 1
		}
	}
	shape := []uint64{uint64(n * 8 * size / dt.Bits())}
	var out bytes.Buffer
	index, err := tensor.Encode(context.Background(), &out, tensor.Desc{Type: dt, Shape: shape}, base, target, tensor.Options{Codec: id, Residual: kind, ChunkWords: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return index, out.Bytes()
}

func prepare(t testing.TB, id codec.ID, dt dtype.Type, kind residual.Kind, n int) *Prepared {
	t.Helper()
	index, _ := pack(t, id, dt, kind, n, true)
	p, err := Prepare(index)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestImage(t *testing.T) {
	for _, id := range []codec.ID{codec.Elias, codec.Raw, codec.Rice} {
		p := prepare(t, id, dtype.BF16, residual.Bit, 2500)
		x := p.Index()
		image := p.Image()
		if id == codec.Rice {
			tables, err := rice.DeviceTables(x.Type, x.Tables)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(tables); p.tableBytes != uint64(n+511)&^511 || !bytes.Equal(image[:n], tables) {
				t.Errorf("%v: tables of %d bytes take %d", id, n, p.tableBytes)
			}
			image = image[p.tableBytes:]
		}
		if id == codec.Elias {
			tables, err := elias.DeviceTables(x.Type, x.Tables)
			if err != nil {
				t.Fatal(err)
			}
			if p.tableBytes != 512 || !bytes.Equal(image[:288], tables) || !bytes.Equal(image[288:512], make([]byte, 224)) {
				t.Errorf("%v: tables take %d bytes: %x", id, p.tableBytes, image[:512])
			}
			image = image[512:]
		}
		if len(image) != 3*container.RecordBytes {
			t.Fatalf("%v: %d bytes of records", id, len(image))
		}
		le := binary.LittleEndian
		for i, r := range x.Records {
			flat := image[i*container.RecordBytes:]
			if le.Uint64(flat) != r.DataOffset || le.Uint32(flat[8:]) != r.CompressedBytes || le.Uint32(flat[12:]) != r.UncompressedBytes ||
				le.Uint32(flat[16:]) != r.Deltas || le.Uint32(flat[20:]) != r.Checksum || le.Uint64(flat[24:]) != uint64(1000*i) {
				t.Errorf("%v: record %d is %x, expected %+v", id, i, flat[:container.RecordBytes], r)
			}
		}
	}
}

// What Prepare returns must not change with the memory of the index.
func TestPreparedKeepsNothing(t *testing.T) {
	index, _ := pack(t, codec.Elias, dtype.F32, residual.Bit, 1500, true)
	p, err := Prepare(index)
	if err != nil {
		t.Fatal(err)
	}
	image, again := bytes.Clone(p.Image()), p.Index().Append(nil)
	if !bytes.Equal(again, index) {
		t.Error("the parsed index is not the index")
	}
	clear(index)
	if !bytes.Equal(p.Image(), image) || !bytes.Equal(p.Index().Append(nil), again) {
		t.Error("a change of the index changed what was prepared")
	}
}

func TestPrepareChoosesKernel(t *testing.T) {
	for _, c := range []struct {
		id   codec.ID
		dt   dtype.Type
		kind residual.Kind
		want string
	}{
		{codec.Elias, dtype.BF16, residual.Bit, "elias.cu -DWORD=u16"},
		{codec.Elias, dtype.F32, residual.Add, "elias.cu -DWORD=u32 -DADD=F32"},
		{codec.Elias, dtype.C64, residual.Add, "elias.cu -DWORD=u32 -DADD=F32"},
		{codec.Elias, dtype.C64, residual.Bit, "elias.cu -DWORD=u32"},
		{codec.Raw, dtype.F8E4M3, residual.Bit, "raw.cu -DWORD=u8"},
		{codec.Raw, dtype.I64, residual.Bit, "raw.cu -DWORD=u64"},
		{codec.Raw, dtype.F64, residual.Add, "raw.cu -DWORD=u64 -DADD=F64"},
		{codec.Raw, dtype.F16, residual.Add, "raw.cu -DWORD=u16 -DADD=F16"},
		{codec.Raw, dtype.BF16, residual.Add, "raw.cu -DWORD=u16 -DADD=BF16"},
		{codec.Raw, dtype.F8E4M3, residual.Add, "raw.cu -DWORD=u8 -DADD=F8E4M3"},
		{codec.Elias, dtype.F8E5M2, residual.Add, "elias.cu -DWORD=u8 -DADD=F8E5M2"},
		{codec.Zstd, dtype.F8E4M3FNUZ, residual.Add, "zstd.cu -DWORD=u8 -DADD=F8E4M3FNUZ"},
		{codec.Raw, dtype.F8E5M2FNUZ, residual.Add, "raw.cu -DWORD=u8 -DADD=F8E5M2FNUZ"},
		{codec.Rice, dtype.BF16, residual.Bit, "rice.cu -DWORD=u16"},
		{codec.Rice, dtype.F64, residual.Add, "rice.cu -DWORD=u64 -DADD=F64"},
		{codec.Zstd, dtype.BF16, residual.Bit, "zstd.cu -DWORD=u16"},
		{codec.Prefix, dtype.BF16, residual.Bit, "prefix.cu -DWORD=u16"},
		{codec.Prefix, dtype.F32, residual.Add, "prefix.cu -DWORD=u32 -DADD=F32"},
		{codec.Prefix, dtype.F8E5M2, residual.Add, "prefix.cu -DWORD=u8 -DADD=F8E5M2"},
		{codec.Zstd, dtype.F64, residual.Add, "zstd.cu -DWORD=u64 -DADD=F64"},
	} {
		if got := prepare(t, c.id, c.dt, c.kind, 64).kernel.module(); got != c.want {
			t.Errorf("%v %v %v: %s, expected %s", c.id, c.dt, c.kind, got, c.want)
		}
	}
}

func TestPrepareRefuses(t *testing.T) {
	index, _ := pack(t, codec.Elias, dtype.BF16, residual.Bit, 64, true)
	if _, err := Prepare(index[:len(index)-1]); err == nil {
		t.Error("a cut index was accepted")
	}
	x, err := container.Parse(index)
	if err != nil {
		t.Fatal(err)
	}
	x.Tables = []byte{4}
	if _, err := Prepare(x.Append(nil)); !errors.Is(err, status.ErrCorrupt) {
		t.Errorf("bad tables: %v", err)
	}
	x.Codec = codec.Rice + 1
	if _, err := Prepare(x.Append(nil)); !errors.Is(err, status.ErrUnsupported) {
		t.Errorf("unknown codec: %v", err)
	}
}
