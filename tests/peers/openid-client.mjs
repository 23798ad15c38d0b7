// openid-client (certified) against our authorization server: everything an application does, with a person
// who fills in the pages' forms as a browser without scripts would. Prints what happened as JSON.
import * as client from 'openid-client'

const asked = JSON.parse(process.argv[2])
const report = {}

const config = await client.discovery(
  new URL(asked.issuer), asked.client_id, asked.secret,
  asked.auth === 'post' ? client.ClientSecretPost(asked.secret) : client.ClientSecretBasic(asked.secret),
  { execute: [client.allowInsecureRequests] })
report.metadata = config.serverMetadata()

/** What the first form of a page is: where it goes, its hidden fields, the names of its other fields. */
function form(html) {
  const found = html.match(/<form[^>]*action="([^"]*)"[^>]*>([\s\S]*?)<\/form>/)
  if (!found) throw new Error(`no form in ${html}`)
  const plain = text => text.replaceAll('&quot;', '"').replaceAll('&#39;', "'").replaceAll('&lt;', '<')
    .replaceAll('&gt;', '>').replaceAll('&amp;', '&')
  const fields = new URLSearchParams()
  for (const [, name, value] of found[2].matchAll(/type="hidden" name="([^"]*)" value="([^"]*)"/g)) {
    fields.append(plain(name), plain(value))
  }
  return { action: plain(found[1]), fields, html }
}

let cookies = ''
async function visit(url, fields) {
  const answer = await fetch(url, fields
    ? { method: 'POST', redirect: 'manual', body: fields, headers: { cookie: cookies } }
    : { redirect: 'manual', headers: { cookie: cookies } })
  const set = answer.headers.getSetCookie().map(cookie => cookie.split(';')[0])
  if (set.length) cookies = set.join('; ')
  return answer
}

/** Signs in and decides; where the person ends up. */
async function person(url, { password = asked.password, decision = 'allow' } = {}) {
  const signIn = form(await (await visit(url)).text())
  signIn.fields.append('username', asked.user)
  signIn.fields.append('password', password)
  const answer = await visit(new URL(signIn.action, url), signIn.fields)
  const html = await answer.text()
  if (answer.status !== 200) return { status: answer.status, html }
  const consent = form(html)
  report.consent ??= consent.html
  consent.fields.append('decision', decision)
  const back = await visit(new URL(consent.action, url), consent.fields)
  return { status: back.status, location: back.headers.get('location') }
}

/** An authorization request, and what its answer must be checked with. */
async function request(more = {}) {
  const verifier = client.randomPKCECodeVerifier()
  const checks = { pkceCodeVerifier: verifier, expectedState: client.randomState() }
  const parameters = {
    redirect_uri: asked.redirect_uri,
    scope: asked.scope,
    code_challenge: await client.calculatePKCECodeChallenge(verifier),
    code_challenge_method: 'S256',
    state: checks.expectedState,
    ...more,
  }
  if (asked.scope.includes('openid')) {
    checks.expectedNonce = parameters.nonce = client.randomNonce()
    checks.idTokenExpected = true
  }
  return { url: client.buildAuthorizationUrl(config, parameters), checks }
}

const failed = async promise => promise.then(
  () => 'no error', error => error.error ?? error.code ?? error.cause?.code ?? String(error))

async function api(token) {
  if (!asked.api) return undefined
  const init = asked.api_body
    ? { method: 'POST', body: JSON.stringify(asked.api_body), headers: { 'content-type': 'application/json' } }
    : {}
  init.headers = { ...init.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) }
  const answer = await fetch(asked.api, init)
  return { status: answer.status, body: await answer.json().catch(() => null) }
}

// A wrong password, a refusal, and then consent.
const wrong = await request()
report.wrong_password = (await person(wrong.url, { password: 'guess' })).status
const denied = await request()
const refusal = await person(denied.url, { decision: 'deny' })
report.denied = await failed(client.authorizationCodeGrant(config, new URL(refusal.location), denied.checks))

const { url, checks } = await request()
const back = await person(url)
report.location = back.location.replace(/code=[^&]*/, 'code=…')
const tokens = await client.authorizationCodeGrant(config, new URL(back.location), checks)
report.tokens = {
  type: tokens.token_type, expires_in: tokens.expires_in, scope: tokens.scope,
  has_refresh: Boolean(tokens.refresh_token), claims: tokens.claims() ?? null,
}
const [head, claims] = tokens.access_token.split('.').slice(0, 2)
  .map(part => JSON.parse(Buffer.from(part, 'base64url').toString()))
report.access_token = { head, claims }
report.code_again = await failed(client.authorizationCodeGrant(config, new URL(back.location), checks))
report.api = { with_token: await api(tokens.access_token), without: await api() }

// What a code is bound to.
const other = await request()
const otherBack = await person(other.url)
report.wrong_verifier = await failed(client.authorizationCodeGrant(config, new URL(otherBack.location),
  { ...other.checks, pkceCodeVerifier: client.randomPKCECodeVerifier() }))
const mixed = await request()
const mixedBack = await person(mixed.url)
report.wrong_state = await failed(client.authorizationCodeGrant(config, new URL(mixedBack.location),
  { ...mixed.checks, expectedState: client.randomState() }))

// Refresh, rotation, and what happens to a family one of whose tokens is used twice. The first code was
// shown twice above, so that its family may be gone: a fresh sign-in.
const fresh = await request()
const freshBack = await person(fresh.url)
const first = await client.authorizationCodeGrant(config, new URL(freshBack.location), fresh.checks)
if (first.refresh_token) {
  const second = await client.refreshTokenGrant(config, first.refresh_token)
  report.refreshed = {
    rotated: second.refresh_token !== first.refresh_token, scope: second.scope,
    api: await api(second.access_token),
  }
  report.reused = await failed(client.refreshTokenGrant(config, first.refresh_token))
  report.after_reuse = await failed(client.refreshTokenGrant(config, second.refresh_token))
}

if (asked.client_credentials) {
  const own = await client.clientCredentialsGrant(config, { scope: asked.client_credentials })
  report.client_credentials = { scope: own.scope, has_refresh: Boolean(own.refresh_token), api: await api(own.access_token) }
  report.unknown_scope = await failed(client.clientCredentialsGrant(config, { scope: 'made-up' }))
}

// What the server says it has beyond the core. The first code was shown twice: all that came of it is revoked.
const metadata = config.serverMetadata()
const next = await request()
const nextBack = await person(next.url)
const good = await client.authorizationCodeGrant(config, new URL(nextBack.location), next.checks)
if (metadata.userinfo_endpoint && good.claims()) {
  report.userinfo = await client.fetchUserInfo(config, good.access_token, good.claims().sub)
}
if (metadata.introspection_endpoint) {
  report.introspection = await client.tokenIntrospection(config, good.access_token)
  report.introspection_of_nothing = await client.tokenIntrospection(config, 'nothing')
  report.introspection_after_code_again = await client.tokenIntrospection(config, tokens.access_token)
}
if (metadata.revocation_endpoint) {
  const last = await request()
  const lastBack = await person(last.url)
  const revoked = await client.authorizationCodeGrant(config, new URL(lastBack.location), last.checks)
  await client.tokenRevocation(config, revoked.refresh_token)
  report.revoked = await failed(client.refreshTokenGrant(config, revoked.refresh_token))
  report.revoked_access = await client.tokenIntrospection(config, revoked.access_token)
}

console.log(JSON.stringify(report))
