#!/usr/bin/env bash
# build.sh FOLDER - assembles what a GPU machine without Go and internet needs
# to test and to measure tpde: see run.sh, which goes along. From a source tree,
# with Go, g++ and internet; `make gpu-bundle` calls it. Environment:
#
#   GPU_PYTHON  the Python of the GPU machine, as a command or a path here: the
#               same minor version, with headers and pip (python3.12)
#   GPU_WHEELS  wheels from PyPI to take along, as pip names them
#   GPU_CUBINS  kernels to take along compiled, "sm_90 13.0.88": for that GPU, by that
#               version of nvidia-cuda-nvrtc; of another one they are of no use (none)
#   GO          the go command (go)
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$(realpath -m "${1:?"usage: build.sh FOLDER"}")
wanted=${GPU_PYTHON:-python3.12}
go=$(command -v "${GO:-go}")
limit_mb=50

# The command itself, or pyenv's newest of that version.
find_python() {
  local candidate
  for candidate in "$wanted" $(ls -d ~/.pyenv/versions/"${wanted#python}"*/bin/python 2>/dev/null | sort -rV); do
    "$candidate" -m pip --version >/dev/null 2>&1 && echo "$candidate" && return
  done
  echo "$wanted with pip was not found: install it, or make gpu-bundle GPU_PYTHON=/path/to/python" >&2
  return 1
}

python=$(find_python)
new=$(mktemp -d "$out.XXXX")
trap 'rm -rf "$new"' EXIT
echo "== wheel for $("$python" --version)"
rm -rf build/lib.* build/bdist.* # setuptools would pack what lies there
PATH=$(dirname "$go"):$PATH "$python" -m pip wheel --quiet --no-deps --wheel-dir "$new/wheels" .

echo "== wheels from PyPI: ${GPU_WHEELS:-none}"
if [ -n "${GPU_WHEELS:-}" ]; then
  # shellcheck disable=SC2086  # a list
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --dest "$new/wheels" $GPU_WHEELS
fi
# bitsandbytes comes with a library for each version of CUDA and of others: 43 MB, of which a machine needs 4.
for wheel in "$new"/wheels/bitsandbytes-*.whl; do
  [ ! -e "$wheel" ] || "$python" tests/gpu_bundle/slim_wheel.py "$wheel" 'libbitsandbytes_(cuda(?!130)|rocm|xpu)'
done

echo "== gputest, the tests and their data"
"$go" test -c -tags gpu -trimpath -ldflags='-s -w' -o "$new/gputest" ./core/device/gputest
cp -r tests kernels pyproject.toml "$new/"
mkdir -p "$new/core/quant"
cp -r core/quant/testdata "$new/core/quant/"
mv "$new/tests/gpu_bundle/run.sh" "$new/"
rm -r "$new/tests/gpu_bundle"
find "$new" -name __pycache__ -prune -exec rm -r {} +
if [ -n "${GPU_CUBINS:-}" ]; then
  echo "== kernels for ${GPU_CUBINS% *}, NVRTC ${GPU_CUBINS#* }"
  scratch=$(mktemp -d)
  trap 'rm -rf "$new" "$scratch"' EXIT
  "$python" -m pip install --quiet --no-deps --root-user-action=ignore --target "$scratch/nvrtc" "nvidia-cuda-nvrtc==${GPU_CUBINS#* }"
  TPDE_SITE_PACKAGES=$scratch/nvrtc "$go" test ./core/device/engine -count=1 -run '^TestCompileAll$' \
    -archs "${GPU_CUBINS% *}" -cubins "$scratch/cubins" >&2
  tar -C "$scratch" -cJf "$new/cubins.tar.xz" cubins # a tenth
fi
git describe --always --dirty --exclude='*' >"$new/COMMIT" 2>/dev/null || echo unknown >"$new/COMMIT"

size_mb=$(du -sm --apparent-size "$new" | cut -f1)
if [ "$size_mb" -ge $limit_mb ]; then
  echo "the bundle has $size_mb MB, expected under $limit_mb: shorten GPU_WHEELS" >&2
  exit 1
fi
chmod 755 "$new"
rm -rf "$out"
mv "$new" "$out"
echo "$out: $size_mb MB for $("$python" --version), commit $(cat "$out/COMMIT")"
