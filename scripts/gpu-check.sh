#!/usr/bin/env bash
# Tests and measures the GPU part, in one go, and ends with a short table.
#
#   gpu-check.sh --pack FILE     on any machine with nvcc: builds everything and packs it into FILE (tar.gz), with a
#                                run-time image of Java, for a GPU machine that has neither compiler nor JDK
#   gpu-check.sh [OPTIONS]       on the GPU machine, from the folder that FILE was unpacked to
#
#   --quick       one model instead of four, and no compute-sanitizer
#   --out FOLDER  where the full logs go (default: gpu-check-logs)
#
# MAMBA4J_CUDA_ARCHITECTURES limits a pack to some architectures, such as 90a-real.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# ---- Packing ---------------------------------------------------------------------------------------------------------

JAVA_MODULES=java.base,java.logging,java.net.http,java.management,jdk.management,jdk.jfr,jdk.unsupported,java.naming,jdk.zipfs,java.xml
JUNIT_CONSOLE=org.junit.platform:junit-platform-console-standalone:1.14.4

pack() {
  local file=$1 folder
  # shellcheck source=scripts/setup.sh
  source "$here/setup.sh"
  has_command nvcc || die "gpu-check.sh --pack needs nvcc of CUDA 12.8 or newer"
  require_tools test
  require_jdk
  "$ROOT/scripts/build-native.sh" --tests --cuda
  ensure_built
  maven --quiet -pl tests/integration -am -DskipTests package
  folder=$(mktemp -d)
  # shellcheck disable=SC2064 # the folder as it is now
  trap "rm -rf '$folder'" EXIT
  mkdir -p "$folder/bin" "$folder/java" "$folder/tests"
  cp "$ROOT/build/native/bin/mamba4j_cuda_test" "$ROOT"/build/native/bin/m4j-gpu-bench-* "$folder/bin/"
  cp "$ROOT"/build/native/lib/libmamba4j*.so "$folder/bin/"
  strip --strip-unneeded "$folder"/bin/*
  cp "$APP_DIR"/*.jar "$folder/java/"
  rm "$folder"/java/mamba4j-core-*.jar # its classes go in alone: the libraries lie in bin
  cp -r "$ROOT/java/core/target/classes" "$folder/java/core-classes"
  rm -rf "$folder/java/core-classes/org/mamba4j/native"
  cp -r "$ROOT/tests/integration/target/test-classes" "$folder/java/test-classes"
  maven --quiet dependency:copy -Dartifact="$JUNIT_CONSOLE" -DoutputDirectory="$folder/java" -Dmdep.stripVersion=true
  "$JAVA_HOME/bin/jlink" --add-modules "$JAVA_MODULES" --strip-debug --no-header-files --no-man-pages \
    --compress zip-6 --output "$folder/runtime"
  cp -r "$ROOT/tests/goldens" "$ROOT/tests/models" "$folder/tests/"
  cp "$here/gpu-check.sh" "$folder/"
  tar -C "$folder" -czf "$file" .
  say "Packed $(du -h "$file" | cut -f 1) into $file. On the GPU machine: tar -xzf it, then ./gpu-check.sh"
}

# ---- Checking --------------------------------------------------------------------------------------------------------

rows=()
failures=0
AT_A_TIME=$((($(nproc) + 1) / 2 < 8 ? ($(nproc) + 1) / 2 : 8))
# check NAME COMMAND...: one row of the table.
check() {
  local name=$1 log=$logs/$1.log start=$SECONDS result=ok
  shift
  "$@" >"$log" 2>&1 || { result=FAILED && failures=$((failures + 1)); }
  rows+=("$(printf '%-6s %4d s  %s' "$result" $((SECONDS - start)) "$name")")
  [[ $result == ok ]] || { tail -n 15 "$log" | sed 's/^/    /'; }
}

# Cases in processes of their own: after an illegal access a process cannot use its GPU any more.
# each_case SECONDS CASES COMMAND...: the command with every case of the list, some of them at a time.
each_case() {
  local limit=$1 cases=$2
  shift 2
  # shellcheck disable=SC2016 # the inner shell expands it
  xargs -P "$AT_A_TIME" -I{} sh -c \
    'limit=$1; shift; start=$(date +%s)
     timeout "$limit" "$@" --gtest_filter="{}" >"$0.$$" 2>&1 && echo "ok {} $(($(date +%s) - start)) s" ||
      { echo "FAILED ($?) {}"; tail -n 25 "$0.$$"; }; rm "$0.$$"' "$logs/case" "$limit" "$@" <<<"$cases"
}

# all_passed RESULTS COUNT: what each_case wrote, as one line and what failed.
all_passed() {
  local passed
  passed=$(grep -c '^ok ' "$1" || true)
  printf '%d of %d cases passed\n' "$passed" "$2"
  grep -v '^ok ' "$1" || true
  [[ $passed == "$2" ]]
}

# All cases in a few processes, and those that did not pass there each in a process of its own. Cases that fill the card
# run when the others are done.
native_cases() {
  local test=$here/bin/mamba4j_cuda_test shard left
  for ((shard = 0; shard < AT_A_TIME; ++shard)); do
    GTEST_TOTAL_SHARDS=$AT_A_TIME GTEST_SHARD_INDEX=$shard timeout 400 "$test" --gtest_filter='-*OutOfMemory*' \
      >"$logs/shard-$shard" 2>&1 &
  done
  wait
  awk '/^\[ +(OK|SKIPPED) \] [^ ]+ / { print "ok " $4 }' "$logs"/shard-* | sort -u >"$logs/results"
  left=$(sed 's/^/ok /' "$logs/cases" | sort | comm -23 - "$logs/results" | sed 's/^ok //')
  each_case 120 "$(grep -v OutOfMemory <<<"$left")" "$test" >>"$logs/results"
  each_case 120 "$(grep OutOfMemory <<<"$left")" "$test" >>"$logs/results"
  all_passed "$logs/results" "$(wc -l <"$logs/cases")"
}

java_tests() {
  (cd "$here" && MAMBA4J_LIBRARY=$here/bin/libmamba4j.so RUST_FLAVOR=cpu OPT_OUT_TRACKING=true DJL_OFFLINE=true \
    runtime/bin/java --enable-native-access=ALL-UNNAMED -Dmamba4j.test.device=cuda:0 \
    -jar java/junit-platform-console-standalone.jar execute \
    --class-path "java/test-classes:java/core-classes:$(printf '%s:' java/*.jar)" --details=tree --disable-banner \
    --select-class org.mamba4j.integration.GoldenTest --select-class org.mamba4j.integration.InvarianceTest \
    --select-class org.mamba4j.integration.DemoModelTest --select-class org.mamba4j.integration.DeviceTensorTest \
    --select-class org.mamba4j.integration.AsyncTest --select-class org.mamba4j.integration.DeviceCommandTest \
    --select-class org.mamba4j.integration.StateTypeTest)
}

# sanitizer TOOL OPTION...: over the operations; whole models of real size, long sequences and tensors beyond 2^31 elements
# would take hours. The kernels of cuBLASLt are not ours: races in them do not count.
sanitizer() {
  local cases tool=$1 log=$logs/$1-of
  shift
  cases=$(grep -E '^Cuda|CudaTensor' "$logs/cases" | grep -vE 'Beyond|Large|OutOfMemory|PartsForget|^CudaEngine|Models/')
  # Errors of the API are left out, as some cases ask for more memory than there is.
  # shellcheck disable=SC2016 # the inner shell expands it
  each_case 450 "$cases" bash -c \
    'log=$0.$$; "$@" >"$log" 2>&1; result=$?; cat "$log"
     ! grep "Race reported" "$log" | grep -qv nvjet || result=9
     rm "$log"; exit $result' "$log" \
    compute-sanitizer --tool "$tool" --report-api-errors no "$@" "$here/bin/mamba4j_cuda_test" --gtest_brief=1 \
    >"$logs/$tool-results"
  all_passed "$logs/$tool-results" "$(wc -l <<<"$cases")"
}

run() {
  local quick=false models=(mamba-130m mamba2-130m mamba-2.8b mamba2-2.7b)
  logs=$PWD/gpu-check-logs
  while (($#)); do
    case $1 in
      --quick) quick=true && models=(mamba2-130m) ;;
      --out) logs=$2 && shift ;;
      *) printf 'gpu-check.sh: unknown option %s (only --pack FILE, --quick, --out FOLDER)\n' "$1" >&2 && exit 2 ;;
    esac
    shift
  done
  if [[ ! -x $here/bin/mamba4j_cuda_test ]]; then
    printf 'gpu-check.sh: %s/bin holds no programs; unpack what --pack made and run it there\n' "$here" >&2
    exit 2
  fi
  if ! nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; then
    printf 'gpu-check.sh: no NVIDIA GPU here (nvidia-smi failed)\n' >&2
    exit 2
  fi
  mkdir -p "$logs"
  logs=$(cd "$logs" && pwd)
  # cuBLASLt also comes with Python packages, outside the loader's path.
  if ! ldconfig -p | grep -q libcublasLt; then
    local found
    found=$(find / -name 'libcublasLt.so.1?' -not -path '/proc/*' -print -quit 2>/dev/null || true)
    [[ -z $found ]] || export LD_LIBRARY_PATH=${found%/*}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  fi

  "$here/bin/mamba4j_cuda_test" --gtest_list_tests |
    awk '/^[^ ]/ { suite = $1 } /^ / { print suite $1 }' >"$logs/cases"
  check native-tests native_cases
  check java-tests java_tests
  check bench-scan "$here/bin/m4j-gpu-bench-scan"
  check bench-ssd "$here/bin/m4j-gpu-bench-ssd"
  check bench-models "$here/bin/m4j-gpu-bench-models" --bf16-states "${models[@]}"
  if ! $quick && ! command -v compute-sanitizer >/dev/null; then
    rows+=("not run     memcheck, racecheck: there is no compute-sanitizer here; it comes with the CUDA toolkit")
  elif ! $quick; then
    check memcheck sanitizer memcheck --error-exitcode 9 --kernel-name-exclude kns=nvjet
    # Kernels of clusters must be looked at, cuBLASLt's too: left out they end with an illegal access. For decode_step see
    # decode_block.cuh.
    M4J_TEST_ONE_IN=10 check racecheck sanitizer racecheck --kernel-name-exclude kns=decode_step_kernel
  fi

  printf '\n'
  cat "$logs"/bench-*.log
  printf '\n'
  printf '%s\n' "${rows[@]}"
  ((failures == 0)) || exit 1
}

case ${1:-} in
  --pack)
    [[ $# == 2 ]] || { printf 'gpu-check.sh: --pack needs a file\n' >&2 && exit 2; }
    pack "$(realpath -m "$2")"
    ;;
  -h | --help) sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" ;;
  *) run "$@" ;;
esac
