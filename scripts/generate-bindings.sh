#!/usr/bin/env bash
# Regenerates java/ffi from native/include/mamba4j.h with jextract ($JEXTRACT, else the one on PATH).
# Usage: scripts/generate-bindings.sh [--check]   (--check: change nothing, fail if the committed output differs)
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
config="$root/jextract-config"
target="$root/java/ffi/src/main/java/org/mamba4j/ffi"

fail() { echo "generate-bindings: $*" >&2; exit 1; }

check=false
case "${1-}" in
  "") ;;
  --check) check=true ;;
  *) fail "unknown argument '$1'; usage: generate-bindings.sh [--check]" ;;
esac

jextract="${JEXTRACT:-$(command -v jextract || true)}"
[ -n "$jextract" ] || fail "no jextract found. Put it on PATH or set JEXTRACT; jextract-config/README.md says how to build it."
command -v "$jextract" >/dev/null || fail "JEXTRACT=$jextract is not an executable."

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# From the header's own folder, because jextract writes the path it was given into its comments.
cd "$root/native/include"

"$jextract" --dump-includes "$work/all.txt" mamba4j.h >"$work/log" 2>&1 ||
  { cat "$work/log" >&2; fail "jextract could not read mamba4j.h."; }
# Ours only, without the opaque handles, which have no layout.
opaque="$(sed -nE 's/^typedef struct (m4j_[a-z_]+) \1;$/\1/p' mamba4j.h | paste -sd'|')"
[ -n "$opaque" ] || fail "no opaque handle found in mamba4j.h."
sed -nE 's/^(--include-[a-z]+ (m4j_|M4J_)[A-Za-z0-9_]+)[[:space:]]*(#.*)?$/\1/p' "$work/all.txt" |
  grep -vE "^--include-(struct|typedef) ($opaque)\$" | LC_ALL=C sort -u >"$work/includes.txt"
[ -s "$work/includes.txt" ] || fail "jextract listed no m4j_ symbol in mamba4j.h."

# jextract reads an argument file as one line of words.
"$jextract" @"$config/arguments.txt" @"$work/includes.txt" --output "$work/out" mamba4j.h >"$work/log" 2>&1 ||
  { cat "$work/log" >&2; fail "jextract failed."; }
if [ -s "$work/log" ]; then cat "$work/log" >&2; fail "jextract left something out."; fi

generated="$work/out/org/mamba4j/ffi"
if $check; then
  diff -u "$config/includes.txt" "$work/includes.txt" && diff -r "$target" "$generated" ||
    fail "the committed bindings differ from what jextract makes of mamba4j.h; run scripts/generate-bindings.sh."
  echo "Bindings are up to date."
else
  cp "$work/includes.txt" "$config/includes.txt"
  mkdir -p "$target"
  find "$target" -name '*.java' -delete
  cp "$generated"/*.java "$target/"
  echo "Wrote $(ls "$target" | wc -l) files to java/ffi/src/main/java/org/mamba4j/ffi."
fi
