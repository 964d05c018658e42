// Scaling and clamping gradients in place.
#pragma once

#include <cstddef>

#include "../arithmetic/storage.hpp"
#include "../table.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

template <class T>
void rescale(const void* data, std::size_t count, double divisor, double multiplier, void* result) {
    using Number = decltype(load(T{}));
    const T* x = static_cast<const T*>(data);
    Number* out = static_cast<Number*>(result);
    for (std::size_t i = 0; i < count; ++i)
        out[i] = static_cast<Number>(static_cast<double>(load(x[i])) / divisor * multiplier);
}

// x[i] = change(x[i]), in the type of the arithmetic.
template <class T, class Change>
void change_each(void* data, std::size_t count, Change change) {
    T* x = static_cast<T*>(data);
    for (std::size_t i = 0; i < count; ++i) x[i] = nearest<T>(change(load(x[i])));
}

template <class T>
void rescale_in_place(void* x, std::size_t count, double divisor, double multiplier) {
    change_each<T>(x, count, [=](auto value) {
        return static_cast<decltype(value)>(static_cast<double>(value) / divisor * multiplier);
    });
}

template <class T>
void scale(void* x, std::size_t count, double factor) {
    const auto rounded = static_cast<decltype(load(T{}))>(factor);
    change_each<T>(x, count, [=](auto value) { return value * rounded; });
}

// Into [-limit, limit]; NaN stays.
template <class T>
void clamp(void* x, std::size_t count, double limit) {
    const auto high = static_cast<decltype(load(T{}))>(limit);
    change_each<T>(x, count, [=](auto value) {
        const auto lower = value > high ? high : value;
        return lower < -high ? -high : lower;
    });
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
