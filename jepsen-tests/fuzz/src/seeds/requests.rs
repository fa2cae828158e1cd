//! Requests as callers send them: one of each call, with what can be said in it.

use super::Seed;

const TEXTS: &[(&str, &str)] = &[
    (
        "document",
        "PUT /v1/users/a%2Fb?ttl=60s\ncontent-type: application/json\nif-none-match: *\n\n{\"name\":\"Ada\",\"langs\":[\"en\"]}\
         \n~~~\nGET /v1/users/a%2Fb?view=stored\nif-none-match: \"10000\"\ncache-control: max-stale=5\
         \n~~~\nPATCH /v1/users/a%2Fb\ncontent-type: application/merge-patch+json\n\n{\"city\":\"London\",\"name\":null}\
         \n~~~\nHEAD /v1/users/a%2Fb\nborough-session: AQABAQI\
         \n~~~\nDELETE /v1/users/a%2Fb\nif-match: \"20000\", W/\"3\"",
    ),
    (
        "items",
        "PUT /v1/posts/7/2026-01-01\n\n{\"title\":\"first\"}\
         \n~~~\nPUT /v1/posts/7/%00%E2%82%AC\n\n{\"id\":7,\"sort\":\"x\"}\
         \n~~~\nGET /v1/posts/7?reverse=true&pageSize=1&start=a&end=z%20\
         \n~~~\nGET /v1/posts?pageSize=1&keys=true",
    ),
    (
        "retried",
        "POST /v1/users\nidempotency-key: signup-1\n\n{\"name\":\"Bob\"}\
         \n~~~\nPOST /v1/users\nidempotency-key: signup-1\n\n{\"name\":\"Bob\"}\
         \n~~~\nPUT /v1/users/1\nidempotency-key: k\n\n{}\n~~~\nPUT /v1/users/1\nidempotency-key: k\n\n{\"a\":1}",
    ),
    (
        "shards",
        "PUT /v1/users/1\nborough-timeout-ms: 60000\n\n{}\n~~~\nPUT /v1/users/2\nborough-timeout-ms: 60000\n\n{}\
         \n~~~\nPUT /v1/users/1\nborough-timeout-ms: 60000\n\n{\"a\":1}",
    ),
    (
        "batch-write",
        "POST /v1/users:batchWrite\nidempotency-key: b\n\n{\"writes\":[{\"put\":{\"id\":\"a\",\"document\":{\"n\":1},\"ifAbsent\":true,\"ttl\":\"5s\"}},\
         {\"patch\":{\"id\":\"a\",\"patch\":{\"n\":2},\"ifMatch\":\"\\\"10000\\\"\"}},{\"delete\":{\"id\":\"b\"}}]}",
    ),
    (
        "batch-get",
        "PUT /v1/users/a\n\n{}\n~~~\nPOST /v1/users:batchGet\n\n{\"ids\":[\"a\",\"b\"]}\
         \n~~~\nPOST /v1/posts:batchGet\n\n{\"ids\":[{\"id\":\"a\",\"sort\":\"s\"}]}",
    ),
    (
        "transact",
        "POST /v1/partitions/7:transact\nidempotency-key: t\n\n{\"ops\":[{\"collection\":\"users\",\"put\":{\"posts\":3}},\
         {\"collection\":\"posts\",\"sort\":\"s\",\"put\":{},\"ifAbsent\":true},{\"collection\":\"users\",\"check\":true,\"ifMatch\":\"*\"},\
         {\"collection\":\"posts\",\"sort\":\"t\",\"delete\":true}]}",
    ),
    (
        "strict",
        "PUT /v1/strict/a\n\n{}\n~~~\nPUT /v1/strict/a\nif-none-match: *\n\n{}\n~~~\nPUT /v1/short/a\n\n{\"id\":\"a\"}",
    ),
    (
        "admin",
        "PUT /admin/v1/collections/notes\n\n{\"sortKey\":true,\"defaultTtl\":\"60s\"}\n~~~\nGET /admin/v1/collections\
         \n~~~\nDELETE /admin/v1/collections/users\n~~~\nGET /admin/v1/collections/users\n~~~\nGET /admin/v1/cluster",
    ),
    (
        "operations",
        "POST /admin/v1/rebalances?validateOnly=true\n~~~\nGET /admin/v1/operations\n~~~\nGET /admin/v1/operations/9\
         \n~~~\nPOST /admin/v1/operations/7:pause\n~~~\nPOST /admin/v1/nodes/1:drain\n~~~\nPOST /admin/v1/nodes/1:undrain",
    ),
    (
        "pages",
        "GET /livez\n~~~\nGET /readyz\n~~~\nGET /metrics\n~~~\nGET /openapi.json\n~~~\nGET /docs/\n~~~\nOPTIONS /v1/users",
    ),
    (
        "refused",
        "GET /v1/users/%ff\n~~~\nGET /v1/users/a:b\n~~~\nPUT /v1/users/a\n\n[1]\n~~~\nGET /v1/users?pageToken=AQAA\
         \n~~~\nPUT /v1/users/a\ncontent-type: text/plain\n\n{}\n~~~\nGET /v1/users\nno-host",
    ),
    (
        "numbers",
        "PUT /v1/users/1\n\n{\"id\":1,\"n\":1e400,\"m\":-0.0,\"k\":18446744073709551616}\n~~~\nPATCH /v1/users/1\n\n{\"n\":{\"a\":null}}\
         \n~~~\nGET /v1/users/1\nborough-timeout-ms: 60000\n~~~\nGET /v1/nosuch/1\nborough-timeout-ms: 1",
    ),
];

pub fn seeds() -> Vec<Seed> {
    TEXTS.iter().map(|&(name, text)| (name, text.as_bytes().to_vec())).collect()
}
