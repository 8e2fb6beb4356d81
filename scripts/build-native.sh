#!/bin/sh
# Configures and builds the native library: build/native/lib/libmamba4j.so. Does nothing if it is up to date.
#
#   build-native.sh            the library alone
#   build-native.sh --tests    the tests too (ctest --test-dir build/native runs them)
#
# MAMBA4J_PRESET picks another preset of native/CMakePresets.json: debug, asan, tsan (build/native-<preset>).
set -eu
cd "$(dirname "$0")/../native"

preset=${MAMBA4J_PRESET:-release}
case ${1:-} in
  "") tests=OFF target=mamba4j ;;
  --tests) tests=ON target=all ;;
  *) echo "build-native.sh: unknown option '$1' (only --tests)" >&2; exit 2 ;;
esac

case $preset in
  release) dir=../build/native ;;
  *) dir=../build/native-$preset ;;
esac
if [ ! -f "$dir/build.ninja" ] || { [ $tests = ON ] && ! grep -q '^M4J_BUILD_TESTS:BOOL=ON' "$dir/CMakeCache.txt"; }; then
  cmake --preset "$preset" -DM4J_BUILD_TESTS=$tests
fi
cmake --build "$dir" --target "$target" -j "$(nproc)"
