// One vector register of the accumulation type, for the instruction set that the including file is compiled for.
//
// Only compiler vector extensions (GCC, Clang), <cstring> and <type_traits>: no standard containers or algorithms here,
// because an inline function of theirs compiled for AVX-512 could be the copy that the linker keeps for every caller.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#include "types.h"

#if defined(__AVX512F__)
#define CBAM_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define CBAM_VECTOR_BYTES 32
#else
#define CBAM_VECTOR_BYTES 16
#endif
#define CBAM_INLINE inline __attribute__((always_inline))

namespace cbam {
namespace CBAM_ISA {

template <class A>
struct Register;
template <>
struct Register<float> {
  static constexpr int lanes = CBAM_VECTOR_BYTES / 4;
  typedef float V __attribute__((vector_size(CBAM_VECTOR_BYTES)));
  typedef int32_t I __attribute__((vector_size(CBAM_VECTOR_BYTES)));
  typedef int32_t Index;
};
template <>
struct Register<double> {
  static constexpr int lanes = CBAM_VECTOR_BYTES / 8;
  typedef double V __attribute__((vector_size(CBAM_VECTOR_BYTES)));
  typedef int64_t I __attribute__((vector_size(CBAM_VECTOR_BYTES)));
  typedef int64_t Index;
};
template <class A>
using Vec = typename Register<A>::V;
template <class A>
using Ints = typename Register<A>::I;
template <class A>
inline constexpr int kLanes = Register<A>::lanes;

typedef uint16_t Words __attribute__((vector_size(CBAM_VECTOR_BYTES / 2)));
typedef uint32_t Bits __attribute__((vector_size(CBAM_VECTOR_BYTES)));
constexpr int kFloats = CBAM_VECTOR_BYTES / 4;

template <class To, class From>
CBAM_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class A>
CBAM_INLINE Vec<A> all(A value) {
  return value - Vec<A>{};  // keeps the sign of zero and NaN, unlike adding zeros
}
template <class A>
CBAM_INLINE Ints<A> all_index(int64_t value) {
  return static_cast<typename Register<A>::Index>(value) - Ints<A>{};
}
template <class A>
CBAM_INLINE Ints<A> lane_numbers() {
  Ints<A> numbers;
  for (int i = 0; i < kLanes<A>; ++i) numbers[i] = i;
  return numbers;
}
// Comparison results are integer masks: all ones where true.
template <class A>
CBAM_INLINE Ints<A> first_lanes(int64_t n) {
  return lane_numbers<A>() < all_index<A>(n);
}

// ---- 16-bit formats --------------------------------------------------------------------------------------------

// The compiler's own conversions take three times as many instructions.
CBAM_INLINE Bits to_bits(Words words) {
#if defined(__AVX512F__)
  return bit_cast<Bits>(_mm512_cvtepu16_epi32(bit_cast<__m256i>(words)));
#elif defined(__AVX2__)
  return bit_cast<Bits>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(words)));
#else
  return __builtin_convertvector(words, Bits);
#endif
}
CBAM_INLINE Words to_words(Bits bits) {  // each below 2^16
#if defined(__AVX512F__)
  return bit_cast<Words>(_mm512_cvtepi32_epi16(bit_cast<__m512i>(bits)));
#elif defined(__AVX2__)
  const __m256i both = bit_cast<__m256i>(bits);
  return bit_cast<Words>(_mm_packus_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
#else
  return __builtin_convertvector(bits, Words);
#endif
}
CBAM_INLINE Vec<float> widen(Words words, bf16) { return bit_cast<Vec<float>>(to_bits(words) << 16); }
// To nearest, ties to even; the result is in the upper halves.
CBAM_INLINE Bits rounded_bf16(Vec<float> v) {
  const Bits bits = bit_cast<Bits>(v);
  return v == v ? bits + 0x7fffu + ((bits >> 16) & 1u) : Bits{} + 0x7fc00000u;
}
CBAM_INLINE Words narrow(Vec<float> v, bf16) { return to_words(rounded_bf16(v) >> 16); }

CBAM_INLINE Vec<float> widen(Words words, f16) {
#if defined(__AVX512F__)
  return bit_cast<Vec<float>>(_mm512_cvtph_ps(bit_cast<__m256i>(words)));
#elif defined(__F16C__)
  return bit_cast<Vec<float>>(_mm256_cvtph_ps(bit_cast<__m128i>(words)));
#else
  Vec<float> v;
  for (int i = 0; i < kFloats; ++i) v[i] = half_to_float(words[i]);
  return v;
#endif
}
CBAM_INLINE Words narrow(Vec<float> v, f16) {
#if defined(__AVX512F__)
  return bit_cast<Words>(_mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  return bit_cast<Words>(_mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  Words words;
  for (int i = 0; i < kFloats; ++i) words[i] = float_to_half(v[i]);
  return words;
#endif
}

// ---- memory: storage type T to a register of its accumulation type and back ---------------------------------------

template <class T>
CBAM_INLINE Vec<acc_t<T>> load(const T* p) {
  if constexpr (sizeof(T) == 2) {
    Words words;
    std::memcpy(&words, p, sizeof(words));
    return widen(words, T{});
  } else {
    Vec<T> v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
}
template <class T>
CBAM_INLINE void store(T* p, Vec<acc_t<T>> v) {
  if constexpr (sizeof(T) == 2) {
    const Words words = narrow(v, T{});
    std::memcpy(p, &words, sizeof(words));
  } else {
    std::memcpy(p, &v, sizeof(v));
  }
}

// The first n lanes, 0 < n < lanes; the others are zero. Nothing beyond them is touched.
template <class T>
CBAM_INLINE Vec<acc_t<T>> load_some(const T* p, int64_t n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const uint32_t mask = (1u << n) - 1;
  if constexpr (sizeof(T) == 2) {
    return widen(bit_cast<Words>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), p)), T{});
  } else if constexpr (sizeof(T) == 4) {
    return bit_cast<Vec<T>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p));
  } else {
    return bit_cast<Vec<T>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p));
  }
