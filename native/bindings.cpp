// The only file that knows Python: arrays in, GIL released while the kernels run, signals asked for now and then.

#include <cxxabi.h>
#include <unistd.h>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "core.h"
#include "exchange.h"

namespace nb = nanobind;

namespace {

namespace dlpack = keywise::dlpack;
using keywise::Dtype;
constexpr int64_t kMostTokens = (int64_t(1) << 31) - 1;  // checks.py has the same
template <typename T, int N>
using Input = nb::ndarray<const T, nb::ndim<N>, nb::device::cpu>;
using Tokens = nb::ndarray<nb::ro, nb::ndim<4>, nb::device::cpu>;
template <typename T>
using Output = nb::ndarray<T, nb::device::cpu>;

// One call, as kernels.py fills it. The arrays have been validated there and are held here while the call runs.
struct Call {
  std::string dtype, stored;
  Tokens query;
  std::vector<Tokens> key, value;                       // in pieces
  std::vector<Input<float, 3>> key_scale, value_scale;  // of every piece, or of none
  void add_chunk(const Tokens& next_key, const Tokens& next_value) {
    key.push_back(next_key);
    value.push_back(next_value);
  }
  void add_scales(const Input<float, 3>& next_key, const Input<float, 3>& next_value) {
    key_scale.push_back(next_key);
    value_scale.push_back(next_value);
  }
  std::optional<Tokens> bias;
  std::string bias_dtype;
  std::optional<Input<float, 1>> sinks;
  float scale = 1.0f, softcap = 0.0f;

  bool causal = false;
  int64_t left = -1, right = -1, keep_first = 0, first_key = 0;
  Input<int64_t, 1> lengths, starts;
  std::optional<Input<int32_t, 2>> documents;
  std::optional<Input<bool, 4>> allowed;

  std::optional<nb::ndarray<nb::ndim<4>, nb::device::cpu>> output;
  std::optional<Output<float>> running_max, running_sum, values;

