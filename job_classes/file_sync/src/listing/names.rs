//! Names which some storages take for the same.

use std::borrow::Cow;
use std::collections::HashSet;

use icu_normalizer::ComposingNormalizerBorrowed;
use xxhash_rust::xxh3::xxh3_64;

/// Names of one directory that are remembered in order to find those of different Unicode form; more are not compared.
const FOREIGN_NAMES_MAX: usize = 100_000;

/// A name as a storage sees it that tells neither case nor Unicode forms apart.
pub(super) fn folded(name: &str) -> Cow<'_, str> {
    if name.is_ascii() {
        return match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(name.to_ascii_lowercase()),
            false => Cow::Borrowed(name),
        };
    }
    // Lower case may decompose, and composing may follow only then.
    Cow::Owned(composed(&composed(name).to_lowercase()).into_owned())
}

fn composed(name: &str) -> Cow<'_, str> {
    ComposingNormalizerBorrowed::new_nfc().normalize(name)
}

/// Finds names of one directory that look the same and are not: they differ by their Unicode form alone.
#[derive(Debug, Default)]
pub(crate) struct ForeignForms(HashSet<u64>);

impl ForeignForms {
    /// Whether an earlier name of the directory looks like this one.
    pub(crate) fn has_seen(&mut self, name: &str) -> bool {
        !name.is_ascii() && self.0.len() < FOREIGN_NAMES_MAX && !self.0.insert(xxh3_64(composed(name).as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_form_fold_into_one() {
        for (one, other) in [("README", "readme"), ("Caf\u{e9}", "cafe\u{301}"), ("STRAẞE", "straße"), ("İ", "i\u{307}")] {
            assert_eq!(folded(one), folded(other), "{one} {other}");
        }
        assert_ne!(folded("a"), folded("b"));
    }

    #[test]
    fn only_names_of_the_same_look_are_foreign_forms() {
        let mut forms = ForeignForms::default();
        let seen = ["cafe\u{301}", "plain", "plain", "tea\u{301}", "caf\u{e9}"].map(|name| forms.has_seen(name));
        assert_eq!(seen, [false, false, false, false, true]);
    }
}