#else
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    return bit_cast<Vec<T>>(_mm256_maskload_ps(p, bit_cast<__m256i>(first_lanes<float>(n))));
  }
#endif
  T some[kLanes<acc_t<T>>] = {};
  for (int64_t i = 0; i < n; ++i) some[i] = p[i];
  return load<T>(some);
#endif
}
template <class T>
CBAM_INLINE void store_some(T* p, Vec<acc_t<T>> v, int64_t n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const uint32_t mask = (1u << n) - 1;
  if constexpr (sizeof(T) == 2) {
    _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(mask), bit_cast<__m256i>(narrow(v, T{})));
  } else if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), bit_cast<__m512>(v));
  } else {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), bit_cast<__m512d>(v));
  }
#else
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    _mm256_maskstore_ps(p, bit_cast<__m256i>(first_lanes<float>(n)), bit_cast<__m256>(v));
    return;
  }
#endif
  T some[kLanes<acc_t<T>>];
  store<T>(some, v);
  for (int64_t i = 0; i < n; ++i) p[i] = some[i];
#endif
}

CBAM_INLINE Ints<float> load_some_index(const int32_t* p, int64_t n) {
#if defined(__AVX512F__)
  return bit_cast<Ints<float>>(_mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << n) - 1), p));
#else
  Ints<float> some = {};
  for (int64_t i = 0; i < n; ++i) some[i] = p[i];
  return some;
#endif
}
CBAM_INLINE void store_some_index(int32_t* p, Ints<float> v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_epi32(p, static_cast<__mmask16>((1u << n) - 1), bit_cast<__m512i>(v));
#else
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// Write a whole register past the caches, to an aligned address: the output does not fit them, and its lines need not be
// read first.
template <class T>
CBAM_INLINE void stream(T* p, Vec<acc_t<T>> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 2) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bit_cast<__m256i>(narrow(v, T{})));
  } else {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bit_cast<__m512i>(v));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 2) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), bit_cast<__m128i>(narrow(v, T{})));
  } else {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bit_cast<__m256i>(v));
  }
#else
  store<T>(p, v);
#endif
}
// From here on other threads see what was streamed.
CBAM_INLINE void streamed() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Index vectors live in memory as int32 beside float and double alike.
CBAM_INLINE Ints<float> load_index(const int32_t* p, float) {
  Ints<float> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
CBAM_INLINE Ints<double> load_index(const int32_t* p, double) {
  typedef int32_t Narrow __attribute__((vector_size(CBAM_VECTOR_BYTES / 2)));
  Narrow v;
  std::memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, Ints<double>);
}

