// Splits a batch into blocks of positions. A position's result does not depend on its block, and
// the losses are added up in an order of their own.
#include "run_cross_entropy.hpp"

#include <algorithm>

#include "class_blocks.hpp"
#include "isa.hpp"

namespace fastopt {
namespace {

template <class T>
double denominator_of(const ClassIndices& targets, std::int64_t ignore_index,
                      const std::vector<double>& weight) {
    if (weight.empty()) return static_cast<double>(targets.kept);
    double sum = 0.0;
    for (const std::int64_t target : targets.values)
        if (target != ignore_index)
            sum += static_cast<double>(static_cast<T>(weight[static_cast<std::size_t>(target)]));
    return sum;
}

template <class T>
CrossEntropyResult run(const CrossEntropyBatch& batch) {
    const bool soft = batch.probabilities.data != nullptr;
    const bool along_rows =
        runs_along_rows(batch.classes, batch.logits, batch.grad, batch.probabilities);
    std::vector<T> weight(batch.weight.values.size());
    BlockVector<double> losses(batch.positions);
    BlockVector<double> log_sum_exp(batch.log_sum_exp != nullptr ? batch.positions : 0);
    BlockVector<unsigned char> correct(batch.counts_correct ? batch.positions : 0);
    CrossEntropyResult result{};
    CrossEntropyBlock whole{};
    double denominator = 1.0;
    // The unit of the weights, where the denominator does not cancel it.
    const double unit = soft || batch.reduction != Reduction::mean ? batch.weight.unit : 1.0;
    with_default_floating_point([&] {
        std::transform(batch.weight.values.begin(), batch.weight.values.end(), weight.begin(),
                       [](double value) { return static_cast<T>(value); });
        whole.weight_sum = static_cast<double>(batch.classes);
        if (!weight.empty()) whole.weight_sum = 0.0;
        for (const T w : weight) whole.weight_sum += static_cast<double>(w);
        if (batch.reduction == Reduction::mean)
            denominator =
                batch.denominator ? *batch.denominator
                : soft ? static_cast<double>(batch.positions)
                       : denominator_of<T>(batch.targets, batch.ignore_index, batch.weight.values);
        whole.grad_scale = unit / denominator;
        whole.z_loss = batch.z_loss / batch.weight.unit;
    });
    whole.logits = batch.logits;
    whole.grad = batch.grad;
    whole.probabilities = batch.probabilities;
    whole.weight = weight.empty() ? nullptr : weight.data();
    whole.total = batch.positions;
    whole.inner = batch.inner;
    whole.classes = batch.classes;
    whole.ignore_index = batch.ignore_index;
    whole.label_smoothing = batch.label_smoothing;
    whole.softcap = batch.softcap;

    const bool capped = batch.softcap != 0.0;
    const std::size_t tiles = tile_count(batch.classes);
    std::size_t scratch_size = 0;
    if (!along_rows)
        scratch_size = column_scratch(batch.type, batch.classes * (1 + soft + capped), tiles);
    else if (tiles > 1 || capped)
        scratch_size = row_scratch(batch.type, batch.classes * capped, tiles);
    const auto kernel =
        (along_rows ? loss_kernels().cross_entropy_rows
                    : loss_kernels().cross_entropy_columns)[static_cast<int>(batch.type)];
    each_class_block(
        whole, along_rows, scratch_size,
        [&](CrossEntropyBlock& block) {
            block.targets = soft ? nullptr : batch.targets.values.data() + block.first;
            block.losses = losses.data() + block.first;
            block.log_sum_exp = log_sum_exp.empty() ? nullptr : log_sum_exp.data() + block.first;
            block.correct = correct.empty() ? nullptr : correct.data() + block.first;
            kernel(block);
        },
        batch.most_threads);

    with_default_floating_point([&] {
        const auto round_into = [&](const BlockVector<double>& values, double factor, void* out) {
            std::transform(values.begin(), values.end(), static_cast<T*>(out),
                           [=](double value) { return static_cast<T>(value * factor); });
        };
        if (batch.log_sum_exp != nullptr) round_into(log_sum_exp, 1.0, batch.log_sum_exp);
        if (batch.reduction == Reduction::none)
            round_into(losses, unit, batch.losses);
        else
            result.loss = sum_in_order(losses.data(), batch.positions) / denominator * unit;
    });
    if (batch.counts_correct) {
        result.counted = soft ? static_cast<std::int64_t>(batch.positions) : batch.targets.kept;
        result.correct = std::count(correct.begin(), correct.end(), 1);
    }
    return result;
}

}  // namespace

double sum_in_order(const double* values, std::size_t count) {
    double lanes[32] = {};
    std::size_t i = 0;
    for (; i + 32 <= count; i += 32)
        for (std::size_t lane = 0; lane < 32; ++lane) lanes[lane] += values[i + lane];
    for (std::size_t lane = 0; i + lane < count; ++lane) lanes[lane] += values[i + lane];
    for (std::size_t half = 16; half > 0; half /= 2)
        for (std::size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

double cross_entropy_denominator(Type type, const ClassIndices& targets, std::int64_t ignore_index,
                                 const ClassWeights& weight) {
    double sum = 0.0;
    with_default_floating_point([&] {
        sum = type == Type::float32 ? denominator_of<float>(targets, ignore_index, weight.values)
                                    : denominator_of<double>(targets, ignore_index, weight.values);
    });
    return sum;
}

CrossEntropyResult run_cross_entropy(const CrossEntropyBatch& batch) {
    return batch.type == Type::float32 ? run<float>(batch) : run<double>(batch);
}

}  // namespace fastopt
