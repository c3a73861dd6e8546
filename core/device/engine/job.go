package engine

import (
	"github.com/tpde-project/tpde/core/status"
)

// Job is one tensor to rebuild. Addresses are of memory on one device and are
// used until the stream has run what was launched.
type Job struct {
	P    *Prepared
	Base uintptr // target bytes, aligned to the word; 0 for a tensor without a base
	// Quantised says that Base is a quant.Scheme's descriptor, aligned to 8
	// bytes, whose dequantised values are the base.
	Quantised bool
	Dst       uintptr // target bytes, aligned to the word; may be Base
	Blob      uintptr // the blob, aligned to 8 bytes
	Image     uintptr // P.Image(), aligned to 16 bytes
	Status    uintptr // 4 bytes for each chunk; every launch writes them all
	// Verified says that Verify, or the CPU, found no damage in the blob, and
	// that it has not changed since. It spares zstd tensors the verification
	// at every Reconstruct; to others it means nothing.
	Verified bool
}

// empty reports whether there is nothing to launch: a tensor without elements.
func (j *Job) empty() bool { return j.P.chunks() == 0 }

// kernel returns the decoder of the job, once it is checked.
func (j *Job) kernel() kernelID {
	k := j.P.kernel
	if j.Quantised {
		variant, _ := quantisedVariant(j.P.index.Type, j.P.index.Residual)
		k = newKernelID(k.entry(), variant)
	}
	return k
}

// check refuses what would make a kernel touch memory that it must not.
func (j *Job) check(i int, rebuild bool) error {
	if j.P == nil {
		return status.Errorf(status.ErrArgument, "item %d has no prepared tensor", i)
	}
	if j.empty() {
		return nil
	}
	x := j.P.index
	word := uintptr(x.Type.WordBytes())
	baseAlign := word
	if j.Quantised {
		if !x.HasBase {
			return status.Errorf(status.ErrArgument, "item %d has a quantised base, expected none: the tensor was packed without one", i)
		}
		if _, ok := quantisedVariant(x.Type, x.Residual); !ok {
			return status.Errorf(status.ErrUnsupported, "item %d is %v with the %v residual, expected F16, BF16 or F32 with the bit residual on a quantised base", i, x.Type, x.Residual)
		}
		baseAlign = 8
	}
	type address struct {
		what   string
		p      uintptr
		align  uintptr
		needed bool
	}
	addresses := [...]address{
		{"image", j.Image, 16, true},
		{"status", j.Status, 4, true},
		{"blob", j.Blob, 8, x.BlobBytes > 0},
		{"dst", j.Dst, word, rebuild},
		{"base", j.Base, baseAlign, rebuild && x.HasBase},
	}
	for _, a := range addresses {
		if a.needed && a.p == 0 {
			return status.Errorf(status.ErrArgument, "%s of item %d is null", a.what, i)
		}
		if a.p%a.align != 0 {
			return status.Errorf(status.ErrArgument, "%s of item %d is at %#x, expected a multiple of %d", a.what, i, a.p, a.align)
		}
	}
	if !rebuild {
		return nil
	}
	if !x.HasBase && j.Base != 0 {
		return status.Errorf(status.ErrArgument, "item %d has a base, expected none: the tensor was packed without one", i)
	}
	// Chunks are rebuilt in any order: one would destroy the base of another.
	if n := uintptr(x.TargetBytes()); !j.Quantised && j.Base != 0 && j.Base != j.Dst && j.Base < j.Dst+n && j.Dst < j.Base+n {
		return status.Errorf(status.ErrArgument, "dst and base of item %d overlap in part, expected the same memory or none in common", i)
	}
	return nil
}

// checkAll checks the jobs and returns an address of the device they are on, 0
// if there is nothing to do.
func checkAll(jobs []Job, rebuild bool) (uintptr, error) {
	var where uintptr
	for i := range jobs {
		if err := jobs[i].check(i, rebuild); err != nil {
			return 0, err
		}
		if where == 0 && !jobs[i].empty() {
			where = jobs[i].Status
			if rebuild {
				where = jobs[i].Dst
			}
		}
	}
	return where, nil
}
