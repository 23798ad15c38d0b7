//! One SMTP session: connect, TLS, sign in, one mail, goodbye. The protocol is lettre's; its own TLS and
//! sign-in are not used, because its TLS knows no pin, and its XOAUTH2 throws away the challenge in which a
//! server says why it refused a token.
//!
//! With STARTTLS nothing that was read in clear is believed after it (RFC 3207 §6): greeting and extensions
//! of the plain part are dropped, and it is read byte by byte, so that nothing of it can hide in a buffer.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lettre::transport::smtp;
use lettre::transport::smtp::authentication::Mechanism;
use lettre::transport::smtp::client::{AsyncSmtpConnection, AsyncTokioStream};
use lettre::transport::smtp::commands::{Data, Mail as MailFrom, Rcpt};
use lettre::transport::smtp::extension::{Extension, MailParameter};
use lettre::transport::smtp::response::Response;
use septet_engine::host::{OperationContext, OperationError};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::compose::Mail;
use super::{GOODBYE, Plan, Security};
use crate::http_client::Secrets;
use crate::stream_tls::Tls;

/// Who signs in, and how.
pub(super) enum SignIn<'a> {
    None,
    Plain { user: &'a str, password: &'a str },
    Login { user: &'a str, password: &'a str },
    Xoauth2 { user: &'a str, token: &'a str },
}

/// Why a mail was not taken.
pub(super) enum Failure {
    /// The server said no.
    Refused(Refused),
    /// There was no usable answer.
    Broken(OperationError),
}

/// A server's no.
pub(super) struct Refused {
    pub(super) code: u16,
    /// The enhanced status code (RFC 3463), as in `5.7.139`.
    pub(super) status: Option<String>,
    /// What it answered to, for texts.
    pub(super) step: &'static str,
    /// Its own words, with the challenge of a refused token decoded.
    pub(super) words: String,
}

impl Failure {
    /// A server that repeats what it was sent puts no secret into the trace (P9).
    fn without(mut self, sign_in: &SignIn<'_>) -> Self {
        let secret = match sign_in {
            SignIn::None => return self,
            SignIn::Plain { password, .. } | SignIn::Login { password, .. } => password,
            SignIn::Xoauth2 { token, .. } => token,
        };
        if let Failure::Refused(refused) = &mut self {
            let mut secrets = Secrets::default();
            secrets.add(secret);
            let words = secrets.scrub(std::mem::take(&mut refused.words).into());
            refused.words = String::from_utf8_lossy(&words).into_owned();
        }
        self
    }
}

impl From<OperationError> for Failure {
    fn from(error: OperationError) -> Self {
        Failure::Broken(error)
    }
}

/// Sends one mail; gives what the server said when it took it.
pub(super) async fn send(
    plan: &Plan,
    tls: Option<&mut Tls>,
    sign_in: &SignIn<'_>,
    mail: &Mail,
    cx: &OperationContext,
) -> Result<String, Failure> {
    let wire = connect(plan, tls).await?;
    let greeted = AsyncSmtpConnection::connect_with_transport(Box::new(wire), &plan.hello).await;
    let mut connection = greeted.map_err(|error| failure(error, "the connection", plan))?;
    let sent = exchange(&mut connection, plan, sign_in, mail).await;
    // The mail is taken or refused by now: the goodbye is a courtesy that changes nothing.
    tokio::select! {
        _ = connection.quit() => {}
        () = cx.runtime.clock.sleep(GOODBYE) => {}
    }
    sent.map_err(|failure| failure.without(sign_in))
}

async fn exchange(
    connection: &mut AsyncSmtpConnection,
    plan: &Plan,
    sign_in: &SignIn<'_>,
    mail: &Mail,
) -> Result<String, Failure> {
    authenticate(connection, plan, sign_in).await?;
    let mut parameters = Vec::new();
    let addresses = mail.envelope.to().iter().chain(mail.envelope.from());
    if !addresses.into_iter().all(|address| AsRef::<str>::as_ref(address).is_ascii()) {
        if !connection.server_info().supports_feature(Extension::SmtpUtfEight) {
            let text = format!("{} takes only addresses in ASCII", plan.connect);
            return Err(OperationError::message("address", text).into());
        }
        parameters.push(MailParameter::SmtpUtfEight);
    }
    let from = MailFrom::new(mail.envelope.from().cloned(), parameters);
    command(connection, from, "MAIL FROM", plan).await?;
    for to in mail.envelope.to() {
        command(connection, Rcpt::new(to.clone(), Vec::new()), "RCPT TO", plan).await?;
    }
    command(connection, Data, "DATA", plan).await?;
    let taken = connection.message(&mail.bytes).await.map_err(|error| failure(error, "the mail", plan))?;
    Ok(taken.message().collect::<Vec<_>>().join(" "))
}

