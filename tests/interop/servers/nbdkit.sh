#!/bin/bash
# A disk of 1 MiB in memory, in plain text and over TLS.
source "${BASH_SOURCE%/*}/../server.sh"
needs nbdkit
ports nbd
cp ca.pem ca-cert.pem
cp certificate.pem server-cert.pem
cp key.pem server-key.pem
user nobody
serve nbdkit --foreground --ipaddr 127.0.0.1 --port "$nbd" --tls on --tls-certificates "$work" memory 1M
