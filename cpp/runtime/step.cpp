// Calls the update kernel for each chunk of all tensors.
#include "step.hpp"

#include <cmath>

#include "isa.hpp"
#include "thread_pool.hpp"

namespace fastopt {
namespace {

// Bytes. Gradients are rescaled in blocks of this size, which stay in the L1 cache.
constexpr std::size_t rescale_block = 4096;

void update_piece(const Update& kernel, const TensorUpdate& tensor, const Piece& piece,
                  const Coefficients& coefficients, const Scaling* rescaled, bool zero) {
    const int type = static_cast<int>(tensor.grad.type);
    const Type arithmetic = arithmetic_type(tensor.grad.type);
    Slice rest = tensor.arrays;
    std::size_t done = piece.start;  // elements of `rest` that are left out
    const auto update = [&](const std::byte* grad, std::size_t count) {
        if (done != 0) advance(rest, done);
        rest.grad = grad;
        kernel.run[static_cast<int>(arithmetic)](rest, count, coefficients);
        done = count;
    };
    const auto update_rescaled = [&](const std::byte* grad, std::size_t count) {
        alignas(64) std::byte block[rescale_block];
        rest.storage.grad = arithmetic;
        for (std::size_t part; count > 0; count -= part, grad += part * size_of(tensor.grad.type)) {
            part = std::min(count, sizeof(block) / size_of(arithmetic));
            update_kernels().rescale[type](grad, part, rescaled->divisor, rescaled->multiplier,
                                           block);
            update(block, part);
        }
    };
    if (rescaled == nullptr)
        tensor.grad.reader.each_run(piece.start, piece.count, update);
    else
        tensor.grad.reader.each_run(piece.start, piece.count, update_rescaled);
    if (zero) tensor.grad.reader.fill_zero(piece.start, piece.count);
}

}  // namespace

void Stepper::cut() {
    grid_.clear();
    for (const TensorUpdate& tensor : tensors)
        grid_.add(tensor.grad.count, tensor.grad.reader.at_once());
    coefficients_.resize(tensors.size());
}

std::optional<Misfit> Stepper::prepare(const Update& kernel) {
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        TensorUpdate& tensor = tensors[i];
        tensor.arrays.noise.step = static_cast<std::uint64_t>(tensor.step);
        const TensorUpdate& before = tensors[i == 0 ? 0 : i - 1];
        const bool same = i > 0 && tensor.options == before.options && tensor.step == before.step &&
                          tensor.fresh == before.fresh;
        if (same)
            coefficients_[i] = coefficients_[i - 1];
        else
            kernel.prepare(tensor.options, tensor.step, tensor.fresh, coefficients_[i]);
        if (same && tensor.grad.type == before.grad.type) continue;
        const Unfit unfit = kernel.unfit(coefficients_[i], tensor.grad.type);
        if (unfit.name != nullptr) return Misfit{i, unfit};
    }
    return std::nullopt;
}

std::optional<Misfit> Stepper::misfit(int number) {
    std::optional<Misfit> result;
    with_default_floating_point([&] { result = prepare(update_kernels().updates[number]); });
    return result;
}

StepResult Stepper::run(int number, const GradOptions& options) {
    const Update& kernel = update_kernels().updates[number];
    Scaling scaling;
    bool fits[arithmetic_count];
    const auto scale_by = [&](const Norm& norm) {
        scaling = options.clip ? clipping(options.max_norm, norm.value, options.scale)
                               : Scaling{1.0 / options.scale, options.scale, 1.0};
        for (const Type type : {Type::float32, Type::float64})
            fits[static_cast<int>(type)] = scaling.fits(type);
        if (scaling.factor == 1.0) return;
        for (std::size_t i = 0; i < tensors.size(); ++i)
            if (fits[static_cast<int>(arithmetic_type(tensors[i].grad.type))])
                coefficients_[i].grad_factor *= scaling.factor;
    };
    const auto update = [&](std::size_t share) {
        grid_.each(share, [&](const Piece& piece) {
            const TensorUpdate& tensor = tensors[piece.tensor];
            const bool fit = fits[static_cast<int>(arithmetic_type(tensor.grad.type))];
            update_piece(kernel, tensor, piece, coefficients_[piece.tensor],
                         fit ? nullptr : &scaling, options.zero);
        });
    };
    // The norm is computed forwards, so the last gradients are still in cache.
    const bool measures = (options.clip || options.skip_nonfinite) && !options.total_norm;
    const bool backwards = grid_.elements() < tuning.turn_size && (measures || backwards_);
    backwards_ = !backwards;
    StepResult result;
    const auto decide = [&](const Norm& norm) {
        result.grad_norm = norm.value / options.scale;
        result.skipped = options.skip_nonfinite && !norm.finite;
        if (!result.skipped) scale_by(norm);
        return !result.skipped;
    };
    with_default_floating_point([&] {
        result.misfit = prepare(kernel);
        if (measures) return;
        const double norm = options.total_norm.value_or(0.0);
        decide({norm, std::isfinite(norm)});
    });
    if (result.misfit || result.skipped) return result;
    if (!measures) {
        parallel_for(grid_.shares(), grid_.elements(), update, backwards);
        return result;
    }
    parts_.start(grid_, options.norm_type);
    const auto grad_of = [&](std::size_t tensor) -> const GradView& {
        return tensors[tensor].grad;
    };
    const auto add_to_norm = [&](std::size_t share) {
        grid_.each(share, [&](const Piece& piece) { parts_.add(grad_of(piece.tensor), piece); });
    };
    const auto measure = [&] { return decide(norm_of(parts_, grid_, grad_of)); };
    if (grid_.shares() == 0)
        with_default_floating_point([&] { measure(); });
    else
        parallel_for_twice(grid_.shares(), add_to_norm, measure, grid_.shares(), update,
                           grid_.elements(), backwards);
    return result;
}

}  // namespace fastopt
