#!/bin/bash
# Installs the Debian packages that Halka needs (as root), or prints the command that would.
#   scripts/setup.sh            to build, run the demo and the tests
#   scripts/setup.sh --check    also what `make check` and `make fuzz` need
#   scripts/setup.sh --slurm    also Slurm, for the scheduler test
#   scripts/setup.sh --all      everything
#   scripts/setup.sh --list     print the package names of the groups chosen so far, install nothing
set -euo pipefail
cd "$(dirname "$0")/.."

groups="build model test"
list=no
for argument in "$@"; do
    case $argument in
    --check) groups+=" check" ;;
    --slurm) groups+=" slurm" ;;
    --all) groups+=" check slurm" ;;
    --list) list=yes ;;
    *)
        sed -n '2,7s/^# \{0,1\}//p' "$0"
        exit 64
        ;;
    esac
done

mapfile -t packages < <(awk -v groups="$groups" '
    BEGIN { n = split(groups, g); for (i = 1; i <= n; i++) wanted[g[i]] = 1 }
    !/^#/ && $1 in wanted { for (i = 2; i <= NF; i++) print $i }' scripts/packages.txt)
if [ $list = yes ]; then
    printf '%s\n' "${packages[@]}"
    exit
fi

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $state == installed* ]] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "setup: all ${#packages[@]} packages are installed"
    exit
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "setup: as root, run:"
    echo "  apt-get update && apt-get install --no-install-recommends ${missing[*]}"
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends "${missing[@]}"
echo "setup: installed ${#missing[@]} packages; next: make demo"
