#!/bin/bash
# NNTP, by INN's daemon for readers alone; there are no groups.
source "${BASH_SOURCE%/*}/../server.sh"
PATH+=:/usr/lib/news/bin
needs root nnrpd
ports nntp
mkdir etc db spool
cat >etc/inn.conf <<END
domain: interop.example
pathhost: localhost
mta: "/bin/true %s"
hismethod: hisv6
ovmethod: tradindexed
enableoverview: true
pathnews: /usr/lib/news
pathbin: /usr/lib/news/bin
pathetc: $work/etc
pathdb: $work/db
pathrun: $work
pathlog: $work
pathspool: $work/spool
pathoverview: $work/spool
pathtmp: $work
nnrpdcheckart: false
nnrpdloadlimit: 0
tlscafile: $work/ca.pem
tlscertfile: $work/certificate.pem
tlskeyfile: $work/key.pem
END
cat >etc/readers.conf <<END
auth all {
    hosts: "127.0.0.1"
    default: "<anonymous>"
}
access all {
    users: "*"
    newsgroups: "*"
}
END
touch etc/storage.conf db/active db/history
user news
export INNCONF=$work/etc/inn.conf
run makedbz -i -o -s 1000 -f "$work/db/history"
run overchan # makes the index of groups, without which nnrpd answers 400
serve nnrpd -D -f -n -b 127.0.0.1 -p "$nntp" -c "$work/etc/readers.conf"
