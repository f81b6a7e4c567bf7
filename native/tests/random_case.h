// Random problems with their arrays, for tests: odd sizes, masks, chunks and dtypes in arrays
// without a spare byte.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../core.h"

namespace keywise {

inline std::atomic<int> failures{0};

#define CHECK(condition, text)                                                               \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      std::printf("%s:%d: %s is false: %s\n", __FILE__, __LINE__, #condition, text.c_str()); \
      ++failures;                                                                            \
    }                                                                                        \
  } while (false)

using Random = std::mt19937;

inline int64_t choose(Random& random, std::initializer_list<int64_t> from) {
  return from.begin()[random() % from.size()];
}

inline bool toss(Random& random) { return random() % 2 == 0; }

// An array on the heap, so that a sanitizer sees every byte that is read behind it.
template <typename T>
class Array {
 public:
  Array() = default;
  explicit Array(int64_t size) : size_(size), data_(new T[size_t(size)]()) {}

  T* get() const { return data_.get(); }
  int64_t bytes() const { return size_ * int64_t(sizeof(T)); }
  T& operator[](int64_t index) const { return data_[size_t(index)]; }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
  std::unique_ptr<T[]> data_;
};

inline uint16_t to_float16(float x) {
  // Of a number in 1/8 .. 1, rounded towards 0.
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return uint16_t(((bits >> 16) & 0x8000) | (((bits >> 23 & 0xff) - 112) << 10) |
                  (bits >> 13 & 0x3ff));
}

inline uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return uint16_t(bits >> 16);
}

// Fills an array with numbers in 1/8 .. 1.
inline Array<char> make_numbers(Random& random, Dtype dtype, int64_t count) {
  Array<char> array(count * bytes_of(dtype));
  std::uniform_real_distribution<float> uniform(0.125f, 1.0f);
  for (int64_t i = 0; i < count; ++i) {
    char* const element = array.get() + i * bytes_of(dtype);
    const float x = uniform(random);
    const uint16_t half = dtype == Dtype::float16 ? to_float16(x) : to_bfloat16(x);
    const int8_t byte = int8_t(x * 127.0f);
    if (dtype == Dtype::float32)
      std::memcpy(element, &x, sizeof x);
    else if (dtype == Dtype::int8)
      std::memcpy(element, &byte, sizeof byte);
    else
      std::memcpy(element, &half, sizeof half);
  }
  return array;
}

// A problem with its arrays.
class Case {
 public:
  Case(Random& random, int64_t batch, int64_t key_heads, int64_t group, int64_t queries,
       int64_t keys, int64_t head_dim, int64_t value_dim, Dtype dtype, Dtype stored_dtype) {
    problem_.batch = batch;
    problem_.key_heads = key_heads;
    problem_.query_heads = key_heads * group;
    problem_.queries = queries;
    problem_.keys = keys;
    problem_.head_dim = head_dim;
    problem_.value_dim = value_dim;
    problem_.dtype = dtype;
    problem_.stored_dtype = stored_dtype;
    problem_.scale = 1.0f / std::sqrt(float(head_dim));
    query_ = make_numbers(random, dtype, batch * problem_.query_heads * queries * head_dim);
    set_tensor(problem_.query, query_.get(), problem_.query_heads, queries, head_dim);
    lengths_.assign(size_t(batch), keys);
    starts_.assign(size_t(batch), 0);
    problem_.visibility.lengths = lengths_.data();
    problem_.visibility.starts = starts_.data();
    add_chunks(random);
    output_ = Array<char>(batch * problem_.query_heads * queries * value_dim * bytes_of(dtype));
    problem_.output = output_.get();
    set_stride(problem_.output_stride, problem_.query_heads, queries, value_dim);
    results_.push_back(&output_);
  }
  Case(const Case&) = delete;

