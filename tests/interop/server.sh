# Sourced by the scripts of servers/. Each is called with a directory to work in and the files of a certificate, of its
# key and of its CA. It says what it needs, chooses its user and ports, writes a configuration, and serves: prints one
# line of PROTOCOL=PORT once all of them accept connections on 127.0.0.1, and goes on until its standard input is closed
# or it gets SIGTERM. Nothing that it started outlives it.
#
# Exit status: 0; 77 when something is not installed; otherwise an error, with the server's log on standard error.
set -euo pipefail
PATH+=:/usr/sbin:/sbin
exec 3<&0 </dev/null
umask 022

chmod 755 "$1"
cp "$2" "$1/certificate.pem"
cp "$3" "$1/key.pem"
cp "$4" "$1/ca.pem"
cd "$1"
: >log
work=$PWD
export TMPDIR=$work # MariaDB deletes what others left in its own
run_as=()
protocols=()
server=

needs() # PROGRAM..., or root
{
    local program
    for program; do
        if [ "$program" = root ] && ((EUID == 0)) || command -v "$program" >/dev/null; then continue; fi
        echo "there is no $program" >&2
        exit 77
    done
}

user() # NAME: who runs the programs and owns what is in the directory, when root calls
{
    if ((EUID == 0)); then
        chown -R "$1:" .
        run_as=(--reuid "$1" --regid "$(id -gn "$1")" --init-groups)
    fi
}

ports() # PROTOCOL...: sets a variable of that name; connections that others open take no port of this range
{
    local protocol port
    for protocol; do
        while port=$((20000 + SRANDOM % 12000)); answers "$port"; do :; done
        declare -g "$protocol=$port"
        protocols+=("$protocol=$port")
    done
}

answers() # PORT
{
    (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

run() # COMMAND...: to its end
{
    setpriv "${run_as[@]}" timeout 60 "$@" >>log 2>&1
}

serve() # COMMAND...
{
    set -m # a process group of its own
    setpriv "${run_as[@]}" "$@" >>log 2>&1 3<&- &
    server=$!
    set +m
    { read -r -d '' -u 3 || kill -- "-$server"; } & # lives on when the script is killed
    local protocol
    for protocol in "${protocols[@]}"; do await answers "${protocol#*=}"; done
    await is_ready
    echo "${protocols[@]}"
    wait "$server" || true
    read -t 0 -u 3 # at its end, unless the server ended by itself
}

await() # COMMAND...: until it succeeds
{
    until "$@"; do
        if ! kill -0 "$server" 2>/dev/null || ((SECONDS > 60)); then exit 1; fi
        sleep 0.05
    done
}

is_ready() # for scripts of servers that accept connections before they serve them
{
    true
}

end()
{
    local status=$? i
    trap '' TERM
    if [ -n "$server" ]; then
        kill -- "-$server"
        for ((i = 0; i < 100; ++i)); do
            kill -0 -- "-$server" || break
            sleep 0.05
        done
        kill -KILL -- "-$server"
    fi 2>/dev/null || true
    kill $(jobs -p) 2>/dev/null || true
    if ((status == 1)); then tail -n 20 log >&2; fi
    exit "$status"
}
trap end EXIT
trap 'exit 0' TERM INT HUP
