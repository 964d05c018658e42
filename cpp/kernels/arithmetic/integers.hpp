// Integers as wide as an element: comparisons of both kinds then fit into one vector.
#pragma once

#include <cstdint>

namespace fastopt::FASTOPT_ISA {
namespace {

template <class T>
struct Integers;
template <>
struct Integers<float> {
    using Index = std::int32_t;
    using Bits = std::uint32_t;
};
template <>
struct Integers<double> {
    using Index = std::int64_t;
    using Bits = std::uint64_t;
};
template <class T>
using Index = typename Integers<T>::Index;
template <class T>
using Bits = typename Integers<T>::Bits;

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
