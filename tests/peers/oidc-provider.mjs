// oidc-provider (certified) as authorization server over TLS, for our OAuth clients. Its argument is JSON:
// { cert, key, ca: PEM texts, clients: client metadata (RFC 7591) }.
import { X509Certificate } from 'node:crypto'
import { createServer } from 'node:https'
import Provider from 'oidc-provider'

// Nobody reads standard output after the first line.
console.info = console.error

const { cert, key, ca, clients } = JSON.parse(process.argv[2])
const listener = createServer({ cert, key, ca, requestCert: true, rejectUnauthorized: false })
// A connection that is kept open is not closed under a slow client.
listener.keepAliveTimeout = 600_000
await new Promise(done => listener.listen(0, '127.0.0.1', done))
const { port } = listener.address()
const issuer = `https://localhost:${port}`

const provider = new Provider(issuer, {
  clients,
  clientAuthMethods: ['client_secret_basic', 'client_secret_post', 'client_secret_jwt', 'private_key_jwt',
    'tls_client_auth', 'self_signed_tls_client_auth', 'none'],
  enabledJWA: { clientAuthSigningAlgValues: ['HS256', 'HS512', 'RS256', 'RS384', 'PS256', 'ES256', 'ES384'] },
  scopes: ['openid', 'offline_access', 'results:write'],
  pkce: { required: () => true },
  rotateRefreshToken: true,
  ttl: { AccessToken: 600, ClientCredentials: 600, RefreshToken: 86400 },
  findAccount: (_, id) => ({ accountId: id, claims: async () => ({ sub: id }) }),
  features: {
    clientCredentials: { enabled: true },
    introspection: { enabled: true },
    revocation: { enabled: true },
    mTLS: {
      enabled: true, tlsClientAuth: true, selfSignedTlsClientAuth: true, certificateBoundAccessTokens: true,
      getCertificate: ctx => {
        const peer = ctx.socket.getPeerCertificate()
        return peer.raw && new X509Certificate(peer.raw)
      },
      certificateAuthorized: ctx => ctx.socket.authorized,
      certificateSubjectMatches: (ctx, property, expected) =>
        property === 'tls_client_auth_san_dns' &&
        new X509Certificate(ctx.socket.getPeerCertificate().raw).subjectAltName.includes(`DNS:${expected}`),
    },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_, resource) => ({
        audience: resource, scope: 'results:write', accessTokenFormat: 'jwt', accessTokenTTL: 600,
      }),
      useGrantedResource: () => true,
    },
  },
})
provider.on('server_error', (_, error) => console.error(error))
listener.on('request', provider.callback())

console.log(JSON.stringify({ port, issuer }))
process.stdin.resume().on('end', () => process.exit())
