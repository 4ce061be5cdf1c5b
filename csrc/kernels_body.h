// The loops of kernels.h as templates; included by one kernels_*.cpp per instruction set.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace cbam {
namespace CBAM_ISA {
namespace {

// A full register of columns, or the last few of a row.
struct Full {};
struct Rest {
  int64_t n;
};
struct Streamed {};  // full, and written past the caches
template <class T>
CBAM_INLINE Vec<acc_t<T>> get(const T* p, Full) {
  return load<T>(p);
}
template <class T>
CBAM_INLINE Vec<acc_t<T>> get(const T* p, Rest rest) {
  return load_some<T>(p, rest.n);
}
template <class T>
CBAM_INLINE void put(T* p, Vec<acc_t<T>> v, Full) {
  store<T>(p, v);
}
template <class T>
CBAM_INLINE void put(T* p, Vec<acc_t<T>> v, Rest rest) {
  store_some<T>(p, v, rest.n);
}
template <class T>
CBAM_INLINE Vec<acc_t<T>> get(const T* p, Streamed) {
  return load<T>(p);
}
template <class T>
CBAM_INLINE void put(T* p, Vec<acc_t<T>> v, Streamed) {
  stream<T>(p, v);
}
template <class A>
CBAM_INLINE Ints<A> get_index(const int32_t* p, Streamed) {
  return load_index(p, A{});
}
template <class A>
CBAM_INLINE Ints<A> get_index(const int32_t* p, Full) {
  return load_index(p, A{});
}
template <class A>
CBAM_INLINE Ints<A> get_index(const int32_t* p, Rest rest) {
  if constexpr (sizeof(A) == 4) {
    return load_some_index(p, rest.n);
  } else {
    int32_t some[kLanes<A>] = {};
    for (int64_t i = 0; i < rest.n; ++i) some[i] = p[i];
    return load_index(some, A{});
  }
}
CBAM_INLINE void put_index(int32_t* p, Ints<float> v, Full) { std::memcpy(p, &v, sizeof(v)); }
CBAM_INLINE void put_index(int32_t* p, Ints<float> v, Rest rest) { store_some_index(p, v, rest.n); }
CBAM_INLINE void put_index(int32_t* p, Ints<double> v, Rest rest) {
  for (int64_t i = 0; i < rest.n; ++i) p[i] = static_cast<int32_t>(v[i]);
}
CBAM_INLINE void put_index(int32_t* p, Ints<double> v, Full) { put_index(p, v, Rest{kLanes<double>}); }
template <class A>
CBAM_INLINE Vec<A> or_else(Vec<A> v, Full, A) {
  return v;
}
template <class A>
CBAM_INLINE Vec<A> or_else(Vec<A> v, Rest rest, A other) {
  return first_lanes<A>(rest.n) ? v : all<A>(other);
}

// f(column, Full) for every whole register in [from, to), then f(column, Rest) for what is left.
template <class A, class F>
CBAM_INLINE void along(int64_t from, int64_t to, F f) {
  int64_t k = from;
  for (; k + kLanes<A> <= to; k += kLanes<A>) f(k, Full{});
  if (k < to) f(k, Rest{to - k});
}
// The same for a row that is written: streamed if wanted, between the borders that are not aligned.
template <class T, class F>
CBAM_INLINE void along_output(const T* out, bool streaming, int64_t from, int64_t to, F f) {
  using A = acc_t<T>;
  if (!streaming) return along<A>(from, to, f);
  constexpr int64_t line = kLanes<A> * static_cast<int64_t>(sizeof(T));
  const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out + from) % line);
  int64_t k = from;
  if (past > 0) {
    const int64_t head = (line - past) / static_cast<int64_t>(sizeof(T));
    k = from + head < to ? from + head : to;
    f(from, Rest{k - from});
  }
  for (; k + kLanes<A> <= to; k += kLanes<A>) f(k, Streamed{});
  if (k < to) f(k, Rest{to - k});
}
// f(row, number of rows as a constant): in fours, then one by one.
template <int N>
struct Count {
  static constexpr int value = N;
};
template <class F>
CBAM_INLINE void by_fours(int64_t from, int64_t to, F f) {
  int64_t r = from;
  for (; r + 4 <= to; r += 4) f(r, Count<4>{});
  for (; r < to; ++r) f(r, Count<1>{});
}

