// Walking along the rows of a matrix by whole registers, and by groups of rows.
#pragma once

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
CBAM_INLINE void prefetch(const T* p) {
  __builtin_prefetch(p, 0, 3);
}

}  // namespace
}  // namespace CBAM_ISA
}  // namespace cbam
