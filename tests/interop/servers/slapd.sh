#!/bin/bash
# LDAP, with one entry, dc=interop; the password of cn=admin,dc=interop is "pass".
source "${BASH_SOURCE%/*}/../server.sh"
needs slapd slapadd
ports ldap
mkdir db
cat >slapd.conf <<END
include /etc/ldap/schema/core.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile $work/slapd.pid
argsfile $work/slapd.args
TLSCertificateFile $work/certificate.pem
TLSCertificateKeyFile $work/key.pem
security simple_bind=128
database mdb
maxsize 10485760
suffix dc=interop
rootdn cn=admin,dc=interop
rootpw pass
directory $work/db
END
cat >base.ldif <<END
dn: dc=interop
objectClass: dcObject
objectClass: organization
dc: interop
o: interop
END
user openldap
run slapadd -f "$work/slapd.conf" -l "$work/base.ldif"
serve slapd -d 256 -f "$work/slapd.conf" -h "ldap://127.0.0.1:$ldap/"