  int64_t first_row = 0, last_row = 0, top = 0;
  std::optional<Output<float>> lse, entropy, top_weights, top_mass, key_mass, segment_mass;
  std::optional<Output<int32_t>> top_keys;
  std::optional<Input<int64_t, 2>> segment_ranges;
  std::optional<Input<float, 3>> query_weights;
};

Dtype dtype_of(const std::string& name) {
  if (name == "float32") return Dtype::float32;
  if (name == "float16") return Dtype::float16;
  if (name == "bfloat16") return Dtype::bfloat16;
  if (name == "int8") return Dtype::int8;
  throw nb::value_error(("no kernel for dtype " + name).c_str());
}

template <typename Array>
void copy_strides(const Array& array, int64_t* stride) {
  for (size_t axis = 0; axis < array.ndim(); ++axis) stride[axis] = array.stride(axis);
}

template <typename T>
T* data_of(const std::optional<Output<T>>& array) {
  return array ? array->data() : nullptr;
}

keywise::Scales scales_of(const Input<float, 3>& scale) {
  return {scale.data(), {scale.stride(0), scale.stride(1)}};
}

std::vector<keywise::Chunk> chunks_of(const Call& call) {
  std::vector<keywise::Chunk> chunks(call.key.size());
  int64_t first_key = 0;
  for (size_t i = 0; i < chunks.size(); ++i) {
    keywise::Chunk& chunk = chunks[i];
    chunk.key.data = call.key[i].data();
    copy_strides(call.key[i], chunk.key.stride);
    chunk.value.data = call.value[i].data();
    copy_strides(call.value[i], chunk.value.stride);
    if (!call.key_scale.empty()) {
      chunk.key_scale = scales_of(call.key_scale[i]);
      chunk.value_scale = scales_of(call.value_scale[i]);
    }
    chunk.first_key = first_key;
    chunk.keys = call.value[i].shape(2);
    first_key += chunk.keys;
  }
  return chunks;
}

keywise::Problem problem_of(const Call& call, const std::vector<keywise::Chunk>& chunks) {
  keywise::Problem p;
  p.batch = call.query.shape(0);
  p.query_heads = call.query.shape(1);
  p.queries = call.query.shape(2);
  p.head_dim = call.query.shape(3);
  p.key_heads = call.value[0].shape(1);
  p.keys = chunks.back().first_key + chunks.back().keys;
  p.value_dim = call.value[0].shape(3);
  p.dtype = dtype_of(call.dtype);
  p.stored = dtype_of(call.stored);
  p.query.data = call.query.data();
  copy_strides(call.query, p.query.stride);
  p.chunks = chunks.data();
  p.chunk_count = int64_t(chunks.size());
  if (call.bias) {
    p.bias.data = call.bias->data();
    p.bias.dtype = dtype_of(call.bias_dtype);
    copy_strides(*call.bias, p.bias.stride);
  }
  if (call.sinks) p.sinks = call.sinks->data();
  p.scale = call.scale;
  p.softcap = call.softcap;

  keywise::MaskRules& v = p.visibility;
  v.causal = call.causal;
  v.left = call.left;
  v.right = call.right;
  v.keep_first = call.keep_first;
  v.first_key = call.first_key;
  v.lengths = call.lengths.data();
  v.starts = call.starts.data();
  if (call.documents) {
    v.documents = call.documents->data();
    v.positions = call.documents->shape(1);
  }
  if (call.allowed) {
    v.allowed = call.allowed->data();
    copy_strides(*call.allowed, v.allowed_stride);
  }

  if (call.output) {
    p.output = call.output->data();
    copy_strides(*call.output, p.output_stride);
  }
  p.running_max = data_of(call.running_max);
  p.running_sum = data_of(call.running_sum);
  p.values = data_of(call.values);

  p.wants_statistics = call.lse.has_value();
  keywise::Statistics& r = p.statistics;
  r.first_row = call.first_row;
  r.last_row = call.last_row;
  r.lse = data_of(call.lse);
  r.entropy = data_of(call.entropy);
  r.top = call.top;
  r.top_keys = data_of(call.top_keys);
  r.top_weights = data_of(call.top_weights);
  r.top_mass = data_of(call.top_mass);
  r.key_mass = data_of(call.key_mass);
  r.segment_mass = data_of(call.segment_mass);
  if (call.segment_mass) r.segments = int64_t(call.segment_mass->shape(3));
  if (call.segment_ranges) {
    r.segment_ranges = call.segment_ranges->data();
    r.segment_range_count = int64_t(call.segment_ranges->shape(0));
  }
  if (call.query_weights) {
    r.query_weights = call.query_weights->data();
    copy_strides(*call.query_weights, r.query_weight_stride);
  }
  return p;
}

// Releases the GIL. Taking it back while Python ends unwinds the thread by force (before Python 3.14), which no C++
// frame of a module survives: such a thread sleeps instead until the process is gone.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) { here = this; }
  ~WithoutGil() {
    take();
    here = nullptr;
  }
  WithoutGil(const WithoutGil&) = delete;

  static bool signal_waits() {
    WithoutGil& gil = *here;
    gil.take();
    const bool raised = PyErr_CheckSignals() != 0;
    gil.state_ = PyEval_SaveThread();
    return raised;
  }

 private:
  void take() noexcept {
    try {
      PyEval_RestoreThread(state_);
    } catch (const abi::__forced_unwind&) {
      for (;;) pause();
    }
  }

  static thread_local WithoutGil* here;
  PyThreadState* state_;
};
thread_local WithoutGil* WithoutGil::here = nullptr;

const keywise::Target& target_of(const std::string& name) {
  const keywise::Candidate* list;
  const int count = keywise::candidates(&list);
  for (int i = 0; i < count; ++i) {
    if (name != list[i].target->name) continue;
    if (*list[i].reason) throw nb::value_error((name + ": " + list[i].reason).c_str());
    return *list[i].target;
  }
  throw nb::value_error(("no target named " + name).c_str());
}

// `interruptible` on Python's main thread, the only one that signals reach.
void run(const keywise::Problem& problem, const keywise::Target& target, int threads, bool interruptible) {
  bool finished;
  {
    const WithoutGil released;
    finished = keywise::run(problem, target, threads, interruptible ? WithoutGil::signal_waits : nullptr);
  }
  if (!finished) throw nb::python_error();
}

void run(const Call& call, const std::string& name, int threads, bool interruptible) {
  const std::vector<keywise::Chunk> chunks = chunks_of(call);
  run(problem_of(call, chunks), target_of(name), threads, interruptible);
}