// What storing to T and loading again would return.
template <class T>
CBAM_INLINE Vec<acc_t<T>> rounded(Vec<acc_t<T>> v) {
  if constexpr (std::is_same_v<T, bf16>) {
    return bit_cast<Vec<float>>(rounded_bf16(v) & 0xffff0000u);
  } else if constexpr (sizeof(T) == 2) {
    return widen(narrow(v, T{}), T{});
  } else {
    return v;
  }
}
// The same for a product whose sum with something the compiler would make one fused operation otherwise.
template <class T>
CBAM_INLINE Vec<acc_t<T>> rounded_before_sum(Vec<acc_t<T>> product) {
  product = rounded<T>(product);
#if defined(__x86_64__)
  asm("" : "+v"(product));
#elif defined(__aarch64__)
  asm("" : "+w"(product));
#elif !defined(__clang__)  // which fuses within one expression only
  product = __builtin_assoc_barrier(product);
#endif
  return product;
}
template <class T>
CBAM_INLINE acc_t<T> rounded_scalar(acc_t<T> value) {
  if constexpr (sizeof(T) == 2) {
    return rounded<T>(all<acc_t<T>>(value))[0];
  } else {
    return value;
  }
}
template <class T>
CBAM_INLINE acc_t<T> load_scalar(const T* p) {
  if constexpr (sizeof(T) == 2) {
    return load_some<T>(p, 1)[0];
  } else {
    return *p;
  }
}

// ---- across the lanes ----------------------------------------------------------------------------------------------

template <class A>
struct Quarter;  // sixteen bytes
template <>
struct Quarter<float> {
  typedef float V __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
};
template <>
struct Quarter<double> {
  typedef double V __attribute__((vector_size(16)));
  typedef int64_t I __attribute__((vector_size(16)));
};
struct Plus {
  template <class Q>
  CBAM_INLINE Q operator()(Q a, Q b) const {
    return a + b;
  }
};
struct Larger {
  template <class Q>
  CBAM_INLINE Q operator()(Q a, Q b) const {
    return a > b ? a : b;
  }
};
struct Smaller {
  template <class Q>
  CBAM_INLINE Q operator()(Q a, Q b) const {
    return a < b ? a : b;
  }
};

template <class Q, class V, class Op>
CBAM_INLINE Q fold(V v, Op op) {
  constexpr int parts = CBAM_VECTOR_BYTES / 16;
  Q part[parts];
  std::memcpy(part, &v, sizeof(v));
  for (int step = parts / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) part[i] = op(part[i], part[i + step]);
  return part[0];
}
template <class Q, class Op>
CBAM_INLINE auto fold_quarter(Q q, Op op) {
  if constexpr (sizeof(q[0]) == 4) {
    q = op(q, __builtin_shufflevector(q, q, 2, 3, 0, 1));
    return op(q, __builtin_shufflevector(q, q, 1, 0, 3, 2))[0];
  } else {
    return op(q, __builtin_shufflevector(q, q, 1, 0))[0];
  }
}
template <class A, class Op>
CBAM_INLINE A across(Vec<A> v, Op op) {
  return fold_quarter(fold<typename Quarter<A>::V>(v, op), op);
}
// The same for four registers at once, which saves half of the shuffles.
template <class A, class Op>
CBAM_INLINE void across(const Vec<A> (&v)[4], Op op, A* out) {
  typedef typename Quarter<A>::V Q;
  Q q[4];
  for (int i = 0; i < 4; ++i) q[i] = fold<Q>(v[i], op);
  if constexpr (sizeof(A) == 4) {
    const Q low = op(__builtin_shufflevector(q[0], q[1], 0, 4, 1, 5), __builtin_shufflevector(q[0], q[1], 2, 6, 3, 7));
    const Q high = op(__builtin_shufflevector(q[2], q[3], 0, 4, 1, 5), __builtin_shufflevector(q[2], q[3], 2, 6, 3, 7));
    const Q all_four =
        op(__builtin_shufflevector(low, high, 0, 1, 4, 5), __builtin_shufflevector(low, high, 2, 3, 6, 7));
    std::memcpy(out, &all_four, sizeof(all_four));
  } else {
    for (int i = 0; i < 4; ++i) out[i] = fold_quarter(q[i], op);
  }
}
template <class A, class Op>
CBAM_INLINE void across(const Vec<A> (&v)[1], Op op, A* out) {
  *out = across<A>(v[0], op);
}
template <class A>
CBAM_INLINE A sum_lanes(Vec<A> v) {
  return across<A>(v, Plus{});
}
// The smallest of the indices at which the register holds `value`.
template <class A>
CBAM_INLINE int64_t first_at(Vec<A> v, A value, Ints<A> index) {
  const Ints<A> found = v == all<A>(value) ? index : all_index<A>(INT32_MAX);
  return fold_quarter(fold<typename Quarter<A>::I>(found, Smaller{}), Smaller{});
}

}  // namespace CBAM_ISA
}  // namespace cbam
