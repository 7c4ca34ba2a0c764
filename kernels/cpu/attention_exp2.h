// 2^x of a vector whose basic operations the including attention_vec_*.h defines.
#ifndef HALKA_KERNELS_CPU_ATTENTION_EXP2_H
#define HALKA_KERNELS_CPU_ATTENTION_EXP2_H

// x = n + f with |f| <= 1/2. The polynomial is 1 + f q(f), q fitted to the least largest relative
// error (9.2e-8); 2^0 is exactly 1. Below 2^-126 the result is 0; NaN stays NaN.
static inline vec vec_exp2(vec x) {
    x = vec_max(vec_set(-127.0f), x);
    vec n = vec_round(x);
    vec f = vec_sub(x, n);
    vec p = vec_fma(vec_set(0x1.5bba14p-10f), f, vec_set(0x1.3cea88p-7f));
    p = vec_fma(p, f, vec_set(0x1.c6b752p-5f));
    p = vec_fma(p, f, vec_set(0x1.ebf9bcp-3f));
    p = vec_fma(p, f, vec_set(0x1.62e42ap-1f));
    p = vec_fma(p, f, vec_set(1.0f));
    return vec_scale_power(p, n);
}

#endif