  // Cuts keys and values into chunks of memory of their own.
  void add_chunks(Random& random) {
    const int64_t heads = problem_.batch * problem_.key_heads;
    int64_t first_key = 0;
    do {
      const int64_t left = problem_.keys - first_key;
      const int64_t keys = left > 1 && toss(random) ? 1 + int64_t(random() % uint64_t(left)) : left;
      Chunk chunk;
      chunk.first_key = first_key;
      chunk.keys = keys;
      memory_.push_back(
          make_numbers(random, problem_.stored_dtype, heads * keys * problem_.head_dim));
      set_tensor(chunk.key, memory_.back().get(), problem_.key_heads, keys, problem_.head_dim);
      memory_.push_back(
          make_numbers(random, problem_.stored_dtype, heads * keys * problem_.value_dim));
      set_tensor(chunk.value, memory_.back().get(), problem_.key_heads, keys, problem_.value_dim);
      if (problem_.stored_dtype == Dtype::int8) {
        add_scales(random, chunk.key_scale, heads, keys);
        add_scales(random, chunk.value_scale, heads, keys);
      }
      chunks_.push_back(chunk);
      first_key += keys;
    } while (first_key < problem_.keys);
    problem_.chunks = chunks_.data();
    problem_.chunk_count = int64_t(chunks_.size());
  }

  void add_mask(Random& random) {
    MaskRules& rules = problem_.visibility;
    rules.causal = toss(random);
    if (toss(random)) rules.left = choose(random, {0, 3, 100, 700});
    if (toss(random)) rules.right = choose(random, {0, 2, 50});
    if (toss(random)) rules.keep_first = choose(random, {1, 5, 300});
    if (toss(random)) {
      for (int64_t& length : lengths_) length = int64_t(random() % uint64_t(problem_.keys + 1));
    }
    if (toss(random)) {
      for (int64_t& start : starts_) start = int64_t(random() % uint64_t(problem_.keys + 1));
    }
    if (random() % 4 == 0) {
      documents_ = Array<int32_t>(problem_.batch * problem_.keys);
      for (int64_t i = 0; i < documents_.size(); ++i) documents_[i] = int32_t(random() % 3);
      rules.documents = documents_.get();
      rules.positions = problem_.keys;
    }
    if (random() % 4 == 0) {
      allowed_ = Array<uint8_t>(problem_.queries * problem_.keys);
      for (int64_t i = 0; i < allowed_.size(); ++i) allowed_[i] = uint8_t(random() % 4 * 85);
      rules.allowed = allowed_.get();
      rules.allowed_stride[2] = problem_.keys;
      rules.allowed_stride[3] = 1;
    }
  }

  void add_options(Random& random) {
    if (toss(random)) problem_.softcap = 5.0f;
    if (toss(random)) {
      sinks_ = make_numbers(random, Dtype::float32, problem_.query_heads);
      problem_.sinks = reinterpret_cast<const float*>(sinks_.get());
    }
    if (toss(random)) {
      Bias& bias = problem_.bias;
      bias.dtype = toss(random) ? Dtype::float32 : problem_.dtype;
      bias_ =
          make_numbers(random, bias.dtype, problem_.query_heads * problem_.queries * problem_.keys);
      bias.data = bias_.get();
      set_stride(bias.stride, problem_.query_heads, problem_.queries, problem_.keys);
      bias.stride[0] = 0;
    }
  }

  void want_statistics(Random& random) {
    problem_.wants_statistics = true;
    Statistics& statistics = problem_.statistics;
    statistics.first_query = toss(random) ? 0 : problem_.queries / 3;
    statistics.last_query = problem_.queries;
    statistics.top_k = choose(random, {0, 1, 3, 40});
    const int64_t heads = problem_.batch * problem_.query_heads;
    const int64_t rows = heads * (statistics.last_query - statistics.first_query);
    statistics.lse = add_result(rows);
    statistics.entropy = add_result(rows);
    statistics.top_weights = add_result(rows * statistics.top_k);
    // Any 4 bytes will do.
    statistics.top_keys = reinterpret_cast<int32_t*>(add_result(rows * statistics.top_k));
    statistics.top_mass = add_result(rows);
    if (toss(random)) statistics.key_mass = add_result(heads * problem_.keys);
    if (toss(random) && problem_.keys > 2) {
      statistics.segments = 2;
      ranges_ = {0, problem_.keys / 2, 0, problem_.keys / 2, problem_.keys - 1, 1};
      statistics.segment_ranges = ranges_.data();
      statistics.segment_range_count = 2;
      statistics.segment_mass = add_result(rows * statistics.segments);
    }
    if (toss(random)) {
      query_weights_ = make_numbers(random, Dtype::float32, problem_.queries);
      statistics.query_weights = reinterpret_cast<const float*>(query_weights_.get());
      statistics.query_weight_stride[2] = 1;
    }
  }

