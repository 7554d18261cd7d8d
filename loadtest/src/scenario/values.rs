//! The values of a scenario's keys, each of which refuses what it cannot be.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Steps;
use crate::schedule::Schedule;

/// A time above 0, at most a week: `"500ms"`, `"30s"`, `"10m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Length(pub Duration);

/// Above 0 a second, at most ten million.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64")]
pub struct Rate(pub f64);

/// Above 0, at most 1.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Share(pub f64);

/// How events arrive.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Arrivals {
    /// Evenly spaced.
    Constant { per_second: Rate, length: Length },
    /// At random, independent of each other, as many users make them.
    Poisson { per_second: Rate, length: Length },
    /// From one rate to another.
    Ramp { from: Rate, to: Rate, length: Length },
    /// One rate after the other, each for the same time.
    Step { per_second: Vec<Rate>, each: Length },
    /// A rate, and in its middle another for a while.
    Spike { per_second: Rate, peak: Rate, peak_length: Length, length: Length },
}

impl Arrivals {
    pub fn schedule(&self) -> Schedule {
        match self {
            Self::Constant { per_second, length } => Schedule::constant(per_second.0, length.0),
            Self::Poisson { per_second, length } => Schedule::constant(per_second.0, length.0).at_random(),
            Self::Ramp { from, to, length } => Schedule::default().then(from.0, to.0, length.0),
            Self::Step { per_second, each } => {
                per_second.iter().fold(Schedule::default(), |schedule, rate| schedule.then(rate.0, rate.0, each.0))
            }
            Self::Spike { per_second: Rate(rate), peak: Rate(peak), peak_length, length } => {
                let peak_length = peak_length.0.min(length.0);
                let side = (length.0 - peak_length) / 2;
                Schedule::constant(*rate, side).then(*peak, *peak, peak_length).then(*rate, *rate, side)
            }
        }
    }

    /// Multiplies rates and lengths.
    pub fn resize(&mut self, rate: f64, length: f64) {
        let (rates, lengths): (Vec<&mut Rate>, Vec<&mut Length>) = match self {
            Self::Constant { per_second, length } | Self::Poisson { per_second, length } => {
                (vec![per_second], vec![length])
            }
            Self::Ramp { from, to, length } => (vec![from, to], vec![length]),
            Self::Step { per_second, each } => (per_second.iter_mut().collect(), vec![each]),
            Self::Spike { per_second, peak, peak_length, length } => {
                (vec![per_second, peak], vec![peak_length, length])
            }
        };
        rates.into_iter().for_each(|each| each.0 *= rate);
        lengths.into_iter().for_each(|each| each.0 = each.0.mul_f64(length));
    }
}

impl TryFrom<String> for Length {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let length =
            humantime::parse_duration(&text).map_err(|error| format!("{text:?} is no time like \"30s\": {error}"))?;
        if length > Duration::ZERO && length <= Duration::from_secs(7 * 86_400) {
            Ok(Self(length))
        } else {
            Err(format!("{text:?} must be above 0 and at most a week"))
        }
    }
}

impl From<Length> for String {
    fn from(length: Length) -> Self {
        humantime::format_duration(length.0).to_string()
    }
}

impl TryFrom<f64> for Rate {
    type Error = &'static str;

    fn try_from(rate: f64) -> Result<Self, Self::Error> {
        if rate > 0.0 && rate <= 1e7 {
            Ok(Self(rate))
        } else {
            Err("a rate must be above 0 and at most 10000000 a second")
        }
    }
}

impl TryFrom<f64> for Share {
    type Error = &'static str;

    fn try_from(share: f64) -> Result<Self, Self::Error> {
        if share > 0.0 && share <= 1.0 { Ok(Self(share)) } else { Err("a share must be above 0 and at most 1") }
    }
}

impl TryFrom<toml::Value> for Steps {
    type Error = &'static str;

    fn try_from(value: toml::Value) -> Result<Self, Self::Error> {
        let wrong = "must be a number from 1 to 1000000, or several that rise";
        let number = |value: &toml::Value| {
            let number = value.as_integer().and_then(|number| usize::try_from(number).ok());
            number.filter(|number| (1..=1_000_000).contains(number)).ok_or(wrong)
        };
        let steps = match &value {
            toml::Value::Array(steps) => steps.iter().map(number).collect::<Result<Vec<_>, _>>()?,
            one => vec![number(one)?],
        };
        let rises = !steps.is_empty() && steps.windows(2).all(|pair| pair[0] < pair[1]);
        if rises { Ok(Self(steps)) } else { Err(wrong) }
    }
}
