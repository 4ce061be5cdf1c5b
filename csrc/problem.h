// One call: its shapes, weights and config, checked, and the layout of what it keeps for backward.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "kernels.h"

namespace cbam {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Weight = std::optional<Tensor>;

enum class Isa { plain = 0, avx2 = 1, avx512 = 2 };
Isa isa();  // of this processor, lowered by CBAM_ISA

template <class T>
const Kernels<T>& kernels_for(Layout layout, bool norm);
template <class A>
const Algebra<A>& algebra_for();

// The optional tensors in the order of the schema.
struct Weights {
  const Weight &w0, &b0, &w1, &b1, &channel_scale;
  const Weight &kernel, &norm_weight, &norm_bias, &norm_var, &norm_mean, &spatial_scale;
  const Weight &pre_weight, &pre_bias, &pre_mean, &pre_var;
};
// The numbers in the order of the schema.
struct Config {
  int64_t pooling, descriptor, activation;
  bool norm_training;
  double norm_eps;
  bool pre_training;  // the statistics of the norm in front are those of this batch
  double pre_eps;
  bool relu;
};
// The numbers of the signature, as in `cbam/ops/signature.py`.
enum Pooling { kPoolAverage = 1, kPoolMaximum = 2, kPoolBoth = 3 };
enum Descriptor { kAverage = 1, kMaximum = 2, kAverageMaximum = 3, kMaximumAverage = 4 };
enum Activation { kSigmoid = 0, kHardSigmoid = 1 };

// Working memory of one thread, a stack that is kept from call to call: a malloc and free of a few megabytes next to a
// large map makes glibc return the map's pages to the system, which costs more than the whole operator.
void* take_scratch(size_t bytes);
void return_scratch(size_t bytes);

// Uninitialised memory, aligned for every register.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : bytes_(static_cast<size_t>(count) * sizeof(A)), memory_(static_cast<A*>(take_scratch(bytes_))) {}
  ~Scratch() { return_scratch(bytes_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* get() const { return memory_; }

 private:
  size_t bytes_;
  A* memory_;
};

Tensor new_tensor(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                  ScalarType type);
Tensor new_vector(int64_t size, ScalarType type);
Tensor new_like(const Tensor& like);
// Refuse a tensor that is not of the map's type, shape and memory format.
void check_like(const Tensor& tensor, const Tensor& map, const char* name);

template <class A>
constexpr ScalarType scalar_type_of() {
  return sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float;
}

constexpr int64_t kGrain = 16384;  // elements; fewer are not worth another thread
// Run f(begin, end) over [0, count) on torch's threads; `work` is roughly the elements that one item touches.
template <class F>
void in_parallel(int64_t count, int64_t work, const F& f) {
  if (count <= 0) return;
  const int64_t grain = kGrain / (work > 0 ? work : 1);
  if (count <= grain) f(0, count);
  else torch::stable::parallel_for(0, count, grain > 0 ? grain : 1, f);
}

// A call without its tensors.
struct Shape {
  int64_t n, c, height, width;
  Layout layout;
  int64_t hidden, k;  // 0 without their gate
};
// The addresses of `Weights` in its order, null for the absent ones.
constexpr int kWeights = 15;
template <class A>
using Pointers = std::array<const A*, kWeights>;

Shape shape_of(const Tensor& x, const Weights& weights);
template <class A>
Pointers<A> pointers_of(const Weights& weights, const Shape& shape, const Config& config);

template <class T>
struct Problem {
  using A = acc_t<T>;

  Problem(const T* x, const Shape& shape, const Pointers<A>& weights, const Config& config);
  Problem(const Problem&) = delete;

  int64_t n, c, height, width, p;
  Layout layout;
  const T* x;

  bool channel;  // the channel gate is there
  const A *w0, *b0, *w1, *b1;
  int64_t hidden;
  int64_t pooled;  // rows of pooled values for a sample: 1 or 2
  int64_t row_of_average, row_of_maximum;  // -1: not read
  A channel_scale;

  bool spatial;  // the spatial gate is there
  const A* kernel;
  int64_t k, planes, plane_of_average, plane_of_maximum;
  A spatial_scale;
  bool norm, norm_training;
  A norm_weight, norm_bias, norm_mean, norm_var, norm_eps;
  A logit_factor;  // of logits with a variance, but no norm
  bool hard;

  bool pre;  // a batch norm in front
  Scratch<A> alpha, beta, pre_invstd;
  const A* pre_mean;

  // A sample is worked on in blocks of whole rows of the map; the partition depends on the shape alone, so sums do not
  // depend on the number of threads.
  int64_t block_rows, blocks;
  int64_t chunk;  // samples that go through all phases together, to stay in the caches
  int64_t pitch, plane_size;  // of a zero-padded map
  bool streaming;  // the result does not fit the caches

  int64_t sample_size() const { return c * p; }
  Part<T> part(int64_t sample, int64_t block) const {
    const int64_t h0 = block * block_rows, h1 = h0 + block_rows < height ? h0 + block_rows : height;
    return {x + sample * sample_size(), c, p, h0 * width, h1 * width, pre ? alpha.get() : nullptr,
            pre ? beta.get() : nullptr, streaming};
  }
  const Kernels<T>& kernels() const { return kernels_for<T>(layout, pre); }
};

// The floats kept for backward, one after the other in `saved`.
template <class A>
struct Saved {
  template <class T>
  Saved(const Problem<T>& q, A* memory) {
    s = memory;
    pooled = s + (q.channel ? q.n * q.c : 0);
    hidden = pooled + (q.channel ? 2 * q.n * q.c : 0);
    t = hidden + (q.channel ? 2 * q.n * q.hidden : 0);
    maps = t + (q.spatial ? q.n * q.p : 0);
    zhat = maps + (q.spatial ? 2 * q.n * q.p : 0);
    stats = zhat + (q.norm_training ? q.n * q.p : 0);
    size = stats - memory + (q.norm_training ? 2 : 0);
  }
  A* s;       // (N, C) channel gates
  A* pooled;  // (N, rows, C) averages and maxima
  A* hidden;  // (N, rows, h) after the ReLU
  A* t;       // (N, P) spatial gates
  A* maps;    // (N, planes, P) descriptors in the kernel's order
  A* zhat;    // (N, P) normalised logits, with batch statistics only
  A* stats;   // their mean and 1 / standard deviation
  int64_t size;
};
template <class T>
struct Argmax {
  Argmax(const Problem<T>& q, int32_t* memory) {
    channel = memory;
    position = memory ? memory + (q.spatial ? q.n * q.p : 0) : nullptr;
    size = (q.spatial ? q.n * q.p : 0) + (q.channel ? q.n * q.c : 0);
  }
  int32_t* channel;   // (N, P) channel of each position's maximum
  int32_t* position;  // (N, C) position of each channel's maximum
  int64_t size;
};

// What a forward call reads and writes besides its problem: `residual` null without an epilogue, `saved` and `argmax` null
// where nothing is kept.
template <class T>
struct ForwardMaps {
  const T* residual;
  T* y;
  acc_t<T>* saved;
  int32_t* argmax;
  acc_t<T>* stats;
};
template <class T>
void compute_forward(const Problem<T>& problem, const ForwardMaps<T>& maps, bool relu);

// The same of a backward call: `out` and `masked` null unless there was a ReLU; the gradients of the weights in the order of
// the schema, null where there is no such weight.
constexpr int kGradients = 9;
template <class T>
struct BackwardMaps {
  const T *grad, *out;
  acc_t<T>* saved;
  int32_t* argmax;
  T *dx, *masked;
  std::array<acc_t<T>*, kGradients> weights;
};
template <class T>
void compute_backward(const Problem<T>& problem, const BackwardMaps<T>& maps, bool pre_training);

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> run_forward(const Tensor& x, const Weights& weights,
                                                       const Weight& residual, const Config& config,
                                                       bool keep);
template <class T>
std::vector<Tensor> run_backward(const Tensor& grad, const Tensor& x, const Weights& weights, const Weight& output,
                                 const Tensor& saved, const Tensor& argmax, const Config& config);

}  // namespace cbam
