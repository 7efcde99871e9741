#!/bin/bash
# A disk of 1 MiB, over TLS alone.
source "${BASH_SOURCE%/*}/../server.sh"
needs qemu-nbd truncate
ports nbd
truncate --size 1M disk
cp ca.pem ca-cert.pem
cp certificate.pem server-cert.pem
cp key.pem server-key.pem
user nobody
serve qemu-nbd --persistent --shared 0 --bind 127.0.0.1 --port "$nbd" --format raw --tls-creds tls \
    --object "tls-creds-x509,id=tls,endpoint=server,verify-peer=no,dir=$work" "$work/disk"
