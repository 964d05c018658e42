// Reads the operands side by side. Elements of 16 bits are widened into float32 before the kernel,
// and its results narrowed after it. The losses of a chunk are summed in lanes; the index of an
// element decides its lane. The sums of the chunks are added in order.
#include "run_pointwise.hpp"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <utility>
#include <vector>

#include "grid.hpp"
#include "isa.hpp"
#include "scratch.hpp"
#include "thread_pool.hpp"

namespace fastopt {
namespace {

// Bytes. Larger outputs are stored past the caches: their old lines are then not read first, and
// they would not stay in cache. Measured on Zen 4: 15 to 25 % less time if memory is the limit.
constexpr std::size_t stream_bytes = 16 << 20;

// Bytes of an operand that are copied at once. The copies of all operands stay in the second cache;
// the small ones are on the stack, for where there is no other memory, and for contiguous operands
// that are widened: these copies stay in the first cache.
constexpr std::size_t usual_run = 32768;
constexpr std::size_t small_run = 2048;

// Of each operand a copy and a widened copy, and the losses.
constexpr std::size_t most_copies = 2 * max_operands + 1;

class Walk {
public:
    explicit Walk(const PointwiseBatch& batch)
        : batch_(batch),
          size_(size_of(batch.type)),
          type_(static_cast<int>(batch.type)),
          staged_(is_16_bit(batch.types[0])) {
        std::size_t at_once = 1;
        bool gathers = false;
        for (std::size_t i = 0; i < max_operands; ++i) {
            const auto& operand = batch.operands[i];
            if (!operand) continue;
            at_once = std::max(at_once, operand->at_once());
            gathers |= !operand->contiguous();
            copies_ += !operand->contiguous();
            copies_ += is_16_bit(batch.types[i]);
        }
        copies_ += staged_ && batch.losses != nullptr;
        wanted_run_ = gathers ? std::max(at_once, usual_run / size_) : small_run / size_;
        grid_.add(batch.count, at_once);
        sums_.assign(grid_.chunks(), 0.0);
    }

    std::size_t shares() const { return grid_.shares(); }

    void run_share(std::size_t share) {
        grid_.each(share, [&](const Piece& piece) { run_piece(piece); });
    }

    double total() const {
        double sum = 0.0;
        for (const double part : sums_) sum += part;
        return sum;
    }

    void check_share(std::size_t share) {
        grid_.each(share, [&](const Piece& piece) {
            if (leaves_unit_interval(piece.start, piece.count))
                outside_.store(true, std::memory_order_relaxed);
        });
    }

    bool inside() const { return !outside_.load(std::memory_order_relaxed); }

    // The first element outside of the range. It is slow.
    std::optional<std::size_t> first_outside() const {
        for (std::size_t start = 0, step = grid_.chunk_size(); start < batch_.count;) {
            const std::size_t count = std::min(step, batch_.count - start);
            const bool found = leaves_unit_interval(start, count);
            if (found && step == 1) return start;
            if (found)
                step = 1;
            else
                start += count;
        }
        return std::nullopt;  // another thread has changed it since
    }

private:
    // Whether one of these elements of the first operand does.
    bool leaves_unit_interval(std::size_t start, std::size_t all) const {
        const auto leaves = loss_kernels().leaves_unit_interval[type_];
        bool found = false;
        batch_.operands[0]->each_run(start, all, [&](const std::byte* x, std::size_t count) {
            if (!staged_) {
                found = found || leaves(x, count);
                return;
            }
            float wide[small_run / sizeof(float)];
            for (std::size_t done = 0; done < count && !found; done += std::size(wide)) {
                const std::size_t part = std::min(std::size(wide), count - done);
                widen(0, x + done * size_of(batch_.types[0]), part, wide);
                found = leaves(wide, part);
            }
        });
        return found;
    }

    void widen(std::size_t operand, const void* x, std::size_t count, void* out) const {
        update_kernels().widen[static_cast<int>(batch_.types[operand])](x, count,
                                                                        static_cast<float*>(out));
    }

    void narrow(const void* x, std::size_t count, void* out) const {
        update_kernels().narrow[static_cast<int>(batch_.types[0])](static_cast<const float*>(x),
                                                                   count, out);
    }

