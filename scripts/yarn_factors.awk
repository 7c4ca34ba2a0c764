# YaRN's divisors written as LongRoPE's lists: short ones of 1, long ones that make longrope with
# the same factor and attention factor the same rotations as yarn beyond the original context.
#   awk -v dim=64 -v base=100000 -v context=8192 -v factor=2 -f scripts/yarn_factors.awk >FILE
function turns(n) { # the pair that turns n times in the original context
    return dim * log(context / (n * 2 * pi)) / (2 * log(base))
}
function whole(x) { return x >= 0 || x == int(x) ? int(x) : int(x) - 1 }

BEGIN {
    pi = atan2(0, -1)
    if (!beta_fast) beta_fast = 32
    if (!beta_slow) beta_slow = 1
    low = whole(turns(beta_fast))
    high = -whole(-turns(beta_slow))
    if (low < 0) low = 0
    if (high > dim - 1) high = dim - 1
    if (low == high) high += 0.001
    for (i = 0; i < dim / 2; i++) {
        ramp = (i - low) / (high - low)
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp
        comma = i ? ", " : ""
        shorts = shorts comma "1.0"
        longs = longs comma sprintf("%.9g", 1 / (ramp / factor + 1 - ramp))
    }
    printf "{\"short_factor\": [%s],\n \"long_factor\": [%s],\n \"attention_factor\": %.9g}\n",
        shorts, longs, 0.1 * log(factor) + 1
}
