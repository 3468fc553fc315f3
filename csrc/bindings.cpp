// The boundary, and the only file that knows pybind11: check types and shapes, prove every index
// in range, release the GIL, call. Below the release there is no Python object.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "als.h"
#include "attention.h"
#include "catalogue.h"
#include "dense.h"
#include "linear.h"
#include "ragged.h"
#include "topk.h"
#include "views.h"

namespace py = pybind11;
using namespace hybridrec;
using namespace pybind11::literals;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
template <class T>
using Maybe = std::optional<Array<T>>;
using Shape = std::initializer_list<int64_t>;
constexpr int64_t kAny = -1;

// The data of an array of the wanted shape (kAny: any extent), aligned for its type.
template <class T>
const T* borrow(const char* name, const Array<T>& array, Shape wanted) {
    if (array.ndim() != static_cast<py::ssize_t>(wanted.size()))
        refuse(std::string(name) + " has " + std::to_string(array.ndim()) + " dimensions; wanted " +
               std::to_string(wanted.size()));
    py::ssize_t axis = 0;
    for (const int64_t extent : wanted) {
        if (extent != kAny && array.shape(axis) != extent)
            refuse(std::string(name) + " has extent " + std::to_string(array.shape(axis)) +
                   " on axis " + std::to_string(axis) + "; wanted " + std::to_string(extent));
        ++axis;
    }
    if (reinterpret_cast<uintptr_t>(array.data()) % alignof(T) != 0)
        refuse(std::string(name) + " is not aligned in memory; copy it first");
    return array.data();
}

Matrix<const float> matrix(const char* name, const Array<float>& array, int64_t rows = kAny,
                           int64_t columns = kAny) {
    const float* data = borrow(name, array, {rows, columns});
    return {data, array.shape(0), array.shape(1)};
}

// A matrix that the kernel writes.
Matrix<float> changed(const char* name, Array<float>& array, int64_t rows = kAny,
                      int64_t columns = kAny) {
    borrow(name, array, {rows, columns});
    if (!array.writeable()) refuse(std::string(name) + " is read-only; wanted what can be changed");
    return {array.mutable_data(), array.shape(0), array.shape(1)};
}

Ragged ragged(const char* name, const Array<int64_t>& indptr, const Array<int32_t>& items,
              int64_t n_items) {
    const int64_t* starts = borrow("indptr", indptr, {kAny});
    const int32_t* codes = borrow("items", items, {kAny});
    check_ragged(name, starts, indptr.size(), codes, items.size(), n_items);
    return {starts, codes, nullptr, indptr.size() - 1};
}

void check_finite(const char* name, const float* values, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        if (!std::isfinite(values[i]))
            refuse(std::string(name) + " holds " + std::to_string(values[i]) +
                   "; wanted finite numbers");
}

int checked_threads(int64_t threads) {
    if (threads < 1 || threads > 1024)
        refuse("threads is " + std::to_string(threads) + "; wanted 1 to 1024");
    return static_cast<int>(threads);
}

int64_t checked_items(int64_t n_items) {
    if (n_items < 0 || n_items > std::numeric_limits<int32_t>::max() - kGroup)
        refuse("n_items is " + std::to_string(n_items) + "; wanted what int32 codes can name");
    return n_items;
}

Array<float> py_gram(const Array<float>& factors, int64_t threads) {
    const Matrix<const float> m = matrix("factors", factors);
    const int workers = checked_threads(threads);
    Array<float> out({m.columns, m.columns});
    float* to = out.mutable_data();
    {
        const py::gil_scoped_release release;
        gram(m, to, workers);
    }
    return out;
}

void py_rotate(Array<float>& factors, const Array<float>& axes, int64_t threads) {
    const Matrix<float> m = changed("factors", factors);
    const float* by = borrow("axes", axes, {m.columns, m.columns});
    const int workers = checked_threads(threads);
    const py::gil_scoped_release release;
    rotate(m, by, workers);
}

