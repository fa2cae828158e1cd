//! HTTP without knowledge of what the calls do: paths, queries, headers, bodies, answers and problems.

pub mod answer;
pub mod body;
pub mod headers;
pub mod json;
pub mod path;
pub mod query;
pub mod refusal;