// A tensor that the kernels read where it is; false for any other.
bool borrow(const dlpack::Exchange& exchange, nb::handle object, dlpack::View& view, keywise::Tensor& tensor) {
  if (exchange.borrow(object.ptr(), &view) != 0) {
    PyErr_Clear();  // whoever looks at it more closely says what is wrong
    return false;
  }
  const auto is_empty = [&] { return std::any_of(view.shape, view.shape + 4, [](int64_t size) { return size == 0; }); };
  if (view.device != dlpack::kCpu || view.axes != 4 || is_empty() || !view.data) return false;
  if (view.stride[3] != 1 && view.shape[3] != 1) return false;
  tensor.data = static_cast<const char*>(view.data) + view.offset_bytes;
  std::copy_n(view.stride, 4, tensor.stride);
  return true;
}

std::optional<Dtype> dtype_of(const dlpack::Type& type) {
  if (type == dlpack::Type{dlpack::kFloat, 32, 1}) return Dtype::float32;
  if (type == dlpack::Type{dlpack::kFloat, 16, 1}) return Dtype::float16;
  if (type == dlpack::Type{dlpack::kBfloat, 16, 1}) return Dtype::bfloat16;
  return std::nullopt;
}

nb::object give(const dlpack::Exchange& exchange, dlpack::Made& made) {
  void* given = nullptr;
  if (exchange.give(made.release(), &given) != 0) throw nb::python_error();
  return nb::steal(static_cast<PyObject*>(given));
}

// The first fields of plan.py's ReadingPlan: heaviest keys, whether key mass, first row and the row after the last,
// runs, segments, row weights.
using Plan = std::tuple<int64_t, bool, int64_t, int64_t, Input<int64_t, 2>, std::optional<int64_t>,
                        std::optional<Input<float, 3>>>;

// Readings in the order of reading.py, each with memory that is written to; none where it is not wanted.
std::vector<std::optional<dlpack::Made>> make_statistics(keywise::Problem& problem, const Plan& plan) {
  const auto& [top, key_mass, first_row, last_row, segment_ranges, segments, query_weights] = plan;
  const int64_t batch = problem.batch, heads = problem.query_heads, rows = last_row - first_row;
  keywise::Statistics& statistics = problem.statistics;
  problem.wants_statistics = true;
  statistics.first_row = first_row;
  statistics.last_row = last_row;
  statistics.top = top;
  statistics.segments = segments.value_or(0);
  statistics.segment_ranges = segment_ranges.data();
  statistics.segment_range_count = int64_t(segment_ranges.shape(0));
  if (query_weights) {
    statistics.query_weights = query_weights->data();
    copy_strides(*query_weights, statistics.query_weight_stride);
  }
  std::vector<std::optional<dlpack::Made>> made;
  const auto add = [&](auto*& place, uint8_t code, std::initializer_list<int64_t> shape) {
    made.emplace_back(dlpack::make({code, 32, 1}, shape));
    place = static_cast<std::remove_reference_t<decltype(place)>>((*made.back())->view.data);
  };
  add(statistics.lse, dlpack::kFloat, {batch, heads, rows});
  add(statistics.entropy, dlpack::kFloat, {batch, heads, rows});
  add(statistics.top_keys, dlpack::kInteger, {batch, heads, rows, top});
  add(statistics.top_weights, dlpack::kFloat, {batch, heads, rows, top});
  add(statistics.top_mass, dlpack::kFloat, {batch, heads, rows});
  if (key_mass)
    add(statistics.key_mass, dlpack::kFloat, {batch, heads, problem.keys});
  else
    made.emplace_back();
  if (segments)
    add(statistics.segment_mass, dlpack::kFloat, {batch, heads, rows, *segments});
  else
    made.emplace_back();
  return made;
}

// The tensors of an argument: the pieces of a tuple, or itself.
int64_t tensors_in(nb::handle argument) { return PyTuple_Check(argument.ptr()) ? PyTuple_GET_SIZE(argument.ptr()) : 1; }

nb::handle tensor_of(nb::handle argument, int64_t number) {
  return PyTuple_Check(argument.ptr()) ? nb::handle(PyTuple_GET_ITEM(argument.ptr(), number)) : argument;
}

