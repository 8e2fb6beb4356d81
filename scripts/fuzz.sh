#!/usr/bin/env bash
# Fuzzes every reader of foreign files: each @FuzzTest in a JVM of its own, as many at a time as there are processors,
# starting from its committed corpus. An input that breaks a test is written into that corpus, where `mvn test` replays
# it; fix the reader and commit the input.
#
#   scripts/fuzz.sh                      every fuzz test for 60 seconds
#   scripts/fuzz.sh 600 pickle config    the named ones for 600 seconds each
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

seconds=${1:-60}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || { printf 'usage: fuzz.sh [SECONDS [NAME...]]\n' >&2 && exit 2; }
wanted=("${@:2}")

# Lines of MODULE CLASS METHOD.
fuzz_tests() {
  local file
  while IFS= read -r file; do
    sed -n '/@FuzzTest/,/(.*{/ s/.* void \([A-Za-z0-9_]*\)(.*/\1/p' "$file" |
      sed "s|^|${file%%/src/test/*} $(basename "$file" .java) |"
  done < <(cd "$ROOT" && grep -rl --include='*FuzzTest.java' '@FuzzTest' java | sort)
}

is_wanted() {
  [[ ${#wanted[@]} == 0 ]] && return
  local name
  for name in "${wanted[@]}"; do [[ $name == "$1" ]] && return; done
  return 1
}

# JUnit's timeout would end the whole run; Jazzer takes it as the limit of one input.
jvm_args="-Xmx1g -Djunit.jupiter.execution.timeout.mode=disabled"

require_jdk
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
touch "$logs/start"

# fuzz MODULE CLASS METHOD: leaves METHOD.passed among the logs if nothing was found. Runs side by side share a target
# folder: each has its own folder of Surefire's temporary files, which a run clears when it ends, and none looks for
# changes since the last compilation, a list that each would rewrite while others read it and compile anew.
fuzz() {
  local log=$logs/$3.log
  say "Fuzzing $2.$3 for $seconds seconds"
  if JAZZER_FUZZ=1 JAZZER_MAX_DURATION="${seconds}s" maven test -pl "$1" -am -Dtest="$2#$3" \
    -Dsurefire.failIfNoSpecifiedTests=false -Dsurefire.reportNameSuffix="$3" -DtempDir="surefire-$3" \
    -Dmaven.compiler.useIncrementalCompilation=false -Dmamba4j.test.jvmArgs="$jvm_args" >"$log" 2>&1 </dev/null; then
    sed -n "s/^#[0-9]*[[:space:]]*DONE/    $3:&/p" "$log" >&2
    touch "$logs/$3.passed"
  else
    tail -n 80 "$log" >&2
  fi
}

# Compiled once, before several run at a time.
modules=$(fuzz_tests | cut -d ' ' -f 1 | sort -u | paste -sd ,)
maven --quiet test-compile -pl "$modules" -am || die "The fuzz tests could not be compiled; see above."
ran=()
while read -r module class method; do
  is_wanted "$method" || continue
  ran+=("$method")
  while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n || true; done
  fuzz "$module" "$class" "$method" &
done < <(fuzz_tests)
wait

((${#ran[@]} > 0)) || die "No fuzz test is called ${wanted[*]}"
# In a CI run the output is all that is left of an input.
while IFS= read -r input; do
  printf '%s, by gzip and base64:\n%s\n' "${input#"$ROOT"/}" "$(gzip -9nc "$input" | base64)" >&2
done < <(find "$ROOT"/java/*/src/test/resources -newer "$logs/start" \
  \( -name 'crash-*' -o -name 'timeout-*' -o -name 'oom-*' \) 2>/dev/null)
failed=()
for method in "${ran[@]}"; do [[ -e $logs/$method.passed ]] || failed+=("$method"); done
((${#failed[@]} == 0)) || die "Of ${#ran[@]} fuzz tests failed: ${failed[*]}; see above."
say "${#ran[@]} fuzz tests found nothing."
