// The MLP, the k x k convolution and the activations, in the accumulation type.
#pragma once

#include "kernels.h"
#include "rows.h"

namespace cbam {
namespace CBAM_ISA {
namespace {

template <class A>
struct AlgebraLoops {
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

  static void kernel_grad(const A* plane, int64_t height, int64_t width, int64_t pitch, const A* dz, int64_t k,
                          int64_t i, A* dkernel) {
    by_fours(0, k, [&](int64_t j, auto count) __attribute__((always_inline)) {
      constexpr int N = decltype(count)::value;
      V sums[N];
      for (int n = 0; n < N; ++n) sums[n] = V{};
      for (int64_t h = 0; h < height; ++h) {
        const A* row = plane + (h + i) * pitch + j;
        const A* grads = dz + (h + k / 2) * pitch + k / 2;
        for (int64_t w = 0; w < width; w += kLanes<A>) {
          const V grad = load<A>(grads + w);  // zero beyond the map
          for (int n = 0; n < N; ++n) sums[n] += grad * load<A>(row + w + n);
        }
      }
      across<A>(sums, Plus{}, dkernel + j);
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
}  // namespace CBAM_ISA
}  // namespace cbam
