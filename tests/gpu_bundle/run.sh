#!/usr/bin/env bash
# run.sh COMMAND [ARGUMENTS] - tests and measures tpde on a machine with an
# NVIDIA GPU, from a bundle of `make gpu-bundle`. The machine needs Python (of
# the version that the bundle was built for) with torch and numpy, and a driver;
# neither Go nor internet. Nothing is installed outside of this folder.
#
#   test [pytest arguments]     the Python tests marked gpu
#   bench [arguments]           tests/bench/bench_gpu.py; --help lists them
#   bench-offload [arguments]   tests/bench/bench_offload.py, from a bundle of `make gpu-bundle-offload`
#   trained [arguments]         tests/bench/trained_model.py
#   gputest [go test flags]     the engine without Python: -test.v, -test.bench=.
#   sanitize [go test flags]    gputest under compute-sanitizer, memcheck and racecheck
#   python [arguments]          Python with tpde in its path
#
# PYTHON names another interpreter than python3.
set -euo pipefail
bundle=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}

usage() {
  sed -n '2,/^set/{/^# \?/s///p}' "$0"
  exit 2
}

# Once per content of wheels/: into site-packages/, which PYTHONPATH puts before
# the machine's own packages. tpde looks for nvCOMP in folders of that name.
install() {
  local wheels
  wheels=$(cd "$bundle/wheels" && sha256sum ./*.whl)
  if [ "$wheels" != "$(cat "$bundle/site-packages/.installed" 2>/dev/null)" ]; then
    rm -rf "$bundle/site-packages"
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
      --root-user-action=ignore --target "$bundle/site-packages" "$bundle"/wheels/*.whl
    echo "$wheels" >"$bundle/site-packages/.installed"
  fi
  if [ -e "$bundle/cubins.tar.xz" ] && [ ! -d "$bundle/cubins" ]; then tar -C "$bundle" -xJf "$bundle/cubins.tar.xz"; fi
}

about() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "no GPU: nvidia-smi fails"
  "$python" -c 'import sys, torch; print(f"Python {sys.version.split()[0]}, torch {torch.__version__}")'
  echo "tpde commit $(cat "$bundle/COMMIT")"
}

sanitize() {
  local sanitizer
  sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer) || {
    echo "compute-sanitizer is neither on the PATH nor in /usr/local/cuda/bin: it comes with the CUDA toolkit" >&2
    exit 1
  }
  for tool in memcheck racecheck; do
    echo "== compute-sanitizer --tool $tool"
    "$sanitizer" --tool "$tool" --error-exitcode 1 "$bundle/gputest" "$@"
  done
}

command=${1:-}
case $command in test | bench | bench-offload | trained | gputest | sanitize | python) shift ;; *) usage ;; esac

install
export PYTHONPATH=$bundle/site-packages${PYTHONPATH:+:$PYTHONPATH}
export TPDE_CACHE=${TPDE_CACHE:-$bundle/cubins}
# Where gputest looks for NVRTC and nvCOMP; the Python package finds them by itself.
TPDE_SITE_PACKAGES=$("$python" -c 'import os, sys; print(":".join(p for p in sys.path if os.path.isdir(p + "/nvidia")))')
export TPDE_SITE_PACKAGES
about

cd "$bundle"
case $command in
  # Only files that speak of GPUs: others want the source tree.
  # shellcheck disable=SC2046  # file names without blanks
  test) exec "$python" -m pytest -p no:cacheprovider -m gpu $(grep -lE 'mark\.gpu|gpu_support' tests/test_*.py) "$@" ;;
  bench) exec "$python" tests/bench/bench_gpu.py "$@" ;;
  bench-offload) exec "$python" tests/bench/bench_offload.py "$@" ;;
  trained) exec "$python" tests/bench/trained_model.py "$@" ;;
  gputest) exec ./gputest "$@" ;;
  sanitize) sanitize "$@" ;;
  python) exec "$python" "$@" ;;
esac
