#!/usr/bin/env bash
# Sets up, builds and runs every test: scripts, native (plain and under sanitizers), what the benchmark harness computes,
# Java, fuzzers. Where nvcc is, the GPU part is compiled too.
#
#   scripts/test.sh          everything but the thread sanitizer
#   scripts/test.sh --tsan   the thread sanitizer too
#   CI=true scripts/test.sh  each fuzzer runs for a minute; otherwise only its committed corpus is replayed
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

tsan=false
for argument in "$@"; do
  case $argument in
    --tsan) tsan=true ;;
    *) printf 'test.sh: unknown option %s (only --tsan)\n' "$argument" >&2 && exit 2 ;;
  esac
done

summary=()
failed=0
# step NAME COMMAND...: runs it, goes on after a failure, remembers result and time.
step() {
  local name=$1 start=$SECONDS result=ok
  shift
  say "$name"
  "$@" || { result=FAILED && failed=1; }
  summary+=("$(printf '%-6s %5d s  %s' "$result" $((SECONDS - start)) "$name")")
}

# Eighths of the two test programs, as many at a time as there are processors. (ctest starts a process for each test:
# under the sanitizers that takes longer than the tests.)
native_tests() {
  MAMBA4J_PRESET=$1 "$ROOT/scripts/build-native.sh" --tests &&
    printf '%s\n' {mamba4j_ops_test,mamba4j_test}" "{0..7} |
    GTEST_TOTAL_SHARDS=8 GTEST_BRIEF=1 xargs -P "$(nproc)" -L 1 \
      bash -c 'GTEST_SHARD_INDEX=$2 exec timeout 900 "$0/$1"' "$ROOT/build/$2/bin"
}
# Every operation and small models of all weights against the reference; nothing is timed.
harness_tests() {
  "$ROOT/scripts/build-native.sh" --tests --bench &&
    "$ROOT/build/native/bin/m4j-bench" --check-only --models mamba-tiny,mamba2-tiny \
      --dtypes f32,f16,bf16,int8,int4,bf16/bf16 --threads 1,2
}
script_tests() {
  (cd "$ROOT" && shellcheck --external-sources --severity=warning .ci/run scripts/*.sh scripts/mamba4j tests/scripts/*.sh) &&
    "$ROOT/tests/scripts/setup-test.sh"
}

step "Tools" require_tools test
step "JDK" require_jdk
step "Scripts" script_tests
step "Native" native_tests release native
step "Benchmark harness" harness_tests
# The GPU part is compiled and linked for one architecture; scripts/gpu-check.sh tests it where there is a GPU.
if has_command nvcc; then
  step "GPU" env MAMBA4J_CUDA_ARCHITECTURES="${MAMBA4J_CUDA_ARCHITECTURES:-90a-real}" \
    "$ROOT/scripts/build-native.sh" --tests --cuda
else
  summary+=("not built: the GPU part, as there is no nvcc")
fi
step "Instructions of a decode step" "$ROOT/tests/scripts/instructions-test.sh" "$ROOT/build/native/bin/decode_step"
step "Native, address and undefined behaviour sanitizers" native_tests asan native-asan
if $tsan; then step "Native, thread sanitizer" native_tests tsan native-tsan; fi
step "Build of the command" ensure_built
step "Command" "$ROOT/tests/scripts/launcher-test.sh"
step "Java" maven verify
if [[ ${CI:-} == true ]]; then step "Fuzzers" "$ROOT/scripts/fuzz.sh"; fi

printf '\n'
printf '%s\n' "${summary[@]}"
if ((failed)); then die "There were failures; see above."; fi
printf 'Every test passed in %d s.\n' "$SECONDS"
