// One step of an update over many tensors, as one list of chunks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "../kernels/table.hpp"
#include "grid.hpp"
#include "run_norm.hpp"

namespace fastopt {

struct TensorUpdate {
    std::byte* param;
    std::byte* state[max_states];  // dense, in the parameter's order; nullptr where unused
    GradView grad;
    const double* options;  // of its group
    std::int64_t step;      // the number of this step, from 1
    bool fresh;             // its state has just been created
};

// What a step does with the gradients beside updating.
struct GradOptions {
    double scale = 1.0;     // the gradients are divided by it
    bool clip = false;      // to max_norm
    double max_norm = 0.0;  // with clip
    NormType norm_type = NormType::two;
    bool skip_nonfinite = false;  // do nothing if a gradient holds NaN or infinity
    bool zero = false;            // the gradients, after they have been used
};

// A scalar of a step that the element type of tensor number `tensor` cannot hold.
struct Misfit {
    std::size_t tensor;
    Unfit scalar;
};

struct StepResult {
    double grad_norm = 0.0;  // of all gradients over `scale`; with clip or skip_nonfinite
    bool skipped = false;
    std::optional<Misfit> misfit;  // then nothing was done
};

// Updates tensors. Kept from step to step: only `step`, `fresh` and the pointers change then.
class Stepper {
public:
    std::vector<TensorUpdate> tensors;

    void cut();  // after `tensors` have changed in number or size
    // `number`: of the update's row in the table.
    StepResult run(int number, const GradOptions& options);

private:
    // Computes the scalars. Returns the first that cannot be used.
    std::optional<Misfit> prepare(const Update& kernel);

    Grid grid_;
    NormParts parts_;
    bool backwards_ = false;  // how the next update runs, if it is small
    std::vector<Coefficients> coefficients_;
};

}  // namespace fastopt