async fn command(
    connection: &mut AsyncSmtpConnection,
    command: impl std::fmt::Display,
    step: &'static str,
    plan: &Plan,
) -> Result<Response, Failure> {
    connection.command(command).await.map_err(|error| failure(error, step, plan))
}

// === Signing in ===

async fn authenticate(
    connection: &mut AsyncSmtpConnection,
    plan: &Plan,
    sign_in: &SignIn<'_>,
) -> Result<(), Failure> {
    let offered = |mechanism: Mechanism| match connection.server_info().supports_auth_mechanism(mechanism) {
        true => Ok(()),
        false => {
            let text = format!("{} offers no sign-in with {mechanism}, so nothing was sent", plan.connect);
            Err(OperationError::fault("auth", text))
        }
    };
    match sign_in {
        SignIn::None => {}
        SignIn::Plain { .. } => offered(Mechanism::Plain)?,
        SignIn::Login { .. } => offered(Mechanism::Login)?,
        SignIn::Xoauth2 { .. } => offered(Mechanism::Xoauth2)?,
    }
    let line = |text: &str| Zeroizing::new(format!("{text}\r\n"));
    let encoded = |text: &str| Zeroizing::new(STANDARD.encode(text));
    match sign_in {
        SignIn::None => {}
        SignIn::Plain { user, password } => {
            let initial = encoded(&Zeroizing::new(format!("\0{user}\0{password}")));
            say(connection, &line(&format!("AUTH PLAIN {}", initial.as_str())), plan).await?;
        }
        SignIn::Login { user, password } => {
            say(connection, &line("AUTH LOGIN"), plan).await?;
            say(connection, &line(&encoded(user)), plan).await?;
            say(connection, &line(&encoded(password)), plan).await?;
        }
        SignIn::Xoauth2 { user, token } => {
            let initial = Zeroizing::new(format!("user={user}\x01auth=Bearer {token}\x01\x01"));
            let first = line(&format!("AUTH XOAUTH2 {}", encoded(&initial).as_str()));
            let answer = say(connection, &first, plan).await?;
            if answer.has_code(334) {
                return Err(explain(connection, &answer, plan).await);
            }
        }
    }
    Ok(())
}

