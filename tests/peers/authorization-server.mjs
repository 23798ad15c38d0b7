// openid-client (certified) and jose against our authorization server, beyond the code flow: dynamic registration,
// private_key_jwt, the JWT bearer grant, keys that roll over, and assertions and tokens that must be refused.
// Prints what happened as JSON.
import * as client from 'openid-client'
import * as jose from 'jose'

const asked = JSON.parse(process.argv[2])
const report = { refused: {} }
const insecure = { execute: [client.allowInsecureRequests] }
const bearer = 'urn:ietf:params:oauth:grant-type:jwt-bearer'
const failed = async promise => promise.then(
  () => 'no error', error => error.error ?? error.code ?? error.cause?.code ?? String(error))

// Registration: with the token, and without.
const pair = await jose.generateKeyPair('ES256', { extractable: true })
const jwk = { ...await jose.exportJWK(pair.publicKey), kid: 'mine', alg: 'ES256', use: 'sig' }
const metadata = {
  client_name: 'openid-client', token_endpoint_auth_method: 'private_key_jwt',
  grant_types: ['client_credentials', bearer], jwks: { keys: [jwk] },
}
const register = initialAccessToken => client.dynamicClientRegistration(new URL(asked.issuer), metadata,
  client.PrivateKeyJwt({ key: pair.privateKey, kid: 'mine' }), { initialAccessToken, ...insecure })
report.registration_without_token = await failed(register(undefined))
const config = await register(asked.registration_token)
const { client_id } = config.clientMetadata()
const server = config.serverMetadata()

// Tokens by private_key_jwt and by assertion, verified by jose with the published keys.
const own = await client.clientCredentialsGrant(config, { scope: asked.scope })
const now = () => Math.floor(Date.now() / 1000)
const assertion = (claims = {}, header = {}, key = pair.privateKey) => new jose.SignJWT({
  iss: client_id, sub: asked.user, aud: server.token_endpoint, iat: now(), exp: now() + 60, jti: crypto.randomUUID(), ...claims,
}).setProtectedHeader({ alg: 'ES256', kid: 'mine', ...header }).sign(key)
const granted = await client.genericGrantRequest(config, bearer, { assertion: await assertion() })
const keys = jose.createRemoteJWKSet(new URL(server.jwks_uri), { cooldownDuration: 0 })
const verify = token => jose.jwtVerify(token, keys,
  { issuer: asked.issuer, audience: asked.issuer, typ: 'at+jwt', requiredClaims: ['exp', 'iat', 'jti', 'client_id', 'sub'] })
report.own = (await verify(own.access_token)).payload
report.granted = (await verify(granted.access_token)).payload

// The key rolls over: tokens from before and after verify with what is cached and what is fetched.
const before = jose.decodeProtectedHeader(own.access_token).kid
await fetch(asked.rotate, { method: 'POST' })
const later = await client.clientCredentialsGrant(config, { scope: asked.scope })
report.another_key = before !== jose.decodeProtectedHeader(later.access_token).kid
await verify(later.access_token)
await verify(own.access_token)

