#!/bin/bash
# PostgreSQL; the user "postgres" needs no password, but TLS.
source "${BASH_SOURCE%/*}/../server.sh"
for bin in /usr/lib/postgresql/*/bin; do PATH=$bin:$PATH; done
needs postgres initdb
ports postgres
chmod 600 key.pem
user postgres
run initdb -D "$work/data" -U postgres -E UTF8 --no-locale -N
echo 'hostssl all all 127.0.0.1/32 trust' >data/pg_hba.conf
is_ready() { grep -q "ready to accept connections" log; }
serve postgres -D "$work/data" -c "port=$postgres" -c listen_addresses=127.0.0.1 -c "unix_socket_directories=$work" \
    -c ssl=on -c "ssl_cert_file=$work/certificate.pem" -c "ssl_key_file=$work/key.pem" -c fsync=off
