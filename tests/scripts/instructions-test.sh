#!/usr/bin/env bash
# A budget of instructions for decoding four tokens with a small model: unlike seconds, they repeat on a busy machine.
# callgrind counts inside m4j_advance only. It emulates no AVX-512, so the AVX2 code is what is counted.
set -euo pipefail

program=${1:?usage: instructions-test.sh PATH_OF_decode_step}
grep -qw avx2 /proc/cpuinfo || { echo "The budgets are for AVX2, which this processor lacks; nothing is counted."; exit 0; }

out=$(mktemp)
trap 'rm -f "$out"' EXIT
failed=0
# Room of about an eighth over what g++ 12 makes of it. Raise a budget only with a reason in native/bench/NOTES.md.
while read -r shape budget; do
  counted=$(valgrind --tool=callgrind --collect-atstart=no --toggle-collect=m4j_advance --callgrind-out-file="$out" \
    "$program" "$shape" 2>&1 | sed -n 's/.*Collected : \([0-9]*\)$/\1/p') || true
  [[ $counted =~ ^[1-9][0-9]*$ ]] || { echo "instructions-test: callgrind counted nothing for $shape" >&2; exit 1; }
  printf '%-12s %8d instructions, budget %d\n' "$shape" "$counted" "$budget"
  ((counted <= budget)) || failed=1
done <<'END'
mamba-tiny 1200000
mamba2-tiny 1050000
END
((failed == 0)) || { echo "instructions-test: over budget" >&2; exit 1; }
