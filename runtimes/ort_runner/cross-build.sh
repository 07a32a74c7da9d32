#!/bin/sh
# Builds rwkv-step-ort against the libonnxruntime of a wheel and lays out a folder that needs nothing else.
#
#   cross-build.sh host FOLDER      for this machine, of the installed wheel, or of a downloaded one
#   cross-build.sh aarch64 FOLDER   for 64-bit Arm Linux and Android, with aarch64-linux-gnu-g++
#
# What is downloaded is pinned by hash in onnxruntime.txt. ONNXRUNTIME names the folder of a libonnxruntime.so of your
# own instead, as its releases carry one. PYTHON, CXX, XDG_CACHE_HOME (where the wheel is kept).
# On Debian: apt-get install g++-aarch64-linux-gnu binutils. Exit status: 2 for a wrong call, 3 for a missing tool.
set -eu

HERE=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$HERE/../agent/toolchain.sh"
SONAME=libonnxruntime.so.1

downloaded() { # downloaded MACHINE
    pin=$(sha256sum "$HERE/onnxruntime.txt" | cut -c 1-12)
    unpacked "onnxruntime-$pin-$1" --require-hashes --requirement "$HERE/onnxruntime.txt" \
        --platform "manylinux_2_28_$1" --python-version 3.11
}

[ $# = 2 ] || refuse 2 "expected: cross-build.sh host|aarch64 FOLDER"
toolchain_for "$1"
if [ -n "${ONNXRUNTIME:-}" ]; then
    FROM=$ONNXRUNTIME
elif [ "$1" = aarch64 ]; then
    FROM=$(downloaded aarch64)/onnxruntime/capi
else
    FROM=$(installed onnxruntime)/capi || FROM=$(downloaded "$(uname -m)")/onnxruntime/capi
fi
library=$(find "$FROM" -maxdepth 1 -name 'libonnxruntime.so*' | sort | head -n 1)
[ -n "$library" ] || refuse 3 "$FROM holds no libonnxruntime.so"

mkdir -p "$2"
OUT=$(CDPATH= cd -- "$2" && pwd)
cp -L "$library" "$OUT/$SONAME"
"$CXX" -std=c++17 -O2 -Wall -Wextra -Werror -s \
    "$HERE/main.cpp" -o "$OUT/rwkv-step-ort" -L"$OUT" -Wl,-rpath,'$ORIGIN' "-l:$SONAME" -pthread
for file in "$OUT/rwkv-step-ort" "$OUT/$SONAME"; do close_over "$file"; done
