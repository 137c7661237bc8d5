#!/bin/sh
# Builds the sdist, the wheel from that sdist, and tries the wheel as a stranger would get it.
#
#   wheels/build.sh [DIRECTORY]      default: dist
#
# The wheel is installed in a clean environment, away from the source tree, and the unit tests run
# on it.  What must not be in it (sources, build scripts, a link to OpenSSL) is looked for.
set -eu
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-dist}" && cd "${1:-dist}" && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install -q --disable-pip-version-check build
rm -f "$out"/pyktls-*
"$work/build/bin/python" -m build --outdir "$out" . >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    exit 1
}
ls -l "$out"

"$python" -m zipfile -l "$out"/pyktls-*.whl | awk 'NR > 1 { print $1 }' >"$work/names"
if grep -E '\.(c|h|pyx|o|txt)$|build_kernel|^csrc|^tests' "$work/names" |
    grep -v '^pyktls-.*dist-info/'; then
    echo "the wheel holds the files above, which belong to the sources" >&2
    exit 1
fi
for module in _kernel _records; do
    grep -q "^pyktls/$module\..*so$" "$work/names" || {
        echo "the wheel has no pyktls/$module" >&2
        exit 1
    }
done

"$python" -m venv "$work/clean"
"$work/clean/bin/python" -m pip install -q --disable-pip-version-check "$out"/pyktls-*.whl
# The tests' own needs, without the tree itself.
"$work/clean/bin/python" - <<'PY' >"$work/needs"
import tomllib
extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
print("\n".join(extras["test"] + extras["types"]))
PY
"$work/clean/bin/python" -m pip install -q --disable-pip-version-check -r "$work/needs"
for module in "$work"/clean/lib/python*/site-packages/pyktls/*.so; do
    if ldd "$module" | grep -E 'libssl|libcrypto'; then
        echo "$module is linked to OpenSSL" >&2
        exit 1
    fi
done
"$work/clean/bin/python" -c '
import pyktls, sys
sys.exit(not pyktls.__file__.startswith(sys.prefix) and f"not the wheel: {pyktls.__file__}")'
# Every test, with a third of its variants: make test has them all.
"$work/clean/bin/python" -m pytest -q -p no:cacheprovider tests/unit --variants=1/3
# And what type checkers see of it.
"$work/clean/bin/python" -m pytest -q -p no:cacheprovider tests/typing
