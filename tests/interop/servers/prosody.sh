#!/bin/bash
# XMPP for clients and for servers.
source "${BASH_SOURCE%/*}/../server.sh"
needs prosody
ports xmpp xmpp_server
cat >prosody.cfg.lua <<END
modules_enabled = { "roster", "saslauth", "tls", "dialback", "disco" }
data_path = "$work"
daemonize = false
interfaces = { "127.0.0.1" }
c2s_ports = { $xmpp }
s2s_ports = { $xmpp_server }
c2s_require_encryption = true
s2s_require_encryption = true
log = { info = "*console" }
ssl = { certificate = "$work/certificate.pem", key = "$work/key.pem" }
VirtualHost "localhost"
END
user prosody
serve prosody --config "$work/prosody.cfg.lua" -F
