#!/usr/bin/env bash
# Builds the native library for 64-bit ARM on an x86-64 machine and runs its tests in an emulator, of processors with
# and without SVE of 256 bits and dot products of bytes. Slow, and for changes in native/src/ops/cpu; on an ARM machine
# scripts/test.sh does it all.
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

require_tools test
missing=()
has_command aarch64-linux-gnu-g++ || missing+=(g++-aarch64-linux-gnu)
has_command qemu-aarch64-static || missing+=(qemu-user-static)
[[ ${#missing[@]} == 0 ]] || install_packages "${missing[@]}"

build=$ROOT/build/native-arm64
cross=(-G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
  -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++)
say "Building for aarch64"
# Highway's headers alone: the folder they lie in holds those of this machine.
mkdir -p "$build/include"
hwy=$(printf '#include <hwy/highway.h>\n' | "${CXX:-g++}" -x c++ -M - | grep -o '/[^ ]*/hwy/highway\.h')
ln -sfn "$(dirname "$hwy")" "$build/include/hwy"
{
  cmake -S /usr/src/googletest -B "$build/googletest" "${cross[@]}" -DBUILD_GMOCK=OFF -DCMAKE_INSTALL_PREFIX="$build/gtest"
  cmake --build "$build/googletest" --target install
  cmake -S "$ROOT/native" -B "$build" "${cross[@]}" -DM4J_CUDA=OFF -DHWY_INCLUDE_DIR="$build/include" \
    -DGTest_DIR="$build/gtest/lib/cmake/GTest"
} >"$build/configure.log" || die "The build could not be configured; see $build/configure.log"
cmake --build "$build" --target mamba4j_ops_test mamba4j_test -j "$(nproc)"

# emulate PROCESSOR TEST ARGUMENTS...
emulate() { qemu-aarch64-static -cpu "$1" -L /usr/aarch64-linux-gnu "$build/bin/$2" "${@:3}"; }
# expect_targets PROCESSOR TARGETS: those that the library must find there, best first.
expect_targets() {
  local found
  found=$(emulate "$1" mamba4j_ops_test --gtest_list_tests --gtest_filter='Backends/Linear.MatchesTheFormula/*' |
    sed -n 's/^  [^/]*\/\([^ ]*\).*/\1/p' | xargs)
  [[ $found == "$2" ]] || die "On $1 the library finds '$found' instead of '$2'."
  say "On $1: $found"
}

best=max,sve-max-vq=2 # SVE of 256 bits
expect_targets $best "sve_256_dotprod sve_256 neon_dotprod neon reference"
expect_targets max,sve-max-vq=1 "neon_dotprod neon reference" # SVE of 128 bits
expect_targets a64fx "neon reference"                         # SVE of 512 bits
expect_targets cortex-a76 "neon_dotprod neon reference"
expect_targets cortex-a72 "neon reference"

# Each target's own operations, NEON's where there is nothing better.
say "Running mamba4j_ops_test"
emulate cortex-a72 mamba4j_ops_test --gtest_brief=1
emulate $best mamba4j_ops_test --gtest_brief=1 --gtest_filter='*/sve_256:*Linear.*_dotprod:*QuantisedWeights.*_dotprod'
say "Running mamba4j_test"
emulate $best mamba4j_test --gtest_brief=1