// The hardware's prefetchers start anew with every row: ask for the same columns of the rows that come next.
template <class T>
CBAM_INLINE void ahead(const T* p) {
  __builtin_prefetch(p, 0, 3);
}

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

// Maximum with NaN first, for the rare line whose sum is NaN: the vector loops do not look at NaN.
template <class A, class F>
__attribute__((noinline)) void max_with_nan(int64_t from, int64_t to, F value, A* max, int32_t* where) {
  A best = value(from);
  int64_t at = from;
  for (int64_t i = from + 1; i < to && best == best; ++i) {
    const A v = value(i);
    if (!(v <= best)) best = v, at = i;
  }
  *max = best;
  if (where) *where = static_cast<int32_t>(at);
}

// ---- reductions ----------------------------------------------------------------------------------------------------

// Rows: NCHW pooling (a row is a channel) or, with COLS, the NHWC squeeze (constants and scale belong to columns).
template <class T, bool NORM, bool COLS, bool INDEX>
void reduce_rows(const Part<T>& part, int64_t stride, int64_t r0, int64_t r1, int64_t k0, int64_t k1,
                 const acc_t<T>* scale, acc_t<T>* sum, acc_t<T>* max, int32_t* where) {
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
        ahead(row[i] + k + N * stride);
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
      if constexpr (INDEX) where[line] = static_cast<int32_t>(first_at<A>(best[i], max[line], at[i]));
      if (sum[line] != sum[line]) {
        max_with_nan<A>(
            k0, k1,
            [&](int64_t k) {
              A v = input_scalar<T, NORM>(part, line * stride + k, COLS ? k : line);
              if constexpr (COLS) v = rounded_scalar<T>(v * scale[k]);
              return v;
            },
            max + line, INDEX ? where + line : nullptr);
      }
    }
  });
}

// Columns: the NCHW squeeze (constants and scale belong to rows) or, with COLS, NHWC pooling.
template <class T, bool NORM, bool COLS, bool INDEX>
void reduce_columns(const Part<T>& part, int64_t stride, int64_t r0, int64_t r1, int64_t k0, int64_t k1,
                    const acc_t<T>* scale, acc_t<T>* sum, acc_t<T>* max, int32_t* where) {
  using A = acc_t<T>;
  using V = Vec<A>;
  for (int64_t k = k0; k < k1; ++k) {
    sum[k] = 0;
    max[k] = lowest<A>();
    if constexpr (INDEX) where[k] = static_cast<int32_t>(r0);
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
      if constexpr (INDEX) at = get_index<A>(where + k, width);
      if constexpr (NORM && COLS) a[0] = get<A>(part.alpha + k, width), b[0] = get<A>(part.beta + k, width);
      for (int i = 0; i < N; ++i) {
        ahead(row[i] + k + N * stride);
        V v = input<T, NORM>(get<T>(row[i] + k, width), a[COLS ? 0 : i], b[COLS ? 0 : i]);
        if constexpr (!COLS) v = rounded<T>(v * s[i]);
        sums += v;
        const Ints<A> better = v > best;
        best = better ? v : best;
        if constexpr (INDEX) at = better ? all_index<A>(r + i) : at;
      }
      put<A>(sum + k, sums, width);
      put<A>(max + k, best, width);
      if constexpr (INDEX) put_index(where + k, at, width);
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
        max + k, INDEX ? where + k : nullptr);
  }
}

// ---- the operator's sweeps -----------------------------------------------------------------------------------------

template <class T, bool LAST, bool NORM>
struct Sweeps {
  using A = acc_t<T>;
  using V = Vec<A>;
  // Columns of a contiguous map that are summed up at a time, so that the running sums stay in the first-level cache.
  static constexpr int64_t kTile = 1024;

