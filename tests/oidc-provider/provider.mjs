// A real OAuth server for the end-to-end tests: npm's certified `oidc-provider`
// on a loopback port, with one public client and the /test/* routes below.
// It stops when its stdin closes, so it never outlives the test that started it.
//
//   POST /test/approve    user_code=...&account=alice   confirm a device code
//   GET  /test/counts     what has happened since the last reset
//   POST /test/reset      set the counts to 0
//   POST /test/behaviour  {delay_ms, delay_after_ms, status, retry_after, access_token_ttl}

import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import { parse as parseForm } from 'node:querystring';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';

// The library writes hints about its configuration with console.info (to
// stdout, where the test reads our address) and console.warn, one of them while
// it is being imported: hence these lines, and the imports that are not static.
console.info = () => {};
console.warn = () => {};
const { Provider } = await import('oidc-provider');
const { default: MemoryAdapter } = await import('oidc-provider/lib/adapters/memory_adapter.js');

const DAY = 24 * 60 * 60;
const SCOPES = ['openid', 'offline_access', 'api', 'read', 'write'];

const NORMAL = { delay_ms: 0, delay_after_ms: 0, status: null, retry_after: null, access_token_ttl: null };
let behaviour = NORMAL;

const NO_COUNTS = {
  refresh_requests: 0, // arrived, whatever became of them
  refresh_successes: 0, // answered with tokens, even if nobody was left to read the answer
  refresh_errors: 0, // refused by the provider itself; an answer made up by `status` is not counted
  grants_revoked: 0,
  reuse_detected: 0, // a rotated refresh token came back
};
const counts = { ...NO_COUNTS };

// The port must be known before the provider is made, for it is in the issuer.
const server = createServer();
await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve); });
const issuer = `http://127.0.0.1:${server.address().port}`;
// Node closes idle connections after 5 s; a client that reuses one just then
// would see a reset that has nothing to do with the test.
server.keepAliveTimeout = 5 * 60 * 1000;

// A plain Map, as the default store forgets its oldest entries after 1000, and
// a forgotten refresh token is answered as unknown rather than as reused.
const store = new Map();

const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });

const provider = new Provider(issuer, {
  adapter: (model) => new MemoryAdapter(model, store),
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'ES256' }] },
  clockTolerance: 0, // by default a token is accepted for 15 s after it expired
  scopes: SCOPES,
  clients: [{
    client_id: 'tokenseal-tests',
    application_type: 'native',
    token_endpoint_auth_method: 'none',
    grant_types: ['urn:ietf:params:oauth:grant-type:device_code', 'refresh_token'],
    response_types: [],
    redirect_uris: [],
    scope: SCOPES.join(' '),
    id_token_signed_response_alg: 'ES256',
  }],
  features: {
    deviceFlow: { enabled: true },
    devInteractions: { enabled: false },
  },
  findAccount: (ctx, sub) => ({ accountId: sub, claims: () => ({ sub }) }),
  issueRefreshToken: () => true, // also where offline_access was not asked for
  rotateRefreshToken: true,
  ttl: {
    AccessToken: () => behaviour.access_token_ttl ?? 3600,
    DeviceCode: 600,
    Grant: 14 * DAY,
    IdToken: 3600,
    RefreshToken: 14 * DAY,
  },
});

provider.on('grant.success', (ctx) => {
  if (ctx.state.isRefresh) counts.refresh_successes += 1;
});
provider.on('grant.error', (ctx) => {
  if (!ctx.state.isRefresh) return;
  counts.refresh_errors += 1;
  // After a rotation this entity is the new token, which is not consumed.
  if (ctx.oidc.entities.RefreshToken?.consumed) counts.reuse_detected += 1;
});
provider.on('grant.revoked', () => { counts.grants_revoked += 1; });
provider.on('server_error', (ctx, err) => { console.error(err); });
// Mostly clients that hung up before the answer, which some tests do on purpose.
provider.silent = true;

// What the confirmation page does when the end-user agrees; see
// code_verification.js and deviceVerificationResponse in the library.
async function approve({ user_code: userCode = '', account = '' }) {
  // Codes are stored without the dash they are shown with.
  const code = await provider.DeviceCode.findByUserCode(userCode.toUpperCase().replace(/\W/g, ''));
  if (!account) return [400, { error: 'no account given' }];
  if (!code) return [404, { error: 'unknown or expired user_code' }];
  if (code.accountId || code.error) return [409, { error: 'user_code was already used' }];

  const scope = (code.params.scope ?? '').split(' ').filter((s) => SCOPES.includes(s)).join(' ');
  const grant = new provider.Grant({ accountId: account, clientId: code.clientId });
  grant.addOIDCScope(scope);
  Object.assign(code, {
    accountId: account,
    authTime: Math.floor(Date.now() / 1000),
    grantId: await grant.save(),
    scope,
  });
  await code.save();
  return [200, { account, scope }];
}

function behave(wanted) {
  const unknown = Object.keys(wanted).filter((key) => !(key in NORMAL));
  if (unknown.length) return [400, { error: `unknown: ${unknown}` }];
  // What is left out goes back to normal, so that {} undoes everything.
  behaviour = { ...NORMAL, ...wanted };
  return [200, behaviour];
}

const routes = {
  'POST /test/approve': approve,
  'GET /test/counts': () => [200, counts],
  'POST /test/reset': () => [200, Object.assign(counts, NO_COUNTS)],
  'POST /test/behaviour': behave,
};

provider.use(async (ctx, next) => {
  const route = routes[`${ctx.method} ${ctx.path}`];
  if (!route) return next();
  const body = await text(ctx.req);
  [ctx.status, ctx.body] = await route(ctx.is('json') ? JSON.parse(body) : parseForm(body));
});

provider.use(async (ctx, next) => {
  if (ctx.method !== 'POST' || ctx.path !== '/token') return next();
  // The library takes a body that has been read already from here, and parses
  // it itself if it is still a string.
  ctx.req.body = await text(ctx.req);
  ctx.state.isRefresh = parseForm(ctx.req.body).grant_type === 'refresh_token';
  if (!ctx.state.isRefresh) return next();

  counts.refresh_requests += 1;
  const { delay_ms: before, delay_after_ms: after, status, retry_after: retryAfter } = behaviour;
  if (before) await sleep(before);
  if (status) {
    ctx.status = status;
    if (retryAfter !== null) ctx.set('Retry-After', `${retryAfter}`);
    ctx.body = { error: 'temporarily_unavailable' };
    return;
  }
  await next();
  // Koa sends the answer only when this returns: by now the old refresh token
  // is spent, and a client that goes away never sees the new one.
  if (after) await sleep(after);
});

server.on('request', provider.callback());
process.stdin.on('end', () => process.exit()).on('error', () => process.exit()).resume();
process.stdout.write(`listening ${issuer}\n`);
