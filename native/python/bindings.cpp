// Conversions between Python and the C++ interface: arguments into one Problem, results into
// arrays.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "../checked.h"
#include "../core.h"
#include "../float_mode.h"
#include "../inputs.h"
#include "../team.h"
#include "arrays.h"
#include "calls.h"
#include "find_target.h"
#include "gil.h"
#include "gradients.h"
#include "matrices.h"

namespace keywise::python {

const Target& find_target(const std::string& name) {
  const Candidate* list;
  const int count = candidates(&list);
  for (int i = 0; i < count; ++i) {
    if (name != list[i].target->name) continue;
    if (*list[i].reason) throw nb::value_error((name + ": " + list[i].reason).c_str());
    return *list[i].target;
  }
  throw nb::value_error(("no target named " + name).c_str());
}

namespace {

using namespace nb::literals;

// ---- Query, keys and values ----

std::variant<Inputs, Refusal> read_inputs(nb::handle query, const nb::tuple& keys,
                                          const nb::tuple& values) {
  const size_t count = keys.size();
  const auto name_array = [&](const char* side, size_t i) {
    return count == 1 ? std::string(side) : side + (" chunk " + std::to_string(i));
  };
  const ArrayReader reader;
  HeldArray held_query = reader.read("query", query);
  std::vector<HeldArray> held;
  std::vector<InputChunk> chunks(count);
  held.reserve(2 * count);
  for (size_t i = 0; i < count; ++i) {
    held.push_back(reader.read(name_array("key", i), keys[i]));
    held.push_back(reader.read(name_array("value", i), values[i]));
    chunks[i].key = held[2 * i].array;
    chunks[i].value = held[2 * i + 1].array;
  }
  Sizes sizes;
  if (const std::optional<Refusal> refusal = check_inputs(held_query.array, chunks, sizes))
    return *refusal;
  const Dtype stored_dtype = to_dtype(chunks[0].key.element);
  return Inputs(std::move(held_query), std::move(held), make_chunks(chunks), sizes, stored_dtype);
}

std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t> to_tuple(const Sizes& s) {
  return {s.batch, s.query_heads, s.key_heads, s.queries, s.keys, s.head_dim, s.value_dim};
}

std::tuple<int64_t, int64_t, int64_t, int64_t> scores_shape(const Sizes& s) {
  return {s.batch, s.query_heads, s.queries, s.keys};
}

// ---- Statistics ----

Statistics make_statistics(const StatsPlan& plan, const Sizes& sizes, Results& results) {
  const int64_t batch = sizes.batch;
  const int64_t heads = sizes.query_heads;
  const int64_t queries = plan.last_query - plan.first_query;
  Statistics statistics;
  statistics.first_query = plan.first_query;
  statistics.last_query = plan.last_query;
  statistics.top_k = plan.top_k;
  statistics.lse = results.add_float32("lse", {batch, heads, queries});
  statistics.entropy = results.add_float32("entropy", {batch, heads, queries});
  statistics.top_keys = results.add_int32("top_keys", {batch, heads, queries, plan.top_k});
  statistics.top_weights = results.add_float32("top_weights", {batch, heads, queries, plan.top_k});
  statistics.top_mass = results.add_float32("top_mass", {batch, heads, queries});
  if (plan.key_mass)
    statistics.key_mass = results.add_float32("key_mass", {batch, heads, sizes.keys});
  if (plan.segment_count) {
    statistics.segments = *plan.segment_count;
    statistics.segment_mass =
        results.add_float32("segment_mass", {batch, heads, queries, statistics.segments});
    statistics.segment_ranges = plan.segment_ranges->data();
    statistics.segment_range_count = int64_t(plan.segment_ranges->shape(0));
  }
  if (plan.query_weights) {
    statistics.query_weights = plan.query_weights->data();
    copy_strides(*plan.query_weights, statistics.query_weight_stride);
  }
  return statistics;
}

// ---- One call ----

void set_output(Problem& problem, const Sizes& sizes, bool transposed, Results& results) {
  int64_t outer = sizes.query_heads;
  int64_t inner = sizes.queries;
  if (transposed) std::swap(outer, inner);
  problem.output = results.add_output("output", {sizes.batch, outer, inner, sizes.value_dim});
  int64_t* const stride = problem.output_stride;
  stride[3] = 1;
  stride[2] = sizes.value_dim;
  stride[1] = checked_multiply(stride[2], inner);
  stride[0] = checked_multiply(stride[1], outer);
  if (transposed) std::swap(stride[1], stride[2]);
}

void set_partial(Problem& problem, const Sizes& sizes, Results& results) {
  const int64_t batch = sizes.batch;
  const int64_t heads = sizes.query_heads;
  const int64_t queries = sizes.queries;
  problem.running_max = results.add_float32("running_max", {batch, heads, queries});
  problem.running_sum = results.add_float32("running_sum", {batch, heads, queries});
  problem.values = results.add_float32("values", {batch, heads, queries, sizes.value_dim});
}

nb::dict attend(const Inputs& inputs, const CheckedMask& mask, const StatsPlan* stats,
                const std::optional<AnyInput<4>>& bias, const std::optional<Input<float, 1>>& sinks,
                std::optional<double> scale, double softcap, const DropoutPlan* dropout,
                int64_t first_key, bool transposed_output, bool partial, bool for_training,
                const std::string& target, int threads) {
  const Sizes& sizes = inputs.sizes();
  DefaultPositions positions;
  Problem problem =
      make_problem(inputs, mask, bias, sinks, scale, softcap, dropout, first_key, positions);
  Results results(inputs.held_query(), partial);
  if (partial)
    set_partial(problem, sizes, results);
  else
    set_output(problem, sizes, transposed_output, results);
  if (for_training) {
    problem.query_lse =
        results.add_float32("query_lse", {sizes.batch, sizes.query_heads, sizes.queries});
    problem.query_lse_rest =
        results.add_float32("query_lse_rest", {sizes.batch, sizes.query_heads, sizes.queries});
  }
  problem.wants_statistics = stats != nullptr;
  if (stats) problem.statistics = make_statistics(*stats, sizes, results);

  if (threads > 1 && is_torch_imported()) find_torch_threads();
  const auto run_on_target = [&](Interrupted interrupted) {
    return run(problem, find_target(target), threads, interrupted);
  };
  if (is_short(sizes))
    run_on_target(nullptr);
  else
    run_without_gil(run_on_target);
  return results.take();
}

// ---- Floating-point mode ----

// The default mode from __enter__ to __exit__.
struct FloatModeContext {
  std::optional<DefaultFloatMode> mode;
};

// ---- Environment, limits and targets ----

std::optional<std::string> environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? std::optional<std::string>(value) : std::nullopt;
}

double multiply_adds(const std::string& name, int64_t rounds, bool pairs) {
  const Target& target = find_target(name);
  const WithoutGil released;
  return target.multiply_adds(rounds, pairs);
}

double add_up(const std::string& name, const Input<float, 1>& data) {
  const Target& target = find_target(name);
  const WithoutGil released;
  return target.add_up(data.data(), int64_t(data.shape(0)));
}

std::vector<std::tuple<std::string, std::string>> list_candidates() {
  const Candidate* list;
  const int count = candidates(&list);
  std::vector<std::tuple<std::string, std::string>> names;
  for (int i = 0; i < count; ++i) names.emplace_back(list[i].target->name, list[i].reason);
  return names;
}

}  // namespace
}  // namespace keywise::python

