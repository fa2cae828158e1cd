//! What a load is put on: where it listens, how its requests look, and who asks.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use crate::connection::Target;
use crate::mix::{Kind, Mix};
use crate::template::{Description, Fill, Template};

/// A service under load.
#[derive(Debug, Clone)]
pub struct Service {
    /// Never empty.
    targets: Vec<Target>,
    requests: BTreeMap<Kind, Template>,
    /// Marked as sensitive, so that no output shows it.
    authorization: Option<HeaderValue>,
}

impl Service {
    /// Borough's REST API behind the routers `urls`, with documents of `collection`.
    ///
    /// # Errors
    /// When there is no URL, or one is not `http://host:port`.
    pub fn borough(urls: &[impl AsRef<str>], collection: &str) -> Result<Self, String> {
        let path = format!("/v1/{}", utf8_percent_encode(collection, NON_ALPHANUMERIC));
        let content = |name: &str| json!({"Content-Type": name});
        let item = format!("{path}/{{key}}");
        let requests = json!({
            "get": {"method": "GET", "path": item},
            "put": {"method": "PUT", "path": item, "headers": content("application/json"), "body": "{value}"},
            "patch": {"method": "PATCH", "path": item,
                "headers": content("application/merge-patch+json"), "body": "{\"n\":{random}}"},
            "delete": {"method": "DELETE", "path": item},
            "batchGet": {"method": "POST", "path": format!("{path}:batchGet"),
                "headers": content("application/json"), "body": "{\"ids\":[{keys}]}", "expect": "\"status\":200"},
        });
        Self::described(urls, &requests.to_string())
    }

    /// The service behind `urls` whose requests are described in `text`: an object with a [`Description`] by kind.
    ///
    /// # Errors
    /// When there is no URL, one is not `http://host:port`, or the description has a fault, which is named.
    pub fn described(urls: &[impl AsRef<str>], text: &str) -> Result<Self, String> {
        let targets = urls.iter().map(|url| Target::parse(url.as_ref())).collect::<Result<Vec<_>, _>>()?;
        if targets.is_empty() {
            return Err("no URL".to_owned());
        }
        let described: BTreeMap<String, Description> =
            serde_json::from_str(text).map_err(|fault| format!("requests: {fault}"))?;
        let mut requests = BTreeMap::new();
        for (name, description) in &described {
            let kind = name.parse::<Kind>().map_err(|fault| format!("requests: {fault}"))?;
            let template =
                Template::new(description).map_err(|fault| format!("requests: {name}: {fault}"))?;
            requests.insert(kind, template);
        }
        Ok(Self { targets, requests, authorization: None })
    }

    /// Sends `token` with every request.
    ///
    /// # Errors
    /// When it cannot be in a header.
    pub fn with_token(mut self, token: &str) -> Result<Self, String> {
        let value = HeaderValue::try_from(format!("Bearer {token}"));
        let mut value = value.map_err(|_| "the token holds what no header can".to_owned())?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(self)
    }

    /// Whether there is a request for each kind of `mix`, and for what writes the documents first.
    ///
    /// # Errors
    /// Names the first kind without a request.
    pub fn covers(&self, mix: &Mix, preload: bool) -> Result<(), String> {
        let missing = |kind: &Kind| !self.requests.contains_key(kind);
        match Kind::ALL.into_iter().filter(|kind| mix.has(*kind)).find(missing) {
            Some(kind) => Err(format!("the mix has {0}, and no request is described for {0}", kind.name())),
            None if preload && missing(&Kind::Put) => {
                Err("documents are written first, and no request is described for put".to_owned())
            }
            None => Ok(()),
        }
    }

    /// Where connection `number` goes: they take the targets in turn.
    pub fn target(&self, number: usize) -> Option<&Target> {
        self.targets.get(number % self.targets.len().max(1))
    }

    /// How requests of `kind` look, if there are any.
    pub fn template(&self, kind: Kind) -> Option<&Template> {
        self.requests.get(&kind)
    }

    /// A request to `target`.
    ///
    /// # Errors
    /// When the template's path, filled, is no path.
    pub fn request(
        &self,
        template: &Template,
        target: &Target,
        fill: &Fill<'_>,
    ) -> Result<Request<Bytes>, http::Error> {
        let mut request = template.request(fill)?;
        let host = HeaderValue::try_from(target.authority().as_str())?;
        request.headers_mut().insert(header::HOST, host);
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: [&str; 1] = ["http://h:1"];

    #[test]
    fn borough_has_a_request_of_every_kind() {
        let service = Service::borough(&URL, "a/b").unwrap().with_token("s3cret").unwrap();
        let fill = Fill { keys: &[3, 4], value_bytes: 50, random: 1 };
        for (kind, line) in [
            (Kind::Get, "GET /v1/a%2Fb/load-3 "),
            (Kind::Put, "PUT /v1/a%2Fb/load-3 {\"n\":3,"),
            (Kind::Patch, "PATCH /v1/a%2Fb/load-3 {\"n\":1}"),
            (Kind::Delete, "DELETE /v1/a%2Fb/load-3 "),
            (Kind::BatchGet, "POST /v1/a%2Fb:batchGet {\"ids\":[\"load-3\",\"load-4\"]}"),
        ] {
            let target = service.target(5).unwrap();
            let request = service.request(service.template(kind).unwrap(), target, &fill).unwrap();
            let body = String::from_utf8_lossy(request.body()).into_owned();
            assert!(
                format!("{} {} {body}", request.method(), request.uri()).starts_with(line),
                "{request:?}"
            );
            assert_eq!(request.headers()["host"], "h:1");
            assert_eq!(request.headers()["authorization"], "Bearer s3cret");
            assert!(!format!("{request:?} {service:?}").contains("s3cret"));
        }
        assert!(service.covers(&"get=1,batchGet=1,delete=1,patch=1".parse().unwrap(), true).is_ok());
    }

    #[test]
    fn connections_take_the_targets_in_turn() {
        let service = Service::borough(&["http://a:1", "http://b:2"], "c").unwrap();
        let hosts: Vec<_> = (0..4).map(|n| service.target(n).unwrap().authority().host()).collect();
        assert_eq!(hosts, ["a", "b", "a", "b"]);
    }

    #[test]
    fn faults_of_a_description_are_named() {
        let fault = |text: &str| Service::described(&URL, text).unwrap_err();
        assert!(fault("[]").contains("requests: "), "{}", fault("[]"));
        assert!(fault(r#"{"read":{"method":"GET","path":"/"}}"#).contains("none of get"));
        assert!(fault(r#"{"get":{"method":"GET","path":"x"}}"#).contains("requests: get: path"));
        assert!(Service::described(&[""; 0], "{}").is_err());
        assert!(Service::borough(&["ftp://a"], "c").is_err());
        let service = Service::described(&URL, r#"{"get":{"method":"GET","path":"/{key}"}}"#).unwrap();
        assert!(service.covers(&Mix::only(Kind::Get), false).is_ok());
        assert!(service.covers(&Mix::only(Kind::Get), true).unwrap_err().contains("put"));
        assert!(service.covers(&Mix::only(Kind::Patch), false).unwrap_err().contains("patch"));
        assert!(service.with_token("a\nb").is_err());
    }
}
