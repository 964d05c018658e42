// Copies by lines: the classes of a position, or the positions of a class. A line is contiguous in
// the copy. If it is not outside, its elements pass through a buffer.
#include "staged_block.hpp"

#include <algorithm>
#include <cstdint>

#include "isa.hpp"

namespace fastopt {
namespace {

constexpr std::size_t buffer_size = 512;

// Calls body(outside, stride, place in the copy, count) for each line.
template <class F>
void each_line(const StagedBlock& staged, const ClassArray& array, const ClassBlock& block,
               const F& body) {
    const auto classes = static_cast<std::ptrdiff_t>(block.classes);
    const std::ptrdiff_t step = block.inner > 1 ? array.inner_stride : array.run_stride;
    for (std::size_t done = 0; done < block.positions;) {
        const std::size_t position = block.first + done, place = position % block.inner;
        const std::size_t left = block.positions - done;
        const std::size_t count = block.inner > 1 ? std::min(left, block.inner - place) : left;
        auto* outside = static_cast<std::uint16_t*>(array.data) +
                        static_cast<std::ptrdiff_t>(position / block.inner) * array.run_stride +
                        static_cast<std::ptrdiff_t>(place) * array.inner_stride;
        if (staged.rows && array.class_stride == 1 && step == classes)
            body(outside, std::ptrdiff_t{1}, done * block.classes, count * block.classes);
        else if (staged.rows)
            for (std::size_t i = 0; i < count; ++i, outside += step)
                body(outside, array.class_stride, (done + i) * block.classes, block.classes);
        else
            for (std::size_t c = 0; c < block.classes; ++c, outside += array.class_stride)
                body(outside, step, c * block.positions + done, count);
        done += count;
    }
}

// Calls body(start, count) for the parts of a line that fit into the buffer.
template <class F>
void each_part(std::size_t count, const F& body) {
    for (std::size_t start = 0; start < count; start += buffer_size)
        body(start, std::min(buffer_size, count - start));
}

}  // namespace

void StagedBlock::widen(const ClassArray& array, const ClassBlock& block, float* to) const {
    const auto widen = update_kernels().widen[static_cast<int>(type)];
    each_line(
        *this, array, block,
        [&](const std::uint16_t* line, std::ptrdiff_t stride, std::size_t at, std::size_t size) {
            if (stride == 1) return widen(line, size, to + at);
            std::uint16_t buffer[buffer_size];
            each_part(size, [&](std::size_t start, std::size_t count) {
                for (std::size_t i = 0; i < count; ++i, line += stride) buffer[i] = *line;
                widen(buffer, count, to + at + start);
            });
        });
}

void StagedBlock::narrow(const float* from, const ClassBlock& block,
                         const ClassArray& array) const {
    const auto narrow = update_kernels().narrow[static_cast<int>(type)];
    each_line(*this, array, block,
              [&](std::uint16_t* line, std::ptrdiff_t stride, std::size_t at, std::size_t size) {
                  if (stride == 1) return narrow(from + at, size, line);
                  std::uint16_t buffer[buffer_size];
                  each_part(size, [&](std::size_t start, std::size_t count) {
                      narrow(from + at + start, count, buffer);
                      for (std::size_t i = 0; i < count; ++i, line += stride) *line = buffer[i];
                  });
              });
}

ClassArray StagedBlock::array(float* copy, const ClassBlock& block) const {
    const auto classes = static_cast<std::ptrdiff_t>(block.classes);
    const auto positions = static_cast<std::ptrdiff_t>(block.positions);
    return rows ? ClassArray{copy, classes, 0, 1} : ClassArray{copy, 1, 0, positions};
}

}  // namespace fastopt
