// jose as an issuer of hostile tokens: publishes keys, hands out tokens with what each must be answered, and
// counts what is fetched from it.
import { createServer } from 'node:http'
import { createHash, createPublicKey } from 'node:crypto'
import * as jose from 'jose'

const keys = {}
for (const [kid, alg] of [['rsa', 'RS256'], ['ec', 'ES256']]) {
  const pair = await jose.generateKeyPair(alg, { extractable: true })
  keys[kid] = { ...pair, alg, jwk: { ...await jose.exportJWK(pair.publicKey), kid, alg, use: 'sig' } }
}
const stranger = await jose.generateKeyPair('RS256', { extractable: true })
const strangerJwk = await jose.exportJWK(stranger.publicKey)

const fetched = []
const server = createServer((request, response) => {
  const body = {
    '/.well-known/openid-configuration': () => ({ issuer, jwks_uri: `${issuer}/jwks` }),
    '/jwks': () => ({ keys: Object.values(keys).map(key => key.jwk) }),
    '/forged': () => ({ keys: [{ ...strangerJwk, kid: 'forged', alg: 'RS256' }] }),
    '/fetched': () => fetched,
    '/tokens': () => tokens,
  }[request.url]
  if (!['/fetched', '/tokens'].includes(request.url)) fetched.push(request.url)
  response.writeHead(body ? 200 : 404, { 'content-type': 'application/json' })
  response.end(JSON.stringify(body ? body() : {}))
})
// A connection that is kept open is not closed under a slow client.
server.keepAliveTimeout = 600_000
await new Promise(done => server.listen(0, '127.0.0.1', done))
const issuer = `http://127.0.0.1:${server.address().port}`

const now = Math.floor(Date.now() / 1000)
const claims = { iss: issuer, aud: 'api', sub: 'someone', scope: 'results:write', iat: now, exp: now + 600 }
const sign = (change = {}, header = {}, kid = 'rsa') =>
  new jose.SignJWT({ ...claims, ...change })
    .setProtectedHeader({ alg: keys[kid].alg, typ: 'at+jwt', kid, ...header }).sign(keys[kid].privateKey)
const without = (name, kid = 'rsa') => {
  const { [name]: _, ...rest } = claims
  return new jose.SignJWT(rest).setProtectedHeader({ alg: 'RS256', kid }).sign(keys[kid].privateKey)
}
const part = value => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url')
const pem = await jose.exportSPKI(keys.rsa.publicKey)
const hmac = secret => new jose.SignJWT(claims).setProtectedHeader({ alg: 'HS256', kid: 'rsa' })
  .sign(Buffer.from(secret))
const der = createPublicKey(pem).export({ type: 'spki', format: 'der' })
const good = await sign()
const [head, body, signature] = good.split('.')
const encrypted = await new jose.EncryptJWT(claims).setProtectedHeader({ alg: 'dir', enc: 'A256GCM' })
  .encrypt(new Uint8Array(32))

