#!/bin/sh
# Runs ping_server and ping_client against each other, with a certificate made on the spot.
set -eu

if [ $# -ne 3 ]; then
    echo "usage: $0 SERVER CLIENT DIRECTORY" >&2
    exit 2
fi
server=$1
client=$2
directory=$(mktemp -d "$3/demo.XXXXXX")
server_pid=

clean_up()
{
    [ -z "$server_pid" ] || kill "$server_pid" 2>/dev/null || :
    rm -rf "$directory"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

cat >"$directory/certificate.conf" <<'END'
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = localhost
[extensions]
basicConstraints = critical, CA:TRUE
keyUsage = critical, digitalSignature, keyCertSign
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1
subjectKeyIdentifier = hash
END
umask 077
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
    -config "$directory/certificate.conf" \
    -keyout "$directory/key.pem" -out "$directory/certificate.pem" 2>"$directory/openssl.log" || {
    cat "$directory/openssl.log" >&2
    exit 1
}

# Reading the pipe waits for the server's next line, and ends when the server does: `timeout` bounds both.
mkfifo "$directory/pipe"
timeout --foreground -k 5 60 "$server" --host localhost --port 0 \
    --cert "$directory/certificate.pem" --key "$directory/key.pem" >"$directory/pipe" 2>&1 &
server_pid=$!
exec 3<"$directory/pipe"
port=
while [ -z "$port" ] && read -r line <&3; do
    echo "$line" >>"$directory/server.log"
    case $line in
    "listening on "*) port=${line##*:} ;;
    esac
done
cat <&3 >>"$directory/server.log" &
log_pid=$!

client_status=1
if [ -n "$port" ]; then
    client_status=0
    echo "--- ping_client --host localhost --port $port --ca certificate.pem"
    timeout --foreground -k 5 60 "$client" --host localhost --port "$port" --ca "$directory/certificate.pem" 2>&1 ||
        client_status=$?
    kill "$server_pid" 2>/dev/null || :
fi
server_status=0
wait "$server_pid" || server_status=$?
server_pid=
wait "$log_pid"

echo "--- ping_server --host localhost --port 0 --cert certificate.pem --key key.pem"
cat "$directory/server.log"
echo "--- exit status: client $client_status, server $server_status"
[ "$client_status" -eq 0 ] && [ "$server_status" -eq 0 ]
