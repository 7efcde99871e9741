#!/bin/bash
# MariaDB; the user "interop" needs no password, but TLS.
source "${BASH_SOURCE%/*}/../server.sh"
needs mariadbd mariadb-install-db
ports mysql
echo "CREATE USER interop REQUIRE SSL;" >users.sql
user mysql
run mariadb-install-db --no-defaults --datadir="$work/data" --skip-test-db --auth-root-authentication-method=normal \
    --innodb-log-file-size=4M
serve mariadbd --no-defaults --datadir="$work/data" --socket="$work/socket" --pid-file="$work/pid" \
    --bind-address=127.0.0.1 --port="$mysql" --init-file="$work/users.sql" --innodb-log-file-size=4M \
    --skip-name-resolve --ssl-cert="$work/certificate.pem" --ssl-key="$work/key.pem"
