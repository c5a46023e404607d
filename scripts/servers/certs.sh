#!/usr/bin/env bash
# certs.sh DIR: throw-away certificates for 127.0.0.1 and localhost, 30 days, keys as PKCS#8.
#   ca.pem                     the authority of the server and of `client`
#   server, client             .pem and .key; the client's common name is test-client
#   expired                    a server's, of the same authority, from long ago
#   stranger-ca.pem, stranger  another authority, and a client's of it
set -euo pipefail
dir=${1:?usage: certs.sh DIR}
[ ! -s "$dir/complete" ] || exit 0
mkdir -p "$dir" && cd "$dir"

key() { openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1.key"; }

# authority NAME
authority() {
  key "$1"
  openssl req -x509 -new -key "$1.key" -subj "/CN=test-$1" -days 30 -out "$1.pem" -addext keyUsage=critical,keyCertSign,cRLSign
}

# certificate NAME USE AUTHORITY FROM-TO...: signed by `openssl ca`, which alone takes dates that have passed.
certificate() {
  key "$1"
  openssl req -new -key "$1.key" -subj "/CN=test-$1" -out "$1.csr"
  printf '%s\n' '[ca]' default_ca=own '[own]' database=index.txt rand_serial=yes new_certs_dir=. default_md=sha256 \
    policy=any unique_subject=no x509_extensions=extensions '[any]' commonName=supplied '[extensions]' \
    subjectAltName=DNS:localhost,IP:127.0.0.1 "extendedKeyUsage=$2" basicConstraints=CA:FALSE >ca.cnf
  : >index.txt
  openssl ca -batch -notext -config ca.cnf -cert "$3.pem" -keyfile "$3.key" -in "$1.csr" -out "$1.pem" "${@:4}"
}

{
  authority ca
  authority stranger-ca
  certificate server serverAuth ca -days 30
  certificate client clientAuth ca -days 30
  certificate expired serverAuth ca -startdate 20200101000000Z -enddate 20200201000000Z
  certificate stranger clientAuth stranger-ca -days 30
  echo yes >complete
} >openssl.log 2>&1 || { cat openssl.log >&2 && exit 1; }
