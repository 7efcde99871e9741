#!/bin/sh
# Compiles and runs SOURCE with the flags that pkg-config gives; 77 tells ctest that the test was skipped.
set -eu
pkgconfig_dir=$1 compiler=$2 source=$3 executable=$4

if ! command -v pkg-config >/dev/null; then
    echo "skipped: there is no pkg-config"
    exit 77
fi
PKG_CONFIG_PATH=$pkgconfig_dir${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
export PKG_CONFIG_PATH
flags=$(pkg-config --cflags --libs upgradeable_streams)
set -x
# shellcheck disable=SC2086
"$compiler" -std=c++20 -O1 -Wall -Wextra -Werror "$source" $flags -o "$executable"
"$executable"
