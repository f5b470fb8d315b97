//! The settings of the built-in engine `testcard`: one definition for the engine that obeys them
//! and for the configuration that is checked where no engine is at hand.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::ops::RangeInclusive;

use serde_json::{Map, Value};

/// What `models.*.settings` may say to the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Length of one denoising-like step.
    pub step_ms: u64,
}

/// Why settings can't be obeyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// There is no setting of this name.
    Unknown(String),
    /// What the setting of this name must be, and is not.
    Value(&'static str, String),
}

impl Default for Settings {
    fn default() -> Self {
        Self { step_ms: 10 }
    }
}

impl Settings {
    /// The name of every setting.
    pub const KEYS: &[&str] = &["step_ms"];

    const STEP_MS: RangeInclusive<u64> = 0..=600_000;

    pub fn read(given: &Map<String, Value>) -> Result<Self, Wrong> {
        let mut settings = Self::default();
        for (key, value) in given {
            match key.as_str() {
                "step_ms" => settings.step_ms = whole("step_ms", value, Self::STEP_MS)?,
                _ => return Err(Wrong::Unknown(key.clone())),
            }
        }
        Ok(settings)
    }
}

fn whole(key: &'static str, value: &Value, allowed: RangeInclusive<u64>) -> Result<u64, Wrong> {
    value.as_u64().filter(|number| allowed.contains(number)).ok_or_else(|| {
        let (least, most) = (allowed.start(), allowed.end());
        let message = format!("must be a whole number from {least} to {most}, not `{value}`");
        Wrong::Value(key, message)
    })
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(key) => {
                write!(f, "there is no setting `{key}`; there is {}", Settings::KEYS.join(", "))
            }
            Self::Value(key, message) => write!(f, "setting `{key}` {message}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(given: Value) -> Result<Settings, Wrong> {
        Settings::read(given.as_object().expect("an object"))
    }

    #[test]
    fn what_is_not_said_is_the_default() {
        assert_eq!(read(json!({})), Ok(Settings { step_ms: 10 }));
        assert_eq!(read(json!({"step_ms": 0})), Ok(Settings { step_ms: 0 }));
    }

    #[test]
    fn every_key_is_read_and_no_other() {
        for key in Settings::KEYS {
            assert!(matches!(read(json!({*key: []})), Err(Wrong::Value(..))), "{key}");
        }
        assert_eq!(read(json!({"step_mss": 1})), Err(Wrong::Unknown("step_mss".into())));
    }

    #[test]
    fn a_value_of_another_type_or_out_of_bounds_is_refused_with_what_is_right() {
        for value in [json!(-1), json!(600_001), json!(1.5), json!("10"), json!(null)] {
            let wrong = read(json!({"step_ms": value})).expect_err("wrong");
            let words = format!("must be a whole number from 0 to 600000, not `{value}`");
            assert_eq!(wrong, Wrong::Value("step_ms", words));
        }
    }
}
