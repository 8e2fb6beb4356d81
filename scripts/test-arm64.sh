#!/usr/bin/env bash
# Builds the native library for 64-bit ARM (SVE of 256 bits, NEON) on an x86-64 machine and runs its tests in an emulator:
# all on a processor with such vectors, the operations on one without SVE, the choice between the two on others. Slow,
# and for changes in native/src/ops/cpu; on an ARM machine scripts/test.sh does it all. Arguments go to the tests.
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
# expect_targets PROCESSOR WHAT TARGETS: the instruction sets that the library finds there, best first.
expect_targets() {
  local found
  found=$(emulate "$1" mamba4j_test --gtest_list_tests --gtest_filter='Targets/MathTest.Exp/*' |
    sed -n 's/.*GetParam() = //p' | xargs)
  [[ $found == "$3" ]] || die "On $2 the library runs '$found' instead of '$3'."
  say "On $2: $found"
}

sve_256=max,sve-max-vq=2
expect_targets $sve_256 "SVE of 256 bits" "sve_256 neon"
expect_targets max,sve-max-vq=1 "SVE of 128 bits" neon
expect_targets a64fx "SVE of 512 bits" neon
expect_targets cortex-a72 "a processor without SVE" neon

say "Running mamba4j_ops_test without SVE"
emulate cortex-a72 mamba4j_ops_test --gtest_brief=1 "$@"
for test in mamba4j_ops_test mamba4j_test; do
  say "Running $test with SVE of 256 bits"
  emulate $sve_256 "$test" --gtest_brief=1 "$@"
done
