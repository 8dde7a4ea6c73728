//! Rules between values.

use super::Config;
use super::error::{ConfigError, Origin, Problem};
use super::values::Role;
use crate::types::{Binding, NodeUri, Secret, TlsVerify, Transport};

impl Config {
    /// The rules between values that no single key can keep. [`Layers::build`](super::Layers::build) asks; so does a node that was given a configuration made in code.
    ///
    /// - Whoever can be reached from other machines does not rely on the password that everybody knows, unless `allow_default_password` says so.
    /// - `binding=off` is for a dialler that verifies the certificate, and for a listener behind a balancer that ends TLS for such diallers.
    /// - A certificate has a key and a key has a certificate; verification knows whom to trust.
    /// - The ring has a power of two of partitions; times and limits are not zero.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_passwords()?;
        self.check_tls()?;
        self.check_numbers()
    }

    /// What an operator should know, though the node runs: what was odd in the sources, and choices that are rarely meant.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.notes.clone();
        if self.allow_default_password && self.listen.iter().any(|uri| self.is_open_to_everybody(uri)) {
            warnings.push("password: others can reach this node and everybody knows the default password".to_owned());
        }
        for uri in self.listen.iter().chain(&self.cluster_addr) {
            let is_plain = !matches!(uri.effective_transport(), Transport::Memory) && !uri.effective_transport().is_encrypted();
            if self.role == Role::Control && is_plain && !uri.is_loopback() && !uri.asks_naptr() {
                warnings.push(format!("{uri}: links of control nodes are not encrypted there"));
            }
        }
        for uri in self.listen.iter().filter(|uri| uri.effective_transport().is_encrypted() && uri.options().binding == Some(Binding::Off))
        {
            warnings.push(format!(
                "{uri}: binding=off also lets in who is not bound to the TLS of this listener; only a balancer should reach it"
            ));
        }
        if let Some(range) = self.trusted_proxies.iter().find(|range| range.is_everybody()) {
            warnings.push(format!("trusted_proxies: {range} is everybody, so everybody can claim any address"));
        }
        if self.role == Role::Worker && self.cluster_addr.is_empty() && self.listen.is_empty() {
            warnings.push("cluster_addr, listen: both are empty, so no control node can find this worker".to_owned());
        }
        warnings
    }

    fn check_passwords(&self) -> Result<(), ConfigError> {
        if self.allow_default_password {
            return Ok(());
        }
        match self.listen.iter().find(|uri| self.is_open_to_everybody(uri)) {
            Some(uri) => Err(wrong(
                "password",
                format!(
                    "the default is refused for {uri}, which other machines can reach; set password_file, or allow_default_password = true"
                ),
            )),
            None => Ok(()),
        }
    }

    /// Whether other machines can reach the listener, and the default password lets one of the roles in.
    fn is_open_to_everybody(&self, uri: &NodeUri) -> bool {
        let common = uri.options().password.as_ref().unwrap_or(&self.password);
        let is_default = |secret: Option<&Secret>| *secret.unwrap_or(common) == Secret::from(Self::DEFAULT_PASSWORD);
        let worker = self.worker_password.as_ref();
        let is_guessed = match self.role {
            Role::Control => [worker, self.admin_password.as_ref(), self.control_password.as_ref()].into_iter().any(is_default),
            Role::Worker => is_default(self.node_token.as_ref().or(worker)),
        };
        // A listener on loopback is reached by everybody through the balancer on the same machine.
        let is_relayed = uri.options().binding == Some(Binding::Off) || !self.trusted_proxies.is_empty();
        is_guessed && (is_relayed || !uri.is_loopback())
    }

    fn check_tls(&self) -> Result<(), ConfigError> {
        let pair = [("tls_certfile", self.tls_certfile.is_some()), ("tls_keyfile", self.tls_keyfile.is_some())];
        match pair {
            [(_, true), (key, false)] | [(key, false), (_, true)] => {
                return Err(wrong(key, "certificate and key belong together; one of them is missing"));
            }
            _ => {}
        }
        for uri in &self.cluster_addr {
            let verify = uri.options().tls_verify.unwrap_or(self.tls_verify);
            if uri.options().binding == Some(Binding::Off) && verify == TlsVerify::False {
                return Err(wrong("cluster_addr", "option `binding`: it may be off only where tls_verify is on"));
            }
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), ConfigError> {
        if !self.ring_size.is_power_of_two() || !(8..=4096).contains(&self.ring_size) {
            return Err(wrong("ring_size", "expected a power of two from 8 to 4096"));
        }
        let positive = [
            ("ping_time", self.ping_time.is_zero()),
            ("proxy_connect_retry", self.proxy_connect_retry.is_zero()),
            ("stats_time", self.stats_time.is_zero()),
            ("connect_timeout", self.connect_timeout.is_zero()),
            ("max_connections", self.max_connections == 0),
            ("max_unauthenticated", self.max_unauthenticated == 0),
            ("accept_rate", self.accept_rate == 0),
            ("max_calls", self.max_calls == 0),
            ("pbkdf2_iters", self.pbkdf2_iters == 0),
            ("tls_versions", self.tls_versions.is_empty()),
            ("cluster_name", self.cluster_name.is_empty()),
            ("password", self.password.is_empty()),
        ];
        match positive.into_iter().find(|(_, is_zero)| *is_zero) {
            Some((key, _)) => Err(wrong(key, "it must not be zero or empty")),
            None => Ok(()),
        }
    }
}

fn wrong(key: &str, reason: impl Into<String>) -> ConfigError {
    ConfigError::new(Origin::Default, Some(key), Problem::new(reason))
}
