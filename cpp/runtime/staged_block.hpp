// Blocks of 16-bit elements as float32 in working memory, where the kernels compute.
#pragma once

#include <cstddef>

#include "../kernels/table.hpp"

namespace fastopt {

// The copy of a block of positions. The classes of a position are neighbours (`rows`), or the
// positions of a class are.
struct StagedBlock {
    Type type;  // of the elements outside
    bool rows;

    // Both copy the positions of `block`, whose sizes are those of `array`.
    void widen(const ClassArray& array, const ClassBlock& block, float* to) const;
    void narrow(const float* from, const ClassBlock& block, const ClassArray& array) const;

    // The copy as the array of a block that begins at position 0, in runs of one position.
    ClassArray array(float* copy, const ClassBlock& block) const;
};

}  // namespace fastopt
