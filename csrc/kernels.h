// The inner loops of the operator, compiled once for every instruction set and chosen when the library is loaded.
//
// A sample is a matrix in memory: contiguous maps have one row per channel and one column per position, channels-last
// maps one row per position and one column per channel. A kernel works on the positions [p0, p1) of one sample, all
// channels of it, so that one thread reads the same part of a map in every phase.
#pragma once

#include <cstdint>

#include "types.h"

namespace cbam {

// Part of one sample. With a batch norm in front, the operator's map is x = alpha * u + beta, u being what is in memory.
template <class T>
struct Part {
  const T* u;
  int64_t channels, positions, p0, p1;
  const acc_t<T>*alpha, *beta;  // (C), or null: x = u
  bool streaming;               // the output does not fit the caches
};

// What follows the gates: nothing, or the sum with a residual, or that and a ReLU.
enum Epilogue { kNoEpilogue = 0, kAdd = 1, kAddRelu = 2 };
constexpr int kEpilogues = 3;

template <class T, class A = acc_t<T>>
struct Kernels {
  // Over positions, per channel (C): sum and maximum of x, and the first position of the maximum unless `argmax` is null.
  void (*pool)(const Part<T>&, A* sum, A* max, int32_t* argmax);
  // Over channels, per position: sum and maximum of s x rounded to T, and its first channel. Indexed by position.
  void (*squeeze)(const Part<T>&, const A* s, A* sum, A* max, int32_t* argmax);
  // y = s x t, rounded to T after each product; by epilogue  y + residual, rounded to T, and max(., 0) that keeps NaN.
  void (*apply[kEpilogues])(const Part<T>&, const A* s, const A* t, const T* residual, T* y);
  // Backward, first reads: per position  dt = sum_c g s x;  per channel  gtx = sum_p g t u, gt = sum_p g t, usum = sum_p u
  // (the last two only with a norm in front). [1]: behind a ReLU with the output `out`, g is first masked and stored.
  void (*gate_grads[2])(const Part<T>&, const T* g, const T* out, T* masked, const A* s, const A* t, A* dt, A* gtx,
                        A* gt, A* usum);
  // Per channel: sum_p weight_p u.
  void (*weighted)(const Part<T>&, const A* weight, A* out);
  // dx = s (g t + dmean + [c == argmax_c] dmax) + davg + [p == argmax_p] dpeak, then  alpha dx + k1 u + k0  with a norm.
  struct Gradient {
    const A *s, *davg, *dpeak;  // (C)
    const int32_t* argmax_p;     // (C)
    const A *t, *dmean, *dmax;  // (P)
    const int32_t* argmax_c;     // (P)
    const A *k1, *k0;           // (C)
  };
  void (*input_grad)(const Part<T>&, const T* g, const Gradient&, T* dx);
};

// Small dense algebra and the k x k convolution, in the accumulation type.
template <class A>
struct Algebra {
  // out[d, j] = bias[j] + sum_k w[j, k] in[d, k]   for rows j0 <= j < j1
  void (*dense)(const A* w, const A* bias, const A* in, A* out, int64_t j0, int64_t j1, int64_t rows, int64_t k, int64_t d);
  // out[d, k] = sum_j in[d, j] w[j, k]             for columns k0 <= k < k1
  void (*transposed)(const A* w, const A* in, A* out, int64_t k0, int64_t k1, int64_t rows, int64_t k, int64_t d);
  // out[j, k] = sum_d a[d, j] b[d, k]              for rows j0 <= j < j1
  void (*outer)(const A* a, const A* b, A* out, int64_t j0, int64_t j1, int64_t rows, int64_t k, int64_t d);
  // out[h, w] = sum over planes and taps of kernel * padded, for output rows h0 <= h < h1. A padded plane is
  // (height + k - 1, pitch), pitch >= width + k - 1 + one register.
  void (*convolve)(const A* padded, int64_t planes, int64_t height, int64_t pitch, const A* kernel, int64_t k,
                   int64_t width, int64_t h0, int64_t h1, A* out);
  // One row of the kernel's gradient: dkernel[j] = sum_{h, w} dz[h, w] plane[h + i, w + j]; dz is padded like the plane.
  void (*kernel_grad)(const A* plane, int64_t height, int64_t width, int64_t pitch, const A* dz, int64_t k, int64_t i,
                      A* dkernel);
  // z becomes scale * sigmoid(z), or of the hard sigmoid
  void (*activate)(A* z, int64_t count, A scale, bool hard);
  // d becomes d * dgate/dz, computed from the gate's value
  void (*through_activation)(A* d, const A* gate, int64_t count, A scale, bool hard);
  int lanes;
};

enum Layout { kContiguous = 0, kChannelsLast = 1 };

// Filled by kernels_*.cpp; [layout][norm in front].
#define CBAM_FOR_EACH_TYPE(DO) DO(float) DO(double) DO(bf16) DO(f16)
#define CBAM_DECLARE_ISA(isa)                         \
  namespace isa {                                     \
  template <class T>                                  \
  const Kernels<T>& kernels(Layout layout, bool norm); \
  template <class A>                                  \
  const Algebra<A>& algebra();                        \
  }
CBAM_DECLARE_ISA(plain)
#if defined(CBAM_X86)
CBAM_DECLARE_ISA(avx2)
CBAM_DECLARE_ISA(avx512)
#endif

}  // namespace cbam
