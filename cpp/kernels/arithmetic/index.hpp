// An integer as wide as an element: comparisons of both kinds then fit into one vector.
#pragma once

#include <cstdint>

namespace fastopt::FASTOPT_ISA {
namespace {

template <class T>
struct IndexOf;
template <>
struct IndexOf<float> {
    using type = std::int32_t;
};
template <>
struct IndexOf<double> {
    using type = std::int64_t;
};
template <class T>
using Index = typename IndexOf<T>::type;

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
