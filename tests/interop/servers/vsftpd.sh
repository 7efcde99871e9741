#!/bin/bash
# FTP for anonymous users, whose data connections have to resume the session of the control connection.
source "${BASH_SOURCE%/*}/../server.sh"
needs root vsftpd
ports ftp
mkdir -m 555 empty files
echo "a file" >files/file
cat >vsftpd.conf <<END
listen=YES
listen_address=127.0.0.1
listen_port=$ftp
background=NO
no_anon_password=YES
anon_root=$work/files
secure_chroot_dir=$work/empty
connect_from_port_20=NO
seccomp_sandbox=NO
xferlog_enable=NO
ssl_enable=YES
allow_anon_ssl=YES
force_anon_logins_ssl=YES
force_anon_data_ssl=YES
ssl_ciphers=HIGH
rsa_cert_file=$work/certificate.pem
rsa_private_key_file=$work/key.pem
END
serve vsftpd "$work/vsftpd.conf"
