// Sum, maximum and argmax (the first index of the maximum) over the rows or the columns of a part of a sample.
#pragma once

#include "kernels.h"
#include "rows.h"

namespace cbam {
namespace CBAM_ISA {
namespace {

template <class A>
constexpr A lowest() {
  return -__builtin_huge_valf();
}
template <class T, bool NORM>
CBAM_INLINE Vec<acc_t<T>> input(Vec<acc_t<T>> u, Vec<acc_t<T>> alpha, Vec<acc_t<T>> beta) {
  if constexpr (NORM) {
    return rounded<T>(u * alpha + beta);
  } else {
    return u;
  }
}
// The same for one element, in a register, so that it gets the same rounding (a fused multiply-add or not).
template <class T, bool NORM>
CBAM_INLINE acc_t<T> input_scalar(const Part<T>& part, int64_t offset, int64_t channel) {
  const acc_t<T> u = load_scalar(part.u + offset);
  if constexpr (NORM) {
    using A = acc_t<T>;
    return input<T, true>(all<A>(u), all<A>(part.alpha[channel]), all<A>(part.beta[channel]))[0];
  } else {
    return u;
  }
}

template <class A, int N>
CBAM_INLINE void add_across(const Vec<A> (&v)[N], A* out) {
  A sums[N];
  across<A>(v, Plus{}, sums);
  for (int i = 0; i < N; ++i) out[i] += sums[i];
}

// Maximum with NaN first, for the rare row or column whose sum is NaN: the vector loops ignore NaN.
template <class A, class F>
__attribute__((noinline)) void max_with_nan(int64_t from, int64_t to, F value, A* max, int32_t* argmax) {
  A best = value(from);
  int64_t at = from;
  for (int64_t i = from + 1; i < to && best == best; ++i) {
    const A v = value(i);
    if (!(v <= best)) best = v, at = i;
  }
  *max = best;
  if (argmax) *argmax = static_cast<int32_t>(at);
}

// Rows: NCHW pooling (a row is a channel) or, with COLS, the NHWC squeeze (constants and scale belong to columns).
template <class T, bool NORM, bool COLS, bool INDEX>
void reduce_rows(const Part<T>& part, int64_t stride, int64_t r0, int64_t r1, int64_t k0, int64_t k1,
                 const acc_t<T>* scale, acc_t<T>* sum, acc_t<T>* max, int32_t* argmax) {
  using A = acc_t<T>;
  using V = Vec<A>;
  by_fours(r0, r1, [&](int64_t r, auto count) __attribute__((always_inline)) {
    constexpr int N = decltype(count)::value;
    V sums[N], best[N], a[N], b[N];
    Ints<A> at[N];
    const T* row[N];
    for (int i = 0; i < N; ++i) {
      row[i] = part.u + (r + i) * stride;
      sums[i] = V{};
      best[i] = all<A>(lowest<A>());
      at[i] = all_index<A>(k0);
      if constexpr (NORM && !COLS) a[i] = all<A>(part.alpha[r + i]), b[i] = all<A>(part.beta[r + i]);
    }
    Ints<A> index = lane_numbers<A>() + all_index<A>(k0);
    along<A>(k0, k1, [&](int64_t k, auto width) __attribute__((always_inline)) {
      V s = V{};
      if constexpr (COLS) s = get<A>(scale + k, width);
      if constexpr (NORM && COLS) a[0] = get<A>(part.alpha + k, width), b[0] = get<A>(part.beta + k, width);
      for (int i = 0; i < N; ++i) {
        prefetch(row[i] + k + N * stride);
        V v = input<T, NORM>(get<T>(row[i] + k, width), a[COLS ? 0 : i], b[COLS ? 0 : i]);
        if constexpr (COLS) v = rounded<T>(v * s);
        sums[i] += or_else<A>(v, width, A(0));
        v = or_else<A>(v, width, lowest<A>());
        const Ints<A> better = v > best[i];
        best[i] = better ? v : best[i];
        if constexpr (INDEX) at[i] = better ? index : at[i];
      }
      if constexpr (INDEX) index += all_index<A>(kLanes<A>);
    });
    across<A>(sums, Plus{}, sum + r);
    across<A>(best, Larger{}, max + r);
    for (int i = 0; i < N; ++i) {
      const int64_t line = r + i;
      if constexpr (INDEX) argmax[line] = static_cast<int32_t>(first_at<A>(best[i], max[line], at[i]));
      if (sum[line] != sum[line]) {
        max_with_nan<A>(
            k0, k1,
            [&](int64_t k) {
              A v = input_scalar<T, NORM>(part, line * stride + k, COLS ? k : line);
              if constexpr (COLS) v = rounded_scalar<T>(v * scale[k]);
              return v;
            },
            max + line, INDEX ? argmax + line : nullptr);
      }
    }
  });
}

// Columns: the NCHW squeeze (constants and scale belong to rows) or, with COLS, NHWC pooling.
template <class T, bool NORM, bool COLS, bool INDEX>
void reduce_columns(const Part<T>& part, int64_t stride, int64_t r0, int64_t r1, int64_t k0, int64_t k1,
                    const acc_t<T>* scale, acc_t<T>* sum, acc_t<T>* max, int32_t* argmax) {
  using A = acc_t<T>;
  using V = Vec<A>;
  for (int64_t k = k0; k < k1; ++k) {
    sum[k] = 0;
    max[k] = lowest<A>();
    if constexpr (INDEX) argmax[k] = static_cast<int32_t>(r0);
  }
  by_fours(r0, r1, [&](int64_t r, auto count) __attribute__((always_inline)) {
    constexpr int N = decltype(count)::value;
    const T* row[N];
    V s[N], a[N], b[N];
    for (int i = 0; i < N; ++i) {
      row[i] = part.u + (r + i) * stride;
      if constexpr (!COLS) s[i] = all<A>(scale[r + i]);
      if constexpr (NORM && !COLS) a[i] = all<A>(part.alpha[r + i]), b[i] = all<A>(part.beta[r + i]);
    }
    along<A>(k0, k1, [&](int64_t k, auto width) __attribute__((always_inline)) {
      V sums = get<A>(sum + k, width), best = get<A>(max + k, width);
      Ints<A> at;
      if constexpr (INDEX) at = get_index<A>(argmax + k, width);
      if constexpr (NORM && COLS) a[0] = get<A>(part.alpha + k, width), b[0] = get<A>(part.beta + k, width);
      for (int i = 0; i < N; ++i) {
        prefetch(row[i] + k + N * stride);
        V v = input<T, NORM>(get<T>(row[i] + k, width), a[COLS ? 0 : i], b[COLS ? 0 : i]);
        if constexpr (!COLS) v = rounded<T>(v * s[i]);
        sums += v;
        const Ints<A> better = v > best;
        best = better ? v : best;
        if constexpr (INDEX) at = better ? all_index<A>(r + i) : at;
      }
      put<A>(sum + k, sums, width);
      put<A>(max + k, best, width);
      if constexpr (INDEX) put_index(argmax + k, at, width);
    });
  });
  for (int64_t k = k0; k < k1; ++k) {
    if (sum[k] == sum[k]) continue;
    max_with_nan<A>(
        r0, r1,
        [&](int64_t r) {
          A v = input_scalar<T, NORM>(part, r * stride + k, COLS ? k : r);
          if constexpr (!COLS) v = rounded_scalar<T>(v * scale[r]);
          return v;
        },
        max + k, INDEX ? argmax + k : nullptr);
  }
}

}  // namespace
}  // namespace CBAM_ISA
}  // namespace cbam
