#!/bin/bash
# The fuzz targets build, and read the inputs that are kept; `make fuzz` looks for new ones.
set -uo pipefail
if ! command -v clang >/dev/null; then
    echo "skipped: no clang"
    exit 77
fi
scripts/fuzz.sh 0
