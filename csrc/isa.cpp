// Which instruction set this processor has, and the loops compiled for it.
#include <cstdlib>
#include <cstring>

#include "problem.h"

namespace cbam {

namespace {

Isa detect() {
#if defined(CBAM_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  Isa best = avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::plain;
  if (const char* asked = std::getenv("CBAM_ISA")) {
    const Isa limit = !std::strcmp(asked, "plain") ? Isa::plain : !std::strcmp(asked, "avx2") ? Isa::avx2 : Isa::avx512;
    if (limit < best) best = limit;
  }
  return best;
#else
  return Isa::plain;
#endif
}

}  // namespace

Isa isa() {
  static const Isa found = detect();
  return found;
}

template <class T>
const Kernels<T>& kernels_for(Layout layout, bool norm) {
#if defined(CBAM_X86)
  if (isa() == Isa::avx512) return avx512::kernels<T>(layout, norm);
  if (isa() == Isa::avx2) return avx2::kernels<T>(layout, norm);
#endif
  return plain::kernels<T>(layout, norm);
}
template <class A>
const Algebra<A>& algebra_for() {
#if defined(CBAM_X86)
  if (isa() == Isa::avx512) return avx512::algebra<A>();
  if (isa() == Isa::avx2) return avx2::algebra<A>();
#endif
  return plain::algebra<A>();
}
#define CBAM_INSTANTIATE(T) template const Kernels<T>& kernels_for<T>(Layout, bool);
CBAM_FOR_EACH_TYPE(CBAM_INSTANTIATE)
#undef CBAM_INSTANTIATE
template const Algebra<float>& algebra_for<float>();
template const Algebra<double>& algebra_for<double>();

}  // namespace cbam
