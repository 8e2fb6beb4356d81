# shellcheck shell=bash
# Sourced by the other scripts: finds or installs the tools the project is built with, and builds what is out of date.
# Everything is said on stderr, so that a command's own output stays clean.
#
#   MAMBA4J_ADOPTIUM_API   base URL of the Adoptium API that Temurin is downloaded through
#   MAMBA4J_JDK_DIR        folder such a download goes to (default: .jdk in the project)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
JDK_VERSION=25
JDK_DIR=${MAMBA4J_JDK_DIR:-$ROOT/.jdk}
ADOPTIUM_API=${MAMBA4J_ADOPTIUM_API:-https://api.adoptium.net}
JDK_FOLDERS=("$JDK_DIR"/* /usr/lib/jvm/* /usr/java/* /opt/java/* /opt/*jdk* "${HOME:-/root}"/.sdkman/candidates/java/*
  "${HOME:-/root}"/.jdks/*)
APP_DIR=$ROOT/java/cli/target/app
NATIVE_STAMP=$ROOT/build/native/lib/.built
JAVA_STAMP=$APP_DIR/.built

say() { printf '==> %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# ---- Debian packages -------------------------------------------------------------------------------------------------

is_root() { [[ $(id -u) == 0 ]]; }
has_apt() { command -v apt-get >/dev/null; }
has_command() { command -v "$1" >/dev/null; }
has_header() { "${CXX:-g++}" -x c++ -fsyntax-only -include "$1" /dev/null 2>/dev/null; }

# at_least FOUND WANTED: compares dotted version numbers.
at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" </dev/null >"$apt_log" 2>&1; }

# Installs packages as root; prints the line to run for anybody else.
install_packages() {
  has_apt || die "These are missing and there is no apt-get to install them with: $*"
  is_root || die "These packages are missing. Install them and start again:

  sudo apt-get update && sudo apt-get install -y --no-install-recommends $*
"
  say "Installing $*"
  local apt_log
  apt_log=$(mktemp)
  if ! apt_get install -y --no-install-recommends "$@"; then
    # The package lists may be missing or old.
    if ! { apt_get update && apt_get install -y --no-install-recommends "$@"; }; then
      tail -n 20 "$apt_log" >&2
      rm -f "$apt_log"
      die "apt-get could not install: $*"
    fi
  fi
  rm -f "$apt_log"
}

# require_tools build|bench|test: the compiler, the build tools and the headers; for `bench` those of the benchmark
# harness too, for `test` also what only the tests need.
require_tools() {
  local missing=()
  has_command "${CXX:-g++}" || missing+=(g++)
  has_command cmake || missing+=(cmake)
  has_command ninja || missing+=(ninja-build)
  has_command curl || missing+=(curl ca-certificates)
  has_command unzip || missing+=(unzip)
  has_header hwy/highway.h || missing+=(libhwy-dev)
  if [[ $1 != build ]]; then
    has_header CLI/CLI.hpp || missing+=(libcli11-dev)
    has_header nlohmann/json.hpp || missing+=(nlohmann-json3-dev)
  fi
  if [[ $1 == test ]]; then
    has_header gtest/gtest.h || missing+=(libgtest-dev)
    has_command shellcheck || missing+=(shellcheck)
    has_command valgrind || missing+=(valgrind)
  fi
  [[ ${#missing[@]} == 0 ]] || install_packages "${missing[@]}"

  local found
  found=$("${CXX:-g++}" -dumpfullversion -dumpversion)
  if "${CXX:-g++}" --version | grep -q 'Free Software Foundation'; then
    at_least "$found" 11 || die "The library is C++20 and needs g++ 11 or newer; found $found. Set CXX to a newer one."
  fi
  found=$(cmake --version | sed -n 's/^cmake version \([0-9.]*\).*/\1/p')
  at_least "$found" 3.21 || die "CMake 3.21 or newer is needed; found $found."
}

# ---- JDK -------------------------------------------------------------------------------------------------------------

# is_jdk FOLDER: holds a JDK that is new enough. Reads its release file, which is quicker than starting it.
is_jdk() {
  [[ -x $1/bin/java && -x $1/bin/javac && -r $1/release ]] || return 1
  local line
  while IFS= read -r line; do
    if [[ $line =~ ^JAVA_VERSION=\"([0-9]+) ]]; then
      ((BASH_REMATCH[1] >= JDK_VERSION))
      return
    fi
  done <"$1/release"
  return 1
}

# Sets and exports JAVA_HOME, or returns 1.
find_jdk() {
  local folder on_path=
  if has_command javac; then
    on_path=$(readlink -f "$(command -v javac)")
    on_path=${on_path%/bin/javac}
  fi
  for folder in "${JAVA_HOME:-}" "$on_path" "${JDK_FOLDERS[@]}"; do
    if [[ -n $folder ]] && is_jdk "$folder"; then
      export JAVA_HOME=$folder
      return 0
    fi
  done
  return 1
}

apt_offers_jdk() {
  has_apt && apt-cache policy "openjdk-$JDK_VERSION-jdk-headless" 2>/dev/null | grep -q 'Candidate: [0-9]'
}

# Downloads Temurin into JDK_DIR. On failure sets `reason` and leaves nothing behind.
download_jdk() {
  local arch json link sum work protocols='=https'
  case $(uname -m) in
    x86_64) arch=x64 ;;
    aarch64) arch=aarch64 ;;
    *) reason="there is no Temurin for $(uname -m)" && return 1 ;;
  esac
  # Plain HTTP only where the API itself was pointed at it.
  [[ $ADOPTIUM_API == https://* ]] || protocols='=http,https'
  local query="architecture=$arch&image_type=jdk&os=linux&vendor=eclipse"
  if ! json=$(curl -fsSL --proto "$protocols" --connect-timeout 20 --retry 2 \
    "$ADOPTIUM_API/v3/assets/latest/$JDK_VERSION/hotspot?$query" 2>&1); then
    reason="$ADOPTIUM_API does not answer: ${json##*$'\n'}"
    return 1
  fi
  if [[ ! $json =~ \"link\"[[:space:]]*:[[:space:]]*\"([^\"]+\.tar\.gz)\" ]]; then
    reason="the answer of $ADOPTIUM_API names no archive"
    return 1
  fi
  link=${BASH_REMATCH[1]}
  if [[ ! $json =~ \"checksum\"[[:space:]]*:[[:space:]]*\"([0-9a-fA-F]{64})\" ]]; then
    reason="the answer of $ADOPTIUM_API holds no SHA-256"
    return 1
  fi
  sum=${BASH_REMATCH[1],,}

  say "Downloading Temurin $JDK_VERSION from $link"
  mkdir -p "$JDK_DIR"
  work=$(mktemp -d "$JDK_DIR/.download.XXXXXX")
  if ! curl -fsSL --proto "$protocols" --connect-timeout 20 --retry 2 -o "$work/jdk.tar.gz" "$link"; then
    reason="the download of $link failed"
  elif ! sha256sum --check --status <<<"$sum  $work/jdk.tar.gz"; then
    reason="$link has SHA-256 $(sha256sum "$work/jdk.tar.gz" | cut -d ' ' -f 1), not $sum"
  elif ! { mkdir "$work/jdk" && tar -xzf "$work/jdk.tar.gz" -C "$work/jdk" --strip-components=1; }; then
    reason="$link could not be unpacked"
  elif ! is_jdk "$work/jdk"; then
    reason="$link does not hold a JDK $JDK_VERSION"
  else
    rm -rf "$JDK_DIR/temurin-$JDK_VERSION"
    mv "$work/jdk" "$JDK_DIR/temurin-$JDK_VERSION"
    rm -rf "$work"
    export JAVA_HOME=$JDK_DIR/temurin-$JDK_VERSION
    return 0
  fi
  rm -rf "$work"
  return 1
}

# Sets JAVA_HOME to a JDK 25 or newer: one that is there, else a package as root, else a download.
require_jdk() {
  find_jdk && return
  local reason
  if is_root && apt_offers_jdk; then
    install_packages "openjdk-$JDK_VERSION-jdk-headless"
    JDK_FOLDERS+=(/usr/lib/jvm/*)
    find_jdk && return
  fi
  has_command curl || install_packages curl ca-certificates
  download_jdk && return
  die "No JDK $JDK_VERSION was found, and none could be downloaded: $reason.
Unpack one from https://adoptium.net/temurin/releases/?version=$JDK_VERSION and set JAVA_HOME to its folder,
or, where the distribution has it: sudo apt-get install -y openjdk-$JDK_VERSION-jdk-headless"
}

# ---- Build -----------------------------------------------------------------------------------------------------------

# Maven through the wrapper, or the system's where the wrapper cannot download.
maven() {
  if [[ -z ${MAVEN:-} ]]; then
    local found
    if "$ROOT/mvnw" -v >/dev/null 2>&1; then
      MAVEN=$ROOT/mvnw
    elif has_command mvn && found=$(mvn -v 2>/dev/null | grep -o 'Apache Maven [0-9.]*') &&
      at_least "${found##* }" 3.8; then
      MAVEN=mvn
      say "The Maven wrapper cannot download; using the system's $found"
    else
      "$ROOT/mvnw" -v >&2 || true
      die "Maven cannot be downloaded, and there is no mvn 3.8 or newer on the PATH (sudo apt-get install -y maven)."
    fi
  fi
  # Maven's own libraries would have Java 25 print warnings about memory access.
  (cd "$ROOT" && MAVEN_OPTS="--sun-misc-unsafe-memory-access=allow ${MAVEN_OPTS:-}" \
    "$MAVEN" --batch-mode --no-transfer-progress "$@")
}

# is_stale STAMP PATH...: STAMP is missing or older than a source under the paths, which are relative to the project:
# of the folders only those from src on count, because a build touches those above.
is_stale() {
  local stamp=$1
  shift
  [[ ! -e $stamp ]] || [[ -n $(cd "$ROOT" && find "$@" \( -name target -o -path '*/src/test' -o -path native/tests -o \
    -path native/bench \) -prune -o \( -type f -o -name src -o -path '*/src/*' \) -newer "$stamp" -print -quit) ]]
}
native_is_stale() { is_stale "$NATIVE_STAMP" native; }
java_is_stale() { is_stale "$JAVA_STAMP" pom.xml java "${NATIVE_STAMP#"$ROOT/"}"; }

# build STAMP COMMAND...: the stamp is taken before the build, so that a source edited while it runs counts as newer.
build() {
  local stamp=$1
  shift
  touch "$ROOT/build/started"
  "$@" >&2 || die "The build failed; see above."
  mv "$ROOT/build/started" "$stamp"
}

# Builds the native library and the command where they are out of date.
ensure_built() {
  # Asked without the lock first: the usual case, an up-to-date build, must not wait for anybody.
  native_is_stale || java_is_stale || return 0
  mkdir -p "$ROOT/build"
  (
    flock 9
    if native_is_stale; then
      require_tools build
      say "Building the native library (a minute or two the first time)"
      build "$NATIVE_STAMP" "$ROOT/scripts/build-native.sh"
    fi
    if java_is_stale; then
      say "Building the Java modules (the first time Maven downloads its plugins)"
      build "$JAVA_STAMP" maven --quiet -Dmaven.test.skip=true -pl java/cli -am package
    fi
  ) 9>"$ROOT/build/.lock"
}
