#!/usr/bin/env bash
# Measures mamba4j on this machine. Try: scripts/bench.sh --help
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

RESULTS=$ROOT/build/bench-results
MODELS=${MAMBA4J_BENCH_MODELS:-$ROOT/build/bench-models}
LLAMA_CPP_VERSION=3.22.1
APP=$ROOT/tests/bench/target/app

usage() {
  cat <<END
Measures mamba4j. Results go to build/bench-results: a JSON file for each part, and report.json and report.html with all
parts that have been measured there. Every figure is printed with its spread.

  scripts/bench.sh [OPTION...]           the native library without a JVM: every op and whole models, prefill and decode,
                                         each checked against the reference and beside what this machine could do at most
  scripts/bench.sh --long [OPTION...]    small shapes over prompts up to 65,536 tokens and behind contexts up to 1,000,000,
                                         every token of which is fed; some minutes
  scripts/bench.sh --java [OPTION...]    one decode step through Java over the native call: cost, allocation, latency
  scripts/bench.sh --peers [OPTION...]   beside llama.cpp and java-llama.cpp, same weights, taking turns

Options of each part: scripts/bench.sh --options, --java --help, --peers --help.

Examples:
  scripts/bench.sh --models mamba-130m,mamba2-130m --dtypes f32,bf16 --threads 1,2
  scripts/bench.sh --check-only                       only the comparison with the reference
  scripts/bench.sh --java --models mamba-tiny
  scripts/bench.sh --long --models mamba2-tiny --threads 2
  scripts/bench.sh --peers --models mamba-130m --weights f32,f16 --rounds 7
  scripts/mamba4j bench --model FOLDER --json         one model of yours, through Java

The first run installs what is missing (libcli11-dev, nlohmann-json3-dev, libopenblas0-serial; for --java and --peers also
python3-numpy, and npm if it is there fetches llama.cpp) and writes models with random weights to build/bench-models, up to
3.6 GB for --peers; MAMBA4J_BENCH_MODELS names another folder. Close everything else first: on few cores one busy neighbour
spoils a figure. --peers notices that and repeats the round.
END
}

build_native_harness() {
  require_tools bench
  # The ceiling of matrix products; without it the library's own product takes its place, and the report says so.
  ldconfig -p | grep -q 'libopenblas\.so\.0' || install_packages libopenblas0-serial
  say "Building m4j-bench"
  "$ROOT/scripts/build-native.sh" --bench >"$RESULTS/build.log" 2>&1 ||
    { cat "$RESULTS/build.log" >&2 && die "m4j-bench could not be built; see above."; }
  M4J_BENCH=$ROOT/build/native/bin/m4j-bench
}

build_java_harness() {
  require_jdk
  ensure_built
  say "Building tests/bench"
  maven --quiet -Pbench -Dmaven.test.skip=true -pl tests/bench -am package >&2 || die "tests/bench could not be built; see above."
}

java_harness() {
  local main=$1
  shift
  "$JAVA_HOME/bin/java" --enable-native-access=ALL-UNNAMED -cp "$APP/*" "org.mamba4j.bench.$main" "$@"
}

# make_models NAME FORM...: what is missing of a model, in a folder NAME-hf or a file NAME.f16.gguf.
make_models() {
  local name=$1 form path
  shift
  mkdir -p "$MODELS"
  for form in "$@"; do
    case $form in
      hf*) path=$MODELS/$name-$form ;;
      *) path=$MODELS/$name.$form.gguf ;;
    esac
    [[ ! -e $path ]] || continue
    /usr/bin/python3 -c 'import numpy' 2>/dev/null || install_packages python3 python3-numpy
    say "Writing $path"
    rm -rf "$path.part"
    /usr/bin/python3 "$ROOT/tests/bench/tools/mkmodel.py" "$name" "$form" "$path.part"
    mv "$path.part" "$path"
  done
}

