#!/bin/bash
# SMTP; mail from loopback is accepted and discarded.
source "${BASH_SOURCE%/*}/../server.sh"
needs root postfix
ports smtp
mkdir spool data
chown postfix data
cat key.pem certificate.pem >chain.pem
cat >main.cf <<END
compatibility_level = 3.6
queue_directory = $work/spool
data_directory = $work/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
maillog_file_prefixes = $work
maillog_file = $work/maillog
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = localhost
mydestination =
alias_maps =
alias_database =
default_transport = discard
smtpd_peername_lookup = no
smtpd_tls_security_level = may
smtpd_tls_chain_files = $work/chain.pem
END
cat >master.cf <<END
127.0.0.1:$smtp inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
proxymap unix - - n - - proxymap
discard unix - - n - - discard
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
END
run postfix -c "$work" check
serve /usr/lib/postfix/sbin/master -c "$work" -d
