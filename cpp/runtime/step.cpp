// Walks the chunks of all tensors and calls the update kernel on each.
#include "step.hpp"

#include <algorithm>

#include "grid.hpp"
#include "isa.hpp"
#include "parallel.hpp"

namespace fastopt {
namespace {

constexpr std::size_t gathered = 1024;  // elements of a strided gradient copied at a time

using Update = void (*)(const Slice&, std::size_t, const Coefficients&);

Slice slice_at(const TensorUpdate& tensor, std::size_t start) {
    const std::size_t offset = start * size_of(tensor.type);
    Slice slice{tensor.param + offset, nullptr, {}};
    for (int i = 0; i < max_states; ++i)
        slice.state[i] = tensor.state[i] == nullptr ? nullptr : tensor.state[i] + offset;
    return slice;
}

void run_chunk(Update update, const TensorUpdate& tensor, const Coefficients& coefficients,
               std::size_t start, std::size_t count) {
    if (tensor.grad.contiguous()) {
        Slice slice = slice_at(tensor, start);
        slice.grad = tensor.grad.data() + start * size_of(tensor.type);
        return update(slice, count, coefficients);
    }
    alignas(64) std::byte buffer[gathered * sizeof(double)];
    for (const std::size_t end = start + count; start < end; start += gathered) {
        const std::size_t part = std::min(gathered, end - start);
        tensor.grad.gather(start, part, buffer);
        Slice slice = slice_at(tensor, start);
        slice.grad = buffer;
        update(slice, part, coefficients);
    }
}

}  // namespace

void run_updates(int optimizer, const std::vector<TensorUpdate>& tensors) {
    const Optimizer& kernel = kernels().optimizers[optimizer];
    std::vector<std::size_t> chunk_ends;  // of each tensor, in the list of all chunks
    chunk_ends.reserve(tensors.size());
    std::size_t chunks = 0, elements = 0;
    for (const TensorUpdate& tensor : tensors) {
        chunks += (tensor.count + chunk_size - 1) / chunk_size;
        elements += tensor.count;
        chunk_ends.push_back(chunks);
    }
    std::vector<Coefficients> coefficients(tensors.size());
    with_default_floating_point([&] {
        for (std::size_t i = 0; i < tensors.size(); ++i) {
            const TensorUpdate& tensor = tensors[i];
            const TensorUpdate& before = tensors[i == 0 ? 0 : i - 1];
            if (i > 0 && tensor.options == before.options && tensor.step == before.step &&
                tensor.fresh == before.fresh)
                coefficients[i] = coefficients[i - 1];
            else
                kernel.prepare(tensor.options, tensor.step, tensor.fresh, coefficients[i]);
        }
    });
    parallel_for(chunks, elements < serial_size, [&](std::size_t index) {
        const auto found = std::upper_bound(chunk_ends.begin(), chunk_ends.end(), index);
        const auto number = static_cast<std::size_t>(found - chunk_ends.begin());
        const TensorUpdate& tensor = tensors[number];
        const std::size_t first = number == 0 ? 0 : chunk_ends[number - 1];
        const std::size_t start = (index - first) * chunk_size;
        run_chunk(kernel.update[static_cast<int>(tensor.type)], tensor, coefficients[number], start,
                  std::min(chunk_size, tensor.count - start));
    });
}

}  // namespace fastopt
