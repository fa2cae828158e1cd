//! Requests as text: a line with method and target, lines of headers, an empty line, the body. A line `no-host` leaves out
//! the host that is named otherwise.

use axum::body::Body;
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

/// A request as it can be sent.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// The parts of `bytes` between which `mark` stands.
pub fn split<'a>(bytes: &'a [u8], mark: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let (first, behind) = cut(rest?, mark);
        rest = behind;
        Some(first)
    })
}

fn cut<'a>(bytes: &'a [u8], mark: &[u8]) -> (&'a [u8], Option<&'a [u8]>) {
    match bytes.windows(mark.len()).position(|window| window == mark) {
        Some(at) => {
            let (first, behind) = bytes.split_at(at);
            (first, behind.get(mark.len()..))
        }
        None => (bytes, None),
    }
}

impl Request {
    /// `None` for what no HTTP library would hand on.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (head, body) = cut(text, b"\n\n");
        let mut lines = split(head, b"\n");
        let (method, target) = cut(lines.next()?, b" ");
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("fuzz"));
        for line in lines {
            match cut(line, b": ") {
                (b"no-host", None) => drop(headers.remove(HOST)),
                (name, Some(value)) => {
                    headers.append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
                }
                (_, None) => return None,
            }
        }
        Some(Self {
            method: Method::from_bytes(method).ok()?,
            uri: Uri::try_from(target?).ok()?,
            headers,
            body: Bytes::copy_from_slice(body.unwrap_or_default()),
        })
    }

    pub fn get(path: &str) -> Self {
        let uri = path.parse().unwrap_or_else(|error| panic!("{path} is escaped and yet no path: {error}"));
        let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("fuzz"))]);
        Self { method: Method::GET, uri, headers, body: Bytes::new() }
    }

    #[must_use]
    pub fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.insert(name, HeaderValue::from_static(value));
        self
    }

    pub fn build(&self) -> http::Request<Body> {
        let mut request = http::Request::new(Body::from(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}
