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
. "$HERE/../../agent/toolchain.sh"
LIBRARIES="executorch executorch_threadpool executorch_backend_xnnpack"
LIBRARIES="$LIBRARIES executorch_kernels_optimized executorch_kernels_quantized"

wheel_version() {
    "$PYTHON" -c 'from importlib.metadata import version; print(version("executorch"))' 2>/dev/null ||
        refuse 3 "the Python package executorch is not installed, and EXECUTORCH_VERSION does not name a version"
}

downloaded() { # the folder of a wheel of that version, for the platform that pip's further arguments say
    version=${EXECUTORCH_VERSION:-$(wheel_version)}
    name=executorch-$version-$1
    shift
    unpacked "$name" "$@" "executorch==$version"
}

[ $# = 2 ] || refuse 2 "expected: cross-build.sh host|aarch64 FOLDER"
toolchain_for "$1"
if [ "$1" = aarch64 ]; then
    WHEEL=$(downloaded aarch64 --platform manylinux_2_28_aarch64)/executorch
else
    WHEEL=$(installed executorch) || WHEEL=$(downloaded host)/executorch
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
for file in "$OUT/rwkv-step" "$OUT"/libexecutorch*.so; do close_over "$file"; done