// Recognises what is valid and needs no conversion; None steps aside for problem.py, which alone refuses. Gives the
// output, or with readings a list of it and them.
nb::object attend(nb::handle capsule, nb::handle query, nb::handle key, nb::handle value, bool causal, int64_t left,
                  int64_t right, int64_t keep_first, std::optional<double> scale, bool transposed_output,
                  const std::string& target, int threads, bool interruptible, const std::optional<Plan>& plan) {
  const void* const table = PyCapsule_GetPointer(capsule.ptr(), dlpack::kExchangeName);
  if (!table) throw nb::python_error();
  const auto& exchange = *static_cast<const dlpack::Exchange*>(table);
  if (exchange.version.major != 1 || !exchange.borrow) return nb::none();

  dlpack::View q;
  keywise::Problem problem;
  if (!borrow(exchange, query, q, problem.query)) return nb::none();
  const std::optional<Dtype> dtype = dtype_of(q.type);
  const auto fits = [&](const dlpack::View& view, const keywise::Tensor& tensor) {
    return dtype && view.type == q.type && view.shape[0] == q.shape[0] && view.shape[2] <= kMostTokens &&
           reinterpret_cast<uintptr_t>(tensor.data) % uintptr_t(keywise::bytes_of(*dtype)) == 0;
  };
  if (!fits(q, problem.query)) return nb::none();

  const int64_t count = tensors_in(key);
  if (count == 0 || count != tensors_in(value)) return nb::none();
  std::vector<keywise::Chunk> chunks(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    keywise::Chunk& chunk = chunks[size_t(i)];
    dlpack::View k, v;
    if (!borrow(exchange, tensor_of(key, i), k, chunk.key) || !borrow(exchange, tensor_of(value, i), v, chunk.value) ||
        !fits(k, chunk.key) || !fits(v, chunk.value) || k.shape[3] != q.shape[3] ||
        !std::equal(k.shape, k.shape + 3, v.shape))
      return nb::none();
    if (i == 0) {
      problem.key_heads = k.shape[1];
      problem.value_dim = v.shape[3];
    }
    if (k.shape[1] != problem.key_heads || v.shape[3] != problem.value_dim) return nb::none();
    chunk.first_key = problem.keys;
    chunk.keys = k.shape[2];
    problem.keys += chunk.keys;
  }
  if (q.shape[1] % problem.key_heads || problem.keys > kMostTokens) return nb::none();

  problem.batch = q.shape[0];
  problem.query_heads = q.shape[1];
  problem.queries = q.shape[2];
  problem.head_dim = q.shape[3];
  problem.dtype = problem.stored = *dtype;
  problem.chunks = chunks.data();
  problem.chunk_count = count;
  problem.scale = float(scale ? *scale : std::pow(double(problem.head_dim), -0.5));
  std::vector<int64_t> lengths(size_t(problem.batch), problem.keys), starts(size_t(problem.batch), 0);
  problem.visibility = {causal, left, right, keep_first, 0, lengths.data(), starts.data()};

  int64_t outer = problem.query_heads, inner = problem.queries;
  if (transposed_output) std::swap(outer, inner);
  dlpack::Made output = dlpack::make(q.type, {problem.batch, outer, inner, problem.value_dim});
  problem.output = output->view.data;
  std::copy_n(output->view.stride, 4, problem.output_stride);
  if (transposed_output) std::swap(problem.output_stride[1], problem.output_stride[2]);
  std::vector<std::optional<dlpack::Made>> statistics_arrays;
  if (plan) statistics_arrays = make_statistics(problem, *plan);
  run(problem, target_of(target), threads, interruptible);
  nb::object given = give(exchange, output);
  if (!plan) return given;
  nb::list all;
  all.append(given);
  for (std::optional<dlpack::Made>& statistics : statistics_arrays) all.append(statistics ? give(exchange, *statistics) : nb::none());
  return all;
}

std::optional<std::string> environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? std::optional<std::string>(value) : std::nullopt;
}

double multiply_adds(const std::string& name, int64_t rounds, bool pairs) {
  const keywise::Target& target = target_of(name);
  const WithoutGil released;
  return target.multiply_adds(rounds, pairs);
}

double add_up(const std::string& name, const Input<float, 1>& data) {
  const keywise::Target& target = target_of(name);
  const WithoutGil released;
  return target.add_up(data.data(), int64_t(data.shape(0)));
}

std::vector<std::tuple<std::string, std::string>> candidates() {
  const keywise::Candidate* list;
  const int count = keywise::candidates(&list);
  std::vector<std::tuple<std::string, std::string>> names;
  for (int i = 0; i < count; ++i) names.emplace_back(list[i].target->name, list[i].reason);
  return names;
}

}  // namespace

