//! One HTTP/1.1 connection to a server that is kept open, and opened again after a failure.

use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Pause after a connection could not be opened, so that a dead server is not hammered.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// Why a request got no answer; the text is a kind, the same for all such failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Connect,
    Broken,
    TimedOut,
}

impl Failure {
    /// For reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connection refused",
            Self::Broken => "connection broken",
            Self::TimedOut => "timed out",
        }
    }
}

/// Where a server listens.
#[derive(Debug, Clone)]
pub struct Target {
    authority: Authority,
}

impl Target {
    /// Parses `http://host:port`.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("{url:?}: {error}"))?;
        let authority = uri.authority().ok_or(format!("{url:?} names no host"))?;
        if uri.scheme_str() != Some("http") || uri.path() != "/" {
            return Err(format!("{url:?} is not http://host:port"));
        }
        Ok(Self { authority: authority.clone() })
    }

    /// For the `Host` header.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    /// Empty when nobody wants it.
    pub body: Vec<u8>,
}

impl Answer {
    /// Whether the body holds `text` at least `times` times.
    pub fn holds(&self, text: &str, times: usize) -> bool {
        String::from_utf8_lossy(&self.body).matches(text).count() >= times
    }
}

/// A connection with at most one request under way.
#[derive(Debug)]
pub struct Connection {
    target: Target,
    sender: Option<SendRequest<Full<Bytes>>>,
    /// Moves the bytes of the connection above; ended with it.
    driver: JoinSet<()>,
}

impl Connection {
    /// Where it goes.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Opened by the first request.
    pub fn new(target: Target) -> Self {
        Self { target, sender: None, driver: JoinSet::new() }
    }

    /// Sends `request` and reads the whole answer, within `timeout`; keeps its body if it is `wanted`.
    ///
    /// # Errors
    /// [`Failure`]; whether the server acted on the request is then unknown.
    pub async fn send(
        &mut self,
        request: Request<Bytes>,
        wanted: bool,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        let request = request.map(Full::new);
        let answer = timeout_at(Instant::now() + timeout, self.exchange(request, wanted)).await;
        let answer = answer.unwrap_or(Err(Failure::TimedOut));
        if answer.is_err() {
            self.sender = None;
            self.driver.abort_all();
        }
        answer
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>, wanted: bool) -> Result<Answer, Failure> {
        let mut sender = match self.sender.take() {
            Some(sender) if !sender.is_closed() => sender,
            Some(_) | None => self.open().await?,
        };
        sender.ready().await.map_err(|_| Failure::Broken)?;
        let answer = sender.send_request(request).await.map_err(|_| Failure::Broken)?;
        let status = answer.status();
        let mut frames = answer.into_body();
        let mut body = Vec::new();
        while let Some(frame) = frames.frame().await {
            let frame = frame.map_err(|_| Failure::Broken)?;
            if let Some(data) = frame.data_ref().filter(|_| wanted) {
                body.extend_from_slice(data);
            }
        }
        self.sender = Some(sender);
        Ok(Answer { status, body })
    }

    async fn open(&mut self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        while self.driver.try_join_next().is_some() {}
        let stream = match TcpStream::connect(self.target.authority.as_str()).await {
            Ok(stream) => stream,
            Err(_) => {
                tokio::time::sleep(REFUSED_PAUSE).await;
                return Err(Failure::Connect);
            }
        };
        stream.set_nodelay(true).map_err(|_| Failure::Connect)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Broken)?;
        self.driver.spawn(async move {
            // Its failure is told to the request under way.
            connection.await.unwrap_or_default();
        });
        Ok(sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_urls_of_a_host_are_taken() {
        assert_eq!(Target::parse("http://localhost:8080").unwrap().authority().as_str(), "localhost:8080");
        assert!(Target::parse("http://[::1]:80/").is_ok());
        for url in ["localhost", "https://a:1", "http://a:1/v1", "", "/v1"] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }
}
