//! `--fail-on`: conditions on the numbers of a result.
//!
//! ```text
//! condition = [scope ":"] metric ">" limit
//! scope     = the name of a policy or of a trace
//! metric    = a number of the summary: missed, exposed, excessive, flush-guest, cycles, ...
//! limit     = N           more than N
//!           | "+" N       more than N above the baseline
//!           | "+" N "%"   more than N per cent above the baseline
//! ```

use std::str::FromStr;

use thiserror::Error;

use super::Numbers;

/// How much is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Above(u64),
    AboveBaseline(u64),
    PerCentAboveBaseline(u64),
}

/// A condition under which a result fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    text: String,
    scope: Option<String>,
    metric: String,
    limit: Limit,
}

/// A condition that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{text}`, column {column}: {what}; examples: missed>0, excessive>+0, cycles>+2%, kvm-6.1-lts:flush-guest>+1%"
)]
pub struct ConditionError {
    /// The condition.
    pub text: String,
    /// Where, from 1.
    pub column: usize,
    /// What is wrong.
    pub what: String,
}

impl FromStr for Condition {
    type Err = ConditionError;

    fn from_str(text: &str) -> Result<Self, ConditionError> {
        let wrong = |at: usize, what: &str| ConditionError {
            text: text.to_owned(),
            column: at + 1,
            what: what.to_owned(),
        };
        let Some(more) = text.find('>') else { return Err(wrong(text.len(), "`>` is missing")) };
        let (left, right) = (&text[..more], &text[more + 1..]);
        let (scope, metric) = match left.rsplit_once(':') {
            Some((scope, metric)) => (Some(scope.trim().to_owned()), metric),
            None => (None, left),
        };
        let metric = metric.trim().replace('_', "-");
        if metric.is_empty() {
            return Err(wrong(0, "the name of a number is missing"));
        }
        let limit = right.trim();
        let at = more + 1 + (right.len() - right.trim_start().len());
        let number = |text: &str, at: usize| {
            text.parse::<u64>().map_err(|_| wrong(at, "a whole number is wanted"))
        };
        let limit = match limit.strip_prefix('+') {
            None => Limit::Above(number(limit, at)?),
            Some(above) => match above.strip_suffix('%') {
                None => Limit::AboveBaseline(number(above, at + 1)?),
                Some(share) => Limit::PerCentAboveBaseline(number(share, at + 1)?),
            },
        };
        Ok(Self { text: text.to_owned(), scope, metric, limit })
    }
}

impl Condition {
    /// As it was typed.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it speaks of an earlier result.
    #[must_use]
    pub const fn needs_baseline(&self) -> bool {
        !matches!(self.limit, Limit::Above(_))
    }

    /// Whether some of these numbers is one that it speaks of.
    #[must_use]
    pub fn knows(&self, all: &[Numbers]) -> bool {
        all.iter().any(|n| self.concerns(n) && n.values.contains_key(&self.metric))
    }

    fn concerns(&self, n: &Numbers) -> bool {
        self.scope.as_ref().is_none_or(|scope| *scope == n.policy || *scope == n.trace)
    }

    /// Whether the numbers of one run make it true, beside those of the same run before.
    #[must_use]
    pub fn holds(&self, now: &Numbers, before: Option<&Numbers>) -> bool {
        let Some(value) = now.values.get(&self.metric) else { return false };
        if !self.concerns(now) {
            return false;
        }
        let was = before.map(|before| before.values.get(&self.metric).copied().unwrap_or(0));
        match (self.limit, was) {
            (Limit::Above(limit), _) => *value > limit,
            (_, None) => false,
            (Limit::AboveBaseline(more), Some(was)) => *value > was.saturating_add(more),
            (Limit::PerCentAboveBaseline(share), Some(was)) => {
                u128::from(*value) * 100 > u128::from(was) * (100 + u128::from(share))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(cycles: u64) -> Numbers {
        let values = [("cycles".to_owned(), cycles), ("missed".to_owned(), 0)].into();
        Numbers { trace: "boot".into(), policy: "kvm-5.17".into(), values }
    }

    fn holds(text: &str, now: u64, before: Option<u64>) -> bool {
        let condition: Condition = text.parse().unwrap();
        condition.holds(&numbers(now), before.map(numbers).as_ref())
    }

    #[test]
    fn limits() {
        assert!(holds("cycles>99", 100, None));
        assert!(!holds("cycles>100", 100, None));
        assert!(holds("cycles>+0", 101, Some(100)));
        assert!(!holds("cycles>+1", 101, Some(100)));
        assert!(!holds("cycles>+0", 101, None), "nothing to compare with");
        assert!(holds("cycles>+2%", 103, Some(100)));
        assert!(!holds("cycles>+2%", 102, Some(100)));
        assert!(holds("cycles>+2%", 1, Some(0)));
    }

    #[test]
    fn scopes() {
        assert!(holds("kvm-5.17:cycles>0", 1, None));
        assert!(holds("boot:cycles > 0", 1, None));
        assert!(!holds("kvm-5.19:cycles>0", 1, None));
        let unknown: Condition = "boot:cycels>0".parse().unwrap();
        assert!(!unknown.knows(&[numbers(1)]));
    }

    #[test]
    fn what_cannot_be_read_says_where() {
        let wrong = |text: &str| text.parse::<Condition>().unwrap_err();
        assert_eq!(wrong("missed").column, 7);
        assert_eq!(wrong("missed>x").column, 8);
        assert_eq!(wrong("missed>+1.5%").column, 9);
        assert_eq!(wrong(">1").column, 1);
    }
}
