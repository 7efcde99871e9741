#!/bin/bash
# IRC.
source "${BASH_SOURCE%/*}/../server.sh"
needs inspircd
ulimit -c 0 # it crashes when it ends
ports irc
cat >inspircd.conf <<END
<path configdir="$work" datadir="$work" logdir="$work" runtimedir="$work">
<server name="localhost.interop" description="interop" id="00A" network="Interop">
<admin name="a" nick="a" email="a@localhost">
<bind address="127.0.0.1" port="$irc" type="clients">
<module name="ssl_gnutls">
<module name="starttls">
<module name="cap">
<sslprofile name="Clients" provider="gnutls" cafile="" certfile="$work/certificate.pem" keyfile="$work/key.pem"
            hash="sha256" requestclientcert="no">
<starttls profile="Clients">
<connect allow="*" resolvehostnames="no" useident="no">
<dns server="127.0.0.1" timeout="1">
END
user irc
serve inspircd --nofork --nopid --config "$work/inspircd.conf"
