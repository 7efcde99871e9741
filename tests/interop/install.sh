#!/bin/sh
# Installs the servers and clients of the tests here, as root on Debian 12, without questions and without starting any.
set -eu
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

# Kept as it is: no cluster of the system's own.
postgresql=/etc/postgresql-common/createcluster.conf
if [ ! -e "$postgresql" ]; then
    mkdir -p "${postgresql%/*}"
    echo 'create_main_cluster = false' >"$postgresql"
fi

# INN does not install on a machine whose name has no domain, unless its configuration gives one.
INNCONF=$(mktemp)
export INNCONF
cat >"$INNCONF" <<END
domain: interop.example
pathhost: localhost
mta: "/bin/true %s"
hismethod: hisv6
enableoverview: false
pathnews: /usr/lib/news
pathdb: /var/lib/news
pathetc: /etc/news
END
chmod 644 "$INNCONF"

apt-get install -y --no-install-recommends -o Dpkg::Options::=--force-confold postfix dovecot-imapd dovecot-pop3d \
    dovecot-managesieved dovecot-lmtpd dovecot-submissiond inn2 vsftpd inspircd prosody slapd postgresql mariadb-server \
    nbdkit squid tinyproxy openssl python3 gnutls-bin curl swaks libnet-ssleay-perl ldap-utils \
    postgresql-client libnbd-bin qemu-utils
rm "$INNCONF"