py::tuple py_transpose(const Array<int64_t>& indptr, const Array<int32_t>& items,
                       const Maybe<float>& weights, int64_t n_items) {
    checked_items(n_items);
    Ragged rows = ragged("history", indptr, items, n_items);
    if (rows.rows > std::numeric_limits<int32_t>::max())
        refuse("history has " + std::to_string(rows.rows) + " rows; wanted what int32 can name");
    if (weights) rows.weights = borrow("weights", *weights, {items.size()});
    Array<int64_t> starts(n_items + 1);
    Array<int32_t> codes(items.size());
    Maybe<float> held;
    if (weights) held = Array<float>(items.size());
    int64_t* to_starts = starts.mutable_data();
    int32_t* to_codes = codes.mutable_data();
    float* to_weights = held ? held->mutable_data() : nullptr;
    {
        const py::gil_scoped_release release;
        transpose(rows, n_items, to_starts, to_codes, to_weights);
    }
    return py::make_tuple(starts, codes, held);
}

Problem problem(const Array<int64_t>& indptr, const Array<int32_t>& items,
                const Maybe<float>& weights, const Array<float>& other, const Array<float>& shared,
                const Array<float>& ridge, float alpha, float target) {
    const Matrix<const float> y = matrix("other", other);
    Ragged rows = ragged("history", indptr, items, y.rows);
    if (weights) rows.weights = borrow("weights", *weights, {items.size()});
    return {
        rows,  y,     borrow("shared", shared, {y.columns}), borrow("ridge", ridge, {rows.rows}),
        alpha, target};
}

void py_solve_exact(const Array<int64_t>& indptr, const Array<int32_t>& items,
                    const Maybe<float>& weights, const Array<float>& other,
                    const Array<float>& shared, const Array<float>& ridge, float alpha,
                    float target, Array<float>& out, int64_t threads) {
    const Problem p = problem(indptr, items, weights, other, shared, ridge, alpha, target);
    const Matrix<float> to = changed("out", out, p.rows.rows, p.other.columns);
    const int workers = checked_threads(threads);
    const py::gil_scoped_release release;
    solve_exact(p, to, workers);
}

void py_solve_cg(const Array<int64_t>& indptr, const Array<int32_t>& items,
                 const Maybe<float>& weights, const Array<float>& other, const Array<float>& shared,
                 const Array<float>& ridge, float alpha, float target, Array<float>& x,
                 int64_t steps, float relaxation, int64_t threads) {
    const Problem p = problem(indptr, items, weights, other, shared, ridge, alpha, target);
    const Matrix<float> to = changed("x", x, p.rows.rows, p.other.columns);
    if (steps < 1 || steps > 1000000)
        refuse("steps is " + std::to_string(steps) + "; wanted 1 to 1000000");
    if (!(relaxation > 0.0f && relaxation < 2.0f))
        refuse("relaxation is " + std::to_string(relaxation) + "; wanted between 0 and 2");
    const int workers = checked_threads(threads);
    const py::gil_scoped_release release;
    solve_cg(p, to, static_cast<int>(steps), relaxation, workers);
}

// Exclusions and the answer of a search: everything but where the scores come from.
class Search {
  public:
    Search(int64_t rows, int64_t n_items, int64_t k, const Maybe<int64_t>& indptr,
           const Maybe<int32_t>& items, const Maybe<bool>& allow, int64_t threads)
        : threads_(checked_threads(threads)) {
        if (k < 1 || k > n_items)
            refuse("k is " + std::to_string(k) + "; wanted 1 to the number of items, " +
                   std::to_string(n_items));
        if (indptr.has_value() != items.has_value())
            refuse("exclude wants both its indptr and its items, or neither");
        if (indptr) {
            exclude_ = ragged("exclude", *indptr, *items, n_items);
            if (exclude_->rows != rows)
                refuse("exclude has " + std::to_string(exclude_->rows) + " rows; wanted " +
                       std::to_string(rows));
        }
        // Read as bytes: a bool array made by a view may hold other bytes than 0 and 1.
        if (allow) allow_ = reinterpret_cast<const uint8_t*>(borrow("allow", *allow, {n_items}));
        items_ = Array<int32_t>({rows, k});
        scores_ = Array<float>({rows, k});
        best_ = {{items_.mutable_data(), rows, k}, {scores_.mutable_data(), rows, k}};
    }
    Search(const Search&) = delete;
    Search& operator=(const Search&) = delete;

    template <class Run>
    py::tuple run(const Run& kernel) {
        {
            const py::gil_scoped_release release;
            kernel(Filter{exclude_ ? &*exclude_ : nullptr, allow_}, best_, threads_);
        }
        return py::make_tuple(items_, scores_);
    }

