// Splits a batch into blocks of rows. A row's result does not depend on its block, and the losses
// are added up in the order of the rows.
#include "cross_entropy.hpp"

#include <algorithm>

#include "grid.hpp"
#include "isa.hpp"
#include "parallel.hpp"

namespace fastopt {
namespace {

template <class T>
double run(const CrossEntropyBatch& batch) {
    std::vector<T> weight(batch.weight.size());
    std::vector<double> losses(batch.rows);
    CrossEntropyBlock whole{};
    double denominator = 1.0;
    with_default_floating_point([&] {
        whole.weight_sum = static_cast<double>(batch.classes);
        if (!weight.empty()) whole.weight_sum = 0.0;
        for (std::size_t c = 0; c < weight.size(); ++c) {
            weight[c] = static_cast<T>(batch.weight[c]);
            whole.weight_sum += static_cast<double>(weight[c]);
        }
        if (batch.reduction == Reduction::mean) {
            denominator = 0.0;
            for (const std::int64_t target : batch.targets) {
                if (target == batch.ignore_index) continue;
                const auto index = static_cast<std::size_t>(target);
                denominator += weight.empty() ? 1.0 : static_cast<double>(weight[index]);
            }
        }
        whole.grad_scale = 1.0 / denominator;
    });
    whole.weight = weight.empty() ? nullptr : weight.data();
    whole.classes = batch.classes;
    whole.ignore_index = batch.ignore_index;
    whole.label_smoothing = batch.label_smoothing;

    const std::size_t rows_at_once =
        std::max<std::size_t>(1, tuning.chunk_size / std::max<std::size_t>(1, batch.classes));
    const std::size_t blocks = (batch.rows + rows_at_once - 1) / rows_at_once;
    const std::size_t work = 8 * batch.rows * batch.classes;
    const auto kernel = kernels().cross_entropy[static_cast<int>(batch.type)];
    parallel_for(blocks, work, [&](std::size_t index) {
        const std::size_t row = index * rows_at_once;
        const std::size_t offset = row * batch.classes;
        CrossEntropyBlock block = whole;
        block.rows = std::min(rows_at_once, batch.rows - row);
        block.logits = static_cast<const T*>(batch.logits) + offset;
        block.grad = batch.grad == nullptr ? nullptr : static_cast<T*>(batch.grad) + offset;
        block.targets = batch.targets.data() + row;
        block.losses = losses.data() + row;
        kernel(block);
    });

    double total = 0.0;
    with_default_floating_point([&] {
        if (batch.reduction == Reduction::none)
            for (std::size_t row = 0; row < batch.rows; ++row)
                static_cast<T*>(batch.losses)[row] = static_cast<T>(losses[row]);
        else
            for (const double loss : losses) total += loss;
        total /= denominator;
    });
    return total;
}

}  // namespace

double run_cross_entropy(const CrossEntropyBatch& batch) {
    return batch.type == Type::float32 ? run<float>(batch) : run<double>(batch);
}

}  // namespace fastopt
