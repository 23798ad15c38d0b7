#!/bin/sh
# Makes the client's key pair: client.key stays here, jwks.json goes to the FHIR server's authorization server.
# The pair in this folder is an example's: everybody knows its private key. Needs openssl 3 and node.
set -eu
cd "$(dirname "$0")"
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out client.key
chmod 600 client.key
node -e '
  const { createPrivateKey, createPublicKey } = require("node:crypto")
  const key = createPublicKey(createPrivateKey(require("node:fs").readFileSync("client.key")))
  const jwk = { ...key.export({ format: "jwk" }), kid: "lab-1", alg: "ES384", use: "sig" }
  require("node:fs").writeFileSync("jwks.json", JSON.stringify({ keys: [jwk] }, null, 2) + "\n")
'