    void run_piece(const Piece& piece) {
        alignas(64) std::byte small[most_copies * small_run];
        std::byte* buffer = small;
        std::size_t run_size = piece.count;
        if (copies_ > 0) {
            run_size = small_run / size_;
            const std::size_t wanted = std::min(piece.count, wanted_run_);
            if (wanted > run_size)
                if (std::byte* large = thread_scratch(copies_ * wanted * size_)) {
                    buffer = large;
                    run_size = wanted;
                }
        }
        double lanes[pointwise_lanes] = {};
        PointwiseRun run{};
        run.lanes = lanes;
        run.options = batch_.options.data();
        run.grad_scale = 1.0 / batch_.divisor;
        run.stream = !staged_ && batch_.out_apart && batch_.count * size_ >= stream_bytes;
        const std::size_t chunk_size = grid_.chunk_size();
        for (std::size_t done = 0; done < piece.count;) {
            const std::size_t end = std::min(done + run_size, piece.count);
            const std::byte* first[max_operands] = {};
            std::byte* free = buffer;
            std::byte* over_first = nullptr;  // where 16-bit results are computed
            const auto take = [&] { return std::exchange(free, free + run_size * size_); };
            const std::size_t begin = done;
            for (std::size_t i = 0; i < max_operands; ++i) {
                if (!batch_.operands[i]) continue;
                first[i] = batch_.operands[i]->read(piece.start + begin, end - begin, free);
                if (first[i] == free) take();
                if (!is_16_bit(batch_.types[i])) continue;
                std::byte* const wide = take();
                widen(i, first[i], end - begin, wide);
                first[i] = wide;
                if (i == 0) over_first = wide;
            }
            const std::size_t start = piece.start + begin;
            std::byte* const losses =
                staged_ ? (batch_.losses ? take() : nullptr) : at(batch_.losses, start * size_);
            std::byte* const out =
                staged_ ? (batch_.out ? over_first : nullptr) : at(batch_.out, start * size_);
            for (; done < end; done += run.count) {
                const std::size_t chunk = done / chunk_size;
                const std::size_t chunk_end = std::min((chunk + 1) * chunk_size, piece.count);
                const std::size_t bytes = (done - begin) * size_;
                run.count = std::min(end, chunk_end) - done;
                for (std::size_t i = 0; i < max_operands; ++i)
                    run.operands[i] = first[i] ? first[i] + bytes : nullptr;
                run.first = piece.start + done;
                run.out = at(out, bytes);
                run.losses = at(losses, bytes);
                batch_.kernel->run[type_](run);
                if (done + run.count == chunk_end) sums_[piece.chunk + chunk] = take_sum(lanes);
            }
            if (!staged_) continue;
            const std::size_t stored = size_of(batch_.types[0]);
            if (out) narrow(out, end - begin, at(batch_.out, start * stored));
            if (losses) narrow(losses, end - begin, at(batch_.losses, start * stored));
        }
    }

    static std::byte* at(void* array, std::size_t bytes) {
        return array == nullptr ? nullptr : static_cast<std::byte*>(array) + bytes;
    }

    const PointwiseBatch& batch_;
    std::size_t size_;
    int type_;
    Grid grid_;
    bool staged_;             // `out` and `losses` have 16 bits
    std::size_t copies_ = 0;  // of operands that are not contiguous, or of 16 bits, and of losses
    std::size_t wanted_run_ = 0;
    std::vector<double> sums_;  // of each chunk
    std::atomic<bool> outside_{false};
};

}  // namespace

PointwiseResult run_pointwise(const PointwiseBatch& batch) {
    Walk walk(batch);
    const std::size_t work = batch.count * static_cast<std::size_t>(batch.kernel->work);
    const auto run = [&](std::size_t share) { walk.run_share(share); };
    if (batch.kernel->unit_interval) {
        parallel_for_twice(
            walk.shares(), [&](std::size_t share) { walk.check_share(share); },
            [&] { return walk.inside(); }, walk.shares(), run, work, false);
        if (!walk.inside()) return {0.0, walk.first_outside().value_or(0)};
    } else {
        parallel_for(walk.shares(), work, run);
    }
    PointwiseResult result;
    with_default_floating_point([&] { result.loss = walk.total() / batch.divisor; });
    return result;
}

}  // namespace fastopt
