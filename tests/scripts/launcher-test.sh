#!/usr/bin/env bash
# Tests scripts/mamba4j, which must be built: from any folder, through a link, in any locale, with clean output.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ln -s "$root/scripts/mamba4j" "$work/m4j"
cd "$work"
model=$root/tests/models/mamba2-java-9m

failures=0
# expect WHAT OUTPUT-PATTERN COMMAND...: succeeds, prints a match of the pattern, and nothing on standard error.
expect() {
  local what=$1 pattern=$2
  shift 2
  if "$@" >out 2>err && grep -qE -- "$pattern" out && [[ ! -s err ]]; then
    printf 'ok      %s\n' "$what"
  else
    printf 'FAILED  %s\n%s\n%s\n' "$what" "$(cat out)" "$(cat err)"
    failures=$((failures + 1))
  fi
}

prompt=$'public class Matrix {\n    private final double[] data;\n'
expect "generates as JSON" '"tokens":\[335,350,510,1795,8\]' \
  "$root/scripts/mamba4j" generate --model "$model" --prompt "$prompt" --max-new-tokens 5 --json
expect "knows its version" '^mamba4j 0\.1\.0' ./m4j --version
expect "runs through a link" '^parameters +9,126,560$' ./m4j inspect --model "$model"
expect "passes JVM options on" '^threads +3$' env MAMBA4J_JAVA_OPTS='-Xmx256m -Xshare:auto' \
  ./m4j inspect --model "$model" --threads 3
printf '// \302\247' >section
tokens=$(./m4j score --model "$model" --prompt-file section --json | grep -oE '"tokens":.[0-9,]+')
expect "reads letters beyond ASCII in the C locale" "${tokens/[/\\[}" \
  env LC_ALL=C ./m4j score --model "$model" --prompt "$(cat section)" --json

exit $((failures > 0))
