// The operator without torch's dispatcher, whose way takes longer than the arithmetic of a small map: two C functions that
// take numbers and addresses. `cbam/ops/direct.py` checks the tensors and packs both.
#include <cstring>

#include "problem.h"

namespace cbam {

namespace {

// As `_NUMBERS` in `direct.py`.
struct Numbers {
  int64_t type, n, c, height, width, channels_last, hidden, k;
  int64_t pooling, descriptor, activation, norm_training;
  double norm_eps;
  int64_t pre_training;
  double pre_eps;
  int64_t relu;

  Shape shape() const { return {n, c, height, width, channels_last ? kChannelsLast : kContiguous, hidden, k}; }
  Config config() const {
    return {pooling, descriptor, activation, norm_training != 0, norm_eps, pre_training != 0, pre_eps, relu != 0};
  }
};

// The addresses of a call, one after the other.
class Addresses {
 public:
  explicit Addresses(const char* packed) : next_(packed) {}
  template <class T>
  T* take() {
    void* address;
    std::memcpy(&address, next_, sizeof(address));
    next_ += sizeof(address);
    return static_cast<T*>(address);
  }
  template <class A>
  Pointers<A> take_weights() {
    Pointers<A> found;
    for (const A*& weight : found) weight = take<A>();
    return found;
  }

 private:
  const char* next_;
};

template <class F>
int32_t call(const char* packed, const F& with_type) {
  try {
    Numbers numbers;
    std::memcpy(&numbers, packed, sizeof(numbers));
    switch (numbers.type) {
      case 0: with_type(numbers, float()); return 0;
      case 1: with_type(numbers, double()); return 0;
      case 2: with_type(numbers, bf16()); return 0;
      case 3: with_type(numbers, f16()); return 0;
    }
  } catch (...) {  // the caller then asks the registered operator, which says what is wrong
  }
  return 1;
}

}  // namespace

extern "C" {

// x, the weights, residual; then y, saved, argmax, stats.
__attribute__((visibility("default"))) int32_t cbam_forward(const char* numbers, const char* addresses) {
  return call(numbers, [&](const Numbers& q, auto like) {
    using T = decltype(like);
    using A = acc_t<T>;
    Addresses next(addresses);
    const T* x = next.take<T>();
    const Problem<T> problem(x, q.shape(), next.take_weights<A>(), q.config());
    ForwardMaps<T> maps;
    maps.residual = next.take<T>();
    maps.y = next.take<T>();
    maps.saved = next.take<A>();
    maps.argmax = next.take<int32_t>();
    maps.stats = next.take<A>();
    STD_TORCH_CHECK(maps.residual || !q.relu, "cbam: a ReLU comes after a residual only");
    compute_forward(problem, maps, q.relu != 0);
  });
}

// grad, x, the weights, out, saved, argmax; then the gradients of x, of the weights, and of the residual.
__attribute__((visibility("default"))) int32_t cbam_backward(const char* numbers, const char* addresses) {
  return call(numbers, [&](const Numbers& q, auto like) {
    using T = decltype(like);
    using A = acc_t<T>;
    Addresses next(addresses);
    BackwardMaps<T> maps;
    maps.grad = next.take<T>();
    const T* x = next.take<T>();
    const Problem<T> problem(x, q.shape(), next.take_weights<A>(), q.config());
    maps.out = next.take<T>();
    maps.saved = next.take<A>();
    maps.argmax = next.take<int32_t>();
    maps.dx = next.take<T>();
    for (A*& gradient : maps.weights) gradient = next.take<A>();
    maps.masked = next.take<T>();
    compute_backward(problem, maps, q.pre_training != 0);
  });
}

}  // extern "C"

}  // namespace cbam