  const Problem& problem() const { return problem_; }
  // Where a test wants the LSE too.
  Problem& problem() { return problem_; }

  // Returns the bytes of all results, or nothing after an interruption.
  std::string compute(const Target& target, int threads, Interrupted interrupted = nullptr) const {
    for (const Array<char>* result : results_)
      std::memset(result->get(), 0x7e, size_t(result->bytes()));
    if (!run(problem_, target, threads, interrupted)) return "";
    std::string bytes;
    for (const Array<char>* result : results_) bytes.append(result->get(), size_t(result->bytes()));
    return bytes;
  }

  std::string describe() const {
    const auto text = [](int64_t number) { return std::to_string(number) + " "; };
    const Problem& p = problem_;
    return "batch, heads, key heads, queries, keys, head_dim, value_dim, dtypes, statistics: " +
           text(p.batch) + text(p.query_heads) + text(p.key_heads) + text(p.queries) +
           text(p.keys) + text(p.head_dim) + text(p.value_dim) + text(int64_t(p.dtype)) +
           text(int64_t(p.stored_dtype)) + text(p.wants_statistics);
  }

 private:
  static void set_stride(int64_t* stride, int64_t heads, int64_t tokens, int64_t dim) {
    stride[3] = 1;
    stride[2] = dim;
    stride[1] = tokens * dim;
    stride[0] = heads * tokens * dim;
  }

  static void set_tensor(Tensor& tensor, const void* data, int64_t heads, int64_t tokens,
                         int64_t dim) {
    tensor.data = data;
    set_stride(tensor.stride, heads, tokens, dim);
  }

  void add_scales(Random& random, Scales& scales, int64_t heads, int64_t keys) {
    memory_.push_back(make_numbers(random, Dtype::float32, heads * keys));
    scales.data = reinterpret_cast<const float*>(memory_.back().get());
    scales.stride[1] = keys;
    scales.stride[0] = keys * problem_.key_heads;
  }

  float* add_result(int64_t count) {
    statistics_.push_back(std::make_unique<Array<char>>(count * int64_t(sizeof(float))));
    results_.push_back(statistics_.back().get());
    return reinterpret_cast<float*>(results_.back()->get());
  }

  Problem problem_;
  Array<char> query_;
  Array<char> output_;
  Array<char> bias_;
  Array<char> sinks_;
  Array<char> query_weights_;
  Array<int32_t> documents_;
  Array<uint8_t> allowed_;
  std::vector<int64_t> lengths_;
  std::vector<int64_t> starts_;
  std::vector<int64_t> ranges_;
  std::vector<Chunk> chunks_;
  std::vector<Array<char>> memory_;  // of chunks
  std::vector<std::unique_ptr<Array<char>>> statistics_;
  std::vector<const Array<char>*> results_;
};

// Returns a case of random sizes and options.
inline std::unique_ptr<Case> make_random_case(unsigned seed) {
  Random random(seed);
  const int64_t queries = choose(random, {1, 1, 2, 5, 13, 61, 250});
  const int64_t keys = queries > 100 ? choose(random, {1, 130, 300})
                                     : choose(random, {1, 7, 33, 255, 257, 700, 1100, 2100});
  const Dtype dtype = Dtype(random() % 3);
  const Dtype stored_dtype = random() % 4 == 0 ? Dtype::int8 : dtype;
  auto made = std::make_unique<Case>(random, choose(random, {1, 2}), choose(random, {1, 2, 3}),
                                     choose(random, {1, 2, 5}), queries, keys,
                                     choose(random, {1, 3, 16, 33, 64}),
                                     choose(random, {1, 5, 16, 40, 64}), dtype, stored_dtype);
  if (toss(random)) made->add_mask(random);
  if (toss(random)) made->add_options(random);
  if (toss(random)) made->want_statistics(random);
  return made;
}

inline const Target& fastest_target() {
  const Candidate* list;
  for (int i = 0, count = candidates(&list); i < count; ++i)
    if (!*list[i].reason) return *list[i].target;
  throw std::logic_error("no target");
}

}  // namespace keywise
