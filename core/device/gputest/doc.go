// Package gputest tests the engine on a GPU, without Python or torch. It is
// built with the tag gpu, to one program that runs where there is neither Go
// nor a source tree:
//
//	go test -c -tags gpu -o gputest ./core/device/gputest
//	TPDE_SITE_PACKAGES=$(python -c 'import site; print(":".join(site.getsitepackages()))') ./gputest -test.v
//
// It needs libcuda.so.1 and a folder with NVRTC (that of torch's wheels does).
// With -test.bench=. it measures, after the same checks.
package gputest
