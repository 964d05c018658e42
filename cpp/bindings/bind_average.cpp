// Averages of parameters: their arrays, and averages in the place of the parameters.
#include <cstddef>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../runtime/floating_point.hpp"
#include "../runtime/isa.hpp"
#include "arrays.hpp"
#include "bindings.hpp"
#include "collected.hpp"
#include "dlpack.hpp"
#include "scalars.hpp"

namespace fastopt {
namespace {

std::vector<std::string> labels(const py::list& names, const char* kind) {
    std::vector<std::string> result;
    for (const py::handle name : names)
        result.push_back(kind + (" '" + as_text(name, "the name of a parameter") + "'"));
    return result;
}

// A context manager in C++, so that no interrupt can come between a copy and its record. If the
// with statement does not call __exit__ (no memory for the call), the destructor restores the
// parameters. `active` is one bool, shared by all blocks that write into these parameters.
class Applied {
public:
    Applied(const py::list& names, const py::list& params, const py::list& averages,
            py::array active)
        : active_(std::move(active)), flag_(static_cast<bool*>(active_.mutable_data())) {
        const std::vector<std::string> param_what = labels(names, "parameter");
        const std::vector<std::string> average_what = labels(names, "average of");
        for (std::size_t i = 0; i < param_what.size(); ++i)
            pairs_.push_back(
                {param_what[i], average_what[i], py::object(params[i]), py::object(averages[i])});
    }
    ~Applied() { restore(); }
    Applied(const Applied&) = delete;
    Applied& operator=(const Applied&) = delete;

    void enter() {
        std::vector<Piece> pieces;
        std::size_t total = 0;
        for (const Pair& pair : pairs_) {
            const py::array average =
                parameter_array(pair.average, pair.average_what, Taken::arithmetic);
            const py::array param = float_array(pair.param, pair.param_what);
            if (arithmetic_type(type_of(param)) != type_of(average))
                require_type(param, pair.param_what, average, pair.average_what);
            require_twin(param, pair.param_what, average, pair.average_what);
            const auto bytes = static_cast<std::size_t>(param.nbytes());
            pieces.push_back({const_cast<void*>(param.data()), average.data(), param.size(), bytes,
                              type_of(param),
                              owns_capsule(param) ? py::object(param) : py::object(),
                              py::isinstance<py::array>(pair.param)});
            total += bytes;
        }
        if (*flag_)
            throw std::runtime_error(
                "applied() within applied(): the parameters hold the averages until its block "
                "ends");
        auto before = std::make_unique_for_overwrite<std::byte[]>(total);
        std::byte* place = before.get();
        for (const Piece& piece : pieces) {
            std::memcpy(place, piece.param, piece.bytes);
            place += piece.bytes;
        }
        pieces_ = std::move(pieces);
        before_ = std::move(before);
        *flag_ = true;
        for (const Piece& piece : pieces_) {
            if (is_16_bit(piece.type))
                update_kernels().narrow[static_cast<int>(piece.type)](
                    static_cast<const float*>(piece.average), static_cast<std::size_t>(piece.count),
                    piece.param);
            else
                std::memcpy(piece.param, piece.average, piece.bytes);
        }
    }

    void exit(const py::args&) { restore(); }

    int traverse(visitproc visit, void* arg) const {
        for (const Pair& pair : pairs_) {
            Py_VISIT(pair.param.ptr());
            Py_VISIT(pair.average.ptr());
        }
        return 0;
    }

    void clear() {
        restore();
        const auto pairs = std::move(pairs_);
        pairs_.clear();
    }

private:
    struct Pair {
        std::string param_what, average_what;
        py::object param, average;
    };
    struct Piece {
        void* param;
        const void* average;
        py::ssize_t count;
        std::size_t bytes;
        Type type;         // of the parameter
        py::object owner;  // of its memory; null if that is the parameter
        bool is_array;     // of NumPy
    };

    // Whether the memory is still the same: resize() may have moved it, or `data` of a tensor.
    static bool holds(const py::object& param, const Piece& piece) noexcept {
        if (piece.owner) return true;
        if (!piece.is_array) try {
                dlpack::Tensor tensor;
                return torch::read(param.ptr(), tensor) && tensor.data == piece.param &&
                       dlpack::element_count(tensor) == static_cast<std::size_t>(piece.count);
            } catch (const std::exception&) {
                return false;
            }
        const auto* fields = py::detail::array_proxy(param.ptr());
        py::ssize_t count = 1;
        for (int axis = 0; axis < fields->nd; ++axis) count *= fields->dimensions[axis];
        return fields->data == piece.param && count == piece.count;
    }

    void restore() noexcept {
        if (!before_) return;
        const std::byte* place = before_.get();
        const auto pieces = std::exchange(pieces_, {});
        for (std::size_t i = 0; i < pieces.size(); ++i) {
            const Piece& piece = pieces[i];
            if (holds(pairs_[i].param, piece)) std::memcpy(piece.param, place, piece.bytes);
            place += piece.bytes;
        }
        before_.reset();
        *flag_ = false;
    }

    std::vector<Pair> pairs_;
    py::array active_;
    bool* flag_;  // in it
    std::vector<Piece> pieces_;
    std::unique_ptr<std::byte[]> before_;  // the parameters, while the averages replace them
};

// Checks that an update can change these arrays. Returns new dense arrays in the same memory
// order, of the type of the arithmetic, for the arrays from number `first` on: copies, or zeros.
py::list twins(const py::list& names, const py::list& params, std::size_t first, bool copy) {
    OverlapCheck overlap;
    const std::vector<std::string> what = labels(names, "parameter");
    std::vector<py::array> arrays;
    for (std::size_t i = 0; i < what.size(); ++i) {
        arrays.push_back(
            parameter_array(as_array(params[i], what[i], true), what[i]));  // read only
        overlap.add(arrays[i], what[i], true);
    }
    overlap.run();
    py::list result;
    for (std::size_t i = first; i < arrays.size(); ++i) {
        const py::array& array = arrays[i];
        result.append(copy ? wide_copy(array)
                           : zeros_like(array, dtype_of(arithmetic_type(type_of(array)), array)));
    }
    return result;
}

}  // namespace

void bind_average(py::module_& module) {
    py::class_<Applied>(module, "Applied", "Averages in the place of parameters.",
                        collected<Applied>())
        .def(py::init<const py::list&, const py::list&, const py::list&, py::array>(),
             py::arg("names"), py::arg("params"), py::arg("averages"), py::arg("active"))
        .def("__enter__", &Applied::enter, py::call_guard<DefaultFloatingPoint>())
        .def("__exit__", &Applied::exit);
    module.def("twins", &twins, py::arg("names"), py::arg("params"), py::arg("first"),
               py::arg("copy"));
}

}  // namespace fastopt