const tokens = [
  ['good, RS256', good, 202],
  ['good, ES256', await sign({}, {}, 'ec'), 202],
  ['several audiences', await sign({ aud: ['x', 'api://results'] }), 202],
  ['scp as a list', await sign({ scope: undefined, scp: ['a', 'results:write'] }), 202],
  ['scp as a text', await sign({ scope: undefined, scp: 'a results:write' }), 202],
  ['roles', await sign({ scope: undefined, roles: ['results:write'] }), 202],
  ['expired within the leeway', await sign({ exp: now - 5 }), 202],

  ['unsigned', `${part({ alg: 'none' })}.${body}.`, 401, 'alg'],
  ['unsigned, other case', `${part({ alg: 'nOnE' })}.${body}.`, 401, 'alg'],
  ['unsigned with a signature', `${part({ alg: 'none' })}.${body}.${signature}`, 401, 'alg'],
  ['UnsecuredJWT', new jose.UnsecuredJWT(claims).encode(), 401, 'alg'],
  ['HS256 with the public key as PEM', await hmac(pem), 401, 'alg'],
  ['HS256 with the public key as PEM, trimmed', await hmac(pem.trim()), 401, 'alg'],
  ['HS256 with the public key as DER', await hmac(der), 401, 'alg'],
  ['HS256 with the key set', await hmac(JSON.stringify(keys.rsa.jwk)), 401, 'alg'],
  ['an algorithm that is not accepted', await new jose.SignJWT(claims)
    .setProtectedHeader({ alg: 'RS512', kid: 'rsa' }).sign(await jose.importPKCS8(
      await jose.exportPKCS8(keys.rsa.privateKey), 'RS512')), 401, 'alg'],
  ['an elliptic signature under an RSA key', await new jose.SignJWT(claims)
    .setProtectedHeader({ alg: 'ES256', kid: 'rsa' }).sign(keys.ec.privateKey), 401, 'alg'],
  ['no algorithm', `${part({ kid: 'rsa' })}.${body}.${signature}`, 401, 'alg'],

  ['an id token that says so', await sign({}, { typ: 'id+jwt' }), 401, 'typ'],
  ['a logout token', await sign({}, { typ: 'logout+jwt' }), 401, 'typ'],
  ['a DPoP proof', await sign({}, { typ: 'dpop+jwt' }), 401, 'typ'],

  ['expired', await sign({ exp: now - 61 }), 401, 'exp'],
  ['without an expiry', await without('exp'), 401, 'exp'],
  ['not yet valid', await sign({ nbf: now + 500 }), 401, 'nbf'],
  ['another issuer', await sign({ iss: 'https://evil.example' }), 401, 'iss'],
  ['the issuer with a slash', await sign({ iss: `${issuer}/` }), 401, 'iss'],
  ['no issuer', await without('iss'), 401, 'iss'],
  ['another audience', await sign({ aud: 'other' }), 401, 'aud'],
  ['an audience that contains ours', await sign({ aud: 'api.evil.example' }), 401, 'aud'],
  ['no audience', await without('aud'), 401, 'aud'],
  ['a missing scope', await sign({ scope: 'results:read' }), 403, 'scope'],
  ['a scope that begins like ours', await sign({ scope: 'results:write:all xresults:write' }), 403, 'scope'],
  ['bound to a certificate', await sign({ cnf: { 'x5t#S256': 'x'.repeat(43) } }), 401, 'cnf'],
  ['bound to a DPoP key', await sign({ cnf: { jkt: 'x'.repeat(43) } }), 401, 'cnf'],

  ['an unknown key', await sign({}, { kid: 'nobody' }), 401, 'kid'],
  ['a key that is a path', await sign({}, { kid: '../../../../../../dev/null' }), 401, 'kid'],
  ['a key that is SQL', await sign({}, { kid: "' OR '1'='1" }), 401, 'kid'],
  ['a key as a number', await sign({}, { kid: 1 }), 401, 'kid'],
  ['a key in the token', await new jose.SignJWT(claims)
    .setProtectedHeader({ alg: 'RS256', kid: 'forged', jwk: strangerJwk }).sign(stranger.privateKey), 401, 'kid'],
  ['a key set that the token names', await new jose.SignJWT(claims)
    .setProtectedHeader({ alg: 'RS256', kid: 'forged', jku: `${issuer}/forged` })
    .sign(stranger.privateKey), 401, 'kid'],
  ['a certificate that the token names', await new jose.SignJWT(claims)
    .setProtectedHeader({ alg: 'RS256', kid: 'forged', x5u: `${issuer}/forged` })
    .sign(stranger.privateKey), 401, 'kid'],
  ['our key name over a key in the token', await new jose.SignJWT(claims)
    .setProtectedHeader({ alg: 'RS256', kid: 'rsa', jwk: strangerJwk }).sign(stranger.privateKey), 401, 'sig'],

  ['a changed claim', `${head}.${part({ ...claims, sub: 'admin' })}.${signature}`, 401, 'sig'],
  ['no signature', `${head}.${body}.`, 401, 'sig'],
  ['half a signature', `${head}.${body}.${signature.slice(0, 171)}`, 401],
  ['r and s of zero', `${part({ alg: 'ES256', kid: 'ec' })}.${body}.${part('\0'.repeat(64))}`, 401, 'sig'],
  ['a critical extension', `${part({ alg: 'RS256', kid: 'rsa', crit: ['b64'], b64: false })}.${body}.${signature}`, 401, 'malformed'],
  ['an encrypted token', encrypted, 401, 'malformed'],
  ['a token within a token', await new jose.CompactSign(Buffer.from(good))
    .setProtectedHeader({ alg: 'RS256', kid: 'rsa', cty: 'JWT' }).sign(keys.rsa.privateKey), 401, 'malformed'],
  ['a claim twice', await new jose.CompactSign(Buffer.from(JSON.stringify(claims).replace('{', '{"aud":"x",')))
    .setProtectedHeader({ alg: 'RS256', kid: 'rsa' }).sign(keys.rsa.privateKey), 401, 'malformed'],
  ['too large', await sign({ padding: 'x'.repeat(20000) }), 401, 'malformed'],
  ['an opaque token', createHash('sha256').update('x').digest('hex'), 401, 'malformed'],
  ['a JSON serialization', part(JSON.stringify({ payload: body, protected: head, signature })), 401, 'malformed'],
].map(([name, token, status, check]) => ({ name, token, status, check: check ?? null }))

console.log(JSON.stringify({ port: server.address().port, issuer }))
process.stdin.resume().on('end', () => process.exit(0))
