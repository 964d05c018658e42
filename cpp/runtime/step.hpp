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
    // The whole arrays: dense, in the parameter's order; nullptr where unused. Without the
    // gradient.
    Slice arrays;
    GradView grad;
    const double* options;  // of its group
    std::int64_t step;      // the number of this step, from 1
    bool fresh;             // the state has just been created
};

// The options of a step for the gradients.
struct GradOptions {
    double scale = 1.0;     // divides the gradients
    bool clip = false;      // clips to max_norm
    double max_norm = 0.0;  // used with clip
    NormType norm_type = NormType::two;
    std::optional<double> total_norm;  // if it is known: nothing is measured
    bool skip_nonfinite = false;       // do nothing if a gradient holds NaN or infinity
    bool zero = false;                 // set the gradients to zero after the update
};

// A scalar of a step that the element type of tensor number `tensor` cannot hold.
struct Misfit {
    std::size_t tensor;
    Unfit scalar;
};

struct StepResult {
    double grad_norm = 0.0;  // of all gradients over `scale`; with clip or skip_nonfinite
    bool skipped = false;
    std::optional<Misfit> misfit;  // if there is one, nothing was done
};

// Updates tensors. The next step reuses it, and changes only `step`, `fresh` and the pointers.
class Stepper {
public:
    std::vector<TensorUpdate> tensors;

    void cut();  // to be called after the number or the sizes of `tensors` have changed
    // `number`: of the update's row in the table.
    StepResult run(int number, const GradOptions& options);
    // The misfit that run() would return.
    std::optional<Misfit> misfit(int number);

private:
    // Computes the scalars. Returns the first that cannot be used.
    std::optional<Misfit> prepare(const Update& kernel);

    Grid grid_;
    NormParts parts_;
    bool backwards_ = false;  // the direction of the next small update
    std::vector<Coefficients> coefficients_;
};

}  // namespace fastopt
