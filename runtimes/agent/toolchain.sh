# What the scripts share that cross-build the programs around program.h; sourced by sh, it does nothing by itself.
#
# Expects OUT, the folder that is laid out, where close_over is called. PYTHON, CXX, XDG_CACHE_HOME: see the scripts.

PYTHON=${PYTHON:-python3}

refuse() {
    echo "error: $2" >&2
    exit "$1"
}

# toolchain_for host|aarch64: sets CXX and READELF. On Debian: apt-get install g++-aarch64-linux-gnu binutils
toolchain_for() {
    case $1 in
    host) CXX=${CXX:-c++} READELF=readelf ;;
    aarch64) CXX=${CXX:-aarch64-linux-gnu-g++} READELF=aarch64-linux-gnu-readelf ;;
    *) refuse 2 "the platform is $1, expected host or aarch64" ;;
    esac
    for tool in "$CXX" "$READELF"; do
        command -v "$tool" >/dev/null || refuse 3 "$tool is not installed"
    done
}

# installed PACKAGE: prints the folder of the installed Python package, and fails where there is none
installed() {
    "$PYTHON" -c 'import sys; from importlib.util import find_spec
print(find_spec(sys.argv[1]).submodule_search_locations[0])' "$1" 2>/dev/null
}

# unpacked NAME PIP-ARGUMENTS...: prints the cache folder NAME, which holds the wheel that pip downloads for them
unpacked() {
    kept=${XDG_CACHE_HOME:-$HOME/.cache}/rwkv-export/$1
    shift
    if [ ! -d "$kept" ]; then
        part=$kept.$$.part
        mkdir -p "$part"
        "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --dest "$part" "$@" >&2 || {
            rm -rf "$part"
            refuse 3 "pip cannot download $*"
        }
        "$PYTHON" -m zipfile -e "$part"/*.whl "$part"
        rm -f "$part"/*.whl
        mv "$part" "$kept"
    fi
    echo "$kept"
}

needed() { "$READELF" -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }

# close_over FILE: copies to OUT what the file needs from the toolchain, and what that needs
close_over() {
    for library in $(needed "$1"); do
        [ -e "$OUT/$library" ] && continue
        found=$("$CXX" -print-file-name="$library")
        [ -e "$found" ] || refuse 3 "$CXX does not know $library, which $1 needs"
        cp -L "$found" "$OUT/$library"
        close_over "$OUT/$library"
    done
}
