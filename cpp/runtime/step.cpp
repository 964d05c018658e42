// Walks the chunks of all tensors and calls the update kernel on each.
#include "step.hpp"

#include "isa.hpp"
#include "parallel.hpp"

namespace fastopt {
namespace {

void update_piece(const Optimizer& kernel, const TensorUpdate& tensor, const Piece& piece,
                  const Coefficients& coefficients, bool zero) {
    const auto update = kernel.update[static_cast<int>(tensor.grad.type)];
    std::size_t offset = piece.start * size_of(tensor.grad.type);
    tensor.grad.reader.each_run(piece.start, piece.count,
                                [&](const std::byte* grad, std::size_t count) {
                                    Slice slice{tensor.param + offset, grad, {}};
                                    for (int i = 0; i < kernel.state_count; ++i)
                                        if (tensor.state[i] != nullptr)
                                            slice.state[i] = tensor.state[i] + offset;
                                    update(slice, count, coefficients);
                                    offset += count * size_of(tensor.grad.type);
                                });
    if (zero) tensor.grad.reader.fill_zero(piece.start, piece.count);
}

}  // namespace

void Stepper::cut() {
    grid_.clear();
    for (const TensorUpdate& tensor : tensors)
        grid_.add(tensor.grad.count, tensor.grad.reader.at_once());
    coefficients_.resize(tensors.size());
}

void Stepper::prepare(const Optimizer& kernel) {
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        const TensorUpdate& tensor = tensors[i];
        const TensorUpdate& before = tensors[i == 0 ? 0 : i - 1];
        if (i > 0 && tensor.options == before.options && tensor.step == before.step &&
            tensor.fresh == before.fresh)
            coefficients_[i] = coefficients_[i - 1];
        else
            kernel.prepare(tensor.options, tensor.step, tensor.fresh, coefficients_[i]);
    }
}

StepResult Stepper::run(int optimizer, const GradOptions& options) {
    const Optimizer& kernel = kernels().optimizers[optimizer];
    const auto multiply = [&](double factor) {
        if (factor != 1.0)
            for (Coefficients& coefficients : coefficients_) coefficients.grad_factor *= factor;
    };
    const auto update = [&](std::size_t share) {
        grid_.each(share, [&](const Piece& piece) {
            update_piece(kernel, tensors[piece.tensor], piece, coefficients_[piece.tensor],
                         options.zero);
        });
    };
    // After the norm has been taken forwards, what is still in cache is at the end.
    const bool with_norm = options.clip || options.skip_nonfinite;
    const bool backwards = grid_.elements() < tuning.turn_size && (with_norm || backwards_);
    backwards_ = !backwards;
    StepResult result;
    if (!with_norm) {
        with_default_floating_point([&] {
            prepare(kernel);
            multiply(1.0 / options.scale);
        });
        parallel_for(grid_.shares(), grid_.elements(), update, backwards);
        return result;
    }
    squares_.start(grid_);
    const auto grad_of = [&](std::size_t tensor) -> const GradView& {
        return tensors[tensor].grad;
    };
    const auto add_squares = [&](std::size_t share) {
        grid_.each(share, [&](const Piece& piece) { squares_.add(grad_of(piece.tensor), piece); });
    };
    const auto decide = [&] {
        const Norm norm = norm_of(squares_, grid_, grad_of);
        result.grad_norm = norm.value / options.scale;
        result.skipped = options.skip_nonfinite && !norm.finite;
        if (result.skipped) return false;
        prepare(kernel);
        double factor = 1.0 / options.scale;
        if (options.clip) {
            const double clip = options.max_norm / (result.grad_norm + 1e-6);
            factor *= clip > 1.0 ? 1.0 : clip;  // NaN stays
        }
        multiply(factor);
        return true;
    };
    if (grid_.shares() == 0)
        with_default_floating_point([&] { decide(); });
    else
        parallel_for_twice(grid_.shares(), add_squares, decide, grid_.shares(), update,
                           grid_.elements(), backwards);
    return result;
}

}  // namespace fastopt
