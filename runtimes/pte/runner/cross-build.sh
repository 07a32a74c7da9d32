#!/bin/sh
# Builds rwkv-step against the libraries of the executorch wheel and lays out a folder that needs nothing else.
#
#   cross-build.sh host FOLDER      for this machine, of the installed wheel, or of a downloaded one
#   cross-build.sh aarch64 FOLDER   for 64-bit Arm Linux and Android, with aarch64-linux-gnu-g++
#
# PYTHON, CXX, EXECUTORCH_VERSION (default: the installed one), XDG_CACHE_HOME (where the wheel is kept).
# On Debian: apt-get install g++-aarch64-linux-gnu binutils. Exit status: 2 for a wrong call, 3 for a missing tool.
set -eu

HERE=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
PYTHON=${PYTHON:-python3}
LIBRARIES="executorch executorch_threadpool executorch_backend_xnnpack"
LIBRARIES="$LIBRARIES executorch_kernels_optimized executorch_kernels_quantized"

refuse() {
    echo "error: $2" >&2
    exit "$1"
}

installed() { # the folder of the installed package
    "$PYTHON" -c 'from importlib.util import find_spec; print(find_spec("executorch").submodule_search_locations[0])' \
        2>/dev/null
}

wheel_version() {
    "$PYTHON" -c 'from importlib.metadata import version; print(version("executorch"))' 2>/dev/null ||
        refuse 3 "the Python package executorch is not installed, and EXECUTORCH_VERSION does not name a version"
}

downloaded() { # the folder of a wheel of that version, for the platform that pip's further arguments say
    version=${EXECUTORCH_VERSION:-$(wheel_version)}
    kept=${XDG_CACHE_HOME:-$HOME/.cache}/rwkv-export/executorch-$version-$1
    shift
    if [ ! -d "$kept/executorch" ]; then
        part=$kept.$$.part
        mkdir -p "$part"
        "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --dest "$part" "$@" \
            "executorch==$version" >&2 || refuse 3 "pip cannot download executorch $version"
        "$PYTHON" -m zipfile -e "$part"/executorch-*.whl "$part"
        rm -rf "$part"/executorch-*.whl "$kept"
        mv "$part" "$kept"
    fi
    echo "$kept/executorch"
}

needed() { "$READELF" -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }

close_over() { # copies what a file needs from the toolchain, and what that needs
    for library in $(needed "$1"); do
        [ -e "$OUT/$library" ] && continue
        found=$("$CXX" -print-file-name="$library")
        [ -e "$found" ] || refuse 3 "$CXX does not know $library, which $1 needs"
        cp -L "$found" "$OUT/$library"
        close_over "$OUT/$library"
    done
}

[ $# = 2 ] || refuse 2 "expected: cross-build.sh host|aarch64 FOLDER"
case $1 in
host) CXX=${CXX:-c++} READELF=readelf ;;
aarch64) CXX=${CXX:-aarch64-linux-gnu-g++} READELF=aarch64-linux-gnu-readelf ;;
*) refuse 2 "the platform is $1, expected host or aarch64" ;;
esac
for tool in "$CXX" "$READELF"; do
    command -v "$tool" >/dev/null || refuse 3 "$tool is not installed"
done
if [ "$1" = aarch64 ]; then
    WHEEL=$(downloaded aarch64 --platform manylinux_2_28_aarch64)
else
    WHEEL=$(installed) || WHEEL=$(downloaded host)
fi

mkdir -p "$2"
OUT=$(CDPATH= cd -- "$2" && pwd)
links=
for name in $LIBRARIES; do
    cp "$WHEEL/lib/lib$name.so" "$OUT/"
    links="$links -l$name"
done
# Kernels and delegates register themselves when their library is loaded: nothing refers to them by name.
# shellcheck disable=SC2086
"$CXX" -std=c++17 -O2 -Wall -Wextra -Werror -s -DC10_USING_CUSTOM_GENERATED_MACROS \
    -isystem "$WHEEL/include" -isystem "$WHEEL/include/executorch/runtime/core/portable_type/c10" \
    "$HERE/main.cpp" -o "$OUT/rwkv-step" -L"$OUT" -Wl,-rpath,'$ORIGIN' -Wl,--no-as-needed $links
if [ "$1" = aarch64 ]; then
    for file in "$OUT/rwkv-step" "$OUT"/libexecutorch*.so; do close_over "$file"; done
fi