/// The server refused the token and says why in a challenge; an empty answer makes it say its code.
async fn explain(connection: &mut AsyncSmtpConnection, challenge: &Response, plan: &Plan) -> Failure {
    let text: String = challenge.message().collect();
    let decoded = STANDARD.decode(text.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let reason = decoded.unwrap_or(text);
    match say(connection, "\r\n", plan).await {
        Err(Failure::Refused(mut refused)) => {
            refused.words = format!("{reason}\n{}", refused.words);
            Failure::Refused(refused)
        }
        Err(broken) => broken,
        Ok(_) => {
            let error = OperationError::fault("reply", format!("{} took up no answer to AUTH", plan.connect));
            Failure::Broken(error)
        }
    }
}

async fn say(connection: &mut AsyncSmtpConnection, line: &str, plan: &Plan) -> Result<Response, Failure> {
    command(connection, line, "AUTH", plan).await
}

// === Failures ===

fn failure(error: smtp::Error, step: &'static str, plan: &Plan) -> Failure {
    let words = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    let Some(code) = error.status() else {
        let peer = &plan.connect;
        let (code, text) = if error.is_response() {
            ("reply", format!("{peer} answered {step} with something that is not SMTP, or not at all"))
        } else {
            ("closed", format!("the connection with {peer} broke off at {step}"))
        };
        return Failure::Broken(OperationError::fault(code, text));
    };
    let status = words.split([' ', '-']).next().filter(|text| is_status(text)).map(str::to_owned);
    Failure::Refused(Refused { code: code.into(), status, step, words })
}

/// `5.7.139`: digits and nothing that could be somebody's data.
fn is_status(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let digits = |part: &&str| (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    parts.len() == 3 && parts.iter().all(digits)
}

// === The wire ===

async fn connect(plan: &Plan, tls: Option<&mut Tls>) -> Result<Wire, Failure> {
    let peer = &plan.connect;
    let fault = |error: io::Error| match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            OperationError::fault("connect", format!("{peer} refused the connection"))
        }
        kind => OperationError::fault("connect", format!("no connection to {peer}: {kind}")),
    };
    let mut stream = TcpStream::connect((peer.host.as_str(), peer.port)).await.map_err(fault)?;
    stream.set_nodelay(true).map_err(fault)?;
    let address = stream.peer_addr().map_err(fault)?;
    let Some(tls) = tls else {
        return Ok(Wire { stream: Box::new(stream), address, before: b"" });
    };
    if plan.security == Security::Starttls {
        start_tls(&mut stream, plan).await?;
    }
    let stream = tls.connect(peer, stream).await?;
    // lettre waits for a greeting, which after STARTTLS does not come again.
    let before: &[u8] = if plan.security == Security::Starttls { b"220 ready\r\n" } else { b"" };
    Ok(Wire { stream: Box::new(stream), address, before })
}

/// The plain part of a session that begins with STARTTLS.
async fn start_tls(stream: &mut TcpStream, plan: &Plan) -> Result<(), Failure> {
    answer(stream, 220, "the connection", plan).await?;
    write(stream, &format!("EHLO {}\r\n", plan.hello), plan).await?;
    let extensions = answer(stream, 250, "EHLO", plan).await?;
    if !extensions.lines().any(|line| line.trim().eq_ignore_ascii_case("STARTTLS")) {
        let text = format!("{} offers no STARTTLS, so nothing was sent", plan.connect);
        return Err(OperationError::fault("starttls", text).into());
    }
    write(stream, "STARTTLS\r\n", plan).await?;
    answer(stream, 220, "STARTTLS", plan).await.map(drop)
}

async fn write(stream: &mut TcpStream, line: &str, plan: &Plan) -> Result<(), Failure> {
    stream.write_all(line.as_bytes()).await.map_err(|_| broke_off(plan))
}

/// The lines of the next reply, without their codes.
async fn answer(
    stream: &mut TcpStream,
    wanted: u16,
    step: &'static str,
    plan: &Plan,
) -> Result<String, Failure> {
    const LONGEST: usize = 64 << 10;
    let (mut words, mut line, mut read) = (String::new(), Vec::new(), 0);
    loop {
        let byte = stream.read_u8().await.map_err(|_| broke_off(plan))?;
        read += 1;
        if byte != b'\n' && read < LONGEST {
            line.push(byte);
            continue;
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        let code = text.get(..3).and_then(|code| code.parse::<u16>().ok());
        let (Some(code), true) = (code, read < LONGEST) else {
            let text = format!("{} answered {step} with something that is not SMTP", plan.connect);
            return Err(OperationError::fault("reply", text).into());
        };
        words.push_str(text.get(4..).unwrap_or_default());
        if text.as_bytes().get(3) == Some(&b'-') {
            words.push('\n');
            continue;
        }
        if code == wanted {
            return Ok(words);
        }
        let status = words.split(' ').next().filter(|text| is_status(text)).map(str::to_owned);
        return Err(Failure::Refused(Refused { code, status, step, words }));
    }
}

fn broke_off(plan: &Plan) -> Failure {
    OperationError::fault("closed", format!("the connection with {} broke off", plan.connect)).into()
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

/// TCP, or TLS over it.
struct Wire {
    stream: Box<dyn Stream>,
    address: SocketAddr,
    /// Read before anything from the stream.
    before: &'static [u8],
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wire({})", self.address)
    }
}

impl AsyncTokioStream for Wire {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.before.split_at(self.before.len().min(into.remaining()));
        if !now.is_empty() {
            into.put_slice(now);
            self.before = later;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
