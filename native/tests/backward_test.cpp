// Tests of run_backward() through the C++ interface, on every target of this CPU and for
// sanitizers: gradients of random cases have the same bits on any number of threads. Python's tests
// compare them with the definition.

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../core.h"
#include "random_case.h"

namespace keywise {
namespace {

// A random case with everything that its backward pass reads and writes.
class GradientCase {
 public:
  explicit GradientCase(unsigned seed) : random_(seed + 1000), case_(make_random_case(seed)) {
    Problem& problem = case_->problem();
    const int64_t rows = problem.batch * problem.query_heads * problem.queries;
    const int64_t stored = problem.batch * problem.key_heads * problem.keys;
    // int8 keys and values have no gradient.
    has_gradients_ = problem.stored_dtype == problem.dtype;
    if (!has_gradients_) return;
    problem.wants_statistics = false;
    if (toss(random_)) problem.dropout = {true, 7, 1, 1u << 30, 1.0f / 0.75f};
    problem.query_lse = add_floats(rows);
    problem.query_lse_rest = add_floats(rows);
    backward_.forward = problem;
    output_gradient_ = make_numbers(random_, problem.dtype, rows * problem.value_dim);
    set_exchanged();
    backward_.output.data = problem.output;
    std::memcpy(backward_.output.stride, problem.output_stride, sizeof problem.output_stride);
    backward_.lse = problem.query_lse;
    backward_.lse_rest = problem.query_lse_rest;
    if (toss(random_)) want_statistics(rows);
    const int64_t bytes = bytes_of(problem.dtype);
    backward_.query_gradient = add_result(rows * problem.head_dim * bytes);
    if (toss(random_)) backward_.key_gradient = add_result(stored * problem.head_dim * bytes);
    backward_.value_gradient = add_result(stored * problem.value_dim * bytes);
    if (problem.sinks) backward_.sinks_gradient = add_float_result(problem.query_heads);
    if (problem.bias.data) want_bias();
  }

  bool has_gradients() const { return has_gradients_; }

  // Returns the bytes of all gradients.
  std::string compute(const Target& target, int threads) const {
    case_->compute(target, threads);
    for (const auto& result : results_) std::memset(result->get(), 0x7e, size_t(result->bytes()));
    run_backward(backward_, target, threads, nullptr);
    std::string bytes;
    for (const auto& result : results_) bytes.append(result->get(), size_t(result->bytes()));
    return bytes;
  }

  std::string describe() const { return case_->describe(); }

 private:
  void set_exchanged() {
    const Problem& problem = backward_.forward;
    Problem& exchanged = backward_.exchanged;
    exchanged = problem;
    std::swap(exchanged.head_dim, exchanged.value_dim);
    chunks_.assign(problem.chunks, problem.chunks + problem.chunk_count);
    for (Chunk& chunk : chunks_) std::swap(chunk.key, chunk.value);
    exchanged.chunks = chunks_.data();
    exchanged.query.data = output_gradient_.get();
    std::memcpy(exchanged.query.stride, problem.output_stride, sizeof problem.output_stride);
  }

  void want_statistics(int64_t rows) {
    Problem& problem = backward_.forward;
    problem.statistics = {};
    problem.statistics.last_query = problem.queries;
    backward_.lse_gradient = add_numbers(rows);
    backward_.entropy = add_numbers(rows);
    backward_.entropy_gradient = add_numbers(rows);
    backward_.key_mass_gradient = add_numbers(problem.batch * problem.query_heads * problem.keys);
    if (problem.keys < 3) return;
    ranges_ = {0, problem.keys / 2, 0, problem.keys / 2, problem.keys - 1, 1};
    problem.statistics.segments = 2;
    problem.statistics.segment_ranges = ranges_.data();
    problem.statistics.segment_range_count = 2;
    backward_.segment_mass = add_numbers(rows * 2);
    backward_.segment_mass_gradient = add_numbers(rows * 2);
  }

  // The gradient of a bias of the scores' shape without the batch, or of one with an axis of keys
  // alone.
  void want_bias() {
    const Problem& problem = backward_.forward;
    int64_t* const stride = backward_.bias_gradient_stride;
    stride[3] = problem.keys > 1 ? 1 : 0;
    int64_t count = problem.keys;
    if (toss(random_)) {
      stride[2] = problem.queries > 1 ? problem.keys : 0;
      stride[1] = problem.query_heads > 1 ? problem.keys * problem.queries : 0;
      count *= problem.query_heads * problem.queries;
    }
    backward_.bias_gradient = add_float_result(count);
  }

  char* add_result(int64_t bytes) {
    results_.push_back(std::make_unique<Array<char>>(bytes));
    return results_.back()->get();
  }
  float* add_float_result(int64_t count) {
    return reinterpret_cast<float*>(add_result(count * int64_t(sizeof(float))));
  }
  float* add_floats(int64_t count) {
    inputs_.push_back(Array<char>(count * int64_t(sizeof(float))));
    return reinterpret_cast<float*>(inputs_.back().get());
  }
  const float* add_numbers(int64_t count) {
    inputs_.push_back(make_numbers(random_, Dtype::float32, count));
    return reinterpret_cast<const float*>(inputs_.back().get());
  }

  Random random_;
  std::unique_ptr<Case> case_;
  bool has_gradients_ = false;
  BackwardProblem backward_;
  std::vector<Chunk> chunks_;
  std::vector<int64_t> ranges_;
  Array<char> output_gradient_;
  std::vector<Array<char>> inputs_;
  std::vector<std::unique_ptr<Array<char>>> results_;
};

void test_bits_are_equal_on_any_number_of_threads(const Target& target, unsigned cases) {
  for (unsigned seed = 0; seed < cases; ++seed) {
    const GradientCase made(seed);
    if (!made.has_gradients()) continue;
    const std::string expected = made.compute(target, 1);
    for (const int threads : {2, 3, 7})
      CHECK(made.compute(target, threads) == expected,
            (std::string(target.name) + ", seed " + std::to_string(seed) + ", " + made.describe()));
  }
}

}  // namespace
}  // namespace keywise

// The argument is the number of random cases per target.
int main(int argc, char** argv) {
  using namespace keywise;
  const unsigned cases = argc > 1 ? unsigned(std::stoul(argv[1])) : 40;
  const Candidate* list;
  for (int i = 0, count = candidates(&list); i < count; ++i) {
    std::printf("%s: %s\n", list[i].target->name, *list[i].reason ? list[i].reason : "tested");
    if (!*list[i].reason) test_bits_are_equal_on_any_number_of_threads(*list[i].target, cases);
  }
  std::printf(failures == 0 ? "all tests passed\n" : "some tests failed\n");
  return failures == 0 ? 0 : 1;
}
