// The operator's passes over the map, for both memory formats, with and without a batch norm in front.
#pragma once

#include "reductions.h"

namespace cbam {
namespace CBAM_ISA {
namespace {

template <class T, bool LAST, bool NORM>
struct Passes {
  using A = acc_t<T>;
  using V = Vec<A>;
  // Columns of a contiguous map that are summed up at a time, so that the running sums stay in the first-level cache.
  static constexpr int64_t kTile = 1024;

  static void pool(const Part<T>& part, A* sum, A* max, int32_t* argmax) {
    if constexpr (LAST) {
      auto run = argmax ? reduce_columns<T, NORM, true, true> : reduce_columns<T, NORM, true, false>;
      run(part, part.channels, part.p0, part.p1, 0, part.channels, nullptr, sum, max, argmax);
    } else {
      auto run = argmax ? reduce_rows<T, NORM, false, true> : reduce_rows<T, NORM, false, false>;
      run(part, part.positions, 0, part.channels, part.p0, part.p1, nullptr, sum, max, argmax);
    }
  }

  static void squeeze(const Part<T>& part, const A* s, A* sum, A* max, int32_t* argmax) {
    if constexpr (LAST) {
      auto run = argmax ? reduce_rows<T, NORM, true, true> : reduce_rows<T, NORM, true, false>;
      run(part, part.channels, part.p0, part.p1, 0, part.channels, s, sum, max, argmax);
    } else {
      auto run = argmax ? reduce_columns<T, NORM, false, true> : reduce_columns<T, NORM, false, false>;
      for (int64_t k = part.p0; k < part.p1; k += kTile)
        run(part, part.positions, 0, part.channels, k, k + kTile < part.p1 ? k + kTile : part.p1, s, sum, max, argmax);
    }
  }

  // One row of the sample: row gate, column gates; s multiplies before t in both layouts.
  template <Epilogue END>
  static void apply(const Part<T>& part, const A* s, const A* t, const T* residual, T* y) {
    const int64_t stride = LAST ? part.channels : part.positions;
    const int64_t r0 = LAST ? part.p0 : 0, r1 = LAST ? part.p1 : part.channels;
    const int64_t k0 = LAST ? 0 : part.p0, k1 = LAST ? part.channels : part.p1;
    for (int64_t r = r0; r < r1; ++r) {
      const T *row = part.u + r * stride, *rest = END == kNoEpilogue ? nullptr : residual + r * stride;
      T* out = y + r * stride;
      const V gate = all<A>(LAST ? t[r] : s[r]);
      V a = V{}, b = V{};
      if constexpr (NORM && !LAST) a = all<A>(part.alpha[r]), b = all<A>(part.beta[r]);
      const A* gates = LAST ? s : t;
      along_output<T>(out, part.streaming, k0, k1, [&](int64_t k, auto width) __attribute__((always_inline)) {
        if constexpr (NORM && LAST) a = get<A>(part.alpha + k, width), b = get<A>(part.beta + k, width);
        prefetch(row + k + 2 * stride);
        const V x = input<T, NORM>(get<T>(row + k, width), a, b), other = get<A>(gates + k, width);
        V v = LAST ? rounded<T>(x * other) * gate : rounded<T>(x * gate) * other;
        if constexpr (END != kNoEpilogue) {
          prefetch(rest + k + 2 * stride);
          v = rounded_before_sum<T>(v) + get<T>(rest + k, width);
        }
        if constexpr (END == kAddRelu) v = v < V{} ? V{} : v;
        put<T>(out + k, v, width);
      });
    }
    if (part.streaming) streamed();
  }

  template <bool MASK>
  static void gate_grads(const Part<T>& part, const T* g, const T* out, T* masked, const A* s, const A* t, A* dt,
                         A* gtx, A* gt, A* usum) {
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
        const T *urow[N], *grow[N], *outrow[N];
        T* maskedrow[N];
        for (int i = 0; i < N; ++i) {
          urow[i] = part.u + (r + i) * stride;
          grow[i] = g + (r + i) * stride;
          if constexpr (MASK) outrow[i] = out + (r + i) * stride, maskedrow[i] = masked + (r + i) * stride;
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
            prefetch(urow[i] + k + N * stride), prefetch(grow[i] + k + N * stride);
            const V u = get<T>(urow[i] + k, width);
            V grad = get<T>(grow[i] + k, width);
            if constexpr (MASK) {
              prefetch(outrow[i] + k + N * stride);
              grad = get<T>(outrow[i] + k, width) <= V{} ? V{} : grad;
              put<T>(maskedrow[i] + k, grad, width);
            }
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
    const int32_t* argmax_columns = LAST ? f.argmax_p : f.argmax_c;
    const int32_t* argmax_rows = LAST ? f.argmax_c : f.argmax_p;
    for (int64_t r = r0; r < r1; ++r) {
      const T *grow = g + r * stride, *urow = part.u + r * stride;
      T* out = dx + r * stride;
      const Ints<A> here = all_index<A>(r);
      auto value = [&](int64_t k, auto width, bool at_row_maximum) __attribute__((always_inline)) {
        prefetch(grow + k + 2 * stride);
        const V grad = get<T>(grow + k, width);
        const Ints<A> is_max = get_index<A>(argmax_columns + k, width) == here;
        V v;
        if constexpr (LAST) {
          const A dmean = f.dmean[r] + (at_row_maximum ? f.dmax[r] : A(0));
          const V peak = is_max ? get<A>(f.dpeak + k, width) : V{};
          v = get<A>(f.s + k, width) * (grad * all<A>(f.t[r]) + all<A>(dmean)) + get<A>(f.davg + k, width) + peak;
        } else {
          const A davg = f.davg[r] + (at_row_maximum ? f.dpeak[r] : A(0));
          const V peak = is_max ? get<A>(f.dmax + k, width) : V{};
          v = all<A>(f.s[r]) * (grad * get<A>(f.t + k, width) + get<A>(f.dmean + k, width) + peak) + all<A>(davg);
        }
        if constexpr (NORM) {
          prefetch(urow + k + 2 * stride);
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
      const int64_t peak = argmax_rows[r];
      if (peak >= k0 && peak < k1) put<T>(out + peak, value(peak, Rest{1}, true), Rest{1});
    }
    if (part.streaming) streamed();
  }

  static const Kernels<T>& table() {
    static const Kernels<T> kernels = {pool,
                                       squeeze,
                                       {apply<kNoEpilogue>, apply<kAdd>, apply<kAddRelu>},
                                       {gate_grads<false>, gate_grads<true>},
                                       weighted,
                                       input_grad};
    return kernels;
  }
};

}  // namespace
}  // namespace CBAM_ISA
}  // namespace cbam