  static void pool(const Part<T>& part, A* sum, A* max, int32_t* where) {
    if constexpr (LAST) {
      auto run = where ? reduce_columns<T, NORM, true, true> : reduce_columns<T, NORM, true, false>;
      run(part, part.channels, part.p0, part.p1, 0, part.channels, nullptr, sum, max, where);
    } else {
      auto run = where ? reduce_rows<T, NORM, false, true> : reduce_rows<T, NORM, false, false>;
      run(part, part.positions, 0, part.channels, part.p0, part.p1, nullptr, sum, max, where);
    }
  }

  static void squeeze(const Part<T>& part, const A* s, A* sum, A* max, int32_t* where) {
    if constexpr (LAST) {
      auto run = where ? reduce_rows<T, NORM, true, true> : reduce_rows<T, NORM, true, false>;
      run(part, part.channels, part.p0, part.p1, 0, part.channels, s, sum, max, where);
    } else {
      auto run = where ? reduce_columns<T, NORM, false, true> : reduce_columns<T, NORM, false, false>;
      for (int64_t k = part.p0; k < part.p1; k += kTile)
        run(part, part.positions, 0, part.channels, k, k + kTile < part.p1 ? k + kTile : part.p1, s, sum, max, where);
    }
  }

  // One row of the sample: row gate, column gates; s multiplies before t in both layouts.
  static void apply(const Part<T>& part, const A* s, const A* t, T* y) {
    const int64_t stride = LAST ? part.channels : part.positions;
    const int64_t r0 = LAST ? part.p0 : 0, r1 = LAST ? part.p1 : part.channels;
    const int64_t k0 = LAST ? 0 : part.p0, k1 = LAST ? part.channels : part.p1;
    for (int64_t r = r0; r < r1; ++r) {
      const T* row = part.u + r * stride;
      T* out = y + r * stride;
      const V gate = all<A>(LAST ? t[r] : s[r]);
      V a = V{}, b = V{};
      if constexpr (NORM && !LAST) a = all<A>(part.alpha[r]), b = all<A>(part.beta[r]);
      const A* gates = LAST ? s : t;
      along_output<T>(out, part.streaming, k0, k1, [&](int64_t k, auto width) __attribute__((always_inline)) {
        if constexpr (NORM && LAST) a = get<A>(part.alpha + k, width), b = get<A>(part.beta + k, width);
        ahead(row + k + 2 * stride);
        const V x = input<T, NORM>(get<T>(row + k, width), a, b), other = get<A>(gates + k, width);
        put<T>(out + k, LAST ? rounded<T>(x * other) * gate : rounded<T>(x * gate) * other, width);
      });
    }
    if (part.streaming) streamed();
  }

