#!/usr/bin/env bash
# From a fresh clone to a language model writing Java: finds or installs the tools, builds, and streams a completion
# from the bundled model. Run again, it goes straight to the model.
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

require_jdk
ensure_built
prompt=$'public class Matrix {\n    private final double[] data;\n'
say "The bundled model (mamba2-java-9m, 9 million parameters) completes a class:"
printf '%s' "$prompt"
exec "$ROOT/scripts/mamba4j" generate --model "$ROOT/tests/models/mamba2-java-9m" --prompt "$prompt" \
  --max-new-tokens 160 --temperature 0.7 --top-p 0.9 --repetition-penalty 1.05 --seed 3 "$@"