// What must be refused.
const post = async (path, form, headers = {}) => {
  const answer = await fetch(path, { method: 'POST', body: new URLSearchParams(form), headers })
  return { status: answer.status, body: await answer.json().catch(() => null) }
}
const grant = async assertion => {
  const { status, body } = await post(server.token_endpoint, { grant_type: bearer, assertion })
  return status === 200 ? 'GOT A TOKEN' : `${status} ${body.error}`
}
const authenticate = async assertion => {
  const { status, body } = await post(server.token_endpoint, {
    grant_type: 'client_credentials', client_assertion: assertion,
    client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
  })
  return status === 200 ? 'GOT A TOKEN' : `${status} ${body.error}`
}
const stranger = await jose.generateKeyPair('ES256', { extractable: true })
const strangerJwk = await jose.exportJWK(stranger.publicKey)
const hmac = secret => assertion({}, { alg: 'HS256' }, new TextEncoder().encode(secret))
const claims = { iss: client_id, sub: client_id, aud: server.token_endpoint, exp: now() + 60, jti: 'x' }
const part = value => Buffer.from(JSON.stringify(value)).toString('base64url')
const good = await assertion({ sub: client_id })
const [head, body, signature] = good.split('.')
const hostile = {
  unsecured: new jose.UnsecuredJWT(claims).encode(),
  'alg none': `${part({ alg: 'none', kid: 'mine' })}.${part(claims)}.`,
  'alg None': `${part({ alg: 'None', kid: 'mine' })}.${part(claims)}.${signature}`,
  'public key as hmac secret, pem': await hmac(await jose.exportSPKI(pair.publicKey)),
  'public key as hmac secret, jwk': await hmac(JSON.stringify(jwk)),
  'key of its own in the header': await assertion({}, { jwk: strangerJwk }, stranger.privateKey),
  'key from its own address': await assertion({}, { jku: 'https://evil.example/jwks' }, stranger.privateKey),
  'critical extension': await assertion({}, { crit: ['exp'], exp: 1 }).catch(() =>
    `${part({ alg: 'ES256', kid: 'mine', crit: ['x'], x: 1 })}.${body}.${signature}`),
  'another kid': await assertion({}, { kid: '../../mine' }),
  'another algorithm': `${part({ alg: 'ES384', kid: 'mine' })}.${body}.${signature}`,
  'no signature': `${head}.${body}.`,
  'zero signature': `${head}.${body}.${Buffer.alloc(64).toString('base64url')}`,
  'other claims': `${head}.${part({ ...claims, sub: 'root' })}.${signature}`,
  'two parts': `${head}.${body}`,
  'five parts': `${good}.a.b`,
  'not base64': `${head}.${body}.!!!`,
  'claims that are a list': `${head}.${part([claims])}.${signature}`,
  huge: `${head}.${'A'.repeat(30000)}.${signature}`,
  expired: await assertion({ exp: now() - 3600 }),
  'for ever': await assertion({ exp: 99999999999 }),
  'exp as text': await assertion({ exp: 'tomorrow' }).catch(() => 'x.y.z'),
  'not yet': await assertion({ nbf: now() + 600 }),
  'another audience': await assertion({ aud: 'https://evil.example/token' }),
  'no audience': await assertion({ aud: undefined }),
  'an audience that begins like ours': await assertion({ aud: `${server.token_endpoint}.evil.example` }),
  'no jti': await assertion({ jti: undefined }),
  'another issuer': await assertion({ iss: 'app' }),
  'nobody': await assertion({ sub: 'nobody' }),
  'an access token': own.access_token,
}
for (const [name, token] of Object.entries(hostile)) {
  report.refused[`${name}, as grant`] = await grant(token)
  report.refused[`${name}, as proof`] = await authenticate(token)
}
report.refused['for a user, as proof'] = await authenticate(await assertion())
const once = await assertion()
report.once = await grant(once)
report.refused['twice, as grant'] = await grant(once)
// The other signature that ECDSA has for the same text must not make it another assertion.
const order = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n
const raw = Buffer.from(once.split('.')[2], 'base64url')
const s = order - BigInt(`0x${raw.subarray(32).toString('hex')}`)
const twin = Buffer.concat([raw.subarray(0, 32), Buffer.from(s.toString(16).padStart(64, '0'), 'hex')])
report.refused['twice, with the twin signature'] = await grant(
  [...once.split('.').slice(0, 2), twin.toString('base64url')].join('.'))

// Tokens at userinfo and introspection.
const [tokenHead, tokenBody, tokenSignature] = own.access_token.split('.')
const forged = { ...jose.decodeJwt(own.access_token), scope: 'openid', sub: asked.user }
for (const [name, token] of Object.entries({
  'no signature': `${tokenHead}.${tokenBody}.`,
  'alg none': `${part({ alg: 'none', typ: 'at+jwt' })}.${part(forged)}.`,
  'more scope': `${tokenHead}.${part(forged)}.${tokenSignature}`,
  'a key of its own': await new jose.SignJWT(forged).setProtectedHeader(
    { alg: 'ES256', typ: 'at+jwt', kid: before, jwk: strangerJwk }).sign(stranger.privateKey),
  'an assertion': once,
})) {
  const answer = await fetch(server.userinfo_endpoint, { headers: { authorization: `Bearer ${token}` } })
  report.refused[`${name}, at userinfo`] = `${answer.status} ${answer.headers.get('www-authenticate')}`
  const { active } = await client.tokenIntrospection(config, token)
  report.refused[`${name}, at introspection`] = active ? 'ACTIVE' : 'inactive'
}
report.introspection = await client.tokenIntrospection(config, later.access_token)
await client.tokenRevocation(config, later.access_token)
report.after_revocation = await client.tokenIntrospection(config, later.access_token)
console.log(JSON.stringify(report))