  private:
    int threads_;
    std::optional<Ragged> exclude_;
    const uint8_t* allow_ = nullptr;
    Array<int32_t> items_;
    Array<float> scores_;
    Best best_{};
};

std::unique_ptr<Catalogue> py_catalogue(const Array<float>& items, int64_t threads) {
    const Matrix<const float> m = matrix("items", items);
    checked_items(m.rows);
    // The sums of the 8-bit pass are int32.
    if (m.columns > kWidest)
        refuse("items are " + std::to_string(m.columns) + " wide; wanted at most " +
               std::to_string(kWidest));
    const int workers = checked_threads(threads);
    const py::gil_scoped_release release;
    return std::make_unique<Catalogue>(m, workers);
}

Array<float> py_vectors(const Catalogue& catalogue) {
    Array<float> out({catalogue.size(), catalogue.width()});
    float* to = out.mutable_data();
    {
        const py::gil_scoped_release release;
        catalogue.vectors(to);
    }
    return out;
}

py::tuple py_top_k(const Array<float>& queries, const Catalogue& catalogue, int64_t k,
                   const Maybe<int64_t>& exclude_indptr, const Maybe<int32_t>& exclude_items,
                   const Maybe<bool>& allow, int64_t threads) {
    const Matrix<const float> q = matrix("queries", queries, kAny, catalogue.width());
    Search search(q.rows, catalogue.size(), k, exclude_indptr, exclude_items, allow, threads);
    return search.run(
        [&](Filter filter, Best best, int workers) { top_k(q, catalogue, filter, best, workers); });
}

py::tuple py_select_top_k(const Array<float>& scores, int64_t k,
                          const Maybe<int64_t>& exclude_indptr, const Maybe<int32_t>& exclude_items,
                          const Maybe<bool>& allow, int64_t threads) {
    const Matrix<const float> s = matrix("scores", scores);
    checked_items(s.columns);
    Search search(s.rows, s.columns, k, exclude_indptr, exclude_items, allow, threads);
    return search.run(
        [&](Filter filter, Best best, int workers) { select_top_k(s, filter, best, workers); });
}

template <class Format>
std::unique_ptr<Linear<Format>> py_linear(const Array<float>& weight, const Maybe<float>& bias) {
    if (!Format::runs())
        refuse(std::is_same_v<Format, Int8>
                   ? "this build or CPU has no 8-bit products; wanted AVX-512 VNNI"
               : std::is_same_v<Format, BFloat16>
                   ? "this build or CPU has no bfloat16 products; wanted AVX-512 BF16"
                   : "this build has no such layers; wanted AVX-512");
    const Matrix<const float> m = matrix("weight", weight);
    if (m.columns > kWidest)
        refuse("weight has " + std::to_string(m.columns) + " columns; wanted at most " +
               std::to_string(kWidest) + ", for sums to be exact");
    const float* add = bias ? borrow("bias", *bias, {m.rows}) : nullptr;
    check_finite("weight", m.data, m.rows * m.columns);
    if (add) check_finite("bias", add, m.rows);
    const py::gil_scoped_release release;
    return std::make_unique<Linear<Format>>(m, add);
}

template <class Format>
void py_apply(const Linear<Format>& layer, const Array<float>& x, Array<float>& out, bool gelu,
              int64_t threads) {
    const Matrix<const float> from = matrix("x", x, kAny, layer.inputs());
    const Matrix<float> to = changed("out", out, from.rows, layer.outputs());
    const int workers = checked_threads(threads);
    const py::gil_scoped_release release;
    layer.apply(from, to, gelu ? Activation::kGelu : Activation::kNone, workers);
}

Norm norm_of(const Array<float>& gain, const Array<float>& shift, float epsilon, int64_t width) {
    if (!(epsilon > 0.0f)) refuse("epsilon is " + std::to_string(epsilon) + "; wanted above 0");
    return {borrow("gain", gain, {width}), borrow("shift", shift, {width}), epsilon};
}

template <class Format>
void py_apply_norm(const Linear<Format>& layer, const Array<float>& x, const Array<float>& residual,
                   const Array<float>& gain, const Array<float>& shift, float epsilon,
                   Array<float>& out, int64_t threads) {
    const Matrix<const float> from = matrix("x", x, kAny, layer.inputs());
    const Matrix<const float> other = matrix("residual", residual, from.rows, layer.outputs());
    const Norm norm = norm_of(gain, shift, epsilon, layer.outputs());
    const Matrix<float> to = changed("out", out, from.rows, layer.outputs());
    const int workers = checked_threads(threads);
    const py::gil_scoped_release release;
    layer.apply(from, other, norm, to, workers);
}

