#!/bin/bash
# IMAP, POP3, ManageSieve, LMTP and submission; the user "user" has the password "pass".
source "${BASH_SOURCE%/*}/../server.sh"
needs root dovecot /usr/lib/dovecot/{imap,pop3,managesieve,submission}-login /usr/lib/dovecot/lmtp
ports imap pop3 sieve lmtp submission
mkdir mail
chown mail: mail
echo 'user:{PLAIN}pass::::::' >users
cat >dovecot.conf <<END
base_dir = $work/run
state_dir = $work/state
log_path = /dev/stderr
listen = 127.0.0.1
protocols = imap pop3 lmtp sieve submission
ssl = required
ssl_cert = <$work/certificate.pem
ssl_key = <$work/key.pem
hostname = localhost
mail_location = maildir:$work/mail/%u
first_valid_uid = 1
passdb {
  driver = passwd-file
  args = $work/users
}
userdb {
  driver = static
  args = uid=mail gid=mail home=$work/mail/%u
}
submission_relay_host = 127.0.0.1
service imap-login {
  chroot =
  inet_listener imap {
    port = $imap
  }
  inet_listener imaps {
    port = 0
  }
}
service pop3-login {
  chroot =
  inet_listener pop3 {
    port = $pop3
  }
  inet_listener pop3s {
    port = 0
  }
}
service managesieve-login {
  chroot =
  inet_listener sieve {
    port = $sieve
  }
}
service lmtp {
  inet_listener lmtp {
    port = $lmtp
  }
}
service submission-login {
  chroot =
  inet_listener submission {
    port = $submission
  }
}
service anvil {
  chroot =
}
END
serve dovecot -F -c "$work/dovecot.conf"