NB_MODULE(_native, module) {
  using namespace keywise;
  using namespace keywise::python;

  nb::set_leak_warnings(false);  // a thread that sleeps at exit keeps its arrays
  module.doc() = "The kernels of keywise. Private: keywise.attention.native is the only caller.";

  nb::class_<Refusal>(module, "Refusal", "Which argument breaks which rule.")
      .def_ro("argument", &Refusal::argument, "query, key or value.")
      .def_ro("chunk", &Refusal::chunk, "Number of the chunk of keys and values.")
      .def_ro("rule", &Refusal::rule, "Name of the rule.");

  nb::class_<Inputs>(module, "Inputs",
                     "Query, keys and values of one call, checked against each other.")
      .def_prop_ro("query_array", &Inputs::query_object, "The query as given, or as a HostArray.")
      .def_prop_ro("key_arrays", &Inputs::key_objects, "The chunks of keys, likewise.")
      .def_prop_ro("value_arrays", &Inputs::value_objects, "The chunks of values, likewise.")
      .def_prop_ro("dtype", &Inputs::dtype, "Name of the query's element type.")
      .def_prop_ro("batch", [](const Inputs& inputs) { return inputs.sizes().batch; })
      .def_prop_ro("query_heads", [](const Inputs& inputs) { return inputs.sizes().query_heads; })
      .def_prop_ro("queries", [](const Inputs& inputs) { return inputs.sizes().queries; })
      .def_prop_ro("keys", [](const Inputs& inputs) { return inputs.sizes().keys; })
      .def_prop_ro("head_dim", [](const Inputs& inputs) { return inputs.sizes().head_dim; })
      .def_prop_ro(
          "scores", [](const Inputs& inputs) { return scores_shape(inputs.sizes()); },
          "(batch, query heads, queries, keys).")
      .def_prop_ro(
          "sizes", [](const Inputs& inputs) { return to_tuple(inputs.sizes()); },
          "(batch, query heads, key heads, queries, keys, head_dim, value_dim).");

  nb::class_<CheckedMask>(module, "CheckedMask", "A mask whose arrays are checked and broadcast.")
      .def(
          "__init__",
          [](CheckedMask* mask, bool causal, int64_t left, int64_t right, int64_t keep_first,
             std::optional<Input<int64_t, 1>> lengths, std::optional<Input<int64_t, 1>> starts,
             std::optional<Input<int32_t, 2>> documents, std::optional<Input<bool, 4>> allowed) {
            new (mask) CheckedMask{causal,
                                   left,
                                   right,
                                   keep_first,
                                   std::move(lengths),
                                   std::move(starts),
                                   std::move(documents),
                                   std::move(allowed)};
          },
          "causal"_a, "left"_a, "right"_a, "keep_first"_a, "lengths"_a = nb::none(),
          "starts"_a = nb::none(), "documents"_a = nb::none(), "allowed"_a = nb::none());

  nb::class_<StatsPlan>(module, "StatsPlan", "Which statistics a call computes, for which queries.")
      .def(
          "__init__",
          [](StatsPlan* plan, int64_t top_k, bool key_mass, int64_t first_query, int64_t last_query,
             std::optional<int64_t> segment_count, std::optional<Input<int64_t, 2>> segment_ranges,
             std::optional<Input<float, 3>> query_weights) {
            new (plan) StatsPlan{top_k,
                                 key_mass,
                                 first_query,
                                 last_query,
                                 segment_count,
                                 std::move(segment_ranges),
                                 std::move(query_weights)};
          },
          "top_k"_a, "key_mass"_a, "first_query"_a, "last_query"_a, "segment_count"_a = nb::none(),
          "segment_ranges"_a = nb::none(), "query_weights"_a = nb::none());

  nb::class_<DropoutPlan>(module, "DropoutPlan", "Which weights a call drops.")
      .def(nb::init<uint64_t, uint32_t, uint32_t, double>(), "seed"_a, "offset"_a, "threshold"_a,
           "factor"_a);

  nb::class_<FloatModeContext>(
      module, "DefaultFloatMode",
      "A context in which the thread rounds to nearest and keeps subnormal numbers.")
      .def(nb::init<>())
      .def("__enter__", [](FloatModeContext& context) { context.mode.emplace(); })
      .def(
          "__exit__", [](FloatModeContext& context, const nb::args&) { context.mode.reset(); },
          nb::sig("def __exit__(self, *args: object) -> None"));

  module.def(
      "set_array_functions",
      [](nb::object host_array, nb::object as_readable_array, nb::object allocate_result,
         nb::object to_library) {
        set_array_functions({host_array, as_readable_array, allocate_result, to_library});
      },
      "host_array"_a, "as_readable_array"_a, "allocate_result"_a, "to_library"_a,
      "Set the functions for arrays that are neither plain torch tensors nor plain NumPy arrays.");
  module.def(
      "read_inputs", &read_inputs, "query"_a.none(), "keys"_a, "values"_a,
      "Read and check the arrays of a call; keys and values come in as many chunks as each other.");
  module.def("attend", &attend, "inputs"_a, "mask"_a, "stats"_a.none(), "bias"_a.none(),
             "sinks"_a.none(), "scale"_a.none(), "softcap"_a, "dropout"_a.none(), "first_key"_a,
             "transposed_output"_a, "partial"_a, "for_training"_a, "target"_a, "threads"_a,
             "Run one call and return its results by name: the output or the partial, the "
             "statistics, and for training the LSE of every query.");
  bind_gradients(module);
  bind_matrices(module);
  module.def("set_main_thread", &set_main_thread, "thread"_a,
             "Name the thread whose calls signals interrupt.");
  module.def("environment", &environment, "name"_a,
             "Return a variable of the environment as it is now, or None.");
  module.def("multiply_adds", &multiply_adds, "target"_a, "rounds"_a, "pairs"_a,
             "Multiply and add in registers alone, pairs of bfloat16 if asked for; return the "
             "number of operations.");
  module.def("add_up", &add_up, "target"_a, "data"_a, "Sum a contiguous float32 buffer.");
  module.def("candidates", &list_candidates,
             "Return the targets compiled in, best first, each with the reason why it cannot run "
             "here, or ''.");
}
