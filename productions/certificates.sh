#!/bin/sh
# Makes the certificates of an example into FOLDER: an authority (ca.pem) and a certificate of it for this
# machine's loopback names (server.pem, server.key). The authority's key is thrown away, so that nothing else
# can ever be signed with it. The certificates in the examples were made like this and are for trying out on
# one machine only: their keys are public. Run it again to have your own.
#
#   sh productions/certificates.sh productions/hl7-over-https/tls
set -eu
folder="${1:?usage: certificates.sh FOLDER [DAYS]}"
days="${2:-3650}"
mkdir -p "$folder"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "$days" \
  -subj "/CN=Septet example authority" -addext "basicConstraints=critical,CA:TRUE,pathlen:0" \
  -addext "keyUsage=critical,keyCertSign" -keyout "$work/ca.key" -out "$folder/ca.pem" 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=localhost" \
  -keyout "$folder/server.key" -out "$work/server.csr" 2>/dev/null
cat > "$work/extensions" <<END
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1
END
openssl x509 -req -in "$work/server.csr" -CA "$folder/ca.pem" -CAkey "$work/ca.key" -days "$days" \
  -extfile "$work/extensions" -out "$folder/server.pem" 2>/dev/null
chmod 600 "$folder/server.key"
