//! Ranks drawn with zipfian popularity: rank `k` of `n` with probability proportional to `k^-theta`.
//!
//! Rejection-inversion (Hörmann and Derflinger, "Rejection-inversion to generate variates from monotone
//! discrete distributions", ACM TOMACS 6(3), 1996): constant memory and time for any `n` and any theta.

use rand::{Rng, RngExt};

/// A distribution of ranks; theta 0 is uniform.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Zipf {
    count: f64,
    theta: f64,
    low: f64,
    high: f64,
}

impl Zipf {
    /// Ranks `0..count` with skew `theta`.
    ///
    /// # Errors
    /// When there are no ranks, or theta is negative or not a number.
    pub fn new(count: u64, theta: f64) -> Result<Self, String> {
        if count == 0 {
            return Err("a zipfian distribution needs at least one key".to_owned());
        }
        if !(theta >= 0.0 && theta.is_finite()) {
            return Err(format!("zipf {theta}: must be 0 (uniform) or above"));
        }
        let count = count as f64;
        let low = integral(1.5, theta) - 1.0;
        let high = integral(count + 0.5, theta);
        Ok(Self { count, theta, low, high })
    }

    /// A rank from 0, the most popular one.
    pub fn sample(&self, rng: &mut impl Rng) -> u64 {
        loop {
            let area = self.high + rng.random::<f64>() * (self.low - self.high);
            let rank = inverse(area, self.theta).round().clamp(1.0, self.count);
            // Of the area over rank ± ½, the upper part as large as the rank's weight is taken.
            if area >= integral(rank + 0.5, self.theta) - rank.powf(-self.theta) {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 ..= count")]
                return rank as u64 - 1;
            }
        }
    }
}

/// The integral of `x^-theta` from 1.
fn integral(x: f64, theta: f64) -> f64 {
    let power = 1.0 - theta;
    if power.abs() < 1e-9 { x.ln() } else { (x.powf(power) - 1.0) / power }
}

fn inverse(area: f64, theta: f64) -> f64 {
    let power = 1.0 - theta;
    if power.abs() < 1e-9 { area.exp() } else { area.mul_add(power, 1.0).max(0.0).powf(1.0 / power) }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn ranks_come_as_often_as_the_law_says() {
        const COUNT: usize = 50;
        const DRAWS: u32 = 400_000;
        for theta in [0.0, 0.5, 0.9, 1.0, 1.3, 3.0] {
            let zipf = Zipf::new(COUNT as u64, theta).unwrap();
            let mut rng = StdRng::seed_from_u64(7);
            let mut seen = [0_u32; COUNT];
            for _ in 0..DRAWS {
                seen[zipf.sample(&mut rng) as usize] += 1;
            }
            let sum: f64 = (1..=COUNT).map(|rank| (rank as f64).powf(-theta)).sum();
            for (index, seen) in seen.iter().enumerate() {
                let expected = f64::from(DRAWS) * ((index + 1) as f64).powf(-theta) / sum;
                // Six standard deviations of a count.
                let allowed = 6.0 * expected.sqrt().max(1.0);
                let seen = f64::from(*seen);
                assert!(
                    (seen - expected).abs() <= allowed,
                    "theta {theta}, rank {index}: {seen}, {expected}"
                );
            }
        }
    }

    #[test]
    fn one_key_is_always_drawn_and_nonsense_is_refused() {
        let mut rng = StdRng::seed_from_u64(1);
        assert!((0..100).all(|_| Zipf::new(1, 0.9).unwrap().sample(&mut rng) == 0));
        assert!(Zipf::new(0, 0.9).is_err());
        assert!(Zipf::new(5, -0.1).is_err());
        assert!(Zipf::new(5, f64::NAN).is_err());
    }
}
