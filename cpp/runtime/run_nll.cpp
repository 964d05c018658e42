// Reads one number of each position and writes one number; the rest of the gradient is zero.
#include "run_nll.hpp"

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "isa.hpp"
#include "thread_pool.hpp"
#include "tuning.hpp"

namespace fastopt {
namespace {

template <class T>
T* at(const ClassArray& array, std::size_t position, std::size_t inner) {
    return static_cast<T*>(array.data) +
           static_cast<std::ptrdiff_t>(position / inner) * array.run_stride +
           static_cast<std::ptrdiff_t>(position % inner) * array.inner_stride;
}

// Sets the gradient at the positions [first, end) to zero, in the longest possible runs of memory.
template <class T>
void clear(const NllBatch& batch, std::size_t first, std::size_t end) {
    const ClassArray& grad = batch.grad;
    const auto classes = static_cast<std::ptrdiff_t>(batch.classes);
    const std::ptrdiff_t step = batch.inner > 1 ? grad.inner_stride : grad.run_stride;
    while (first < end) {
        const std::size_t in_run =
            batch.inner > 1 ? batch.inner - first % batch.inner : batch.positions;
        const std::size_t count = std::min(in_run, end - first);
        const auto width = static_cast<std::ptrdiff_t>(count);
        T* const start = at<T>(grad, first, batch.inner);
        if (grad.class_stride == 1 && step == classes)
            std::fill_n(start, width * classes, T{0});
        else if (grad.class_stride == 1)
            for (std::ptrdiff_t i = 0; i < width; ++i) std::fill_n(start + i * step, classes, T{0});
        else if (step == 1)
            for (std::ptrdiff_t c = 0; c < classes; ++c)
                std::fill_n(start + c * grad.class_stride, width, T{0});
        else
            for (std::ptrdiff_t i = 0; i < width; ++i)
                for (std::ptrdiff_t c = 0; c < classes; ++c)
                    start[i * step + c * grad.class_stride] = T{0};
        first += count;
    }
}

// `T` is the type of the arithmetic, `Element` that of the arrays.
template <class T, class Element = T>
double run(const NllBatch& batch) {
    const bool weighted = !batch.weight.values.empty();
    const double unit = batch.reduction == Reduction::mean ? 1.0 : batch.weight.unit;
    BlockVector<double> losses(batch.positions);
    double denominator = 1.0;
    if (batch.reduction == Reduction::mean)
        denominator =
            cross_entropy_denominator(batch.type, batch.targets, batch.ignore_index, batch.weight);
    const auto weight_of = [&](std::int64_t target) {
        const double weight =
            weighted ? batch.weight.values[static_cast<std::size_t>(target)] : 1.0;
        return static_cast<double>(static_cast<T>(weight)) * unit;
    };
    [[maybe_unused]] const UpdateTable& convert = update_kernels();
    const auto load = [&](const Element& element) {
        if constexpr (std::is_same_v<T, Element>) {
            return element;
        } else {
            T wide{};
            convert.widen[static_cast<int>(batch.type)](&element, 1, &wide);
            return wide;
        }
    };
    const auto store = [&](T value, Element& element) {
        if constexpr (std::is_same_v<T, Element>)
            element = value;
        else
            convert.narrow[static_cast<int>(batch.type)](&value, 1, &element);
    };
    const std::size_t at_once = std::max<std::size_t>(1, tuning.chunk_size / batch.classes);
    const std::size_t blocks = (batch.positions + at_once - 1) / at_once;
    const auto each_target = [&](std::size_t block, const auto& body) {
        const std::size_t end = std::min((block + 1) * at_once, batch.positions);
        for (std::size_t i = block * at_once; i < end; ++i) body(i, batch.targets.values[i]);
    };
    const auto read = [&](std::size_t block) {
        each_target(block, [&](std::size_t i, std::int64_t target) {
            losses[i] = 0.0;
            if (target == batch.ignore_index) return;
            const auto* const row = at<const Element>(batch.log_probs, i, batch.inner);
            losses[i] = -weight_of(target) *
                        static_cast<double>(load(row[target * batch.log_probs.class_stride]));
        });
    };
    const auto write = [&](std::size_t block) {
        if (!batch.grad_fresh)
            clear<Element>(batch, block * at_once,
                           std::min((block + 1) * at_once, batch.positions));
        each_target(block, [&](std::size_t i, std::int64_t target) {
            if (target != batch.ignore_index)
                store(static_cast<T>(-weight_of(target) / denominator),
                      at<Element>(batch.grad, i, batch.inner)[target * batch.grad.class_stride]);
        });
    };
    // The gradient may be the same memory as the log-probabilities.
    const bool writes = batch.grad.data != nullptr;
    // A number from somewhere in a row is a cache miss: the time of some 4 elements.
    constexpr std::size_t miss_work = 4;
    const std::size_t touched =
        batch.positions * (writes && !batch.grad_fresh ? batch.classes : miss_work);
    parallel_for_twice(blocks, read, [&] { return writes; }, blocks, write, touched, false);

    double loss = 0.0;
    with_default_floating_point([&] {
        if (batch.reduction == Reduction::none)
            store_losses<T>(batch.type, losses, 1.0, batch.losses);
        else
            loss = sum_in_order(losses.data(), batch.positions) / denominator;
    });
    return loss;
}

}  // namespace

double run_nll(const NllBatch& batch) {
    if (is_16_bit(batch.type)) return run<float, std::uint16_t>(batch);
    return batch.type == Type::float32 ? run<float>(batch) : run<double>(batch);
}

}  // namespace fastopt
