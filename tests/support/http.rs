//! HTTP as it is on the wire: one request a connection, any header, any body, and answers that are read as they come.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::soon;

/// A request that is being put together.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    to: SocketAddr,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// An answer whose body is still coming, and the request's own, which may go on.
pub(crate) struct Open {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    line: Vec<u8>,
}

impl Request {
    pub(crate) fn new(to: SocketAddr, method: &str, path: &str) -> Self {
        Self { to, method: method.into(), path: path.into(), headers: Vec::new(), body: Vec::new() }
    }

    #[must_use]
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    #[must_use]
    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name))
    }

    fn head(&self, chunked: bool) -> String {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !self.has("host") {
            head += &format!("Host: {}\r\n", self.to);
        }
        if chunked {
            head += "Transfer-Encoding: chunked\r\n";
        } else if !self.has("content-length") {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head + "Connection: close\r\n\r\n"
    }

    /// Sends it and reads the whole answer.
    pub(crate) async fn send(self) -> Reply {
        let head = self.head(false);
        let Open { status, headers, mut reader, mut writer, .. } = {
            let (reader, mut writer) = connect(self.to).await;
            writer.write_all(head.as_bytes()).await.expect("the head is taken");
            // A server that has heard enough may stop listening; what it said is what counts.
            let body = self.body;
            let writing = async {
                writer.write_all(&body).await.ok();
                writer
            };
            let (answer, writer) = soon("an answer", async { tokio::join!(read_head(reader), writing) }).await;
            let (status, headers, reader) = answer;
            Open { status, headers, reader, writer, line: Vec::new() }
        };
        let mut body = Vec::new();
        soon("the end of an answer", reader.read_to_end(&mut body)).await.expect("an answer to its end");
        writer.shutdown().await.ok();
        if header(&headers, "transfer-encoding") == Some("chunked") {
            body = unchunk(&body);
        }
        Reply { status, headers, body }
    }

    /// Sends the head and `body` as a first chunk, and leaves the body open; a GET has none.
    pub(crate) async fn open(self) -> Open {
        let head = self.head(self.method != "GET");
        let (reader, mut writer) = connect(self.to).await;
        writer.write_all(head.as_bytes()).await.expect("the head is taken");
        write_chunk(&mut writer, &self.body).await;
        let (status, headers, reader) = soon("an answer's head", read_head(reader)).await;
        Open { status, headers, reader, writer, line: Vec::new() }
    }
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Each line of the body.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

impl Open {
    /// Sends more of the body.
    pub(crate) async fn push(&mut self, bytes: &[u8]) {
        write_chunk(&mut self.writer, bytes).await;
    }

    /// Ends the body.
    pub(crate) async fn finish(&mut self) {
        self.writer.write_all(b"0\r\n\r\n").await.expect("the end is taken");
    }

    /// The next line of the answer; `None` at its end.
    pub(crate) async fn line(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("a line of JSON"));
            }
            let mut size = String::new();
            soon("more of an answer", self.reader.read_line(&mut size)).await.expect("a chunk");
            let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
            if size == 0 {
                assert!(self.line.is_empty(), "an answer that ends within a line");
                return None;
            }
            let mut chunk = vec![0; size + 2];
            soon("a chunk", self.reader.read_exact(&mut chunk)).await.expect("a whole chunk");
            self.line.extend_from_slice(&chunk[..size]);
        }
    }
}

async fn connect(to: SocketAddr) -> (BufReader<OwnedReadHalf>, OwnedWriteHalf) {
    let (reader, writer) = soon("a connection", TcpStream::connect(to)).await.expect("a connection").into_split();
    (BufReader::new(reader), writer)
}

async fn write_chunk(writer: &mut OwnedWriteHalf, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    writer.write_all(&chunk).await.expect("a chunk is taken");
}

async fn read_head(mut reader: BufReader<OwnedReadHalf>) -> (u16, Vec<(String, String)>, BufReader<OwnedReadHalf>) {
    let mut line = String::new();
    reader.read_line(&mut line).await.expect("a status line");
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("{line:?} is no status line"));
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).await.expect("a header");
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => return (status, headers, reader),
        }
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n").expect("the size of a chunk");
        let size = std::str::from_utf8(&rest[..end]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let size = size.expect("the size of a chunk");
        if size == 0 {
            return body;
        }
        let start = end + 2;
        body.extend_from_slice(&rest[start..start + size]);
        rest = &rest[start + size + 2..];
    }
}
