"""Binomial tails, their roots and the normal quantile in mpmath's digits: what bounds and radii are held against."""

import mpmath as mp


def exact_tail(k: int, n: int, p: mp.mpf, uniform: float = 1.0) -> mp.mpf:
    """P(X > k) + U P(X = k), X ~ Binomial(n, p): the pmf at k by gamma functions, then ratios outward."""
    if k == 0 and uniform == 1:
        return mp.mpf(1)
    total, term, odds = mp.mpf(0), pmf(k, n, p), p / (1 - p)
    for j in range(k, n + 1):
        total += term * uniform if j == k else term
        if term < total * mp.mpf(10) ** -40:
            break
        term *= odds * (n - j) / (j + 1)
    return total


def pmf(k: int, n: int, p: mp.mpf) -> mp.mpf:
    """P(X = k), X ~ Binomial(n, p)."""
    choose = mp.loggamma(n + 1) - mp.loggamma(k + 1) - mp.loggamma(n - k + 1)
    return mp.exp(choose + k * mp.log(p) + (n - k) * mp.log(1 - p))


def exact_miss(k: int, n: int, alpha: float, near: float) -> mp.mpf:
    """q = 1 - p where P(X >= k) = alpha at p, by Newton steps from p = `near`, which is to be close."""
    if k == n:
        return -mp.expm1(mp.log(mp.mpf(alpha)) / n)
    q = 1 - mp.mpf(near)
    for _ in range(4):
        p = 1 - q
        step = (exact_tail(k, n, p) - alpha) / (k * pmf(k, n, p) / p)  # the derivative of the tail in p
        q += step
        if abs(step) < q * mp.mpf(10) ** -28:  # and the next would be its square
            return q
    raise AssertionError(f"no root near {near} for {k} of {n} at {alpha}")


def upper_quantile(tail) -> mp.mpf:
    """The z with P(N(0, 1) > z) = tail, for tails from 0 to 1 without the two, by Newton steps in its logarithm."""
    tail = mp.mpf(tail)
    if tail > 0.5:
        return -upper_quantile(1 - tail)
    z = mp.sqrt(-2 * mp.log(2 * tail)) if tail < 0.1 else mp.mpf(0.5)
    for _ in range(200):
        mass = mp.erfc(z / mp.sqrt(2)) / 2
        step = mass * mp.log(mass / tail) / mp.npdf(z)
        z += step
        if abs(step) < mp.mpf(10) ** -40:
            return z
    raise AssertionError(f"no quantile at {tail}")
