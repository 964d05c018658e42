// Runs a batch by blocks of positions. The result of a position does not depend on its block, and
// the losses are added in an order that their number fixes.
#include "run_cross_entropy.hpp"

#include <algorithm>
#include <iterator>
#include <type_traits>

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
    CrossEntropyBlock whole = batch.whole;
    const std::size_t positions = whole.total;
    const bool soft = whole.probabilities.data != nullptr;
    std::vector<T> weight(batch.weight.values.size());
    BlockVector<double> losses(positions);
    BlockVector<double> log_sum_exp(batch.log_sum_exp != nullptr ? positions : 0);
    BlockVector<unsigned char> correct(batch.counts_correct ? positions : 0);
    double denominator = 1.0;
    // The unit of the weights, where the denominator does not cancel it.
    const double unit = soft || batch.reduction != Reduction::mean ? batch.weight.unit : 1.0;
    with_default_floating_point([&] {
        std::transform(batch.weight.values.begin(), batch.weight.values.end(), weight.begin(),
                       [](double value) { return static_cast<T>(value); });
        if (weight.empty()) whole.weight_sum = static_cast<double>(whole.classes);
        for (const T w : weight) whole.weight_sum += static_cast<double>(w);
        if (batch.reduction == Reduction::mean)
            denominator = batch.denominator ? *batch.denominator
                          : soft ? static_cast<double>(positions)
                                 : denominator_of<T>(batch.targets, whole.options.ignore_index,
                                                     batch.weight.values);
        whole.grad_scale = unit / denominator;
        whole.options.z_loss /= batch.weight.unit;
    });
    whole.weight = weight.empty() ? nullptr : weight.data();
    const auto part_of = [](auto& values, std::size_t first) {
        return values.empty() ? nullptr : values.data() + first;
    };
    run_class_blocks(whole,
                     loss_kernels().cross_entropy[static_cast<int>(arithmetic_type(batch.type))],
                     {batch.type,
                      {&CrossEntropyBlock::logits, &CrossEntropyBlock::probabilities},
                      &CrossEntropyBlock::grad},
                     [&](CrossEntropyBlock& block) {
                         block.targets = part_of(batch.targets.values, block.first);
                         block.losses = part_of(losses, block.first);
                         block.log_sum_exp = part_of(log_sum_exp, block.first);
                         block.correct = part_of(correct, block.first);
                     });

    CrossEntropyResult result{};
    with_default_floating_point([&] {
        if (batch.log_sum_exp != nullptr)
            std::transform(log_sum_exp.begin(), log_sum_exp.end(),
                           static_cast<T*>(batch.log_sum_exp),
                           [](double value) { return static_cast<T>(value); });
        if (batch.reduction == Reduction::none)
            store_losses<T>(batch.type, losses, unit, batch.losses);
        else
            result.loss = sum_in_order(losses.data(), positions) / denominator * unit;
    });
    if (batch.counts_correct) {
        result.counted = soft ? static_cast<std::int64_t>(positions) : batch.targets.kept;
        result.correct = std::count(correct.begin(), correct.end(), 1);
    }
    return result;
}

}  // namespace

template <class T>
void store_losses(Type type, const BlockVector<double>& losses, double unit, void* out) {
    const auto round_into = [&](std::size_t start, std::size_t count, T* to) {
        std::transform(losses.data() + start, losses.data() + start + count, to,
                       [=](double loss) { return static_cast<T>(loss * unit); });
    };
    if (!is_16_bit(type)) return round_into(0, losses.size(), static_cast<T*>(out));
    if constexpr (std::is_same_v<T, float>) {
        float part[256];  // on the stack: no memory may be missing after the kernels
        for (std::size_t start = 0; start < losses.size(); start += std::size(part)) {
            const std::size_t count = std::min(std::size(part), losses.size() - start);
            round_into(start, count, part);
            update_kernels().narrow[static_cast<int>(type)](
                part, count, static_cast<std::uint16_t*>(out) + start);
        }
    }
}
template void store_losses<float>(Type, const BlockVector<double>&, double, void*);
template void store_losses<double>(Type, const BlockVector<double>&, double, void*);

double sum_in_order(const double* values, std::size_t count) {
    constexpr std::size_t lane_count = 32;  // several vectors, or each sum would wait for the last
    double lanes[lane_count] = {};
    std::size_t i = 0;
    for (; i + lane_count <= count; i += lane_count)
        for (std::size_t lane = 0; lane < lane_count; ++lane) lanes[lane] += values[i + lane];
    for (std::size_t lane = 0; i + lane < count; ++lane) lanes[lane] += values[i + lane];
    return sum_lanes(lanes);
}

double cross_entropy_denominator(Type type, const ClassIndices& targets, std::int64_t ignore_index,
                                 const ClassWeights& weight) {
    double sum = 0.0;
    with_default_floating_point([&] {
        sum = type != Type::float64 ? denominator_of<float>(targets, ignore_index, weight.values)
                                    : denominator_of<double>(targets, ignore_index, weight.values);
    });
    return sum;
}

CrossEntropyResult run_cross_entropy(const CrossEntropyBatch& batch) {
    return batch.type == Type::float64 ? run<double>(batch) : run<float>(batch);
}

}  // namespace fastopt