# value_of OPTION DEFAULT ARGUMENT...: the words of a comma-separated option among the arguments.
value_of() {
  local option=$1 value=$2
  shift 2
  while [[ $# -gt 0 ]]; do
    case $1 in
      "$option") value=${2:-} && shift ;;
      "$option"=*) value=${1#*=} ;;
    esac
    shift
  done
  printf '%s\n' "${value//,/ }"
}

# Unpacks llama.cpp's libraries from the npm package of node-llama-cpp into LLAMA_CPP, or leaves that empty.
fetch_llama_cpp() {
  local arch folder=$ROOT/build/bench-peers/llama.cpp-$LLAMA_CPP_VERSION
  LLAMA_CPP=
  case $(uname -m) in
    x86_64) arch=linux-x64 ;;
    aarch64) arch=linux-arm64 ;;
    *) say "llama.cpp is left out: there is no package of it for $(uname -m)" && return ;;
  esac
  if [[ ! -d $folder ]]; then
    if ! has_command npm; then
      say "llama.cpp is left out: npm, which fetches it, is missing (sudo apt-get install -y npm)"
      return
    fi
    say "Fetching llama.cpp (npm, @node-llama-cpp/$arch $LLAMA_CPP_VERSION)"
    mkdir -p "$folder.part"
    if ! (cd "$folder.part" && npm pack --silent "@node-llama-cpp/$arch@$LLAMA_CPP_VERSION" >/dev/null &&
      tar -xzf ./*.tgz --strip-components=3 "package/bins/$arch"); then
      rm -rf "$folder.part"
      say "llama.cpp is left out: npm could not fetch @node-llama-cpp/$arch $LLAMA_CPP_VERSION"
      return
    fi
    mv "$folder.part" "$folder"
  fi
  LLAMA_CPP=$folder
}

# wants_help ARGUMENT...
wants_help() { [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; }

# finish_report FILE...: what the last part wrote goes into the page of all parts.
finish_report() {
  "$M4J_BENCH" --report "$RESULTS"
  say "Written to build/bench-results: $* and, with the other parts, report.json, report.html"
}

# run_native PART OPTION...
run_native() {
  local part=$1
  shift
  build_native_harness
  "$M4J_BENCH" --json "$RESULTS/$part.json" "$@"
  [[ " $* " == *" --check-only "* ]] || finish_report "$part.json"
}

run_java() {
  build_java_harness
  if wants_help "$@"; then
    java_harness JavaBenchmarks --help
    return
  fi
  build_native_harness
  local model
  # The small one is always needed: the count of allocated bytes warms up on it.
  for model in mamba-tiny $(value_of --models mamba-130m "$@"); do make_models "$model" hf; done
  java_harness JavaBenchmarks --model-dir "$MODELS" --native "$M4J_BENCH" --out "$RESULTS/java.json" "$@"
  finish_report java.json, jmh.json
}

run_peers() {
  build_java_harness
  if wants_help "$@"; then
    java_harness peers.Peers --help
    return
  fi
  build_native_harness # it writes the report
  local model form peer=()
  for model in $(value_of --models mamba-130m,mamba2-130m "$@"); do
    for form in $(value_of --weights f32,f16,q8_0 "$@"); do
      case $form in
        f32) make_models "$model" hf f32 ;;
        f16) make_models "$model" hf16 f16 ;;
        bf16 | q8_0) make_models "$model" "$form" ;;
        *) die "--weights $form: f32, f16, bf16 and q8_0 are known" ;;
      esac
    done
  done
  fetch_llama_cpp
  [[ -z $LLAMA_CPP ]] || peer=(--llama-cpp "$LLAMA_CPP")
  java_harness peers.Peers --model-dir "$MODELS" --out "$RESULTS/peers.json" "${peer[@]}" "$@"
  finish_report peers.json
}

mkdir -p "$RESULTS"
case ${1:-} in
  -h | --help) usage ;;
  --java) shift && run_java "$@" ;;
  --peers) shift && run_peers "$@" ;;
  --options) build_native_harness && "$M4J_BENCH" --help ;;
  --long) run_native long "$@" ;;
  *) run_native native "$@" ;;
esac