  static void gate_grads(const Part<T>& part, const T* g, const A* s, const A* t, A* dt, A* gtx, A* gt, A* usum) {
    if constexpr (LAST) {
      for (int64_t c = 0; c < part.channels; ++c) {
        gtx[c] = 0;
        if constexpr (NORM) gt[c] = usum[c] = 0;
      }
    } else {
      for (int64_t p = part.p0; p < part.p1; ++p) dt[p] = 0;
      for (int64_t c = 0; c < part.channels; ++c) {
        gtx[c] = 0;
        if constexpr (NORM) gt[c] = usum[c] = 0;
      }
    }
    const int64_t stride = LAST ? part.channels : part.positions;
    const int64_t r0 = LAST ? part.p0 : 0, r1 = LAST ? part.p1 : part.channels;
    const int64_t first = LAST ? 0 : part.p0, end = LAST ? part.channels : part.p1;
    const int64_t tile = LAST ? end - first : kTile;
    for (int64_t k0 = first; k0 < end; k0 += tile) {
      const int64_t k1 = k0 + tile < end ? k0 + tile : end;
      by_fours(r0, r1, [&](int64_t r, auto count) __attribute__((always_inline)) {
        constexpr int N = decltype(count)::value;
        V per_row[N], per_row_gt[N], per_row_u[N], a[N], b[N], gate[N];
        const T *urow[N], *grow[N];
        for (int i = 0; i < N; ++i) {
          urow[i] = part.u + (r + i) * stride;
          grow[i] = g + (r + i) * stride;
          per_row[i] = per_row_gt[i] = per_row_u[i] = V{};
          gate[i] = all<A>(LAST ? t[r + i] : s[r + i]);
          if constexpr (NORM && !LAST) a[i] = all<A>(part.alpha[r + i]), b[i] = all<A>(part.beta[r + i]);
        }
        A* per_column = LAST ? gtx : dt;
        const A* gates = LAST ? s : t;
        along<A>(k0, k1, [&](int64_t k, auto width) __attribute__((always_inline)) {
          const V column_gate = get<A>(gates + k, width);
          V columns = get<A>(per_column + k, width), columns_gt = V{}, columns_u = V{};
          if constexpr (NORM && LAST) {
            columns_gt = get<A>(gt + k, width);
            columns_u = get<A>(usum + k, width);
            a[0] = get<A>(part.alpha + k, width), b[0] = get<A>(part.beta + k, width);
          }
          for (int i = 0; i < N; ++i) {
            ahead(urow[i] + k + N * stride), ahead(grow[i] + k + N * stride);
            const V u = get<T>(urow[i] + k, width), grad = get<T>(grow[i] + k, width);
            if constexpr (NORM) {
              const V x = or_else<A>(input<T, true>(u, a[LAST ? 0 : i], b[LAST ? 0 : i]), width, A(0));
              if constexpr (LAST) {
                const V weighted = grad * gate[i];
                columns += weighted * u, columns_gt += weighted, columns_u += u;
                per_row[i] += grad * x * column_gate;
              } else {
                const V weighted = grad * column_gate;
                per_row[i] += weighted * u, per_row_gt[i] += weighted, per_row_u[i] += u;
                columns += grad * x * gate[i];
              }
            } else {
              const V product = grad * u;
              columns += product * gate[i];
              per_row[i] += product * column_gate;
            }
          }
          put<A>(per_column + k, columns, width);
          if constexpr (NORM && LAST) put<A>(gt + k, columns_gt, width), put<A>(usum + k, columns_u, width);
        });
        if constexpr (LAST) {
          across<A>(per_row, Plus{}, dt + r);
        } else {
          add_across<A>(per_row, gtx + r);
          if constexpr (NORM) add_across<A>(per_row_gt, gt + r), add_across<A>(per_row_u, usum + r);
        }
      });
    }
  }

  static void weighted(const Part<T>& part, const A* weight, A* out) {
    for (int64_t c = 0; c < part.channels; ++c) out[c] = 0;
    const int64_t stride = LAST ? part.channels : part.positions;
    by_fours(LAST ? part.p0 : 0, LAST ? part.p1 : part.channels,
             [&](int64_t r, auto count) __attribute__((always_inline)) {
      constexpr int N = decltype(count)::value;
      const T* row[N];
      V sums[N], w[N];
      for (int i = 0; i < N; ++i) {
        row[i] = part.u + (r + i) * stride;
        sums[i] = V{};
        if constexpr (LAST) w[i] = all<A>(weight[r + i]);
      }
      along<A>(LAST ? 0 : part.p0, LAST ? part.channels : part.p1,
               [&](int64_t k, auto width) __attribute__((always_inline)) {
        if constexpr (LAST) {
          V columns = get<A>(out + k, width);
          for (int i = 0; i < N; ++i) columns += get<T>(row[i] + k, width) * w[i];
          put<A>(out + k, columns, width);
        } else {
          const V ws = get<A>(weight + k, width);
          for (int i = 0; i < N; ++i) sums[i] += get<T>(row[i] + k, width) * ws;
        }
      });
      if constexpr (!LAST) across<A>(sums, Plus{}, out + r);
    });
  }

  using Gradient = typename Kernels<T>::Gradient;

