#include "gradients.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "../core.h"
#include "../team.h"
#include "calls.h"
#include "find_target.h"
#include "gil.h"

namespace keywise::python {
namespace {

using namespace nb::literals;

// Arrays of one forward pass that its backward pass reads, and gradients of its results.
struct SavedResults {
  AnyInput<4> output_gradient;
  AnyInput<4> output;
  Input<float, 3> lse;
  std::optional<Input<float, 3>> lse_rest;
  std::optional<Input<float, 3>> entropy;
  std::optional<Input<float, 4>> segment_mass;
  std::optional<Input<float, 3>> lse_gradient;
  std::optional<Input<float, 3>> entropy_gradient;
  std::optional<Input<float, 3>> key_mass_gradient;
  std::optional<Input<float, 4>> segment_mass_gradient;
};

Tensor make_tensor(const AnyInput<4>& array) {
  Tensor tensor;
  tensor.data = array.data();
  for (size_t axis = 0; axis < 4; ++axis)
    tensor.stride[axis] = array.shape(axis) > 1 ? array.stride(axis) : 0;
  return tensor;
}

template <typename Array>
const float* find_data(const std::optional<Array>& array) {
  return array ? array->data() : nullptr;
}

// Returns the problem with gradients, values and keys in place of queries, keys and values.
Problem exchange_roles(const Problem& problem, const Tensor& output_gradient,
                       std::vector<Chunk>& chunks) {
  Problem exchanged = problem;
  exchanged.query = output_gradient;
  std::swap(exchanged.head_dim, exchanged.value_dim);
  chunks.assign(problem.chunks, problem.chunks + problem.chunk_count);
  for (Chunk& chunk : chunks) {
    std::swap(chunk.key, chunk.value);
    std::swap(chunk.key_scale, chunk.value_scale);
  }
  exchanged.chunks = chunks.data();
  return exchanged;
}

void set_statistics(Problem& problem, const StatsPlan& plan) {
  Statistics& statistics = problem.statistics;
  statistics.first_query = plan.first_query;
  statistics.last_query = plan.last_query;
  if (plan.segment_count) {
    statistics.segments = *plan.segment_count;
    statistics.segment_ranges = plan.segment_ranges->data();
    statistics.segment_range_count = int64_t(plan.segment_ranges->shape(0));
  }
  if (plan.query_weights) {
    statistics.query_weights = plan.query_weights->data();
    copy_strides(*plan.query_weights, statistics.query_weight_stride);
  }
}

// Allocates the results that are wanted.
void set_gradients(BackwardProblem& backward, const std::vector<std::string>& needs,
                   const std::optional<std::vector<int64_t>>& bias_shape, const Sizes& sizes,
                   Results& results) {
  const auto wants = [&](const char* name) {
    return std::find(needs.begin(), needs.end(), name) != needs.end();
  };
  if (wants("query"))
    backward.query_gradient = results.add_output(
        "query", {sizes.batch, sizes.query_heads, sizes.queries, sizes.head_dim});
  if (wants("key"))
    backward.key_gradient =
        results.add_output("key", {sizes.batch, sizes.key_heads, sizes.keys, sizes.head_dim});
  if (wants("value"))
    backward.value_gradient =
        results.add_output("value", {sizes.batch, sizes.key_heads, sizes.keys, sizes.value_dim});
  if (wants("sinks")) backward.sinks_gradient = results.add_float32("sinks", {sizes.query_heads});
  if (!wants("bias")) return;
  const std::vector<int64_t>& shape = bias_shape.value();
  backward.bias_gradient =
      results.add_float32("bias", {shape.at(0), shape.at(1), shape.at(2), shape.at(3)});
  int64_t stride = 1;
  for (int axis = 3; axis >= 0; --axis) {
    backward.bias_gradient_stride[axis] = shape[size_t(axis)] > 1 ? stride : 0;
    stride *= shape[size_t(axis)];
  }
}

nb::dict attend_backward(const Inputs& inputs, const CheckedMask& mask, const StatsPlan* stats,
                         const std::optional<AnyInput<4>>& bias,
                         const std::optional<Input<float, 1>>& sinks, std::optional<double> scale,
                         double softcap, const DropoutPlan* dropout, const SavedResults& saved,
                         const std::vector<std::string>& needs,
                         const std::optional<std::vector<int64_t>>& bias_shape,
                         const std::string& target, int threads) {
  const Sizes& sizes = inputs.sizes();
  DefaultPositions positions;
  std::vector<Chunk> exchanged_chunks;
  BackwardProblem backward;
  backward.forward = make_problem(inputs, mask, bias, sinks, scale, softcap, dropout, 0, positions);
  if (stats) set_statistics(backward.forward, *stats);
  backward.exchanged =
      exchange_roles(backward.forward, make_tensor(saved.output_gradient), exchanged_chunks);
  backward.output = make_tensor(saved.output);
  backward.lse = saved.lse.data();
  backward.lse_rest = find_data(saved.lse_rest);
  backward.entropy = find_data(saved.entropy);
  backward.segment_mass = find_data(saved.segment_mass);
  backward.lse_gradient = find_data(saved.lse_gradient);
  backward.entropy_gradient = find_data(saved.entropy_gradient);
  backward.key_mass_gradient = find_data(saved.key_mass_gradient);
  backward.segment_mass_gradient = find_data(saved.segment_mass_gradient);
  Results results(inputs.held_query(), false);
  set_gradients(backward, needs, bias_shape, sizes, results);

  if (threads > 1 && is_torch_imported()) find_torch_threads();
  run_without_gil([&](Interrupted interrupted) {
    return run_backward(backward, find_target(target), threads, interrupted);
  });
  return results.take();
}

}  // namespace

void bind_gradients(nb::module_& module) {
  nb::class_<SavedResults>(module, "SavedResults",
                           "Results of a forward pass, and gradients of its results.")
      .def(
          "__init__",
          [](SavedResults* saved, AnyInput<4> output_gradient, AnyInput<4> output,
             Input<float, 3> lse, std::optional<Input<float, 3>> lse_rest,
             std::optional<Input<float, 3>> entropy, std::optional<Input<float, 4>> segment_mass,
             std::optional<Input<float, 3>> lse_gradient,
             std::optional<Input<float, 3>> entropy_gradient,
             std::optional<Input<float, 3>> key_mass_gradient,
             std::optional<Input<float, 4>> segment_mass_gradient) {
            new (saved) SavedResults{std::move(output_gradient),
                                     std::move(output),
                                     std::move(lse),
                                     std::move(lse_rest),
                                     std::move(entropy),
                                     std::move(segment_mass),
                                     std::move(lse_gradient),
                                     std::move(entropy_gradient),
                                     std::move(key_mass_gradient),
                                     std::move(segment_mass_gradient)};
          },
          "output_gradient"_a, "output"_a, "lse"_a, "lse_rest"_a = nb::none(),
          "entropy"_a = nb::none(), "segment_mass"_a = nb::none(), "lse_gradient"_a = nb::none(),
          "entropy_gradient"_a = nb::none(), "key_mass_gradient"_a = nb::none(),
          "segment_mass_gradient"_a = nb::none());
  module.def("attend_backward", &attend_backward, "inputs"_a, "mask"_a, "stats"_a.none(),
             "bias"_a.none(), "sinks"_a.none(), "scale"_a.none(), "softcap"_a, "dropout"_a.none(),
             "saved"_a, "needs"_a, "bias_shape"_a.none(), "target"_a, "threads"_a,
             "Run one backward pass and return the gradients by name; that of the bias in its "
             "shape, of four axes.");
}

}  // namespace keywise::python
