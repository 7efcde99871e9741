#!/bin/sh
# Has a compiler for Windows check the headers and what uses them, without making a program: that would take an
# OpenSSL for Windows. 77 tells ctest that the test was skipped.
set -eu
source=$1 asio=$2 openssl=$3 directory=$4

compiler=x86_64-w64-mingw32-g++-posix
if ! command -v "$compiler" >/dev/null; then
    echo "skipped: there is no $compiler"
    exit 77
fi
# The headers of this system's C library, which lie beside those of Asio and OpenSSL, must not be found.
rm -rf "$directory"
mkdir -p "$directory/asio" "$directory/openssl" "$directory/configuration"
ln -s "$asio/asio" "$asio/asio.hpp" "$directory/asio"
ln -s "$openssl/openssl" "$directory/openssl"
# Debian keeps what depends on the architecture in a directory for each; any of them will do.
for configuration in "$openssl"/*/openssl/configuration.h; do
    [ ! -e "$configuration" ] || ln -sfn "${configuration%/*}" "$directory/configuration/openssl"
done

for program in tests/support/src.cpp examples/ping_server.cpp tests/bench/stream_line_server.cpp; do
    echo "$program"
    "$compiler" -std=c++20 -fsyntax-only -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror \
        -D_WIN32_WINNT=0x0A00 -DASIO_STANDALONE -DUPGRADEABLE_STREAMS_SEPARATE_COMPILATION -I "$source/include" \
        -isystem "$directory/asio" -isystem "$directory/openssl" -isystem "$directory/configuration" "$source/$program"
done