  static void input_grad(const Part<T>& part, const T* g, const Gradient& f, T* dx) {
    const int64_t stride = LAST ? part.channels : part.positions;
    const int64_t r0 = LAST ? part.p0 : 0, r1 = LAST ? part.p1 : part.channels;
    const int64_t k0 = LAST ? 0 : part.p0, k1 = LAST ? part.channels : part.p1;
    const int32_t* where_columns = LAST ? f.where_p : f.where_c;
    const int32_t* where_rows = LAST ? f.where_c : f.where_p;
    for (int64_t r = r0; r < r1; ++r) {
      const T *grow = g + r * stride, *urow = part.u + r * stride;
      T* out = dx + r * stride;
      const Ints<A> here = all_index<A>(r);
      auto value = [&](int64_t k, auto width, bool at_row_maximum) __attribute__((always_inline)) {
        ahead(grow + k + 2 * stride);
        const V grad = get<T>(grow + k, width);
        const Ints<A> hit = get_index<A>(where_columns + k, width) == here;
        V v;
        if constexpr (LAST) {
          const A dmean = f.dmean[r] + (at_row_maximum ? f.dmax[r] : A(0));
          const V peak = hit ? get<A>(f.dpeak + k, width) : V{};
          v = get<A>(f.s + k, width) * (grad * all<A>(f.t[r]) + all<A>(dmean)) + get<A>(f.davg + k, width) + peak;
        } else {
          const A davg = f.davg[r] + (at_row_maximum ? f.dpeak[r] : A(0));
          const V peak = hit ? get<A>(f.dmax + k, width) : V{};
          v = all<A>(f.s[r]) * (grad * get<A>(f.t + k, width) + get<A>(f.dmean + k, width) + peak) + all<A>(davg);
        }
        if constexpr (NORM) {
          ahead(urow + k + 2 * stride);
          const V u = get<T>(urow + k, width);
          if constexpr (LAST) {
            v = v * get<A>(part.alpha + k, width) + u * get<A>(f.k1 + k, width) + get<A>(f.k0 + k, width);
          } else {
            v = v * all<A>(part.alpha[r]) + u * all<A>(f.k1[r]) + all<A>(f.k0[r]);
          }
        }
        return v;
      };
      along_output<T>(out, part.streaming, k0, k1, [&](int64_t k, auto width) __attribute__((always_inline)) {
        put<T>(out + k, value(k, width, false), width);
      });
      const int64_t peak = where_rows[r];
      if (peak >= k0 && peak < k1) put<T>(out + peak, value(peak, Rest{1}, true), Rest{1});
    }
    if (part.streaming) streamed();
  }

  static const Kernels<T>& table() {
    static const Kernels<T> kernels = {pool, squeeze, apply, gate_grads, weighted, input_grad};
    return kernels;
  }
};

// ---- small algebra -------------------------------------------------------------------------------------------------

template <class A>
struct Small {
  using V = Vec<A>;

  // R rows of w at a time, so that each load of an input serves all of them.
  template <int R>
  static CBAM_INLINE void dense_rows(const A* w, const A* bias, const A* in, A* out, int64_t j, int64_t rows, int64_t k,
                                     int64_t d) {
    by_fours(0, d, [&](int64_t i, auto count) __attribute__((always_inline)) {
      constexpr int N = decltype(count)::value;
      V sums[R][N];
      for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sums[r][n] = V{};
      along<A>(0, k, [&](int64_t c, auto width) __attribute__((always_inline)) {
        V weight[R];
        for (int r = 0; r < R; ++r) weight[r] = get<A>(w + (j + r) * k + c, width);
        for (int n = 0; n < N; ++n) {
          const V value = get<A>(in + (i + n) * k + c, width);
          for (int r = 0; r < R; ++r) sums[r][n] += weight[r] * value;
        }
      });
      for (int r = 0; r < R; ++r) {
        A results[N];
        across<A>(sums[r], Plus{}, results);
        for (int n = 0; n < N; ++n) out[(i + n) * rows + j + r] = (bias ? bias[j + r] : A(0)) + results[n];
      }
    });
  }

  static void dense(const A* w, const A* bias, const A* in, A* out, int64_t j0, int64_t j1, int64_t rows, int64_t k,
                    int64_t d) {
    int64_t j = j0;
    for (; j + 4 <= j1; j += 4) dense_rows<4>(w, bias, in, out, j, rows, k, d);
    for (; j < j1; ++j) dense_rows<1>(w, bias, in, out, j, rows, k, d);
  }

