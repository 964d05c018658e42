// Turns rows into columns. The classes of a row are neighbours in memory; a column is a vector of
// one class at neighbouring positions. It takes four classes of as many rows as a vector holds.
#pragma once

#include <cstddef>

#include "../table.hpp"
#include "integers.hpp"

// How many times four float a vector holds. GCC before 12 cannot join shorter vectors.
#if defined(__clang__) || __GNUC__ >= 12
#if defined(__AVX512F__)
#define FASTOPT_FOURS 4
#elif defined(__AVX__)
#define FASTOPT_FOURS 2
#endif
#endif
#ifndef FASTOPT_FOURS
#define FASTOPT_FOURS 1
#endif

namespace fastopt::FASTOPT_ISA {
namespace {

template <int... n>
struct Numbers {};

template <class T>
struct VectorsOf;
template <>
struct VectorsOf<float> {
    using four = float __attribute__((vector_size(16)));
    using fours = float __attribute__((vector_size(16 * FASTOPT_FOURS)));
    using indices = Index<float> __attribute__((vector_size(16 * FASTOPT_FOURS)));
#if FASTOPT_FOURS == 4
    using numbers = Numbers<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
#elif FASTOPT_FOURS == 2
    using numbers = Numbers<0, 1, 2, 3, 4, 5, 6, 7>;
#else
    using numbers = Numbers<0, 1, 2, 3>;
#endif
};
template <>
struct VectorsOf<double> {
    using four = double __attribute__((vector_size(32)));
    using fours = four;
    using indices = Index<double> __attribute__((vector_size(32)));
    using numbers = Numbers<0, 1, 2, 3>;
};
template <class T>
using Four = typename VectorsOf<T>::four;
template <class T>
using Fours = typename VectorsOf<T>::fours;
template <class T>
constexpr std::size_t fours_size = sizeof(Fours<T>) / sizeof(T);

// to[i] = i < n ? a[i] : b[i - n] of the numbers given.
template <class T, int... i>
FASTOPT_INLINE void shuffle(const Fours<T>& a, const Fours<T>& b, Fours<T>& to) {
#if defined(__clang__)
    to = __builtin_shufflevector(a, b, i...);
#else
    to = __builtin_shuffle(a, b, typename VectorsOf<T>::indices{i...});
#endif
}

// In each four of the vectors, rows[r][c] becomes rows[c][r].
template <class T, int... i>
FASTOPT_INLINE void transpose(Fours<T> (&rows)[4], Numbers<i...>) {
    constexpr int n = sizeof...(i);
    Fours<T> low01, low23, high01, high23;
    shuffle<T, (i / 4 * 4 + i % 4 / 2 + i % 2 * n)...>(rows[0], rows[1], low01);
    shuffle<T, (i / 4 * 4 + i % 4 / 2 + i % 2 * n)...>(rows[2], rows[3], low23);
    shuffle<T, (i / 4 * 4 + i % 4 / 2 + i % 2 * n + 2)...>(rows[0], rows[1], high01);
    shuffle<T, (i / 4 * 4 + i % 4 / 2 + i % 2 * n + 2)...>(rows[2], rows[3], high23);
    shuffle<T, (i / 4 * 4 + i % 2 + i % 4 / 2 * n)...>(low01, low23, rows[0]);
    shuffle<T, (i / 4 * 4 + i % 2 + i % 4 / 2 * n + 2)...>(low01, low23, rows[1]);
    shuffle<T, (i / 4 * 4 + i % 2 + i % 4 / 2 * n)...>(high01, high23, rows[2]);
    shuffle<T, (i / 4 * 4 + i % 2 + i % 4 / 2 * n + 2)...>(high01, high23, rows[3]);
}

// A vector from and to memory of any alignment. (clang drops the alignment if it belongs to the
// vector's own type, or to a reference that a function returns.)
template <class Vector, class T>
FASTOPT_INLINE void load_vector(const T* from, Vector& to) {
    using InMemory __attribute__((aligned(alignof(T)), may_alias)) = Vector;
    to = *reinterpret_cast<const InMemory*>(from);
}
template <class Vector, class T>
FASTOPT_INLINE void store_vector(const Vector& from, T* to) {
    using InMemory __attribute__((aligned(alignof(T)), may_alias)) = Vector;
    *reinterpret_cast<InMemory*>(to) = from;
}

// Four elements from `at` on of each of the rows 0, 4, ..., as many as a vector holds.
template <class T>
FASTOPT_INLINE void load_fours(const T* const* rows, std::size_t at, Fours<T>& to) {
    if constexpr (fours_size<T> == 4) load_vector(rows[0] + at, to);
#if FASTOPT_FOURS > 1
    if constexpr (fours_size<T> > 4) {
        Four<T> four[FASTOPT_FOURS];
        for (std::size_t i = 0; i < FASTOPT_FOURS; ++i) load_vector(rows[4 * i] + at, four[i]);
        const auto two = [&](std::size_t i) {
            return __builtin_shufflevector(four[i], four[i + 1], 0, 1, 2, 3, 4, 5, 6, 7);
        };
#if FASTOPT_FOURS == 2
        to = two(0);
#else
        to = __builtin_shufflevector(two(0), two(2), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,
                                     14, 15);
#endif
    }
#endif
}
template <class T>
FASTOPT_INLINE void store_fours(const Fours<T>& from, T* const* rows, std::size_t at) {
    if constexpr (fours_size<T> == 4) store_vector(from, rows[0] + at);
#if FASTOPT_FOURS > 1
    if constexpr (fours_size<T> > 4) {
        store_vector(__builtin_shufflevector(from, from, 0, 1, 2, 3), rows[0] + at);
        store_vector(__builtin_shufflevector(from, from, 4, 5, 6, 7), rows[4] + at);
#if FASTOPT_FOURS == 4
        store_vector(__builtin_shufflevector(from, from, 8, 9, 10, 11), rows[8] + at);
        store_vector(__builtin_shufflevector(from, from, 12, 13, 14, 15), rows[12] + at);
#endif
    }
#endif
}

// columns[c][i] = rows[i][at + c].
template <class T>
FASTOPT_INLINE void load_transposed(const T* const* rows, std::size_t at, Fours<T> (&columns)[4]) {
    for (std::size_t r = 0; r < 4; ++r) load_fours<T>(rows + r, at, columns[r]);
    transpose<T>(columns, typename VectorsOf<T>::numbers{});
}

// rows[i][at + c] = columns[c][i]; `columns` is overwritten.
template <class T>
FASTOPT_INLINE void store_transposed(Fours<T> (&columns)[4], T* const* rows, std::size_t at) {
    transpose<T>(columns, typename VectorsOf<T>::numbers{});
    for (std::size_t r = 0; r < 4; ++r) store_fours<T>(columns[r], rows + r, at);
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
