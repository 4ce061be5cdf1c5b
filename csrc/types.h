// The storage types of a feature map and the type in which sums over it are taken.
#pragma once

#include <cstdint>
#include <cstring>

namespace cbam {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class T>
struct Accumulation {
  typedef float type;
};
template <>
struct Accumulation<double> {
  typedef double type;
};
template <class T>
using acc_t = typename Accumulation<T>::type;

// IEEE binary16, for processors without conversion instructions.
static inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu, fraction = half & 0x3ffu;
  float value;
  if (exponent == 0) {
    value = static_cast<float>(fraction) * 0x1p-24f;  // zero and subnormal numbers
    return sign ? -value : value;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (fraction << 13);
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

static inline uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((bits >> 13) & 0x3ffu));  // NaN
  if (bits >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65536 and more
  if (bits < 0x38800000u) {  // subnormal in binary16: let the addition round, ties to even
    float shifted;
    std::memcpy(&shifted, &bits, sizeof(shifted));
    shifted += 0.5f;
    uint32_t result;
    std::memcpy(&result, &shifted, sizeof(result));
    return static_cast<uint16_t>(sign | (result - 0x3f000000u));
  }
  // A carry out of the fraction moves into the exponent, and out of the largest exponent into infinity.
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13));
}

}  // namespace cbam
