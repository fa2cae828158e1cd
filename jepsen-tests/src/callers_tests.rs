//! Which calls get through a proxy that cuts them, and where they break.

use std::sync::Mutex;

use super::*;
use crate::http::{Http, is_connect};

/// Answers every whole request with its body, and keeps the bodies.
async fn server(tasks: &TaskTracker) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = listener().unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let (kept, more) = (Arc::clone(&heard), tasks.clone());
    tasks.spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let heard = Arc::clone(&kept);
            more.spawn(async move {
                let mut chunk = vec![0; CHUNK_BYTES];
                while let Ok(count @ 1..) = connection.read(&mut chunk).await {
                    let Ok(Ok(request)) = whole(chunk[..count].to_vec(), &mut connection).await else {
                        return;
                    };
                    let text = String::from_utf8(request).unwrap();
                    let body = text.split_once("\r\n\r\n").unwrap().1.to_owned();
                    heard.lock().unwrap().push(body.clone());
                    let head = "HTTP/1.1 200 OK\r\nx-request-id: 1\r\nborough-shard: 1\r\nborough-node: 1";
                    let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    if connection.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (base, heard)
}

async fn put(http: &Http, number: u32) -> anyhow::Result<String> {
    let answer = http.put("/v1/users/1", &serde_json::json!({ "n": number })).send().await?;
    Ok(String::from_utf8(answer.body)?)
}

#[tokio::test]
async fn what_is_not_cut_passes_and_what_is_cut_is_never_answered() {
    let tasks = TaskTracker::new();
    let (base, heard) = server(&tasks).await;
    let mut callers = Callers::new(7);
    callers.attach(&base).unwrap();
    let http = Http::new(&callers.bases()[0]).unwrap();
    for number in 0..20 {
        assert_eq!(put(&http, number).await.unwrap(), format!("{{\"n\":{number}}}"));
    }
    assert_eq!(callers.cuts(), 0);
    callers.set(3, 1.0);
    for number in 100..200 {
        let error = put(&http, number).await.unwrap_err();
        assert!(!is_connect(&error), "something was sent: {error:#}");
    }
    assert_eq!(callers.cuts(), 100);
    callers.clear(3);
    assert_eq!(put(&http, 20).await.unwrap(), "{\"n\":20}");
    let heard = heard.lock().unwrap();
    let numbers: Vec<u32> = heard
        .iter()
        .map(|body| serde_json::from_str::<serde_json::Value>(body).unwrap()["n"].as_u64().unwrap() as u32)
        .collect();
    let cut = numbers.iter().filter(|number| **number >= 100).count();
    // Of four ways to break, three let the request through; that of a closed connection may come too late.
    assert!((30..=90).contains(&cut), "{cut} of 100 calls that were cut got through");
    assert_eq!(numbers.len() - cut, 21, "each once");
}

#[test]
fn the_seed_decides_what_is_cut() {
    let callers = Callers::new(1);
    callers.set(0, 0.3);
    callers.set(1, 0.5);
    let draws = |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..200).map(|_| callers.shared.draw(&mut rng)).collect::<Vec<_>>()
    };
    assert_eq!(draws(4), draws(4));
    assert_ne!(draws(4), draws(5));
    for cut in CUTS {
        assert!(draws(4).contains(&Some(cut)), "{cut:?}");
    }
    assert!((70..=130).contains(&draws(4).iter().flatten().count()), "the larger share counts");
    callers.heal();
    assert!(draws(4).iter().all(Option::is_none));
}

#[test]
fn a_request_ends_where_its_head_says() {
    assert_eq!(length(b"GET / HTTP/1.1\r\nhost: a\r\n"), Length::Open);
    assert_eq!(length(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"), Length::Known(27));
    assert_eq!(length(b"PUT / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab"), Length::Known(42));
    assert_eq!(length(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), Length::Untold);
    assert_eq!(length(b"PUT / HTTP/1.1\r\nContent-Length: x\r\n\r\n"), Length::Untold);
}
