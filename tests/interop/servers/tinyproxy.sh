#!/bin/bash
# A proxy for loopback.
source "${BASH_SOURCE%/*}/../server.sh"
needs tinyproxy
ports http
cat >tinyproxy.conf <<END
Port $http
Listen 127.0.0.1
Allow 127.0.0.1
END
user nobody
serve tinyproxy -d -c "$work/tinyproxy.conf"
