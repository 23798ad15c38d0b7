//! An MLLP client and receiver that share no code with the product.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

/// A 1 KiB-ish ORU^R01 with its own control id, accession and MRN.
pub(crate) fn oru(control_id: &str, accession: &str, mrn: &str) -> String {
    [
        &format!("MSH|^~\\&|LIS|LAB|EHR|HOSP|20260301081530||ORU^R01^ORU_R01|{control_id}|P|2.5.1"),
        &format!("PID|1||{mrn}^^^HOSP^MR||Testpatient^Tess||19700105|F"),
        "PV1|1|O|LAB",
        &format!("ORC|RE|ORD-1|{accession}||CM"),
        &format!("OBR|1|ORD-1|{accession}|24323-8^Panel^LN|||20260301074500"),
        "OBX|1|NM|2345-7^Glucose^LN||98|mg/dL|70-99|N|||F",
        "OBX|2|NM|2160-0^Creatinine^LN||0.9|mg/dL|0.6-1.1|N|||F",
        "",
    ]
    .join("\r")
}

/// One connection that sends a frame and reads the next one.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(port: u16) -> Self {
        Client::try_connect(port).await.expect("the service listens")
    }

    pub(crate) async fn try_connect(port: u16) -> Option<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        Some(Client { stream, buffer: Vec::new() })
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    pub(crate) fn frame(message: &[u8]) -> Vec<u8> {
        [b"\x0b", message, b"\x1c\x0d"].concat()
    }

    /// The body of the next frame, `None` at the end of the connection.
    pub(crate) async fn read(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\x1c\x0d") {
                let frame: Vec<u8> = self.buffer.drain(..end + 2).collect();
                assert_eq!(frame.first(), Some(&0x0b), "a frame begins with VT");
                return Some(String::from_utf8_lossy(&frame[1..end]).into_owned());
            }
            let mut chunk = [0; 8192];
            let read = tokio::time::timeout(super::PATIENCE, self.stream.read(&mut chunk)).await;
            match read.expect("an answer in time") {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
            }
        }
    }

    pub(crate) async fn send(&mut self, message: &str) -> String {
        self.write(&Client::frame(message.as_bytes())).await.expect("the service reads");
        self.read().await.expect("the service answers")
    }
}

/// `MSA-1` and `MSA-2` of an acknowledgement.
pub(crate) fn msa(ack: &str) -> (String, String) {
    let segment = ack.split(['\r', '\n']).find(|line| line.starts_with("MSA")).expect("an MSA segment");
    let fields: Vec<_> = segment.split('|').collect();
    (fields.get(1).copied().unwrap_or("").to_owned(), fields.get(2).copied().unwrap_or("").to_owned())
}

/// Counts a connection as open.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A receiver that keeps every body it gets and answers AA.
#[derive(Clone, Default)]
pub(crate) struct Receiver {
    port: u16,
    pub(crate) bodies: Arc<Mutex<Vec<String>>>,
    /// How many bodies had come when each life of the sender ended.
    ends: Arc<Mutex<Vec<usize>>>,
    /// Connections that are open.
    open: Arc<AtomicUsize>,
}

impl Receiver {
    pub(crate) async fn listen(port: u16) -> Self {
        let receiver = Receiver { port, ..Receiver::default() };
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port is free");
        let (bodies, open) = (receiver.bodies.clone(), receiver.open.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (bodies, open) = (bodies.clone(), open.clone());
                open.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let _open = Open(open);
                    let mut client = Client { stream, buffer: Vec::new() };
                    while let Some(body) = client.read().await {
                        if body.is_empty() {
                            let _ = client.write(&Client::frame(b"")).await;
                            continue;
                        }
                        let id = body.split('|').nth(9).unwrap_or("").to_owned();
                        bodies.lock().await.push(body);
                        let ack =
                            format!("MSH|^~\\&|EHR|HOSP|LIS|LAB|20260301||ACK|X{id}|P|2.5.1\rMSA|AA|{id}\r");
                        if client.write(&Client::frame(ack.as_bytes())).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        receiver
    }

    /// The sender was killed: takes in what it had still sent.
    pub(crate) async fn next_life(&self) {
        // Connections are accepted in their order: once this one is answered, all of the sender's are counted.
        let mut last = Client::connect(self.port).await;
        assert_eq!(last.send("").await, "", "an empty frame for an empty frame");
        drop(last);
        while self.open.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.ends.lock().await.push(self.bodies.lock().await.len());
    }

    /// The control ids that came in each life of the sender, up to now.
    pub(crate) async fn lives(&self) -> Vec<Vec<String>> {
        let bodies = self.bodies.lock().await;
        let ids: Vec<String> =
            bodies.iter().map(|body| body.split('|').nth(9).unwrap_or("").to_owned()).collect();
        let mut start = 0;
        let ends = self.ends.lock().await.clone().into_iter().chain([ids.len()]);
        ends.map(|end| ids[std::mem::replace(&mut start, end)..end].to_vec()).collect()
    }

    pub(crate) async fn until(&self, count: usize) -> Vec<String> {
        let deadline = std::time::Instant::now() + super::PATIENCE;
        loop {
            let bodies = self.bodies.lock().await.clone();
            if bodies.len() >= count {
                return bodies;
            }
            assert!(std::time::Instant::now() < deadline, "{} of {count} messages came", bodies.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