  static void transposed(const A* w, const A* in, A* out, int64_t k0, int64_t k1, int64_t rows, int64_t k, int64_t d) {
    by_fours(0, d, [&](int64_t i, auto count) __attribute__((always_inline)) {
      constexpr int N = decltype(count)::value;
      int64_t c = k0;
      for (; c + 2 * kLanes<A> <= k1; c += 2 * kLanes<A>) {
        V sums[N], more[N];
        for (int n = 0; n < N; ++n) sums[n] = more[n] = V{};
        for (int64_t j = 0; j < rows; ++j) {
          const V weight = load<A>(w + j * k + c), next = load<A>(w + j * k + c + kLanes<A>);
          for (int n = 0; n < N; ++n) {
            const V factor = all<A>(in[(i + n) * rows + j]);
            sums[n] += factor * weight;
            more[n] += factor * next;
          }
        }
        for (int n = 0; n < N; ++n) {
          store<A>(out + (i + n) * k + c, sums[n]);
          store<A>(out + (i + n) * k + c + kLanes<A>, more[n]);
        }
      }
      along<A>(c, k1, [&](int64_t l, auto width) __attribute__((always_inline)) {
        V sums[N];
        for (int n = 0; n < N; ++n) sums[n] = V{};
        for (int64_t j = 0; j < rows; ++j) {
          const V weight = get<A>(w + j * k + l, width);
          for (int n = 0; n < N; ++n) sums[n] += all<A>(in[(i + n) * rows + j]) * weight;
        }
        for (int n = 0; n < N; ++n) put<A>(out + (i + n) * k + l, sums[n], width);
      });
    });
  }

  static void outer(const A* a, const A* b, A* out, int64_t j0, int64_t j1, int64_t rows, int64_t k, int64_t d) {
    by_fours(j0, j1, [&](int64_t j, auto count) __attribute__((always_inline)) {
      constexpr int N = decltype(count)::value;
      along<A>(0, k, [&](int64_t c, auto width) __attribute__((always_inline)) {
        V sums[N];
        for (int n = 0; n < N; ++n) sums[n] = V{};
        for (int64_t i = 0; i < d; ++i) {
          const V value = get<A>(b + i * k + c, width);
          for (int n = 0; n < N; ++n) sums[n] += all<A>(a[i * rows + j + n]) * value;
        }
        for (int n = 0; n < N; ++n) put<A>(out + (j + n) * k + c, sums[n], width);
      });
    });
  }

  static void convolve(const A* padded, int64_t planes, int64_t height, int64_t pitch, const A* kernel, int64_t k,
                       int64_t width, int64_t h0, int64_t h1, A* out) {
    const int64_t plane = (height + k - 1) * pitch;
    for (int64_t h = h0; h < h1; ++h)
      along<A>(0, width, [&](int64_t w, auto lanes) __attribute__((always_inline)) {
        V even = V{}, odd = V{};
        const A* tap = kernel;
        for (int64_t m = 0; m < planes; ++m)
          for (int64_t i = 0; i < k; ++i) {
            const A* row = padded + m * plane + (h + i) * pitch + w;
            int64_t j = 0;
            for (; j + 2 <= k; j += 2, tap += 2) {
              even += all<A>(tap[0]) * load<A>(row + j);
              odd += all<A>(tap[1]) * load<A>(row + j + 1);
            }
            if (j < k) even += all<A>(*tap++) * load<A>(row + j);
          }
        put<A>(out + h * width + w, even + odd, lanes);
      });
  }

