#!/bin/sh
# Configures and builds the native library: build/native/lib/libmamba4j.so. Does nothing if it is up to date.
#
#   build-native.sh            the library alone
#   build-native.sh --tests    the tests too (ctest --test-dir build/native runs them)
#   build-native.sh --bench    the benchmark harness too, build/native/bin/m4j-bench
#   build-native.sh --cuda     its GPU part too, libmamba4j_cuda.so beside it, and with --tests the tests and benchmarks
#                              that scripts/gpu-check.sh runs; needs nvcc
#
# MAMBA4J_PRESET picks another preset of native/CMakePresets.json: debug, asan, tsan (build/native-<preset>).
# MAMBA4J_CUDA_ARCHITECTURES limits the GPU part to some architectures, such as 90a-real; each takes minutes.
set -eu
cd "$(dirname "$0")/../native"

preset=${MAMBA4J_PRESET:-release}
tests=OFF bench=OFF cuda=OFF targets=mamba4j
for option in "$@"; do
  case $option in
    --tests) tests=ON ;;
    --bench) bench=ON ;;
    --cuda) cuda=ON ;;
    *) echo "build-native.sh: unknown option '$option' (only --tests, --bench, --cuda)" >&2; exit 2 ;;
  esac
done
[ $cuda = OFF ] || targets="$targets mamba4j_cuda"
[ $bench = OFF ] || targets="$targets m4j-bench"
[ $tests = OFF ] || targets=all

case $preset in
  release) dir=../build/native ;;
  *) dir=../build/native-$preset ;;
esac
# is NAME VALUE: the cache of the last configuration says so.
is() { grep -q "^$1:[A-Z]*=$2\$" "$dir/CMakeCache.txt"; }
if [ ! -f "$dir/build.ninja" ] || is M4J_CUDA AUTO || { [ $tests = ON ] && ! is M4J_BUILD_TESTS ON; } ||
  { [ $bench = ON ] && ! is M4J_BUILD_BENCH ON; } ||
  { [ $cuda = ON ] && { ! is M4J_CUDA ON ||
    { [ -n "${MAMBA4J_CUDA_ARCHITECTURES:-}" ] && ! is M4J_CUDA_ARCHITECTURES "$MAMBA4J_CUDA_ARCHITECTURES"; }; }; }; then
  if [ -f "$dir/build.ninja" ]; then  # what earlier calls have asked for stays
    ! is M4J_BUILD_TESTS ON || tests=ON
    ! is M4J_BUILD_BENCH ON || bench=ON
    ! is M4J_CUDA ON || cuda=ON
  fi
  cmake --preset "$preset" -DM4J_BUILD_TESTS=$tests -DM4J_BUILD_BENCH=$bench -DM4J_CUDA=$cuda \
    ${MAMBA4J_CUDA_ARCHITECTURES:+-DM4J_CUDA_ARCHITECTURES="$MAMBA4J_CUDA_ARCHITECTURES"}
fi
# shellcheck disable=SC2086 # each word is a target
cmake --build "$dir" --target $targets -j "$(nproc)"
