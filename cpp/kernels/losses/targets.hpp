// Copies, checks and counts class indices.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../table.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

// Without comparisons of 64 bits, which not every instruction set has in vectors: the sign bit of
// (a | b - a) is set if a is outside [0, b], and that of (c | -c) if c is not 0.
inline CheckedTargets copy_targets(const std::int64_t* from, std::size_t count,
                                   std::int64_t classes, std::int64_t ignore_index,
                                   bool none_ignored, std::int64_t* to) {
    const auto last = static_cast<std::uint64_t>(classes) - 1;
    const auto ignored = static_cast<std::uint64_t>(ignore_index);
    const std::uint64_t always = none_ignored ? ~std::uint64_t{0} : 0;
    std::uint64_t outside = 0, kept = 0;
    constexpr std::size_t at_once = 512;  // 4 KiB, which stay in the first cache until the check
    for (std::size_t start = 0; start < count; start += at_once) {
        const std::size_t left = count - start;
        const std::size_t n = left < at_once ? left : at_once;
        std::int64_t* const copied = to + start;
        __builtin_memcpy(copied, from + start, n * sizeof(*to));
        for (std::size_t i = 0; i < n; ++i) {
            const auto index = static_cast<std::uint64_t>(copied[i]);
            const std::uint64_t apart = index ^ ignored;
            const std::uint64_t counts = apart | (0 - apart) | always;
            outside |= (index | (last - index)) & counts;
            kept += counts >> 63;
        }
    }
    return {outside >> 63 == 0, static_cast<std::int64_t>(kept)};
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
