// The grid of chunks that work is cut into: the same for every instruction set and thread count.
#pragma once

#include <cstddef>

#include "../kernels/table.hpp"

namespace fastopt {

constexpr std::size_t chunk_size = 16384;   // elements
constexpr std::size_t serial_size = 65536;  // an update of fewer elements runs on one thread

constexpr std::size_t size_of(Type type) {
    return type == Type::float32 ? sizeof(float) : sizeof(double);
}

}  // namespace fastopt
