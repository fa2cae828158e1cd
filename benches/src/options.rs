//! What to send, how much of it and for how long: the options that every front-end of the load shares.

use clap::Args;
use clap::builder::RangedU64ValueParser;

use crate::mix::{Kind, Mix};

/// Longest run, in seconds.
const SECONDS_MAX: f64 = 86_400.0;
/// Requests a second; a schedule finer than a tenth of a microsecond means nothing.
const RATE_MAX: f64 = 10_000_000.0;
/// Above it, nearly all requests are for one key.
const ZIPF_MAX: f64 = 10.0;
const CONNECTIONS_MAX: u64 = 10_000;
/// What Borough takes as a document, in bytes.
const VALUE_BYTES_MAX: u64 = 1 << 20;
const KEYS_MAX: u64 = 1_000_000_000;
/// What Borough takes in a `:batchGet`.
const BATCH_MAX: u64 = 100;

/// What to send, and for how long. Parsed from a command line, all values are within their limits.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How long to measure, in seconds
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = duration)]
    pub seconds: f64,
    /// Load that is not measured before that, in seconds
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS", value_parser = pause)]
    pub warm_up: f64,
    /// Connections kept open
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=CONNECTIONS_MAX))]
    pub connections: usize,
    /// Open loop: requests due a second, over all connections. Without it the loop is closed: each connection sends when it has its answer
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    pub rate: Option<f64>,
    /// Weights of get, put, patch, delete and batchGet
    #[arg(long, default_value = "get=95,put=5", value_name = "KIND=WEIGHT,…")]
    pub mix: Mix,
    /// Documents asked for by one batchGet
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=BATCH_MAX))]
    pub batch: usize,
    /// Bytes of a document
    #[arg(long, default_value_t = 300, value_name = "BYTES", value_parser = RangedU64ValueParser::<usize>::new().range(1..=VALUE_BYTES_MAX))]
    pub value_bytes: usize,
    /// Documents: `load-0`, `load-1`, …
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = RangedU64ValueParser::<u64>::new().range(1..=KEYS_MAX))]
    pub keys: u64,
    /// Skew of their popularity: 0 is uniform, 0.99 what YCSB uses
    #[arg(long, default_value_t = 0.0, value_name = "THETA", value_parser = zipf)]
    pub zipf: f64,
    /// Do not write the documents first; answers 404 are then expected
    #[arg(long, conflicts_with = "preloaded")]
    pub no_preload: bool,
    /// The documents are there from an earlier run: they are not written again, and none may be missing (unless the mix deletes)
    #[arg(long)]
    pub preloaded: bool,
    /// Longest wait for an answer, in seconds
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = duration)]
    pub timeout: f64,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
}

impl Default for Options {
    /// What a command line without options means, but reading only.
    fn default() -> Self {
        Self {
            seconds: 10.0,
            warm_up: 2.0,
            connections: 64,
            rate: None,
            mix: Mix::only(Kind::Get),
            batch: 20,
            value_bytes: 300,
            keys: 10_000,
            zipf: 0.0,
            no_preload: false,
            preloaded: false,
            timeout: 10.0,
            seed: 1,
        }
    }
}

impl Options {
    /// Whether the documents are written before the load.
    pub fn preload(&self) -> bool {
        !self.no_preload && !self.preloaded
    }
}

fn duration(text: &str) -> Result<f64, String> {
    match number(text)? {
        seconds if seconds > 0.0 && seconds <= SECONDS_MAX => Ok(seconds),
        _ => Err(format!("must be above 0 and at most {SECONDS_MAX} seconds")),
    }
}

fn pause(text: &str) -> Result<f64, String> {
    match number(text)? {
        seconds if (0.0..=SECONDS_MAX).contains(&seconds) => Ok(seconds),
        _ => Err(format!("must be between 0 and {SECONDS_MAX} seconds")),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match number(text)? {
        rate if rate > 0.0 && rate <= RATE_MAX => Ok(rate),
        _ => Err(format!("must be above 0 and at most {RATE_MAX} requests a second")),
    }
}

fn zipf(text: &str) -> Result<f64, String> {
    match number(text)? {
        theta if (0.0..=ZIPF_MAX).contains(&theta) => Ok(theta),
        _ => Err(format!("must be between 0 (uniform) and {ZIPF_MAX}")),
    }
}

fn number(text: &str) -> Result<f64, String> {
    text.trim().parse().map_err(|_| "not a number".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parse(line: &str) -> Result<Options, clap::Error> {
        let words = std::iter::once("load").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.options)
    }

    #[test]
    fn options_have_defaults_and_are_taken() {
        let options = parse("").unwrap();
        assert_eq!((options.seconds, options.connections, options.value_bytes), (10.0, 64, 300));
        assert_eq!((options.keys, options.mix.to_string()), (10_000, "get=95,put=5".to_owned()));
        assert!(options.rate.is_none() && options.preload());
        assert!(!parse("--no-preload").unwrap().preload() && !parse("--preloaded").unwrap().preload());
        assert!(parse("--preloaded --no-preload").is_err());
        let options = parse("--seconds 0.5 --rate 2500 --mix batchGet=1 --batch 7 --zipf 0.99").unwrap();
        assert_eq!((options.seconds, options.rate, options.batch), (0.5, Some(2500.0), 7));
        assert!(options.mix.has(Kind::BatchGet) && options.zipf == 0.99);
    }

    #[test]
    fn what_is_beyond_a_limit_is_refused_with_the_flag_and_the_limit() {
        for (line, flag, limit) in [
            ("--seconds 0", "--seconds", "above 0 and at most 86400"),
            ("--seconds NaN", "--seconds", "at most 86400"),
            ("--warm-up -1", "--warm-up", "between 0 and 86400"),
            ("--timeout x", "--timeout", "not a number"),
            ("--connections 0", "--connections", "1..=10000"),
            ("--connections 10001", "--connections", "1..=10000"),
            ("--rate 0", "--rate", "above 0 and at most 10000000"),
            ("--rate inf", "--rate", "at most 10000000"),
            ("--value-bytes 1048577", "--value-bytes", "1..=1048576"),
            ("--keys 0", "--keys", "1..=1000000000"),
            ("--batch 101", "--batch", "1..=100"),
            ("--zipf 11", "--zipf", "between 0 (uniform) and 10"),
            ("--mix get=1,read=2", "--mix", "none of get, put, patch, delete, batchGet"),
        ] {
            // With `=`, or a negative number would be read as a flag.
            let error = parse(&line.replacen(' ', "=", 1)).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            let text = error.to_string();
            assert!(text.contains(flag) && text.contains(limit), "{line}: {text}");
        }
    }
}