template <class Format>
void py_feed_forward(const Linear<Format>& first, const Linear<Format>& second,
                     const Array<float>& x, const Array<float>& gain, const Array<float>& shift,
                     float epsilon, Array<float>& out, int64_t threads) {
    if (second.inputs() != first.outputs() || second.outputs() != first.inputs())
        refuse("second is " + std::to_string(second.inputs()) + " to " +
               std::to_string(second.outputs()) + "; wanted the widths of first, " +
               std::to_string(first.outputs()) + " to " + std::to_string(first.inputs()));
    const Matrix<const float> from = matrix("x", x, kAny, first.inputs());
    const Norm norm = norm_of(gain, shift, epsilon, second.outputs());
    const Matrix<float> to = changed("out", out, from.rows, second.outputs());
    const int workers = checked_threads(threads);
    const py::gil_scoped_release release;
    feed_forward(first, second, from, norm, to, workers);
}

// (count, 2) ranges of rows, each inside [0, rows].
const int64_t* ranges(const char* name, const Array<int64_t>& array, int64_t count, int64_t rows) {
    const int64_t* bounds = borrow(name, array, {count, 2});
    for (int64_t i = 0; i < count; ++i)
        if (bounds[2 * i] < 0 || bounds[2 * i] > bounds[2 * i + 1] || bounds[2 * i + 1] > rows)
            refuse(std::string(name) + "[" + std::to_string(i) + "] is " +
                   std::to_string(bounds[2 * i]) + " to " + std::to_string(bounds[2 * i + 1]) +
                   "; wanted rows from 0 to " + std::to_string(rows));
    return bounds;
}

void py_attend(const Array<float>& q, const Array<float>& k, const Array<float>& v,
               const Array<float>& kept_k, const Array<float>& kept_v, const Array<int64_t>& asks,
               const Array<int64_t>& own, const Array<int64_t>& seen, int64_t heads,
               int64_t key_heads, float scale, bool causal, int64_t window, Array<float>& out,
               int64_t threads) {
    const Matrix<const float> queries = matrix("q", q), keys = matrix("k", k);
    const Matrix<const float> values = matrix("v", v, keys.rows, keys.columns);
    const Matrix<const float> kept = matrix("kept_k", kept_k, kAny, keys.columns);
    const Matrix<const float> kept_values = matrix("kept_v", kept_v, kept.rows, keys.columns);
    const Matrix<float> to = changed("out", out, queries.rows, queries.columns);
    if (heads < 1 || key_heads < 1 || heads % key_heads != 0)
        refuse("heads is " + std::to_string(heads) + "; wanted a multiple of key_heads, " +
               std::to_string(key_heads));
    if (queries.columns % heads != 0 || keys.columns != queries.columns / heads * key_heads)
        refuse("q has " + std::to_string(queries.columns) + " columns and k " +
               std::to_string(keys.columns) + "; wanted heads and key_heads of one width");
    const int64_t* bounds = borrow("asks", asks, {kAny});
    const int64_t count = asks.size() - 1;
    if (count < 0 || bounds[0] != 0 || bounds[count] != queries.rows)
        refuse("asks must run from 0 to the rows of q, " + std::to_string(queries.rows));
    for (int64_t s = 0; s < count; ++s)
        if (bounds[s + 1] < bounds[s])
            refuse("asks[" + std::to_string(s + 1) + "] is below the entry before it");
    if (window < 0) refuse("window is " + std::to_string(window) + "; wanted at least 0");
    const int64_t rows = kept.rows + keys.rows;
    const Texts texts{bounds, ranges("own", own, count, rows), ranges("seen", seen, count, rows),
                      count};
    const int workers = checked_threads(threads);
    const Heads shape{heads, key_heads, queries.columns / heads};
    const py::gil_scoped_release release;
    attend(queries, {kept, keys}, {kept_values, values}, texts, shape, scale, {causal, window}, to,
           workers);
}

// The builds that were compiled and that this CPU and system can run, best first.
py::tuple cpu_builds() {
#ifdef HYBRIDREC_X86_BUILDS
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    if (avx512) return py::make_tuple("avx512", "avx2", "baseline");
    if (avx2) return py::make_tuple("avx2", "baseline");
#endif
    return py::make_tuple("baseline");
}

}  // namespace

