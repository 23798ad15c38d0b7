"""A mail server (aiosmtpd) that wants a token (XOAUTH2), beside a token endpoint in the manner of Microsoft 365.

python3 mail.py starttls|tls CERT KEY

SMTP takes mails from whoever signs in with a token of now (XOAUTH2) or with septet / correct-horse (PLAIN, LOGIN).
Recipients that begin with "nobody" do not exist, and "busy" ones are refused twice. Over HTTP:
POST /TENANT/oauth2/v2.0/token; POST /revoke (no token given out until now is taken any more);
GET /mails (what was taken); GET /signins (every XOAUTH2 that was tried, with its verdict).
"""
import asyncio
import base64
import json
import logging
import ssl
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

from aiosmtpd.smtp import MISSING, SMTP, AuthResult

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
mode, cert, key = sys.argv[1:4]
state = {"generation": 1, "fetched": 0, "mails": [], "signins": [], "busy": 0}


class Tokens(BaseHTTPRequestHandler):
    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, state[self.path.strip("/")])

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        if self.path == "/revoke":
            state["generation"] += 1
            return self.answer(200, {})
        form = {name: values[0] for name, values in parse_qs(body).items()}
        expected = {"grant_type": "client_credentials", "client_id": "septet", "client_secret": "app-secret",
                    "scope": "https://outlook.office365.com/.default"}
        if self.path != "/contoso/oauth2/v2.0/token" or form != expected:
            return self.answer(400, {"error": "invalid_client", "error_description": "AADSTS7000215: " + str(form)})
        state["fetched"] += 1
        token = f"mail-token-{state['generation']}-{state['fetched']}"
        self.answer(200, {"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": token})

    def log_message(self, *_):
        pass


class Handler:
    async def auth_XOAUTH2(self, server, args):
        said = base64.b64decode(args[1]).decode() if len(args) > 1 else ""
        parts = said.split("\x01")
        right = len(parts) == 4 and parts[2:] == ["", ""]
        user, token = (parts[0].removeprefix("user="), parts[1].removeprefix("auth=Bearer ")) if right else ("", "")
        known = right and token.startswith(f"mail-token-{state['generation']}-") and user == "septet@example.org"
        state["signins"].append({"user": user, "right": right, "known": known})
        if known:
            return AuthResult(success=True, auth_data=user)
        challenge = json.dumps({"status": "401", "schemes": "bearer", "scope": "https://outlook.office365.com/"})
        if await server.challenge_auth(challenge.encode()) is MISSING:
            return AuthResult(success=False)
        return AuthResult(success=False, handled=False)

    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        if address.startswith("nobody"):
            return "550 5.1.1 No Jane Doe at this address"
        if address.startswith("busy") and state["busy"] < 2:
            state["busy"] += 1
            return "451 4.7.1 Greylisted"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        state["mails"].append({
            "from": envelope.mail_from, "to": envelope.rcpt_tos, "user": str(session.auth_data),
            "tls": mode == "tls" or session.ssl is not None,
            "data": base64.b64encode(envelope.original_content).decode(),
        })
        return f"250 2.0.0 queued as M{len(state['mails'])}"


def password(server, session, envelope, mechanism, auth_data):
    right = auth_data.login == b"septet" and auth_data.password == b"correct-horse"
    return AuthResult(success=right, handled=False)


tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
tls.load_cert_chain(cert, key)
more = {"tls_context": tls, "require_starttls": True} if mode == "starttls" else {"auth_require_tls": False}


async def main():
    loop = asyncio.get_running_loop()
    factory = lambda: SMTP(Handler(), authenticator=password, auth_required=True, **more)
    server = await loop.create_server(factory, "127.0.0.1", 0, ssl=tls if mode == "tls" else None)
    tokens = ThreadingHTTPServer(("127.0.0.1", 0), Tokens)
    threading.Thread(target=tokens.serve_forever, daemon=True).start()
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"port": port, "http": tokens.server_address[1]}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


asyncio.run(main())