  static void kernel_grad(const A* padded, int64_t planes, int64_t height, int64_t width, int64_t pitch, const A* dz,
                          int64_t k, A* dkernel) {
    const int64_t plane = (height + k - 1) * pitch;
    for (int64_t m = 0; m < planes; ++m)
      for (int64_t i = 0; i < k; ++i)
        by_fours(0, k, [&](int64_t j, auto count) __attribute__((always_inline)) {
          constexpr int N = decltype(count)::value;
          V sums[N];
          for (int n = 0; n < N; ++n) sums[n] = V{};
          for (int64_t h = 0; h < height; ++h) {
            const A* row = padded + m * plane + (h + i) * pitch + j;
            const A* grads = dz + (h + k / 2) * pitch + k / 2;
            for (int64_t w = 0; w < width; w += kLanes<A>) {
              const V grad = load<A>(grads + w);  // zero beyond the map
              for (int n = 0; n < N; ++n) sums[n] += grad * load<A>(row + w + n);
            }
          }
          across<A>(sums, Plus{}, dkernel + (m * k + i) * k + j);
        });
  }

  // 1 / (1 + exp(-z)); exactly one half at zero, and NaN stays.
  static CBAM_INLINE V sigmoid(V z) {
    if constexpr (sizeof(A) == 8) {
      V result;
      for (int i = 0; i < kLanes<A>; ++i) result[i] = 1 / (1 + __builtin_exp(-z[i]));
      return result;
    } else {
      const V huge = all<A>(88.3f), v = -z;
      V x = v > huge ? huge : v;
      x = x < -87.3f - V{} ? -87.3f - V{} : x;
      // exp(x) = 2^n exp(r) with |r| <= log(2) / 2; adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
      const V magic = all<A>(12582912.0f), shifted = x * 1.44269504f + magic, n = shifted - magic;
      const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
      V p = all<A>(1.0f / 5040);
      p = p * r + 1.0f / 720;
      p = p * r + 1.0f / 120;
      p = p * r + 1.0f / 24;
      p = p * r + 1.0f / 6;
      p = p * r + 0.5f;
      p = p * r + 1.0f;
      p = p * r + 1.0f;
      const Ints<A> exponent = bit_cast<Ints<A>>(shifted) - bit_cast<Ints<A>>(magic);
      const V power = bit_cast<V>((exponent + 127) << 23);
      const V result = 1.0f / (1.0f + p * power);
      return z == z ? (v > huge ? V{} : result) : z;
    }
  }

  static void activate(A* z, int64_t count, A scale, bool hard) {
    along<A>(0, count, [&](int64_t i, auto width) __attribute__((always_inline)) {
      V v = get<A>(z + i, width);
      if (hard) {
        v += 3;
        v = v < V{} ? V{} : v;
        v = (v > 6 - V{} ? 6 - V{} : v) / 6;
      } else {
        v = sigmoid(v);
      }
      put<A>(z + i, v * scale, width);
    });
  }

  static void through_activation(A* d, const A* gate, int64_t count, A scale, bool hard) {
    along<A>(0, count, [&](int64_t i, auto width) __attribute__((always_inline)) {
      const V g = get<A>(gate + i, width), share = g / scale;
      V slope = g * (1 - share);
      if (hard) {
        const Ints<A> inside = (share > V{}) & (share < 1 - V{});
        slope = inside ? all<A>(scale / 6) : share == share ? V{} : share;
      }
      put<A>(d + i, scale == 0 ? V{} : get<A>(d + i, width) * slope, width);
    });
  }

  static const Algebra<A>& table() {
    static const Algebra<A> algebra = {dense,       transposed, outer,  convolve, kernel_grad,
                                       activate, through_activation, kLanes<A>};
    return algebra;
  }
};

}  // namespace

template <class T>
const Kernels<T>& kernels(Layout layout, bool norm) {
  if (layout == kChannelsLast) return norm ? Sweeps<T, true, true>::table() : Sweeps<T, true, false>::table();
  return norm ? Sweeps<T, false, true>::table() : Sweeps<T, false, false>::table();
}
template <class A>
const Algebra<A>& algebra() {
  return Small<A>::table();
}

#define CBAM_INSTANTIATE(T) template const Kernels<T>& kernels<T>(Layout, bool);
CBAM_FOR_EACH_TYPE(CBAM_INSTANTIATE)
#undef CBAM_INSTANTIATE
template const Algebra<float>& algebra<float>();
template const Algebra<double>& algebra<double>();

}  // namespace CBAM_ISA
}  // namespace cbam
