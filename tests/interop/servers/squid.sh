#!/bin/bash
# A proxy that connects loopback with loopback.
source "${BASH_SOURCE%/*}/../server.sh"
needs squid
ports http
echo 127.0.0.1 localhost >hosts
cat >squid.conf <<END
http_port 127.0.0.1:$http
http_access allow localhost to_localhost
http_access deny all
hosts_file $work/hosts
cache deny all
access_log none
cache_log /dev/stderr
pid_filename none
coredump_dir $work
netdb_filename none
pinger_enable off
visible_hostname localhost
shutdown_lifetime 0 seconds
memory_cache_shared off
max_filedescriptors 1024
END
user proxy
serve squid -N -n "interop$http" -f "$work/squid.conf"