NB_MODULE(_native, module) {
  nb::set_leak_warnings(false);  // a thread that sleeps at exit keeps its arrays
  module.doc() = "The kernels of keywise. Private: keywise.attention.kernels is the only caller.";
  nb::class_<Call>(module, "Call", "One call of attention; arrays are validated by the caller.")
      .def(nb::init<>())
      .def_rw("dtype", &Call::dtype)
      .def_rw("stored", &Call::stored)
      .def_rw("query", &Call::query)
      .def("add_piece", &Call::add_chunk, nb::arg("key"), nb::arg("value"), "Add the next piece of keys and values.")
      .def("add_scales", &Call::add_scales, nb::arg("key"), nb::arg("value"), "Add the scales of the next int8 piece.")
      .def_rw("bias", &Call::bias, nb::for_setter(nb::arg().none()))
      .def_rw("bias_dtype", &Call::bias_dtype)
      .def_rw("sinks", &Call::sinks, nb::for_setter(nb::arg().none()))
      .def_rw("scale", &Call::scale)
      .def_rw("softcap", &Call::softcap)
      .def_rw("causal", &Call::causal)
      .def_rw("left", &Call::left)
      .def_rw("right", &Call::right)
      .def_rw("keep_first", &Call::keep_first)
      .def_rw("first_key", &Call::first_key)
      .def_rw("lengths", &Call::lengths)
      .def_rw("starts", &Call::starts)
      .def_rw("documents", &Call::documents, nb::for_setter(nb::arg().none()))
      .def_rw("allowed", &Call::allowed, nb::for_setter(nb::arg().none()))
      .def_rw("output", &Call::output, nb::for_setter(nb::arg().none()))
      .def_rw("peak", &Call::running_max, nb::for_setter(nb::arg().none()))
      .def_rw("total", &Call::running_sum, nb::for_setter(nb::arg().none()))
      .def_rw("values", &Call::values, nb::for_setter(nb::arg().none()))
      .def_rw("first_row", &Call::first_row)
      .def_rw("last_row", &Call::last_row)
      .def_rw("top", &Call::top)
      .def_rw("lse", &Call::lse, nb::for_setter(nb::arg().none()))
      .def_rw("entropy", &Call::entropy, nb::for_setter(nb::arg().none()))
      .def_rw("top_keys", &Call::top_keys, nb::for_setter(nb::arg().none()))
      .def_rw("top_weights", &Call::top_weights, nb::for_setter(nb::arg().none()))
      .def_rw("covered", &Call::top_mass, nb::for_setter(nb::arg().none()))
      .def_rw("key_mass", &Call::key_mass, nb::for_setter(nb::arg().none()))
      .def_rw("segment_mass", &Call::segment_mass, nb::for_setter(nb::arg().none()))
      .def_rw("runs", &Call::segment_ranges, nb::for_setter(nb::arg().none()))
      .def_rw("row_weights", &Call::query_weights, nb::for_setter(nb::arg().none()));
  module.def("run", nb::overload_cast<const Call&, const std::string&, int, bool>(&run), nb::arg("call"),
             nb::arg("target"), nb::arg("threads"), nb::arg("interruptible"),
             "Run a call on a target; where it is interruptible, Ctrl-C between blocks raises KeyboardInterrupt.");
  module.def("attend", &attend, nb::arg("exchange"), nb::arg("query"), nb::arg("key"), nb::arg("value"),
             nb::arg("causal"), nb::arg("left"), nb::arg("right"), nb::arg("keep_first"), nb::arg("scale").none(),
             nb::arg("transposed_output"), nb::arg("target"), nb::arg("threads"), nb::arg("interruptible"),
             nb::arg("plan").none(),
             "Attend to tensors of the library that gives `exchange`, keys and values in tuples where they lie in pieces; "
             "None where one of them needs a closer look.");
  module.def("environment", &environment, nb::arg("name"), "Give a variable of the environment as it is now, or None.");
  module.def("multiply_adds", &multiply_adds, nb::arg("target"), nb::arg("rounds"), nb::arg("pairs"),
             "Multiply and add in registers alone, pairs of bfloat16 where asked for; gives the number of operations.");
  module.def("add_up", &add_up, nb::arg("target"), nb::arg("data"), "Sum a contiguous float32 buffer.");
  module.def("candidates", &candidates, "Targets compiled in, best first, with the reason each cannot run here or ''.");
}
