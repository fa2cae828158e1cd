//! Compiles the `.proto` files without a system `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["command", "data", "cluster", "raft"].map(|name| format!("proto/borough/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    // Maps are ordered, because the catalog is replicated as bytes (I5). `Bytes` shares a document's bytes
    // from socket to log to follower instead of copying them.
    tonic_prost_build::configure().bytes(".borough.v1").btree_map(".borough.v1").compile_fds(descriptors)?;
    Ok(())
}
