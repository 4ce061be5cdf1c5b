// Everything of kernels.h for one instruction set; included by one kernels_*.cpp each.
#pragma once

#include "algebra.h"
#include "passes.h"

namespace cbam {
namespace CBAM_ISA {

template <class T>
const Kernels<T>& kernels(Layout layout, bool norm) {
  if (layout == kChannelsLast) return norm ? Passes<T, true, true>::table() : Passes<T, true, false>::table();
  return norm ? Passes<T, false, true>::table() : Passes<T, false, false>::table();
}
template <class A>
const Algebra<A>& algebra() {
  return AlgebraLoops<A>::table();
}

#define CBAM_INSTANTIATE(T) template const Kernels<T>& kernels<T>(Layout, bool);
CBAM_FOR_EACH_TYPE(CBAM_INSTANTIATE)
#undef CBAM_INSTANTIATE
template const Algebra<float>& algebra<float>();
template const Algebra<double>& algebra<double>();

}  // namespace CBAM_ISA
}  // namespace cbam
