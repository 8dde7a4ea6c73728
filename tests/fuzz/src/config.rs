//! Configuration out of a file, the environment and flags.

use nkcluster::config::{Config, ConfigError, Layers};

use crate::input::{Input, text};
use crate::seeded::seeded_crash;

/// The secret of the file, which must not be seen again.
const CANARY: &str = "canary-of-the-secret";

/// Sources are read or refused. What was built keeps every rule and every bound that we promise, and neither it nor an error shows a secret.
pub fn config(data: &[u8]) {
    let config = match read(data) {
        None => return,
        Some(Ok(config)) => config,
        Some(Err(error)) => {
            assert!(!error.to_string().contains(CANARY), "an error shows the secret: {error}");
            return;
        }
    };
    assert_eq!(config.check(), Ok(()));
    assert!((1_000..=60_000).contains(&config.ping_time.as_millis()), "{:?}", config.ping_time);
    assert!(config.ring_size.is_power_of_two() && (8..=4096).contains(&config.ring_size), "{}", config.ring_size);
    assert!(config.pbkdf2_iters > 0 && config.tls_depth <= 16 && !config.cluster_name.is_empty());
    let shown = format!("{config:?} {:?}", config.warnings());
    assert!(!shown.contains(CANARY), "the secret is shown");
    seeded_crash!("config", config.accept_rate < 2_000, config.max_calls < 1_024, config.accept_rate > 100,);
}

/// What the library makes of these sources; nothing if they are not for it.
fn read(data: &[u8]) -> Option<Result<Config, ConfigError>> {
    let mut input = Input::new(data);
    let flags = input.byte();
    let file = text(input.until_nul());
    let mut others = Vec::new();
    while !input.is_empty() {
        others.push(text(input.until_nul()));
    }
    // Keys that name files would read those of this machine.
    let is_for_us = |text: &String| !(text.contains("file") || text.contains('\\') || text.contains(CANARY));
    std::iter::once(&file).chain(&others).all(is_for_us).then(|| build(flags, &file, &others))
}

fn build(flags: u8, file: &str, others: &[String]) -> Result<Config, ConfigError> {
    let mut layers = Layers::new();
    if flags & 1 != 0 {
        layers = layers.flag("role", if flags & 2 != 0 { "worker" } else { "control" })?;
    }
    layers = layers.flag("admin_password", CANARY)?.text("node.toml", file)?;
    if flags & 4 != 0 {
        layers = layers.flag("password", CANARY)?;
    }
    for other in others {
        let (key, value) = other.split_once('=').unwrap_or((other, ""));
        layers = match key.strip_prefix("--") {
            Some(key) => layers.flag(key, value)?,
            None => layers.env([(format!("NKCLUSTER_{key}"), value)])?,
        };
    }
    layers.build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeds::CONFIGS;

    #[test]
    fn seeds_are_understood_but_for_the_wrong_one() {
        for (name, sources) in CONFIGS {
            match read(sources.as_bytes()) {
                Some(Ok(_)) => assert_ne!(*name, "wrong"),
                Some(Err(error)) => assert_eq!(*name, "wrong", "{error}"),
                None => panic!("{name} never reaches the library"),
            }
        }
    }
}
