#!/usr/bin/env bash
# Tests scripts/setup.sh: which JDK it takes, the download of one from a server on loopback, what it asks to install.
set -euo pipefail
: "${JAVA_HOME:?must name a JDK 25}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server"; rm -rf "$work"' EXIT

failures=0
# check WHAT COMMAND...
check() {
  local what=$1
  shift
  if "$@"; then
    printf 'ok      %s\n' "$what"
  else
    printf 'FAILED  %s\n%s\n' "$what" "$(cat "$work/output" 2>/dev/null)"
    failures=$((failures + 1))
  fi
}

# in_setup CODE: runs it after setup.sh with no JDK in sight, not as root; keeps status and output.
in_setup() {
  status=0
  env -i HOME="$work/home" PATH="$work/bin:/usr/bin:/bin" MAMBA4J_JDK_DIR="$work/jdk" MAMBA4J_ADOPTIUM_API="$api" \
    bash -euo pipefail -c "
      source '$here/../../scripts/setup.sh'
      JDK_FOLDERS=(\"\$JDK_DIR\"/*)
      has_command() { [[ \$1 != javac ]] && command -v \"\$1\" >/dev/null; }
      is_root() { false; }
      $1" >"$work/output" 2>&1 || status=$?
}
says() { grep -qF -- "$1" "$work/output"; }
fails_with() { [[ $status == 1 ]] && says "$1"; }
succeeds() { [[ $status == 0 ]]; }
nothing_left() { [[ -z $(ls -A "$work/jdk" 2>/dev/null) ]]; }

# fake_jdk FOLDER VERSION
fake_jdk() {
  mkdir -p "$1/bin"
  printf '#!/bin/sh\n' | tee "$1/bin/java" >"$1/bin/javac"
  chmod +x "$1/bin/java" "$1/bin/javac"
  printf 'IMPLEMENTOR="test"\nJAVA_VERSION="%s"\n' "$2" >"$1/release"
}

# answer LINK CHECKSUM: what the API will say.
answer() {
  printf '[{"binary": {"architecture": "x64", "image_type": "jdk", "package": {
    "checksum": "%s",
    "checksum_link": "%s.sha256.txt",
    "link": "%s", "name": "%s", "size": 1}}, "release_name": "jdk-25.0.9+1"}]' "$2" "$1" "$1" "${1##*/}" \
    >"$work/www/v3/assets/latest/25/hotspot"
}

mkdir -p "$work/home" "$work/bin" "$work/www/v3/assets/latest/25"

# ---- Which JDK is taken ----
api=http://127.0.0.1:9
fake_jdk "$work/jdk17" 17.0.15
fake_jdk "$work/jdk25" 25.0.3
fake_jdk "$work/jdk26" 26
in_setup "export JAVA_HOME='$work/jdk25'; find_jdk; [[ \$JAVA_HOME == '$work/jdk25' ]]"
check "JAVA_HOME with a JDK 25 is taken" succeeds
in_setup "export JAVA_HOME='$work/jdk17'; JDK_FOLDERS=('$work/jdk17' '$work/jdk26'); find_jdk; [[ \$JAVA_HOME == '$work/jdk26' ]]"
check "JAVA_HOME with a JDK 17 is passed over for a newer one" succeeds
in_setup "export JAVA_HOME='$work/jdk17'; JDK_FOLDERS=('$work/jdk17'); find_jdk"
check "a JDK 17 alone is not enough" test "$status" = 1

# ---- The download ----
"$JAVA_HOME/bin/jwebserver" -b 127.0.0.1 -p 0 -d "$work/www" >"$work/server.log" 2>&1 &
server=$!
port=
while [[ -z $port ]] && kill -0 "$server"; do
  sleep 0.1
  port=$(sed -n 's/^URL http:\/\/127\.0\.0\.1:\([0-9]*\).*/\1/p' "$work/server.log")
done
api=http://127.0.0.1:$port

fake_jdk "$work/pack/jdk-25.0.9+1" 25.0.9
tar -czf "$work/www/jdk.tar.gz" -C "$work/pack" jdk-25.0.9+1
sum=$(sha256sum "$work/www/jdk.tar.gz" | cut -d ' ' -f 1)

