//! Which documents of a window travel together: neighbours in the hash space.
//!
//! What a shard is given in one request is one entry of its log. A hundred documents in the order of a file meet nearly as many
//! shards as there are; in the order of their hashes they meet one or two, however the space is cut.

use borough_proto::limits;

use super::lines::Document;

/// Bytes of documents in a request, well below what it may have with its envelope.
const REQUEST_BYTES_MAX: usize = limits::BATCH_BYTES_MAX / 2;

/// The documents in requests of at most `batch`, each of them once.
pub fn split(mut documents: Vec<Document>, batch: usize) -> Vec<Vec<Document>> {
    documents.sort_by_cached_key(|document| borough_proto::key::hash_id(&document.key.id));
    let mut requests: Vec<Vec<Document>> = Vec::new();
    let mut bytes = 0;
    for document in documents {
        let more = document.json.get().len();
        match requests.last_mut().filter(|request| request.len() < batch && bytes + more <= REQUEST_BYTES_MAX)
        {
            Some(request) => {
                bytes += more;
                request.push(document);
            }
            None => {
                bytes = more;
                requests.push(vec![document]);
            }
        }
    }
    requests
}