template <class Format>
void add_linear(py::module_& m, const char* name) {
    py::class_<Linear<Format>>(m, name, py::module_local())
        .def(py::init(&py_linear<Format>), "weight"_a.noconvert(), "bias"_a.noconvert())
        .def("apply", &py_apply<Format>, "x"_a.noconvert(), py::kw_only(), "out"_a.noconvert(),
             "gelu"_a, "threads"_a)
        .def("apply_norm", &py_apply_norm<Format>, "x"_a.noconvert(), "residual"_a.noconvert(),
             "gain"_a.noconvert(), "shift"_a.noconvert(), py::kw_only(), "epsilon"_a,
             "out"_a.noconvert(), "threads"_a);
    m.def("feed_forward", &py_feed_forward<Format>, "first"_a, "second"_a, "x"_a.noconvert(),
          "gain"_a.noconvert(), "shift"_a.noconvert(), py::kw_only(), "epsilon"_a,
          "out"_a.noconvert(), "threads"_a);
}

PYBIND11_MODULE(HYBRIDREC_MODULE, m) {
    py::register_local_exception<NotPositiveDefinite>(m, "NotPositiveDefiniteError",
                                                      PyExc_ArithmeticError);
    m.def("cpu_builds", &cpu_builds);
    m.def("gram", &py_gram, "factors"_a.noconvert(), py::kw_only(), "threads"_a);
    m.def("rotate", &py_rotate, "factors"_a.noconvert(), "axes"_a.noconvert(), py::kw_only(),
          "threads"_a);
    m.def("transpose", &py_transpose, "indptr"_a.noconvert(), "items"_a.noconvert(),
          "weights"_a.noconvert(), "n_items"_a);
    m.def("solve_exact", &py_solve_exact, "indptr"_a.noconvert(), "items"_a.noconvert(),
          "weights"_a.noconvert(), "other"_a.noconvert(), "shared"_a.noconvert(),
          "ridge"_a.noconvert(), py::kw_only(), "alpha"_a, "target"_a, "out"_a.noconvert(),
          "threads"_a);
    m.def("solve_cg", &py_solve_cg, "indptr"_a.noconvert(), "items"_a.noconvert(),
          "weights"_a.noconvert(), "other"_a.noconvert(), "shared"_a.noconvert(),
          "ridge"_a.noconvert(), py::kw_only(), "alpha"_a, "target"_a, "x"_a.noconvert(), "steps"_a,
          "relaxation"_a, "threads"_a);
    m.def("attend", &py_attend, "q"_a.noconvert(), "k"_a.noconvert(), "v"_a.noconvert(),
          "kept_k"_a.noconvert(), "kept_v"_a.noconvert(), "asks"_a.noconvert(), "own"_a.noconvert(),
          "seen"_a.noconvert(), py::kw_only(), "heads"_a, "key_heads"_a, "scale"_a, "causal"_a,
          "window"_a, "out"_a.noconvert(), "threads"_a);
    m.attr("has_linear8") = Int8::runs();
    m.attr("has_linear16") = BFloat16::runs();
    m.attr("has_linear32") = Float32::runs();
    add_linear<Int8>(m, "Linear8");
    add_linear<BFloat16>(m, "Linear16");
    add_linear<Float32>(m, "Linear32");
    // Local: every build has classes of its own.
    py::class_<Catalogue>(m, "Catalogue", py::module_local())
        .def(py::init(&py_catalogue), "items"_a.noconvert(), py::kw_only(), "threads"_a)
        .def("__len__", &Catalogue::size)
        .def_property_readonly("width", &Catalogue::width)
        .def("vectors", &py_vectors);
    m.def("top_k", &py_top_k, "queries"_a.noconvert(), "catalogue"_a, "k"_a,
          "exclude_indptr"_a.noconvert(), "exclude_items"_a.noconvert(), "allow"_a.noconvert(),
          py::kw_only(), "threads"_a);
    m.def("select_top_k", &py_select_top_k, "scores"_a.noconvert(), "k"_a,
          "exclude_indptr"_a.noconvert(), "exclude_items"_a.noconvert(), "allow"_a.noconvert(),
          py::kw_only(), "threads"_a);
}