answer "$api/jdk.tar.gz" "${sum//[0-9]/7}"
in_setup require_jdk
check "a wrong checksum is refused" fails_with "has SHA-256 $sum, not"
check "... with what to install" says "set JAVA_HOME to its folder"
check "... and leaves nothing behind" nothing_left

answer "$api/missing.tar.gz" "$sum"
in_setup require_jdk
check "a missing archive is an error" fails_with "the download of $api/missing.tar.gz failed"

printf 'no JSON' >"$work/www/v3/assets/latest/25/hotspot"
in_setup require_jdk
check "a strange answer is an error" fails_with "names no archive"

tar -czf "$work/www/old.tar.gz" -C "$work" jdk17
answer "$api/old.tar.gz" "$(sha256sum "$work/www/old.tar.gz" | cut -d ' ' -f 1)"
in_setup require_jdk
check "an archive with another JDK is refused" fails_with "does not hold a JDK 25"
check "... and leaves nothing behind" nothing_left

answer "$api/jdk.tar.gz" "$sum"
in_setup "require_jdk; [[ \$JAVA_HOME == '$work/jdk/temurin-25' ]]; \"\$JAVA_HOME/bin/javac\""
check "the right archive is unpacked" succeeds
api=http://127.0.0.1:9
in_setup "require_jdk; [[ \$JAVA_HOME == '$work/jdk/temurin-25' ]]"
check "... and found the next time without the network" succeeds
rm -rf "$work/jdk"
in_setup require_jdk
check "an unreachable API is an error" fails_with "does not answer"

# ---- Packages ----
in_setup "has_header() { [[ \$1 != hwy/* ]]; }; has_apt() { true; }; require_tools build"
check "without root the line to run is printed" fails_with "apt-get install -y --no-install-recommends libhwy-dev"
cat >"$work/bin/apt-get" <<END
#!/bin/sh
# Installs only once the lists are updated.
for last; do case \$last in update | install) echo \$last >>"$work/apt.log" && action=\$last ;; esac; done
[ \$action = install ] || touch "$work/updated"
[ -e "$work/updated" ]
END
chmod +x "$work/bin/apt-get"
in_setup "is_root() { true; }; has_apt() { true; }; install_packages libhwy-dev"
check "as root packages are installed, after an update of the lists where needed" succeeds
check "... in this order" test "$(tr '\n' ' ' <"$work/apt.log")" = "install update install "

# ---- Maven ----
fake_maven() {
  printf '#!/bin/sh\n[ "$1" = -v ] && echo "Apache Maven %s (test)" || echo "ran $*"\n' "$1" >"$work/bin/mvn"
  chmod +x "$work/bin/mvn"
}
unreachable="export MAVEN_USER_HOME='$work/m2' MVNW_REPOURL=http://127.0.0.1:9 JAVA_HOME='$JAVA_HOME'"
fake_maven 3.8.7
in_setup "$unreachable; maven verify"
check "where the wrapper cannot download, the system's Maven runs" says "ran --batch-mode --no-transfer-progress verify"
fake_maven 3.6.3
in_setup "$unreachable; maven verify"
check "unless it is too old" fails_with "there is no mvn 3.8 or newer"

# ---- What counts as out of date ----
mkdir -p "$work/src/project/native/src" "$work/src/project/native/tests"
touch "$work/src/project/native/src/a.cc"
touch -d '1 minute ago' "$work/src/project/native/src/a.cc" "$work/src/project/native/src"
touch "$work/stamp"
stale() { in_setup "ROOT='$work/src/project'; is_stale '$work/stamp' native" && [[ $status == "$1" ]]; }
touch -d '1 minute' "$work/src/project/native/tests" "$work/src/project/native"
check "a newer folder above the sources does not count" stale 1
touch -d '1 minute' "$work/src/project/native/src/a.cc"
check "a newer source counts" stale 0
rm "$work/src/project/native/src/a.cc"
touch -d '1 minute' "$work/src/project/native/src"
check "so does a folder that lost one" stale 0

exit $((failures > 0))
