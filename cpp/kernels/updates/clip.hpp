// Scaling and clamping gradients in place.
#pragma once

#include <cstddef>

#include "../table.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

template <class T>
void rescale(const void* data, std::size_t count, double divisor, double multiplier, void* result) {
    const T* x = static_cast<const T*>(data);
    T* out = static_cast<T*>(result);
    for (std::size_t i = 0; i < count; ++i)
        out[i] = static_cast<T>(static_cast<double>(x[i]) / divisor * multiplier);
}

template <class T>
void scale(void* data, std::size_t count, double factor) {
    T* x = static_cast<T*>(data);
    const T rounded = static_cast<T>(factor);
    for (std::size_t i = 0; i < count; ++i) x[i] = x[i] * rounded;
}

// Into [-limit, limit]; NaN stays.
template <class T>
void clamp(void* data, std::size_t count, double limit) {
    T* x = static_cast<T*>(data);
    const T high = static_cast<T>(limit);
    for (std::size_t i = 0; i < count; ++i) {
        const T value = x[i] > high ? high : x[i];
        x[i] = value < -high ? -high : value;
    }
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
